//! PURE: a plan to text and objects, nothing else.

pub mod commit;
pub mod job;
pub mod mirror;
pub mod odata;
pub mod terraform;
pub mod terraform_job;
