//! Nutanix Guest Tools, once the target's guest was heard: ordered, a few times if need be, and recorded. Nothing waits for them.

use super::decide::{Draft, Input};
use super::effect::Effect;
use super::seen::{Fact, GuestToolsSeen};
use super::step;
use super::target_order;
use crate::api::common::Time;
use crate::api::nutanix_cluster::GuestToolsPolicy;
use crate::api::vm_migration::GuestToolsStatus;
use crate::api::{VmMigrationSpec, VmMigrationStatus};

/// How often they are ordered before it is given up.
const TRIES: u32 = 3;
/// How long an order is sent again, with the same answer, before it counts as failed. An installation takes minutes.
const TRY_SECONDS: i64 = 300;

/// Whether the next decision needs to see them.
pub fn is_needed(spec: &VmMigrationSpec, status: &VmMigrationStatus) -> bool {
    let cutover = status.cutover.clone().unwrap_or_default();
    let taken_over = cutover.reachable_at.is_some() && cutover.undo.is_none();
    let ended = status.guest_tools.as_ref().is_some_and(|tools| tools.done_at.is_some() || tools.failed_at.is_some());
    taken_over && !ended && spec.finalize != Some(true) && spec.rollback != Some(true)
}

/// Order what is wanted and not there. Says nothing of how far it is: that is recorded, and no step waits for it.
pub fn see_to(input: &Input<'_>, draft: &mut Draft) {
    let policy = input.seen.setup.as_ref().map_or(GuestToolsPolicy::None, |setup| setup.cluster.guest_tools);
    let install = policy == GuestToolsPolicy::Install;
    if policy == GuestToolsPolicy::None || !is_needed(input.spec, input.status) {
        return;
    }
    let mut tools = draft.status.guest_tools.clone().unwrap_or_default();
    if let (Some(failure), Some(_)) = (input.last_failure, &tools.order) {
        tools.message = Some(step::clip(&failure.message).chars().take(1024).collect());
    }
    match &input.seen.guest_tools {
        Fact::NotAsked => return,
        Fact::Unknown(refusal) => tools.message = Some(refusal.message.chars().take(1024).collect()),
        Fact::Known(GuestToolsSeen { is_installed: true, .. }) => done(input, &mut tools),
        Fact::Known(GuestToolsSeen { is_iso_inserted: true, .. }) if !install => done(input, &mut tools),
        Fact::Known(GuestToolsSeen { etag, .. }) => order(input, draft, &mut tools, install, etag),
    }
    draft.status.guest_tools = Some(tools);
}

fn done(input: &Input<'_>, tools: &mut GuestToolsStatus) {
    tools.done_at = Some(Time(input.now));
    (tools.order, tools.message) = (None, None);
}

/// An order is sent as it was recorded, and again as long as it may still be carried out: Prism answers the same one with the same task, and
/// so with what became of it.
fn order(input: &Input<'_>, draft: &mut Draft, tools: &mut GuestToolsStatus, install: bool, etag: &str) {
    let age = tools.order.as_ref().map(|order| input.now.duration_since(order.at.0).as_secs());
    match (&tools.order, age) {
        (Some(order), Some(age)) if age < TRY_SECONDS => {
            let ext_id = input.status.target.as_ref().map(|target| target.ext_id.clone()).unwrap_or_default();
            draft.effects.push(Effect::GuestTools { ext_id, install, order: order.clone() });
        }
        (_, _) if tools.tries >= TRIES => {
            tools.failed_at = Some(Time(input.now));
            tools.order = None;
            tools.message.get_or_insert_with(|| format!("ordered {TRIES} times, and Prism does not show them"));
        }
        (before, _) => {
            tools.order = Some(target_order::new(input, "guest-tools", etag, before.as_ref()));
            tools.tries += 1;
        }
    }
}
