//! `BlockCopy`: the contract between the controller and the host-side job. Wanted state in spec, reached state in status.
//!
//! It lives in the operator's namespace, and is tied to its `VmMigration` and its Job by label, name and finalizer, not by owner
//! reference: pruning a migration must not kill a mirror before it has been released.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{MicroTime, Problem, Time, Tri};
use super::libvirt_host::CopyLimits;
use super::machine::Machine;
use super::nutanix_cluster::NfsAddress;
use super::shutdown::{CommandOutcome, ShutdownPolicy};

/// What the controller wants of the host side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "drover.dev",
    version = "v1alpha1",
    kind = "BlockCopy",
    plural = "blockcopies",
    shortname = "bc",
    category = "drover",
    namespaced,
    status = "BlockCopyStatus",
    printcolumn(name = "Hostname", type_ = "string", json_path = ".spec.hostname"),
    printcolumn(name = "Want", type_ = "string", json_path = ".spec.want"),
    printcolumn(name = "Reached", type_ = "string", json_path = ".status.reached"),
    printcolumn(name = "Problem", type_ = "string", json_path = ".status.problem.reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct BlockCopySpec {
    /// Who claims the machine.
    pub claim: Claim,
    /// Number of this order; it only grows. The host side refuses an order older than the newest it has seen.
    #[schemars(range(max = 9_007_199_254_740_991_i64))]
    pub epoch: u64,
    /// The machine, by hostname.
    #[schemars(length(min = 1, max = 80))]
    pub hostname: String,
    /// libvirt's uuid of the machine, pinned once it was found. From then on the hostname is not used to find it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 36))]
    pub domain_uuid: Option<String>,
    /// libvirt connection URI.
    #[schemars(length(min = 1, max = 1024))]
    pub libvirt_uri: String,
    /// Directory for the relay's sockets and the claim file, reachable by QEMU.
    #[schemars(length(min = 1, max = 60))]
    pub run_directory: String,
    /// What is wanted.
    pub want: Want,
    /// Where each disk goes; needed from `Canary` on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub disks: Vec<DiskCopy>,
    /// Under `Canary`: what tells its markers from any written before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 36))]
    pub canary: Option<String>,
    /// Version of the target VM (its ETag) as it was seen last, for `Mirror` and `Quiesce`. What was verified under another one proves
    /// nothing: the target may have run meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub target_version: Option<String>,
    /// Limits on copying.
    pub limits: CopyLimits,
    /// How the guest is shut down.
    pub shutdown: ShutdownPolicy,
    /// Under `Quiesce`: what differs after the power-off may be written anew from the source's disk, if that ends within so many seconds of
    /// the power-off. 0 = it may not, and the order fails.
    #[serde(default)]
    #[schemars(range(max = 86_400))]
    pub repair_within_seconds: u32,
    /// Under `KeepOff` and `Retire`: power the source off if somebody starts it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub power_off_source: bool,
}

/// The one migration that may touch a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// Namespace and name of the `VmMigration`, for people.
    #[schemars(length(max = 63))]
    pub namespace: String,
    #[schemars(length(max = 253))]
    pub name: String,
    /// Its uid: the claim's identity.
    #[schemars(length(max = 36))]
    pub uid: String,
    /// Which Drover: uid of the operator's namespace.
    #[schemars(length(max = 36))]
    pub installation: String,
}

/// The states of the contract. Each includes what the earlier ones promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Want {
    /// Find the machine, claim it, report what it is. Nothing is changed but the claim.
    Inspect,
    /// Write a marker to the first 512 bytes of each target, to which nothing was ever copied.
    Canary,
    /// Mirror its disks to their targets and keep them in step.
    Mirror,
    /// Shut the source down, prove it off, drain, prove source and target equal. Once the guest is off, nothing starts it but `Release`.
    Quiesce,
    /// The target runs: the source stays off, marked as migrated, and nothing is written or started any more. The claim is kept.
    KeepOff,
    /// End the mirror, give up the claim, restore autostart, and start the source if it was shut down by `Quiesce`.
    Release,
    /// The target had taken over and was shut down for good: like `Release`, for a source that bears the mark of a finished cutover.
    Undo,
    /// Like `KeepOff`, and the claim is given up: the mark forbids all that a claim would.
    Retire,
}

/// One disk's way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiskCopy {
    /// libvirt's target device, e.g. `vda`.
    #[schemars(length(min = 1, max = 32))]
    pub device: String,
    /// Exact size of the source in bytes: what the relay exports.
    #[schemars(range(min = 512, max = 9_007_199_254_740_991_i64))]
    pub size_bytes: u64,
    /// Where its bytes go.
    pub target: NfsFile,
}

/// A file on an NFSv3 server, opened without creating.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NfsFile {
    /// The server.
    pub server: NfsAddress,
    /// The export that is mounted, e.g. `/container`.
    #[schemars(length(min = 1, max = 255))]
    pub export: String,
    /// Path below the export, e.g. `.acropolis/vmdisk/<vmdisk_uuid>`.
    #[schemars(length(min = 1, max = 1024))]
    pub path: String,
    /// Size the file must have, in bytes. A file of another size is refused.
    #[schemars(range(max = 9_007_199_254_740_991_i64))]
    pub size_bytes: u64,
}

/// What the host side has reached.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BlockCopyStatus {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The epoch of the order that this status answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 9_007_199_254_740_991_i64))]
    pub epoch: Option<u64>,
    /// The state reached for that order. `Mirror` means that the mirror runs; `disks` and `inSync` tell how far it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached: Option<Want>,
    /// When the host side last looked (it writes at least every 10 s while it runs).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_at: Option<Time>,
    /// What keeps it from the wanted state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
    /// The machine, when it was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
    /// What the domain was doing when it was last looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<DomainStatus>,
    /// Copying, disk by disk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub disks: Vec<DiskCopyStatus>,
    /// All disks are in sync: mirror ready, nothing left to copy, relay's backlog below its bound, unbroken.
    #[serde(default)]
    pub in_sync: Tri,
    /// The guest writes faster than the target takes it, and is slowed to the target's speed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub guest_throttled: bool,
    /// How often the copy had to start again.
    #[serde(default)]
    #[schemars(range(max = 1_000_000))]
    pub restarts: u32,
    /// The shutdown and its proofs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiesce: Option<QuiesceStatus>,
}

/// The domain as libvirt tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DomainStatus {
    /// libvirt's word, e.g. `running`, `shut off`.
    #[schemars(length(max = 32))]
    pub state: String,
    /// The domain bears the mark of a cutover that was carried out.
    pub migrated: bool,
    /// What this migration's mark on it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<MarkState>,
    /// Autostart as it was before this migration disabled it. Absent = it was left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autostart_was: Option<bool>,
    #[schemars(length(max = 64))]
    pub libvirt_version: String,
    #[schemars(length(max = 64))]
    pub qemu_version: String,
}

/// What Drover's mark on a domain says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum MarkState {
    /// Claimed; nothing else was changed.
    Claimed,
    /// A cutover is under way: autostart is disabled, the shutdown may have been sent.
    Cutover,
    /// The machine runs elsewhere. Never copied again.
    Migrated,
}

/// How far one disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MirrorState {
    /// No mirror runs.
    None,
    /// The first pass runs.
    Copying,
    /// Every write of the guest goes to both disks.
    Ready,
    /// The source is off; what the relay still held is being written.
    Draining,
    /// Everything acknowledged is on the target's disk.
    Drained,
}

/// Copying of one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiskCopyStatus {
    #[schemars(length(max = 32))]
    pub device: String,
    pub state: MirrorState,
    #[schemars(range(max = 9_007_199_254_740_991_i64))]
    pub copied_bytes: u64,
    #[schemars(range(max = 9_007_199_254_740_991_i64))]
    pub total_bytes: u64,
    /// What the target took in the last interval, in MiB/s.
    #[schemars(range(max = 1_000_000))]
    pub rate_mib_s: u32,
    /// Acknowledged to QEMU, not yet on the target's disk.
    #[schemars(range(max = 9_007_199_254_740_991_i64))]
    pub backlog_bytes: u64,
    /// How much of the disk is known to be equal on both sides at this moment: compared while in sync and not written to since.
    #[serde(default)]
    #[schemars(range(max = 9_007_199_254_740_991_i64))]
    pub verified_bytes: u64,
    /// Something was written to this target, ever. Recorded before the first write: from then on zeroes must be written too.
    pub dirtied: bool,
}

/// The shutdown and its proofs. Times are absent until the thing was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuiesceStatus {
    /// Autostart was disabled and the mark set, before the shutdown was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub marked_at: Option<MicroTime>,
    /// What became of the command that was to run in the guest before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandOutcome>,
    /// Every disk was in sync when the shutdown was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shutdown_requested_at: Option<MicroTime>,
    /// First proof of off: libvirt says SHUTOFF, id -1, no managed save.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub off_by_libvirt_at: Option<MicroTime>,
    /// How it went off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub how: Option<HowOff>,
    /// Second proof of off, independent of libvirt: no process but ours holds a source disk, and the QEMU process that was seen holding each of them is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub off_by_host_at: Option<MicroTime>,
    /// The relay has written all it acknowledged, durably.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained_at: Option<MicroTime>,
    /// What made it necessary to write targets anew from the source's disks, and what that came to. Then nothing that was copied or
    /// verified before is believed: every extent is compared, and `drainedAt` may be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repair: Option<RepairStatus>,
    /// Every process that ever wrote to a target for this migration is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writers_gone_at: Option<MicroTime>,
    /// Every extent of every source disk was compared with its target: while in sync, if it was not written to since, or else after every
    /// writer was gone, through a fresh connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equal_at: Option<MicroTime>,
    /// The evidence for each disk, in the order of `spec.disks`: blake3 over the blake3 hashes of its extents of 4 MiB, one after the other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 64)))]
    pub blake3: Vec<String>,
    /// Of the extents of all disks, those that had to be compared in the outage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 9_007_199_254_740_991_i64))]
    pub compared_extents: Option<u64>,
    /// Of the extents of all disks, those that were compared before it and not written to since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 9_007_199_254_740_991_i64))]
    pub verified_extents: Option<u64>,
}

/// Targets written anew from the source's disks after the power-off. It is an alarm: somebody should look why it was needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RepairStatus {
    /// What was wrong with the copy.
    #[schemars(length(max = 1024))]
    pub why: String,
    /// When it was decided. Nothing was written to a target for it before.
    pub begun_at: MicroTime,
    /// Of the extents of all disks, those that differed and were written anew; known when all were compared and are equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 9_007_199_254_740_991_i64))]
    pub repaired_extents: Option<u64>,
}

/// How the source went off: a fact apart from whether it is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HowOff {
    /// The guest powered itself off after it was asked to.
    Clean,
    /// It did not power off in time, and was powered off by the host side, as its policy says.
    Forced,
    /// Something else stopped it: a crash, a kill, another person's `destroy`.
    Unclear,
}
