//! PURE: what was seen, what to do next. No clock, no client, no await.

pub mod canary;
pub mod copy;
pub mod doctor;
pub mod migration;
