//! The lab's guests, libvirt and storage by themselves: the ground that every end-to-end test stands on.

use std::path::Path;
use std::time::{Duration, Instant};

use drover_lab::guest::{GuestImage, Load, QemuHypervisor, read_records};
use drover_lab::hypervisor::{Hypervisor, VmShape};
use drover_lab::libvirt::{GuestSpec, Libvirt};
use drover_lab::nfs::NfsExport;
use drover_lab::throttle::Throttle;

const LIMIT: Duration = Duration::from_secs(120);

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LIMIT, "not {what} after {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_guest_s_records_survive_its_shutdown_and_another_machine() {
    let dir = tempfile::tempdir().unwrap();
    let libvirt = Libvirt::start(&dir.path().join("v")).unwrap();
    let load = Load { rate: 20, payload_bytes: 1000, ring: 64, ..Load::default() };
    let guest = libvirt.define(&GuestSpec { disks: vec![64 << 20, 96 << 20], load, ..GuestSpec::default() }).unwrap();
    guest.start_and_write(100).unwrap();
    guest.shutdown().unwrap();
    guest.wait_state("shut off", LIMIT).unwrap();
    let last = guest.console().last_ack().unwrap();
    for disk in guest.disk_paths() {
        let records = read_records(disk, load).unwrap();
        assert!(records.upto >= last && records.bad == 0, "{records:?}, {last} were acknowledged");
    }
    boots_elsewhere(dir.path(), guest.disk_paths().to_vec(), load, last);
}

fn boots_elsewhere(dir: &Path, disks: Vec<std::path::PathBuf>, load: Load, last: u64) {
    let ahv = QemuHypervisor::new(dir, &GuestImage::ready().unwrap()).unwrap();
    ahv.set_load("web01", load);
    let shape = VmShape {
        uuid: "u1".into(),
        name: "web01".into(),
        vcpus: 1,
        memory_bytes: 128 << 20,
        disks,
        macs: vec!["52:54:00:0a:01:01".into()],
    };
    ahv.power_on(&shape).unwrap();
    assert!(ahv.power_on(&shape).is_err(), "a VM that runs cannot be started again");
    until("writing again", || ahv.console("u1").last_ack().is_some());
    let verified = ahv.console("u1").verified();
    assert_eq!(verified.len(), 2);
    for records in verified.values() {
        assert!(records.upto >= last && records.bad == 0, "{records:?}, {last} were acknowledged");
    }
    until("heard on the network", || ahv.learned_ips("u1") == ["10.10.1.1"]);
    ahv.power_off("u1").unwrap();
    assert!(!ahv.is_on("u1"));
}

#[test]
fn guests_outlive_their_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let libvirt = Libvirt::start(&dir.path().join("v")).unwrap();
    let guest = libvirt.define(&GuestSpec::default()).unwrap();
    guest.start_and_write(5).unwrap();
    libvirt.kill_daemon();
    assert!(guest.state().is_err());
    let seen = guest.console().last_ack().unwrap();
    guest.wait_for_ack(seen + 20, LIMIT).unwrap();
    libvirt.restart_daemon().unwrap();
    assert_eq!(guest.state().unwrap(), "running");
}

#[test]
fn two_storages_serve_side_by_side() {
    let dir = tempfile::tempdir().unwrap();
    let first = NfsExport::start(&dir.path().join("a"), "ctr").unwrap();
    let second = NfsExport::start(&dir.path().join("b"), "ctr").unwrap();
    assert_ne!(first.port(), second.port());
    assert!(first.root().join(".acropolis/vmdisk").is_dir());
}

#[test]
fn a_throttle_holds_its_rate() {
    use std::io::{Read, Write};
    let server = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let throttle = Throttle::start(server.local_addr().unwrap().port(), 4 << 20).unwrap();
    let mut client = std::net::TcpStream::connect(("127.0.0.1", throttle.port())).unwrap();
    let (mut accepted, _) = server.accept().unwrap();
    let start = Instant::now();
    let reader = std::thread::spawn(move || {
        let mut all = vec![0; 4 << 20];
        accepted.read_exact(&mut all).unwrap();
        all
    });
    client.write_all(&vec![7; 4 << 20]).unwrap();
    assert_eq!(reader.join().unwrap(), vec![7; 4 << 20]);
    assert!(start.elapsed() > Duration::from_millis(800), "4 MiB at 4 MiB/s took {:?}", start.elapsed());
}
