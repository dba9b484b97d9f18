//! How etcd, the API server and the controller-manager are started: as few flags as they need, tuned for a small machine.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::ClusterBinaries;
use super::certificates::Authority;

/// User and group of the lab's administrator.
pub(super) const ADMIN: (&str, Option<&str>) = ("lab-admin", Some("system:masters"));

/// The controllers that the lab needs. There is no scheduler: the runner binds pods.
const CONTROLLERS: &[&str] = &[
    "clusterrole-aggregation-controller",
    "deployment-controller",
    "garbage-collector-controller",
    "job-controller",
    "namespace-controller",
    "pod-garbage-collector-controller",
    "replicaset-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "ttl-after-finished-controller",
    "validatingadmissionpolicy-status-controller",
];

/// Where a cluster's parts are: programs, state and ports.
pub(super) struct Layout {
    pub(super) bins: ClusterBinaries,
    pub(super) dir: PathBuf,
    pub(super) etcd_port: u16,
    pub(super) api_port: u16,
}

impl Layout {
    pub(super) fn server(&self) -> String {
        format!("https://127.0.0.1:{}", self.api_port)
    }

    pub(super) fn admin_kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    fn manager_kubeconfig(&self) -> PathBuf {
        self.dir.join("kube-controller-manager.kubeconfig")
    }

    fn pki(&self, file: &str) -> PathBuf {
        self.dir.join("pki").join(file)
    }

    /// Writes every certificate, key and kubeconfig that the parts need.
    pub(super) fn write_credentials(&self) -> Result<Authority> {
        let authority = Authority::create(&self.dir.join("pki"))?;
        let names =
            ["127.0.0.1", "10.0.0.1", "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        authority.server("kube-apiserver", &names)?;
        authority.token_keys("service-account")?;
        authority.kubeconfig(&self.admin_kubeconfig(), &self.server(), ADMIN, None)?;
        let manager = ("system:kube-controller-manager", None);
        authority.kubeconfig(&self.manager_kubeconfig(), &self.server(), manager, None)?;
        Ok(authority)
    }

    /// etcd without fsync: the lab's data need not survive a power cut. Port 0 for peers: it has none.
    pub(super) fn etcd(&self) -> Command {
        let clients = format!("http://127.0.0.1:{}", self.etcd_port);
        let mut command = Command::new(&self.bins.etcd);
        command
            .arg(format!("--data-dir={}", self.dir.join("etcd").display()))
            .arg(format!("--listen-client-urls={clients}"))
            .arg(format!("--advertise-client-urls={clients}"))
            .args(["--listen-peer-urls=http://127.0.0.1:0", "--unsafe-no-fsync", "--log-level=warn"]);
        command
    }

    /// The API server with RBAC and the default admission plugins, ServiceAccount among them.
    ///
    /// `advertise-address` and `endpoint-reconciler-type=none` because a machine without a default route has no other address to publish.
    pub(super) fn api_server(&self) -> Command {
        let mut command = Command::new(&self.bins.kube_apiserver);
        command
            .arg(format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port))
            .arg(format!("--secure-port={}", self.api_port))
            .arg(format!("--cert-dir={}", self.dir.join("pki").display()))
            .arg(format!("--tls-cert-file={}", self.pki("kube-apiserver.crt").display()))
            .arg(format!("--tls-private-key-file={}", self.pki("kube-apiserver.key").display()))
            .arg(format!("--client-ca-file={}", self.pki("ca.crt").display()))
            .arg(format!("--service-account-key-file={}", self.pki("service-account.pub").display()))
            .arg(format!("--service-account-signing-key-file={}", self.pki("service-account.key").display()))
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none"])
            .args(["--service-account-issuer=https://kubernetes.default.svc", "--service-cluster-ip-range=10.0.0.0/24"])
            .args(["--authorization-mode=RBAC", "--allow-privileged=true"])
            .args(["--profiling=false", "--enable-priority-and-fairness=false", "--etcd-compaction-interval=0"]);
        command
    }

    /// The controller-manager. It serves no port: that it works shows in what it creates.
    pub(super) fn controller_manager(&self) -> Command {
        let mut command = Command::new(&self.bins.kube_controller_manager);
        command
            .arg(format!("--kubeconfig={}", self.manager_kubeconfig().display()))
            .arg(format!("--service-account-private-key-file={}", self.pki("service-account.key").display()))
            .arg(format!("--root-ca-file={}", self.pki("ca.crt").display()))
            .arg(format!("--controllers={}", CONTROLLERS.join(",")))
            .args(["--use-service-account-credentials=true", "--leader-elect=false", "--profiling=false"])
            .args(["--secure-port=0", "--kube-api-qps=200", "--kube-api-burst=400"]);
        command
    }
}
