//! What a decision wants done. Every effect may be carried out twice.

use super::permit::PowerOnPermit;
use crate::api::block_copy::BlockCopySpec;
use crate::api::vm_migration::{PlanStatus, TargetOrder};

/// An order to the outside world.
#[derive(Debug)]
pub enum Effect {
    /// Keep the object until its machine has been released.
    AddFinalizer,
    /// Let the object go.
    RemoveFinalizer,
    /// Create the `BlockCopy`, or change it to this.
    OrderCopy(Box<BlockCopySpec>),
    /// Make sure that the host-side Job of the `BlockCopy` exists.
    EnsureJob,
    /// Delete the `BlockCopy`, and its Job before it.
    DeleteCopy,
    /// Put the planned file into the repository.
    Publish(Box<PlanStatus>),
    /// Have Terraform make a plan, where that is Drover's to do.
    Plan { round: u32 },
    /// Have Terraform's plan applied: `handle` says which, to the system that holds it.
    Apply { handle: String },
    /// Power the target on: always the last effect of a decision.
    PowerOn { permit: PowerOnPermit, ext_id: String, order: TargetOrder },
    /// Ask the target's guest to power off.
    ShutDownTarget { ext_id: String, order: TargetOrder },
    /// Power the target off, whatever its guest does.
    PowerOffTarget { ext_id: String, order: TargetOrder },
    /// Change the target's description, and with it its ETag.
    DescribeTarget { ext_id: String, order: TargetOrder, description: String },
    /// Put an address on a storage container's list, or take it off.
    Whitelist { container_ext_id: String, address: String, wanted: bool, order: TargetOrder },
    /// Mount Nutanix Guest Tools on the target, or install them.
    GuestTools { ext_id: String, install: bool, order: TargetOrder },
}

impl Effect {
    /// Every kind of effect, by name.
    pub const NAMES: &[&str] = &[
        "AddFinalizer",
        "RemoveFinalizer",
        "OrderCopy",
        "EnsureJob",
        "DeleteCopy",
        "Publish",
        "Plan",
        "Apply",
        "PowerOn",
        "ShutDownTarget",
        "PowerOffTarget",
        "DescribeTarget",
        "Whitelist",
        "GuestTools",
    ];

    /// Its kind, one of [`Self::NAMES`].
    pub fn name(&self) -> &'static str {
        match self {
            Effect::AddFinalizer => "AddFinalizer",
            Effect::RemoveFinalizer => "RemoveFinalizer",
            Effect::OrderCopy(_) => "OrderCopy",
            Effect::EnsureJob => "EnsureJob",
            Effect::DeleteCopy => "DeleteCopy",
            Effect::Publish(_) => "Publish",
            Effect::Plan { .. } => "Plan",
            Effect::Apply { .. } => "Apply",
            Effect::PowerOn { .. } => "PowerOn",
            Effect::ShutDownTarget { .. } => "ShutDownTarget",
            Effect::PowerOffTarget { .. } => "PowerOffTarget",
            Effect::DescribeTarget { .. } => "DescribeTarget",
            Effect::Whitelist { .. } => "Whitelist",
            Effect::GuestTools { .. } => "GuestTools",
        }
    }
}
