//! Doing: carries out effects in their order. What fails is told to the next turn, which sees whether it happened.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Driver, chain};
use crate::api::block_copy::DiskCopy;
use crate::edge::host_processes;
use crate::flow::copy::{ComparisonSeen, Effect};
use crate::host::relay::TargetSpec;
use crate::host::verify;
use crate::render::mirror::destination_xml;

/// Most time that the relay may take for an order: opening a target reaches over the network.
const RELAY_DEADLINE: Duration = Duration::from_secs(20);
/// Pause before a comparison that failed is tried again.
const COMPARE_PAUSE: Duration = Duration::from_secs(5);

/// Carries out `effects` for the domain `uuid`. Returns what went wrong first; what cannot be undone is then left out.
pub(super) async fn act(driver: &mut Driver, uuid: &str, effects: Vec<Effect>) -> Option<String> {
    let mut trouble = None;
    for effect in effects {
        let needs_all_before =
            matches!(effect, Effect::Shutdown(_) | Effect::Start | Effect::RemoveMark | Effect::DeleteClaim);
        if needs_all_before && trouble.is_some() {
            break;
        }
        if effect.needs_no_record() {
            tracing::debug!(?effect, "doing");
        } else {
            tracing::info!(?effect, "doing");
        }
        if let Err(why) = carry_out(driver, uuid, effect).await {
            tracing::warn!(why, "failed");
            trouble.get_or_insert(why);
        }
    }
    trouble
}

async fn carry_out(driver: &mut Driver, uuid: &str, effect: Effect) -> Result<(), String> {
    let libvirt = &driver.libvirt;
    let done = match effect {
        Effect::WriteMark(mark) => libvirt.set_mark(uuid, Some(&mark)).await,
        Effect::RemoveMark => libvirt.set_mark(uuid, None).await,
        Effect::SetAutostart(autostart) => libvirt.set_autostart(uuid, autostart).await,
        Effect::StartMirror { device, bandwidth_bytes_s } => {
            let xml = destination_xml(&device, &driver.nbd_socket());
            libvirt.start_mirror(uuid, &device, xml, bandwidth_bytes_s).await
        }
        Effect::SetSpeed { device, bandwidth_bytes_s } => libvirt.set_speed(uuid, &device, bandwidth_bytes_s).await,
        Effect::AbortMirror { device } => libvirt.abort_mirror(uuid, &device).await,
        Effect::Shutdown(method) => libvirt.shutdown(uuid, method).await,
        Effect::PowerOff => libvirt.power_off(uuid).await,
        Effect::RunInGuest(command) => {
            driver.command.start(libvirt, uuid, command);
            return Ok(());
        }
        Effect::Start => libvirt.start(uuid).await,
        Effect::OpenExport { disk, fresh } => return open(driver, disk, fresh).await,
        Effect::CloseExport { device, discard } => return relay(driver.relay.close(&device, discard)).await,
        Effect::EndRelay { process, force } => return host_processes::end(&process, force).map_err(|err| chain(&err)),
        Effect::DeleteClaim => return driver.claims.delete(uuid).map_err(|err| chain(&err)),
        Effect::Compare { disk, source_path } => {
            driver.comparisons.start(disk, source_path.into());
            return Ok(());
        }
    };
    done.map_err(|err| chain(&err))
}

async fn open(driver: &Driver, disk: DiskCopy, fresh: bool) -> Result<(), String> {
    let target = TargetSpec::Nfs(disk.target);
    relay(driver.relay.open(&disk.device, disk.size_bytes, &target, fresh)).await
}

async fn relay<T, E: std::error::Error>(order: impl Future<Output = Result<T, E>>) -> Result<(), String> {
    match tokio::time::timeout(RELAY_DEADLINE, order).await {
        Ok(done) => done.map(drop).map_err(|err| chain(&err)),
        Err(_) => Err(format!("the relay did not carry out an order within {} s", RELAY_DEADLINE.as_secs())),
    }
}

/// Comparisons that run in the background, by device.
#[derive(Default)]
pub(super) struct Comparisons(BTreeMap<String, Comparison>);

struct Comparison {
    task: tokio::task::JoinHandle<ComparisonSeen>,
    done_bytes: Arc<AtomicU64>,
    ended: Option<(Instant, ComparisonSeen)>,
}

impl Comparisons {
    /// Starts one, unless it runs, has an answer, or has failed only just now.
    fn start(&mut self, disk: DiskCopy, source: PathBuf) {
        if let Some(known) = self.0.get(&disk.device) {
            let failed_at = match &known.ended {
                Some((at, ComparisonSeen::Failed(_))) => at,
                Some(_) | None => return,
            };
            if failed_at.elapsed() < COMPARE_PAUSE {
                return;
            }
        }
        let done_bytes = Arc::new(AtomicU64::new(0));
        let shared = Arc::clone(&done_bytes);
        let device = disk.device.clone();
        let task = tokio::spawn(async move {
            let progress = |bytes| shared.store(bytes, Ordering::Relaxed);
            match verify::compare(&source, disk.size_bytes, &TargetSpec::Nfs(disk.target), &progress).await {
                Ok(comparison) if comparison.equal => ComparisonSeen::Equal { blake3: comparison.blake3 },
                Ok(comparison) => ComparisonSeen::Different {
                    first_difference_offset: comparison.first_difference_offset.unwrap_or_default(),
                },
                Err(err) => ComparisonSeen::Failed(chain(&err)),
            }
        });
        self.0.insert(device, Comparison { task, done_bytes, ended: None });
    }

    /// How far each one is.
    pub(super) fn seen(&mut self) -> BTreeMap<String, ComparisonSeen> {
        use futures::FutureExt;
        let look = |comparison: &mut Comparison| {
            if comparison.ended.is_none()
                && let Some(ended) = (&mut comparison.task).now_or_never()
            {
                let seen = ended.unwrap_or_else(|err| ComparisonSeen::Failed(err.to_string()));
                comparison.ended = Some((Instant::now(), seen));
            }
            match &comparison.ended {
                Some((_, seen)) => seen.clone(),
                None => ComparisonSeen::Running { done_bytes: comparison.done_bytes.load(Ordering::Relaxed) },
            }
        };
        self.0.iter_mut().map(|(device, comparison)| (device.clone(), look(comparison))).collect()
    }

    /// Forgets all: what they saw, or are about to see, proves nothing.
    pub(super) fn clear(&mut self) {
        for (_, comparison) in std::mem::take(&mut self.0) {
            comparison.task.abort();
        }
    }
}
