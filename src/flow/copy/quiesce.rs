//! `Quiesce`: from a mirror in sync to a source that is proven off and a target that is proven equal.
//!
//! Until the guest is off, whatever goes wrong puts autostart and mark back and leaves the guest running; the order has then failed and
//! is not tried again under its epoch, for the hour that was chosen for it is over. Once the guest is off nothing here starts it: only
//! `Release` does.

use super::effect::Effect;
use super::memory::{Failure, MarkState, Memory};
use super::mirror;
use super::seen::{CommandSeen, ComparisonSeen, DomainSeen, Fact, Power, ProcessId, ProcessesSeen, ShutdownBy};
use super::turn::Turn;
use crate::api::block_copy::{HowOff, MirrorState, QuiesceStatus, Want};
use crate::api::shutdown::{GuestCommand, OnCommandFailure, OnShutdownTimeout};

/// How long an order may wait for a mirror that is not in sync at that moment.
const PATIENCE_SECONDS: u64 = 30;
/// A guest may miss the request while it boots; repeating it does no harm.
const REPEAT_SHUTDOWN_SECONDS: u64 = 10;
/// How long to wait for libvirt's event that tells guest from host, after the state says off.
const EVENT_SECONDS: u64 = 2;
/// How long a relay may take to end after it was asked to.
const RELAY_END_SECONDS: u64 = 5;

/// Follows the order `Quiesce`.
pub(super) fn quiesce(turn: &mut Turn<'_>, domain: &DomainSeen, memory: &mut Memory) {
    turn.soon();
    let off = matches!(domain.power, Power::Off { .. });
    let requested = turn.shutdown_requested();
    let seen_off = turn.status.quiesce.as_ref().is_some_and(|quiesce| quiesce.off_by_libvirt_at.is_some());
    memory.shut_down |= seen_off || (off && requested);
    if memory.shut_down && !off {
        // Never mirrored again: the target may be running, and the source is behind it or ahead of it.
        return started_again(turn, domain, memory);
    }
    if let Some(failure) = memory.quiesce_failed.clone().filter(|failure| failure.epoch == turn.order.epoch) {
        return stay_failed(turn, domain, memory, off, &failure);
    }
    let quiesce = turn.status.quiesce.clone().unwrap_or_default();
    let marked =
        turn.own_mark(domain).is_some_and(|mark| mark.state == MarkState::Cutover && mark.epoch == turn.order.epoch);
    match domain.power {
        Power::Off { orderly } if requested => prove(turn, domain, memory, quiesce, orderly),
        Power::Off { .. } => {
            mirror::report(turn, domain, memory);
            super::not_running(turn, domain);
        }
        Power::Running | Power::Paused | Power::ShuttingDown if requested && marked => {
            await_off(turn, domain, memory, &quiesce)
        }
        Power::Running | Power::Paused => prepare(turn, domain, memory, marked),
        Power::ShuttingDown => {
            mirror::report(turn, domain, memory);
            super::not_running(turn, domain);
        }
    }
}

/// Everything up to the shutdown request.
fn prepare(turn: &mut Turn<'_>, domain: &DomainSeen, memory: &mut Memory, marked: bool) {
    turn.status.quiesce = None;
    mirror::mirror(turn, domain, memory);
    turn.status.reached = None;
    turn.soon();
    let usable = turn.status.in_sync.is_yes() && domain.power == Power::Running && turn.status.problem.is_none();
    if !usable {
        return not_in_sync(turn, memory);
    }
    if mirror::qemu_of_all_disks(turn).is_none() {
        return turn.problem(
            "HostProofImpossible",
            "No single QEMU process of this domain is seen holding all of its disks: that it is off could not be proven. It was not shut down.".into(),
        );
    }
    if !marked || domain.autostart {
        let before = turn.own_mark(domain).and_then(|mark| mark.autostart_was);
        memory.autostart_was = memory.autostart_was.or(before).or(Some(domain.autostart));
        // The mark goes first: it remembers what autostart was.
        turn.mark(domain, memory, MarkState::Cutover);
        turn.effects.push(Effect::SetAutostart(false));
        return;
    }
    if let Some(command) = &turn.order.shutdown.before
        && !ran_in_guest(turn, memory, command)
    {
        return;
    }
    memory.shutdown_by = None;
    memory.forced = false;
    memory.reboots = domain.reboots;
    memory.shutdown_sent_at = Some(turn.now.clone());
    turn.status.quiesce = Some(QuiesceStatus {
        marked_at: Some(turn.moment()),
        command: memory.command.as_ref().filter(|(epoch, _)| *epoch == turn.order.epoch).map(|(_, it)| it.clone()),
        shutdown_requested_at: Some(turn.moment()),
        ..QuiesceStatus::default()
    });
    turn.effects.push(Effect::Shutdown(turn.order.shutdown.method));
}

/// Has the guest's agent run the command that comes before the shutdown. True when that is over and the shutdown may follow.
fn ran_in_guest(turn: &mut Turn<'_>, memory: &mut Memory, command: &GuestCommand) -> bool {
    let program = command.command.first().map_or("", String::as_str);
    if let Some((epoch, outcome)) = memory.command.clone()
        && epoch == turn.order.epoch
    {
        if outcome.exit_code == Some(0) || command.on_failure == OnCommandFailure::GoOn {
            return true;
        }
        let ended = outcome.exit_code.map_or("did not end by itself".to_owned(), |code| format!("ended with {code}"));
        let message =
            format!("The command {program} in the guest {ended}, so it was not shut down: {}", outcome.output);
        fail(turn, memory, "GuestCommandFailed", message);
        return false;
    }
    match &turn.seen.command {
        Some(CommandSeen::Ended(outcome)) => memory.command = Some((turn.order.epoch, outcome.clone())),
        Some(CommandSeen::Running) => {}
        None => turn.effects.push(Effect::RunInGuest(command.clone())),
    }
    turn.problem("GuestCommandRunning", format!("The command {program} runs in the guest before it is shut down."));
    false
}

fn not_in_sync(turn: &mut Turn<'_>, memory: &mut Memory) {
    // Whatever the mirror's own problem is, it is the reason why this order waits.
    let why = turn
        .status
        .problem
        .take()
        .map(|problem| format!(" ({}: {})", problem.reason, problem.message))
        .unwrap_or_default();
    let waiting = turn
        .before
        .problem
        .as_ref()
        .filter(|before| before.reason == "AwaitingSync" && turn.before.epoch == Some(turn.order.epoch));
    let waited = waiting.map_or(0, |before| turn.seconds_since(before.since.0));
    if waited >= PATIENCE_SECONDS {
        let message = format!(
            "The disks were not in sync within {PATIENCE_SECONDS} s, so the guest was not shut down{why}. Order again."
        );
        return fail(turn, memory, "NotInSync", message);
    }
    turn.problem(
        "AwaitingSync",
        format!("The disks are not in sync at this moment; the guest was not shut down{why}."),
    );
}

/// The shutdown was sent; the guest is not off yet.
fn await_off(turn: &mut Turn<'_>, domain: &DomainSeen, memory: &mut Memory, quiesce: &QuiesceStatus) {
    mirror::report(turn, domain, memory);
    remember_who(domain, memory);
    if let Some(relay) = turn.relay() {
        let broken = match &memory.attempt {
            Some(attempt) => mirror::relay_broken(turn, attempt, relay),
            None => Some("no copy was running".into()),
        };
        if let Some(why) = broken {
            let message = format!(
                "The copy broke while the guest was asked to shut down: {why}. The source is left as it is: release it, or copy again."
            );
            return fail(turn, memory, "NotInSync", message);
        }
    }
    if domain.reboots > memory.reboots {
        let message =
            "The guest rebooted instead of powering off. It was left running; look at its console, then order again.";
        return fail(turn, memory, "GuestRebooted", message.into());
    }
    let limit = u64::from(turn.order.shutdown.timeout_seconds);
    let late = quiesce.shutdown_requested_at.as_ref().is_some_and(|at| turn.seconds_since(at.0) >= limit);
    if late && turn.order.shutdown.on_timeout == OnShutdownTimeout::ForceOff {
        memory.forced = true;
        turn.problem("ForcingOff", format!("The guest did not power off within {limit} s: it is powered off."));
        return turn.effects.push(Effect::PowerOff);
    }
    if late {
        let message = format!(
            "The guest did not power off within {limit} s after it was asked to. It was left running; look at its console, then order again."
        );
        return fail(turn, memory, "ShutdownTimedOut", message);
    }
    let repeat = memory.shutdown_sent_at.as_ref().is_none_or(|at| turn.seconds_since(at.0) >= REPEAT_SHUTDOWN_SECONDS);
    if repeat && domain.power == Power::Running {
        memory.shutdown_sent_at = Some(turn.now.clone());
        turn.effects.push(Effect::Shutdown(turn.order.shutdown.method));
    }
}

fn remember_who(domain: &DomainSeen, memory: &mut Memory) {
    // A word that it was the host stays: a later one cannot make that a clean shutdown.
    if memory.shutdown_by != Some(ShutdownBy::Host) {
        memory.shutdown_by = domain.shutdown_by.or(memory.shutdown_by);
    }
}

/// Somebody started the source after it was seen off: every proof is void.
fn started_again(turn: &mut Turn<'_>, domain: &DomainSeen, memory: &mut Memory) {
    mirror::report(turn, domain, memory);
    let requested = turn.status.quiesce.take();
    turn.status.quiesce = requested.map(|quiesce| QuiesceStatus {
        marked_at: quiesce.marked_at,
        shutdown_requested_at: quiesce.shutdown_requested_at,
        ..QuiesceStatus::default()
    });
    let message = "Somebody started the source after it was off: the target is behind it. Do not start the target; release the source.";
    fail(turn, memory, "SourceStartedAgain", message.into());
}

/// The order has failed for good; [`stay_failed`] puts back what it changed.
fn fail(turn: &mut Turn<'_>, memory: &mut Memory, reason: &str, message: String) {
    memory.quiesce_failed = Some(Failure { epoch: turn.order.epoch, reason: reason.into(), message: message.clone() });
    turn.status.problem = None;
    turn.problem(reason, message);
}

fn stay_failed(turn: &mut Turn<'_>, domain: &DomainSeen, memory: &mut Memory, off: bool, failure: &Failure) {
    turn.problem(&failure.reason, failure.message.clone());
    if off || domain.power == Power::ShuttingDown {
        return mirror::report(turn, domain, memory);
    }
    restore(turn, domain, memory);
    mirror::mirror(turn, domain, memory);
    turn.status.reached = None;
}

/// Puts back the autostart and the mark of a domain that runs on. Nothing is put back while it is off: that is for `Release`.
pub(super) fn restore(turn: &mut Turn<'_>, domain: &DomainSeen, memory: &mut Memory) {
    if !matches!(domain.power, Power::Running | Power::Paused) {
        return;
    }
    let own = turn.own_mark(domain);
    let was = memory.autostart_was.or(own.as_ref().and_then(|mark| mark.autostart_was));
    if let Some(was) = was.filter(|was| *was != domain.autostart) {
        turn.effects.push(Effect::SetAutostart(was));
        return;
    }
    // Autostart is back first; only then may its memory go.
    memory.autostart_was = None;
    turn.mark(domain, memory, MarkState::Claimed);
}

/// The guest is off after our request: prove it, drain, end the writers, compare. One proof after the other, each level-triggered.
fn prove(turn: &mut Turn<'_>, domain: &DomainSeen, memory: &mut Memory, mut quiesce: QuiesceStatus, orderly: bool) {
    mirror::report(turn, domain, memory);
    remember_who(domain, memory);
    let done = prove_off(turn, domain, memory, &mut quiesce, orderly)
        && prove_drained(turn, memory, &mut quiesce)
        && end_writers(turn, memory, &mut quiesce)
        && prove_equal(turn, domain, &mut quiesce);
    turn.status.quiesce = Some(quiesce);
    if done {
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

fn prove_drained(turn: &mut Turn<'_>, memory: &mut Memory, quiesce: &mut QuiesceStatus) -> bool {
    if quiesce.drained_at.is_some() {
        set_states(turn, MirrorState::Drained);
        return true;
    }
    let Some(relay) = turn.relay() else { return false };
    let broken = match &memory.attempt {
        Some(attempt) => mirror::relay_broken(turn, attempt, relay),
        None => Some("no copy was running".into()),
    };
    if let Some(why) = broken {
        let message = format!(
            "What the relay held was lost after the guest powered off: {why}. The source's disks are whole: release it."
        );
        fail(turn, memory, "NotInSync", message);
        return false;
    }
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

/// Ends every relay that ever wrote for this migration and waits until nothing of it is left, not even a socket with data under way.
fn end_writers(turn: &mut Turn<'_>, memory: &Memory, quiesce: &mut QuiesceStatus) -> bool {
    let Fact::Known(processes) = &turn.seen.processes else { return false };
    let alive: Vec<&ProcessId> = memory.writers.iter().filter(|writer| processes.alive.contains(writer)).collect();
    if !alive.is_empty() {
        quiesce.writers_gone_at = None;
        quiesce.equal_at = None;
        let asked = quiesce.drained_at.as_ref().map_or(0, |at| turn.seconds_since(at.0));
        if let Fact::Known(relay) = &turn.seen.relay
            && alive.iter().any(|writer| writer.pid == relay.pid)
        {
            turn.close_exports(relay, false);
        }
        let force = asked >= RELAY_END_SECONDS;
        turn.effects.extend(alive.into_iter().map(|process| Effect::EndRelay { process: process.clone(), force }));
        return false;
    }
    if quiesce.writers_gone_at.is_some() {
        return true;
    }
    if let Some(socket) = processes.orphan_sockets.first() {
        turn.problem(
            "WritersNotGone",
            format!("A connection without a process may still deliver data: {socket}. Waiting for it to end."),
        );
        return false;
    }
    quiesce.writers_gone_at = Some(turn.moment());
    true
}

/// Equal is what this driver compared: what was recorded by one that is gone is compared again, for nobody watched the disks meanwhile.
fn prove_equal(turn: &mut Turn<'_>, domain: &DomainSeen, quiesce: &mut QuiesceStatus) -> bool {
    let compared_at = quiesce.equal_at.take();
    let Ok(machine) = &domain.machine else { return false };
    let order = turn.order;
    let mut hashes = Vec::new();
    for disk in &order.disks {
        let path = machine.disks.iter().find(|source| source.device == disk.device).map(|source| source.path.clone());
        let comparison = turn.seen.comparisons.get(&disk.device);
        match (comparison, path) {
            (Some(ComparisonSeen::Equal { blake3 }), _) => hashes.push(blake3.clone()),
            (Some(ComparisonSeen::Different { first_difference_offset }), _) => turn.problem(
                "NotEqual",
                format!("Disk {} differs from its target at byte {first_difference_offset}. Do not start the target; release the source.", disk.device),
            ),
            (Some(ComparisonSeen::Running { .. }), _) => {}
            (Some(ComparisonSeen::Failed(why)), Some(source_path)) => {
                turn.problem("CompareFailed", format!("Disk {} could not be compared: {why}. It is tried again.", disk.device));
                turn.effects.push(Effect::Compare { disk: disk.clone(), source_path });
            }
            (None, Some(source_path)) => turn.effects.push(Effect::Compare { disk: disk.clone(), source_path }),
            (_, None) => turn.problem("SourceChanged", format!("The domain has no disk {} any more.", disk.device)),
        }
    }
    if hashes.len() < order.disks.len() {
        return false;
    }
    quiesce.equal_at = compared_at.or_else(|| Some(turn.moment()));
    quiesce.blake3 = hashes;
    true
}
