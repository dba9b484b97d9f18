//! Verified while the guest runs: what that saves in the outage, what it finds, what it believes, and what voids it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use drover::api::block_copy::{BlockCopyStatus, HowOff, Want};
use drover::api::shutdown::OnShutdownTimeout;
use drover_lab::libvirt::{Domain, GuestSpec};
use nix::sys::signal::Signal;

use crate::host::{DISK, Host, LIMIT, MIB};
use crate::migration::Migration;

const EXTENT: u64 = 4 * MIB;
/// Large enough that the guest's own writes touch a small part of it.
const LARGE: u64 = 512 * MIB;

fn of_size(size: u64) -> GuestSpec {
    GuestSpec { disks: vec![size], ..GuestSpec::default() }
}

/// Extents compared in the outage, extents known by then, and how long that took from the moment that the last writer was gone.
fn comparison(status: &BlockCopyStatus) -> (u64, u64, Duration) {
    let proofs = status.quiesce.clone().unwrap();
    let took = proofs.equal_at.unwrap().0.duration_since(proofs.writers_gone_at.unwrap().0);
    (proofs.compared_extents.unwrap(), proofs.verified_extents.unwrap(), took.unsigned_abs())
}

/// Turns a byte of a disk over, past everybody who should know.
fn corrupt(disk: &Path, offset: u64) {
    let disk = File::options().read(true).write(true).open(disk).unwrap();
    let mut byte = [0];
    disk.read_exact_at(&mut byte, offset).unwrap();
    disk.write_all_at(&[!byte[0]], offset).unwrap();
}

#[test]
fn a_quiet_disk_adds_less_than_a_second_to_the_outage() {
    for verify_mib_per_second in [0, 1000] {
        let host = Host::start();
        let guest = host.guest(&of_size(LARGE));
        let mut migration = Migration::of(&host, &guest);
        migration.order.limits.verify_mib_per_second = verify_mib_per_second;
        migration.reach(Want::Mirror);
        migration.wait_in_sync();
        if verify_mib_per_second > 0 {
            let status = migration.wait_verified(LARGE * 9 / 10);
            assert!(status.disks[0].verified_bytes < LARGE, "the guest writes all the while");
        }
        let (compared, known, took) = comparison(&migration.quiesce(&host, &guest));
        println!(
            "{} MiB at {verify_mib_per_second} MiB/s: {compared} extents compared in the outage, {known} before it; {took:?}",
            LARGE / MIB
        );
        assert_eq!(compared + known, LARGE / EXTENT);
        if verify_mib_per_second > 0 {
            assert!(compared > 0 && compared < LARGE / EXTENT / 10, "{compared}");
            assert!(took < Duration::from_secs(1), "{took:?}");
        } else {
            assert_eq!(known, 0);
        }
    }
}

#[test]
fn a_new_driver_goes_on_with_what_was_verified() {
    let host = Host::start();
    let guest = host.guest(&of_size(LARGE));
    let mut migration = Migration::of(&host, &guest);
    migration.order.limits.verify_mib_per_second = 1000;
    migration.reach(Want::Mirror);
    migration.wait_verified(LARGE * 9 / 10);
    // Its file is written every 10 s.
    std::thread::sleep(Duration::from_secs(11));
    migration.driver.kill();
    migration.verify_at(1);
    migration.restart_driver();
    let behind = migration.status().seen_at;
    let status = migration.wait("seen anew", |status| {
        status.seen_at > behind && status.disks.first().is_some_and(|disk| disk.verified_bytes > 0)
    });
    assert!(status.disks[0].verified_bytes > LARGE * 8 / 10, "{:?}", status.disks);
    let (compared, _, _) = comparison(&migration.quiesce(&host, &guest));
    assert!(compared < LARGE / EXTENT / 5, "{compared}");
    migration.want(Want::Release);
    migration.finish();
    let left: Vec<_> =
        std::fs::read_dir(host.dir().join("run/claims")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_str().unwrap().ends_with("verified")), "{left:?}");
}

#[test]
fn a_difference_found_while_the_guest_runs_is_an_alarm_and_the_copy_starts_again() {
    let host = Host::start();
    let guest = host.guest(&of_size(DISK));
    let mut migration = Migration::of(&host, &guest);
    migration.order.limits.verify_mib_per_second = 0;
    migration.reach(Want::Mirror);
    migration.wait_in_sync();
    assert_eq!(migration.status().disks[0].verified_bytes, 0);
    let first = migration.export().drained_bytes;
    corrupt(&migration.targets[0], 40 * MIB);
    migration.verify_at(64);
    let message = migration.problem("VerifyFailed");
    assert!(message.contains(&format!("Disk vda differs from its target at byte {}", 40 * MIB)), "{message}");
    // The alarm stands until the new copy is in sync, which has written little but what was wrong.
    let status = migration.wait("in sync again", |status| {
        let alarm = status.problem.as_ref().is_some_and(|problem| problem.reason == "VerifyFailed");
        assert!(alarm || status.in_sync.is_yes(), "{status:#?}");
        status.in_sync.is_yes()
    });
    assert_eq!((status.restarts, status.problem), (1, None));
    let again = migration.export();
    println!(
        "copied at first: {first} bytes written; again: {} written, {} skipped",
        again.drained_bytes, again.skipped_bytes
    );
    assert!(again.drained_bytes < first / 4, "{again:?}, at first {first}");
    migration.wait_verified(DISK / 2);
    migration.quiesce(&host, &guest);
}

/// Moves the guest up to its shutdown and ends the mirror then, behind the driver's back. False: the guest was off before.
fn end_mirror_during_shutdown(host: &Host, guest: &Domain, migration: &mut Migration) -> bool {
    migration.reach(Want::Mirror);
    migration.wait_in_sync();
    migration.wait_verified(DISK * 3 / 4);
    migration.want(Want::Quiesce);
    migration.wait("asked", |status| status.quiesce.as_ref().is_some_and(|q| q.shutdown_requested_at.is_some()));
    migration.driver.signal(Signal::SIGSTOP).unwrap();
    let ended = host.libvirt.virsh(&["blockjob", "web01", "vda", "--abort"]).is_ok();
    // It may have been stopped between its record of the request and the request.
    let _ = guest.shutdown();
    guest.wait_state("shut off", LIMIT).unwrap();
    if ended {
        // Whether the guest still wrote something after that is chance; this is what it would have been.
        corrupt(&guest.disk_paths()[0], 40 * MIB);
    }
    migration.driver.signal(Signal::SIGCONT).unwrap();
    ended
}

/// The mirror says an orderly goodbye, and what the guest writes after it goes to the source alone: no counter tells.
#[test]
fn a_mirror_that_somebody_ends_while_the_driver_looks_away_is_not_believed() {
    let host = Host::start();
    let guest = host.guest(&of_size(DISK));
    let mut migration = Migration::of(&host, &guest);
    // The guest may be faster than this test.
    let mut tries = 0..5;
    while tries.next().is_some() && !end_mirror_during_shutdown(&host, &guest, &mut migration) {
        migration.wait("proven", |status| status.reached == Some(Want::Quiesce));
        migration.want(Want::Release);
        migration.finish();
        migration.restart_relay();
    }
    assert!(!tries.is_empty(), "the guest was faster each time");
    let message = migration.problem("NotEqual");
    assert!(message.contains("release the source"), "{message}");
    assert!(migration.driver.tail().contains("every extent is compared"), "{}", migration.driver.tail());
    let proofs = migration.status().quiesce.unwrap();
    assert_eq!((proofs.how, proofs.equal_at), (Some(HowOff::Clean), None));
}

/// The disks are equal, and the report tells that this took a repair.
fn repaired(migration: &mut Migration, host: &Host, guest: &Domain, why: &str) {
    let status = migration.wait("proven", |status| status.reached == Some(Want::Quiesce));
    migration.assert_equal(host, guest, &status);
    let proofs = status.quiesce.unwrap();
    let repair = proofs.repair.unwrap();
    println!("{} of {} extents repaired: {}", repair.repaired_extents.unwrap(), DISK / EXTENT, repair.why);
    assert!(repair.why.contains(why), "{repair:?}");
    assert!((1..DISK / EXTENT).contains(&repair.repaired_extents.unwrap()), "{repair:?}");
    assert_eq!((proofs.compared_extents, proofs.verified_extents), (Some(DISK / EXTENT), Some(0)));
}

fn may_repair(host: &Host, guest: &Domain) -> Migration {
    let mut migration = Migration::of(host, guest);
    migration.order.repair_within_seconds = 900;
    migration.reach(Want::Mirror);
    migration.wait_in_sync();
    migration
}

#[test]
fn a_byte_that_the_storage_loses_is_written_anew_when_the_guest_is_off_and_it_is_told() {
    let host = Host::start();
    let guest = host.guest(&of_size(DISK));
    let mut migration = Migration::of(&host, &guest);
    migration.order.repair_within_seconds = 900;
    migration.order.limits.verify_mib_per_second = 0;
    migration.reach(Want::Mirror);
    migration.wait_in_sync();
    corrupt(&migration.targets[0], 40 * MIB);
    migration.want(Want::Quiesce);
    repaired(&mut migration, &host, &guest, &format!("at byte {}, although all was written to it", 40 * MIB));
}

#[test]
fn what_a_relay_loses_in_the_shutdown_is_written_anew_from_the_sources_disk() {
    let host = Host::start();
    let guest = host.guest(&of_size(DISK));
    let mut migration = may_repair(&host, &guest);
    // Nothing is taken any more: what the guest writes last stays in the relay, and dies with it.
    host.storage.pause().unwrap();
    migration.want(Want::Quiesce);
    guest.wait_state("shut off", LIMIT).unwrap();
    migration.wait("draining", |status| status.disks.iter().all(|disk| disk.backlog_bytes > 0));
    migration.relay.kill();
    host.storage.resume().unwrap();
    repaired(&mut migration, &host, &guest, "the relay's process has ended");
}

#[test]
fn a_copy_that_breaks_while_the_guest_shuts_down_is_written_anew() {
    let host = Host::start();
    // Deaf to the power button: it is off when its agent is asked, not before.
    let guest = host.guest(&GuestSpec { deaf: true, ..of_size(DISK) });
    let mut migration = may_repair(&host, &guest);
    migration.order.shutdown.timeout_seconds = 10;
    migration.order.shutdown.on_timeout = OnShutdownTimeout::ForceOff;
    migration.want(Want::Quiesce);
    migration.wait("asked", |status| status.quiesce.as_ref().is_some_and(|q| q.shutdown_requested_at.is_some()));
    migration.restart_relay();
    let last = guest.console().last_ack().unwrap();
    migration.problem("CopyBroken");
    // Written to the source alone.
    guest.wait_for_ack(last + 5, LIMIT).unwrap();
    repaired(&mut migration, &host, &guest, "the relay was started anew");
    assert_eq!(migration.status().quiesce.unwrap().how, Some(HowOff::Forced));
}

/// What this design gives away, told by a test: the storage is believed to keep what it was seen to have.
#[test]
fn a_byte_that_the_storage_loses_after_it_was_verified_is_found_only_without_verifying() {
    let host = Host::start();
    let guest = host.guest(&of_size(DISK));
    let mut migration = Migration::of(&host, &guest);
    migration.reach(Want::Mirror);
    migration.wait_in_sync();
    migration.wait_verified(DISK * 3 / 4);
    corrupt(&migration.targets[0], 40 * MIB);
    let status = migration.reach(Want::Quiesce);
    let (compared, known, _) = comparison(&status);
    assert!(known >= 12, "{compared} compared, {known} known");
    // With the limit at 0 nothing is believed, whatever was verified before.
    migration.order.limits.verify_mib_per_second = 0;
    migration.restart_driver();
    migration.want(Want::Quiesce);
    let message = migration.problem("NotEqual");
    assert!(message.contains(&format!("at byte {}", 40 * MIB)), "{message}");
    let last = guest.console().last_ack().unwrap();
    migration.want(Want::Release);
    migration.finish();
    guest.wait_for_ack(last + 5, LIMIT).unwrap();
}
