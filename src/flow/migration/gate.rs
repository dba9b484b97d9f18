//! The gate before the cutover: approved, not held, not too early.

use super::decide::{Draft, Input};
use super::seen::Refusal;
use crate::api::VmMigrationSpec;
use crate::api::common::Time;
use crate::api::vm_migration::ApprovalStatus;

/// Whether the cutover may be carried out as far as people's wishes go.
pub fn approved(input: &Input<'_>) -> bool {
    counts(input.spec, input.status.approval.as_ref(), input.status.plan.as_ref().map(|plan| plan.digest.as_str()))
}

fn counts(spec: &VmMigrationSpec, approval: Option<&ApprovalStatus>, planned: Option<&str>) -> bool {
    let Some(approval) = approval else { return false };
    spec.approved == Some(true)
        && approval.void.is_none()
        && Some(approval.digest.as_str()) == planned
        && spec.approved_digest.as_ref().is_none_or(|digest| *digest == approval.digest)
}

/// Binds an approval to the plan when it is first seen, and forgets it when it is withdrawn.
///
/// A bare `approved: true` binds to the plan frozen at that moment, never to a later one. Given before there is a plan it is void, and says
/// so: nobody can have meant a plan that nobody had seen.
pub fn bind_approval(input: &Input<'_>, draft: &mut Draft) {
    if input.spec.approved != Some(true) {
        draft.status.approval = None;
        return;
    }
    let planned = draft.status.plan.as_ref().map(|plan| plan.digest.clone());
    let named = input.spec.approved_digest.as_ref();
    let bound = draft.status.approval.as_ref();
    let names_the_plan = named.is_some() && named == planned.as_ref();
    let binds_anew = bound.is_none() || (names_the_plan && bound.map(|approval| &approval.digest) != planned.as_ref());
    if binds_anew {
        draft.status.approval = Some(ApprovalStatus {
            digest: planned.clone().unwrap_or_default(),
            at: Time(input.now),
            by: input.approved_by.map(str::to_owned),
            void: None,
        });
    }
    if let Some(approval) = draft.status.approval.as_mut() {
        approval.void = void(&approval.digest, named, planned.as_deref());
    }
}

fn void(bound: &str, named: Option<&String>, planned: Option<&str>) -> Option<String> {
    let again = "look at status.plan, then set approvedDigest to its digest";
    match planned {
        _ if bound.is_empty() => Some(format!("approved before there was a plan to approve: {again}")),
        None => Some(format!("the plan that was approved is gone: {again}")),
        Some(planned) if named.is_some_and(|named| named != planned) => {
            Some(format!("approvedDigest names another plan than {planned}: {again}"))
        }
        Some(planned) if bound != planned => Some(format!("the plan changed after it was approved: {again}")),
        Some(_) => None,
    }
}

/// What the gate waits for; `None` = it is open.
pub fn closed(input: &Input<'_>, draft: &Draft) -> Option<Refusal> {
    if input.spec.hold == Some(true) {
        return Some(Refusal::new("Held", "spec.hold is set: remove it to go on"));
    }
    let digest = draft.status.plan.as_ref().map(|plan| plan.digest.clone()).unwrap_or_default();
    let how = format!(
        "kubectl -n {} patch vmm {} --type merge -p '{{\"spec\":{{\"approved\":true,\"approvedDigest\":\"{digest}\"}}}}'",
        input.namespace, input.name
    );
    match &draft.status.approval {
        None => {
            return Some(Refusal::new(
                "Approval",
                format!("in sync; waits for a person's yes to plan {digest}: {how}"),
            ));
        }
        Some(ApprovalStatus { void: Some(why), .. }) => return Some(Refusal::new("ApprovalVoid", why.clone())),
        Some(_) => {}
    }
    match &input.spec.cutover.not_before {
        Some(Time(not_before)) if *not_before > input.now => {
            Some(Refusal::new("NotBefore", format!("approved; waits until {not_before} (spec.cutover.notBefore)")))
        }
        Some(_) | None => None,
    }
}
