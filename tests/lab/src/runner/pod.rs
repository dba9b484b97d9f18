//! One pod on this node: a task that starts its containers, watches them, and ends them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Api, ResourceExt};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::{mpsc, watch};

use super::Context;
use super::container::Container;
use super::environment;
use super::launch::{self, Launch, Mount};
use super::objects::Objects;
use super::report::{Report, write_reports};
use super::status::{self, Ending};
use super::volumes::{self, Volumes};
use crate::process::Process;

/// How often processes are looked at.
const TICK: Duration = Duration::from_millis(100);

/// What the rest of the runner knows of a pod.
pub(super) struct Entry {
    pub(super) namespace: String,
    pub(super) name: String,
    shared: Mutex<Shared>,
}

#[derive(Default)]
struct Shared {
    pids: BTreeMap<String, u32>,
    ending: Option<Ending>,
}

impl Entry {
    pub(super) fn new(pod: &Pod) -> Self {
        Self { namespace: pod.namespace().unwrap_or_default(), name: pod.name_any(), shared: Mutex::default() }
    }

    fn shared(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The running containers' processes by container; each leads a process group.
    pub(super) fn pids(&self) -> BTreeMap<String, u32> {
        self.shared().pids.clone()
    }

    /// From now on no container of the pod is started again, and those that run are ended.
    pub(super) fn end(&self, ending: Ending) {
        self.shared().ending.get_or_insert(ending);
    }
}

/// The task's state.
pub(super) struct Worker {
    context: Arc<Context>,
    entry: Arc<Entry>,
    pod: Pod,
    containers: Vec<Container>,
    objects: Objects,
    volumes: Option<Volumes>,
    start_time: Time,
    kill_at: Option<Instant>,
    reported: Report,
    reports: watch::Sender<Report>,
}

/// Runs the pod until its object is gone: `updates` yields newer versions of it and ends with the object.
pub(super) async fn run(context: Arc<Context>, entry: Arc<Entry>, pod: Pod, mut updates: mpsc::UnboundedReceiver<Pod>) {
    let mut worker = Worker::new(context, entry, pod);
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            update = updates.recv() => match update {
                Some(pod) => worker.pod = pod,
                None => break,
            },
            _ = tick.tick() => {}
        }
        worker.step().await;
    }
    let own_files = worker.own_files();
    drop(worker);
    let _ = std::fs::remove_dir_all(own_files);
}

impl Worker {
    fn new(context: Arc<Context>, entry: Arc<Entry>, pod: Pod) -> Self {
        let (reports, receiver) = watch::channel(Report::default());
        let uid = pod.uid().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(context.client.clone(), &entry.namespace);
        tokio::spawn(write_reports(api, entry.name.clone(), uid.clone(), receiver));
        let before = status::by_name(pod.status.as_ref());
        let specs = pod.spec.iter().flat_map(|spec| &spec.containers);
        let longest_backoff = context.config.longest_backoff;
        let container =
            |spec: &ContainerSpec| Container::new(spec.clone(), &uid, before.get(&spec.name), longest_backoff);
        let containers = specs.map(container).collect();
        let start_time = pod.status.as_ref().and_then(|status| status.start_time.clone());
        Self {
            objects: Objects::new(context.client.clone(), &entry.namespace),
            containers,
            volumes: None,
            start_time: start_time.unwrap_or_else(|| Time(Timestamp::now())),
            kill_at: None,
            reported: Report { status: pod.status.clone().unwrap_or_default(), may_go: false },
            reports,
            context,
            entry,
            pod,
        }
    }

    async fn step(&mut self) {
        match self.ending() {
            Some(ending) => self.end(ending),
            None => self.start_due().await,
        }
        let ending = self.ending();
        let policy = match ending {
            Some(_) => "Never".to_owned(),
            None => self.spec().restart_policy.unwrap_or_else(|| "Always".into()),
        };
        for container in &mut self.containers {
            container.poll(&policy);
        }
        self.publish_pids();
        self.report(ending);
    }

    /// Why the pod is to end, if it is.
    fn ending(&self) -> Option<Ending> {
        let deleted = self.is_deleted().then_some(Ending::Deleted);
        self.entry.shared().ending.or(deleted)
    }

    fn is_deleted(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }

    /// Asks every process to stop, and kills what is left after the grace period.
    fn end(&mut self, ending: Ending) {
        let grace_seconds = match ending {
            Ending::Deleted => self.pod.metadata.deletion_grace_period_seconds,
            Ending::Evicted => self.spec().termination_grace_period_seconds,
            Ending::Lost => Some(0),
        };
        let now = Instant::now();
        let kill_at = *self.kill_at.get_or_insert_with(|| {
            for container in &mut self.containers {
                container.give_up();
                let pid = container.pid().and_then(|pid| i32::try_from(pid).ok());
                if let Some(pid) = pid.filter(|_| ending != Ending::Lost) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
                }
            }
            now + Duration::from_secs(grace_seconds.unwrap_or(30).try_into().unwrap_or(0))
        });
        if now >= kill_at {
            self.containers.iter_mut().for_each(Container::kill);
        }
    }

    async fn start_due(&mut self) {
        for index in 0..self.containers.len() {
            if !self.containers[index].is_due() {
                continue;
            }
            let set_up = self.scratch(index);
            match self.launch(index).await {
                Ok(process) => self.containers[index].started(process, set_up),
                Err((reason, error)) => self.containers[index].cannot_start(reason, format!("{error:#}")),
            }
        }
    }

    /// Starts a container, or says with the kubelet's word why it cannot be started.
    async fn launch(&mut self, index: usize) -> Result<Process, (&'static str, anyhow::Error)> {
        let config = |error: anyhow::Error| ("CreateContainerConfigError", error);
        let spec = self.spec();
        let container = self.containers[index].spec.clone();
        if spec.init_containers.as_ref().is_some_and(|init| !init.is_empty()) {
            return Err(config(anyhow::anyhow!("the lab's runner does not support init containers")));
        }
        let program = self.context.program(&container).map_err(|error| ("ErrImagePull", error))?;
        let files = self.own_files();
        if self.volumes.is_none() {
            let prepared = volumes::prepare(&self.pod, &files.join("volumes"), &mut self.objects).await;
            self.volumes = Some(prepared.map_err(|error| ("ContainerCreating", error))?);
        }
        let environment = environment::resolve(&self.pod, &container, self.context.api_port, &mut self.objects);
        let mut environment = environment.await.map_err(config)?;
        environment.extend(self.context.config.environment.clone());
        let mounts = self.mounts(&spec, &container, &files).map_err(config)?;
        let start = self.containers[index].next_start();
        let log = self.context.log_dir(&self.entry.namespace, &self.entry.name, &container.name);
        let launch = Launch {
            container: &container,
            program: &program,
            environment,
            mounts,
            scratch: &self.scratch(index),
            log: &log.join(format!("{start}.log")),
        };
        launch.start().map_err(|error| ("RunContainerError", error))
    }

    fn mounts(&self, spec: &PodSpec, container: &ContainerSpec, files: &Path) -> Result<Vec<Mount>> {
        let mut mounts = launch::mounts(spec, container, self.volumes.as_ref().unwrap_or(&Volumes::new()))?;
        mounts.extend(self.context.hosts_file(spec, files)?);
        Ok(mounts)
    }

    fn publish_pids(&self) {
        let running =
            self.containers.iter().filter(|c| c.is_running()).filter_map(|c| Some((c.spec.name.clone(), c.pid()?)));
        self.entry.shared().pids = running.collect();
    }

    fn report(&mut self, ending: Option<Ending>) {
        let statuses = self.containers.iter().map(Container::status).collect();
        let status: PodStatus =
            status::pod_status(&self.pod, &self.reported.status, &self.start_time, statuses, ending);
        let may_go = self.is_deleted() && self.containers.iter().all(Container::has_ended);
        let report = Report { status, may_go };
        if report != self.reported {
            self.reported = report.clone();
            let _ = self.reports.send(report);
        }
    }

    fn spec(&self) -> PodSpec {
        self.pod.spec.clone().unwrap_or_default()
    }

    /// Where a container's mounts are prepared; gone once its program runs.
    fn scratch(&self, index: usize) -> PathBuf {
        self.own_files().join(format!("start-{}", self.containers[index].spec.name))
    }

    /// Where the pod's volumes and scratch files lie.
    fn own_files(&self) -> PathBuf {
        self.context.dir.join("files").join(self.pod.uid().unwrap_or_default())
    }
}
