//! What a turn wants done. Each effect can be carried out again without harm; its outcome is seen in the next turn.

use std::time::Duration;

use super::memory::{Mark, Memory};
use super::seen::ProcessId;
use crate::api::block_copy::{BlockCopyStatus, DiskCopy};
use crate::api::shutdown::{GuestCommand, ShutdownMethod};

/// The outcome of [`super::decide`].
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Recorded before anything is done.
    pub status: BlockCopyStatus,
    /// Recorded before anything is done.
    pub memory: MemoryChange,
    /// In this order; at most one cannot be undone, and it is the last.
    pub effects: Vec<Effect>,
    /// How long to wait before looking again.
    pub wake: Duration,
}

/// What happens to the claim file.
#[derive(Clone, Debug, PartialEq)]
pub enum MemoryChange {
    Keep,
    /// Take the claim: fails if somebody has it.
    Create(Box<Memory>),
    Write(Box<Memory>),
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    WriteMark(Mark),
    RemoveMark,
    SetAutostart(bool),
    /// Write the marker of a target, in the background.
    WriteCanary {
        disk: DiskCopy,
        migration_uid: String,
        nonce: String,
    },
    /// Open an export in the relay. `fresh`: nothing was ever written to the target but a marker, so zeroes need not be.
    OpenExport {
        disk: DiskCopy,
        fresh: bool,
    },
    /// Close an export. Without `discard` the relay refuses while it holds anything that is not on the target.
    CloseExport {
        device: String,
        discard: bool,
    },
    StartMirror {
        device: String,
        bandwidth_bytes_s: u64,
    },
    SetSpeed {
        device: String,
        bandwidth_bytes_s: u64,
    },
    /// Only ordered when no export of the relay can hold it up.
    AbortMirror {
        device: String,
    },
    /// End a relay process; `force` = it did not go by itself.
    EndRelay {
        process: ProcessId,
        force: bool,
    },
    /// Verify a disk in the background while its guest runs, for this turn: what is not ordered again pauses.
    Verify {
        disk: DiskCopy,
        source_path: String,
        opening: String,
        /// Under what its write counters tell everything, seen in this turn.
        proviso: Proviso,
        bytes_s: u64,
    },
    /// Compare source and target in the background: every extent, or if the write counters may be believed, only what was not verified
    /// since it was written to. They are, if the proviso is the one under which it was verified last. `repair`: what differs is written
    /// anew from the source.
    Compare {
        disk: DiskCopy,
        source_path: String,
        believe: Option<Proviso>,
        repair: bool,
    },
    /// Have the guest's agent run a command, in the background.
    RunInGuest(GuestCommand),
    /// Ask the guest to power off.
    Shutdown(ShutdownMethod),
    /// Power the domain off, as if by pulling the plug.
    PowerOff,
    /// Start the source again.
    Start,
    /// Give up the claim.
    DeleteClaim,
}

/// What must still be the same at the end for write counters to tell everything that changed since they were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proviso {
    /// The relay process that counts.
    pub relay_instance: String,
    /// [`DomainSeen::interruptions`](super::DomainSeen::interruptions).
    pub interruptions: u32,
    /// Version of the target VM.
    pub target_version: Option<String>,
}

impl Effect {
    /// Every kind of effect, by name.
    pub const NAMES: &[&str] = &[
        "WriteMark",
        "RemoveMark",
        "SetAutostart",
        "WriteCanary",
        "OpenExport",
        "CloseExport",
        "StartMirror",
        "SetSpeed",
        "AbortMirror",
        "EndRelay",
        "Verify",
        "Compare",
        "RunInGuest",
        "Shutdown",
        "PowerOff",
        "Start",
        "DeleteClaim",
    ];

    /// Its kind, one of [`Self::NAMES`].
    pub fn name(&self) -> &'static str {
        match self {
            Effect::WriteMark(_) => "WriteMark",
            Effect::RemoveMark => "RemoveMark",
            Effect::SetAutostart(_) => "SetAutostart",
            Effect::WriteCanary { .. } => "WriteCanary",
            Effect::OpenExport { .. } => "OpenExport",
            Effect::CloseExport { .. } => "CloseExport",
            Effect::StartMirror { .. } => "StartMirror",
            Effect::SetSpeed { .. } => "SetSpeed",
            Effect::AbortMirror { .. } => "AbortMirror",
            Effect::EndRelay { .. } => "EndRelay",
            Effect::Verify { .. } => "Verify",
            Effect::Compare { .. } => "Compare",
            Effect::RunInGuest(_) => "RunInGuest",
            Effect::Shutdown(_) => "Shutdown",
            Effect::PowerOff => "PowerOff",
            Effect::Start => "Start",
            Effect::DeleteClaim => "DeleteClaim",
        }
    }

    /// May be carried out although the turn could not be recorded: it only keeps a running copy from crowding out the guest, or reads.
    pub fn needs_no_record(&self) -> bool {
        matches!(self, Effect::SetSpeed { .. } | Effect::Verify { .. })
    }
}
