//! What administrators and their tools do to a machine while it is copied: what would spoil the copy is refused or noticed, and a machine
//! of another shape is never proven to have been moved.

use drover::api::block_copy::Want;
use drover_lab::libvirt::{Domain, GuestSpec};
use nix::sys::signal::Signal;

use crate::faults::{one_disk, writes_on};
use crate::host::{DISK, FAST, Host, LIMIT, SLOW};
use crate::migration::Migration;

/// Each must be refused while a mirror runs, and change nothing.
fn all_refused(host: &Host, guest: &Domain) {
    let other = host.dir().join("other.img").display().to_string();
    let commands: [&[&str]; 8] = [
        &["snapshot-create-as", "web01", "before-patching", "--disk-only"],
        &["snapshot-create-as", "web01", "before-patching"],
        &["blockresize", "web01", "vda", "131072"],
        &["blockcommit", "web01", "vda", "--active"],
        &["blockcopy", "web01", "vda", "--dest", &other, "--transient-job"],
        &["backup-begin", "web01"],
        &["managedsave", "web01"],
        &["detach-disk", "web01", "vda", "--live"],
    ];
    let mirrors = host.mirrors(guest);
    for command in commands {
        let refused = host.libvirt.virsh(command);
        assert!(refused.is_err(), "{command:?}: {refused:?}");
    }
    assert_eq!(host.mirrors(guest), mirrors);
    assert_eq!(std::fs::metadata(&guest.disk_paths()[0]).unwrap().len(), DISK);
    assert_eq!(host.libvirt.virsh(&["snapshot-list", "web01", "--name"]).unwrap().trim(), "");
}

/// Gives the guest a second disk while it runs, or takes it away again.
fn second_disk(host: &Host, how: &str) {
    let path = host.dir().join("second.img");
    if !path.exists() {
        std::fs::File::create(&path).unwrap().set_len(DISK).unwrap();
    }
    let path = path.display().to_string();
    let command: &[&str] = match how {
        "attach" => &["attach-disk", "web01", &path, "vdb", "--driver", "qemu", "--subdriver", "raw", "--live"],
        "attach for good" => {
            &["attach-disk", "web01", &path, "vdb", "--driver", "qemu", "--subdriver", "raw", "--live", "--config"]
        }
        _ => &["detach-disk", "web01", "vdb", "--live"],
    };
    host.libvirt.virsh(command).unwrap();
}

#[test]
fn what_would_change_a_disk_under_the_mirror_is_refused_and_a_disk_that_is_added_keeps_the_guest_from_being_shut_down()
{
    let host = Host::start();
    let guest = host.guest(&one_disk());
    let (definition, qemu) = (host.definition(&guest), host.qemu(&guest));
    let mut migration = Migration::of(&host, &guest);
    host.line.set_rate(SLOW);
    migration.want(Want::Mirror);
    migration.wait_mid_copy();
    all_refused(&host, &guest);
    second_disk(&host, "attach");
    let message = migration.problem("SourceChanged");
    assert!(message.contains("Disk vdb is not part of the order"), "{message}");
    host.line.set_rate(FAST);
    migration.want(Want::Quiesce);
    let waiting = migration.problem("AwaitingSync");
    assert!(waiting.contains("Disk vdb is not part of the order"), "{waiting}");
    assert_eq!((migration.status().quiesce, migration.status().reached), (None, None));
    assert_eq!((host.qemu(&guest), guest.state().unwrap()), (qemu, "running".into()));

    // Without it the machine is again what was ordered to be moved.
    second_disk(&host, "detach");
    migration.want(Want::Mirror);
    migration.wait_in_sync();
    all_refused(&host, &guest);
    let status = migration.wait_in_sync();
    assert_eq!((status.restarts, status.problem), (0, None));
    writes_on(&guest);
    migration.quiesce(&host, &guest);
    migration.want(Want::Release);
    migration.finish();
    assert_eq!(host.definition(&guest), definition);
}

#[test]
fn a_disk_that_was_resized_after_it_was_looked_at_is_not_copied() {
    let host = Host::start();
    let guest = host.guest(&one_disk());
    let qemu = host.qemu(&guest);
    let mut migration = Migration::of(&host, &guest);
    host.libvirt.virsh(&["blockresize", "web01", "vda", &format!("{}B", 2 * DISK)]).unwrap();
    migration.want(Want::Mirror);
    let message = migration.problem("SourceChanged");
    assert!(message.contains(&format!("Disk vda has {} bytes; the order says {DISK}", 2 * DISK)), "{message}");
    assert_eq!((host.mirrors(&guest).len(), host.qemu(&guest)), (0, qemu));
    migration.want(Want::Release);
    migration.finish();
    assert_eq!((host.mark(&guest), migration.claim(&host, &guest)), (None, None));
    writes_on(&guest);
}

#[test]
fn a_disk_that_is_added_between_the_order_to_shut_down_and_the_end_is_never_left_behind() {
    let host = Host::start();
    // It goes off when this test has its agent do so, and not before.
    let guest = host.guest(&GuestSpec { agent: true, deaf: true, ..one_disk() });
    let mut migration = Migration::of(&host, &guest);
    migration.reach(Want::Mirror);
    migration.wait_in_sync();
    migration.want(Want::Quiesce);
    migration.wait("asked", |status| status.quiesce.as_ref().is_some_and(|q| q.shutdown_requested_at.is_some()));
    migration.driver.signal(Signal::SIGSTOP).unwrap();
    second_disk(&host, "attach for good");
    host.libvirt.virsh(&["shutdown", "web01", "--mode", "agent"]).unwrap();
    guest.wait_state("shut off", LIMIT).unwrap();
    migration.driver.signal(Signal::SIGCONT).unwrap();
    let status = migration.wait("proven or refused", |status| status.reached.is_some() || status.problem.is_some());
    assert_eq!(status.reached, None, "proven without its second disk");
    migration.problem("SourceChanged");
}
