//! `Quiesce`: from a mirror in sync to a source that is off. [`prove`] takes it from there.
//!
//! Until the guest is off, whatever goes wrong puts autostart and mark back and leaves the guest running; the order has then failed and
//! is not tried again under its epoch, for the hour that was chosen for it is over. Once the guest is off nothing here starts it: only
//! `Release` does.

use super::effect::Effect;
use super::memory::{Failure, MarkState, Memory};
use super::mirror;
use super::prove::{may_repair, prove};
use super::seen::{CommandSeen, DomainSeen, Power, ShutdownBy};
use super::turn::Turn;
use crate::api::block_copy::{DiskCopy, QuiesceStatus};
use crate::api::shutdown::{GuestCommand, OnCommandFailure, OnShutdownTimeout};

/// How long an order may wait for a mirror that is not in sync at that moment.
const PATIENCE_SECONDS: u64 = 30;
/// A guest may miss the request while it boots; repeating it does no harm.
const REPEAT_SHUTDOWN_SECONDS: u64 = 10;

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
    memory.repair = None;
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

/// A disk that was added or exchanged after the shutdown was requested would be left behind.
pub(super) fn changed_in_the_shutdown(turn: &mut Turn<'_>, domain: &DomainSeen, memory: &mut Memory) -> bool {
    let Some(what) = domain.machine.as_ref().ok().and_then(|machine| mirror::changed(turn, machine, memory)) else {
        return false;
    };
    let message =
        format!("{what} It was changed while the guest was asked to shut down: release the source, and plan again.");
    fail(turn, memory, "SourceChanged", message);
    true
}

/// The shutdown was sent; the guest is not off yet.
fn await_off(turn: &mut Turn<'_>, domain: &DomainSeen, memory: &mut Memory, quiesce: &QuiesceStatus) {
    mirror::report(turn, domain, memory);
    remember_who(domain, memory);
    if changed_in_the_shutdown(turn, domain, memory) {
        return;
    }
    if let Some(relay) = turn.relay() {
        let broken = match &memory.attempt {
            Some(attempt) => mirror::relay_broken(turn, attempt, relay),
            None => Some("no copy was running".into()),
        };
        if let Some(why) = broken {
            let broke = format!("The copy broke while the guest was asked to shut down: {why}.");
            if !may_repair(turn, memory, quiesce) {
                let message = format!("{broke} The source is left as it is: release it, or copy again.");
                return fail(turn, memory, "NotInSync", message);
            }
            // It cannot be taken back that the guest was asked.
            turn.problem("CopyBroken", format!("{broke} When it is off, what differs is written anew."));
        }
        // The relay was looked at before the domain: a power-off that ended the connection would be seen by now.
        let cut_off = |disk: &DiskCopy| relay.exports.get(&disk.device).is_some_and(|export| !export.connected);
        if let Some(attempt) = &mut memory.attempt
            && matches!(domain.power, Power::Running | Power::Paused)
        {
            attempt.cut |= turn.order.disks.iter().any(cut_off);
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

pub(super) fn remember_who(domain: &DomainSeen, memory: &mut Memory) {
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
    for disk in &mut turn.status.disks {
        disk.verified_bytes = 0;
    }
    let message = "Somebody started the source after it was off: the target is behind it. Do not start the target; release the source.";
    fail(turn, memory, "SourceStartedAgain", message.into());
}

/// The order has failed for good; [`stay_failed`] puts back what it changed.
pub(super) fn fail(turn: &mut Turn<'_>, memory: &mut Memory, reason: &str, message: String) {
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
