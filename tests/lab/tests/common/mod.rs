//! What the cluster's tests share.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use drover_lab::cluster::{Cluster, ClusterBinaries};

/// A cluster in a directory that goes with it.
pub struct TestCluster {
    pub cluster: Cluster,
    _dir: tempfile::TempDir,
}

/// Starts a cluster of the test's own.
pub fn start_cluster() -> Result<TestCluster> {
    let bin = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/bin");
    let bins = ClusterBinaries {
        etcd: bin.join("etcd"),
        kube_apiserver: bin.join("kube-apiserver"),
        kube_controller_manager: bin.join("kube-controller-manager"),
        kubectl: bin.join("kubectl"),
    };
    let dir = tempfile::tempdir()?;
    Ok(TestCluster { cluster: Cluster::start(&dir.path().join("cluster"), &bins)?, _dir: dir })
}

/// Asks every 100 ms until the answer is `Some`; an error after a minute. The limit only ends a test that would hang.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        if start.elapsed() > Duration::from_secs(60) {
            bail!("not seen within a minute: {what}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
