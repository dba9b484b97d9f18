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
mod ledger;
mod permit;
mod pipeline;
mod provision;
mod seen;
mod step;
mod target_order;
mod undo;
mod want;
mod watch;

pub use decide::{Decision, Input, decide};
pub use effect::Effect;
pub use evidence::evidence;
pub use permit::PowerOnPermit;
pub use pipeline::{JobState, PipelineJob, stage};
pub use seen::{Application, Fact, Needs, Refusal, Seen, Setup, Stage, TargetVm, TargetVmDisk, needs};
pub use step::Step;
pub use want::wanted;

#[cfg(test)]
mod tests;
