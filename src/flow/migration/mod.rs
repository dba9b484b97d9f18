//! One migration: what was seen, the step table, the gate, `decide`.
//!
//! ```text
//! Discover -> Preflight -> Publish -> Provision -> Prepare -> Mirror -> [gate] -> Quiesce -> Prove -> Boot -> Verify -> (done, until finalised)
//!                                                                |                  |         |       ^
//!                                                                |   any failure: the source  |       the point of no return:
//!                                                                +-- keeps running   or is started    the recorded power-on intent
//! ```
//!
//! [`decide`] is total and pure: it gets the time as an argument, talks to nobody and fails never. It returns the status to record, the
//! effects to carry out after that, and when to look again. What an effect achieved is seen the next time, never assumed.

mod conditions;
mod decide;
mod effect;
mod evidence;
mod gate;
mod guest_tools;
mod ledger;
mod permit;
mod pipeline;
mod prepare;
mod provision;
mod seen;
mod step;
mod target_order;
mod undo;
mod want;
mod watch;
mod whitelist;

pub use decide::{Decision, Input, decide};
pub use effect::Effect;
pub use evidence::evidence;
pub use guest_tools::is_needed as guest_tools_are_needed;
pub use permit::PowerOnPermit;
pub use pipeline::{JobEnd, JobState, PipelineJob, TERRAFORM_ROUNDS, TerraformJobs, stage};
pub use prepare::to_be_read as canary_to_be_read;
pub use seen::{
    Application, CanarySeen, Fact, GuestToolsSeen, Needs, OtherUse, Refusal, Seen, Setup, Stage, TargetVm,
    TargetVmDisk, Whitelist, needs,
};
pub use step::Step;
pub use want::wanted;
pub use whitelist::is_needed as whitelist_is_needed;

#[cfg(test)]
mod tests;
