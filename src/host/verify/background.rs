//! Verifies one disk while its guest runs, one extent at a time, no faster than it is told, and only while it is told to.
//!
//! It must not disturb guest or copy: who orders it (`flow/copy/mirror`) pauses it whenever the guest's writes wait for the target.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::VerifyError;
use super::ledger::{Due, Hash, Ledger};
use super::pair::{Pair, Verdict};
use crate::host::relay::writes::{self, EXTENT_BYTES, WriteCountersView};
use crate::host::relay::{RelayClient, TargetSpec};

/// How often the counters are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the ledger is written to its file.
const SAVE_EVERY: Duration = Duration::from_secs(10);
/// How long after the last reading of a difference its counter must still stand: longer than a write of the guest can be on its way from
/// the source's disk to the relay.
const CERTAIN_AFTER: Duration = Duration::from_secs(5);
/// Pause after a reading that failed.
const FAILED_PAUSE: Duration = Duration::from_secs(5);

/// What is to be verified.
#[derive(Clone, Debug)]
pub struct Job {
    pub device: String,
    pub size_bytes: u64,
    pub source_path: PathBuf,
    pub target: TargetSpec,
    /// The relay that copies it, its run directory and which process it is.
    pub relay: RelayClient,
    pub relay_directory: PathBuf,
    pub relay_instance: Uuid,
    /// Which opening of the export.
    pub opening: Uuid,
    /// What the ledger is about: that opening, and one version of the target VM. Under another nothing of it is true.
    pub subject: Uuid,
    /// Where the ledger is kept for another driver.
    pub ledger_file: PathBuf,
}

/// A disk being verified. Dropping it ends that.
pub struct Background {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    job: Job,
    counters: WriteCountersView,
    progress: Mutex<Progress>,
    /// Bytes a second; 0 = pause.
    pace: watch::Sender<u64>,
}

struct Progress {
    ledger: Ledger,
    difference_offset: Option<u64>,
}

impl Background {
    /// Begins, paused, where the ledger's file ends if it has the same subject.
    pub fn start(job: Job) -> Result<Self, writes::Error> {
        let counters = WriteCountersView::open(&job.relay_directory, &job.device, job.relay_instance, job.size_bytes)?;
        let opening = counters.opening();
        let kept = fs::read(&job.ledger_file).ok();
        let kept = kept.and_then(|bytes| Ledger::from_bytes(&bytes, job.subject, job.size_bytes));
        let ledger = kept.unwrap_or_else(|| Ledger::new(job.subject, job.size_bytes));
        let verified_bytes = ledger.verified_bytes(&counters.all());
        tracing::info!(device = job.device, %opening, verified_bytes, "verifying");
        let progress = Mutex::new(Progress { ledger, difference_offset: None });
        let shared = Arc::new(Shared { job, counters, progress, pace: watch::Sender::new(0) });
        let task = tokio::spawn(run(Arc::clone(&shared)));
        Ok(Self { shared, task })
    }

    /// See [`Job::subject`].
    pub fn subject(&self) -> Uuid {
        self.shared.job.subject
    }

    /// Which opening of the export it verifies.
    pub fn opening(&self) -> Uuid {
        self.shared.counters.opening()
    }

    /// Goes on at that pace; 0 = pauses.
    pub fn pace(&self, bytes_s: u64) {
        self.shared.pace.send_if_modified(|pace| std::mem::replace(pace, bytes_s) != bytes_s);
    }

    /// How much of the disk is verified at this moment, and where the two sides were found to differ for good, if they were.
    pub fn progress(&self) -> (u64, Option<u64>) {
        let counters = self.shared.counters.all();
        let progress = self.shared.progress();
        (progress.ledger.verified_bytes(&counters), progress.difference_offset)
    }

    /// When its relay is gone: the hashes of the extents that need not be compared again. `None` if the counters do not tell.
    pub fn known(&self) -> Option<Vec<Option<Hash>>> {
        let sealed = self.shared.counters.is_sealed();
        sealed.then(|| self.shared.progress().ledger.known(&self.shared.counters.all()))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn run(shared: Arc<Shared>) {
    let start = Instant::now();
    let mut pace = shared.pace.subscribe();
    let (mut looked_at, mut saved_at) = (None::<Instant>, Instant::now());
    let mut pair = None;
    loop {
        let Ok(bytes_s) = pace.wait_for(|bytes_s| *bytes_s > 0).await.map(|bytes_s| *bytes_s) else { return };
        let begun = Instant::now();
        let now = begun.duration_since(start).as_secs();
        if looked_at.is_none_or(|at| begun.duration_since(at) >= LOOK_EVERY) {
            shared.progress().ledger.look(&shared.counters.all(), now);
            looked_at = Some(begun);
        }
        if begun.duration_since(saved_at) >= SAVE_EVERY {
            save(&shared);
            saved_at = begun;
        }
        let due = shared.progress().ledger.due(now);
        let rest = match due {
            None => LOOK_EVERY,
            Some(due) => match verify(&shared, &mut pair, due, now).await {
                Ok(()) => Duration::from_secs_f64(EXTENT_BYTES as f64 / bytes_s as f64).saturating_sub(begun.elapsed()),
                Err(err) => {
                    tracing::warn!(
                        device = shared.job.device,
                        why = crate::host::relay::drain::report(&err),
                        "not verified"
                    );
                    pair = None;
                    FAILED_PAUSE
                }
            },
        };
        tokio::time::sleep(rest).await;
    }
}

async fn verify(shared: &Shared, pair: &mut Option<Arc<Pair>>, due: Due, now: u64) -> Result<(), VerifyError> {
    let Job { device, size_bytes, source_path, target, .. } = &shared.job;
    if due.again && !is_idle(&shared.job).await {
        shared.progress().ledger.put_off(due.extent, now);
        return Ok(());
    }
    let open = match pair {
        Some(open) => Arc::clone(open),
        None => Arc::clone(pair.insert(Pair::open(source_path, *size_bytes, target).await?)),
    };
    // Nothing but this order of readings makes what is found mean anything: see the module `verify`.
    let before = shared.counters.get(due.extent);
    let verdict = open.compare(due.extent).await?;
    let after = shared.counters.get(due.extent);
    if before != after {
        return Ok(());
    }
    let stands = match verdict {
        Verdict::Equal(hash) => {
            shared.progress().ledger.equal(due.extent, before, hash, now);
            None
        }
        Verdict::Differs { offset } => {
            let stands = shared.progress().ledger.differs(due.extent, before, now) && due.again;
            stands.then_some(offset)
        }
    };
    if let Some(offset) = stands {
        tokio::time::sleep(CERTAIN_AFTER).await;
        if shared.counters.get(due.extent) == before {
            tracing::error!(device, offset, "source and target differ, and nothing was written");
            shared.progress().difference_offset = Some(offset);
        }
    }
    Ok(())
}

/// Whether everything that the relay has received is on the target. A relay that does not say so is not idle.
async fn is_idle(job: &Job) -> bool {
    let Ok(status) = job.relay.status().await else { return false };
    let export = status.exports.iter().find(|export| export.opening == job.opening);
    export.is_some_and(|export| export.backlog_bytes == 0 && export.oldest_unanswered_millis == 0)
}

/// A file that cannot be written costs another driver its start, and nothing else.
fn save(shared: &Shared) {
    let bytes = shared.progress().ledger.to_bytes();
    if let Err(error) = replace(&shared.job.ledger_file, &bytes) {
        tracing::warn!(%error, file = %shared.job.ledger_file.display(), "what was verified is not kept");
    }
}

/// In one step. It need not reach the disk: it means nothing after the host was lost, and says itself whether it is whole.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("verified-draft");
    fs::write(&draft, bytes)?;
    fs::rename(draft, path)
}
