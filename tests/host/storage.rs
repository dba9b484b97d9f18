//! A storage that is full, or fails: the guest runs on, people are told what to do, and the copy goes on by itself when that was done.

use drover::api::block_copy::{BlockCopyStatus, MirrorState, Want};
use drover_lab::guest::Load;
use drover_lab::libvirt::GuestSpec;
use drover_lab::nfs_proxy::{NFS3ERR_ACCES, NFS3ERR_IO, Writes};
use nix::sys::signal::Signal;

use crate::faults::{one_disk, writes_on};
use crate::host::{DISK, FAST, Host, LIMIT, MIB, SLOW, until};
use crate::migration::{Migration, assert_not_held_up};

/// Waits until the copy has broken, and once more if it was tried again. All the while people are told why.
fn broken(migration: &Migration, times: u32, words: &[&str]) {
    let before = migration.status().restarts;
    let told = |status: &BlockCopyStatus| {
        let broken = status.problem.as_ref().filter(|problem| problem.reason == "CopyBroken");
        if let Some(problem) = broken {
            for word in words {
                assert!(problem.message.contains(word), "no {word:?} in: {}", problem.message);
            }
        }
        broken.is_some()
    };
    migration.wait("broken", |status| told(status) && status.restarts >= before + times);
}

#[test]
fn a_full_storage_is_told_and_the_copy_goes_on_when_there_is_room() {
    let host = Host::with_room(128 * MIB);
    let guest = host.guest(&one_disk());
    let qemu = host.qemu(&guest);
    let mut migration = Migration::of(&host, &guest);
    let full = ["vmdisk/uid-web01-a on NFS export 127.0.0.1:/ctr", "NFS3ERR_NOSPC", "make room"];
    // Less than the disk needs.
    host.storage.fill_up(16 * MIB).unwrap();
    migration.want(Want::Mirror);
    broken(&migration, 2, &full);
    writes_on(&guest);
    host.storage.make_room().unwrap();
    migration.wait_in_sync();

    host.storage.fill_up(0).unwrap();
    broken(&migration, 1, &full);
    writes_on(&guest);
    host.storage.make_room().unwrap();
    let status = migration.wait_in_sync();
    assert_eq!((status.problem, host.qemu(&guest)), (None, qemu));
    assert_not_held_up(&guest, 10);
    migration.quiesce(&host, &guest);
}

#[test]
fn a_storage_that_fails_to_write_or_forbids_it_is_told_and_the_copy_goes_on_when_it_works() {
    let (host, proxy) = Host::behind_proxy();
    let guest = host.guest(&one_disk());
    let mut migration = Migration::of(&host, &guest);
    host.line.set_rate(SLOW);
    migration.want(Want::Mirror);
    migration.wait_mid_copy();
    proxy.set(Writes::Refused(NFS3ERR_IO));
    broken(&migration, 2, &["NFS3ERR_IO", "look at the storage"]);
    writes_on(&guest);
    proxy.set(Writes::Honest);
    host.line.set_rate(FAST);
    migration.wait_in_sync();

    proxy.set(Writes::Refused(NFS3ERR_ACCES));
    broken(&migration, 1, &["NFS3ERR_ACCES", "whitelist"]);
    writes_on(&guest);
    proxy.set(Writes::Honest);
    migration.wait_in_sync();
    assert!(proxy.spoilt() >= 2);
    assert_not_held_up(&guest, 10);
    migration.quiesce(&host, &guest);
}

#[test]
fn one_error_between_the_order_to_shut_down_and_the_end_is_no_proof() {
    let (host, proxy) = Host::behind_proxy();
    // It goes off when this test has its agent do so, and not before.
    let guest = host.guest(&GuestSpec { agent: true, deaf: true, ..one_disk() });
    let mut migration = Migration::of(&host, &guest);
    migration.reach(Want::Mirror);
    migration.wait_in_sync();
    migration.want(Want::Quiesce);
    migration.wait("asked", |status| status.quiesce.as_ref().is_some_and(|q| q.shutdown_requested_at.is_some()));
    migration.driver.signal(Signal::SIGSTOP).unwrap();
    proxy.set(Writes::Refused(NFS3ERR_IO));
    until("given up by QEMU", || host.mirrors(&guest).is_empty());
    proxy.set(Writes::Honest);
    // These go to the source alone.
    writes_on(&guest);
    host.libvirt.virsh(&["shutdown", "web01", "--mode", "agent"]).unwrap();
    guest.wait_state("shut off", LIMIT).unwrap();
    migration.driver.signal(Signal::SIGCONT).unwrap();
    migration.proven_or_given_back(&host, &guest, || ());
}

#[test]
fn a_mirror_that_is_given_up_with_much_to_write_to_a_slow_storage_does_not_hold_the_guest_up() {
    let host = Host::start();
    let load = Load { rate: 4, payload_bytes: 500_000, ring: 160, ..Load::default() };
    let guest = host.guest(&GuestSpec { load, disks: vec![3 * DISK], ..GuestSpec::default() });
    let (definition, qemu) = (host.definition(&guest), host.qemu(&guest));
    let mut migration = Migration::of(&host, &guest);
    migration.reach(Want::Mirror);
    migration.wait_in_sync();
    host.line.set_rate(MIB / 2);
    let status = migration.wait("far behind", |status| status.disks[0].backlog_bytes > 12 * MIB);
    assert_eq!((status.restarts, status.disks[0].state), (0, MirrorState::Ready));
    migration.want(Want::Release);
    migration.finish();
    assert_eq!((host.mirrors(&guest), host.qemu(&guest)), (vec![], qemu));
    assert_eq!((host.mark(&guest), migration.claim(&host, &guest)), (None, None));
    assert_eq!(host.definition(&guest), definition);
    assert!(guest.autostart().unwrap());
    writes_on(&guest);
    assert_not_held_up(&guest, 10);
}
