//! The relay: the process between QEMU's mirror and the target's storage.
//!
//! ```text
//! guest -> QEMU mirror (synchronous writes) -> NBD on nbd.sock -> RELAY (memory) -> target, FILE_SYNC
//! ```
//!
//! It acknowledges writes from bounded memory, so that the guest waits for a local socket and not for storage, and it outlives QEMU to
//! drain the rest. What it promises:
//!
//! - A guest's request is answered within `max_guest_stall`, whatever the target does: at two thirds of it with EIO, which ends the
//!   mirror and lets the guest run on; and should this process fail to, its [`supervisor`] kills it before the time is up.
//! - A backlog of 0 on an unbroken export means that every acknowledged byte is on the target's stable storage.
//! - Nothing is created, resized, or written past the source's size.
//! - After an error nothing is hidden: a broken export stays broken until it is closed and opened again.
//!
//! Files: [`supervisor`] and [`worker`] are the two processes; [`control`] is how the driver talks to it; [`handshake`] and
//! [`transmission`] speak NBD; [`exports`] holds the open ones; [`export`] is one of them, over [`queue`], [`memory`] and [`block_set`];
//! [`drain`] moves bytes to a [`target`]; [`writes`] tells the driver which extents were touched.

pub mod block_set;
pub mod control;
pub mod drain;
pub mod export;
pub mod exports;
pub mod handshake;
pub mod memory;
pub mod queue;
pub mod supervisor;
pub mod target;
pub mod transmission;
pub mod worker;
pub mod writes;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};

pub use control::{ExportStatus, NBD_SOCKET, RelayClient, RelayError, RelayStatus};
pub use exports::DURABLE_SUFFIX;
pub use supervisor::{LOCK_FILE, clear_away};
pub use target::TargetSpec;

/// Arguments of `drover host relay`.
#[derive(Clone, Debug, clap::Args)]
pub struct RelayArgs {
    /// Directory for the sockets. Whoever may enter it may connect to the disks: let only QEMU's user in.
    #[arg(long)]
    pub run_directory: PathBuf,
    /// Memory for writes that the target has not taken yet, in MiB, shared by all disks; at least 16 per disk.
    #[arg(long, default_value_t = 256)]
    pub memory_mib: u32,
    /// Longest time that a guest's write may stay unanswered, in milliseconds, whatever fails.
    #[arg(long, default_value_t = 3000)]
    pub max_guest_stall_millis: u32,
    /// Process id of the supervisor: makes this process its worker. Not for people.
    #[arg(long, hide = true)]
    pub worker_of: Option<u32>,
}

/// How the bound on a guest's stall is divided.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Age of a request at which the worker answers it with an error.
    pub deadline: Duration,
    /// Age of a request at which the supervisor kills a worker that did not.
    pub kill: Duration,
    /// How often the worker looks and gives a sign of life.
    pub tick: Duration,
}

impl RelayArgs {
    /// Two thirds for the target to answer, a sixth for the worker to give up, a sixth for the kill to take effect.
    pub fn limits(&self) -> Limits {
        let stall = Duration::from_millis(u64::from(self.max_guest_stall_millis));
        let tick = (stall / 60).clamp(Duration::from_millis(5), Duration::from_millis(50));
        Limits { deadline: stall * 2 / 3 - tick, kill: stall * 5 / 6, tick }
    }
}

/// Runs the relay until it is killed. Returns only with an error: a relay has no good end of its own.
pub fn run(args: RelayArgs) -> Result<()> {
    ensure!(
        args.max_guest_stall_millis >= 300,
        "--max-guest-stall-millis {}: at least 300",
        args.max_guest_stall_millis
    );
    match args.worker_of {
        Some(supervisor) => worker::run(&args, supervisor),
        None => supervisor::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worker_gives_up_before_it_is_killed_and_the_kill_is_in_time() {
        for max_guest_stall_millis in [300, 1000, 3000, 30_000] {
            let args =
                RelayArgs { run_directory: "/run".into(), memory_mib: 64, max_guest_stall_millis, worker_of: None };
            let Limits { deadline, kill, tick } = args.limits();
            let stall = Duration::from_millis(u64::from(max_guest_stall_millis));
            assert!(
                deadline + 2 * tick <= kill && kill + 2 * tick < stall,
                "{max_guest_stall_millis}: {deadline:?} {kill:?}"
            );
        }
    }
}
