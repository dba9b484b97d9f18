//! PURE: a machine and where it goes, frozen into a plan; its digest; and what would go wrong, found before the copy starts.

pub mod court;
mod findings;

pub use findings::{Finding, Severity, findings};

use sha2::{Digest, Sha256};

use crate::api::machine::{Board, Cpu, Firmware, Machine};
use crate::api::shutdown::ShutdownPolicy;
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
    pub cluster_ext_id: String,
    pub cpu: Cpu,
    pub memory_bytes: u64,
    pub firmware: Firmware,
    pub board: Board,
    /// In the order of `machine.disks`.
    pub disks: Vec<PlannedDisk>,
    /// In the order of `machine.nics`.
    pub nics: Vec<PlannedNic>,
    /// How the source's guest is shut down.
    pub shutdown: ShutdownPolicy,
}

/// A disk of the target: on the SCSI bus, at its index in the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedDisk {
    pub size_bytes: u64,
    pub container_ext_id: String,
}

/// A network interface of the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedNic {
    pub mac: String,
    pub subnet_ext_id: String,
}

/// What a plan is made from.
#[derive(Clone, Copy, Debug)]
pub struct PlanInput<'a> {
    pub machine: &'a Machine,
    pub hostname: &'a str,
    pub cluster_ext_id: &'a str,
    pub container_ext_id: &'a str,
    /// VLAN to subnet.
    pub subnet_ext_ids: &'a [(u16, String)],
    /// `{hostname}` in it is replaced.
    pub path_template: &'a str,
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
}

/// Makes a plan. Deterministic: the same input gives the same plan and digest.
pub fn make(input: &PlanInput<'_>) -> Result<Plan, PlanError> {
    let nics: Result<Vec<PlannedNic>, PlanError> = input
        .machine
        .nics
        .iter()
        .map(|nic| {
            let vlan = nic.vlan.unwrap_or(0);
            let subnet = input.subnet_ext_ids.iter().find(|(id, _)| *id == vlan);
            let (_, ext_id) = subnet.ok_or(PlanError::NoSubnet { mac: nic.mac.clone(), vlan })?;
            Ok(PlannedNic { mac: nic.mac.clone(), subnet_ext_id: ext_id.clone() })
        })
        .collect();
    let disks = input.machine.disks.iter().map(|disk| PlannedDisk {
        size_bytes: target_size_bytes(disk.size_bytes),
        container_ext_id: input.container_ext_id.into(),
    });
    Ok(Plan {
        machine: input.machine.clone(),
        target_name: input.hostname.into(),
        path: input.path_template.replace("{hostname}", input.hostname),
        origin: input.origin.into(),
        cluster_ext_id: input.cluster_ext_id.into(),
        cpu: input.machine.cpu.clone(),
        memory_bytes: input.machine.memory_bytes,
        firmware: input.machine.firmware,
        board: input.machine.board,
        disks: disks.collect(),
        nics: nics?,
        shutdown: input.shutdown.clone(),
    })
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
