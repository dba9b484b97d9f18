//! The evidence of one migration, as a document that can be kept: who approved what, what was proven when, what was ordered.

use serde_json::{Value, json};

use crate::api::VmMigration;

/// Everything that a later question about this migration would need. It holds no secrets.
pub fn evidence(migration: &VmMigration) -> Value {
    let status = migration.status.clone().unwrap_or_default();
    json!({
        "apiVersion": "drover.dev/v1alpha1",
        "kind": "MigrationEvidence",
        "migration": {
            "namespace": migration.metadata.namespace,
            "name": migration.metadata.name,
            "uid": migration.metadata.uid,
            "createdAt": migration.metadata.creation_timestamp,
            "spec": migration.spec,
        },
        "phase": status.phase,
        "downtime": status.downtime,
        "source": status.source,
        "plan": status.plan,
        "terraform": status.terraform,
        "target": status.target,
        "approval": status.approval,
        "attempt": status.attempt,
        "orderEpoch": status.epoch,
        "cutover": status.cutover,
        "earlierCutovers": status.earlier_cutovers,
        "rollback": status.rollback,
        "ledger": status.ledger,
        "steps": status.steps,
        "waitingFor": status.waiting_for,
    })
}
