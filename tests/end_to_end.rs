//! Whole migrations on real parts: what a user does, and what must be true afterwards.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on is to panic, in its helpers too")]

use std::path::Path;
use std::time::Duration;

use drover_lab::hypervisor::Hypervisor;
use drover_lab::lab::{Lab, LabOptions, Outcome};
use drover_lab::libvirt::{Domain, GuestSpec};

const MINUTES: Duration = Duration::from_secs(240);

async fn lab(options: LabOptions) -> (tempfile::TempDir, Lab) {
    let dir = tempfile::Builder::new().prefix("lab").tempdir().unwrap();
    let lab = Lab::start(dir.path(), Path::new(env!("CARGO_BIN_EXE_drover")), options).await.unwrap();
    (dir, lab)
}

/// A guest that runs and writes, and a lab that writes like it once it has moved.
fn guest(lab: &Lab, spec: GuestSpec) -> Domain {
    lab.hypervisor.set_load(&spec.name, spec.load);
    let domain = lab.libvirt.define(&spec).unwrap();
    domain.start_and_write(20).unwrap();
    domain
}

/// Sees the migration finished, one machine running, and nothing lost.
async fn migrated(lab: &Lab, name: &str, source: &Domain) -> Outcome {
    lab.wait_phase(name, "Migrated", MINUTES).await.unwrap();
    let outcome = lab.outcome(name, source).await.unwrap();
    assert_eq!(outcome.lost(), 0, "{outcome}");
    assert_eq!(source.state().unwrap(), "shut off");
    assert!(!source.autostart().unwrap());
    let target = lab.prism.vm_by_name(name).unwrap();
    assert!(lab.hypervisor.is_on(&target.uuid));
    outcome
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_disk() {
    let (_dir, lab) = lab(LabOptions::default()).await;
    let source = guest(&lab, GuestSpec::default());
    lab.migrate("web01").await.unwrap();
    lab.wait_reason("web01", "Approval", MINUTES).await.unwrap();
    assert_eq!(source.state().unwrap(), "running");
    lab.approve("web01").await.unwrap();
    let outcome = migrated(&lab, "web01", &source).await;
    println!("{outcome}");
}
