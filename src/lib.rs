//! Drover moves running VMs from libvirt/KVM hosts to Nutanix AHV with the outage of one reboot.
//!
//! This file is the map. The rooms, in dependency order: a room imports only rooms above it
//! (`controller`, `host` and `terraform` import all of them but each other).
//!
//! | room         | kind  | what lives there |
//! |--------------|-------|------------------|
//! | [`api`]        | words | the resources people and Drover write: serde, schemars, CEL rules |
//! | [`machine`]    | pure  | what a VM is: libvirt domain XML to a `Machine` |
//! | [`plan`]       | pure  | `Machine` + spec + target facts to a frozen `Plan`, its digest, preflight findings |
//! | [`render`]     | pure  | `Plan` to Terraform, the host-side Job, destination disk XML, commit message |
//! | [`flow`]       | pure  | what was seen, the step table, the gates, `decide`; the host side's decide too; what was left behind |
//! | [`edge`]       | I/O   | one file or folder per outside system, thin |
//! | [`controller`] | loop  | observe, decide, record, act |
//! | [`host`]       | loop  | the host-side job: a driver over libvirt, and the relay |
//! | [`terraform`]  | loop  | the Job that plans and applies a team's repository where there is no CI |
//!
//! The invariants every change is held to:
//!
//! - **I1 One writer.** A source and its target never run at the same time.
//! - **I2 Nothing lost.** The target boots only from disks proven equal to the source's at the moment it stopped.
//! - **I3 No harm.** Until a person approves, the source keeps running whatever fails.
//! - **I4 Always a way back.** Until it is finalised, every migration can be undone.
//! - **I5 Only what was approved.** Cutover carries out exactly what was shown when it was approved.
//! - **I6 Honest status.** Every wait shows its reason, since when, and what ends it. Unknown is never "no".
//! - **I7 Least power.** The host side never sees Nutanix credentials; the controller never opens libvirt.

// kube's printcolumn(type_ = "string") repeats by design; clippy takes it for a repeated attribute.
#[allow(clippy::duplicated_attributes)]
pub mod api;
pub mod controller;
pub mod edge;
#[deny(clippy::disallowed_methods, clippy::disallowed_types, clippy::wildcard_enum_match_arm)]
pub mod flow;
#[cfg(feature = "host")]
pub mod host;
#[deny(clippy::disallowed_methods, clippy::disallowed_types)]
pub mod machine;
#[deny(clippy::disallowed_methods, clippy::disallowed_types)]
pub mod plan;
#[deny(clippy::disallowed_methods, clippy::disallowed_types)]
pub mod render;
pub mod terraform;
