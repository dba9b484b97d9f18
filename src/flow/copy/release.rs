//! The two ends of an order: `Release` gives everything back, `Retire` leaves the source off for good.

use super::MAX_DECISION_AGE_SECONDS;
use super::effect::Effect;
use super::memory::{MarkState, Memory};
use super::mirror;
use super::seen::{DomainSeen, Fact, Power};
use super::turn::Turn;
use crate::api::block_copy::Want;

/// Longest watch over a source whose shutdown was called off: a guest that was asked may be minutes on its way down.
const MAX_WATCH_SECONDS: u64 = 600;

/// Cuts the mirror, restores autostart, starts the source if `Quiesce` shut it down, then gives up mark and claim.
///
/// Reached when neither mark nor claim is seen any more, which the next turn finds.
pub(super) fn release(turn: &mut Turn<'_>, domain: &DomainSeen, memory: &mut Memory) {
    mirror::report(turn, domain, memory);
    turn.soon();
    if !cut(turn, domain, memory) {
        return;
    }
    let own = turn.own_mark(domain);
    let was = memory.autostart_was.or(own.as_ref().and_then(|mark| mark.autostart_was));
    if let Some(was) = was.filter(|was| *was != domain.autostart) {
        return turn.effects.push(Effect::SetAutostart(was));
    }
    // The report may have been lost with its object, the claim file with a reboot: any of them tells.
    let marked = own.as_ref().is_some_and(|mark| mark.state != MarkState::Claimed);
    let we_shut_it_down = turn.shutdown_requested() || marked || memory.shut_down || memory.shutdown_sent_at.is_some();
    let sent_at = memory.shutdown_sent_at.clone().filter(|_| !memory.shut_down);
    // The request may have been sent some time after it was noted.
    let window = u64::from(turn.order.shutdown.timeout_seconds).min(MAX_WATCH_SECONDS) + MAX_DECISION_AGE_SECONDS;
    match domain.power {
        Power::Off { .. } if we_shut_it_down => {
            memory.shut_down = true;
            // A hook on the host refuses to start a domain that bears any other mark.
            if own.is_some() && !turn.mark(domain, memory, MarkState::Claimed) {
                return;
            }
            return start(turn);
        }
        Power::Running | Power::Paused if sent_at.as_ref().is_some_and(|at| turn.seconds_since(at.0) < window) => {
            return turn.problem(
                "SourceStopping",
                format!("The source was asked to power off and may still do so: it is watched for {window} s from then on, and started again if it does."),
            );
        }
        Power::ShuttingDown => {
            return turn.problem(
                "SourceStopping",
                "The source is powering off at this moment; it is started when it is off.".into(),
            );
        }
        // It runs, or it is off for reasons that are not ours. The shutdown is forgotten, so that a later one by others stays theirs.
        Power::Off { .. } | Power::Running | Power::Paused => turn.status.quiesce = None,
    }
    if own.is_some() {
        turn.effects.push(Effect::RemoveMark);
    }
    turn.effects.push(Effect::DeleteClaim);
}

fn start(turn: &mut Turn<'_>) {
    match &turn.seen.trouble {
        Some(trouble) => turn.problem(
            "StartFailed",
            format!("The source could not be started: {trouble}. It is tried again; free what it needs."),
        ),
        None => turn.problem("SourceStarting", "The source is being started again.".into()),
    }
    turn.effects.push(Effect::Start);
}

/// Ends the mirrors without anything to wait for: the relay's side goes first. True when none is left.
fn cut(turn: &mut Turn<'_>, domain: &DomainSeen, memory: &Memory) -> bool {
    let left: Vec<&String> =
        domain.mirrors.iter().filter(|(_, mirror)| mirror.ours).map(|(device, _)| device).collect();
    let closed = match &turn.seen.relay {
        Fact::Known(relay) => turn.close_exports(relay, true),
        // A relay that does not answer may hold a write: an abort would wait for it. It is ended first.
        Fact::Unknown(_) if left.is_empty() => true,
        Fact::Unknown(_) => end_writers(turn, memory),
    };
    if closed {
        turn.effects.extend(left.iter().map(|device| Effect::AbortMirror { device: (*device).clone() }));
    }
    closed && left.is_empty()
}

fn end_writers(turn: &mut Turn<'_>, memory: &Memory) -> bool {
    let Fact::Known(processes) = &turn.seen.processes else {
        turn.problem(
            "RelayUnreachable",
            "Neither the relay nor the host's processes answer: the mirror cannot be cut yet.".into(),
        );
        return false;
    };
    let alive: Vec<_> = memory.writers.iter().filter(|writer| processes.alive.contains(writer)).cloned().collect();
    let none = alive.is_empty();
    turn.effects.extend(alive.into_iter().map(|process| Effect::EndRelay { process, force: true }));
    none
}

/// The target has taken over: nothing is written any more, the source stays off and marked.
pub(super) fn keep_off(turn: &mut Turn<'_>, domain: &DomainSeen, memory: &mut Memory) {
    if kept_off(turn, domain, memory) {
        turn.status.reached = Some(Want::KeepOff);
    }
}

/// Like [`keep_off`], and the claim is given up: the mark forbids all that a claim would.
pub(super) fn retire(turn: &mut Turn<'_>, domain: &DomainSeen, memory: &mut Memory) {
    turn.soon();
    if kept_off(turn, domain, memory) {
        turn.effects.push(Effect::DeleteClaim);
    }
}

fn kept_off(turn: &mut Turn<'_>, domain: &DomainSeen, memory: &mut Memory) -> bool {
    mirror::report(turn, domain, memory);
    if !matches!(domain.power, Power::Off { .. }) {
        let done = if turn.order.power_off_source {
            turn.effects.push(Effect::PowerOff);
            "It is being powered off."
        } else {
            "Shut it down by hand at once, if the target runs: its writes go nowhere. Nothing was done here."
        };
        turn.problem("SourceRunning", format!("The source was started, but the target has taken over. {done}"));
    }
    let closed = match &turn.seen.relay {
        Fact::Known(relay) => turn.close_exports(relay, false),
        // Whatever it may still hold was proven drained before the target could take over.
        Fact::Unknown(_) => true,
    };
    let own = turn.own_mark(domain);
    memory.autostart_was = memory.autostart_was.or(own.and_then(|mark| mark.autostart_was));
    let marked = turn.mark(domain, memory, MarkState::Migrated);
    if domain.autostart {
        turn.effects.push(Effect::SetAutostart(false));
    }
    closed && marked && !domain.autostart && turn.status.problem.is_none()
}
