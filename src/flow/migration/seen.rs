//! The facts that a decision is made from.

use crate::api::{
    BlockCopy, LibvirtHostSpec, NutanixClusterSpec, TerraformRepositorySpec, VmMigrationSpec, VmMigrationStatus,
};
use crate::plan::Placement;
use crate::plan::court::Verdict;

/// A fact from outside: known, or not, with the reason. Not known is never "no".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact<T> {
    /// It was looked at.
    Known(T),
    /// It was looked at in vain.
    Unknown(Refusal),
    /// Nobody looked, because this decision does not need it.
    NotAsked,
}

/// Why something could not be known or done, for the person who reads the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// One CamelCase word.
    pub reason: String,
    /// What was tried, on what, what to do.
    pub message: String,
}

impl Refusal {
    /// A refusal with its reason and message.
    pub fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into() }
    }
}

/// What was seen in one turn.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The resources that the migration refers to.
    pub setup: Result<Setup, Refusal>,
    /// The `BlockCopy` of this migration; `Known(None)` = there is none.
    pub copy: Fact<Option<BlockCopy>>,
    /// What a plan refers to in Prism.
    pub placement: Fact<Placement>,
    /// The commit that holds the planned file; `Known(None)` = the repository does not hold it yet.
    pub published: Fact<Option<String>>,
    /// Where a person merges it, while it is in review and that is known.
    pub review_url: Option<String>,
    /// How far the application of the published commit is, where Drover can follow it.
    pub application: Fact<Application>,
    /// VMs in Prism: those that bear the target's name or, once the target is pinned, just that one.
    pub target: Fact<Vec<TargetVm>>,
    /// Whom the storage container lets in.
    pub whitelist: Fact<Whitelist>,
    /// What Prism shows of the host side's markers.
    pub canary: Fact<CanarySeen>,
    /// Guest tools on the target.
    pub guest_tools: Fact<GuestToolsSeen>,
}

/// The resources that a migration refers to, resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct Setup {
    pub host_name: String,
    pub host: LibvirtHostSpec,
    pub cluster_name: String,
    pub cluster: NutanixClusterSpec,
    pub repository: TerraformRepositorySpec,
    /// Which Drover this is: uid of the operator's namespace.
    pub installation: String,
}

/// What applies the commit, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Application {
    /// Where a person looks at it.
    pub url: Option<String>,
    pub stage: Stage,
    /// The judgement of Terraform's plan; not asked as long as there is no plan.
    pub verdict: Fact<Verdict>,
    /// What other VMs have lost since that plan was made; asked when it was applied.
    pub harm: Fact<Vec<String>>,
}

/// How far an application is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing was begun for the commit, and why, as far as that can be told.
    Absent { why: String },
    /// Drover itself has to have a plan made: the first one, or one more after that of an earlier round could not be applied.
    Unplanned { round: u32 },
    /// A plan is being made.
    Planning,
    /// The plan is there and waits for somebody; `handle` is what starts its application.
    Planned { handle: String },
    /// It is being applied.
    Applying,
    /// It was applied.
    Applied,
    /// It ended before that; somebody has to do what `why` says.
    Failed { why: String },
}

/// A VM in Prism.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetVm {
    pub ext_id: String,
    pub name: String,
    /// Bears the uid of the migration whose Terraform file created it.
    pub description: String,
    /// Whether it runs. Anything but a plain ON or OFF is unknown.
    pub on: crate::api::common::Tri,
    /// Whether a task on it was queued or running, asked before the rest was looked at. Unknown if nobody asked.
    pub busy: crate::api::common::Tri,
    /// Its version: what `If-Match` must say.
    pub etag: String,
    /// Disks in the order of their index, CD-ROMs left out.
    pub disks: Vec<TargetVmDisk>,
    /// Addresses that AHV has learned from the guest's traffic.
    pub learned_ips: Vec<String>,
}

/// A disk of a VM in Prism.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetVmDisk {
    /// `device_uuid`.
    pub ext_id: String,
    pub index: u32,
    pub size_bytes: u64,
    /// `vmdisk_uuid` and path on the NFS server, when Prism Element was asked and could be joined.
    pub backing: Option<(String, String)>,
}

/// A storage container's list of addresses, and who else relies on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whitelist {
    pub container_ext_id: String,
    pub name: String,
    /// The container has no list of its own: the entries are the cluster's.
    pub inherited: bool,
    /// Absent: Prism does not tell them.
    pub entries: Option<Vec<String>>,
    /// Version of the container: what `If-Match` must say.
    pub etag: String,
    /// Other migrations through the same hypervisor to the same container. Looked at after the list.
    pub others: Vec<OtherUse>,
}

/// Another migration that needs, or has needed, the same entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherUse {
    pub added_by_drover: bool,
    pub ended: bool,
}

/// The start of the target's disks as Prism shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CanarySeen {
    /// By the disk's `extId`.
    Blocks(Vec<(String, Vec<u8>)>),
    /// Prism does not offer this, or not to our user; the words say how it answered.
    NotOffered(String),
}

/// Guest tools as Prism shows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestToolsSeen {
    pub is_installed: bool,
    pub is_iso_inserted: bool,
    pub etag: String,
}

/// Which facts a decision needs: asking for all of them each time would poll three systems for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    pub placement: bool,
    pub published: bool,
    /// How old the repository's answer may be: a commit that was seen there is looked for again only in case somebody rewrites history.
    pub published_may_be_seconds_old: u64,
    pub application: bool,
    pub target: bool,
    /// How old an answer about the target may be: 0 when something hangs on it; a copy may last for days, and a watch for weeks.
    pub target_may_be_seconds_old: u64,
    /// Ask Prism Element for the target's disk paths too.
    pub backing: bool,
    /// Ask for open tasks on the target, before its state.
    pub tasks: bool,
}

/// Pace of looking at a target that is being copied to, and for a commit that was published.
const COPYING_SECONDS: u64 = 15;
/// Pace of watching a target that has taken over.
const WATCHING_SECONDS: u64 = 30;

/// What the next decision needs to know, from what is wanted and remembered.
pub fn needs(spec: &VmMigrationSpec, status: &VmMigrationStatus) -> Needs {
    let cutover = status.cutover.clone().unwrap_or_default();
    let planned = status.plan.is_some();
    let published = status.terraform.is_some();
    let pinned = status.target.is_some();
    let ordered = cutover.ordered_at.is_some();
    let proving = ordered && cutover.target_on_at.is_none();
    let taken_over = cutover.reachable_at.is_some();
    let undoing = cutover.undo.is_some();
    let finalised = taken_over && !undoing && spec.finalize == Some(true);
    let adopted = status.source.as_ref().is_some_and(|source| source.already_migrated);
    Needs {
        placement: !planned && !adopted,
        published: planned && !pinned,
        published_may_be_seconds_old: if published { COPYING_SECONDS } else { 0 },
        application: published && !pinned,
        target: !adopted && !finalised && (!planned || published),
        target_may_be_seconds_old: match (pinned, ordered) {
            _ if taken_over && !undoing => WATCHING_SECONDS,
            (true, false) => COPYING_SECONDS,
            (_, _) => 0,
        },
        backing: (published && !pinned) || proving,
        tasks: undoing,
    }
}
