//! Writing a pod's status to the API server, on a task of its own: a server that hangs must not hold up the pod.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;
use tokio::sync::watch;

/// How long one write may take before it is tried again.
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// The newest status, and whether the object may go: every process has ended and somebody deleted it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Report {
    pub(super) status: PodStatus,
    pub(super) may_go: bool,
}

/// Writes every new report until the pod is gone or the sender is dropped. A report that is overtaken by a newer one is not written.
pub(super) async fn write_reports(api: Api<Pod>, name: String, uid: String, mut reports: watch::Receiver<Report>) {
    while reports.changed().await.is_ok() {
        loop {
            let report = reports.borrow_and_update().clone();
            match tokio::time::timeout(WRITE_LIMIT, write(&api, &name, &uid, &report)).await {
                Ok(Ok(())) => break,
                Ok(Err(kube::Error::Api(status))) if status.is_not_found() || status.is_conflict() => return,
                Ok(Err(error)) => tracing::warn!(pod = name, %error, "could not write the pod's status, trying again"),
                Err(_) => {
                    tracing::warn!(pod = name, "no answer to the pod's status within {WRITE_LIMIT:?}, trying again")
                }
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

async fn write(api: &Api<Pod>, name: &str, uid: &str, report: &Report) -> kube::Result<()> {
    // The uid makes the server refuse the patch with a conflict if another pod of that name has taken its place.
    let patch = json!({"metadata": {"uid": uid}, "status": report.status});
    api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
    if report.may_go {
        delete(api, name, uid).await?;
    }
    Ok(())
}

/// Tells the API server that nothing of the pod is left on the node.
pub(super) async fn delete(api: &Api<Pod>, name: &str, uid: &str) -> kube::Result<()> {
    let preconditions = Preconditions { uid: Some(uid.into()), ..Preconditions::default() };
    let params =
        DeleteParams { grace_period_seconds: Some(0), preconditions: Some(preconditions), ..DeleteParams::default() };
    api.delete(name, &params).await.map(|_| ())
}
