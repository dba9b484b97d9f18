//! After the cutover both sides are watched until it is finalised: the target alone is to run. Nothing is powered on or off for it here.

use super::decide::{Input, reached};
use super::permit::too_old;
use super::seen::{Fact, Refusal};
use super::step::{self, Progress, pinned_target};
use crate::api::BlockCopy;
use crate::api::block_copy::Want;
use crate::api::common::Tri;

/// Whether the target runs and the source does not; if not, or if nobody can tell, why.
pub fn only_target_runs(input: &Input<'_>) -> (Tri, Refusal) {
    let sides = [source_is_off(input), target_is_on(input)];
    let worst = |wanted: Tri| sides.iter().find(|(side, _)| *side == wanted).cloned();
    let fine = || (Tri::Yes, Refusal::new("AsLeft", "the target runs; the source is off"));
    worst(Tri::No).or_else(|| worst(Tri::Unknown)).unwrap_or_else(fine)
}

/// Whether the host side sees that nobody has started the source.
pub fn source_is_off(input: &Input<'_>) -> (Tri, Refusal) {
    let unknown = |reason: &str, message: &str| (Tri::Unknown, Refusal::new(reason, message));
    let copy = match &input.seen.copy {
        Fact::Known(Some(copy)) => copy,
        Fact::Known(None) | Fact::NotAsked => {
            return unknown("Marking", "the host side, which watches the source, is being started");
        }
        Fact::Unknown(refusal) => return (Tri::Unknown, refusal.clone()),
    };
    if let Some(Progress::Waits { refusal, .. }) = step::problem(copy).filter(|_| source_runs(copy)) {
        return (Tri::No, refusal);
    }
    if copy.status.as_ref().is_none_or(|report| too_old(input, report).is_some()) {
        return unknown(
            "HostSideSilent",
            "the host side, which watches the source, does not report: is its job running?",
        );
    }
    if !reached(copy, Want::KeepOff) {
        return unknown("Marking", "the host side has not marked the source as migrated yet");
    }
    (Tri::Yes, Refusal::new("AsLeft", ""))
}

fn source_runs(copy: &BlockCopy) -> bool {
    let problem = copy.status.as_ref().and_then(|status| status.problem.as_ref());
    problem.is_some_and(|problem| problem.reason == "SourceRunning")
}

fn target_is_on(input: &Input<'_>) -> (Tri, Refusal) {
    match (&input.seen.target, pinned_target(input)) {
        (Fact::Unknown(refusal), _) => (Tri::Unknown, refusal.clone()),
        (Fact::NotAsked, _) => {
            let not_asked = || Refusal::new("NotAsked", "Prism was not asked for the target");
            (Tri::Unknown, input.seen.setup.as_ref().err().cloned().unwrap_or_else(not_asked))
        }
        (Fact::Known(_), None) => {
            let message = "the target VM is gone from Prism, and with it what was written there since the cutover: set spec.rollback to start the source, or spec.finalize to give up the way back";
            (Tri::No, Refusal::new("TargetGone", message))
        }
        (Fact::Known(_), Some(vm)) => match vm.on {
            Tri::Yes => (Tri::Yes, Refusal::new("AsLeft", "")),
            Tri::No => (
                Tri::No,
                Refusal::new(
                    "TargetStopped",
                    format!(
                        "the target {} is off: somebody powered it off, or it crashed. Power it on in Prism, or set spec.rollback to start the source; spec.finalize ends this watch",
                        vm.name
                    ),
                ),
            ),
            Tri::Unknown => {
                let message = format!("Prism does not tell whether the target {} runs", vm.name);
                (Tri::Unknown, Refusal::new("TargetUndetermined", message))
            }
        },
    }
}
