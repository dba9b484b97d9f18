//! Watches a guest while its rounds go on: never on both sides at once, and no boot of the source without a record that was acknowledged.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::guest::Records;
use crate::hypervisor::Hypervisor;
use crate::lab::Lab;
use crate::libvirt::Domain;

const LOOKS_EVERY: Duration = Duration::from_millis(50);
/// Reading a console takes longer than looking at processes, and a boot takes seconds.
const CONSOLE_EVERY: Duration = Duration::from_millis(200);

/// What was seen of one guest.
#[derive(Default)]
pub struct Seen {
    /// The round that goes on: what a violation is told with.
    pub round: AtomicU64,
    /// Looks at which the source ran, and at which the target ran: a watch that never saw one of them proves nothing.
    pub source_looks: AtomicU64,
    pub target_looks: AtomicU64,
    stop: AtomicBool,
    ledger: Mutex<Ledger>,
}

/// The records of the source over all its boots, and what must not have happened.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// The newest record that any boot of the source acknowledged.
    pub acknowledged: u64,
    pub lost: u64,
    /// The longest time between two acknowledgements of one boot, in milliseconds of the guest's clock.
    pub worst_stall_millis: u64,
    /// Boots of the source that have checked their records.
    pub checked_boots: u64,
    /// Looks at which both sides ran, each with its round and time.
    pub double_runs: Vec<String>,
    /// What was wrong with records, each with its round.
    pub complaints: Vec<String>,
    console_bytes: usize,
    checked: bool,
}

impl Ledger {
    /// Takes in what the console says. It holds one boot: QEMU begins the file anew.
    fn read(&mut self, round: u64, source: &Domain) {
        let console = source.console();
        let bytes = console.text().len();
        if bytes < self.console_bytes {
            self.checked = false;
        }
        self.console_bytes = bytes;
        if !self.checked {
            let found = console.verified();
            self.checked = found.len() == source.disk_paths().len();
            self.checked_boots += u64::from(self.checked);
            for records in found.values().filter(|_| self.checked) {
                let (lost, complaint) = judge(*records, self.acknowledged);
                self.lost += lost;
                self.complaints.extend(complaint.map(|text| format!("round {round}: the source booted: {text}")));
            }
        }
        // What this boot acknowledged counts only against the boots after it.
        if self.checked {
            self.acknowledged = self.acknowledged.max(console.last_ack().unwrap_or(0));
            self.worst_stall_millis = self.worst_stall_millis.max(console.max_gap_millis_since(0));
        }
    }
}

/// How many acknowledged records are missing among those that a boot found, and what is wrong in words.
pub fn judge(found: Records, acknowledged: u64) -> (u64, Option<String>) {
    let lost = acknowledged.saturating_sub(found.upto) + found.bad;
    let Records { upto, bad } = found;
    let text = format!("{acknowledged} records were acknowledged, found are {upto} ({bad} damaged)");
    // The guest writes one record after the other: at most one is written and not acknowledged. More come from another life of the machine.
    let foreign = upto > acknowledged + 1 && acknowledged > 0;
    (lost, (lost > 0 || foreign).then_some(text))
}

impl Seen {
    /// What was seen so far.
    pub fn ledger(&self) -> Ledger {
        self.lock().clone()
    }

    /// Ends the watch.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn round(&self) -> u64 {
        self.round.load(Ordering::SeqCst)
    }
}

/// Watches until it is told to stop.
pub fn watch(lab: &Arc<Lab>, source: &Domain, start: Instant) -> Arc<Seen> {
    let seen = Arc::new(Seen::default());
    let (lab, source, shared) = (lab.clone(), source.clone(), seen.clone());
    std::thread::spawn(move || {
        let mut console_read = start;
        while !shared.stop.load(Ordering::SeqCst) {
            if both_run(&lab, &source.name, &shared) {
                let at = start.elapsed().as_secs_f64();
                shared.lock().double_runs.push(format!("{} round {} at {at:.2} s", source.name, shared.round()));
            }
            if console_read.elapsed() >= CONSOLE_EVERY {
                console_read = Instant::now();
                shared.lock().read(shared.round(), &source);
            }
            std::thread::sleep(LOOKS_EVERY);
        }
    });
    seen
}

/// Whether source and target ran at one moment: the target is looked at between two looks at the source that saw the same process.
fn both_run(lab: &Lab, name: &str, seen: &Seen) -> bool {
    let before = lab.libvirt.qemu_pid(name);
    let on = lab.prism.vm_by_name(name).is_some_and(|vm| lab.hypervisor.is_on(&vm.uuid));
    let after = lab.libvirt.qemu_pid(name);
    seen.source_looks.fetch_add(u64::from(before.is_some()), Ordering::SeqCst);
    seen.target_looks.fetch_add(u64::from(on), Ordering::SeqCst);
    on && before.is_some() && before == after
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_judged_by_what_was_acknowledged_before_it() {
        let found = |upto, bad| Records { upto, bad };
        assert_eq!(judge(found(41, 0), 40), (0, None), "a record may be written and not acknowledged yet");
        assert_eq!(judge(found(39, 0), 40).0, 1);
        assert_eq!(judge(found(40, 2), 40).0, 2);
        let (lost, complaint) = judge(found(90, 0), 40);
        assert!(lost == 0 && complaint.is_some(), "records of another life are not the source's");
    }
}
