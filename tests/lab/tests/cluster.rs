//! The lab's control plane and Drover's resource definitions, against the real API server.

mod common;

use anyhow::{Context, Result};
use drover::api::{VmMigration, crds};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;

use common::{eventually, start_cluster};

/// What the server says against `yaml`; an error if it takes it.
async fn refusal(cluster: &drover_lab::cluster::Cluster, yaml: &str) -> Result<String> {
    match cluster.apply_yaml(yaml).await {
        Ok(_) => anyhow::bail!("the API server took what it should refuse:\n{yaml}"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

fn migration(spec: &serde_json::Value) -> String {
    json!({
        "apiVersion": "drover.dev/v1alpha1", "kind": "VmMigration", "metadata": {"name": "web", "namespace": "default"}, "spec": spec,
    })
    .to_string()
}

#[tokio::test]
async fn the_api_server_takes_our_definitions_and_refuses_bad_resources_readably() -> Result<()> {
    let lab = start_cluster()?;
    definitions_cause_no_warning(&lab.cluster)?;
    lab.cluster.install_crds().await?;
    let client = lab.cluster.client().await?;

    only_a_hostname_is_needed(&lab.cluster, &client).await?;
    migrations_are_checked(&lab.cluster, &client).await?;
    platform_resources_are_checked(&lab.cluster).await?;
    complete_resources_are_accepted(&lab.cluster).await?;
    Ok(())
}

/// kubectl shows what the server warns of when a definition is created: unknown formats, for one.
fn definitions_cause_no_warning(cluster: &drover_lab::cluster::Cluster) -> Result<()> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": crds()});
    let file = cluster.kubeconfig().with_file_name("crds.json");
    std::fs::write(&file, list.to_string())?;
    let output = cluster.kubectl().args(["apply", "--server-side", "--force-conflicts", "-f"]).arg(&file).output()?;
    let (said, warned) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{warned}");
    assert_eq!(said.lines().count(), crds().len(), "{said}");
    assert_eq!(warned, "");
    Ok(())
}

async fn only_a_hostname_is_needed(cluster: &drover_lab::cluster::Cluster, client: &Client) -> Result<()> {
    cluster.apply_yaml(&migration(&json!({"hostname": "web01"}))).await?;
    let stored = Api::<VmMigration>::namespaced(client.clone(), "default").get("web").await?;
    assert_eq!(stored.spec.approved, None);
    assert_eq!(stored.spec.cutover, Default::default());
    let cutover = json!({
        "shutdown": {"method": "Acpi", "timeoutSeconds": 300, "onTimeout": "GiveUp"},
        "maxDowntimeSeconds": 900,
        "onDifference": "Repair",
        "verifyTimeoutSeconds": 600,
        "onVerifyFailure": "Wait",
        "onSourceStarted": "Alarm",
    });
    let raw = cluster.kubectl().args(["get", "vmm", "web", "-o", "jsonpath={.spec}"]).output()?;
    let spec: serde_json::Value = serde_json::from_slice(&raw.stdout).context("kubectl get vmm")?;
    assert_eq!(spec, json!({"hostname": "web01", "cutover": cutover}), "the server's defaults");
    Ok(())
}

async fn migrations_are_checked(cluster: &drover_lab::cluster::Cluster, client: &Client) -> Result<()> {
    let digest = format!("sha256:{}", "a".repeat(64));
    for (spec, message) in [
        (
            json!({"hostname": "web02"}),
            "hostname cannot change: delete this migration and create one for the other machine",
        ),
        (json!({"hostname": "web01", "approvedDigest": digest}), "set approved: true with it, or remove both"),
        (
            json!({"hostname": "web01", "approved": false, "approvedDigest": digest}),
            "set approved: true with it, or remove both",
        ),
        (json!({"hostname": "web01", "approved": true, "approvedDigest": "abc"}), "spec.approvedDigest"),
        (json!({"hostname": "web01", "finalize": true, "rollback": true}), "finalize and rollback exclude each other"),
        (json!({"hostname": "-web01"}), "spec.hostname"),
        (json!({"hostname": "web01", "cutover": {"maxDowntimeSeconds": 1}}), "spec.cutover.maxDowntimeSeconds"),
        (json!({}), "spec.hostname: Required value"),
    ] {
        let said = refusal(cluster, &migration(&spec)).await?;
        assert!(said.contains(message), "{spec}: {said}");
    }
    let long = migration(&json!({"hostname": "web01"})).replace("\"web\"", &format!("\"{}\"", "n".repeat(64)));
    let said = refusal(cluster, &long).await?;
    assert!(said.contains("metadata.name must have at most 63 characters"), "{said}");

    cluster.apply_yaml(&migration(&json!({"hostname": "web01", "approved": true, "approvedDigest": digest}))).await?;
    let migrations: Api<VmMigration> = Api::namespaced(client.clone(), "default");
    let unapprove = Patch::Merge(json!({"spec": {"approved": null}}));
    let error = migrations.patch("web", &PatchParams::default(), &unapprove).await.expect_err("the digest stayed");
    assert!(error.to_string().contains("remove both"), "{error}");
    Ok(())
}

async fn platform_resources_are_checked(cluster: &drover_lab::cluster::Cluster) -> Result<()> {
    let nutanix = |subnets: serde_json::Value, address: &str| {
        json!({
            "apiVersion": "drover.dev/v1alpha1", "kind": "NutanixCluster", "metadata": {"name": "ahv"},
            "spec": {
                "prismCentral": {"url": "https://pc.example.com:9440", "credentials": {"name": "prism"}},
                "prismElement": {"url": "https://pe.example.com:9440", "credentials": {"name": "prism"}},
                "clusterName": "ahv", "storageContainer": "default", "nfs": {"address": address}, "subnets": subnets,
            },
        })
        .to_string()
    };
    let subnet = |vlan: u16, name: &str| json!({"vlan": vlan, "subnet": name});
    let twice = json!([subnet(10, "a"), subnet(11, "b"), subnet(10, "c")]);
    let said = refusal(cluster, &nutanix(twice, "192.0.2.1")).await?;
    assert!(said.contains("each vlan may be listed once in subnets"), "{said}");
    let said = refusal(cluster, &nutanix(json!([]), "nfs.example.com")).await?;
    assert!(said.contains("address must be an IP address"), "{said}");
    cluster.apply_yaml(&nutanix(json!([subnet(10, "a"), subnet(11, "b")]), "192.0.2.1")).await?;

    let repository = |path: &str| {
        json!({
            "apiVersion": "drover.dev/v1alpha1", "kind": "TerraformRepository", "metadata": {"name": "vms"},
            "spec": {"url": "https://git.example.com/vms.git", "path": path},
        })
        .to_string()
    };
    for (path, message) in [
        ("vms/all.tf", "path must contain {hostname}, so that each machine has a file of its own"),
        ("/vms/{hostname}.tf", "path must be relative"),
        ("../{hostname}.tf", "path must be relative"),
    ] {
        let said = refusal(cluster, &repository(path)).await?;
        assert!(said.contains(message), "{path}: {said}");
    }
    cluster.apply_yaml(&repository("vms/{hostname}.tf")).await?;
    repository_urls_are_checked(cluster, &repository("vms/{hostname}.tf")).await
}

async fn repository_urls_are_checked(cluster: &drover_lab::cluster::Cluster, repository: &str) -> Result<()> {
    let with = |url: &str, credentials: bool| -> Result<String> {
        let mut object: serde_json::Value = serde_json::from_str(repository)?;
        object["spec"]["url"] = json!(url);
        if credentials {
            object["spec"]["credentials"] = json!({"name": "git"});
        }
        Ok(object.to_string())
    };
    for url in ["https://me:secret@example.com/a", "https://token@example.com/a", "ssh://git:secret@example.com/a"] {
        let said = refusal(cluster, &with(url, true)?).await?;
        assert!(said.contains("url must hold no password and no token"), "{url}: {said}");
    }
    for url in ["/srv/git/a", "file:///srv/git/a", "git:secret@example.com:a", "https://example.com/a b"] {
        let said = refusal(cluster, &with(url, true)?).await?;
        assert!(said.contains("spec.url"), "{url}: {said}");
    }
    for url in ["ssh://git@example.com:2222/a", "git@example.com:team/a.git"] {
        let said = refusal(cluster, &with(url, false)?).await?;
        assert!(said.contains("ssh needs a key"), "{url}: {said}");
        cluster.apply_yaml(&with(url, true)?).await?;
    }
    let stored = cluster.apply_yaml(repository).await?;
    assert_eq!(stored[0].data["spec"]["delivery"], "Commit", "the server's default");
    Ok(())
}

async fn complete_resources_are_accepted(cluster: &drover_lab::cluster::Cluster) -> Result<()> {
    let applied = cluster
        .apply_yaml(
            r"
apiVersion: drover.dev/v1alpha1
kind: LibvirtHost
metadata: {name: kvm1}
spec: {nodeName: kvm1, allowedNamespaces: [default]}
---
apiVersion: drover.dev/v1alpha1
kind: BlockCopy
metadata: {name: web, namespace: default}
spec:
  claim: {namespace: default, name: web, uid: u, installation: i}
  epoch: 9007199254740991
  hostname: web01
  libvirtUri: qemu:///system
  runDirectory: /run/drover
  want: Mirror
  disks:
    - device: vda
      sizeBytes: 1073741824
      target: {server: {address: 192.0.2.1}, export: /c, path: .acropolis/vmdisk/x, sizeBytes: 2147483648}
  limits: {}
  shutdown: {}
",
        )
        .await?;
    assert_eq!(applied[0].data["spec"]["limits"]["maxGuestStallMillis"], 3000, "the server's defaults");
    assert_eq!(applied[1].data["spec"]["limits"]["relayMemoryMib"], 128, "the server's defaults");
    Ok(())
}

#[tokio::test]
async fn permissions_owners_namespaces_and_a_restart_work_as_in_a_real_cluster() -> Result<()> {
    let lab = start_cluster()?;
    let client = lab.cluster.client().await?;
    lab.cluster
        .apply_yaml(
            r"
apiVersion: v1
kind: Namespace
metadata: {name: team}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: team}
rules: [{apiGroups: [''], resources: [configmaps], verbs: [get, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader, namespace: team}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: team-readers}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: owner, namespace: team}
",
        )
        .await?;

    let kubeconfig = lab.cluster.kubeconfig_for("anna", &["staff", "team-readers"])?;
    let anna = drover_lab::cluster::client(&kubeconfig).await?;
    Api::<ConfigMap>::namespaced(anna.clone(), "team").list(&ListParams::default()).await?;
    let error = Api::<Secret>::namespaced(anna, "team").list(&ListParams::default()).await.expect_err("no such right");
    assert!(error.to_string().contains("\"anna\" cannot list resource \"secrets\""), "{error}");

    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "team");
    let owner = maps.get("owner").await?;
    let owned: ConfigMap = serde_json::from_value(json!({
        "metadata": {"name": "owned", "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.uid()}]},
    }))?;
    maps.create(&PostParams::default(), &owned).await?;

    lab.cluster.restart_api_server()?;
    assert_eq!(maps.get("owned").await?.name_any(), "owned", "what was stored is still there");

    maps.delete("owner", &DeleteParams::default()).await?;
    eventually("the owned object collected", async || Ok(maps.get_opt("owned").await?.is_none().then_some(()))).await?;
    let namespaces: Api<Namespace> = Api::all(client);
    namespaces.delete("team", &DeleteParams::default()).await?;
    eventually("the namespace gone", async || Ok(namespaces.get_opt("team").await?.is_none().then_some(()))).await?;
    Ok(())
}

#[tokio::test]
async fn a_paused_api_server_answers_nothing_until_it_is_resumed() -> Result<()> {
    let lab = start_cluster()?;
    let client = lab.cluster.client().await?;
    let namespaces: Api<Namespace> = Api::all(client);
    namespaces.get("default").await?;
    lab.cluster.pause_api_server()?;
    let answer = tokio::time::timeout(std::time::Duration::from_millis(500), namespaces.get("default")).await;
    lab.cluster.resume_api_server()?;
    assert!(answer.is_err(), "a stopped server answered");
    namespaces.get("default").await?;
    Ok(())
}
