//! What may break, and how it is broken.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use drover::api::VmMigration;
use k8s_openapi::api::batch::v1::Job;
use kube::api::DeleteParams;
use kube::{Api, ResourceExt};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::sleep;

use super::plan::Moment;
use super::{STORAGE_BYTES_PER_S, insist};
use crate::hypervisor::Hypervisor;
use crate::lab::{Lab, SYSTEM};
use crate::libvirt::Domain;

/// What may break. `Hangs` is SIGSTOP for some seconds, `Killed` is SIGKILL, and what is killed is started again as it would be in life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    ControllerKilled,
    ControllerHangs,
    DriverKilled,
    DriverHangs,
    RelayKilled,
    RelayHangs,
    /// Storage becomes slow in the shutdown, and the relay dies with what it still holds when the source is off.
    RelayKilledWithBacklog,
    PodKilled,
    /// By hand, with foreground propagation: as Argo CD prunes.
    JobDeleted,
    LibvirtdKilled,
    StorageKilled,
    StorageHangs,
    StorageSlow,
    ApiServerKilled,
    ApiServerHangs,
    EtcdKilled,
    PrismRefuses(u16),
    PrismSlow,
    PrismHangs,
    PrismLosesAnswers,
    PrismFailsTask,
    PrismHoldsTasks,
    SourceKilled,
    SourceStartedByHand,
    SourceSnapshot,
    SourceResize,
    TargetStartedByHand,
    TargetStoppedByHand,
    HeldInSync,
}

impl Fault {
    /// Each of them is as likely as the others.
    pub const ALL: &[Self] = &[
        Self::ControllerKilled,
        Self::ControllerHangs,
        Self::DriverKilled,
        Self::DriverHangs,
        Self::RelayKilled,
        Self::RelayHangs,
        Self::RelayKilledWithBacklog,
        Self::PodKilled,
        Self::JobDeleted,
        Self::LibvirtdKilled,
        Self::StorageKilled,
        Self::StorageHangs,
        Self::StorageSlow,
        Self::ApiServerKilled,
        Self::ApiServerHangs,
        Self::EtcdKilled,
        Self::PrismRefuses(401),
        Self::PrismRefuses(403),
        Self::PrismRefuses(412),
        Self::PrismRefuses(429),
        Self::PrismRefuses(500),
        Self::PrismRefuses(503),
        Self::PrismSlow,
        Self::PrismHangs,
        Self::PrismLosesAnswers,
        Self::PrismFailsTask,
        Self::PrismHoldsTasks,
        Self::SourceKilled,
        Self::SourceStartedByHand,
        Self::SourceSnapshot,
        Self::SourceResize,
        Self::TargetStartedByHand,
        Self::TargetStoppedByHand,
        Self::HeldInSync,
    ];

    /// Whether it makes sense at this moment.
    pub fn fits(self, moment: Moment) -> bool {
        match self {
            // Before anybody approves: later a source that goes off by itself cannot be told from one that was shut down.
            Self::SourceKilled | Self::TargetStartedByHand => matches!(moment, Moment::Copying | Moment::InSync),
            // While a mirror is there, libvirt has to refuse them.
            Self::SourceSnapshot | Self::SourceResize => matches!(moment, Moment::Copying | Moment::InSync),
            Self::SourceStartedByHand => {
                matches!(moment, Moment::SourceOff | Moment::BootOrdered | Moment::TargetOn)
            }
            Self::TargetStoppedByHand => moment == Moment::TargetOn,
            Self::RelayKilledWithBacklog => moment == Moment::ShuttingDown,
            Self::HeldInSync => moment == Moment::InSync,
            // These wait for a change that Drover orders.
            Self::PrismLosesAnswers | Self::PrismFailsTask | Self::PrismHoldsTasks => moment >= Moment::SourceOff,
            _ => true,
        }
    }

    /// Whether Prism answers wrongly or not at all.
    pub fn is_of_prism(self) -> bool {
        let refuses = matches!(self, Self::PrismRefuses(_) | Self::PrismSlow | Self::PrismHangs);
        refuses || matches!(self, Self::PrismLosesAnswers | Self::PrismFailsTask | Self::PrismHoldsTasks)
    }
}

/// How long what hangs does so: longer than a guest's write may be held up.
const HANG: Duration = Duration::from_secs(5);

/// What went wrong at a fault, other than that there was nothing to break.
#[derive(Debug)]
pub struct Wrong(String);

impl std::fmt::Display for Wrong {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Wrong {}

fn wrong(error: anyhow::Error) -> anyhow::Error {
    Wrong(format!("{error:#}")).into()
}

/// The means to break things. What all migrations share is broken by one of them at a time.
pub struct Faults {
    lab: Arc<Lab>,
    storage: Mutex<()>,
    libvirtd: Mutex<()>,
    cluster: Mutex<()>,
    prism: Mutex<()>,
}

impl Faults {
    /// The means for this lab.
    pub fn new(lab: Arc<Lab>) -> Self {
        Self {
            lab,
            storage: Mutex::default(),
            libvirtd: Mutex::default(),
            cluster: Mutex::default(),
            prism: Mutex::default(),
        }
    }

    /// Breaks it, and mends it as far as it does not mend itself. An error: it could not be broken now, but for [`Wrong`].
    pub async fn inject(&self, fault: Fault, source: &Domain) -> Result<()> {
        let lab = &self.lab;
        let name = &source.name;
        match fault {
            Fault::ControllerKilled => lab.kill_controller(),
            Fault::ControllerHangs => self.hang("drover-operator", "operator").await,
            Fault::DriverKilled => lab.kill_host_container(name, "driver").await,
            Fault::DriverHangs => self.hang(&lab.copy_of(name).await?.name_any(), "driver").await,
            Fault::RelayKilled => lab.kill_host_container(name, "relay").await,
            Fault::RelayHangs => self.hang_relay(name).await,
            Fault::RelayKilledWithBacklog => self.lose_backlog(source).await,
            Fault::PodKilled => lab.kill_host_pod(name).await,
            Fault::JobDeleted => {
                let job = lab.copy_of(name).await?.name_any();
                let jobs = Api::<Job>::namespaced(lab.client.clone(), SYSTEM);
                jobs.delete(&job, &DeleteParams::foreground()).await.map(drop).context("delete the Job")
            }
            Fault::LibvirtdKilled => {
                let _one = self.libvirtd.lock().await;
                lab.libvirt.kill_daemon();
                sleep(Duration::from_secs(2)).await;
                let lab = lab.clone();
                tokio::task::spawn_blocking(move || lab.libvirt.restart_daemon()).await?
            }
            Fault::StorageKilled => {
                let _one = self.storage.lock().await;
                let lab = lab.clone();
                tokio::task::spawn_blocking(move || lab.nfs.restart()).await?
            }
            Fault::StorageHangs => {
                let _one = self.storage.lock().await;
                lab.nfs.pause()?;
                sleep(HANG).await;
                lab.nfs.resume()
            }
            Fault::StorageSlow => {
                let _one = self.storage.lock().await;
                self.storage_rate(STORAGE_BYTES_PER_S / 16);
                sleep(HANG).await;
                self.storage_rate(STORAGE_BYTES_PER_S);
                Ok(())
            }
            Fault::ApiServerKilled => {
                let _one = self.cluster.lock().await;
                let lab = lab.clone();
                tokio::task::spawn_blocking(move || lab.cluster.restart_api_server()).await?
            }
            Fault::ApiServerHangs => {
                let _one = self.cluster.lock().await;
                lab.cluster.pause_api_server()?;
                sleep(HANG).await;
                lab.cluster.resume_api_server()
            }
            Fault::EtcdKilled => {
                let _one = self.cluster.lock().await;
                let lab = lab.clone();
                tokio::task::spawn_blocking(move || lab.cluster.restart_etcd()).await?
            }
            Fault::PrismRefuses(_) | Fault::PrismSlow | Fault::PrismHangs => self.prism(fault).await,
            Fault::PrismLosesAnswers | Fault::PrismFailsTask | Fault::PrismHoldsTasks => self.prism(fault).await,
            Fault::SourceKilled => {
                let pid_file = lab.libvirt.pid_files().join(format!("{name}.pid"));
                let pid = std::fs::read_to_string(pid_file).context("the source does not run")?;
                kill(Pid::from_raw(pid.trim().parse()?), Signal::SIGKILL).context("kill the source's QEMU")
            }
            // Refused by the hook; if the source was given back meanwhile it runs already.
            Fault::SourceStartedByHand => {
                let _ = lab.libvirt.virsh(&["start", name]);
                Ok(())
            }
            Fault::SourceSnapshot => self
                .refused_for_the_mirror(name, &["snapshot-create", name, "--disk-only", "--no-metadata", "--atomic"]),
            Fault::SourceResize => self.refused_for_the_mirror(name, &["blockresize", name, "vda", "64M"]),
            Fault::TargetStartedByHand => self.start_target(name).await,
            Fault::TargetStoppedByHand => self.stop_target(name).await,
            Fault::HeldInSync => self.hold(source).await,
        }
    }

    async fn hang(&self, pod: &str, container: &str) -> Result<()> {
        self.lab.runner.kill_container(SYSTEM, pod, container, Signal::SIGSTOP)?;
        sleep(HANG).await;
        // It may have been killed meanwhile.
        let _ = self.lab.runner.kill_container(SYSTEM, pod, container, Signal::SIGCONT);
        Ok(())
    }

    /// Stops the worker and not its supervisor: two processes that both stand still are a computer that stands still.
    async fn hang_relay(&self, name: &str) -> Result<()> {
        let pod = self.lab.copy_of(name).await?.name_any();
        let pids = self.lab.runner.pids(SYSTEM, &pod)?;
        let supervisor = pids.get("relay").context("the relay does not run")?;
        let children = std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children"))?;
        let worker = children.split_whitespace().next().context("the relay has no worker")?;
        let worker = Pid::from_raw(worker.parse()?);
        kill(worker, Signal::SIGSTOP)?;
        sleep(HANG).await;
        let _ = kill(worker, Signal::SIGCONT);
        Ok(())
    }

    async fn lose_backlog(&self, source: &Domain) -> Result<()> {
        let _one = self.storage.lock().await;
        self.storage_rate(STORAGE_BYTES_PER_S / 128);
        let pid_file = self.lab.libvirt.pid_files().join(format!("{}.pid", source.name));
        for _ in 0..100 {
            if !pid_file.exists() {
                break;
            }
            sleep(Duration::from_millis(100)).await;
        }
        let killed = self.lab.kill_host_container(&source.name, "relay").await;
        self.storage_rate(STORAGE_BYTES_PER_S);
        killed
    }

    fn storage_rate(&self, bytes_per_s: u64) {
        if let Some(throttle) = &self.lab.throttle {
            throttle.set_rate(bytes_per_s);
        }
    }

    async fn prism(&self, fault: Fault) -> Result<()> {
        let _one = self.prism.lock().await;
        let switches = self.lab.prism.switches();
        match fault {
            Fault::PrismRefuses(status) => switches.refuse_next_calls_with(12, status),
            Fault::PrismSlow => switches.set_answer_delay(Duration::from_secs(2)),
            Fault::PrismHangs => switches.set_answer_delay(Duration::from_secs(20)),
            Fault::PrismLosesAnswers => switches.lose_next_answers(1),
            Fault::PrismFailsTask => switches.fail_next_tasks(1),
            _ => switches.hold_tasks(true),
        }
        let begun = Instant::now();
        while begun.elapsed() < HANG && switches.is_wrong() {
            sleep(Duration::from_millis(100)).await;
        }
        switches.refuse_next_calls(0);
        switches.set_answer_delay(Duration::ZERO);
        switches.lose_next_answers(0);
        switches.fail_next_tasks(0);
        switches.hold_tasks(false);
        Ok(())
    }

    /// Somebody powers the target on, and off again when Drover says that it must not run.
    async fn start_target(&self, name: &str) -> Result<()> {
        let uuid = self.lab.prism.vm_by_name(name).context("there is no target")?.uuid;
        self.lab.prism.power_on_by_hand(&uuid)?;
        let noticed = self.lab.wait_reason(name, "TargetRunning", Duration::from_secs(120)).await;
        self.lab.hypervisor.power_off(&uuid)?;
        noticed.map(drop).map_err(wrong)
    }

    /// Somebody powers the target off, and on again when Drover has told it.
    async fn stop_target(&self, name: &str) -> Result<()> {
        let uuid = self.lab.prism.vm_by_name(name).context("there is no target")?.uuid;
        self.lab.hypervisor.power_off(&uuid)?;
        let told = |migration: &VmMigration| {
            let conditions = migration.status.iter().flat_map(|status| &status.conditions);
            conditions.into_iter().any(|condition| condition.reason == "TargetStopped")
        };
        let told = self.lab.wait(name, "told that its target is off", Duration::from_secs(120), told).await;
        self.lab.prism.power_on_by_hand(&uuid)?;
        told.map(drop).map_err(wrong)
    }

    fn refused_for_the_mirror(&self, name: &str, command: &[&str]) -> Result<()> {
        let libvirt = &self.lab.libvirt;
        ensure!(libvirt.virsh(&["dumpxml", name])?.contains("<mirror"), "there is no mirror");
        match libvirt.virsh(command) {
            Ok(_) => bail!(Wrong(format!("libvirt did `{}` although a mirror was there", command.join(" ")))),
            Err(error) => ensure!(format!("{error:#}").contains("block"), "not asked: {error:#}"),
        }
        Ok(())
    }

    /// Held with the approval given and the storage slow: nothing is cut over.
    async fn hold(&self, source: &Domain) -> Result<()> {
        let _one = self.storage.lock().await;
        self.storage_rate(STORAGE_BYTES_PER_S / 16);
        let held = |held: Option<bool>| self.lab.patch(&source.name, json!({"hold": held, "approved": held}));
        insist(|| held(Some(true))).await?;
        sleep(HANG).await;
        self.storage_rate(STORAGE_BYTES_PER_S);
        insist(|| held(None)).await
    }
}
