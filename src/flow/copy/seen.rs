//! What the host side saw in one turn. Every part that could not be looked at is [`Fact::Unknown`] with the reason, never a default.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::memory::{Mark, Memory};
use crate::api::machine::Machine;
use crate::api::shutdown::CommandOutcome;

/// Something that was looked at, or why it could not be.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact<T> {
    Known(T),
    /// Nobody could look; the words say why.
    Unknown(String),
}

/// Everything one turn knows.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// The domain that the order names.
    pub found: Fact<Found>,
    /// The claim file of that domain.
    pub memory: Fact<Option<Memory>>,
    /// The relay of this migration. Looked at before the domain, so that a connection seen closed has its reason in the domain's state.
    pub relay: Fact<RelaySeen>,
    /// Processes of the host. Looked at after the domain.
    pub processes: Fact<ProcessesSeen>,
    /// What this driver has verified while it saw the disks in step, by device.
    pub verifications: BTreeMap<String, VerificationSeen>,
    /// The command in the guest that this driver started.
    pub command: Option<CommandSeen>,
    /// Comparisons that this driver started, by device.
    pub comparisons: BTreeMap<String, ComparisonSeen>,
    /// Markers that this driver writes or has written, by device.
    pub canaries: BTreeMap<String, CanarySeen>,
    /// What went wrong when the last turn's effects were carried out.
    pub trouble: Option<String>,
}

/// The answer to "which domain is it?".
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// No domain bears the name; some names that were seen instead.
    None {
        seen_names: Vec<String>,
    },
    /// Several do.
    Several {
        names: Vec<String>,
    },
    One(Box<DomainSeen>),
}

/// A domain as libvirt tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct DomainSeen {
    pub uuid: String,
    pub power: Power,
    /// libvirt's own word for the state, for people.
    pub state_word: String,
    /// QEMU's id in libvirt; a domain that is off has none.
    pub id: Option<u32>,
    /// Memory was saved to disk: a start would resume it. Not a power-off.
    pub managed_save: bool,
    pub autostart: bool,
    /// What the domain is; sizes are 0 when `blocks` is unknown. `Err`: the parser's refusal.
    pub machine: Result<Machine, String>,
    /// Drover's mark in the persistent configuration.
    pub mark: Option<Mark>,
    /// `<mirror>` elements of the running domain, by device.
    pub mirrors: BTreeMap<String, MirrorSeen>,
    /// What only QEMU's monitor tells: unknown while it does not answer.
    pub blocks: Fact<BTreeMap<String, BlockSeen>>,
    pub libvirt_version: Version,
    pub qemu_version: Version,
    /// Who shut the guest down, by libvirt's event; absent if this driver did not see it.
    pub shutdown_by: Option<ShutdownBy>,
    /// Reboots of the guest that this driver saw.
    pub reboots: u32,
    /// Grows whenever something may have passed its mirrors by: a block job ended before the power-off, the domain was started, or events
    /// may have been missed.
    pub interruptions: u32,
}

/// What a domain does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    Running,
    /// Paused, blocked or suspended: QEMU lives.
    Paused,
    /// The guest has powered off, QEMU is ending.
    ShuttingDown,
    /// Off; `true` = libvirt's reason is an orderly shutdown.
    Off {
        orderly: bool,
    },
}

/// Who asked for the power-off that libvirt reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShutdownBy {
    Guest,
    Host,
}

/// major, minor, patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl Version {
    /// From libvirt's number, 1,000,000 * major + 1,000 * minor + patch.
    pub fn from_number(number: u32) -> Self {
        Version(number / 1_000_000, number / 1_000 % 1_000, number % 1_000)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// One `<mirror>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorSeen {
    /// It goes to this migration's relay, to the export named like the disk.
    pub ours: bool,
    /// `ready='yes'`. Sticky: it was ready once.
    pub ready: bool,
}

/// One disk as QEMU tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockSeen {
    pub size_bytes: u64,
    /// The running block job, if any.
    pub job: Option<JobSeen>,
}

/// Counters of a block job. `end` grows with every write of the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobSeen {
    pub cur: u64,
    pub end: u64,
    /// Its limit; 0 = none.
    pub bandwidth_bytes_s: u64,
}

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessId {
    pub pid: u32,
    /// Start time in clock ticks since boot.
    pub start_ticks: u64,
    /// The boot it belongs to.
    pub boot_id: String,
}

/// The host's processes, as far as they matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessesSeen {
    /// Who holds each source disk open, our own process left out, by device.
    pub holders: BTreeMap<String, Vec<Holder>>,
    /// Of the processes remembered from earlier turns, those that still live.
    pub alive: Vec<ProcessId>,
    /// The relay, as a process of this host.
    pub relay: Option<ProcessId>,
    /// Sockets to the storage that belong to no process any more but may still deliver.
    pub orphan_sockets: Vec<String>,
}

/// A process that holds a source disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub process: ProcessId,
    pub command: String,
    /// It is the QEMU of this very domain (its command line names the domain's uuid).
    pub qemu: bool,
}

/// The relay's own word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RelaySeen {
    /// Changes with every start of the relay.
    pub instance: String,
    pub pid: u32,
    pub memory_bytes: u64,
    pub exports: BTreeMap<String, ExportSeen>,
}

/// One export of the relay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportSeen {
    pub size_bytes: u64,
    /// Changes each time that it is opened.
    pub opening: String,
    pub connected: bool,
    /// Why its content cannot be trusted any more.
    pub broken: Option<String>,
    pub backlog_bytes: u64,
    pub drain_rate_bytes_s: u64,
    /// Writers wait for the target.
    pub throttled: bool,
}

/// A disk that is being verified while its guest runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerificationSeen {
    /// Which opening of the export it belongs to.
    pub opening: String,
    /// Equal at this moment.
    pub verified_bytes: u64,
    /// A difference that stands although nothing was written.
    pub difference_offset: Option<u64>,
}

/// A command in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandSeen {
    Running,
    Ended(CommandOutcome),
}

/// A comparison of source and target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComparisonSeen {
    /// It writes anew what differs.
    pub repairs: bool,
    pub progress: ComparisonProgress,
}

/// How far a comparison is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ComparisonProgress {
    Running {
        done_bytes: u64,
        seconds: u64,
    },
    Equal {
        blake3: String,
        /// Extents that were read for it, and those that were known to be equal.
        compared_extents: u64,
        verified_extents: u64,
        /// Extents that had differed and were written anew.
        repaired_extents: u64,
    },
    Different {
        first_difference_offset: u64,
    },
    /// It could not be carried out.
    Failed(String),
}

/// The marker of one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CanarySeen {
    pub nonce: String,
    pub progress: CanaryProgress,
}

/// How far its writing is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CanaryProgress {
    Writing,
    /// It is on stable storage, and was read back over another connection.
    Written,
    Failed(String),
}
