//! The lab's cluster against the real API server: does it come up, and does it take Drover's resources?

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Instant;

use anyhow::Result;
use drover_lab::cluster::{Cluster, ClusterBinaries};

fn bins() -> ClusterBinaries {
    let bin = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/bin");
    ClusterBinaries {
        etcd: bin.join("etcd"),
        kube_apiserver: bin.join("kube-apiserver"),
        kube_controller_manager: bin.join("kube-controller-manager"),
        kubectl: bin.join("kubectl"),
    }
}

#[tokio::test]
async fn starts() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let start = Instant::now();
    let cluster = Cluster::start(dir.path(), &bins())?;
    println!("ready after {:?}", start.elapsed());
    let start = Instant::now();
    cluster.install_crds().await?;
    println!("crds after {:?}", start.elapsed());
    if let Ok(seconds) = std::env::var("KEEP") {
        println!("{}", cluster.kubeconfig().display());
        tokio::time::sleep(std::time::Duration::from_secs(seconds.parse()?)).await;
    }
    Ok(())
}
