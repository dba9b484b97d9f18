//! The facts that a decision is made from.

use crate::api::{BlockCopy, LibvirtHostSpec, NutanixClusterSpec, TerraformRepositorySpec, VmMigrationStatus};

/// A fact from outside: known, or not, with the reason. Not known is never "no".
#[derive(Clone, Debug, PartialEq)]
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
    /// Identifiers in Prism that a plan is made with.
    pub placement: Fact<Placement>,
    /// The commit that holds the planned file; `Known(None)` = the repository does not hold it yet.
    pub published: Fact<Option<String>>,
    /// VMs in Prism: those that bear the target's name or, once the target is pinned, just that one.
    pub target: Fact<Vec<TargetVm>>,
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

/// Identifiers in Prism.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    pub cluster_ext_id: String,
    pub container_ext_id: String,
    /// VLAN to subnet, for the VLANs that the `NutanixCluster` lists.
    pub subnet_ext_ids: Vec<(u16, String)>,
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

/// Which facts a decision needs: asking for all of them each time would poll three systems for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    pub placement: bool,
    pub published: bool,
    pub target: bool,
    /// An answer about the target that is some seconds old will do: nothing hangs on it yet, and a copy may last for days.
    pub target_may_be_old: bool,
    /// Ask Prism Element for the target's disk paths too.
    pub backing: bool,
    /// Ask for open tasks on the target, before its state.
    pub tasks: bool,
}

/// What the next decision needs to know, from what is remembered.
pub fn needs(status: &VmMigrationStatus) -> Needs {
    let cutover = status.cutover.clone().unwrap_or_default();
    let planned = status.plan.is_some();
    let published = status.terraform.is_some();
    let pinned = status.target.is_some();
    let ordered = cutover.ordered_at.is_some();
    let proving = ordered && cutover.target_on_at.is_none();
    let undoing = cutover.undo.is_some();
    Needs {
        placement: !planned,
        published: planned && !published,
        target: !planned || (published && (cutover.reachable_at.is_none() || undoing)),
        target_may_be_old: pinned && !ordered,
        backing: (published && !pinned) || proving,
        tasks: undoing,
    }
}
