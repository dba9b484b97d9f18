//! The runner's Node object, its heartbeats, and binding pods to it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;

use super::POD_IP;

/// How often the node's lease is renewed, as a kubelet does.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// The writer of Node, Lease and binding.
const FIELD_MANAGER: &str = "drover-lab-runner";

fn labels(node_name: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("kubernetes.io/hostname".to_owned(), node_name.to_owned()),
        ("kubernetes.io/os".to_owned(), "linux".to_owned()),
        ("kubernetes.io/arch".to_owned(), "amd64".to_owned()),
    ])
}

/// Creates the Node, ready and without taints, or takes over one of that name.
pub(super) async fn register(client: &Client, node_name: &str) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let node = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node_name, "labels": labels(node_name)},
    });
    nodes.patch(node_name, &params, &Patch::Apply(node)).await.with_context(|| format!("create node {node_name}"))?;
    // Admission taints every new node as not ready; the controller that would take the taint away does not run here.
    let untaint = json!({"spec": {"taints": null}});
    nodes.patch(node_name, &PatchParams::default(), &Patch::Merge(untaint)).await.context("remove the node's taint")?;
    let now = Timestamp::now();
    let capacity = json!({"cpu": "64", "memory": "64Gi", "pods": "1000"});
    let status = json!({"status": {
        "capacity": capacity,
        "allocatable": capacity,
        "addresses": [{"type": "InternalIP", "address": POD_IP}, {"type": "Hostname", "address": node_name}],
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "RunnerReady", "message": "the lab's runner executes pods as processes",
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        }],
    }});
    nodes
        .patch_status(node_name, &PatchParams::default(), &Patch::Strategic(status))
        .await
        .with_context(|| format!("write the status of node {node_name}"))?;
    Ok(())
}

/// Renews the node's lease for ever.
pub(super) async fn heartbeats(client: Client, node_name: String) {
    let resource = kube::core::ApiResource::erase::<k8s_openapi::api::coordination::v1::Lease>(&());
    let leases: Api<DynamicObject> = Api::namespaced_with(client, "kube-node-lease", &resource);
    loop {
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": node_name, "namespace": "kube-node-lease"},
            "spec": {
                "holderIdentity": node_name,
                "leaseDurationSeconds": 40,
                "renewTime": format!("{:.6}", Timestamp::now()),
            },
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let renewed = tokio::time::timeout(HEARTBEAT, leases.patch(&node_name, &params, &Patch::Apply(lease))).await;
        if let Ok(Err(error)) = renewed {
            tracing::warn!(node_name, %error, "could not renew the node's lease");
        }
        tokio::time::sleep(HEARTBEAT).await;
    }
}

/// Whether the pod waits for a scheduler and its `nodeSelector` names this node.
pub(super) fn should_bind(pod: &Pod, node_name: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let Some(selector) = spec.node_selector.as_ref().filter(|selector| !selector.is_empty()) else { return false };
    let labels = labels(node_name);
    let gated = spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
    let open = spec.node_name.is_none() && !gated && pod.metadata.deletion_timestamp.is_none();
    open && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Binds the pod to this node, as a scheduler would; tries again while the API server does not answer.
pub(super) async fn bind(client: Client, pod: Pod, node_name: String) {
    let pods: Api<Pod> = Api::namespaced(client, &pod.namespace().unwrap_or_default());
    let name = pod.name_any();
    let binding = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": name, "uid": pod.uid()},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node_name},
    });
    loop {
        match pods.create_subresource::<_, serde_json::Value>("binding", &name, &PostParams::default(), &binding).await
        {
            Ok(_) => return,
            Err(kube::Error::Api(status))
                if status.is_not_found() || status.is_conflict() || status.is_already_exists() =>
            {
                return;
            }
            Err(error) => tracing::warn!(pod = name, %error, "could not bind the pod, trying again"),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
