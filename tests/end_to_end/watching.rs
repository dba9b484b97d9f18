//! After the cutover both sides are watched until it is finalised. Drover tells, and powers nothing on.

use super::*;

/// The condition that tells whether the target alone runs.
fn only_target_runs(migration: &VmMigration) -> Option<(String, String)> {
    let conditions = migration.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let found = conditions.iter().find(|condition| condition.type_ == "OnlyTargetRuns")?;
    Some((found.status.clone(), found.reason.clone()))
}

async fn told(lab: &Lab, reason: &str) -> VmMigration {
    let migration = lab.wait_reason("web01", reason, PATIENCE).await.unwrap();
    assert_eq!(only_target_runs(&migration), Some(("False".into(), reason.into())));
    migration
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_stops_and_a_source_that_is_started_are_told_until_it_is_finalised() {
    let (_dir, lab) = lab(LabOptions::default()).await;
    let source = guest(&lab, GuestSpec { disks: vec![64 * MIB], ..GuestSpec::default() });
    lab.migrate("web01").await.unwrap();
    in_sync(&lab, "web01").await;
    let rollback = |migration: &VmMigration| migration.status.as_ref().unwrap().rollback.clone().unwrap();
    let before = lab.migrations().get("web01").await.unwrap();
    assert_eq!(rollback(&before).message, "possible; nothing would be lost");
    lab.approve("web01").await.unwrap();
    migrated(&lab, "web01", &source).await;
    let after = lab.migrations().get("web01").await.unwrap();
    assert!(rollback(&after).loses_since.is_some(), "{:?}", rollback(&after));

    let target = lab.prism.vm_by_name("web01").unwrap().uuid;
    lab.hypervisor.power_off(&target).unwrap();
    told(&lab, "TargetStopped").await;
    assert_eq!(source.state().unwrap(), "shut off");
    assert!(!lab.hypervisor.is_on(&target));
    lab.prism.power_on_by_hand(&target).unwrap();
    lab.wait_phase("web01", "Migrated", PATIENCE).await.unwrap();

    source.start().unwrap();
    let alarm = told(&lab, "SourceRunning").await.status.unwrap().waiting_for.unwrap();
    assert!(alarm.message.contains("Shut it down by hand at once"), "{}", alarm.message);
    assert!(lab.hypervisor.is_on(&target));
    source.destroy().unwrap();
    lab.wait_phase("web01", "Migrated", PATIENCE).await.unwrap();
    assert_eq!(power_on_orders(&lab), 1, "nothing was powered on for it");

    lab.patch("web01", json!({"finalize": true})).await.unwrap();
    let finalised =
        |migration: &VmMigration| only_target_runs(migration) == Some(("Unknown".into(), "Finalised".into()));
    let migration = lab.wait("web01", "finalised", PATIENCE, finalised).await.unwrap();
    assert_eq!(rollback(&migration).message, "not possible any more");
}
