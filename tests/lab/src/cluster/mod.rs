//! A Kubernetes control plane of real parts: etcd, kube-apiserver and kube-controller-manager as child processes.
//!
//! RBAC and ServiceAccount admission are on; every certificate comes from the cluster's own authority. There is no scheduler and no
//! kubelet: [`crate::runner`] stands in for both. Clusters run beside each other: all state lies in a directory, all ports are free ones.

mod apply;
mod certificates;
mod control_plane;

use std::future::Future;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use kube::api::{Api, DynamicObject};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use nix::sys::signal::Signal;

pub use apply::FIELD_MANAGER;
use certificates::Authority;
use control_plane::{ADMIN, Layout};

use crate::process::{Process, free_port};

/// How long any part may take to get ready on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(120);

/// The programs a cluster is made of.
#[derive(Clone, Debug)]
pub struct ClusterBinaries {
    pub etcd: PathBuf,
    pub kube_apiserver: PathBuf,
    pub kube_controller_manager: PathBuf,
    pub kubectl: PathBuf,
}

/// A running control plane. Dropping it ends its processes; the directory is the caller's.
pub struct Cluster {
    // In the order they are to be stopped.
    _controller_manager: Process,
    api_server: Mutex<Process>,
    etcd: Mutex<Process>,
    authority: Authority,
    layout: Layout,
}

impl Cluster {
    /// Starts a cluster whose state lies in `dir`, and waits until pods can be created in it. Blocks for some seconds; callable from async tests.
    pub fn start(dir: &Path, bins: &ClusterBinaries) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("make the cluster's directory {}", dir.display()))?;
        let layout = Layout { bins: bins.clone(), dir: dir.into(), etcd_port: free_port()?, api_port: free_port()? };
        let authority = layout.write_credentials()?;
        // The API server waits for etcd by itself, so both start at once.
        let etcd = Process::spawn("etcd", layout.etcd(), &dir.join("etcd.log"))?;
        let api_server = start_api_server(&layout)?;
        let log = dir.join("kube-controller-manager.log");
        let mut manager = Process::spawn("kube-controller-manager", layout.controller_manager(), &log)?;
        let admin = layout.admin_kubeconfig();
        manager.wait_until("the default service account", START_LIMIT, || answers(&admin, pods_can_be_created))?;
        Ok(Self {
            _controller_manager: manager,
            api_server: Mutex::new(api_server),
            etcd: Mutex::new(etcd),
            authority,
            layout,
        })
    }

    /// Path of the administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.layout.admin_kubeconfig()
    }

    /// Port of the API server on 127.0.0.1.
    pub fn api_port(&self) -> u16 {
        self.layout.api_port
    }

    /// Writes a kubeconfig with which the API server treats its bearer as `user` in `groups` and no one else: for tests of permissions.
    ///
    /// It is the administrator impersonating them (`as`, `as-groups`), since a certificate made by rcgen holds one group only.
    /// A service account is `system:serviceaccount:<namespace>:<name>` in `system:serviceaccounts` and `system:authenticated`.
    pub fn kubeconfig_for(&self, user: &str, groups: &[&str]) -> Result<PathBuf> {
        let path = self.layout.dir.join(format!("{}.kubeconfig", user.replace([':', '/'], "_")));
        self.authority.kubeconfig(&path, &self.layout.server(), ADMIN, Some((user, groups)))?;
        Ok(path)
    }

    /// A client with the administrator's rights, bound to the calling runtime.
    pub async fn client(&self) -> Result<Client> {
        client(&self.kubeconfig()).await
    }

    /// `kubectl` with the administrator's kubeconfig; it writes nothing into the caller's home.
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new(&self.layout.bins.kubectl);
        command.env("KUBECONFIG", self.kubeconfig()).env("KUBECACHEDIR", self.layout.dir.join("kubectl-cache"));
        command
    }

    /// Server-side apply of every document in `yaml`, cluster-scoped kinds included.
    pub async fn apply_yaml(&self, yaml: &str) -> Result<Vec<DynamicObject>> {
        apply::apply_yaml(&self.client().await?, yaml).await
    }

    /// Installs Drover's resource definitions and waits until they are served.
    pub async fn install_crds(&self) -> Result<()> {
        apply::install_crds(&self.client().await?, &drover::api::crds()).await
    }

    /// Stops the API server in its tracks (SIGSTOP): connections stay open and nothing answers.
    pub fn pause_api_server(&self) -> Result<()> {
        let server = self.api_server();
        server.signal(Signal::SIGSTOP)?;
        // Its threads stop one after the other.
        let stat = PathBuf::from(format!("/proc/{}/stat", server.pid()));
        while !std::fs::read_to_string(&stat).context("look at the API server")?.contains(") T ") {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Lets a paused API server go on.
    pub fn resume_api_server(&self) -> Result<()> {
        self.api_server().signal(Signal::SIGCONT)
    }

    /// Kills the API server and starts it again on the same port and data. Blocks until it is ready.
    pub fn restart_api_server(&self) -> Result<()> {
        let mut process = self.api_server();
        process.kill();
        *process = start_api_server(&self.layout)?;
        Ok(())
    }

    /// Kills etcd and starts it again on the same port and data. Blocks until the API server reads from it again.
    pub fn restart_etcd(&self) -> Result<()> {
        let mut etcd = self.etcd.lock().unwrap_or_else(PoisonError::into_inner);
        etcd.kill();
        *etcd = Process::spawn("etcd", self.layout.etcd(), &self.layout.dir.join("etcd.log"))?;
        let admin = self.layout.admin_kubeconfig();
        etcd.wait_until("answers through the API server", START_LIMIT, || answers(&admin, pods_can_be_created))
    }

    fn api_server(&self) -> MutexGuard<'_, Process> {
        self.api_server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client from a kubeconfig file, bound to the calling runtime.
pub async fn client(kubeconfig: &Path) -> Result<Client> {
    let file = Kubeconfig::read_from(kubeconfig).with_context(|| format!("read {}", kubeconfig.display()))?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// Starts the API server and waits until it says that it is ready.
fn start_api_server(layout: &Layout) -> Result<Process> {
    let log = layout.dir.join("kube-apiserver.log");
    let mut process = Process::spawn("kube-apiserver", layout.api_server(), &log)?;
    let admin = layout.admin_kubeconfig();
    process.wait_until("/readyz", START_LIMIT, || {
        TcpStream::connect(("127.0.0.1", layout.api_port)).is_ok() && answers(&admin, is_ready)
    })?;
    Ok(process)
}

async fn is_ready(client: Client) -> bool {
    let request = axum::http::Request::get("/readyz").body(Vec::new()).expect("a constant request is well-formed");
    client.request_text(request).await.is_ok()
}

/// A pod needs its namespace's default service account, and the CA certificate beside it.
async fn pods_can_be_created(client: Client) -> bool {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    accounts.get("default").await.is_ok() && maps.get("kube-root-ca.crt").await.is_ok()
}

/// Whether `check` says yes within 5 s. On a thread and runtime of its own, so that blocking callers may be inside another runtime.
fn answers<F: Future<Output = bool>>(kubeconfig: &Path, check: impl FnOnce(Client) -> F + Send) -> bool {
    let ask = || -> Result<bool> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let client = client(kubeconfig).await?;
            Ok(tokio::time::timeout(Duration::from_secs(5), check(client)).await?)
        })
    };
    std::thread::scope(|scope| scope.spawn(ask).join()).is_ok_and(|answer| answer.unwrap_or(false))
}
