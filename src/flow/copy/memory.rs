//! What outlives the driver: the claim file on the host, and the mark in the domain's metadata.
//!
//! The file decides who owns a domain (it is created atomically) and remembers what cannot be seen again. The mark is its copy for
//! people, for another installation, and for the day after the host was rebooted and the run directory is empty.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::seen::{ProcessId, ShutdownBy};
use crate::api::block_copy::Claim;
pub use crate::api::block_copy::MarkState;
use crate::api::common::Time;
use crate::api::shutdown::CommandOutcome;

/// The claim file of a domain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    pub claim: Claim,
    /// Newest order seen.
    pub epoch: u64,
    /// Autostart as it was before Drover disabled it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autostart_was: Option<bool>,
    /// Devices whose target may have been written to.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub dirtied: BTreeSet<String>,
    /// Path of each source disk when copying began.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub source_paths: BTreeMap<String, String>,
    /// QEMU processes of the domain that were seen holding each disk.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub holders: BTreeMap<String, BTreeSet<ProcessId>>,
    /// Every relay that was ever told to open an export.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub writers: BTreeSet<ProcessId>,
    /// The copy that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<Attempt>,
    /// Attempts that failed since one last was in sync, and when the next may begin.
    #[serde(default)]
    pub failures: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Time>,
    /// The last shutdown request; it is repeated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shutdown_sent_at: Option<Time>,
    /// Who shut the guest down after it was asked to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shutdown_by: Option<ShutdownBy>,
    /// The order whose command ran in the guest, and what became of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<(u64, CommandOutcome)>,
    /// Reboots that this driver had seen when it asked the guest to power off.
    #[serde(default)]
    pub reboots: u32,
    /// The guest did not power off in time, and was powered off.
    #[serde(default)]
    pub forced: bool,
    /// The source was seen off after our request. From then on nothing is mirrored to the targets for this claim.
    #[serde(default)]
    pub shut_down: bool,
    /// Why what differs is written anew from the source's disks. From then on the driver is a writer, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repair: Option<String>,
    /// Source and target were reported as equal: from then on the target may be running, and nothing is written to it any more.
    #[serde(default)]
    pub proven: bool,
    /// The order whose `Quiesce` failed: it is not tried again under the same epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiesce_failed: Option<Failure>,
}

/// Why an order has failed for good.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    pub epoch: u64,
    pub reason: String,
    pub message: String,
}

impl Memory {
    /// What a new claim remembers: nothing yet.
    pub fn new(claim: Claim, epoch: u64) -> Self {
        Self {
            claim,
            epoch,
            autostart_was: None,
            dirtied: BTreeSet::new(),
            source_paths: BTreeMap::new(),
            holders: BTreeMap::new(),
            writers: BTreeSet::new(),
            attempt: None,
            failures: 0,
            retry_at: None,
            shutdown_sent_at: None,
            shutdown_by: None,
            command: None,
            reboots: 0,
            forced: false,
            shut_down: false,
            repair: None,
            proven: false,
            quiesce_failed: None,
        }
    }

    /// Nobody waits until a clock that was set back has come there again: what is noted for a time that cannot be is noted for now.
    pub fn follow_clock(&mut self, now: &Time, longest_pause: &Time) {
        self.retry_at = self.retry_at.take().map(|at| at.min(longest_pause.clone()));
        self.shutdown_sent_at = self.shutdown_sent_at.take().map(|at| at.min(now.clone()));
    }

    /// Every process whose end will have to be proven.
    pub fn processes(&self) -> BTreeSet<ProcessId> {
        self.holders.values().flatten().chain(&self.writers).cloned().collect()
    }
}

/// One unbroken run of mirrors: one relay process, one QEMU process, all disks. If any part of it ends, all of it is void.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    pub relay_instance: String,
    pub qemu: ProcessId,
    /// When the mirrors were ordered; absent while exports are being opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// Devices that were seen ready with nothing left to copy. From then on every write goes to both sides before the guest is told.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub synced: BTreeSet<String>,
    /// A mirror was seen cut off while the guest ran: what it wrote since is counted nowhere.
    #[serde(default)]
    pub cut: bool,
}

/// Drover's element in the domain's metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    pub claim: Claim,
    pub epoch: u64,
    pub state: MarkState,
    /// Autostart as it was before Drover disabled it.
    pub autostart_was: Option<bool>,
}
