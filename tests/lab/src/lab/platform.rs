//! What the platform team of the lab has written: the operator's manifests, the hypervisor, the cluster, the repository and the Secrets.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    AppliedBy, CONTAINER, GIT_PASSWORD, GITLAB_TOKEN, Lab, LabOptions, NODE, PRISM_PASSWORD, SYSTEM, TEAM, VLAN,
};
use crate::terraform::{TerraformConfig, environment};

/// `manifests/operator`, unchanged but for the node that its pod is pinned to: no scheduler runs in the lab.
pub fn operator() -> Result<String> {
    Ok(manifest("operator/operator.yaml")?.replace(
        "      serviceAccountName: drover-operator\n",
        &format!("      serviceAccountName: drover-operator\n      nodeSelector: {{kubernetes.io/hostname: {NODE}}}\n"),
    ))
}

/// A file of `manifests`, as it is.
pub fn manifest(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests").join(name);
    std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// The rest, as YAML documents (JSON is YAML).
pub fn platform(lab: &Lab, options: &LabOptions) -> Result<String> {
    let prism_secret = |name: &str| secret(SYSTEM, name, PRISM_PASSWORD, Some(lab.prism.ca_pem()));
    let run_directory = lab.run_directory();
    let objects = [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": TEAM}}),
        prism_secret("prism-central"),
        prism_secret("prism-element"),
        secret(TEAM, "machines-git", GIT_PASSWORD, lab.git.ca_pem()),
        json!({
            "apiVersion": "drover.dev/v1alpha1", "kind": "LibvirtHost", "metadata": {"name": "kvm1"},
            "spec": {
                "nodeName": NODE,
                "uri": lab.libvirt.uri(),
                "storageAddress": "127.0.0.1",
                "allowedNamespaces": [TEAM],
                "runDirectory": run_directory,
                "libvirtDirectory": lab.libvirt.socket_dir(),
                "diskDirectories": [lab.libvirt.disk_dir()],
                "limits": {"maxGuestStallMillis": options.max_guest_stall_millis, "relayMemoryMib": options.relay_memory_mib,
                    "verifyMibPerSecond": options.verify_mib_per_second},
            },
        }),
        json!({
            "apiVersion": "drover.dev/v1alpha1", "kind": "NutanixCluster", "metadata": {"name": "ahv1"},
            "spec": {
                "prismCentral": {"url": lab.prism.central_url(), "credentials": {"name": "prism-central"}},
                "prismElement": {"url": lab.prism.element_url(), "credentials": {"name": "prism-element"}},
                "clusterName": "ahv1",
                "storageContainer": CONTAINER,
                "nfs": {
                    "address": "127.0.0.1",
                    "port": lab.throttle.as_ref().map_or(lab.nfs.port(), |throttle| throttle.port()),
                    "mountPort": lab.nfs.mount_port(),
                },
                "subnets": [{"vlan": VLAN, "subnet": "lan"}],
                "allowedNamespaces": [TEAM],
            },
        }),
        json!({
            "apiVersion": "drover.dev/v1alpha1", "kind": "TerraformRepository", "metadata": {"name": "machines", "namespace": TEAM},
            "spec": {"url": lab.git.url(), "branch": "main", "path": "vms/{hostname}.tf", "credentials": {"name": "machines-git"},
                "apply": apply(lab, options)},
        }),
    ];
    let objects = objects.into_iter().chain(apply_secret(lab, options)?);
    Ok(objects.map(|object| format!("---\n{object}\n")).collect())
}

/// Name of the Secret with what Terraform or GitLab's API need.
const APPLY_SECRET: &str = "machines-apply";

fn apply(lab: &Lab, options: &LabOptions) -> Value {
    match (&lab.gitlab, options.applied_by) {
        (Some(gitlab), _) => json!({"gitlab": {
            "url": gitlab.url(), "project": gitlab.project(), "credentials": {"name": APPLY_SECRET},
        }}),
        (None, AppliedBy::Jobs) => json!({"job": {
            "image": "drover:latest", "environment": {"name": APPLY_SECRET}, "nodeSelector": {"kubernetes.io/hostname": NODE},
        }}),
        (None, AppliedBy::Pipeline | AppliedBy::GitLab) => json!({}),
    }
}

fn apply_secret(lab: &Lab, options: &LabOptions) -> Result<Option<Value>> {
    let data = match (&lab.gitlab, options.applied_by) {
        (Some(gitlab), _) => json!({"token": GITLAB_TOKEN, "ca.crt": gitlab.ca_pem()}),
        (None, AppliedBy::Jobs) => {
            let TerraformConfig { state, tools, prism_url, username, password } = &lab.terraform;
            let mut environment = json!(environment(tools, prism_url, username, password)?);
            environment["TF_CLI_ARGS_init"] = json!(format!("-backend-config=path={}", state.display()));
            environment["DROVER_TERRAFORM"] = json!(tools.terraform);
            environment
        }
        (None, AppliedBy::Pipeline | AppliedBy::GitLab) => return Ok(None),
    };
    let metadata = json!({"name": APPLY_SECRET, "namespace": TEAM});
    Ok(Some(json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data})))
}

fn secret(namespace: &str, name: &str, password: &str, ca: Option<&str>) -> Value {
    let mut data = json!({"username": "drover", "password": password});
    if let Some(ca) = ca {
        data["ca.crt"] = json!(ca);
    }
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace}, "stringData": data})
}
