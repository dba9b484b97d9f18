//! Orders to Prism about the target, and what belongs to it: recorded in one turn, sent in later ones, with exactly the ETag and the request id that were recorded.

use super::decide::Input;
use crate::api::common::MicroTime;
use crate::api::vm_migration::TargetOrder;

/// How long an order is repeated as it is. After that its task has failed.
const REPEAT_SECONDS: i64 = 60;
/// The same for the power button, which a guest may miss while it boots; pressing it again does no harm.
const PRESS_AGAIN_SECONDS: i64 = 10;

/// The order to send, if it was recorded in an earlier turn and is still good; otherwise it is recorded now.
pub fn recorded(input: &Input<'_>, slot: &mut Option<TargetOrder>, what: &str, etag: &str) -> Option<TargetOrder> {
    recorded_within(REPEAT_SECONDS, input, slot, what, etag)
}

/// The same for the order to press the power button.
pub fn pressed(input: &Input<'_>, slot: &mut Option<TargetOrder>, etag: &str) -> Option<TargetOrder> {
    recorded_within(PRESS_AGAIN_SECONDS, input, slot, "shutdown", etag)
}

fn recorded_within(
    seconds: i64,
    input: &Input<'_>,
    slot: &mut Option<TargetOrder>,
    what: &str,
    etag: &str,
) -> Option<TargetOrder> {
    let good = |order: &&TargetOrder| order.etag == etag && input.now.duration_since(order.at.0).as_secs() < seconds;
    if let Some(order) = slot.as_ref().filter(good) {
        return Some(order.clone());
    }
    *slot = Some(new(input, what, etag, slot.as_ref()));
    None
}

/// A new order: its request id belongs to this migration, this purpose, this state of what it changes, this moment, and to no order before it.
pub fn new(input: &Input<'_>, what: &str, etag: &str, before: Option<&TargetOrder>) -> TargetOrder {
    let before = before.map_or("", |order| order.request_id.as_str());
    let seed = format!("{}/{what}/{}/{}/{before}", input.uid, etag, input.now);
    let request_id = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, seed.as_bytes()).to_string();
    TargetOrder { request_id, etag: etag.into(), at: MicroTime(input.now) }
}
