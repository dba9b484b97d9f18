//! Whole migrations on real parts: what a user does, what breaks meanwhile, and what must be true afterwards.
//!
//! Every test ends by reading back: the records that the source's guest was told are durable against those that the target's guest found
//! when it booted, the source's state in libvirt, the target's in Prism.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on is to panic, in its helpers too")]

mod deaths;
mod deletion;
mod doctor;
mod people;
mod provisioning;
mod watching;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use drover::api::vm_migration::TargetStatus;
use drover::api::{BlockCopy, VmMigration};
use drover_lab::guest::Load;
use drover_lab::hypervisor::Hypervisor;
use drover_lab::lab::{GIT_PASSWORD, Lab, LabOptions, Outcome, PRISM_PASSWORD, SYSTEM, TEAM};
use drover_lab::libvirt::{Domain, GuestSpec};
use drover_lab::process::Process;
use kube::ResourceExt;
use kube::api::DeleteParams;
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(240);
const MIB: u64 = 1 << 20;
/// What a guest may add to the stated bound by itself: an emulated CPU that shares a busy machine.
const NOISE_MILLIS: u64 = 2000;

async fn lab(options: LabOptions) -> (tempfile::TempDir, Lab) {
    let dir = tempfile::Builder::new().prefix("lab").tempdir().unwrap();
    let lab = Lab::start(dir.path(), Path::new(env!("CARGO_BIN_EXE_drover")), options).await.unwrap();
    (dir, lab)
}

/// Storage so slow that a test has time to break something while it copies.
fn slow_storage() -> LabOptions {
    LabOptions { storage_bytes_per_s: Some(4 * MIB), ..LabOptions::default() }
}

/// A guest that runs and writes, and a target that writes like it once it has moved.
fn guest(lab: &Lab, spec: GuestSpec) -> Domain {
    lab.hypervisor.set_load(&spec.name, spec.load);
    let domain = lab.libvirt.define(&spec).unwrap();
    domain.start_and_write(20).unwrap();
    domain
}

/// Waits until the copy runs and has moved something, and is not done.
async fn copying(lab: &Lab, name: &str) -> BlockCopy {
    lab.wait(name, "copying", PATIENCE, |migration| {
        let disks = migration.status.as_ref().map(|status| status.disks.as_slice()).unwrap_or_default();
        disks.iter().any(|disk| disk.state == "Copying" && disk.copied_bytes > 0)
    })
    .await
    .unwrap();
    lab.copy_of(name).await.unwrap()
}

/// Waits until it asks for approval: in sync.
async fn in_sync(lab: &Lab, name: &str) {
    lab.wait_reason(name, "Approval", PATIENCE).await.unwrap();
}

/// Sees the migration finished, one machine running, and nothing lost.
async fn migrated(lab: &Lab, name: &str, source: &Domain) -> Outcome {
    lab.wait_phase(name, "Migrated", PATIENCE).await.unwrap();
    let outcome = lab.outcome(name, source).await.unwrap();
    assert!(outcome.acknowledged > 20, "{outcome}");
    assert_eq!(outcome.found.len(), source.disk_paths().len(), "{outcome}");
    assert_eq!(outcome.lost(), 0, "{outcome}");
    assert_eq!(source.state().unwrap(), "shut off");
    assert!(!source.autostart().unwrap());
    let target = lab.prism.vm_by_name(name).unwrap();
    assert!(lab.hypervisor.is_on(&target.uuid));
    outcome
}

/// The guest's own clock saw no wait above the stated bound.
fn never_stalled(source: &Domain, options: &LabOptions) {
    let gap = source.console().max_gap_millis_since(20);
    let bound = u64::from(options.max_guest_stall_millis) + NOISE_MILLIS;
    assert!(gap <= bound, "the guest waited {gap} ms for a write, the bound is {bound} ms");
}

/// What `drover evidence` prints.
fn evidence(lab: &Lab, name: &str) -> serde_json::Value {
    let mut drover = std::process::Command::new(env!("CARGO_BIN_EXE_drover"));
    let output =
        drover.args(["evidence", "-n", TEAM, name]).env("KUBECONFIG", lab.cluster.kubeconfig()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// How often the copy had to start again.
async fn restarts(lab: &Lab, name: &str) -> u32 {
    lab.copy_of(name).await.unwrap().status.unwrap_or_default().restarts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_disk() {
    let (_dir, lab) = lab(LabOptions::default()).await;
    let source = guest(&lab, GuestSpec::default());
    lab.migrate("web01").await.unwrap();
    in_sync(&lab, "web01").await;
    assert_eq!(source.state().unwrap(), "running", "nothing happens without an approval");
    lab.approve("web01").await.unwrap();
    let outcome = migrated(&lab, "web01", &source).await;
    println!("{outcome}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_disks_of_different_sizes_stop_at_the_same_write() {
    let (_dir, lab) = lab(LabOptions::default()).await;
    let source = guest(&lab, GuestSpec { disks: vec![128 * MIB, 72 * MIB], ..GuestSpec::default() });
    lab.migrate("web01").await.unwrap();
    in_sync(&lab, "web01").await;
    lab.approve("web01").await.unwrap();
    let outcome = migrated(&lab, "web01", &source).await;
    let newest: Vec<u64> = outcome.found.iter().map(|records| records.upto).collect();
    // The guest writes a record to one disk after the other: a cut between the two writes leaves them one apart.
    assert!(newest[0].abs_diff(newest[1]) <= 1, "{outcome}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_writes_faster_than_the_storage_takes_loses_nothing_and_never_hangs() {
    let options = LabOptions { storage_bytes_per_s: Some(2 * MIB), relay_memory_mib: 24, ..LabOptions::default() };
    let (_dir, lab) = lab(options.clone()).await;
    let load = Load { rate: 0, payload_bytes: 60_000, ring: 256, ..Load::default() };
    let source = guest(&lab, GuestSpec { disks: vec![64 * MIB], load, ..GuestSpec::default() });
    lab.migrate("web01").await.unwrap();
    in_sync(&lab, "web01").await;
    lab.approve("web01").await.unwrap();
    migrated(&lab, "web01", &source).await;
    never_stalled(&source, &options);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_drivers_death_leaves_the_mirror_alone() {
    let (_dir, lab) = lab(slow_storage()).await;
    let source = guest(&lab, GuestSpec::default());
    lab.migrate("web01").await.unwrap();
    copying(&lab, "web01").await;
    lab.kill_host_container("web01", "driver").await.unwrap();
    in_sync(&lab, "web01").await;
    lab.kill_host_container("web01", "driver").await.unwrap();
    lab.approve("web01").await.unwrap();
    migrated(&lab, "web01", &source).await;
    assert_eq!(restarts(&lab, "web01").await, 0, "the mirror went on by itself");
    never_stalled(&source, &slow_storage());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_relays_death_harms_nobody_and_the_copy_starts_again() {
    let (_dir, lab) = lab(slow_storage()).await;
    let source = guest(&lab, GuestSpec { disks: vec![64 * MIB], ..GuestSpec::default() });
    lab.migrate("web01").await.unwrap();
    copying(&lab, "web01").await;
    lab.kill_host_container("web01", "relay").await.unwrap();
    in_sync(&lab, "web01").await;
    assert_eq!(restarts(&lab, "web01").await, 1);
    lab.kill_host_container("web01", "relay").await.unwrap();
    lab.wait_reason("web01", "CopyBroken", PATIENCE).await.unwrap();
    in_sync(&lab, "web01").await;
    assert_eq!(restarts(&lab, "web01").await, 2);
    lab.approve("web01").await.unwrap();
    migrated(&lab, "web01", &source).await;
    never_stalled(&source, &slow_storage());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_the_whole_pod_harms_nobody_and_the_copy_starts_again() {
    let (_dir, lab) = lab(slow_storage()).await;
    let source = guest(&lab, GuestSpec { disks: vec![64 * MIB], ..GuestSpec::default() });
    lab.migrate("web01").await.unwrap();
    copying(&lab, "web01").await;
    lab.kill_host_pod("web01").await.unwrap();
    in_sync(&lab, "web01").await;
    let first = restarts(&lab, "web01").await;
    assert!(first >= 1);
    lab.kill_host_pod("web01").await.unwrap();
    lab.wait("web01", "not in sync", PATIENCE, |migration| {
        migration.status.as_ref().and_then(|status| status.waiting_for.as_ref()).is_some_and(|w| w.reason != "Approval")
    })
    .await
    .unwrap();
    in_sync(&lab, "web01").await;
    assert!(restarts(&lab, "web01").await > first);
    lab.approve("web01").await.unwrap();
    migrated(&lab, "web01", &source).await;
    never_stalled(&source, &slow_storage());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_controllers_death_while_copying_and_in_the_cutover_changes_nothing() {
    let (_dir, lab) = lab(slow_storage()).await;
    let source = guest(&lab, GuestSpec::default());
    lab.migrate("web01").await.unwrap();
    copying(&lab, "web01").await;
    lab.kill_controller().unwrap();
    in_sync(&lab, "web01").await;
    lab.approve("web01").await.unwrap();
    shutting_down(&lab, "web01").await;
    lab.kill_controller().unwrap();
    migrated(&lab, "web01", &source).await;
    assert_eq!(restarts(&lab, "web01").await, 0);
}

/// Waits until the guest was asked to shut down.
async fn shutting_down(lab: &Lab, name: &str) {
    lab.wait(name, "shutting down", PATIENCE, |migration| {
        let cutover = migration.status.as_ref().and_then(|status| status.cutover.as_ref());
        cutover.is_some_and(|cutover| cutover.shutdown_requested_at.is_some())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_libvirts_daemon_in_the_copy_and_in_the_cutover_only_delays() {
    let (_dir, lab) = lab(slow_storage()).await;
    let source = guest(&lab, GuestSpec { disks: vec![64 * MIB], ..GuestSpec::default() });
    lab.migrate("web01").await.unwrap();
    copying(&lab, "web01").await;
    lab.libvirt.kill_daemon();
    lab.wait_reason("web01", "HypervisorUnreachable", PATIENCE).await.unwrap();
    lab.libvirt.restart_daemon().unwrap();
    in_sync(&lab, "web01").await;
    assert_eq!(restarts(&lab, "web01").await, 0, "the mirror went on without the daemon");
    lab.approve("web01").await.unwrap();
    shutting_down(&lab, "web01").await;
    lab.libvirt.kill_daemon();
    // Long enough for the guest to be off by itself.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let target = lab.prism.vm_by_name("web01").unwrap();
    assert!(!lab.hypervisor.is_on(&target.uuid), "a daemon that does not answer is no proof of off");
    lab.libvirt.restart_daemon().unwrap();
    let ended = lab
        .wait("web01", "migrated or given up", PATIENCE, |migration| {
            let status = migration.status.clone().unwrap_or_default();
            status.phase.as_deref() == Some("Migrated") || status.cutover.is_some_and(|c| c.abandoned.is_some())
        })
        .await
        .unwrap();
    // libvirt has forgotten how the guest went off: that may be no clean shutdown, and then the source is started again.
    if ended.status.unwrap().phase.as_deref() != Some("Migrated") {
        source.wait_state("running", PATIENCE).unwrap();
        lab.patch("web01", json!({"attempt": 1})).await.unwrap();
    }
    migrated(&lab, "web01", &source).await;
    assert_eq!(source.console().lost_at_boots(), 0);
    never_stalled(&source, &slow_storage());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_the_api_server_in_the_cutover_only_delays() {
    let (_dir, lab) = lab(LabOptions::default()).await;
    let source = guest(&lab, GuestSpec { disks: vec![64 * MIB], ..GuestSpec::default() });
    lab.migrate("web01").await.unwrap();
    in_sync(&lab, "web01").await;
    lab.approve("web01").await.unwrap();
    shutting_down(&lab, "web01").await;
    lab.cluster.restart_api_server().unwrap();
    migrated(&lab, "web01", &source).await;
    assert_eq!(power_on_orders(&lab), 1);
}

/// Tasks that power a VM on: each order that Prism accepted.
fn power_on_orders(lab: &Lab) -> usize {
    lab.prism.tasks().iter().filter(|task| task.operation == "PowerOnVm").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_somebody_powers_on_ends_the_copy_which_begins_anew_when_it_is_off() {
    let (_dir, lab) = lab(slow_storage()).await;
    let source = guest(&lab, GuestSpec { disks: vec![64 * MIB], ..GuestSpec::default() });
    lab.migrate("web01").await.unwrap();
    copying(&lab, "web01").await;
    let target = lab.prism.vm_by_name("web01").unwrap();
    lab.prism.power_on_by_hand(&target.uuid).unwrap();
    lab.wait_reason("web01", "TargetRunning", PATIENCE).await.unwrap();
    assert_eq!(source.state().unwrap(), "running");
    lab.hypervisor.power_off(&target.uuid).unwrap();
    in_sync(&lab, "web01").await;
    lab.approve("web01").await.unwrap();
    migrated(&lab, "web01", &source).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prism_that_refuses_and_loses_the_answer_to_the_power_on_boots_the_target_once() {
    let (_dir, lab) = lab(LabOptions::default()).await;
    let source = guest(&lab, GuestSpec { disks: vec![64 * MIB], ..GuestSpec::default() });
    lab.migrate("web01").await.unwrap();
    in_sync(&lab, "web01").await;
    lab.approve("web01").await.unwrap();
    shutting_down(&lab, "web01").await;
    // Whatever it asks for until the source is off, and then the first change that it orders.
    lab.prism.switches().refuse_next_calls_with(3, 429);
    lab.prism.switches().lose_next_answers(1);
    migrated(&lab, "web01", &source).await;
    assert_eq!(power_on_orders(&lab), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_controllers_at_once_do_what_one_would() {
    let (dir, lab) = lab(LabOptions::default()).await;
    let source = guest(&lab, GuestSpec { disks: vec![64 * MIB], ..GuestSpec::default() });
    let mut second = std::process::Command::new(env!("CARGO_BIN_EXE_drover"));
    second.arg("operator").env("KUBECONFIG", lab.cluster.kubeconfig());
    let log = dir.path().join("second.log");
    let mut second = Process::spawn("a second controller", second, &log).unwrap();
    let started = || std::fs::read_to_string(&log).is_ok_and(|text| text.contains("controller starts"));
    second.wait_until("its start", PATIENCE, started).unwrap();
    lab.migrate("web01").await.unwrap();
    in_sync(&lab, "web01").await;
    lab.approve("web01").await.unwrap();
    migrated(&lab, "web01", &source).await;
    assert!(second.ended().is_none(), "{}", second.tail());
    assert_eq!(power_on_orders(&lab), 1);
    assert_eq!(source.console().text().matches("SHUTDOWN asked").count(), 1);
    assert_eq!(restarts(&lab, "web01").await, 0);
    lab.delete("web01").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_approval_before_the_copy_is_in_sync_is_kept_and_acted_upon_when_it_is() {
    let (_dir, lab) = lab(slow_storage()).await;
    let source = guest(&lab, GuestSpec { disks: vec![64 * MIB], ..GuestSpec::default() });
    lab.migrate("web01").await.unwrap();
    copying(&lab, "web01").await;
    lab.approve("web01").await.unwrap();
    let migration = lab
        .wait("web01", "approved", PATIENCE, |migration| {
            migration.status.as_ref().is_some_and(|status| status.approval.is_some())
        })
        .await
        .unwrap();
    assert!(migration.status.unwrap().cutover.is_none(), "nothing is cut over while it copies");
    assert_eq!(source.state().unwrap(), "running");
    migrated(&lab, "web01", &source).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_deleted_and_created_again_after_its_cutover_touches_nothing() {
    let (_dir, lab) = lab(LabOptions::default()).await;
    let source = guest(&lab, GuestSpec { disks: vec![64 * MIB], ..GuestSpec::default() });
    lab.migrate("web01").await.unwrap();
    in_sync(&lab, "web01").await;
    lab.approve("web01").await.unwrap();
    migrated(&lab, "web01", &source).await;
    let target = lab.prism.vm_by_name("web01").unwrap();
    let console = lab.hypervisor.console(&target.uuid);
    lab.delete("web01").await.unwrap();
    assert_eq!(source.state().unwrap(), "shut off", "deleting a finished migration starts no source");
    let before = console.last_ack();
    // As git would re-apply it: still approved.
    lab.create("web01", json!({"hostname": "web01", "approved": true})).await.unwrap();
    let adopted = lab.wait_phase("web01", "Migrated", PATIENCE).await.unwrap();
    assert!(adopted.status.unwrap().source.unwrap().already_migrated);
    // Time for whatever it might still do.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(source.state().unwrap(), "shut off");
    assert!(lab.hypervisor.is_on(&target.uuid));
    assert_eq!(console.text().matches("VERIFIED ").count(), 1, "the target was booted once");
    assert!(console.last_ack() > before, "the target's guest goes on writing");
    lab.delete("web01").await.unwrap();
    assert!(lab.hypervisor.is_on(&target.uuid));
    assert_eq!(source.state().unwrap(), "shut off");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_after_the_cutover_brings_the_source_back_as_it_was_and_the_next_attempt_migrates() {
    let (_dir, lab) = lab(LabOptions::default()).await;
    let source = guest(&lab, GuestSpec { disks: vec![64 * MIB], ..GuestSpec::default() });
    lab.libvirt.virsh(&["autostart", "web01"]).unwrap();
    // libvirt leaves an empty element where a mark was.
    let definition = || lab.libvirt.virsh(&["dumpxml", "--inactive", "web01"]).unwrap().replace("  <metadata/>\n", "");
    let before = definition();
    lab.migrate("web01").await.unwrap();
    in_sync(&lab, "web01").await;
    lab.approve("web01").await.unwrap();
    migrated(&lab, "web01", &source).await;
    let target = lab.prism.vm_by_name("web01").unwrap();
    let had = source.console().last_ack().unwrap();
    lab.patch("web01", json!({"rollback": true})).await.unwrap();
    let undone = lab.wait_phase("web01", "RolledBack", PATIENCE).await.unwrap();
    assert!(
        undone.status.unwrap().waiting_for.unwrap().message.contains("what was written there is not on the source")
    );
    assert!(!lab.hypervisor.is_on(&target.uuid));
    assert_eq!(source.state().unwrap(), "running");
    assert!(source.autostart().unwrap());
    assert_eq!(definition(), before, "the domain is as it was");
    let evidence = evidence(&lab, "web01");
    assert_eq!(evidence["approval"]["digest"], evidence["plan"]["digest"]);
    let past = &evidence["earlierCutovers"][0];
    for proof in
        ["markedAt", "shutdownRequestedAt", "offByLibvirtAt", "offByHostAt", "drainedAt", "writersGoneAt", "equalAt"]
    {
        assert!(past["proofs"][proof].is_string(), "{proof}: {past:#}");
    }
    assert!(past["powerOn"]["requestId"].is_string() && past["undo"]["provenOffAt"].is_string(), "{past:#}");
    // It goes on from its own last record, with all of them.
    source.wait_for_ack(had + 20, PATIENCE).unwrap();
    lab.patch("web01", json!({"rollback": null, "attempt": 1})).await.unwrap();
    migrated(&lab, "web01", &source).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_migration_of_the_same_machine_is_refused_by_name() {
    let (_dir, lab) = lab(LabOptions::default()).await;
    let source = guest(&lab, GuestSpec { disks: vec![64 * MIB], ..GuestSpec::default() });
    lab.migrate("web01").await.unwrap();
    in_sync(&lab, "web01").await;
    lab.create("web01-again", json!({"hostname": "web01"})).await.unwrap();
    let second = lab.wait_reason("web01-again", "AlreadyClaimed", PATIENCE).await.unwrap();
    let wait = second.status.unwrap().waiting_for.unwrap();
    assert!(wait.message.contains(&format!("{TEAM}/web01 ")), "{}", wait.message);
    lab.patch("web01-again", json!({"approved": true})).await.unwrap();
    // Deleting the refused one takes nothing from the other.
    lab.delete("web01-again").await.unwrap();
    assert_eq!(source.state().unwrap(), "running");
    lab.approve("web01").await.unwrap();
    migrated(&lab, "web01", &source).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storage_that_hangs_in_sync_does_not_hang_the_guest_and_the_migration_goes_on_after_it() {
    let options = LabOptions::default();
    let (_dir, lab) = lab(options.clone()).await;
    let source = guest(&lab, GuestSpec { disks: vec![64 * MIB], ..GuestSpec::default() });
    lab.migrate("web01").await.unwrap();
    in_sync(&lab, "web01").await;
    lab.nfs.pause().unwrap();
    let hung_at = source.console().last_ack().unwrap();
    // Longer than the bound many times over; the guest writes all the while.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let during = source.console().last_ack().unwrap();
    assert!(during > hung_at + 100, "the guest wrote from record {hung_at} to {during} only");
    never_stalled(&source, &options);
    assert_eq!(source.state().unwrap(), "running");
    lab.nfs.resume().unwrap();
    in_sync(&lab, "web01").await;
    lab.approve("web01").await.unwrap();
    migrated(&lab, "web01", &source).await;
    never_stalled(&source, &options);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_differs_is_never_booted_and_the_source_runs_again() {
    // Verified before it changed, the byte would be believed; compared before, it would be an alarm and no reason to shut down.
    let (_dir, lab) = lab(LabOptions { verify_mib_per_second: 0, ..LabOptions::default() }).await;
    let source = guest(&lab, GuestSpec { disks: vec![64 * MIB], ..GuestSpec::default() });
    lab.create("web01", json!({"hostname": "web01", "cutover": {"onDifference": "GiveUp"}})).await.unwrap();
    in_sync(&lab, "web01").await;
    let target = corrupt_target(&lab, "web01").await;
    lab.approve("web01").await.unwrap();
    let stopped = lab.wait_reason("web01", "NotEqual", PATIENCE).await.unwrap();
    assert!(stopped.status.unwrap().cutover.unwrap().power_on.is_none());
    source.wait_state("running", PATIENCE).unwrap();
    assert!(!lab.hypervisor.is_on(&target.ext_id));
    // The way on: a new attempt copies again, with every zero written, and carries the approval out.
    lab.patch("web01", json!({"attempt": 1})).await.unwrap();
    migrated(&lab, "web01", &source).await;
}

/// What no honest storage does: a byte changes that the guest never writes again.
async fn corrupt_target(lab: &Lab, name: &str) -> TargetStatus {
    let target = lab.migrations().get(name).await.unwrap().status.unwrap().target.unwrap();
    let file = lab.nfs.root().join(format!(".acropolis/vmdisk/{}", target.disks[0].vmdisk_uuid));
    let file = std::fs::File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 40 * MIB).unwrap();
    file.write_all_at(&[!byte[0]], 40 * MIB).unwrap();
    target
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_differs_is_written_anew_from_the_source_and_everybody_is_told() {
    let (_dir, lab) = lab(LabOptions { verify_mib_per_second: 0, ..LabOptions::default() }).await;
    let source = guest(&lab, GuestSpec { disks: vec![64 * MIB], ..GuestSpec::default() });
    lab.migrate("web01").await.unwrap();
    in_sync(&lab, "web01").await;
    corrupt_target(&lab, "web01").await;
    lab.approve("web01").await.unwrap();
    migrated(&lab, "web01", &source).await;
    let status = lab.migrations().get("web01").await.unwrap().status.unwrap();
    let equal = status.conditions.iter().find(|condition| condition.type_ == "Equal").unwrap();
    assert_eq!((equal.status.as_str(), equal.reason.as_str()), ("True", "Repaired"));
    assert!(equal.message.starts_with("1 extents") && equal.message.contains("look at the storage"), "{equal:?}");
    assert_eq!(evidence(&lab, "web01")["cutover"]["proofs"]["repair"]["repairedExtents"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_does_not_shut_down_runs_on() {
    let (_dir, lab) = lab(LabOptions::default()).await;
    let source = guest(&lab, GuestSpec { disks: vec![64 * MIB], deaf: true, ..GuestSpec::default() });
    lab.create("web01", json!({"hostname": "web01", "cutover": {"shutdown": {"timeoutSeconds": 10}}})).await.unwrap();
    in_sync(&lab, "web01").await;
    lab.approve("web01").await.unwrap();
    lab.wait_reason("web01", "ShutdownTimedOut", PATIENCE).await.unwrap();
    let then = source.console().last_ack().unwrap();
    source.wait_for_ack(then + 40, PATIENCE).unwrap();
    assert_eq!(source.state().unwrap(), "running");
    let target = lab.prism.vm_by_name("web01").unwrap();
    assert!(!lab.hypervisor.is_on(&target.uuid));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_named_and_the_source_is_left_alone() {
    let (_dir, lab) = lab(LabOptions::default()).await;
    let small = |name: &str| GuestSpec { name: name.into(), disks: vec![64 * MIB], mac: None, ..GuestSpec::default() };
    let twin = |name: &str| GuestSpec { title: Some("twin".into()), ..small(name) };
    for spec in [small("off"), twin("twin-a"), twin("twin-b")] {
        lab.libvirt.define(&spec).unwrap();
    }
    for name in ["nobody", "off", "twin"] {
        lab.migrate(name).await.unwrap();
    }
    let says = async |name: &str, reason: &str, part: &str| {
        let migration = lab.wait_reason(name, reason, PATIENCE).await.unwrap();
        let status = migration.status.unwrap();
        let message = status.waiting_for.unwrap().message;
        assert!(message.contains(part), "{name}: {message}");
        let stalled = status.conditions.iter().find(|condition| condition.type_ == "Stalled").unwrap();
        assert_eq!((stalled.status.as_str(), stalled.reason.as_str()), ("True", reason), "{name}");
    };
    says("nobody", "DomainNotFound", "Correct the hostname or the host").await;
    says("off", "SourceNotRunning", "Start it").await;
    says("twin", "AmbiguousHostname", "twin-a, twin-b").await;
    let off = lab.libvirt.virsh(&["dominfo", "off"]).unwrap();
    assert!(off.contains("shut off"), "{off}");

    let source = guest(&lab, GuestSpec { disks: vec![64 * MIB], ..GuestSpec::default() });
    lab.set_password(SYSTEM, "prism-central", "wrong").await.unwrap();
    lab.set_password(TEAM, "machines-git", "wrong").await.unwrap();
    lab.migrate("web01").await.unwrap();
    says("web01", "PrismUnauthorized", "spec.prismCentral.credentials").await;
    lab.set_password(SYSTEM, "prism-central", PRISM_PASSWORD).await.unwrap();
    says("web01", "GitUnauthorized", "Secret").await;
    lab.set_password(TEAM, "machines-git", GIT_PASSWORD).await.unwrap();
    lab.wait_reason("web01", "Approval", PATIENCE).await.unwrap();
    assert_eq!(source.state().unwrap(), "running");
}
