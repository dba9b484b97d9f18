//! A stand-in for the kubelet: runs the containers of pods as processes of this machine, with a kubelet's statuses.
//!
//! It is also the scheduler of its node: pods whose `nodeSelector` names the node are bound to it. Node object, lease heartbeats, pod phases,
//! restart policies, graceful deletion, environment, volumes and service-account tokens are as Kubernetes defines them. An image is a
//! program: the container's `command[0]`, or else its image's name, is looked up in [`RunnerConfig::programs`].
//!
//! What differs from a kubelet:
//! - A container has a mount namespace of its own and shares the rest with the machine: root file system, network, processes. Only its process
//!   group is its own; a process that leaves the group outlives the container.
//! - Ignored: `securityContext` (everything runs as the lab's user, normally root), `resources`, probes (running is ready), lifecycle hooks,
//!   `imagePullPolicy`, ports, DNS settings, affinity, taints, `activeDeadlineSeconds` of a pod, volume ownership and modes, `/dev/termination-log`.
//! - Refused with a waiting reason: init containers, volumes other than emptyDir, secret, configMap, projected, downwardAPI and hostPath, and
//!   mount points that would have to be made outside of `/run`.
//! - Failed containers restart after 1 s, doubling up to 10 s, instead of 10 s up to 5 min.
//! - Secrets, ConfigMaps and tokens in volumes are written once. (The API server makes tokens of the usual 3607 s valid for a year.)
//! - No logs, exec or port-forward through the API server: [`Runner::logs`] reads the files.
//! - It acts with the administrator's rights, not as `system:node:<name>`.

mod container;
mod environment;
mod fields;
mod launch;
mod node;
mod objects;
mod pod;
mod report;
mod status;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc as std_mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::sync::{mpsc, oneshot};

use crate::cluster::{self, Cluster};
use launch::Mount;
use pod::Entry;
use status::Ending;

/// The address of every pod and of the node.
const POD_IP: &str = "127.0.0.1";

/// How a runner is set up.
#[derive(Clone, Debug)]
pub struct RunnerConfig {
    /// Name of the node it plays.
    pub node_name: String,
    /// Directory for logs and volumes.
    pub dir: PathBuf,
    /// Programs by `command[0]` (whole or its last component), image, or the image's name without registry and tag.
    pub programs: BTreeMap<String, PathBuf>,
    /// Names that containers resolve without DNS: address by host name.
    pub host_aliases: BTreeMap<String, String>,
    /// Variables that every container gets.
    pub environment: BTreeMap<String, String>,
    /// The longest wait before a failed container is started again.
    pub longest_backoff: Duration,
}

/// Longest wait before a failed container is started again, unless a lab needs another.
pub const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// A running node. Dropping it kills its pods' processes and tells nobody, like a node that loses power.
pub struct Runner {
    dir: PathBuf,
    entries: Entries,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The pods on the node, oldest first.
type Entries = Arc<Mutex<Vec<Arc<Entry>>>>;

/// What the runner's tasks share.
struct Context {
    client: Client,
    api_port: u16,
    dir: PathBuf,
    config: RunnerConfig,
    entries: Entries,
}

impl Runner {
    /// Registers the node and begins to run its pods, on threads of its own. Blocks until the node is there; callable from async tests.
    pub fn start(cluster: &Cluster, config: RunnerConfig) -> Result<Self> {
        std::fs::create_dir_all(&config.dir).with_context(|| format!("make {}", config.dir.display()))?;
        let dir = config.dir.clone();
        let entries = Entries::default();
        let (stop, stopped) = oneshot::channel();
        let (registered, registration) = std_mpsc::channel();
        let (kubeconfig, api_port) = (cluster.kubeconfig(), cluster.api_port());
        let shared = entries.clone();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let thread = std::thread::Builder::new().name("runner".into()).spawn(move || {
            runtime.block_on(async {
                let context = match connect(&kubeconfig, api_port, config, shared).await {
                    Ok(context) => context,
                    Err(error) => return drop(registered.send(Err(error))),
                };
                let _ = registered.send(Ok(()));
                let heartbeats = node::heartbeats(context.client.clone(), context.config.node_name.clone());
                tokio::select! {
                    () = watch_pods(context.clone()) => {}
                    () = heartbeats => {}
                    _ = stopped => {}
                }
            });
        })?;
        registration.recv().context("the runner's thread ended before its node was registered")??;
        Ok(Self { dir, entries, stop: Some(stop), thread: Some(thread) })
    }

    /// All output of a container so far, of all its starts in order, for the newest pod in `namespace` whose name begins with `pod_prefix`.
    /// Works after the pod is gone, too.
    pub fn logs(&self, namespace: &str, pod_prefix: &str, container: &str) -> Result<String> {
        let prefix = format!("{namespace}_{pod_prefix}");
        let mut pods = Vec::new();
        for entry in std::fs::read_dir(self.dir.join("pods")).context("no pod has run yet")? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                pods.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        let (_, pod) =
            pods.into_iter().max().with_context(|| format!("no pod {namespace}/{pod_prefix}* has run here"))?;
        let mut text = String::new();
        for start in 0.. {
            match std::fs::read(pod.join(container).join(format!("{start}.log"))) {
                Ok(bytes) => text.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) if start > 0 => break,
                Err(error) => return Err(error).with_context(|| format!("no log of {container} in {}", pod.display())),
            }
        }
        Ok(text)
    }

    /// The process ids of a pod's running containers by container; each process leads a group of that id.
    pub fn pids(&self, namespace: &str, pod_prefix: &str) -> Result<BTreeMap<String, u32>> {
        Ok(self.find(namespace, pod_prefix)?.pids())
    }

    /// Sends a signal to a container's process group.
    pub fn kill_container(&self, namespace: &str, pod_prefix: &str, container: &str, signal: Signal) -> Result<()> {
        let pids = self.pids(namespace, pod_prefix)?;
        let pid = pids.get(container).with_context(|| {
            format!("container {container} of pod {namespace}/{pod_prefix}* does not run (running: {:?})", pids.keys())
        })?;
        killpg(Pid::from_raw((*pid).try_into()?), signal).with_context(|| format!("send {signal} to {container}"))
    }

    /// Kills all containers of a pod at once. The pod is `Failed` and none of them starts again, like a node that lost it.
    pub fn kill_pod(&self, namespace: &str, pod_prefix: &str) -> Result<()> {
        let entry = self.find(namespace, pod_prefix)?;
        entry.end(Ending::Lost);
        for pid in entry.pids().into_values() {
            let _ = killpg(Pid::from_raw(pid.try_into()?), Signal::SIGKILL);
        }
        Ok(())
    }

    /// Evicts a pod as a node under pressure does: SIGTERM, the grace period, SIGKILL, then `Failed` with reason `Evicted`.
    pub fn evict_pod(&self, namespace: &str, pod_prefix: &str) -> Result<()> {
        self.find(namespace, pod_prefix)?.end(Ending::Evicted);
        Ok(())
    }

    fn find(&self, namespace: &str, pod_prefix: &str) -> Result<Arc<Entry>> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let found =
            entries.iter().rev().find(|entry| entry.namespace == namespace && entry.name.starts_with(pod_prefix));
        let Some(found) = found else {
            let known: Vec<String> =
                entries.iter().map(|entry| format!("{}/{}", entry.namespace, entry.name)).collect();
            bail!("no pod {namespace}/{pod_prefix}* is on this node (there are: {known:?})");
        };
        Ok(found.clone())
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Context {
    /// The program that stands for a container's image.
    fn program(&self, container: &Container) -> Result<PathBuf> {
        let image = container.image.as_deref().unwrap_or_default();
        let name = container.command.as_ref().and_then(|command| command.first()).map_or(image, String::as_str);
        let last = name.rsplit('/').next().unwrap_or(name);
        let untagged = last.split(['@', ':']).next().unwrap_or(last);
        let found = [name, last, untagged].iter().find_map(|key| self.config.programs.get(*key));
        found.cloned().with_context(|| {
            format!(
                "the runner has no program for {name:?}; it has: {:?}",
                self.config.programs.keys().collect::<Vec<_>>()
            )
        })
    }

    fn log_dir(&self, namespace: &str, pod: &str, container: &str) -> PathBuf {
        self.dir.join("pods").join(format!("{namespace}_{pod}")).join(container)
    }

    /// An `/etc/hosts` with the runner's and the pod's aliases; none if there are none.
    fn hosts_file(&self, spec: &PodSpec, dir: &Path) -> Result<Option<Mount>> {
        let mut lines: Vec<String> =
            self.config.host_aliases.iter().map(|(name, address)| format!("{address} {name}")).collect();
        for alias in spec.host_aliases.iter().flatten() {
            lines.push(format!(
                "{} {}",
                alias.ip,
                alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join(" ")
            ));
        }
        if lines.is_empty() {
            return Ok(None);
        }
        let target = PathBuf::from("/etc/hosts");
        let machine = std::fs::read_to_string(&target).context("read /etc/hosts")?;
        std::fs::create_dir_all(dir)?;
        let source = dir.join("hosts");
        std::fs::write(&source, format!("{machine}\n{}\n", lines.join("\n")))?;
        Ok(Some(Mount { source, target, read_only: false }))
    }
}

async fn connect(kubeconfig: &Path, api_port: u16, config: RunnerConfig, entries: Entries) -> Result<Arc<Context>> {
    let client = cluster::client(kubeconfig).await?;
    node::register(&client, &config.node_name).await?;
    Ok(Arc::new(Context { client, api_port, dir: config.dir.clone(), config, entries }))
}

/// A pod's task as the watch sees it. Dropping the sender tells it that its object is gone.
struct Running {
    updates: mpsc::UnboundedSender<Pod>,
    entry: Arc<Entry>,
}

/// Follows all pods. A watch that breaks is taken up again; what runs meanwhile runs on.
async fn watch_pods(context: Arc<Context>) {
    let pods: Api<Pod> = Api::all(context.client.clone());
    let mut events = std::pin::pin!(watcher(pods, watcher::Config::default()).default_backoff());
    let mut running: BTreeMap<String, Running> = BTreeMap::new();
    let mut listed = BTreeSet::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(pod)) => see(&context, &mut running, pod),
            Ok(Event::Delete(pod)) => forget(&context, &mut running, &pod.uid().unwrap_or_default()),
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(pod)) => {
                listed.insert(pod.uid().unwrap_or_default());
                see(&context, &mut running, pod);
            }
            Ok(Event::InitDone) => {
                let gone: Vec<String> = running.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
                gone.iter().for_each(|uid| forget(&context, &mut running, uid));
            }
            Err(error) => tracing::warn!(%error, "the runner's watch of pods broke, taking it up again"),
        }
    }
}

/// Binds the pod, starts its task, or tells its task of the change.
fn see(context: &Arc<Context>, running: &mut BTreeMap<String, Running>, pod: Pod) {
    let node_name = &context.config.node_name;
    if node::should_bind(&pod, node_name) {
        tokio::spawn(node::bind(context.client.clone(), pod, node_name.clone()));
        return;
    }
    if pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()) != Some(node_name) {
        return;
    }
    let uid = pod.uid().unwrap_or_default();
    if let Some(task) = running.get(&uid) {
        let _ = task.updates.send(pod);
        return;
    }
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") {
        // Ran under an earlier runner: nothing is left of it but the object.
        if pod.metadata.deletion_timestamp.is_some() {
            let api: Api<Pod> = Api::namespaced(context.client.clone(), &pod.namespace().unwrap_or_default());
            tokio::spawn(async move { report::delete(&api, &pod.name_any(), &uid).await });
        }
        return;
    }
    let entry = Arc::new(Entry::new(&pod));
    context.entries.lock().unwrap_or_else(PoisonError::into_inner).push(entry.clone());
    let (updates, receiver) = mpsc::unbounded_channel();
    tokio::spawn(pod::run(context.clone(), entry.clone(), pod, receiver));
    running.insert(uid, Running { updates, entry });
}

/// The object is gone: its task ends and takes the processes with it.
fn forget(context: &Arc<Context>, running: &mut BTreeMap<String, Running>, uid: &str) {
    if let Some(task) = running.remove(uid) {
        let mut entries = context.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|entry| !Arc::ptr_eq(entry, &task.entry));
    }
}
