//! What runs in the background of the turns: disks being verified while their guest runs, and compared when it is off.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::chain;
use crate::api::block_copy::DiskCopy;
use crate::flow::copy::{ComparisonProgress, ComparisonSeen, Effect, Proviso, VerificationSeen};
use crate::host::relay::TargetSpec;
use crate::host::relay::writes::extent_count;
use crate::host::verify::background::{Background, Job};
use crate::host::verify::compare;
use crate::host::verify::ledger::Hash;

/// Pause before a comparison that failed is tried again.
const COMPARE_PAUSE: Duration = Duration::from_secs(5);

/// Disks that are being verified, by device. That one is here says that this driver saw its mirror in step.
#[derive(Default)]
pub(super) struct Verifications {
    running: BTreeMap<String, (Background, Proviso)>,
    /// Openings whose counters could not be read: it is not tried again, and those disks are compared whole in the end.
    given_up: BTreeSet<Uuid>,
}

impl Verifications {
    /// Verifies at that pace; begins with it unless it was begun for this very opening of the export. That it cannot be done is no trouble
    /// for a turn: it only makes the outage longer.
    pub(super) fn go_on(&mut self, job: Job, proviso: Proviso, bytes_s: u64) {
        let (device, opening, subject) = (job.device.clone(), job.opening, job.subject);
        if self.given_up.contains(&opening) {
            return;
        }
        if self.running.get(&device).is_none_or(|(running, _)| running.subject() != subject) {
            match Background::start(job) {
                Ok(started) if started.opening() == opening => {
                    self.running.insert(device.clone(), (started, proviso.clone()));
                }
                Ok(_) => return, // opened anew since the relay was asked
                Err(err) => {
                    tracing::warn!(device, why = chain(&err), "the disk is not verified while its guest runs");
                    self.given_up.insert(opening);
                    return;
                }
            }
        }
        if let Some((running, last)) = self.running.get_mut(&device) {
            *last = proviso;
            running.pace(bytes_s);
        }
    }

    /// What this turn does not order pauses.
    pub(super) fn pause_all_but(&mut self, effects: &[Effect]) {
        let ordered = |device: &String| {
            effects.iter().any(|effect| matches!(effect, Effect::Verify { disk, .. } if disk.device == *device))
        };
        self.running.iter().filter(|(device, _)| !ordered(device)).for_each(|(_, (running, _))| running.pace(0));
    }

    /// How far each one is.
    pub(super) fn seen(&self) -> BTreeMap<String, VerificationSeen> {
        let look = |(running, _): &(Background, Proviso)| {
            let (verified_bytes, difference_offset) = running.progress();
            VerificationSeen { opening: running.opening().to_string(), verified_bytes, difference_offset }
        };
        self.running.iter().map(|(device, running)| (device.clone(), look(running))).collect()
    }

    /// For each extent of a disk its hash, if its write counters say that it is as it was when it was verified, and are to be believed.
    pub(super) fn known(&self, disk: &DiskCopy, believe: Option<&Proviso>) -> Vec<Option<Hash>> {
        let verified = self.running.get(&disk.device).filter(|(_, last)| Some(last) == believe);
        verified.and_then(|(running, _)| running.known()).unwrap_or_else(|| {
            tracing::warn!(device = disk.device, ?believe, "nothing is believed: every extent is compared");
            vec![None; extent_count(disk.size_bytes)]
        })
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.running.clear();
    }
}

/// Comparisons that run in the background, by device.
#[derive(Default)]
pub(super) struct Comparisons(BTreeMap<String, Comparison>);

struct Comparison {
    repairs: bool,
    begun: Instant,
    task: tokio::task::JoinHandle<ComparisonProgress>,
    done_bytes: Arc<AtomicU64>,
    ended: Option<(Instant, ComparisonProgress)>,
}

impl Comparisons {
    /// Starts one, unless it runs, has an answer, or has failed only just now. `repair`: it writes anew what differs, and ends one that
    /// does not.
    pub(super) fn start(&mut self, disk: DiskCopy, source: PathBuf, known: Vec<Option<Hash>>, repair: bool) {
        if let Some(begun) = self.0.get(&disk.device).filter(|begun| begun.repairs == repair) {
            let failed_at = match &begun.ended {
                Some((at, ComparisonProgress::Failed(_))) => at,
                Some(_) | None => return,
            };
            if failed_at.elapsed() < COMPARE_PAUSE {
                return;
            }
        }
        let done_bytes = Arc::new(AtomicU64::new(0));
        let shared = Arc::clone(&done_bytes);
        let device = disk.device.clone();
        let begun = Instant::now();
        let task = tokio::spawn(async move {
            let progress = |bytes| shared.store(bytes, Ordering::Relaxed);
            let (extents, target) = (known.len() as u64, TargetSpec::Nfs(disk.target));
            match compare::compare(&source, disk.size_bytes, &target, known, repair, &progress).await {
                Ok(compare::Comparison { first_difference_offset: Some(first_difference_offset), .. }) => {
                    ComparisonProgress::Different { first_difference_offset }
                }
                Ok(compare::Comparison { blake3, compared_extents, repaired_extents, .. }) => {
                    let millis = begun.elapsed().as_millis();
                    tracing::info!(device = disk.device, compared_extents, repaired_extents, extents, millis, "equal");
                    let verified_extents = extents - compared_extents;
                    ComparisonProgress::Equal { blake3, compared_extents, verified_extents, repaired_extents }
                }
                Err(err) => ComparisonProgress::Failed(chain(&err)),
            }
        });
        let comparison = Comparison { repairs: repair, begun, task, done_bytes, ended: None };
        if let Some(before) = self.0.insert(device, comparison) {
            before.task.abort();
        }
    }

    /// How far each one is.
    pub(super) fn seen(&mut self) -> BTreeMap<String, ComparisonSeen> {
        use futures::FutureExt;
        let look = |comparison: &mut Comparison| {
            if comparison.ended.is_none()
                && let Some(ended) = (&mut comparison.task).now_or_never()
            {
                let ended = ended.unwrap_or_else(|err| ComparisonProgress::Failed(err.to_string()));
                comparison.ended = Some((Instant::now(), ended));
            }
            let progress = match &comparison.ended {
                Some((_, ended)) => ended.clone(),
                None => ComparisonProgress::Running {
                    done_bytes: comparison.done_bytes.load(Ordering::Relaxed),
                    seconds: comparison.begun.elapsed().as_secs(),
                },
            };
            ComparisonSeen { repairs: comparison.repairs, progress }
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
