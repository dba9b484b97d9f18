//! `VmMigration`: one machine to move. The only resource a client team writes.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::block_copy::QuiesceStatus;
use super::common::{Category, Condition, MicroTime, NameRef, Problem, Time};
use super::machine::{Machine, TargetBus};
use super::shutdown::ShutdownPolicy;

/// Which machine, approved or not, roll back or not. Only `hostname` is required, and every verb is a field that git can own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "drover.dev",
    version = "v1alpha1",
    kind = "VmMigration",
    plural = "vmmigrations",
    shortname = "vmm",
    category = "drover",
    namespaced,
    status = "VmMigrationStatus",
    printcolumn(name = "Hostname", type_ = "string", json_path = ".spec.hostname"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Waiting for", type_ = "string", json_path = ".status.waitingFor.reason"),
    printcolumn(name = "Copied", type_ = "string", json_path = ".status.copied"),
    printcolumn(name = "Downtime", type_ = "string", json_path = ".status.downtime", priority = 1),
    printcolumn(name = "Rollback", type_ = "string", json_path = ".status.rollback.message", priority = 1),
    printcolumn(name = "Digest", type_ = "string", json_path = ".status.plan.digest", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = ("!has(self.metadata.name) || self.metadata.name.size() <= 63", "metadata.name must have at most 63 characters: the names of the host-side job are derived from it")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "!has(self.approvedDigest) || (has(self.approved) && self.approved)",
    "approvedDigest says which plan is approved: set approved: true with it, or remove both"
))]
#[x_kube(validation = (
    "!has(self.finalize) || !self.finalize || !has(self.rollback) || !self.rollback",
    "finalize and rollback exclude each other: finalize gives up the way back"
))]
pub struct VmMigrationSpec {
    /// The machine: the name of its libvirt domain.
    #[schemars(length(min = 1, max = 80), regex(pattern = r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"))]
    #[x_kube(validation = ("self == oldSelf", "hostname cannot change: delete this migration and create one for the other machine"))]
    pub hostname: String,
    /// A person's yes to the cutover. Absent means no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved: Option<bool>,
    /// The plan that is approved: must equal `status.plan.digest`. Without it `approved` binds to the plan frozen when it is first seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 71), regex(pattern = r"^sha256:[0-9a-f]{64}$"))]
    pub approved_digest: Option<String>,
    /// Undo: give up the copy; after a cutover, shut the target down and start the source again. What was written on the target is
    /// then not on the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<bool>,
    /// Begin nothing new. What runs already (the mirror) goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<bool>,
    /// Raise it to try again after a failure that Drover does not retry by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1000))]
    pub attempt: Option<u32>,
    /// Accept the result: release the claim and stop watching. The source stays defined, off, with autostart disabled; its disks are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finalize: Option<bool>,
    /// The `LibvirtHost` the machine runs on. Absent = the only one this namespace may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_ref: Option<NameRef>,
    /// The `NutanixCluster` to move to. Absent = the only one this namespace may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<NameRef>,
    /// The `TerraformRepository` in this namespace. Absent = the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terraform_ref: Option<NameRef>,
    /// A person's yes to what Terraform will do. Never the same as approving the cutover.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terraform: Option<TerraformSpec>,
    /// What the target has other than its source and its cluster's defaults. The plan is made with it: later changes have no effect.
    #[serde(default, skip_serializing_if = "Overrides::is_empty")]
    pub overrides: Overrides,
    /// How the cutover is done.
    #[serde(default)]
    pub cutover: CutoverSpec,
}

/// A person's yes to what Terraform will do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TerraformSpec {
    /// The Terraform plan that is to be applied: must equal `status.terraform.planDigest`. Absent: a person starts the pipeline's job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 71), regex(pattern = r"^sha256:[0-9a-f]{64}$"))]
    pub approved_digest: Option<String>,
}

/// What the target has other than its source and its cluster's defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Overrides {
    /// Categories beside those of the `NutanixCluster`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = ("self.all(a, self.exists_one(b, b.key == a.key && b.value == a.value))", "each category may be listed once"))]
    pub categories: Vec<Category>,
    /// Prism's uuid of a project, instead of that of the `NutanixCluster`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 36), regex(pattern = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"))]
    pub project: Option<String>,
    /// The bus of the target's disks. Absent = SCSI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bus: Option<TargetBus>,
}

impl Overrides {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How the cutover is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CutoverSpec {
    /// Not before this time, even if approved earlier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Time>,
    /// How the source's guest is shut down.
    #[serde(default)]
    pub shutdown: ShutdownPolicy,
    /// The longest outage before the source is started again instead, in seconds, counted from the guest's power-off to the power-on order.
    #[serde(default = "default_max_downtime")]
    #[schemars(range(min = 30, max = 86_400))]
    pub max_downtime_seconds: u32,
    /// What happens if a target differs from its source although the source is off: because storage or host side failed in the shutdown, or
    /// because the storage did not keep what it was given.
    #[serde(default)]
    pub on_difference: OnDifference,
    /// How long the target's guest may take until it is heard on the network, in seconds.
    #[serde(default = "default_verify_timeout")]
    #[schemars(range(min = 30, max = 86_400))]
    pub verify_timeout_seconds: u32,
    /// What happens if it is not heard by then.
    #[serde(default)]
    pub on_verify_failure: OnVerifyFailure,
    /// What happens to a source that somebody starts although the target has taken over.
    #[serde(default)]
    pub on_source_started: OnSourceStarted,
}

/// What happens if a target differs from its source after the power-off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnDifference {
    /// What differs is written anew from the source's disk, everything is compared, and it is told. If that would take longer than
    /// `maxDowntimeSeconds` the source is started again.
    #[default]
    Repair,
    /// The source is started again.
    GiveUp,
}

/// What happens to a source that somebody starts although the target has taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnSourceStarted {
    /// It is told, as loudly as a status can.
    #[default]
    Alarm,
    /// It is told, and the source is powered off at once.
    PowerOff,
}

/// What happens to a target that runs, but whose guest is not heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnVerifyFailure {
    /// It is left running, and a person decides.
    #[default]
    Wait,
    /// The cutover is undone: the target is shut down and the source started.
    Rollback,
}

impl Default for CutoverSpec {
    fn default() -> Self {
        Self {
            not_before: None,
            shutdown: ShutdownPolicy::default(),
            max_downtime_seconds: default_max_downtime(),
            on_difference: OnDifference::default(),
            verify_timeout_seconds: default_verify_timeout(),
            on_verify_failure: OnVerifyFailure::default(),
            on_source_started: OnSourceStarted::default(),
        }
    }
}

fn default_max_downtime() -> u32 {
    900
}

fn default_verify_timeout() -> u32 {
    600
}

/// What Drover has seen and done.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VmMigrationStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// A word for people, derived from the rest and never read by Drover.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub phase: Option<String>,
    /// What it is waiting for, since when, and when it looks again. Absent when it waits for nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<Waiting>,
    /// `Ready`, `Reconciling`, `Stalled`, and one per milestone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The steps that were entered, in order, with times.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub steps: Vec<StepRecord>,
    /// Copied share, for people, e.g. `512 of 1024 MiB`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub copied: Option<String>,
    /// The outage, for people, e.g. `12 s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub downtime: Option<String>,
    /// The source as it was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceStatus>,
    /// The frozen plan: what an approval is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanStatus>,
    /// The commit that defines the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terraform: Option<TerraformStatus>,
    /// The target as it was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<TargetStatus>,
    /// Nutanix Guest Tools on the target, if the `NutanixCluster` wants them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_tools: Option<GuestToolsStatus>,
    /// Copying, disk by disk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub disks: Vec<DiskStatus>,
    /// The approval that counts: which plan, and when it was first seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalStatus>,
    /// The cutover's times, proofs and orders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cutover: Option<CutoverStatus>,
    /// What `spec.rollback` would do now, told before anybody sets it. Never read by Drover.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<RollbackStatus>,
    /// What this migration has changed outside of this object, as it is seen now. Made anew each time, and never read by Drover.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub ledger: Vec<SideEffect>,
    /// Cutovers that were given up or undone, oldest first; the last few are kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub earlier_cutovers: Vec<CutoverStatus>,
    /// `spec.attempt` when the current run began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1000))]
    pub attempt: Option<u32>,
    /// Number of the latest order to the host side. Older orders are refused there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 9_007_199_254_740_991_i64))]
    pub epoch: Option<u64>,
}

/// A wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// One CamelCase word.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// What ends the wait, for a person.
    #[schemars(length(max = 4096))]
    pub message: String,
    /// Since when.
    pub since: Time,
    /// How often it is looked at again, in seconds (changes of Drover's own resources are seen at once).
    #[schemars(range(max = 3600))]
    pub next_check_seconds: u32,
}

/// A step that was entered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepRecord {
    #[schemars(length(max = 32))]
    pub name: String,
    pub started_at: Time,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
}

/// The source VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// Name of the `LibvirtHost`.
    #[schemars(length(max = 253))]
    pub host: String,
    /// libvirt's uuid.
    #[schemars(length(max = 36))]
    pub uuid: String,
    /// The machine bore the mark of a finished cutover when it was found: it is adopted as it is and nothing is touched.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub already_migrated: bool,
}

/// The frozen plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanStatus {
    /// `sha256:` over the canonical plan; what `spec.approvedDigest` must equal.
    #[schemars(length(max = 71))]
    pub digest: String,
    /// When it was frozen.
    pub frozen_at: Time,
    /// The machine it was made from.
    pub machine: Machine,
    /// Name of the target VM.
    #[schemars(length(max = 80))]
    pub target_name: String,
    /// Path of the Terraform file in the repository.
    #[schemars(length(max = 512))]
    pub path: String,
    /// The Terraform file, as committed.
    #[schemars(length(max = 262_144))]
    pub terraform: String,
    /// Sizes of the target's disks in bytes, in the order of `machine.disks`.
    #[schemars(length(max = 256), inner(range(max = 9_007_199_254_740_991_i64)))]
    pub target_disk_bytes: Vec<u64>,
    /// How the source's guest is shut down.
    pub shutdown: ShutdownPolicy,
    /// What the plan leaves out or maps differently, for the person who approves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 1024)))]
    pub notes: Vec<String>,
}

/// The commit that defines the target, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TerraformStatus {
    /// Commit id on the branch that holds the file as planned.
    #[schemars(length(max = 64))]
    pub commit: String,
    pub pushed_at: Time,
    /// Where a person looks at the pipeline that plans and applies it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub pipeline_url: Option<String>,
    /// `sha256:` over what Terraform's plan would change, whatever commit or pipeline it comes from: what `spec.terraform.approvedDigest`
    /// must equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 71))]
    pub plan_digest: Option<String>,
    /// The plan in a few words, e.g. `1 to create, 0 to change, 0 to delete`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub summary: Option<String>,
    /// Why this plan must not be applied; empty = nothing speaks against it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 1024)))]
    pub refused: Vec<String>,
    /// What was changed outside of Terraform since it last looked. Reported, never mended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 1024)))]
    pub drift: Vec<String>,
    /// The application was ordered by Drover, for the approved plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apply_ordered_at: Option<Time>,
}

/// The target VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetStatus {
    /// Prism's identifier of the VM (`extId`), pinned when it is first found.
    #[schemars(length(max = 36))]
    pub ext_id: String,
    /// Its disks, in the order of the plan.
    #[schemars(length(max = 256))]
    pub disks: Vec<TargetDisk>,
    /// Part of the ledger: the VM appeared after this migration had pushed its definition, and was empty and off when it was first seen.
    pub created_by_us: bool,
    /// The storage container's list of addresses, and this migration's part in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<StorageAccess>,
    /// Whether the files that are written to were seen to be this VM's disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryStatus>,
}

/// What the storage container lets in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StorageAccess {
    /// The hypervisor, as the storage sees it.
    #[schemars(length(max = 45))]
    pub address: String,
    /// Prism's identifier of the storage container.
    #[schemars(length(max = 36))]
    pub container_ext_id: String,
    /// What was found: that the address is on the list that counts, or why nobody can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub found: Option<String>,
    /// Drover has put it there, for this migration or for another one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub added_by_drover: bool,
    /// The order that puts it there, or takes it off again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<TargetOrder>,
    /// This migration needs it no longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
}

/// The markers that the host side writes over NFS and Prism shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CanaryStatus {
    /// What tells these markers from any written before.
    #[schemars(length(max = 36))]
    pub nonce: String,
    /// The host side has written all of them and has read them back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_at: Option<Time>,
    /// Prism has shown the same bytes on every disk of this VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed_at: Option<Time>,
    /// Why Prism was not asked for them to the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub not_confirmed: Option<String>,
}

/// Nutanix Guest Tools on the target. Nothing waits for them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GuestToolsStatus {
    /// How often they were ordered.
    #[schemars(range(max = 1000))]
    pub tries: u32,
    /// The order that is being carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<TargetOrder>,
    /// Prism shows them as mounted, or installed, as wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done_at: Option<Time>,
    /// What went wrong last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// It is not tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_at: Option<Time>,
}

/// A disk of the target VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetDisk {
    /// libvirt device of the source disk it is the copy of.
    #[schemars(length(max = 32))]
    pub device: String,
    /// `device_uuid`: the v4 API's `extId` of the disk.
    #[schemars(length(max = 36))]
    pub ext_id: String,
    /// `vmdisk_uuid`: names the backing file.
    #[schemars(length(max = 36))]
    pub vmdisk_uuid: String,
    /// Path of the backing file on the NFS server, starting with the container.
    #[schemars(length(max = 1024))]
    pub nfs_path: String,
    /// Size in bytes.
    #[schemars(range(max = 9_007_199_254_740_991_i64))]
    pub size_bytes: u64,
}

/// Copying of one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiskStatus {
    #[schemars(length(max = 32))]
    pub device: String,
    #[schemars(length(max = 32))]
    pub state: String,
    #[schemars(range(max = 9_007_199_254_740_991_i64))]
    pub copied_bytes: u64,
    #[schemars(range(max = 9_007_199_254_740_991_i64))]
    pub total_bytes: u64,
    /// What the target took in the last interval, in MiB/s.
    #[schemars(range(max = 1_000_000))]
    pub rate_mib_s: u32,
    /// Acknowledged to the guest's mirror, not yet on the target's disk.
    #[schemars(range(max = 9_007_199_254_740_991_i64))]
    pub backlog_bytes: u64,
    /// How much of the disk is known to be equal on both sides at this moment.
    #[serde(default)]
    #[schemars(range(max = 9_007_199_254_740_991_i64))]
    pub verified_bytes: u64,
}

/// The approval that counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalStatus {
    /// The plan it is bound to.
    #[schemars(length(max = 71))]
    pub digest: String,
    /// When it was first seen.
    pub at: Time,
    /// The field manager that wrote `spec.approved`, as far as the API server knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub by: Option<String>,
    /// Why it no longer counts. Absent = it counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub void: Option<String>,
}

/// What a rollback would do now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RollbackStatus {
    /// It can be done, or is under way.
    pub possible: bool,
    /// What was written on the target since then would be lost. Absent = nothing would be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loses_since: Option<MicroTime>,
    /// The same in words.
    #[schemars(length(max = 256))]
    pub message: String,
}

/// Something that a migration has changed outside of its own object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SideEffect {
    pub what: SideEffectKind,
    /// Names, paths and identifiers to find it by.
    #[serde(rename = "where")]
    #[schemars(length(max = 2048))]
    pub place: String,
    /// How it was seen last.
    #[schemars(length(max = 256))]
    pub state: String,
    /// What becomes of it when the migration is deleted.
    pub end: End,
}

/// What a migration changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SideEffectKind {
    /// On the `VmMigration`: keeps it until the machine is released.
    Finalizer,
    /// The orders to the host side.
    BlockCopy,
    /// The host side's processes, in Kubernetes.
    Job,
    /// The relay's process on the hypervisor, and its sockets.
    Relay,
    /// The claim file on the hypervisor, and what is kept beside it.
    Claim,
    /// Drover's mark in the domain's metadata.
    Mark,
    /// The domain's autostart was disabled.
    Autostart,
    /// The domain was shut down.
    Shutdown,
    /// Block jobs that mirror the domain's disks.
    Mirror,
    /// The file in the team's repository.
    TerraformFile,
    /// The VM in Prism, which the repository's pipeline created.
    TargetVm,
    /// A sentence in the target's description.
    TargetDescription,
    /// The hypervisor's address on the storage container's list.
    WhitelistEntry,
}

/// What becomes of something that was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum End {
    Undone,
    /// It is kept on purpose.
    Kept,
}

/// The cutover.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CutoverStatus {
    /// The cutover was ordered: the host side may shut the source down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordered_at: Option<MicroTime>,
    /// The guest was asked to shut down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shutdown_requested_at: Option<MicroTime>,
    /// The source was proven off, twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_off_at: Option<MicroTime>,
    /// Source and target were proven equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proven_equal_at: Option<MicroTime>,
    /// The host side's proofs as they were last reported: what the order to power on rests on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proofs: Option<QuiesceStatus>,
    /// The point of no return: the order that powers the target on, recorded before it is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_on: Option<TargetOrder>,
    /// The target was seen on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_on_at: Option<MicroTime>,
    /// The target's guest was seen up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reachable_at: Option<MicroTime>,
    /// Undoing of a cutover whose target was ordered to boot. Once it is begun it is carried out to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<UndoStatus>,
    /// Why the cutover was given up, or that it was undone. The source is given back; `spec.attempt` begins anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abandoned: Option<Problem>,
}

/// How far an undoing is. The source is given back only when the target is off and no order to power it on can still take effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct UndoStatus {
    /// `spec.rollback`, or the check that failed.
    #[schemars(length(max = 1024))]
    pub why: String,
    pub begun_at: MicroTime,
    /// Number that the target's description will bear.
    #[schemars(range(max = 9_007_199_254_740_991_i64))]
    pub epoch: u64,
    /// The order that asks the target's guest to power off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shut_down: Option<TargetOrder>,
    /// The order that powers the target off, for a guest that did not obey.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_off: Option<TargetOrder>,
    /// The order that changes the target's description, so that an older order to power it on is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<TargetOrder>,
    /// The target was seen off with the changed description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fenced_at: Option<MicroTime>,
    /// After that the target was seen off with no task on it: the source may be given back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proven_off_at: Option<MicroTime>,
}

/// An order to Prism about the target, recorded before it is sent. It is sent with exactly these two values: the same order of a
/// controller that was paused has the effect once, or is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetOrder {
    /// `NTNX-Request-Id`.
    #[schemars(length(max = 36))]
    pub request_id: String,
    /// `If-Match`.
    #[schemars(length(max = 1024))]
    pub etag: String,
    /// When it was recorded.
    pub at: MicroTime,
}
