//! The commit message of a machine's Terraform file.

use crate::api::vm_migration::PlanStatus;

/// Subject and body. No "[skip ci]" and the like: the pipeline is what creates the VM.
pub fn message(namespace: &str, name: &str, plan: &PlanStatus) -> String {
    format!(
        "Add VM {}\n\nDefined by Drover for VmMigration {namespace}/{name}.\nSource: libvirt domain {} ({}).\nPlan: {}\n",
        plan.target_name, plan.machine.name, plan.machine.uuid, plan.digest
    )
}
