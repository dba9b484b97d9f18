//! What a machine's commit says, and the branch that it is put on for review.

use crate::api::vm_migration::PlanStatus;

/// The trailer that links a commit to its migration: namespace, name, uid.
pub const MIGRATION_TRAILER: &str = "Drover-Migration";

/// Subject, body and trailers. No "[skip ci]" and the like: the pipeline is what creates the VM.
pub fn message(namespace: &str, name: &str, uid: &str, plan: &PlanStatus) -> String {
    // Nothing that comes from outside may begin a line, and be taken for a trailer.
    let source: String = plan.machine.name.chars().filter(|c| !c.is_control()).collect();
    format!(
        "Add VM {}\n\nDefined by Drover from libvirt domain {source} ({}).\n\n{MIGRATION_TRAILER}: {namespace}/{name} {uid}\nDrover-Plan: {}\n",
        plan.target_name, plan.machine.uuid, plan.digest
    )
}

/// The branch on which a machine's file waits to be merged.
pub fn review_branch(plan: &PlanStatus) -> String {
    format!("drover/{}", plan.target_name)
}
