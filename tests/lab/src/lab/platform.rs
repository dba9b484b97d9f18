//! What the platform team of the lab has written: the operator's manifests, the hypervisor, the cluster, the repository and the Secrets.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{CONTAINER, Lab, LabOptions, NODE, SYSTEM, TEAM, VLAN};

/// `manifests/operator`, unchanged but for the node that its pod is pinned to: no scheduler runs in the lab.
pub fn operator() -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/operator/operator.yaml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.replace(
        "      serviceAccountName: drover-operator\n",
        &format!("      serviceAccountName: drover-operator\n      nodeSelector: {{kubernetes.io/hostname: {NODE}}}\n"),
    ))
}

/// The rest, as YAML documents (JSON is YAML).
pub fn platform(lab: &Lab, options: &LabOptions) -> String {
    let prism_secret = |name: &str| secret(SYSTEM, name, "prism-password", Some(lab.prism.ca_pem()));
    let run_directory = lab.run_directory();
    let objects = [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": TEAM}}),
        prism_secret("prism-central"),
        prism_secret("prism-element"),
        secret(TEAM, "machines-git", "git-password", None),
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
            "spec": {"url": lab.git.url(), "branch": "main", "path": "vms/{hostname}.tf", "credentials": {"name": "machines-git"}},
        }),
    ];
    objects.iter().map(|object| format!("---\n{object}\n")).collect()
}

fn secret(namespace: &str, name: &str, password: &str, ca: Option<&str>) -> Value {
    let mut data = json!({"username": "drover", "password": password});
    if let Some(ca) = ca {
        data["ca.crt"] = json!(ca);
    }
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace}, "stringData": data})
}
