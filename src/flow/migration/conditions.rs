//! Conditions and the words for people, projected from the rest of the status. Nothing in Drover reads them back.

use super::decide::Input;
use super::seen::Refusal;
use super::step::Progress;
use super::watch;
use crate::api::VmMigrationStatus;
use crate::api::common::{Condition, MicroTime, Time, Tri};

/// Waits that are nobody's failure: a person, or the hour, ends them.
const AWAITS_A_PERSON: &[&str] =
    &["Approval", "ApprovalVoid", "AwaitingMerge", "Held", "NotBefore", "PlanApproval", "PlanApprovalVoid"];

/// Rewrites `conditions`, `phase` and `downtime`.
pub fn project(input: &Input<'_>, status: &mut VmMigrationStatus, outcome: &Progress) {
    let (reason, message, stalled) = match outcome {
        Progress::Waits { refusal, stalled } => (refusal.reason.as_str(), refusal.message.as_str(), *stalled),
        Progress::Done => ("Migrated", done_message(status), false),
    };
    let done = matches!(outcome, Progress::Done);
    let (reason, message) = (reason.to_owned(), message.to_owned());
    let awaits_person = !done && AWAITS_A_PERSON.contains(&reason.as_str());
    let mut put = |name: &str, holds: bool, reason: &str, message: &str| {
        set(&mut status.conditions, input, name, holds.into(), reason, message);
    };
    put("Ready", done, &reason, &message);
    put("Reconciling", !done && !stalled && !awaits_person, &reason, &message);
    put("Stalled", stalled, &reason, &message);
    milestones(input, status);
    watched(input, status);
    status.phase = Some(phase(status, outcome));
    status.downtime = downtime(status);
}

fn done_message(status: &VmMigrationStatus) -> &'static str {
    match &status.source {
        Some(source) if source.already_migrated => {
            "the source bears the mark of a finished cutover: adopted as it is, nothing was touched"
        }
        Some(_) | None => "the target runs; the source is off, marked and kept until spec.finalize is set",
    }
}

fn milestones(input: &Input<'_>, status: &mut VmMigrationStatus) {
    let cutover = status.cutover.clone().unwrap_or_default();
    let approved = status.approval.as_ref().is_some_and(|approval| approval.void.is_none());
    let void = status.approval.as_ref().and_then(|approval| approval.void.clone());
    let in_sync = !status.disks.is_empty()
        && status.disks.iter().all(|disk| matches!(disk.state.as_str(), "Ready" | "Draining" | "Drained"));
    let reached = [
        ("Discovered", status.source.is_some(), "Found"),
        ("Planned", status.plan.is_some(), "Frozen"),
        ("Published", status.terraform.is_some(), "Pushed"),
        ("Provisioned", status.target.is_some(), "Found"),
        ("Mirrored", in_sync, "Ready"),
        ("SourceOff", cutover.source_off_at.is_some(), "ShutDown"),
        ("Equal", cutover.proven_equal_at.is_some(), "Compared"),
        ("TargetOn", cutover.target_on_at.is_some(), "PoweredOn"),
        ("GuestUp", cutover.reachable_at.is_some(), "Heard"),
    ];
    for (name, holds, reason) in reached {
        set(&mut status.conditions, input, name, holds.into(), if holds { reason } else { "NotYet" }, "");
    }
    if let (Some(repair), true) = (cutover.proofs.and_then(|proofs| proofs.repair), cutover.proven_equal_at.is_some()) {
        let extents = repair.repaired_extents.unwrap_or_default();
        let message = format!("{extents} extents of 4 MiB were written anew from the source's disks: {}", repair.why);
        set(&mut status.conditions, input, "Equal", Tri::Yes, "Repaired", &message);
    }
    let reason = if approved {
        "Bound"
    } else if void.is_some() {
        "Void"
    } else {
        "NotYet"
    };
    set(&mut status.conditions, input, "Approved", approved.into(), reason, void.as_deref().unwrap_or(""));
}

/// What the watch over both sides sees.
fn watched(input: &Input<'_>, status: &mut VmMigrationStatus) {
    let cutover = status.cutover.as_ref();
    let taken_over = cutover.is_some_and(|cutover| cutover.target_on_at.is_some() && cutover.undo.is_none());
    let (value, refusal) = match (taken_over, input.spec.finalize) {
        (false, _) => (Tri::No, Refusal::new("NotYet", "")),
        (true, Some(true)) => (Tri::Unknown, Refusal::new("Finalised", "nobody watches any more")),
        (true, Some(false) | None) => watch::only_target_runs(input),
    };
    set(&mut status.conditions, input, "OnlyTargetRuns", value, &refusal.reason, &refusal.message);
}

fn set(conditions: &mut Vec<Condition>, input: &Input<'_>, name: &str, value: Tri, reason: &str, message: &str) {
    let value = match value {
        Tri::Yes => "True",
        Tri::No => "False",
        Tri::Unknown => "Unknown",
    };
    let since = conditions
        .iter()
        .find(|condition| condition.type_ == name && condition.status == value)
        .map_or(Time(input.now), |condition| condition.last_transition_time.clone());
    let condition = Condition {
        type_: name.into(),
        status: value.into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation: Some(input.generation),
        last_transition_time: since,
    };
    match conditions.iter_mut().find(|condition| condition.type_ == name) {
        Some(slot) => *slot = condition,
        None => conditions.push(condition),
    }
}

fn phase(status: &VmMigrationStatus, outcome: &Progress) -> String {
    match outcome {
        Progress::Done => "Migrated".into(),
        Progress::Waits { stalled: true, refusal } if refusal.reason == "RolledBack" => "RolledBack".into(),
        Progress::Waits { stalled: true, .. } => "Stalled".into(),
        Progress::Waits { stalled: false, .. } => {
            let current = status.steps.iter().rev().find(|step| step.finished_at.is_none());
            current.map_or_else(|| "Discover".into(), |step| step.name.clone())
        }
    }
}

/// The outage as a user of the machine meets it: from the shutdown request until the guest is heard again.
fn downtime(status: &VmMigrationStatus) -> Option<String> {
    let cutover = status.cutover.as_ref()?;
    let MicroTime(down) = cutover.shutdown_requested_at.as_ref()?;
    let MicroTime(up) = cutover.reachable_at.as_ref()?;
    Some(format!("{:.1} s", up.duration_since(*down).as_secs_f64()))
}
