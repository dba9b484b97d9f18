//! PURE: a machine and where it goes, frozen into a plan; its digest; and what would go wrong, found before the copy starts.

pub mod court;
mod findings;

pub use findings::{Finding, Severity, findings};

use sha2::{Digest, Sha256};

use crate::api::NutanixClusterSpec;
use crate::api::common::Category;
use crate::api::machine::{Board, Cpu, Firmware, Machine, TargetBus};
use crate::api::shutdown::ShutdownPolicy;
use crate::api::terraform_repository::Identifiers;
use crate::api::vm_migration::Overrides;
use serde::Serialize;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Everything that is chosen about a target VM. Nothing is left to choose when it is carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The source as it was when the plan was made.
    pub machine: Machine,
    /// Name of the target VM.
    pub target_name: String,
    /// Path of the Terraform file in the repository.
    pub path: String,
    /// Who ordered it, for the file's header and the VM's description.
    pub origin: String,
    /// How the file names what exists in Prism already.
    pub identifiers: Identifiers,
    pub cluster: Named,
    /// The storage container of all disks.
    pub container: Named,
    /// In the order of key and value.
    pub categories: Vec<PlannedCategory>,
    /// Prism's uuid of the project.
    pub project: Option<String>,
    pub cpu: Cpu,
    pub memory_bytes: u64,
    pub firmware: Firmware,
    pub board: Board,
    /// The bus of all disks. Their indexes are their places in the plan.
    pub disk_bus: TargetBus,
    /// In the order of `machine.disks`.
    pub disks: Vec<PlannedDisk>,
    /// In the order of `machine.nics`.
    pub nics: Vec<PlannedNic>,
    /// How the source's guest is shut down.
    pub shutdown: ShutdownPolicy,
}

/// Something that exists in Prism: its name, and the identifier that was found by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Named {
    pub name: String,
    pub ext_id: String,
}

/// A category of the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedCategory {
    pub category: Category,
    pub ext_id: String,
}

/// A disk of the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedDisk {
    pub size_bytes: u64,
}

/// A network interface of the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedNic {
    pub mac: String,
    pub vlan: u16,
    pub subnet: Named,
}

/// What is chosen about a target beside its source, from the cluster's defaults and the migration's overrides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    /// Sorted, each once.
    pub categories: Vec<Category>,
    pub project: Option<String>,
    pub disk_bus: TargetBus,
}

/// Brings defaults and overrides together.
pub fn choices(cluster: &NutanixClusterSpec, overrides: &Overrides) -> Choices {
    let mut categories = [cluster.categories.clone(), overrides.categories.clone()].concat();
    categories.sort();
    categories.dedup();
    Choices {
        categories,
        project: overrides.project.clone().or(cluster.project.clone()),
        disk_bus: overrides.disk_bus.unwrap_or_default(),
    }
}

/// What a plan refers to in Prism.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    pub cluster: Named,
    pub container: Named,
    /// VLAN to subnet, for the VLANs that the `NutanixCluster` lists.
    pub subnets: Vec<(u16, Named)>,
    /// Those that were chosen, in their order.
    pub categories: Vec<PlannedCategory>,
}

/// What a plan is made from.
#[derive(Clone, Copy, Debug)]
pub struct PlanInput<'a> {
    pub machine: &'a Machine,
    pub hostname: &'a str,
    pub placement: &'a Placement,
    pub choices: &'a Choices,
    /// `{hostname}` in it is replaced.
    pub path_template: &'a str,
    pub identifiers: Identifiers,
    pub shutdown: &'a ShutdownPolicy,
    pub origin: &'a str,
}

/// Why no plan can be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    #[error(
        "the interface {mac} is on VLAN {vlan}, for which the NutanixCluster names no subnet: add it to spec.subnets"
    )]
    NoSubnet { mac: String, vlan: u16 },
    #[error(
        "Terraform takes {path} for an override of other files, not for a definition: change the path of the TerraformRepository, as in vms/{{hostname}}.vm.tf"
    )]
    OverrideFile { path: String },
}

/// Makes a plan. Deterministic: the same input gives the same plan and digest.
pub fn make(input: &PlanInput<'_>) -> Result<Plan, PlanError> {
    let (machine, placement) = (input.machine, input.placement);
    let nics: Result<Vec<PlannedNic>, PlanError> = machine
        .nics
        .iter()
        .map(|nic| {
            let vlan = nic.vlan.unwrap_or(0);
            let subnet = placement.subnets.iter().find(|(id, _)| *id == vlan);
            let (_, subnet) = subnet.ok_or(PlanError::NoSubnet { mac: nic.mac.clone(), vlan })?;
            Ok(PlannedNic { mac: nic.mac.clone(), vlan, subnet: subnet.clone() })
        })
        .collect();
    let disks = machine.disks.iter().map(|disk| PlannedDisk { size_bytes: target_size_bytes(disk.size_bytes) });
    Ok(Plan {
        machine: machine.clone(),
        target_name: input.hostname.into(),
        path: path(input)?,
        origin: input.origin.into(),
        identifiers: input.identifiers,
        cluster: placement.cluster.clone(),
        container: placement.container.clone(),
        categories: placement.categories.clone(),
        project: input.choices.project.clone(),
        cpu: machine.cpu.clone(),
        memory_bytes: machine.memory_bytes,
        firmware: machine.firmware,
        board: machine.board,
        disk_bus: input.choices.disk_bus,
        disks: disks.collect(),
        nics: nics?,
        shutdown: input.shutdown.clone(),
    })
}

/// The machine's file. `override.tf` and `…_override.tf` are merged into what other files define (Terraform's "Override Files").
fn path(input: &PlanInput<'_>) -> Result<String, PlanError> {
    let path = input.path_template.replace("{hostname}", input.hostname);
    let name = path.rsplit('/').next().unwrap_or_default();
    if name == "override.tf" || name.ends_with("_override.tf") {
        Err(PlanError::OverrideFile { path })
    } else {
        Ok(path)
    }
}

/// The source's size plus 1 GiB, so that the target is never smaller, rounded up to a whole MiB as Prism's v3 view of disks has it.
fn target_size_bytes(source_bytes: u64) -> u64 {
    (source_bytes + GIB).div_ceil(MIB) * MIB
}

/// `sha256:` and the hash over the plan's canonical JSON (keys sorted) and the rendered file: what a person approves.
pub fn digest(plan: &Plan, terraform: &str) -> String {
    // `serde_json::Value` keeps its keys sorted, which makes the text canonical.
    let value = serde_json::to_value(plan).unwrap_or_default();
    let mut hash = Sha256::new();
    hash.update(value.to_string());
    hash.update([0]);
    hash.update(terraform);
    format!("sha256:{:x}", hash.finalize())
}

#[cfg(test)]
mod tests;
