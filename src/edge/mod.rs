//! I/O: one file or folder per outside system, thin and dumb. An edge decides nothing.

pub mod fail_point;
pub mod git;
#[cfg(feature = "host")]
pub mod host_processes;
mod http;
#[cfg(feature = "host")]
pub mod libvirt;
#[cfg(feature = "host")]
pub mod nfs;
pub mod prism;
