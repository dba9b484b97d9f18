//! What dies or hangs on the way: the guest runs on, and what is proven in the end is true.

use drover::api::block_copy::Want;
use drover::api::common::Tri;
use drover_lab::libvirt::{Domain, GuestSpec};

use crate::host::{DISK, FAST, Host, LIMIT, SLOW, until};
use crate::migration::{Migration, assert_not_held_up};

fn one_disk() -> GuestSpec {
    GuestSpec { disks: vec![DISK], ..GuestSpec::default() }
}

/// The guest acknowledges more records than it has.
fn writes_on(guest: &Domain) {
    guest.wait_for_ack(guest.console().last_ack().unwrap() + 20, LIMIT).unwrap();
}

#[test]
fn a_killed_driver_leaves_the_mirror_to_the_next_one() {
    let host = Host::start();
    let guest = host.guest(&one_disk());
    let mut migration = Migration::of(&host, &guest);
    host.line.set_rate(SLOW);
    migration.want(Want::Mirror);
    migration.wait_mid_copy();
    let attempt = migration.attempt(&host, &guest);
    let mirrors = host.mirrors(&guest);
    migration.driver.kill();
    let behind = host.copied_bytes(&guest);
    until("copied further without a driver", || host.copied_bytes(&guest) > behind);
    migration.restart_driver();
    migration.want(Want::Mirror);
    migration.wait("copying under the new driver", |status| status.reached == Some(Want::Mirror));
    host.line.set_rate(FAST);
    migration.wait_in_sync();

    migration.driver.kill();
    writes_on(&guest);
    migration.restart_driver();
    migration.want(Want::Mirror);
    let status = migration.wait_in_sync();
    assert_eq!((status.restarts, status.problem), (0, None));
    assert_eq!(host.mirrors(&guest), mirrors, "not the mirror that it was");
    assert_eq!(migration.attempt(&host, &guest)["relayInstance"], attempt["relayInstance"]);
    assert_eq!(migration.attempt(&host, &guest)["startedAt"], attempt["startedAt"]);
    migration.quiesce(&host, &guest);
    assert_not_held_up(&guest, 10);
}

#[test]
fn a_driver_killed_during_the_shutdown_is_followed_by_one_that_proves_it() {
    let host = Host::start();
    let guest = host.guest(&one_disk());
    let mut migration = Migration::of(&host, &guest);
    migration.reach(Want::Mirror);
    migration.wait_in_sync();
    // What the guest wrote last is still on its way when it goes off.
    migration.want(Want::Quiesce);
    migration.wait("shutting down", |status| {
        status.quiesce.as_ref().is_some_and(|quiesce| quiesce.shutdown_requested_at.is_some())
    });
    migration.restart_driver();
    migration.wait("off", |status| status.quiesce.as_ref().is_some_and(|quiesce| quiesce.off_by_libvirt_at.is_some()));
    migration.restart_driver();
    let status = migration.wait("reached", |status| status.reached == Some(Want::Quiesce));
    let requested = |text: &str| text.matches("SHUTDOWN asked").count();
    assert_eq!(requested(&guest.console().text()), 1);
    migration.assert_moved(&host, &guest, &status);
}

#[test]
fn a_killed_relay_costs_a_new_copy_and_not_the_guest() {
    let host = Host::start();
    let guest = host.guest(&one_disk());
    let qemu = host.qemu(&guest);
    let mut migration = Migration::of(&host, &guest);
    host.line.set_rate(SLOW);
    migration.want(Want::Mirror);
    migration.wait_mid_copy();
    migration.relay.kill();
    writes_on(&guest);
    migration.restart_relay();
    migration.wait("copying anew", |status| status.restarts == 1 && status.reached == Some(Want::Mirror));
    host.line.set_rate(FAST);
    migration.wait_in_sync();

    migration.relay.kill();
    migration.wait("known to be out of step", |status| !status.in_sync.is_yes());
    writes_on(&guest);
    migration.restart_relay();
    let status = migration.wait("in sync again", |status| status.restarts == 2 && status.in_sync.is_yes());
    assert_eq!(status.problem, None);
    assert_eq!(host.qemu(&guest), qemu);
    assert_not_held_up(&guest, 10);
    migration.quiesce(&host, &guest);
}

#[test]
fn a_hung_storage_holds_the_guest_up_no_longer_than_the_bound() {
    let host = Host::start();
    // More bytes, none of them twice, than the relay's memory holds.
    let load = drover_lab::guest::Load { rate: 0, payload_bytes: 500_000, ring: 160 };
    let guest = host.guest(&GuestSpec { load, disks: vec![3 * DISK], ..GuestSpec::default() });
    let mut migration = Migration::of(&host, &guest);
    migration.want(Want::Mirror);
    migration.wait_in_sync();
    host.storage.pause().unwrap();
    migration.wait("broken", |status| status.restarts > 0);
    assert_eq!(guest.state().unwrap(), "running");
    writes_on(&guest);
    host.storage.resume().unwrap();
    migration.wait_in_sync();
    assert_not_held_up(&guest, 10);
    migration.quiesce(&host, &guest);
}

#[test]
fn a_restarted_daemon_is_waited_for_while_the_mirror_goes_on() {
    let mut host = Host::start();
    let guest = host.guest(&one_disk());
    let mut migration = Migration::of(&host, &guest);
    migration.reach(Want::Mirror);
    migration.wait_in_sync();
    let (attempt, qemu) = (migration.attempt(&host, &guest), host.qemu(&guest));
    host.libvirt.kill_daemon();
    let message = migration.problem("HypervisorUnreachable");
    assert!(message.contains("nothing was changed"), "{message}");
    let status = migration.status();
    assert_eq!((status.in_sync, status.reached), (Tri::Unknown, None));
    writes_on(&guest);
    host.libvirt.restart_daemon().unwrap();
    let status = migration.wait_in_sync();
    assert_eq!((status.restarts, status.problem), (0, None));
    assert_eq!((migration.attempt(&host, &guest), host.qemu(&guest)), (attempt, qemu));
    migration.quiesce(&host, &guest);
    assert_not_held_up(&guest, 10);
}

#[test]
fn a_guest_that_does_not_obey_runs_on_as_it_was() {
    let host = Host::start();
    let guest = host.guest(&GuestSpec { deaf: true, ..one_disk() });
    let mut migration = Migration::of(&host, &guest);
    migration.order.shutdown_timeout_seconds = 5;
    migration.reach(Want::Mirror);
    migration.wait_in_sync();
    migration.want(Want::Quiesce);
    migration.wait("asked", |status| status.quiesce.as_ref().is_some_and(|q| q.shutdown_requested_at.is_some()));
    assert!(!guest.autostart().unwrap());
    assert_eq!(host.mark(&guest), Some(("cutover".into(), migration.order.epoch)));
    let message = migration.problem("ShutdownTimedOut");
    assert!(message.contains("within 5 s"), "{message}");
    until("marked as before", || host.mark(&guest) == Some(("claimed".into(), migration.order.epoch)));
    assert!(guest.autostart().unwrap());
    writes_on(&guest);
    // The order has failed for good, also for a driver that did not see it fail.
    migration.restart_driver();
    let before = migration.status().seen_at;
    let status = migration.wait("looked at again", |status| status.seen_at > before);
    assert_eq!((status.problem.unwrap().reason.as_str(), status.reached), ("ShutdownTimedOut", None));
    assert_eq!((guest.state().unwrap().as_str(), guest.autostart().unwrap()), ("running", true));
    migration.want(Want::Release);
    migration.finish();
    assert_eq!((guest.state().unwrap().as_str(), guest.autostart().unwrap()), ("running", true));
    assert_eq!((host.mark(&guest), migration.claim(&host, &guest)), (None, None));
}
