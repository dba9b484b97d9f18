//! The simulated Prism, used by the vendor's own SDK for Python.

use std::process::Command;
use std::sync::Arc;

use drover_lab::hypervisor::NoHypervisor;
use drover_lab::prism::{Prism, PrismConfig};

#[path = "common/python.rs"]
mod python;
use python::{python, run, script};

#[test]
fn the_vendors_sdk_takes_a_vm_through_its_life() {
    let python = python();
    let dir = tempfile::tempdir().expect("a directory");
    let prism = Prism::start(PrismConfig {
        dir: dir.path().to_owned(),
        export_root: dir.path().join("export"),
        container: "drover".into(),
        cluster_name: "ahv1".into(),
        subnets: vec![("lan".into(), 7), ("dmz".into(), 8)],
        username: "admin".into(),
        password: "secret/4u".into(),
        hypervisor: Arc::new(NoHypervisor::default()),
        log_path: dir.path().join("calls.log"),
    })
    .expect("start the simulated Prism");
    let port = prism.central_url().rsplit(':').next().expect("a port");
    run(
        Command::new(python)
            .arg(script("check.py"))
            .env("PRISM_PORT", port)
            .env("PRISM_USERNAME", "admin")
            .env("PRISM_PASSWORD", "secret/4u")
            .env("PRISM_API_KEY", prism.api_key())
            .env("PRISM_CA", dir.path().join("ca.pem"))
            .env("PRISM_CLUSTER", "ahv1")
            .env("PRISM_CONTAINER", "drover")
            .env("PRISM_SUBNET", "lan")
            .env("NO_PROXY", "127.0.0.1"),
        "check.py",
    );
    let polls = prism.calls().iter().filter(|call| call.path.starts_with("/api/prism/v4.3/config/tasks/")).count();
    assert!(polls >= 60, "the SDK for v4.4 negotiated v4.3 and polled its tasks to their end, {polls} looks");
    assert_eq!(prism.vms().len(), 0);
    assert_eq!(std::fs::read_dir(dir.path().join("export/.acropolis/vmdisk")).expect("the export").count(), 0);
}
