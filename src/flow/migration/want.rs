//! What the host side is to do, from what people want and what is remembered. One function, so that no two places disagree.

use super::step::{self, Step};
use crate::api::block_copy::Want;
use crate::api::{VmMigrationSpec, VmMigrationStatus};

/// The wanted state of the `BlockCopy`.
pub fn wanted(spec: &VmMigrationSpec, status: &VmMigrationStatus, deleting: bool) -> Want {
    let cutover = status.cutover.clone().unwrap_or_default();
    let finalize = spec.finalize == Some(true);
    let rollback = spec.rollback == Some(true);
    if cutover.undo.as_ref().is_some_and(|undo| undo.proven_off_at.is_some()) {
        return Want::Undo;
    }
    if cutover.power_on.is_some() {
        // Past the point of no return the source must never be started by a plain release.
        return match cutover.target_on_at {
            Some(_) if deleting || finalize => Want::Retire,
            Some(_) => Want::KeepOff,
            // The proofs of the order that is being carried out.
            None => Want::Quiesce,
        };
    }
    if deleting || rollback {
        return Want::Release;
    }
    if cutover.abandoned.is_some() {
        // Whether or not it ever stopped: a shutdown that was asked for may still come.
        return Want::Release;
    }
    if cutover.ordered_at.is_some() {
        return Want::Quiesce;
    }
    match &status.target {
        Some(_) if step::is_done(status, Step::Prepare) => Want::Mirror,
        Some(target) if target.canary.is_some() => Want::Canary,
        Some(_) | None => Want::Inspect,
    }
}
