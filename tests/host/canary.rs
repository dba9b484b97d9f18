//! The marker at the start of a target: it is where it was ordered to be, and gone when the disk was copied.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;

use drover::api::block_copy::Want;
use drover::flow::canary::{MARKER_BYTES, marker};
use drover_lab::libvirt::GuestSpec;

use crate::host::{DISK, Host, MIB};
use crate::migration::Migration;

fn start_of(file: &Path) -> Vec<u8> {
    let mut start = vec![0; MARKER_BYTES];
    File::open(file).unwrap().read_exact(&mut start).unwrap();
    start
}

/// Nothing but zeroes at the start, where a copy that trusts in a fresh target would write nothing; something further on.
fn clear_start(disk: &Path) {
    let mut file = File::options().write(true).open(disk).unwrap();
    file.write_all(&vec![0; MIB as usize]).unwrap();
    file.seek(std::io::SeekFrom::Start(2 * MIB)).unwrap();
    file.write_all(b"something").unwrap();
}

#[test]
fn a_marker_is_written_to_each_target_and_gone_after_the_copy_though_the_source_begins_with_zeroes() {
    let host = Host::start();
    let spec = GuestSpec { name: "marked".into(), disks: vec![DISK, DISK], mac: None, ..GuestSpec::default() };
    let domain = host.libvirt.define(&spec).unwrap();
    domain.disk_paths().iter().for_each(|disk| clear_start(disk));
    host.libvirt.virsh(&["start", "--paused", "marked"]).unwrap();
    let mut migration = Migration::of(&host, &domain);

    migration.order.canary = Some("n1".into());
    let status = migration.reach(Want::Canary);
    assert!(status.disks.iter().all(|disk| !disk.dirtied), "{status:?}");
    for (target, device) in migration.targets.iter().zip(["vda", "vdb"]) {
        assert_eq!(start_of(target), marker("uid-marked", device, "n1"));
    }
    // A driver that comes later writes the same again.
    migration.restart_driver();
    migration.order.canary = Some("n2".into());
    migration.reach(Want::Canary);
    assert_eq!(start_of(&migration.targets[0]), marker("uid-marked", "vda", "n2"));

    migration.order.canary = None;
    migration.want(Want::Mirror);
    migration.wait_in_sync();
    migration.wait("everything verified", |status| status.disks.iter().all(|disk| disk.verified_bytes == DISK));
    for target in &migration.targets {
        assert_eq!(start_of(target), [0; MARKER_BYTES]);
    }
    migration.order.canary = Some("n3".into());
    migration.want(Want::Canary);
    migration.problem("TargetInUse");
    assert_eq!(start_of(&migration.targets[0]), [0; MARKER_BYTES]);
    migration.want(Want::Release);
    migration.finish();
}
