//! Facts to findings, on both sides; and that what is kept, or lives, is none.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ObjectMeta;
use serde_json::json;

use super::*;
use crate::api::block_copy::{Claim, MarkState, Want};
use crate::api::common::Time;
use crate::api::{BlockCopy, MIGRATION_FINALIZER, MIGRATION_LABEL, VmMigration};
use crate::flow::copy::{Mark, Memory};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).expect("in range")
}

fn migration(uid: &str) -> VmMigration {
    let mut migration = VmMigration::new("web01", serde_json::from_value(json!({"hostname": "web01"})).expect("valid"));
    migration.metadata.namespace = Some("team".into());
    migration.metadata.uid = Some(uid.into());
    migration
}

fn copy(uid: &str, want: Want) -> BlockCopy {
    let spec = json!({
        "claim": {"namespace": "team", "name": "web01", "uid": uid, "installation": "i"},
        "epoch": 4, "hostname": "web01", "libvirtUri": "qemu:///system", "runDirectory": "/run/drover",
        "want": want, "limits": {}, "shutdown": {},
    });
    let mut copy = BlockCopy::new("web01-1", serde_json::from_value(spec).expect("valid"));
    copy.metadata.namespace = Some("drover-system".into());
    let status = json!({"epoch": 4, "seenAt": at(-5).to_string()});
    copy.status = Some(serde_json::from_value(status).expect("valid"));
    copy
}

fn object(name: &str, uid: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.into()),
        namespace: Some("drover-system".into()),
        uid: Some(format!("uid-of-{name}")),
        labels: Some([(MIGRATION_LABEL.to_owned(), uid.to_owned())].into()),
        ..ObjectMeta::default()
    }
}

fn pod_of(job: &ObjectMeta, uid: &str) -> ObjectMeta {
    let owner = OwnerReference { uid: job.uid.clone().unwrap_or_default(), ..OwnerReference::default() };
    ObjectMeta { owner_references: Some(vec![owner]), ..object("pod", uid) }
}

/// A migration under way, with all that belongs to it.
fn under_way() -> ClusterSeen {
    let job = object("job", "u1");
    ClusterSeen {
        migrations: vec![migration("u1")],
        copies: vec![copy("u1", Want::Mirror)],
        pods: vec![pod_of(&job, "u1")],
        jobs: vec![job],
    }
}

fn names(found: &[Leftover]) -> Vec<&str> {
    found.iter().map(|leftover| leftover.what.as_str()).collect()
}

#[test]
fn what_a_living_migration_uses_is_no_leftover() {
    assert_eq!(cluster(&under_way(), at(0)), []);
    assert_eq!(cluster(&ClusterSeen::default(), at(0)), []);
    // Finalised, and still there.
    assert_eq!(cluster(&ClusterSeen { migrations: vec![migration("u1")], ..ClusterSeen::default() }, at(0)), []);
}

#[test]
fn everything_of_a_migration_that_is_gone_is_found() {
    let seen = ClusterSeen { migrations: vec![migration("another")], ..under_way() };
    let found = cluster(&seen, at(0));
    assert_eq!(names(&found), ["BlockCopy drover-system/web01-1", "Job drover-system/job", "pod drover-system/pod"]);
    assert!(found[0].why.contains("team/web01 (uid u1) is gone"), "{:?}", found[0]);
    assert!(found[1].todo.starts_with("when its BlockCopy is released: kubectl"), "{:?}", found[1]);
}

#[test]
fn the_order_that_a_person_gives_never_starts_a_source_whose_target_may_run() {
    let todo = |want: Want, migrated: bool| {
        let mut copy = copy("u1", want);
        let domain = json!({"state": "shut off", "migrated": migrated, "libvirtVersion": "9", "qemuVersion": "7"});
        copy.status.as_mut().expect("reported").domain = Some(serde_json::from_value(domain).expect("valid"));
        let seen = ClusterSeen { copies: vec![copy], ..ClusterSeen::default() };
        cluster(&seen, at(0)).remove(0).todo
    };
    for want in [Want::Inspect, Want::Mirror] {
        assert!(todo(want, false).contains(r#"{"spec":{"want":"Release","epoch":5}}"#));
    }
    assert!(todo(Want::Quiesce, false).starts_with("see in Prism whether its target runs"));
    for (want, migrated) in [(Want::KeepOff, false), (Want::Retire, false), (Want::Quiesce, true), (Want::Mirror, true)]
    {
        assert!(todo(want, migrated).contains(r#""want":"Retire""#), "{want:?}");
        assert!(!todo(want, migrated).contains("Release"), "{want:?}");
    }
    assert!(todo(Want::Undo, true).contains(r#""want":"Undo""#));
}

#[test]
fn a_copy_that_was_released_is_only_removed() {
    let mut released = copy("u1", Want::Release);
    released.status.as_mut().expect("reported").reached = Some(Want::Release);
    let found = cluster(&ClusterSeen { copies: vec![released], ..ClusterSeen::default() }, at(0));
    assert!(found[0].todo.starts_with("it is released: "), "{:?}", found[0]);
}

#[test]
fn a_job_without_orders_and_a_pod_without_a_job_serve_nobody() {
    let seen = ClusterSeen { copies: Vec::new(), ..under_way() };
    assert_eq!(names(&cluster(&seen, at(0))), ["Job drover-system/job", "pod drover-system/pod"]);
    let seen = ClusterSeen { jobs: Vec::new(), ..under_way() };
    let found = cluster(&seen, at(0));
    assert_eq!(names(&found), ["pod drover-system/pod"]);
    assert_eq!(found[0].why, "its Job is gone");
}

#[test]
fn a_host_side_that_is_silent_is_found_and_one_that_starts_is_not() {
    let mut seen = under_way();
    assert_eq!(names(&cluster(&seen, at(200))), ["BlockCopy drover-system/web01-1"]);
    seen.copies[0].status = None;
    seen.copies[0].metadata.creation_timestamp = Some(Time(at(150)));
    assert_eq!(cluster(&seen, at(200)), []);
    assert_eq!(names(&cluster(&seen, at(400))), ["BlockCopy drover-system/web01-1"]);
}

#[test]
fn a_deletion_that_takes_too_long_is_found_with_what_it_waits_for() {
    let mut seen = under_way();
    let deleted = &mut seen.migrations[0];
    deleted.metadata.deletion_timestamp = Some(Time(at(0)));
    deleted.metadata.finalizers = Some(vec![MIGRATION_FINALIZER.into()]);
    let waiting = json!({"waitingFor": {"reason": "HostSideSilent", "message": "look there", "since": at(0).to_string(), "nextCheckSeconds": 2}});
    deleted.status = Some(serde_json::from_value(waiting).expect("valid"));
    seen.copies.clear();
    (seen.jobs, seen.pods) = (Vec::new(), Vec::new());
    assert_eq!(cluster(&seen, at(60)), []);
    let found = cluster(&seen, at(3600));
    assert_eq!(names(&found), ["VmMigration team/web01"]);
    assert!(found[0].why.ends_with("it waits for HostSideSilent") && found[0].todo == "look there", "{:?}", found[0]);
    seen.migrations[0].metadata.finalizers = Some(vec!["others/hold".into()]);
    assert!(cluster(&seen, at(3600))[0].why.contains("finalizers of others hold it: others/hold"));
}

#[test]
fn an_object_that_is_ending_is_not_yet_gone_and_one_that_does_not_end_is_stuck() {
    let mut seen = under_way();
    seen.pods[0].deletion_timestamp = Some(Time(at(0)));
    assert_eq!(cluster(&seen, at(60)), []);
    seen.copies[0].status.as_mut().expect("reported").seen_at = Some(Time(at(300)));
    assert_eq!(names(&cluster(&seen, at(300))), ["pod drover-system/pod"]);
    seen.migrations.clear();
    let pod = cluster(&seen, at(60)).pop().expect("of a migration that is gone");
    assert_eq!(
        (pod.what.as_str(), pod.todo.as_str()),
        ("pod drover-system/pod", "it is ending: look again in a moment")
    );
}

fn claim(uid: &str) -> Claim {
    Claim { namespace: "team".into(), name: "web01".into(), uid: uid.into(), installation: "i".into() }
}

fn domain(state: MarkState) -> DomainTraces {
    DomainTraces {
        name: "web01".into(),
        uuid: "d1".into(),
        running: true,
        autostart: false,
        mark: Some(Mark { claim: claim("u1"), epoch: 3, state, autostart_was: Some(true) }),
        mirrors: vec![MirrorTrace { device: "vda".into(), socket: "/run/drover/u1/nbd.sock".into() }],
    }
}

fn busy_host(living: Option<&[&str]>) -> HostSeen {
    let path = |name: &str| format!("/run/drover/{name}");
    let beside = |name: &str, of| StrayFile { path: path(name), of };
    HostSeen {
        uri: "qemu:///system".into(),
        run_directory: "/run/drover".into(),
        living: living.map(|uids| uids.iter().map(|uid| (*uid).to_owned()).collect()),
        domains: vec![domain(MarkState::Cutover)],
        claims: vec![ClaimFile {
            path: path("claims/d1.json"),
            domain_uuid: "d1".into(),
            memory: Memory::new(claim("u1"), 3),
        }],
        files: vec![
            beside("claims/d1.vda.verified", FileOf::Claim("d1".into())),
            beside("u1/nbd.sock", FileOf::Migration("u1".into())),
        ],
        processes: vec![ProcessTrace { pid: 7, part: "relay".into(), uid: "u1".into() }],
    }
}

const ALL_OF_IT: [&str; 7] = [
    "mirror of disk vda of domain web01",
    "autostart of domain web01",
    "mark on domain web01 (d1)",
    "process 7 (relay)",
    "claim /run/drover/claims/d1.json",
    "file /run/drover/claims/d1.vda.verified",
    "file /run/drover/u1/nbd.sock",
];

#[test]
fn on_a_hypervisor_what_lives_is_no_leftover_and_all_of_what_is_gone_is() {
    assert_eq!(host(&busy_host(Some(&["u1"]))), []);
    assert_eq!(names(&host(&busy_host(Some(&["u2"])))), ALL_OF_IT);
}

#[test]
fn without_being_told_a_process_is_the_sign_of_life() {
    let mut seen = busy_host(None);
    assert_eq!(host(&seen), []);
    seen.processes.clear();
    let found = host(&seen);
    assert_eq!(found.len(), ALL_OF_IT.len() - 1);
    assert!(found.iter().all(|leftover| leftover.why.contains("--living tells")), "{found:?}");
}

#[test]
fn the_mark_of_a_finished_cutover_and_the_disabled_autostart_are_kept() {
    let mut seen = busy_host(Some(&[]));
    seen.domains = vec![DomainTraces { mirrors: Vec::new(), ..domain(MarkState::Migrated) }];
    (seen.claims, seen.files, seen.processes) = (Vec::new(), Vec::new(), Vec::new());
    assert_eq!(host(&seen), []);
}

#[test]
fn mirrors_to_other_sockets_and_autostart_that_nobody_changed_are_not_ours() {
    let mut seen = busy_host(Some(&[]));
    seen.domains[0].mirrors[0].socket = "/run/drover-of-others/u1/nbd.sock".into();
    seen.domains[0].autostart = true;
    let found = host(&seen);
    assert_eq!(names(&found)[0], "mark on domain web01 (d1)");
    assert!(found[0].todo.starts_with("see in Prism whether its target runs"), "{:?}", found[0]);
}

#[test]
fn files_without_a_claim_and_files_that_nobody_knows_are_told() {
    let mut seen = busy_host(Some(&["u1"]));
    seen.claims.clear();
    seen.files.push(StrayFile { path: "/run/drover/what".into(), of: FileOf::Nothing });
    assert_eq!(names(&host(&seen)), ["file /run/drover/claims/d1.vda.verified", "file /run/drover/what"]);
}

#[test]
fn what_could_not_be_looked_at_is_never_nothing() {
    let leftover = Leftover { what: "x".into(), why: "y".into(), todo: "z".into() };
    let report = |leftovers: &[Leftover], unknown: &[&str]| Report {
        leftovers: leftovers.to_vec(),
        unknown: unknown.iter().map(|what| (*what).to_owned()).collect(),
    };
    assert_eq!(report(&[], &[]).exit_code(), 0);
    assert_eq!(report(std::slice::from_ref(&leftover), &[]).exit_code(), 1);
    assert_eq!(report(&[], &["libvirt"]).exit_code(), 2);
    assert_eq!(report(std::slice::from_ref(&leftover), &["libvirt"]).exit_code(), 2);
    assert_eq!(report(&[leftover], &[]).text(false), "x\n  y\n  -> z\n1 left behind\n");
    assert!(report(&[], &["libvirt"]).text(true).contains(r#""unknown": ["#));
}

#[test]
fn a_list_of_the_living_is_whole_or_refused() {
    let living: BTreeSet<String> = ["u1".to_owned(), "u2".to_owned()].into();
    let text = write_living(&living);
    assert_eq!(read_living(&text), Ok(living));
    assert_eq!(read_living(&write_living(&BTreeSet::new())), Ok(BTreeSet::new()));
    for spoilt in ["", "u1\nu2\n", "u1\n# 2 living\n", "u1\n# living\n"] {
        assert!(read_living(spoilt).is_err(), "{spoilt:?}");
    }
}
