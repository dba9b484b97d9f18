//! The open exports of one relay, by name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use uuid::Uuid;

use super::control::ExportStatus;
use super::drain::{Readers, WRITERS, report, write_runs};
use super::export::{Export, Life};
use super::memory::{MIN_SHARE_BYTES, Memory};
use super::target::{Target, TargetSpec};
use super::writes::WriteCounters;

/// Suffix of an export's name under which tools get honest flushes.
pub const DURABLE_SUFFIX: &str = "+durable";
/// How long opening a target may take.
const OPEN_LIMIT: Duration = Duration::from_secs(10);
const NAME_MAX_BYTES: usize = 128;

/// An open export with its writers and readers.
pub struct Opened {
    pub export: Arc<Export>,
    pub readers: Readers,
}

/// Exports by name, with their writers.
type Open = BTreeMap<String, (Arc<Opened>, Vec<JoinHandle<()>>)>;

/// See the module's text.
pub struct Exports {
    memory: Arc<Memory>,
    /// Where the write counters are kept.
    directory: PathBuf,
    instance: Uuid,
    open: Mutex<Open>,
    /// Writers of closed exports that still wait for the server's answer to their last call.
    ending: Mutex<Vec<(TargetSpec, JoinHandle<()>)>>,
    /// One opening at a time.
    opening: tokio::sync::Mutex<()>,
}

impl Exports {
    /// `instance`: identity of this relay process. `directory`: its run directory.
    pub fn new(memory: Arc<Memory>, directory: &Path, instance: Uuid) -> Arc<Self> {
        Arc::new(Self {
            memory,
            directory: directory.into(),
            instance,
            open: Mutex::default(),
            ending: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
        })
    }

    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Identity of this relay process.
    pub fn instance(&self) -> Uuid {
        self.instance
    }

    fn open_now(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens an export. One that is open already with the same arguments is left as it is. The error is for people.
    pub async fn open(&self, name: &str, size_bytes: u64, spec: &TargetSpec, fresh: bool) -> Result<(), String> {
        let _one = self.opening.lock().await;
        if let Some((opened, _)) = self.open_now().get(name) {
            let export = &opened.export;
            if (export.size_bytes, &export.spec, export.fresh) == (size_bytes, spec, fresh) {
                return Ok(());
            }
            return Err(format!("export {name} is open with other arguments (target {}); close it first", export.spec));
        }
        self.check(name, size_bytes, spec)?;
        let target = match tokio::time::timeout(OPEN_LIMIT, spec.open(size_bytes)).await {
            Ok(opened) => opened.map_err(|error| report(&error))?,
            Err(_) => return Err(format!("opening {spec}: no answer within {OPEN_LIMIT:?}; check that server")),
        };
        self.insert(name, size_bytes, spec, fresh, target)
    }

    /// Exports a target that is open already. The error is for people.
    pub fn insert(
        &self,
        name: &str,
        size_bytes: u64,
        spec: &TargetSpec,
        fresh: bool,
        target: Arc<dyn Target>,
    ) -> Result<(), String> {
        let share = self.memory.share().ok_or_else(|| {
            let (total, least) = (self.memory.total_bytes() >> 20, MIN_SHARE_BYTES >> 20);
            format!("{total} MiB of memory are too little for one more export: each needs {least} MiB")
        })?;
        let counters =
            WriteCounters::create(&self.directory, name, self.instance, size_bytes).map_err(|e| report(&e))?;
        let export = Arc::new(Export::new(name, size_bytes, spec.clone(), fresh, target, share, counters));
        let writers = (0..WRITERS).map(|_| tokio::spawn(write_runs(Arc::clone(&export)))).collect();
        tracing::info!(export = name, size_bytes, target = %spec, fresh, "export open");
        self.open_now().insert(name.into(), (Arc::new(Opened { export, readers: Readers::default() }), writers));
        Ok(())
    }

    fn check(&self, name: &str, size_bytes: u64, spec: &TargetSpec) -> Result<(), String> {
        if name.is_empty()
            || name.len() > NAME_MAX_BYTES
            || name.contains(|c: char| !c.is_ascii_graphic() || "+/".contains(c))
        {
            return Err(format!(
                "export name {name:?} is not 1 to {NAME_MAX_BYTES} printable ASCII characters without '+' and '/'"
            ));
        }
        if size_bytes == 0 {
            return Err(format!("export {name}: a disk of 0 bytes cannot be exported"));
        }
        if let Some((opened, _)) = self.open_now().values().find(|(opened, _)| opened.export.spec == *spec) {
            return Err(format!("{spec} is the target of export {} already", opened.export.name));
        }
        let mut ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        ending.retain(|(_, writer)| !writer.is_finished());
        if ending.iter().any(|(target, _)| target == spec) {
            return Err(format!(
                "a write of an earlier export to {spec} is not answered yet and could be carried out after newer ones; \
                 try again when that server has answered"
            ));
        }
        Ok(())
    }

    /// Closes an export: cuts its clients off and ends its writers. One that holds acknowledged bytes is closed only if they are given up
    /// (`discard`) or it is broken. Closing what is not open is no error. Its write counters are sealed if nothing was given up.
    pub fn close(&self, name: &str, discard: bool) -> Result<(), String> {
        let mut open = self.open_now();
        let Some((opened, _)) = open.get(name) else { return Ok(()) };
        let backlog_bytes = opened.export.counts(Instant::now()).backlog_bytes;
        if backlog_bytes > 0 && opened.export.life() == Life::Running && !discard {
            return Err(format!(
                "export {name} holds {backlog_bytes} bytes that were acknowledged and are not on {}; wait until it is drained",
                opened.export.spec
            ));
        }
        let (opened, writers) = open.remove(name).expect("looked at a moment ago");
        drop(open);
        let sealed = opened.export.close(!discard);
        let counts = opened.export.counts(Instant::now());
        let (drained_bytes, skipped_bytes) = (counts.drained_bytes, counts.skipped_bytes);
        tracing::info!(export = name, backlog_bytes, drained_bytes, skipped_bytes, sealed, "export closed");
        let ending = writers.into_iter().map(|writer| (opened.export.spec.clone(), writer));
        self.ending.lock().unwrap_or_else(PoisonError::into_inner).extend(ending);
        Ok(())
    }

    /// The export that an NBD client asks for, and whether it wants honest flushes.
    pub fn find(&self, name: &str) -> Option<(Arc<Opened>, bool)> {
        let (name, durable) = match name.strip_suffix(DURABLE_SUFFIX) {
            Some(name) => (name, true),
            None => (name, false),
        };
        self.open_now().get(name).map(|(opened, _)| (Arc::clone(opened), durable))
    }

    pub fn names(&self) -> Vec<String> {
        self.open_now().keys().cloned().collect()
    }

    /// Looks at every export: breaks what is over the deadline, takes samples. Returns how long a guest has been waiting at most.
    pub fn tick(&self, deadline: Duration) -> Duration {
        let now = Instant::now();
        let exports: Vec<_> = self.open_now().values().map(|(opened, _)| Arc::clone(opened)).collect();
        let mut oldest = Duration::ZERO;
        for opened in exports {
            opened.export.check_deadline(now, deadline);
            opened.export.sample(now);
            oldest = oldest.max(opened.export.oldest_unanswered(now).unwrap_or_default());
        }
        oldest
    }

    pub fn status(&self) -> Vec<ExportStatus> {
        let now = Instant::now();
        let status = |(opened, _): &(Arc<Opened>, _)| {
            let export = &opened.export;
            let counts = export.counts(now);
            ExportStatus {
                name: export.name.clone(),
                size_bytes: export.size_bytes,
                opening: export.opening(),
                connected: counts.guests > 0,
                broken: match export.life() {
                    Life::Broken(reason) => Some(reason),
                    Life::Running | Life::Closed => None,
                },
                received_bytes: counts.received_bytes,
                backlog_bytes: counts.backlog_bytes,
                drained_bytes: counts.drained_bytes,
                skipped_bytes: counts.skipped_bytes,
                drain_rate_bytes_s: counts.drain_rate_bytes_s,
                oldest_unanswered_millis: counts
                    .oldest_unanswered
                    .map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
                throttled: counts.throttled,
            }
        };
        self.open_now().values().map(status).collect()
    }
}
