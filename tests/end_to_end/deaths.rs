//! The controller dies before and after everything that it does, and before and after it writes down what it is about to do. Whoever is
//! started next goes on from there.

use std::path::Path;
use std::time::{Duration, Instant};

use drover::flow::migration::Effect;
use drover_lab::lab::{AppliedBy, LabOptions};
use drover_lab::libvirt::GuestSpec;
use drover_lab::watch::Watch;
use serde_json::json;

use crate::{MIB, PATIENCE, guest, in_sync, lab, migrated, power_on_orders, restarts};

/// What the controller dies before and after, in the order in which it comes to it.
const UP_TO_APPROVAL: &[&str] = &["AddFinalizer", "OrderCopy", "EnsureJob", "Publish", "Plan", "Apply", "Whitelist"];
const CUTOVER: &[&str] = &["OrderCopy", "PowerOn", "GuestTools"];
const ROLLBACK: &[&str] = &["ShutDownTarget", "PowerOffTarget", "DescribeTarget", "OrderCopy"];
const DELETION: &[&str] = &["Whitelist", "DeleteCopy", "RemoveFinalizer"];

/// Has the controller die once before and once after each of these effects, and its record.
fn arm(directory: &Path, effects: &[&str]) {
    for what in ["record"].iter().chain(effects) {
        for side in ["before", "after"] {
            std::fs::write(directory.join(format!("{what}.{side}")), "").unwrap();
        }
    }
}

/// It has died at all of them: the last time maybe this very moment.
async fn died_at_all(directory: &Path) {
    let start = Instant::now();
    loop {
        let left: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        if left.is_empty() {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{left:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn every_effect_is_among_those_that_the_controller_dies_at() {
    let all = [UP_TO_APPROVAL, CUTOVER, ROLLBACK, DELETION].concat();
    let missing: Vec<_> = Effect::NAMES.iter().filter(|name| !all.contains(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_dies_at_every_step_migrates_once_and_rolls_back() {
    let points = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let fail_points = Some(points.path().to_owned());
    let options = LabOptions { fail_points, applied_by: AppliedBy::Jobs, ..LabOptions::default() };
    let (_dir, lab) = lab(options).await;
    let source = guest(&lab, GuestSpec { disks: vec![64 * MIB], ..GuestSpec::default() });
    let watch = Watch::start(&lab).unwrap();
    watch.add("web01");
    lab.prism.set_whitelist(Some(&["198.51.100.0/24"]));
    lab.patch_cluster(json!({"whitelist": "Manage", "guestTools": "Mount"})).await.unwrap();
    arm(points.path(), UP_TO_APPROVAL);
    let spec = json!({"hostname": "web01", "cutover": {"shutdown": {"timeoutSeconds": 20}}});
    lab.create("web01", spec).await.unwrap();
    lab.wait_reason("web01", "PlanApproval", PATIENCE).await.unwrap();
    lab.approve_terraform("web01").await.unwrap();
    in_sync(&lab, "web01").await;
    died_at_all(points.path()).await;
    assert_eq!(restarts(&lab, "web01").await, 0);
    assert_eq!(lab.prism.whitelist().unwrap(), ["198.51.100.0/24", "127.0.0.1/32"]);

    watch.set_target("web01", &lab.prism.vm_by_name("web01").unwrap().uuid);
    watch.may_be_off("web01", true);
    // It has to be powered off in the end.
    lab.hypervisor.set_deaf("web01");
    arm(points.path(), CUTOVER);
    lab.approve("web01").await.unwrap();
    migrated(&lab, "web01", &source).await;
    died_at_all(points.path()).await;
    assert_eq!(power_on_orders(&lab), 1);
    let target = lab.prism.vm_by_name("web01").unwrap();
    assert_eq!(lab.prism.guest_tools(&target.uuid).unwrap()["isIsoInserted"], true);
    assert_eq!(source.console().text().matches("SHUTDOWN asked").count(), 1);

    arm(points.path(), ROLLBACK);
    lab.patch("web01", json!({"rollback": true})).await.unwrap();
    lab.wait_phase("web01", "RolledBack", PATIENCE).await.unwrap();
    died_at_all(points.path()).await;
    assert_eq!(source.state().unwrap(), "running");
    source.wait_for_ack(source.console().last_ack().unwrap() + 20, PATIENCE).unwrap();
    assert_eq!(source.console().lost_at_boots(), 0);

    arm(points.path(), DELETION);
    lab.delete("web01").await.unwrap();
    died_at_all(points.path()).await;
    assert_eq!(lab.leftovers_on_host(&source, false).unwrap(), [""; 0]);
    assert_eq!(lab.prism.whitelist().unwrap(), ["198.51.100.0/24"]);
    let seen = watch.take("web01");
    assert_eq!((seen.double_runs, seen.early_stops), (0, 0), "{seen:?}");
}
