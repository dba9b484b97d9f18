//! What people do in the middle of it: they start the source by hand, hold the migration, give it up.

use drover_lab::guest::Load;
use drover_lab::hypervisor::Hypervisor;
use drover_lab::lab::{Lab, LabOptions};
use drover_lab::libvirt::{Domain, GuestSpec};
use drover_lab::watch::Watch;
use serde_json::json;

use crate::{MIB, PATIENCE, guest, in_sync, lab, migrated, never_stalled, power_on_orders, restarts, shutting_down};

/// Brings a cutover to where the source is off and its last writes are not on the target, which takes nothing any more.
async fn off_and_undrained(lab: &Lab) -> (Domain, Watch) {
    let source = guest(lab, GuestSpec { disks: vec![64 * MIB], ..GuestSpec::default() });
    let watch = Watch::start(lab).unwrap();
    watch.add("web01");
    lab.migrate("web01").await.unwrap();
    in_sync(lab, "web01").await;
    watch.set_target("web01", &lab.prism.vm_by_name("web01").unwrap().uuid);
    watch.may_be_off("web01", true);
    lab.nfs.pause().unwrap();
    lab.approve("web01").await.unwrap();
    shutting_down(lab, "web01").await;
    lab.wait("web01", "seen off", PATIENCE, |migration| {
        let cutover = migration.status.as_ref().and_then(|status| status.cutover.as_ref());
        cutover.is_some_and(|cutover| cutover.source_off_at.is_some())
    })
    .await
    .unwrap();
    (source, watch)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_somebody_starts_in_the_cutover_voids_it_and_runs_on() {
    let (_dir, lab) = lab(LabOptions::default()).await;
    let (source, watch) = off_and_undrained(&lab).await;
    lab.libvirt.virsh(&["start", "web01"]).unwrap();
    let stopped = lab.wait_reason("web01", "SourceStartedAgain", PATIENCE).await.unwrap();
    lab.nfs.resume().unwrap();
    let cutover = stopped.status.unwrap().cutover.unwrap();
    assert!(cutover.power_on.is_none(), "{cutover:?}");
    assert!(cutover.proofs.is_none_or(|proofs| proofs.off_by_libvirt_at.is_none() && proofs.equal_at.is_none()));
    source.wait_for_ack(source.console().last_ack().unwrap() + 20, PATIENCE).unwrap();
    assert_eq!((source.state().unwrap().as_str(), source.console().lost_at_boots()), ("running", 0));
    let target = lab.prism.vm_by_name("web01").unwrap();
    assert!(!lab.hypervisor.is_on(&target.uuid));
    assert_eq!(power_on_orders(&lab), 0);

    lab.patch("web01", json!({"attempt": 1})).await.unwrap();
    migrated(&lab, "web01", &source).await;
    let seen = watch.take("web01");
    assert_eq!((seen.double_runs, seen.early_stops), (0, 0), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "slow: make test-all (a host test has the hook)"]
async fn with_the_hook_nobody_starts_the_source_in_the_cutover_and_it_goes_on() {
    let (_dir, lab) = lab(LabOptions { start_hook: true, ..LabOptions::default() }).await;
    let (source, watch) = off_and_undrained(&lab).await;
    let refused = lab.libvirt.virsh(&["start", "web01"]).unwrap_err().to_string();
    assert!(refused.contains("is being moved away"), "{refused}");
    assert_eq!(source.state().unwrap(), "shut off");
    lab.nfs.resume().unwrap();
    migrated(&lab, "web01", &source).await;
    let seen = watch.take("web01");
    assert_eq!((seen.double_runs, seen.early_stops), (0, 0), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "slow: make test-all (a host test has the release)"]
async fn a_migration_that_is_held_and_given_up_far_behind_its_guest_does_not_hold_it_up() {
    let options = LabOptions { storage_bytes_per_s: Some(1000 * MIB), ..LabOptions::default() };
    let (_dir, lab) = lab(options.clone()).await;
    let load = Load { rate: 4, payload_bytes: 500_000, ring: 160, ..Load::default() };
    let source = guest(&lab, GuestSpec { disks: vec![192 * MIB], load, ..GuestSpec::default() });
    lab.libvirt.virsh(&["autostart", "web01"]).unwrap();
    let definition = || lab.libvirt.virsh(&["dumpxml", "--inactive", "web01"]).unwrap().replace("  <metadata/>\n", "");
    let before = definition();
    lab.migrate("web01").await.unwrap();
    in_sync(&lab, "web01").await;
    lab.throttle.as_ref().unwrap().set_rate(MIB / 2);
    lab.wait("web01", "far behind", PATIENCE, |migration| {
        let disks = migration.status.as_ref().map(|status| status.disks.as_slice()).unwrap_or_default();
        disks.iter().any(|disk| disk.state == "Ready" && disk.backlog_bytes > 8 * MIB)
    })
    .await
    .unwrap();
    lab.patch("web01", json!({"hold": true})).await.unwrap();
    let generation = lab.migrations().get("web01").await.unwrap().metadata.generation;
    lab.wait("web01", "told to wait", PATIENCE, |migration| {
        migration.status.as_ref().is_some_and(|status| status.observed_generation == generation)
    })
    .await
    .unwrap();
    assert_eq!((restarts(&lab, "web01").await, source.state().unwrap().as_str()), (0, "running"));
    lab.patch("web01", json!({"rollback": true})).await.unwrap();
    lab.wait_phase("web01", "RolledBack", PATIENCE).await.unwrap();
    assert_eq!(lab.leftovers_on_host(&source, false).unwrap(), [""; 0]);
    assert_eq!(definition(), before, "the domain is as it was");
    source.wait_for_ack(source.console().last_ack().unwrap() + 20, PATIENCE).unwrap();
    never_stalled(&source, &options);
    assert_eq!(source.console().text().matches("VERIFIED ").count(), 1, "it was started anew");
}
