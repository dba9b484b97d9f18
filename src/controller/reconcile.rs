//! One turn: observe, decide, record, act.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::api::PostParams;
use kube::core::DeserializeGuard;
use kube::runtime::controller::Action;
use kube::{Api, Resource, ResourceExt};
use tracing::{info, warn};

use super::context::{Context, Error};
use super::{act, observe};
use crate::api::{MIGRATION_FINALIZER, VmMigration, VmMigrationStatus};
use crate::edge::fail_point;
use crate::flow::migration::{Decision, Input, Refusal, decide};

/// Carries out one turn for one migration.
pub async fn reconcile(cached: Arc<DeserializeGuard<VmMigration>>, context: Arc<Context>) -> Result<Action, Error> {
    let Ok(cached) = &cached.0 else {
        // The API server validated it; only an object from another version gets here. Its next change is looked at again.
        warn!("a VmMigration cannot be read by this version of Drover; it is left alone");
        return Ok(Action::await_change());
    };
    let namespace = cached.namespace().unwrap_or_default();
    let api: Api<VmMigration> = Api::namespaced(context.client.clone(), &namespace);
    // A decision that may be irreversible is never made from a cache.
    let fresh = api.get_opt(&cached.name_any()).await;
    let Some(migration) = fresh.map_err(|source| Error::Observe { what: "the VmMigration".into(), source })? else {
        return Ok(Action::await_change());
    };
    let uid = migration.uid().unwrap_or_default();
    let seen = observe::observe(&context, &migration).await;
    let decision = decide_for(&migration, &seen, context.last_failure(&uid).as_ref());
    let recorded = record(&api, &migration, &decision.status).await?;
    act::act(&context, &recorded, &seen, decision.effects).await?;
    context.succeeded(&uid);
    Ok(Action::requeue(decision.wake))
}

fn decide_for(migration: &VmMigration, seen: &crate::flow::migration::Seen, failure: Option<&Refusal>) -> Decision {
    let status = migration.status.clone().unwrap_or_default();
    let approved_by = observe::approved_by(migration);
    let input = Input {
        namespace: &migration.namespace().unwrap_or_default(),
        name: &migration.name_any(),
        uid: &migration.uid().unwrap_or_default(),
        generation: migration.meta().generation.unwrap_or(0),
        deleting: migration.meta().deletion_timestamp.is_some(),
        held: migration.finalizers().iter().any(|finalizer| finalizer == MIGRATION_FINALIZER),
        approved_by: approved_by.as_deref(),
        last_failure: failure,
        spec: &migration.spec,
        status: &status,
        seen,
        now: now(),
    };
    decide(&input)
}

/// Whole microseconds: Kubernetes times carry no more, so what is read back equals what was written.
fn now() -> Timestamp {
    Timestamp::from_microsecond(Timestamp::now().as_microsecond()).unwrap_or_default()
}

/// Writes the status if it changed. A lost race is an error here, and nothing has been done.
async fn record(
    api: &Api<VmMigration>,
    migration: &VmMigration,
    status: &VmMigrationStatus,
) -> Result<VmMigration, Error> {
    if migration.status.as_ref() == Some(status) {
        return Ok(migration.clone());
    }
    let mut changed = migration.clone();
    if phase(migration.status.as_ref()) != phase(Some(status)) {
        let waits = status.waiting_for.as_ref().map(|waiting| waiting.message.as_str());
        info!(migration = %migration.name_any(), phase = phase(Some(status)), waits, "phase");
    }
    changed.status = Some(status.clone());
    fail_point::before("record");
    let recorded = api.replace_status(&migration.name_any(), &PostParams::default(), &changed).await;
    let recorded = recorded.map_err(Error::Record)?;
    fail_point::after("record");
    Ok(recorded)
}

fn phase(status: Option<&VmMigrationStatus>) -> &str {
    status.and_then(|status| status.phase.as_deref()).unwrap_or("")
}

/// What happens after a failed turn: wait longer each time, and let the next status say why.
pub fn on_error(object: Arc<DeserializeGuard<VmMigration>>, error: &Error, context: Arc<Context>) -> Action {
    let Ok(migration) = &object.0 else { return Action::await_change() };
    if error.is_conflict() {
        return Action::requeue(Duration::from_millis(200));
    }
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        message = format!("{message}: {inner}");
        cause = inner.source();
    }
    warn!(migration = %migration.name_any(), stage = error.stage(), error = message, "turn failed");
    let reason = match error {
        Error::Observe { .. } => "ObserveFailed",
        Error::Record(_) => "RecordFailed",
        Error::Act { .. } => "ActFailed",
    };
    Action::requeue(context.failed(&migration.uid().unwrap_or_default(), Refusal::new(reason, message)))
}
