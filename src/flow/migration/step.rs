//! The step table: what a migration is. Each row knows when it is done and what it does until then.

use jiff::Timestamp;

use super::decide::{Draft, Input, order, reached};
use super::effect::Effect;
use super::gate;
use super::permit::{PowerOnPermit, too_old};
use super::seen::{Fact, Refusal, Setup, TargetVm};
use super::{guest_tools, prepare, provision, target_order, undo, watch, whitelist};
use crate::api::block_copy::{BlockCopyStatus, DiskCopy, HowOff, MirrorState, NfsFile, Want};
use crate::api::common::{MicroTime, Problem, Time, Tri};
use crate::api::machine::Machine;
use crate::api::vm_migration::{CutoverStatus, DiskStatus, OnVerifyFailure, PlanStatus, SourceStatus, StepRecord};
use crate::api::{BlockCopy, VmMigrationStatus};
use crate::{plan, render};

/// How far a step is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    Done,
    /// It waits; `stalled` = for something that only a person can change.
    Waits {
        refusal: Refusal,
        stalled: bool,
    },
}

impl Progress {
    /// Under way: it will go on by itself.
    pub fn waits(reason: &str, message: impl Into<String>) -> Self {
        Self::Waits { refusal: Refusal::new(reason, message), stalled: false }
    }

    /// Somebody has to do something.
    pub fn stalled(reason: &str, message: impl Into<String>) -> Self {
        Self::Waits { refusal: Refusal::new(reason, message), stalled: true }
    }
}

/// The steps, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Discover,
    Preflight,
    Publish,
    Provision,
    Prepare,
    Mirror,
    Approve,
    Quiesce,
    Prove,
    Boot,
    Verify,
    Retire,
}

/// A row of the table.
pub struct Row {
    pub step: Step,
    pub advance: fn(&Input<'_>, &mut Draft) -> Progress,
}

/// What a migration is.
pub const TABLE: &[Row] = &[
    Row { step: Step::Discover, advance: discover },
    Row { step: Step::Preflight, advance: preflight },
    Row { step: Step::Publish, advance: provision::publish },
    Row { step: Step::Provision, advance: provision::provision },
    Row { step: Step::Prepare, advance: prepare::prepare },
    Row { step: Step::Mirror, advance: mirror },
    Row { step: Step::Approve, advance: approve },
    Row { step: Step::Quiesce, advance: quiesce },
    Row { step: Step::Prove, advance: prove },
    Row { step: Step::Boot, advance: boot },
    Row { step: Step::Verify, advance: verify },
    Row { step: Step::Retire, advance: retire },
];

/// Find the machine, through the host side.
fn discover(input: &Input<'_>, draft: &mut Draft) -> Progress {
    if draft.status.source.is_some() {
        return still_ours(input);
    }
    if let Err(refusal) = &input.seen.setup {
        return Progress::Waits { refusal: refusal.clone(), stalled: true };
    }
    order(input, draft, Want::Inspect);
    let (setup, copy) = match (&input.seen.setup, &input.seen.copy) {
        (Err(refusal), _) => return Progress::Waits { refusal: refusal.clone(), stalled: true },
        (Ok(_), Fact::Unknown(refusal)) => return Progress::Waits { refusal: refusal.clone(), stalled: false },
        (Ok(_), Fact::NotAsked | Fact::Known(None)) => {
            return Progress::waits("Discovering", "starting the host-side job");
        }
        (Ok(setup), Fact::Known(Some(copy))) => (setup, copy),
    };
    if let Some(problem) = problem(copy) {
        return problem;
    }
    let status = copy.status.clone().unwrap_or_default();
    let (Some(machine), true) = (status.machine, reached(copy, Want::Inspect)) else {
        return Progress::waits(
            "Discovering",
            format!("the host-side job on {} looks for {}", setup.host.node_name, input.spec.hostname),
        );
    };
    draft.status.source = Some(SourceStatus {
        host: setup.host_name.clone(),
        uuid: machine.uuid,
        already_migrated: status.domain.is_some_and(|domain| domain.migrated),
    });
    Progress::Done
}

/// A machine that was found stays ours unless the host side says otherwise.
fn still_ours(input: &Input<'_>) -> Progress {
    let Fact::Known(Some(copy)) = &input.seen.copy else { return Progress::Done };
    match problem(copy) {
        Some(Progress::Waits { refusal, stalled }) if refusal.reason == "AlreadyClaimed" => {
            Progress::Waits { refusal, stalled }
        }
        Some(_) | None => Progress::Done,
    }
}

/// Reasons of the host side that only a person can remove.
const FOR_A_PERSON: &[&str] = &[
    "AlreadyClaimed",
    "AlreadyMigrated",
    "AmbiguousHostname",
    "CutoverUnresolved",
    "DomainNotFound",
    "ForeignBlockJob",
    "NotEqual",
    "SourceChanged",
    "SourceNotRunning",
    "SourceRunning",
    "StaleOrder",
    "TargetInUse",
    "UnsupportedMachine",
    "VersionTooOld",
];

/// What the host side reports for the current order as being in its way.
pub fn problem(copy: &BlockCopy) -> Option<Progress> {
    let status = copy.status.as_ref().filter(|status| status.epoch == Some(copy.spec.epoch))?;
    let problem = status.problem.as_ref()?;
    let stalled = FOR_A_PERSON.contains(&problem.reason.as_str());
    Some(Progress::Waits { refusal: Refusal::new(&problem.reason, problem.message.clone()), stalled })
}

fn machine_of(copy: &Fact<Option<BlockCopy>>) -> Option<&Machine> {
    let Fact::Known(Some(copy)) = copy else { return None };
    copy.status.as_ref()?.machine.as_ref()
}

/// Look for what would go wrong, then freeze the plan.
fn preflight(input: &Input<'_>, draft: &mut Draft) -> Progress {
    if draft.status.plan.is_some() {
        return Progress::Done;
    }
    order(input, draft, Want::Inspect);
    let Ok(setup) = &input.seen.setup else {
        return Progress::waits("Preflight", "the references could not be resolved");
    };
    let Some(machine) = machine_of(&input.seen.copy) else {
        return Progress::waits("Preflight", "waiting for the host side's report of the machine");
    };
    let (placement, vms) = match (&input.seen.placement, &input.seen.target) {
        (Fact::Known(placement), Fact::Known(vms)) => (placement, vms),
        (Fact::Unknown(refusal), _) | (_, Fact::Unknown(refusal)) => {
            return Progress::Waits { refusal: refusal.clone(), stalled: true };
        }
        (Fact::NotAsked, _) | (_, Fact::NotAsked) => return Progress::waits("Preflight", "asking Prism"),
    };
    if let Some(vm) = vms.first() {
        return Progress::stalled(
            "TargetExists",
            format!(
                "a VM named {} ({}) exists in Prism already and was not created by this migration: rename or remove it",
                vm.name, vm.ext_id
            ),
        );
    }
    match make_plan(input, setup, machine, placement) {
        Ok(plan) => {
            draft.status.plan = Some(plan);
            super::gate::bind_approval(input, draft);
            Progress::Done
        }
        Err(refusal) => Progress::Waits { refusal, stalled: true },
    }
}

fn make_plan(
    input: &Input<'_>,
    setup: &Setup,
    machine: &Machine,
    placement: &plan::Placement,
) -> Result<PlanStatus, Refusal> {
    let choices = plan::choices(&setup.cluster, &input.spec.overrides);
    let vlans: Vec<u16> = placement.subnets.iter().map(|(vlan, _)| *vlan).collect();
    let findings = plan::findings(machine, &input.spec.hostname, &vlans, choices.disk_bus);
    let blocking: Vec<String> = findings.iter().filter(|finding| finding.blocks()).map(ToString::to_string).collect();
    if !blocking.is_empty() {
        return Err(Refusal::new("PreflightFailed", blocking.join("; ")));
    }
    let planned = plan::make(&plan::PlanInput {
        machine,
        hostname: &input.spec.hostname,
        placement,
        choices: &choices,
        path_template: &setup.repository.path,
        identifiers: setup.repository.identifiers,
        shutdown: &input.spec.cutover.shutdown,
        origin: &format!("VmMigration {}/{} uid {}", input.namespace, input.name, input.uid),
    })
    .map_err(|error| Refusal::new("PreflightFailed", error.to_string()))?;
    let terraform = render::terraform::file(&planned);
    Ok(PlanStatus {
        digest: plan::digest(&planned, &terraform),
        frozen_at: Time(input.now),
        machine: machine.clone(),
        target_name: planned.target_name.clone(),
        path: planned.path.clone(),
        terraform,
        target_disk_bytes: planned.disks.iter().map(|disk| disk.size_bytes).collect(),
        shutdown: input.spec.cutover.shutdown.clone(),
        notes: findings.iter().map(ToString::to_string).collect(),
    })
}

/// The disks of an order: source device, exact size, and the file on the NFS server.
pub fn disk_copies(setup: &Setup, status: &VmMigrationStatus) -> Vec<DiskCopy> {
    let (Some(plan), Some(target)) = (&status.plan, &status.target) else { return Vec::new() };
    plan.machine
        .disks
        .iter()
        .zip(&target.disks)
        .map(|(source, target)| {
            let (export, path) = split_export(&target.nfs_path);
            DiskCopy {
                device: source.device.clone(),
                size_bytes: source.size_bytes,
                target: NfsFile { server: setup.cluster.nfs.clone(), export, path, size_bytes: target.size_bytes },
            }
        })
        .collect()
}

/// `/container/.acropolis/vmdisk/x` is `.acropolis/vmdisk/x` of the export `/container`.
fn split_export(nfs_path: &str) -> (String, String) {
    let inner = nfs_path.trim_start_matches('/');
    match inner.split_once('/') {
        Some((container, path)) => (format!("/{container}"), path.into()),
        None => (nfs_path.into(), String::new()),
    }
}

/// Copy, and keep in step.
fn mirror(input: &Input<'_>, draft: &mut Draft) -> Progress {
    let cutover = draft.status.cutover.clone().unwrap_or_default();
    if let Some(abandoned) = &cutover.abandoned {
        return given_up(input, draft, &abandoned.clone());
    }
    if cutover.ordered_at.is_some() {
        return Progress::Done;
    }
    if let Some(stop) = target_in_the_way(input) {
        order(input, draft, Want::Release);
        return stop;
    }
    order(input, draft, Want::Mirror);
    let Fact::Known(Some(copy)) = &input.seen.copy else {
        return Progress::waits("Mirroring", "starting the host-side job");
    };
    if draft.effects.iter().any(|effect| matches!(effect, Effect::OrderCopy(_))) {
        return Progress::waits("Mirroring", "the host side is told what to copy");
    }
    if let Some(silent) = silent(input, copy) {
        return silent;
    }
    if let Some(changed) = source_changed(draft, copy) {
        return changed;
    }
    if let Some(problem) = problem(copy) {
        return problem;
    }
    let in_sync = reached(copy, Want::Mirror) && copy.status.as_ref().is_some_and(|status| status.in_sync.is_yes());
    if in_sync { Progress::Done } else { Progress::waits("Mirroring", "copying while the source runs") }
}

/// The host side has reported, but not lately.
pub fn silent(input: &Input<'_>, copy: &BlockCopy) -> Option<Progress> {
    let why = copy.status.as_ref().and_then(|report| too_old(input, report))?;
    Some(Progress::waits("HostSideSilent", why))
}

/// The target as it was pinned, if it was asked for and found.
pub fn pinned_target<'a>(input: &'a Input<'_>) -> Option<&'a TargetVm> {
    let (Fact::Known(vms), Some(pinned)) = (&input.seen.target, &input.status.target) else { return None };
    vms.iter().find(|vm| vm.ext_id == pinned.ext_id)
}

/// Nothing is written to the disks of a target that runs, or to those of a VM that is gone. While Prism does not answer a copy goes on:
/// nothing but a person in Prism could have started the target.
pub fn target_in_the_way(input: &Input<'_>) -> Option<Progress> {
    let (Fact::Known(_), Some(pinned)) = (&input.seen.target, &input.status.target) else { return None };
    match pinned_target(input) {
        None => Some(Progress::stalled(
            "TargetGone",
            format!(
                "the target VM {} is gone from Prism: copying has ended. Delete this migration and create it again",
                pinned.ext_id
            ),
        )),
        Some(vm) if vm.on.is_yes() => Some(Progress::stalled(
            "TargetRunning",
            format!(
                "somebody powered the target {} on: copying has ended and begins again when it is off. Power it off in Prism",
                vm.name
            ),
        )),
        Some(_) => None,
    }
}

/// Giving the source back after a cutover was ordered starts it: not while the target is seen running.
pub fn both_would_run(input: &Input<'_>) -> Option<Progress> {
    let cutover = input.status.cutover.as_ref()?;
    let before_boot = cutover.ordered_at.is_some() && cutover.power_on.is_none();
    let vm = pinned_target(input).filter(|vm| before_boot && vm.on.is_yes())?;
    Some(Progress::stalled(
        "TargetRunning",
        format!(
            "the source cannot be given back while the target {} runs, which somebody powered on: power it off in Prism",
            vm.name
        ),
    ))
}

/// The plan was frozen for a machine of a certain shape; if that changed, the plan is no longer about it.
fn source_changed(draft: &Draft, copy: &BlockCopy) -> Option<Progress> {
    let planned = &draft.status.plan.as_ref()?.machine;
    let now = copy.status.as_ref()?.machine.as_ref()?;
    (planned != now).then(|| {
        Progress::stalled(
            "SourceChanged",
            "the source's definition changed after the plan was frozen: restore it, or delete this migration and create it again",
        )
    })
}

/// A cutover that was given up: the source runs (again); a raised attempt tries anew.
fn given_up(input: &Input<'_>, draft: &mut Draft, why: &Problem) -> Progress {
    if let Some(stop) = both_would_run(input) {
        return stop;
    }
    let want = super::want::wanted(input.spec, &draft.status, false);
    order(input, draft, want);
    let done = matches!(&input.seen.copy, Fact::Known(Some(copy)) if reached(copy, want));
    let source = if done { "the source was given back" } else { "the source is being given back" };
    Progress::stalled(
        &why.reason,
        format!(
            "the cutover was given up, {source}: {}. Raise spec.attempt to try again",
            why.message.trim_end_matches('.')
        ),
    )
}

/// The gate: a person's yes, and the time.
fn approve(input: &Input<'_>, draft: &mut Draft) -> Progress {
    if draft.status.cutover.as_ref().is_some_and(|cutover| cutover.ordered_at.is_some()) {
        return Progress::Done;
    }
    match gate::closed(input, draft) {
        Some(refusal) => Progress::Waits { refusal, stalled: false },
        None => Progress::Done,
    }
}

/// Shut the source down; the host side proves it off, drained and equal.
fn quiesce(input: &Input<'_>, draft: &mut Draft) -> Progress {
    let mut cutover = draft.status.cutover.clone().unwrap_or_default();
    if cutover.power_on.is_some() {
        return Progress::Done;
    }
    if cutover.ordered_at.is_none() {
        match (&input.seen.target, pinned_target(input).map(|vm| vm.on)) {
            (_, Some(Tri::No)) => cutover.ordered_at = Some(MicroTime(input.now)),
            (Fact::Unknown(refusal), _) => return Progress::Waits { refusal: refusal.clone(), stalled: false },
            (_, _) => return Progress::waits("Quiescing", "the source is not shut down before the target is seen off"),
        }
    }
    draft.status.cutover = Some(cutover.clone());
    if let Some(why) = reason_to_abandon(input, draft, &cutover) {
        let problem = Problem { reason: why.reason, message: clip(&why.message), since: Time(input.now) };
        draft.status.cutover = Some(CutoverStatus { abandoned: Some(problem.clone()), ..cutover });
        return given_up(input, draft, &problem);
    }
    order(input, draft, Want::Quiesce);
    match &input.seen.copy {
        Fact::Known(Some(copy)) if reached(copy, Want::Quiesce) => Progress::Done,
        Fact::Known(Some(_)) => Progress::waits("Quiescing", quiesce_stage(&cutover)),
        Fact::Known(None) | Fact::NotAsked => Progress::waits("Quiescing", "starting the host-side job"),
        Fact::Unknown(refusal) => Progress::Waits { refusal: refusal.clone(), stalled: false },
    }
}

fn quiesce_stage(cutover: &CutoverStatus) -> &'static str {
    if cutover.proofs.as_ref().is_some_and(|proofs| proofs.repair.is_some()) {
        return "the source is off; everything is compared, and what differs on the target is written anew";
    }
    match (&cutover.shutdown_requested_at, &cutover.source_off_at) {
        (None, _) => "the host side prepares the shutdown",
        (Some(_), None) => "the guest shuts down",
        (Some(_), Some(_)) => "the source is off; the last writes are being written and compared",
    }
}

/// A host side that was cut off and comes back hours later must not find an order to shut a client's machine down.
const MAX_SECONDS_TO_SHUTDOWN: i64 = 120;

/// Before the point of no return there is always the way back: what makes us take it.
fn reason_to_abandon(input: &Input<'_>, draft: &Draft, cutover: &CutoverStatus) -> Option<Refusal> {
    if !counts_still(input, draft) {
        return Some(Refusal::new("ApprovalWithdrawn", "the approval was withdrawn before the target was started"));
    }
    if let Some(MicroTime(off)) = &cutover.source_off_at {
        let down = seconds_since(input, *off);
        if down > i64::from(input.spec.cutover.max_downtime_seconds) {
            let limit = input.spec.cutover.max_downtime_seconds;
            return Some(Refusal::new(
                "MaxDowntimeExceeded",
                format!("the source was off for {down} s, more than the {limit} s of maxDowntimeSeconds"),
            ));
        }
    }
    let waited = cutover.ordered_at.as_ref().map_or(0, |MicroTime(at)| seconds_since(input, *at));
    let command = draft.status.plan.as_ref().and_then(|plan| plan.shutdown.before.as_ref());
    let limit = MAX_SECONDS_TO_SHUTDOWN + command.map_or(0, |command| i64::from(command.timeout_seconds));
    if cutover.shutdown_requested_at.is_none() && waited > limit {
        return Some(Refusal::new(
            "HostSideSilent",
            format!(
                "the host side did not begin the shutdown within {limit} s: the hour that was chosen for it is over"
            ),
        ));
    }
    let Fact::Known(Some(copy)) = &input.seen.copy else { return None };
    let status = copy
        .status
        .as_ref()
        .filter(|status| copy.spec.want == Want::Quiesce && status.epoch == Some(copy.spec.epoch))?;
    if status.quiesce.as_ref().is_some_and(|quiesce| quiesce.how == Some(HowOff::Unclear)) {
        return Some(Refusal::new("UnclearShutdown", "the source went off, but not by its own clean shutdown"));
    }
    let problem = status.problem.as_ref()?;
    ends_the_cutover(&problem.reason).then(|| Refusal::new(&problem.reason, problem.message.clone()))
}

/// The host side's problems that do not pass by waiting.
fn ends_the_cutover(reason: &str) -> bool {
    matches!(
        reason,
        "ShutdownTimedOut"
            | "CutoverUnresolved"
            | "GuestCommandFailed"
            | "GuestRebooted"
            | "NotInSync"
            | "NotEqual"
            | "RepairTooSlow"
            | "SourceChanged"
            | "SourceNotRunning"
            | "SourceStartedAgain"
            | "StaleOrder"
            | "UnsupportedMachine"
    )
}

fn counts_still(input: &Input<'_>, draft: &Draft) -> bool {
    input.spec.approved == Some(true) && draft.status.approval.as_ref().is_some_and(|approval| approval.void.is_none())
}

/// Everything proven: record the order to power on. Recording it is the point of no return.
fn prove(input: &Input<'_>, draft: &mut Draft) -> Progress {
    let mut cutover = draft.status.cutover.clone().unwrap_or_default();
    if cutover.power_on.is_some() {
        return Progress::Done;
    }
    match PowerOnPermit::prove(input) {
        Ok((_permit, target)) => {
            cutover.power_on = Some(target_order::new(input, "power-on", &target.etag, None));
            draft.status.cutover = Some(cutover);
            // Sent in the next turn, when this record is known to be stored.
            Progress::waits("PoweringOn", "everything is proven; the order to power the target on is recorded")
        }
        Err(missing) => Progress::waits("Proving", missing),
    }
}

/// Power the target on with exactly the recorded order.
fn boot(input: &Input<'_>, draft: &mut Draft) -> Progress {
    let mut cutover = draft.status.cutover.clone().unwrap_or_default();
    if cutover.target_on_at.is_some() {
        return Progress::Done;
    }
    let (Some(intent), Some(pinned)) =
        (input.status.cutover.as_ref().and_then(|c| c.power_on.clone()), &input.status.target)
    else {
        return Progress::waits("PoweringOn", "the order is being recorded");
    };
    let vm = match &input.seen.target {
        Fact::Known(vms) => vms.iter().find(|vm| vm.ext_id == pinned.ext_id),
        Fact::Unknown(refusal) => return Progress::Waits { refusal: refusal.clone(), stalled: false },
        Fact::NotAsked => return Progress::waits("PoweringOn", "asking Prism"),
    };
    if vm.is_some_and(|vm| vm.on.is_yes()) {
        cutover.target_on_at = Some(MicroTime(input.now));
        draft.status.cutover = Some(cutover);
        return Progress::Done;
    }
    let (permit, target) = match PowerOnPermit::prove_again(input) {
        Ok(proven) => proven,
        Err(missing) => {
            // If the target was changed, the host side has to compare again.
            order(input, draft, Want::Quiesce);
            return not_proven_any_more(input, missing);
        }
    };
    let mut slot = Some(intent);
    if let Some(order) = target_order::recorded(input, &mut slot, "power-on", &target.etag) {
        draft.effects.push(Effect::PowerOn { permit, ext_id: pinned.ext_id.clone(), order });
        return Progress::waits("PoweringOn", "the target is being powered on");
    }
    // Somebody changed the VM after the order was recorded, so Prism refuses the old one for good; or the order failed, and the same
    // request id would only be answered with the same failure.
    cutover.power_on = slot;
    draft.status.cutover = Some(cutover);
    Progress::waits("PoweringOn", "the target is not on yet; the order is recorded anew")
}

/// The order to boot is recorded, but what it rests on does not hold at this moment.
fn not_proven_any_more(input: &Input<'_>, missing: String) -> Progress {
    let problem = match &input.seen.copy {
        Fact::Known(Some(copy)) => problem(copy),
        Fact::Known(None) | Fact::Unknown(_) | Fact::NotAsked => None,
    };
    let refusal = match problem {
        Some(Progress::Waits { refusal, .. }) => refusal,
        Some(Progress::Done) | None => Refusal::new("PoweringOn", missing),
    };
    let off_at = input.status.cutover.as_ref().and_then(|cutover| cutover.source_off_at.clone());
    let limit = i64::from(input.spec.cutover.max_downtime_seconds);
    let too_long = off_at.is_some_and(|MicroTime(off)| seconds_since(input, off) > limit);
    if !too_long && !ends_the_cutover(&refusal.reason) {
        return Progress::Waits { refusal, stalled: false };
    }
    let message = format!(
        "{}. The order to boot the target was recorded, and is not sent as long as this holds: set spec.rollback to give the source back",
        refusal.message.trim_end_matches('.')
    );
    Progress::stalled(&refusal.reason, message)
}

fn seconds_since(input: &Input<'_>, then: Timestamp) -> i64 {
    input.now.duration_since(then).as_secs()
}

/// See the guest up: AHV learns addresses from what the guest sends.
fn verify(input: &Input<'_>, draft: &mut Draft) -> Progress {
    let mut cutover = draft.status.cutover.clone().unwrap_or_default();
    if cutover.reachable_at.is_some() {
        return Progress::Done;
    }
    let vm = match (&input.seen.target, &input.status.target) {
        (Fact::Known(vms), Some(pinned)) => vms.iter().find(|vm| vm.ext_id == pinned.ext_id),
        (Fact::Unknown(refusal), _) => return Progress::Waits { refusal: refusal.clone(), stalled: false },
        (Fact::Known(_) | Fact::NotAsked, _) => None,
    };
    let has_nics = draft.status.plan.as_ref().is_some_and(|plan| !plan.machine.nics.is_empty());
    let limit = input.spec.cutover.verify_timeout_seconds;
    let late = cutover.target_on_at.as_ref().is_some_and(|MicroTime(on)| seconds_since(input, *on) > i64::from(limit));
    if late && input.spec.cutover.on_verify_failure == OnVerifyFailure::Rollback && clocks_agree(input) {
        let why = format!("its guest was not heard on the network within {limit} s (onVerifyFailure: Rollback)");
        cutover.undo = Some(undo::begun(input, draft, &why));
        draft.status.cutover = Some(cutover);
        return Progress::waits("RollingBack", why);
    }
    match vm {
        Some(vm) if vm.on.is_yes() && (!has_nics || !vm.learned_ips.is_empty()) => {
            cutover.reachable_at = Some(MicroTime(input.now));
            draft.status.cutover = Some(cutover);
            Progress::Done
        }
        Some(vm) if vm.on == Tri::No => Progress::stalled(
            "TargetStopped",
            "the target was powered on and is off again: look at its console in Prism, or set spec.rollback",
        ),
        Some(vm) => {
            order(input, draft, Want::KeepOff);
            if let (Tri::No, refusal) = watch::source_is_off(input) {
                return Progress::Waits { refusal, stalled: true };
            }
            if !late {
                return Progress::waits("Verifying", "the target runs; waits until its guest is heard on the network");
            }
            let message = format!(
                "the target {} runs, but its guest was not heard on the network within {limit} s: look at its console in Prism, or set spec.rollback",
                vm.name
            );
            Progress::stalled("GuestSilent", message)
        }
        None => Progress::waits("Verifying", "asking Prism"),
    }
}

/// What is undone because time has passed needs a second clock that says so: ours may have been set.
fn clocks_agree(input: &Input<'_>) -> bool {
    let Fact::Known(Some(copy)) = &input.seen.copy else { return false };
    copy.status.as_ref().is_some_and(|report| too_old(input, report).is_none())
}

/// Until it is finalised, the source stays as it is, off and marked, and both sides are watched.
fn retire(input: &Input<'_>, draft: &mut Draft) -> Progress {
    if input.spec.finalize != Some(true) {
        order(input, draft, Want::KeepOff);
        guest_tools::see_to(input, draft);
        let Fact::Known(Some(copy)) = &input.seen.copy else {
            return Progress::waits("Marking", "starting the host-side job, which marks the source as migrated");
        };
        if let (Tri::No, refusal) = watch::only_target_runs(input) {
            return Progress::Waits { refusal, stalled: true };
        }
        if reached(copy, Want::KeepOff) {
            return Progress::Done;
        }
        let waits = Progress::waits("Marking", "the target runs; the host side marks the source as migrated");
        return problem(copy).unwrap_or(waits);
    }
    match &input.seen.copy {
        Fact::Known(None) => Progress::Done,
        Fact::Known(Some(copy)) if reached(copy, Want::Retire) => {
            let put_back = whitelist::put_back(input, draft);
            if put_back == Progress::Done {
                draft.effects.push(Effect::DeleteCopy);
            }
            put_back
        }
        Fact::Known(Some(_)) | Fact::NotAsked => {
            order(input, draft, Want::Retire);
            Progress::waits("Retiring", "the host side gives up its claim; the source stays defined and off")
        }
        Fact::Unknown(refusal) => Progress::Waits { refusal: refusal.clone(), stalled: false },
    }
}

/// Takes the host side's report over into the status: for people, and to remember the cutover's times.
pub fn take_over_report(input: &Input<'_>, draft: &mut Draft) {
    let Fact::Known(Some(copy)) = &input.seen.copy else { return };
    let Some(report) = &copy.status else { return };
    draft.status.disks = report.disks.iter().map(disk_status).collect();
    draft.status.copied = copied(report);
    let current = copy.spec.want == Want::Quiesce && report.epoch == Some(copy.spec.epoch);
    if let (Some(quiesce), Some(cutover), true) = (&report.quiesce, draft.status.cutover.as_mut(), current) {
        cutover.shutdown_requested_at = cutover.shutdown_requested_at.clone().or(quiesce.shutdown_requested_at.clone());
        cutover.source_off_at = cutover.source_off_at.clone().or(quiesce.off_by_libvirt_at.clone());
        cutover.proven_equal_at = cutover.proven_equal_at.clone().or(quiesce.equal_at.clone());
        cutover.proofs = Some(quiesce.clone());
    }
}

fn disk_status(disk: &crate::api::block_copy::DiskCopyStatus) -> DiskStatus {
    DiskStatus {
        device: disk.device.clone(),
        state: match disk.state {
            MirrorState::None => "None",
            MirrorState::Copying => "Copying",
            MirrorState::Ready => "Ready",
            MirrorState::Draining => "Draining",
            MirrorState::Drained => "Drained",
        }
        .into(),
        copied_bytes: disk.copied_bytes,
        total_bytes: disk.total_bytes,
        rate_mib_s: disk.rate_mib_s,
        backlog_bytes: disk.backlog_bytes,
        verified_bytes: disk.verified_bytes,
    }
}

fn copied(report: &BlockCopyStatus) -> Option<String> {
    const MIB: u64 = 1 << 20;
    let total: u64 = report.disks.iter().map(|disk| disk.total_bytes).sum();
    let copied: u64 = report.disks.iter().map(|disk| disk.copied_bytes).sum();
    (total > 0).then(|| format!("{} of {} MiB", copied / MIB, total / MIB))
}

/// Text as long as the status may hold.
pub fn clip(text: &str) -> String {
    text.chars().take(4096).collect()
}

/// Keeps a cutover that is over.
pub fn keep_cutover(status: &mut VmMigrationStatus, cutover: CutoverStatus) {
    const KEPT: usize = 8;
    let earlier = &mut status.earlier_cutovers;
    earlier.push(cutover);
    earlier.drain(..earlier.len().saturating_sub(KEPT));
}

/// Whether a step was done when the status was last recorded.
pub fn is_done(status: &VmMigrationStatus, step: Step) -> bool {
    let name = format!("{step:?}");
    status.steps.iter().any(|record| record.name == name && record.finished_at.is_some())
}

/// Keeps the list of entered steps with their times.
pub fn note_step(status: &mut VmMigrationStatus, step: Step, done: bool, now: Timestamp) {
    let name = format!("{step:?}");
    let record = match status.steps.iter_mut().find(|record| record.name == name) {
        Some(record) => record,
        None => {
            status.steps.push(StepRecord { name, started_at: Time(now), finished_at: None });
            status.steps.last_mut().expect("one was just pushed")
        }
    };
    if done && record.finished_at.is_none() {
        record.finished_at = Some(Time(now));
    }
}
