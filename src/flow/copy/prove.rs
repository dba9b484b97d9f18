//! The proofs, when the guest is off: off twice, drained, every writer gone, equal.
//!
//! A copy that broke in the shutdown, or a target that differs although nothing broke, need not be the end: the source's disks are the
//! truth and do not change any more. What differs is written anew from them by the driver itself, once every relay is gone. Then nothing
//! that was copied or verified before is believed. It is an alarm, it has to end in time, and the order may forbid it.

use super::effect::{Effect, Proviso};
use super::memory::Memory;
use super::mirror;
use super::quiesce::{changed_in_the_shutdown, fail, remember_who};
use super::seen::{ComparisonProgress, DomainSeen, Fact, ProcessId, ProcessesSeen, ShutdownBy};
use super::turn::Turn;
use crate::api::block_copy::{HowOff, MirrorState, QuiesceStatus, RepairStatus, Want};

/// How long to wait for libvirt's event that tells guest from host, after the state says off.
const EVENT_SECONDS: u64 = 2;
/// How long a relay may take to end after it was asked to.
const RELAY_END_SECONDS: u64 = 5;

/// The guest is off after our request: prove it, drain, end the writers, compare. One proof after the other, each level-triggered.
pub(super) fn prove(
    turn: &mut Turn<'_>,
    domain: &DomainSeen,
    memory: &mut Memory,
    mut quiesce: QuiesceStatus,
    orderly: bool,
) {
    mirror::report(turn, domain, memory);
    remember_who(domain, memory);
    if changed_in_the_shutdown(turn, domain, memory) {
        return;
    }
    let done = prove_off(turn, domain, memory, &mut quiesce, orderly)
        && prove_drained(turn, memory, &mut quiesce)
        && end_writers(turn, memory, &mut quiesce)
        && prove_equal(turn, domain, memory, &mut quiesce);
    turn.status.quiesce = Some(quiesce);
    if done {
        memory.proven = true;
        turn.status.reached = Some(Want::Quiesce);
    }
}

fn prove_off(
    turn: &mut Turn<'_>,
    domain: &DomainSeen,
    memory: &Memory,
    quiesce: &mut QuiesceStatus,
    orderly: bool,
) -> bool {
    if domain.managed_save || domain.id.is_some() {
        quiesce.off_by_libvirt_at = None;
        turn.problem(
            "OffNotProven",
            "libvirt says shut off, but the domain has a saved memory image or still an id. A start would resume it: remove the image (virsh managedsave-remove) if that is not wanted.".into(),
        );
        return false;
    }
    let since = quiesce.off_by_libvirt_at.get_or_insert_with(|| turn.moment()).clone();
    if quiesce.how.is_none() {
        quiesce.how = match memory.shutdown_by {
            _ if memory.forced => Some(HowOff::Forced),
            Some(ShutdownBy::Guest) if orderly => Some(HowOff::Clean),
            Some(_) => Some(HowOff::Unclear),
            None if orderly && turn.seconds_since(since.0) < EVENT_SECONDS => None,
            None => Some(HowOff::Unclear),
        };
    }
    let Fact::Known(processes) = &turn.seen.processes else {
        quiesce.off_by_host_at = None;
        turn.problem(
            "OffNotProven",
            "The host's processes cannot be looked at: the second proof of off is missing.".into(),
        );
        return false;
    };
    if let Some(why) = still_held(turn, memory, processes) {
        quiesce.off_by_host_at = None;
        turn.problem("OffNotProven", why);
        return false;
    }
    quiesce.off_by_host_at.get_or_insert_with(|| turn.moment());
    quiesce.how.is_some()
}

/// Why the host does not prove that the source is off, if it does not.
fn still_held(turn: &Turn<'_>, memory: &Memory, processes: &ProcessesSeen) -> Option<String> {
    turn.order.disks.iter().find_map(|disk| {
        let device = &disk.device;
        let Some(remembered) = memory.holders.get(device).filter(|remembered| !remembered.is_empty()) else {
            return Some(format!(
                "No process was ever seen holding disk {device}, so that none holds it now proves nothing."
            ));
        };
        if let Some(qemu) = remembered.iter().find(|process| processes.alive.contains(process)) {
            return Some(format!("QEMU (pid {}) held disk {device} and still lives.", qemu.pid));
        }
        match processes.holders.get(device).map(Vec::as_slice) {
            None => Some(format!("Who holds disk {device} could not be looked at.")),
            Some([]) => None,
            Some([holder, ..]) => Some(format!(
                "Process {} ({}) holds disk {device}. End it, if it is not meant to be.",
                holder.process.pid, holder.command
            )),
        }
    })
}

/// Whether what differs after the power-off may be written anew from the source's disk. Not after a crash: that is given back. And not
/// once equality was reported, or if it may have been and is forgotten: the target may run by now.
pub(super) fn may_repair(turn: &Turn<'_>, memory: &Memory, quiesce: &QuiesceStatus) -> bool {
    let target_is_off = memory.attempt.is_some() && !memory.proven;
    let crashed = quiesce.how == Some(HowOff::Unclear);
    target_is_off && !crashed && seconds_off(turn, quiesce) < u64::from(turn.order.repair_within_seconds)
}

fn seconds_off(turn: &Turn<'_>, quiesce: &QuiesceStatus) -> u64 {
    quiesce.off_by_libvirt_at.as_ref().map_or(0, |at| turn.seconds_since(at.0))
}

/// From now on nothing of the copy is believed: everything is compared, and what differs is written anew.
fn repair(turn: &mut Turn<'_>, memory: &mut Memory, quiesce: &mut QuiesceStatus, why: String) {
    let why: String = why.chars().take(1024).collect();
    memory.repair = Some(why.clone());
    quiesce.repair = Some(RepairStatus { why, begun_at: turn.moment(), repaired_extents: None });
}

fn prove_drained(turn: &mut Turn<'_>, memory: &mut Memory, quiesce: &mut QuiesceStatus) -> bool {
    if let Some(why) = memory.repair.clone() {
        // The report may have been lost with its object.
        let begun_at = turn.moment();
        quiesce.repair.get_or_insert(RepairStatus { why, begun_at, repaired_extents: None });
        return true;
    }
    if quiesce.drained_at.is_some() {
        set_states(turn, MirrorState::Drained);
        return true;
    }
    let broken = match (&memory.attempt, turn.relay()) {
        (None, _) => Some("no copy was running".into()),
        (Some(attempt), Some(relay)) => mirror::relay_broken(turn, attempt, relay),
        (Some(_), None) if no_writer_lives(turn, memory) => Some("the relay's process has ended".into()),
        (Some(_), None) => return false,
    };
    if let Some(why) = broken {
        let lost = format!("What the relay held was lost after the guest powered off: {why}.");
        if may_repair(turn, memory, quiesce) {
            repair(turn, memory, quiesce, lost);
            return true;
        }
        fail(turn, memory, "NotInSync", format!("{lost} The source's disks are whole: release it."));
        return false;
    }
    let Some(relay) = turn.relay() else { return false };
    let idle = turn
        .order
        .disks
        .iter()
        .all(|disk| relay.exports.get(&disk.device).is_some_and(|e| e.backlog_bytes == 0 && !e.connected));
    if !idle {
        set_states(turn, MirrorState::Draining);
        return false;
    }
    quiesce.drained_at = Some(turn.moment());
    set_states(turn, MirrorState::Drained);
    true
}

fn set_states(turn: &mut Turn<'_>, state: MirrorState) {
    for disk in &mut turn.status.disks {
        disk.state = state;
    }
}

fn no_writer_lives(turn: &Turn<'_>, memory: &Memory) -> bool {
    let Fact::Known(processes) = &turn.seen.processes else { return false };
    !memory.writers.iter().any(|writer| processes.alive.contains(writer))
}

/// Ends every relay that ever wrote for this migration and waits until nothing of it is left, not even a socket with data under way.
fn end_writers(turn: &mut Turn<'_>, memory: &Memory, quiesce: &mut QuiesceStatus) -> bool {
    let Fact::Known(processes) = &turn.seen.processes else { return false };
    let alive: Vec<&ProcessId> = memory.writers.iter().filter(|writer| processes.alive.contains(writer)).collect();
    if !alive.is_empty() {
        quiesce.writers_gone_at = None;
        quiesce.equal_at = None;
        let begun = quiesce.repair.as_ref().map(|repair| &repair.begun_at).or(quiesce.drained_at.as_ref());
        let asked = begun.map_or(0, |at| turn.seconds_since(at.0));
        if let Fact::Known(relay) = &turn.seen.relay
            && alive.iter().any(|writer| writer.pid == relay.pid)
        {
            turn.close_exports(relay, memory.repair.is_some());
        }
        let force = asked >= RELAY_END_SECONDS;
        turn.effects.extend(alive.into_iter().map(|process| Effect::EndRelay { process: process.clone(), force }));
        return false;
    }
    // A driver that repairs is a writer, too: one that has died may leave a socket behind.
    if quiesce.writers_gone_at.is_some() && memory.repair.is_none() {
        return true;
    }
    if let Some(socket) = processes.orphan_sockets.first() {
        turn.problem(
            "WritersNotGone",
            format!("A connection without a process may still deliver data: {socket}. Waiting for it to end."),
        );
        return false;
    }
    quiesce.writers_gone_at.get_or_insert_with(|| turn.moment());
    true
}

/// Equal is what this driver compared: what was recorded by one that is gone is compared again, for nobody watched the disks meanwhile.
fn prove_equal(turn: &mut Turn<'_>, domain: &DomainSeen, memory: &mut Memory, quiesce: &mut QuiesceStatus) -> bool {
    let compared_at = quiesce.equal_at.take();
    let Ok(machine) = &domain.machine else { return false };
    let order = turn.order;
    // A driver that finds what an earlier one has proven only looks at it: the target may run.
    let repairs = memory.repair.is_some() && !memory.proven;
    let believe = if memory.repair.is_some() { None } else { proviso(turn, domain, memory, quiesce) };
    let mut sum = Sum::default();
    for disk in &order.disks {
        let Some(source) = machine.disks.iter().find(|source| source.device == disk.device) else {
            turn.problem("SourceChanged", format!("The domain has no disk {} any more.", disk.device));
            continue;
        };
        let compare = Effect::Compare {
            disk: disk.clone(),
            source_path: source.path.clone(),
            believe: believe.clone(),
            repair: repairs,
        };
        let comparison = turn.seen.comparisons.get(&disk.device).filter(|comparison| comparison.repairs || !repairs);
        match comparison.map(|comparison| &comparison.progress) {
            None => turn.effects.push(compare),
            Some(ComparisonProgress::Running { done_bytes, seconds }) => {
                sum.seconds_left = sum.seconds_left.max(seconds_left(disk.size_bytes, *done_bytes, *seconds));
            }
            Some(ComparisonProgress::Equal { blake3, compared_extents, verified_extents, repaired_extents }) => {
                sum.hashes.push(blake3.clone());
                sum.compared_extents += compared_extents;
                sum.verified_extents += verified_extents;
                sum.repaired_extents += repaired_extents;
            }
            Some(ComparisonProgress::Different { first_difference_offset }) => {
                let differs = format!("Disk {} differs from its target at byte {first_difference_offset}", disk.device);
                different(turn, memory, quiesce, repairs, differs);
            }
            Some(ComparisonProgress::Failed(why)) => {
                let message = format!("Disk {} could not be compared: {why}. It is tried again.", disk.device);
                turn.problem("CompareFailed", message);
                turn.effects.push(compare);
            }
        }
    }
    if sum.hashes.len() < order.disks.len() {
        if repairs {
            give_up_if_too_slow(turn, memory, quiesce, sum.seconds_left);
        }
        return false;
    }
    quiesce.equal_at = compared_at.or_else(|| Some(turn.moment()));
    quiesce.blake3 = sum.hashes;
    (quiesce.compared_extents, quiesce.verified_extents) = (Some(sum.compared_extents), Some(sum.verified_extents));
    if let Some(repair) = &mut quiesce.repair {
        repair.repaired_extents = Some(sum.repaired_extents);
    }
    for disk in &mut turn.status.disks {
        disk.verified_bytes = order.disks.iter().find(|d| d.device == disk.device).map_or(0, |d| d.size_bytes);
    }
    true
}

/// What the comparisons of all disks came to.
#[derive(Default)]
struct Sum {
    hashes: Vec<String>,
    compared_extents: u64,
    verified_extents: u64,
    repaired_extents: u64,
    /// Until the last one ends, as far as its pace tells.
    seconds_left: u64,
}

/// A difference stood in a second reading. The first one makes that nothing is believed any more; one that was written anew (`repaired`)
/// and is there again is the end.
fn different(turn: &mut Turn<'_>, memory: &mut Memory, quiesce: &mut QuiesceStatus, repaired: bool, differs: String) {
    if repaired {
        let message =
            format!("{differs}, also after that was written anew. Do not start the target; release the source.");
        turn.problem("NotEqual", message);
    } else if may_repair(turn, memory, quiesce) {
        turn.soon();
        repair(turn, memory, quiesce, format!("{differs}, although all was written to it: look at the storage."));
    } else {
        turn.problem("NotEqual", format!("{differs}. Do not start the target; release the source."));
    }
}

/// How long a comparison has to run before its pace tells when it will end.
const PACE_SECONDS: u64 = 10;

fn seconds_left(size_bytes: u64, done_bytes: u64, seconds: u64) -> u64 {
    if seconds < PACE_SECONDS || done_bytes == 0 {
        return 0;
    }
    let left = u128::from(size_bytes.saturating_sub(done_bytes)) * u128::from(seconds) / u128::from(done_bytes);
    u64::try_from(left).unwrap_or(u64::MAX)
}

/// A repair that cannot end in time only makes the outage longer.
fn give_up_if_too_slow(turn: &mut Turn<'_>, memory: &mut Memory, quiesce: &QuiesceStatus, seconds_left: u64) {
    let limit = turn.order.repair_within_seconds;
    if seconds_off(turn, quiesce).saturating_add(seconds_left) > u64::from(limit) {
        let message = format!(
            "What differs is being written anew, which would take {seconds_left} s more: the source would be off for longer than {limit} s. Its disks are whole: release it."
        );
        fail(turn, memory, "RepairTooSlow", message);
    }
}

/// Under what the write counters may be believed; `None`: every extent is to be compared.
///
/// They count what passes the mirror. Nothing passed it by if the guest shut itself down, no other QEMU was ever seen with its disks, and
/// the mirror was there for as long as the guest was seen running.
fn proviso(turn: &Turn<'_>, domain: &DomainSeen, memory: &Memory, quiesce: &QuiesceStatus) -> Option<Proviso> {
    let attempt = memory.attempt.as_ref()?;
    let held_by_it_alone =
        |device| memory.holders.get(device).is_some_and(|holders| holders.iter().all(|holder| *holder == attempt.qemu));
    let believed = quiesce.how == Some(HowOff::Clean)
        && !attempt.cut
        && turn.order.limits.verify_mib_per_second > 0
        && turn.order.disks.iter().all(|disk| held_by_it_alone(&disk.device));
    believed.then(|| Proviso {
        relay_instance: attempt.relay_instance.clone(),
        interruptions: domain.interruptions,
        target_version: turn.order.target_version.clone(),
    })
}
