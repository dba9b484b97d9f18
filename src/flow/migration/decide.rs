//! The decision: walk the step table to the first step that is not done, and say what it needs.

use std::time::Duration;

use jiff::Timestamp;

use super::conditions;
use super::effect::Effect;
use super::ledger;
use super::seen::{Fact, Refusal, Seen};
use super::step::{self, Progress, Step};
use super::undo;
use super::want::wanted;
use super::whitelist;
use crate::api::block_copy::{BlockCopySpec, Claim, Want};
use crate::api::common::Time;
use crate::api::vm_migration::{OnDifference, OnSourceStarted, Waiting};
use crate::api::{BlockCopy, MIGRATION_FINALIZER, VmMigrationSpec, VmMigrationStatus};

/// All that a decision depends on.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub uid: &'a str,
    pub generation: i64,
    /// The object is being deleted.
    pub deleting: bool,
    /// Our finalizer is on the object.
    pub held: bool,
    /// The field manager that last wrote `spec.approved`, if the API server told.
    pub approved_by: Option<&'a str>,
    /// What the last turn met when it acted, if it failed.
    pub last_failure: Option<&'a Refusal>,
    pub spec: &'a VmMigrationSpec,
    pub status: &'a VmMigrationStatus,
    pub seen: &'a Seen,
    pub now: Timestamp,
}

/// What follows from an [`Input`].
#[derive(Debug)]
pub struct Decision {
    /// To be recorded before any effect is carried out.
    pub status: VmMigrationStatus,
    /// To be carried out in this order.
    pub effects: Vec<Effect>,
    /// When to look again, whatever happens.
    pub wake: Duration,
}

/// A decision in the making.
#[derive(Debug)]
pub struct Draft {
    pub status: VmMigrationStatus,
    pub effects: Vec<Effect>,
}

/// How soon to look again while something is under way.
const SOON: Duration = Duration::from_secs(2);
/// How often to look at what others do in their own time, once that has taken [`A_WHILE_SECONDS`].
const UNHURRIED: Duration = Duration::from_secs(15);
const A_WHILE_SECONDS: i64 = 60;
/// How often to look when only a person can move it on.
const LATER: Duration = Duration::from_secs(30);

/// Decides. Total: every input has an answer.
pub fn decide(input: &Input<'_>) -> Decision {
    let mut draft = Draft { status: input.status.clone(), effects: Vec::new() };
    draft.status.observed_generation = Some(input.generation);
    let outcome = match (input.deleting, boot_is_ordered(input)) {
        (true, _) if undo::of_boot(input) => {
            step::take_over_report(input, &mut draft);
            undo::undo(input, &mut draft)
        }
        // The target was ordered to boot: a machine that is neither here nor there is no state to leave it in.
        (true, true) => walk(input, &mut draft),
        (true, false) => let_go(input, &mut draft),
        (false, _) => advance(input, &mut draft),
    };
    draft.status.ledger = ledger::ledger(input, &draft);
    draft.status.rollback = Some(undo::outlook(input, &draft.status));
    let outcome = with_deletion(input, &draft.status, with_failure(input, outcome));
    let wake = match &outcome {
        Progress::Waits { refusal, stalled } => {
            let pace = if *stalled { LATER } else { pace(input, refusal) };
            note_wait(input, &mut draft, refusal, pace);
            pace
        }
        Progress::Done => {
            draft.status.waiting_for = None;
            LATER
        }
    };
    conditions::project(input, &mut draft.status, &outcome);
    Decision { status: draft.status, effects: draft.effects, wake }
}

fn advance(input: &Input<'_>, draft: &mut Draft) -> Progress {
    if !input.held {
        draft.effects.push(Effect::AddFinalizer);
        return Progress::waits("Claiming", "adding the finalizer that keeps the machine from being forgotten");
    }
    begin_attempt(input, draft);
    super::gate::bind_approval(input, draft);
    if undo::is_wanted(input) {
        step::take_over_report(input, draft);
        return undo::undo(input, draft);
    }
    walk(input, draft)
}

/// The recorded order to power on has not been seen carried out.
fn boot_is_ordered(input: &Input<'_>) -> bool {
    let cutover = input.status.cutover.as_ref();
    cutover.is_some_and(|cutover| cutover.power_on.is_some() && cutover.target_on_at.is_none())
}

/// To the first step of the table that is not done.
fn walk(input: &Input<'_>, draft: &mut Draft) -> Progress {
    step::take_over_report(input, draft);
    for row in step::TABLE {
        let progress = (row.advance)(input, draft);
        step::note_step(&mut draft.status, row.step, matches!(progress, Progress::Done), input.now);
        if let Progress::Waits { .. } = progress {
            return progress;
        }
        if draft.status.source.as_ref().is_some_and(|source| source.already_migrated) {
            return Progress::Done;
        }
    }
    Progress::Done
}

/// A raised `spec.attempt` forgets a cutover that was given up, once the source was given back.
fn begin_attempt(input: &Input<'_>, draft: &mut Draft) {
    let wanted = input.spec.attempt.unwrap_or(0);
    let status = &mut draft.status;
    let raised = status.attempt.is_some_and(|begun| begun < wanted);
    match &status.cutover {
        None => status.attempt = Some(wanted),
        Some(cutover) if raised && cutover.abandoned.is_some() && released(input) => {
            // One that was undone was kept when its end was recorded.
            if cutover.ordered_at.is_some() {
                step::keep_cutover(status, cutover.clone());
            }
            status.cutover = None;
            // What was installed on the target is copied over.
            status.guest_tools = None;
            status.steps.retain(|step| !matches!(step.name.as_str(), "Mirror" | "Approve" | "Quiesce" | "Prove"));
            status.attempt = Some(wanted);
        }
        // What is under way is not forgotten: it ends by itself, one way or the other.
        Some(_) => {}
    }
}

/// The host side has given the source back, and says so.
fn released(input: &Input<'_>) -> bool {
    matches!(&input.seen.copy, Fact::Known(Some(copy)) if reached(copy, Want::Release))
}

/// Whether the host side has reached `want` for the order that the `BlockCopy` now holds.
pub fn reached(copy: &BlockCopy, want: Want) -> bool {
    copy.status.as_ref().is_some_and(|status| {
        copy.spec.want == want && status.epoch == Some(copy.spec.epoch) && status.reached == Some(want)
    })
}

/// Deletion: release the source, or retire it if the target has taken over, then let the object go. Terraform file and target stay.
fn let_go(input: &Input<'_>, draft: &mut Draft) -> Progress {
    if !input.held {
        return Progress::Done;
    }
    let want = wanted(input.spec, input.status, true);
    let never_ours = input.status.source.as_ref().is_none_or(|source| source.already_migrated);
    let retired = step::is_done(input.status, Step::Retire) && input.spec.finalize == Some(true);
    match &input.seen.copy {
        Fact::Known(None) if never_ours || retired => {
            draft.effects.push(Effect::RemoveFinalizer);
            Progress::Done
        }
        Fact::Known(Some(copy)) if reached(copy, want) || nothing_to_release(input, copy) => {
            let put_back = whitelist::put_back(input, draft);
            if put_back == Progress::Done {
                draft.effects.extend([Effect::DeleteCopy, Effect::RemoveFinalizer]);
            }
            put_back
        }
        // Without its BlockCopy a source that was found still bears a claim, and may be off.
        Fact::Known(copy) => {
            if let Some(stop) = step::both_would_run(input) {
                return stop;
            }
            order(input, draft, want);
            releasing(input, copy.as_ref())
        }
        Fact::Unknown(refusal) => Progress::Waits { refusal: refusal.clone(), stalled: false },
        Fact::NotAsked => Progress::waits("Releasing", "the BlockCopy has not been read yet"),
    }
}

/// What giving the machine up waits for.
fn releasing(input: &Input<'_>, copy: Option<&BlockCopy>) -> Progress {
    if let (None, Err(refusal)) = (copy, &input.seen.setup) {
        return Progress::Waits { refusal: refusal.clone(), stalled: true };
    }
    if let Some(Progress::Waits { mut refusal, stalled }) = copy.and_then(|copy| step::silent(input, copy)) {
        let way_out = format!(
            " If that hypervisor is gone for good, take the finalizer {MIGRATION_FINALIZER} off: `drover doctor` shows what is left then"
        );
        refusal.message.push_str(&way_out);
        return Progress::Waits { refusal, stalled };
    }
    copy.and_then(step::problem).unwrap_or_else(|| {
        let message = "the host side ends the mirror and gives the machine up; the object goes after that";
        Progress::waits("Releasing", message)
    })
}

/// A machine that was never found, or was never ours, has nothing to be released.
fn nothing_to_release(input: &Input<'_>, copy: &BlockCopy) -> bool {
    let never_ours = copy.status.as_ref().and_then(|status| status.problem.as_ref()).is_some_and(|problem| {
        matches!(problem.reason.as_str(), "AlreadyClaimed" | "DomainNotFound" | "AmbiguousHostname")
    });
    copy.spec.want == Want::Inspect && (never_ours || input.status.source.as_ref().is_some_and(|s| s.already_migrated))
}

/// Orders the host side to reach `want`, with a new epoch when the order changes. The epoch is recorded before it is sent.
pub fn order(input: &Input<'_>, draft: &mut Draft, want: Want) {
    let Fact::Known(copy) = &input.seen.copy else { return };
    let sent = copy.as_ref().map_or(0, |copy| copy.spec.epoch);
    let recorded = draft.status.epoch.unwrap_or(0);
    let Some(mut spec) = order_spec(input, draft, want, copy.as_ref()) else { return };
    let unchanged =
        copy.as_ref().is_some_and(|copy| BlockCopySpec { epoch: copy.spec.epoch, ..spec.clone() } == copy.spec);
    spec.epoch = if unchanged { sent.max(1) } else { recorded.max(sent) + 1 };
    draft.status.epoch = Some(spec.epoch);
    if !unchanged {
        draft.effects.push(Effect::OrderCopy(Box::new(spec)));
    }
    draft.effects.push(Effect::EnsureJob);
}

fn order_spec(input: &Input<'_>, draft: &Draft, want: Want, copy: Option<&BlockCopy>) -> Option<BlockCopySpec> {
    if let (Some(copy), Err(_)) = (copy, &input.seen.setup) {
        // The references are gone, but what was begun can still be ended.
        return Some(BlockCopySpec { want, ..copy.spec.clone() });
    }
    let setup = input.seen.setup.as_ref().ok()?;
    Some(BlockCopySpec {
        claim: Claim {
            namespace: input.namespace.into(),
            name: input.name.into(),
            uid: input.uid.into(),
            installation: setup.installation.clone(),
        },
        epoch: 0,
        hostname: input.spec.hostname.clone(),
        domain_uuid: draft.status.source.as_ref().map(|source| source.uuid.clone()),
        libvirt_uri: setup.host.uri.clone(),
        run_directory: setup.host.run_directory.clone(),
        want,
        disks: step::disk_copies(setup, &draft.status),
        canary: draft.status.target.as_ref().filter(|_| want == Want::Canary).and_then(|target| {
            let canary = target.canary.as_ref()?;
            Some(canary.nonce.clone())
        }),
        target_version: target_version(input, want, copy),
        limits: setup.host.limits.clone(),
        shutdown: draft.status.plan.as_ref().map_or(&input.spec.cutover.shutdown, |plan| &plan.shutdown).clone(),
        repair_within_seconds: match input.spec.cutover.on_difference {
            OnDifference::Repair => input.spec.cutover.max_downtime_seconds,
            OnDifference::GiveUp => 0,
        },
        power_off_source: input.spec.cutover.on_source_started == OnSourceStarted::PowerOff,
    })
}

/// Version of the target for an order. A shutdown that is under way is not ordered anew: the permit to boot sees what has changed.
fn target_version(input: &Input<'_>, want: Want, copy: Option<&BlockCopy>) -> Option<String> {
    let before = || copy.and_then(|copy| copy.spec.target_version.clone());
    let under_way = |copy: &BlockCopy| copy.spec.want == Want::Quiesce && !reached(copy, Want::Quiesce);
    match want {
        Want::Quiesce if copy.is_some_and(under_way) => before(),
        Want::Mirror | Want::Quiesce => step::pinned_target(input).map(|vm| vm.etag.clone()).or_else(before),
        Want::Inspect | Want::Canary | Want::KeepOff | Want::Release | Want::Undo | Want::Retire => None,
    }
}

/// A step that waits for its own effect waits in vain while that effect fails: then the failure is the reason.
fn with_failure(input: &Input<'_>, outcome: Progress) -> Progress {
    match (outcome, input.last_failure) {
        (Progress::Waits { refusal, stalled: false }, Some(failure)) => {
            let message = format!("{}; the last try failed, it is tried again: {}", refusal.message, failure.message);
            Progress::Waits { refusal: Refusal::new(&failure.reason, message), stalled: false }
        }
        (outcome, _) => outcome,
    }
}

/// Whoever deletes a migration is told what that waits for, and what will be left.
fn with_deletion(input: &Input<'_>, status: &VmMigrationStatus, outcome: Progress) -> Progress {
    match outcome {
        Progress::Done => Progress::Done,
        Progress::Waits { refusal, stalled } if !input.deleting => Progress::Waits { refusal, stalled },
        Progress::Waits { mut refusal, stalled } => {
            if boot_is_ordered(input) && !undo::of_boot(input) {
                let until = "deletion waits until the target, which was ordered to boot, is seen on";
                refusal.message = format!("{until}: {}", refusal.message);
            }
            if let Some(kept) = ledger::kept(&status.ledger) {
                refusal.message = format!("{}. {kept}", refusal.message.trim_end_matches('.'));
            }
            Progress::Waits { refusal, stalled }
        }
    }
}

/// How soon to look again: somebody's pipeline, and the person who starts it, may take days, and Prism and GitLab are asked each time.
fn pace(input: &Input<'_>, refusal: &Refusal) -> Duration {
    let for_others = matches!(
        refusal.reason.as_str(),
        "AwaitingMerge" | "Provisioning" | "Applying" | "PlanApproval" | "PlanApprovalVoid"
    );
    let waiting = input.status.waiting_for.as_ref().filter(|waiting| waiting.reason == refusal.reason);
    let long = waiting.is_some_and(|waiting| input.now.duration_since(waiting.since.0).as_secs() > A_WHILE_SECONDS);
    if for_others && long { UNHURRIED } else { SOON }
}

fn note_wait(input: &Input<'_>, draft: &mut Draft, refusal: &Refusal, next: Duration) {
    let since = match &draft.status.waiting_for {
        Some(waiting) if waiting.reason == refusal.reason => waiting.since.clone(),
        Some(_) | None => Time(input.now),
    };
    draft.status.waiting_for = Some(Waiting {
        reason: refusal.reason.clone(),
        message: step::clip(&refusal.message),
        since,
        next_check_seconds: u32::try_from(next.as_secs()).unwrap_or(u32::MAX),
    });
}
