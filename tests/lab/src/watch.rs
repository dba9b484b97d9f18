//! Looks at both sides of every machine all the time: never may both run, and before the cutover the source may not be off.
//!
//! It looks at processes, not at what libvirt or Prism say of them. A source is its QEMU, running, paused or on its way down.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::hypervisor::Hypervisor;
use crate::lab::Lab;

/// How often it looks.
const EVERY: Duration = Duration::from_millis(50);

/// A running watch. Dropping it ends it.
pub struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What was seen of one machine.
#[derive(Clone, Debug, Default)]
pub struct Sighting {
    /// How often both sides were found running where they had not been a moment before.
    pub double_runs: u32,
    /// How often the source went off although it was not to.
    pub early_stops: u32,
    /// Number of looks.
    pub looks: u64,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    machines: Mutex<BTreeMap<String, Machine>>,
    slowest: Mutex<Duration>,
}

#[derive(Default)]
struct Machine {
    target: Option<String>,
    may_be_off: bool,
    excused: bool,
    was_double: bool,
    was_off: bool,
    seen: Sighting,
}

impl Watch {
    /// Begins to look; machines are added by [`Watch::add`].
    pub fn start(lab: &Lab) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (for_thread, hypervisor, pid_files) = (shared.clone(), lab.hypervisor.clone(), lab.libvirt.pid_files());
        let look = move || {
            let mut last = Instant::now();
            while !for_thread.stop.load(Ordering::Relaxed) {
                std::thread::sleep(EVERY);
                let mut slowest = for_thread.slowest.lock().unwrap_or_else(PoisonError::into_inner);
                *slowest = (*slowest).max(last.elapsed());
                drop(slowest);
                last = Instant::now();
                for (name, machine) in for_thread.machines().iter_mut() {
                    machine.look(hypervisor.as_ref(), pid_files.join(format!("{name}.pid")));
                }
            }
        };
        let thread = std::thread::Builder::new().name("watch".into()).spawn(look)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Watches a machine that runs and is to go on running.
    pub fn add(&self, name: &str) {
        self.shared.machines().insert(name.into(), Machine::default());
    }

    /// Watches it no longer.
    pub fn remove(&self, name: &str) {
        self.shared.machines().remove(name);
    }

    /// The VM that is to take over.
    pub fn set_target(&self, name: &str, uuid: &str) {
        self.change(name, |machine| machine.target = Some(uuid.into()));
    }

    /// Whether the source may be off from now on: somebody has approved its cutover, or it was killed on purpose.
    pub fn may_be_off(&self, name: &str, may: bool) {
        self.change(name, |machine| machine.may_be_off = may);
    }

    /// Whether both may run from now on, because a person started one by hand.
    pub fn excuse(&self, name: &str, excused: bool) {
        self.change(name, |machine| machine.excused = excused);
    }

    /// What was seen since the last question.
    pub fn take(&self, name: &str) -> Sighting {
        self.shared.machines().get_mut(name).map(|machine| std::mem::take(&mut machine.seen)).unwrap_or_default()
    }

    /// The longest time between two looks: how busy this computer is.
    pub fn slowest(&self) -> Duration {
        *self.shared.slowest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Machine)) {
        if let Some(machine) = self.shared.machines().get_mut(name) {
            change(machine);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn machines(&self) -> MutexGuard<'_, BTreeMap<String, Machine>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Machine {
    fn look(&mut self, hypervisor: &dyn Hypervisor, pid_file: PathBuf) {
        let target_runs = || self.target.as_ref().is_some_and(|uuid| hypervisor.is_on(uuid));
        // Between two looks at the target: otherwise one that stops and another that starts meanwhile would count as both.
        let (before, source, after) = (target_runs(), runs(&pid_file), target_runs());
        let double = before && source && after && !self.excused;
        let off = !source && !self.may_be_off;
        self.seen.double_runs += u32::from(double && !self.was_double);
        self.seen.early_stops += u32::from(off && !self.was_off);
        self.seen.looks += 1;
        (self.was_double, self.was_off) = (double, off);
    }
}

/// Whether the QEMU that wrote this file lives.
fn runs(pid_file: &PathBuf) -> bool {
    let Ok(pid) = std::fs::read_to_string(pid_file) else { return false };
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())) else { return false };
    // `pid (comm) state …`; a zombie holds no disk.
    let Some((head, rest)) = stat.rsplit_once(") ") else { return false };
    head.contains("qemu") && !rest.starts_with(['Z', 'X'])
}
