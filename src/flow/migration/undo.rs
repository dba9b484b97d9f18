//! The way back. Before the target was ordered to boot the source is simply given back. After that the target is shut down first, and
//! the source is given back only when nothing can start the target any more:
//!
//! ```text
//!   shut down (asked, then forced) -> seen off -> description changed: every older order to power on has a stale ETag, and is refused
//!     -> seen off with the new description -> no task on it was open, and then it was still off -> the source is given back
//! ```
//!
//! The last look comes after the change, so an order that Prism had accepted before the change is seen: as a task, or as a target that runs.

use super::decide::{Draft, Input, order, reached};
use super::effect::Effect;
use super::seen::{Fact, TargetVm};
use super::step::{self, Progress, both_would_run, clip};
use super::target_order::{pressed, recorded};
use super::want::wanted;
use crate::api::VmMigrationStatus;
use crate::api::block_copy::Want;
use crate::api::common::{MicroTime, Problem, Time, Tri};
use crate::api::vm_migration::{CutoverStatus, RollbackStatus, UndoStatus};

/// Whether the way back is taken: a person wants it, or it was begun.
pub fn is_wanted(input: &Input<'_>) -> bool {
    input.spec.rollback == Some(true) || input.status.cutover.as_ref().is_some_and(|cutover| cutover.undo.is_some())
}

/// Whether the target was ordered to boot and that is now undone.
pub fn of_boot(input: &Input<'_>) -> bool {
    is_wanted(input) && input.status.cutover.as_ref().is_some_and(|cutover| cutover.power_on.is_some())
}

/// The record with which undoing a boot begins.
pub fn begun(input: &Input<'_>, draft: &Draft, why: &str) -> UndoStatus {
    UndoStatus {
        why: why.into(),
        begun_at: MicroTime(input.now),
        epoch: draft.status.epoch.unwrap_or(0),
        shut_down: None,
        power_off: None,
        fence: None,
        fenced_at: None,
        proven_off_at: None,
    }
}

/// What a rollback would do now, for a person who thinks about it.
pub fn outlook(input: &Input<'_>, status: &VmMigrationStatus) -> RollbackStatus {
    let cutover = status.cutover.clone().unwrap_or_default();
    // Nothing is written from the source's power-off to the target's boot, so this is early enough, whichever order booted it.
    let since = cutover.power_on.as_ref().map(|order| cutover.source_off_at.clone().unwrap_or(order.at.clone()));
    let adopted = status.source.as_ref().is_some_and(|source| source.already_migrated);
    let under_way = cutover.undo.is_some();
    let finalised =
        !under_way && cutover.target_on_at.is_some() && (input.spec.finalize == Some(true) || input.deleting);
    let possible = !adopted && !finalised;
    let how = if under_way { "under way" } else { "possible" };
    let message = match &since {
        _ if adopted => "not possible: the source was moved away by an earlier migration".into(),
        _ if finalised => "not possible any more".into(),
        None => format!("{how}; nothing would be lost"),
        Some(MicroTime(since)) if under_way => {
            format!("{how}; what was written on the target since {since:.0} is lost")
        }
        Some(MicroTime(since)) => format!("{how}; what was written on the target since {since:.0} would be lost"),
    };
    RollbackStatus { possible, loses_since: since.filter(|_| possible), message }
}

/// Goes back to a source that runs as it did before, whatever was reached.
pub fn undo(input: &Input<'_>, draft: &mut Draft) -> Progress {
    let found = input.status.source.as_ref();
    if found.is_some_and(|source| source.already_migrated) {
        return Progress::stalled(
            "AlreadyMigrated",
            "the source bears the mark of a finished cutover: its machine runs elsewhere, and there is nothing to roll back",
        );
    }
    if found.is_none() && matches!(&input.seen.copy, Fact::Known(None)) {
        return Progress::stalled("RolledBack", "nothing was begun; remove spec.rollback to go on");
    }
    let off = if of_boot(input) {
        prove_target_off(input, draft)
    } else {
        give_up_cutover(input, draft);
        both_would_run(input).map_or(Ok(()), Err)
    };
    match off {
        Ok(()) => give_back(input, draft),
        Err(progress) => progress,
    }
}

/// A cutover that was called off is over, even if the field is removed before the source is given back.
fn give_up_cutover(input: &Input<'_>, draft: &mut Draft) {
    if let Some(cutover) = draft.status.cutover.as_mut().filter(|cutover| cutover.ordered_at.is_some()) {
        let message = "spec.rollback was set before the target was ordered to boot".into();
        let called_off = || Problem { reason: "RolledBack".into(), message, since: Time(input.now) };
        cutover.abandoned.get_or_insert_with(called_off);
    }
}

/// The target is off, and stays off. `Err`: not yet.
fn prove_target_off(input: &Input<'_>, draft: &mut Draft) -> Result<(), Progress> {
    let mut cutover = draft.status.cutover.clone().unwrap_or_default();
    let Some(mut undo) = cutover.undo.clone() else {
        cutover.undo = Some(begun(input, draft, "spec.rollback is set"));
        draft.status.cutover = Some(cutover);
        return Err(Progress::waits("RollingBack", "the target is shut down, then the source is started again"));
    };
    let outcome = target_off(input, draft, &mut cutover, &mut undo);
    cutover.undo = Some(undo);
    draft.status.cutover = Some(cutover);
    if outcome.is_err() {
        // Until then the source stays off.
        let want = wanted(input.spec, &draft.status, input.deleting);
        order(input, draft, want);
    }
    outcome
}

fn target_off(
    input: &Input<'_>,
    draft: &mut Draft,
    cutover: &mut CutoverStatus,
    undo: &mut UndoStatus,
) -> Result<(), Progress> {
    let waits = |message: &str| Err(Progress::waits("RollingBack", message));
    let ext_id = input.status.target.as_ref().map(|pinned| pinned.ext_id.as_str()).unwrap_or_default();
    let vm = match &input.seen.target {
        Fact::Known(vms) => vms.iter().find(|vm| vm.ext_id == ext_id),
        // The source may be running already, and the order stands.
        Fact::Unknown(_) | Fact::NotAsked if undo.proven_off_at.is_some() => return Ok(()),
        Fact::Unknown(refusal) => return Err(Progress::Waits { refusal: refusal.clone(), stalled: false }),
        Fact::NotAsked => return waits("asking Prism for the target"),
    };
    let Some(vm) = vm else {
        // A VM that is gone cannot be started.
        undo.proven_off_at.get_or_insert(MicroTime(input.now));
        return Ok(());
    };
    match vm.on {
        Tri::Yes if undo.proven_off_at.is_some() => Err(Progress::stalled(
            "TargetRunning",
            format!(
                "somebody powered the target {} on after it was shut down for good: power it off in Prism at once, the source is being started",
                vm.name
            ),
        )),
        Tri::Yes => {
            cutover.target_on_at.get_or_insert(MicroTime(input.now));
            undo.fenced_at = None;
            Err(stop(input, draft, undo, vm))
        }
        Tri::Unknown => waits("Prism does not tell whether the target is off"),
        Tri::No if undo.proven_off_at.is_some() => Ok(()),
        Tri::No => fence(input, draft, undo, vm),
    }
}

/// Asks the target's guest to power off, and powers it off when it had time enough: what it writes is given up in any case.
fn stop(input: &Input<'_>, draft: &mut Draft, undo: &mut UndoStatus, vm: &TargetVm) -> Progress {
    let patience = draft.status.plan.as_ref().map_or(0, |plan| i64::from(plan.shutdown.timeout_seconds));
    let (ext_id, asked) = (vm.ext_id.clone(), input.now.duration_since(undo.begun_at.0).as_secs());
    if asked < patience {
        if let Some(order) = pressed(input, &mut undo.shut_down, &vm.etag) {
            draft.effects.push(Effect::ShutDownTarget { ext_id, order });
        }
        return Progress::waits("RollingBack", "the target's guest is asked to power off");
    }
    if let Some(order) = recorded(input, &mut undo.power_off, "power-off", &vm.etag) {
        draft.effects.push(Effect::PowerOffTarget { ext_id, order });
    }
    Progress::waits(
        "RollingBack",
        format!("the target's guest did not power off within {patience} s: it is powered off"),
    )
}

/// Makes every order to power on that was ever given for this target stale, then looks once more.
fn fence(input: &Input<'_>, draft: &mut Draft, undo: &mut UndoStatus, vm: &TargetVm) -> Result<(), Progress> {
    let description = fenced(&vm.description, undo.epoch);
    if vm.description != description {
        undo.fenced_at = None;
        if let Some(order) = recorded(input, &mut undo.fence, "describe", &vm.etag) {
            draft.effects.push(Effect::DescribeTarget { ext_id: vm.ext_id.clone(), order, description });
        }
        return Err(Progress::waits("RollingBack", "the target is off; older orders to power it on are made void"));
    }
    if undo.fenced_at.is_none() {
        undo.fenced_at = Some(MicroTime(input.now));
        return Err(Progress::waits("RollingBack", "the target is off; looking whether a task on it is still open"));
    }
    match vm.busy {
        Tri::No => {
            undo.proven_off_at = Some(MicroTime(input.now));
            Ok(())
        }
        Tri::Yes => Err(Progress::waits("TargetBusy", "a task on the target has not ended: it may still power it on")),
        Tri::Unknown => Err(Progress::waits("TargetBusy", "Prism does not tell whether a task on the target is open")),
    }
}

/// What the description of an undone target ends with.
const FENCE: &str = " (Drover: undone at order ";

fn fenced(description: &str, epoch: u64) -> String {
    let own = description.split(FENCE).next().unwrap_or_default();
    format!("{own}{FENCE}{epoch})")
}

/// The host side starts what it had shut down, and gives the machine up.
fn give_back(input: &Input<'_>, draft: &mut Draft) -> Progress {
    let want = if of_boot(input) { Want::Undo } else { Want::Release };
    order(input, draft, want);
    let Fact::Known(Some(copy)) = &input.seen.copy else {
        return Progress::waits("RollingBack", "starting the host-side job");
    };
    if !reached(copy, want) {
        return Progress::waits("RollingBack", "the host side gives the source back");
    }
    let state = copy.status.as_ref().and_then(|status| status.domain.as_ref()).map_or("unknown", |d| &d.state);
    let cutover = draft.status.cutover.take().unwrap_or_default();
    let begun = cutover.ordered_at.is_some() || cutover.abandoned.is_some();
    let lost = match (&cutover.target_on_at, &cutover.undo) {
        (Some(MicroTime(from)), Some(UndoStatus { why, proven_off_at: Some(MicroTime(to)), .. })) => format!(
            "; undone because {why}; the target ran from {from} to {to} at most, and what was written there is not on the source"
        ),
        _ => String::new(),
    };
    let message = format!("the source is released (libvirt: {state}){lost}; Terraform file and target VM are kept");
    if !begun {
        return Progress::stalled("RolledBack", format!("{message}. Remove spec.rollback to go on"));
    }
    // An approval that was carried out once is not carried out again by itself: a person raises the attempt.
    let undone = Problem { reason: "RolledBack".into(), message: clip(&message), since: Time(input.now) };
    let undone = cutover.abandoned.clone().filter(|before| before.reason == undone.reason).unwrap_or(undone);
    let next = if input.spec.rollback == Some(true) { "Remove spec.rollback and raise" } else { "Raise" };
    let progress = Progress::stalled("RolledBack", format!("{}. {next} spec.attempt to try again", undone.message));
    if cutover.ordered_at.is_some() {
        step::keep_cutover(&mut draft.status, cutover);
    }
    draft.status.cutover = Some(CutoverStatus { abandoned: Some(undone), ..CutoverStatus::default() });
    progress
}
