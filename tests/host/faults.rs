//! What dies or hangs on the way: the guest runs on, and what is proven in the end is true.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use drover::api::block_copy::{DiskCopyStatus, HowOff, MirrorState, Want};
use drover::api::common::Tri;
use drover::api::shutdown::OnShutdownTimeout;
use drover_lab::libvirt::{Domain, GuestSpec};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::{DISK, FAST, Host, LIMIT, SLOW, until};
use crate::migration::{Migration, assert_not_held_up};

pub fn one_disk() -> GuestSpec {
    GuestSpec { disks: vec![DISK], ..GuestSpec::default() }
}

/// The guest acknowledges more records than it has since it started, which may have been a moment ago.
pub fn writes_on(guest: &Domain) {
    guest.wait_for_ack(guest.console().last_ack().unwrap_or(0) + 20, LIMIT).unwrap();
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

/// Orders the shutdown with a storage that takes nothing any more: the guest goes off, what it wrote last stays in the relay.
fn shut_down_undrained(host: &Host, guest: &Domain, migration: &mut Migration) {
    host.storage.pause().unwrap();
    migration.want(Want::Quiesce);
    guest.wait_state("shut off", LIMIT).unwrap();
    let status = migration.wait("proven off", |status| {
        status.quiesce.as_ref().is_some_and(|proofs| proofs.off_by_host_at.is_some() && proofs.how.is_some())
    });
    assert_eq!(status.quiesce.unwrap().drained_at, None);
    let draining = |disk: &DiskCopyStatus| disk.state == MirrorState::Draining && disk.backlog_bytes > 0;
    migration.wait("draining", |status| status.disks.iter().all(draining));
}

#[test]
fn a_driver_killed_after_the_shutdown_is_followed_by_one_that_proves_it() {
    let host = Host::start();
    let guest = host.guest(&one_disk());
    let mut migration = Migration::of(&host, &guest);
    migration.reach(Want::Mirror);
    migration.wait_in_sync();
    shut_down_undrained(&host, &guest, &mut migration);
    migration.restart_driver();
    host.storage.resume().unwrap();
    let status = migration.wait("reached", |status| status.reached == Some(Want::Quiesce));
    assert_eq!(guest.console().text().matches("SHUTDOWN asked").count(), 1);
    migration.assert_moved(&host, &guest, &status);
    let proofs = status.quiesce.unwrap();
    assert_eq!((proofs.compared_extents, proofs.verified_extents), (Some(16), Some(0)), "nobody watched the source");

    // Somebody starts the source after all: nothing that was proven holds any more.
    host.libvirt.virsh(&["start", "--paused", "web01"]).unwrap();
    let message = migration.problem("SourceStartedAgain");
    assert!(message.contains("Do not start the target"), "{message}");
    let status = migration.status();
    assert_eq!((status.reached, status.quiesce.unwrap().equal_at), (None, None));
    // The target may run by now: nothing is mirrored to it again, and the mark stays.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!((host.mirrors(&guest).len(), host.mark(&guest).unwrap().0.as_str()), (0, "cutover"));
    migration.want(Want::Retire);
    migration.problem("SourceRunning");
    until("marked as migrated", || host.mark(&guest).unwrap().0 == "migrated");
    assert_eq!(guest.state().unwrap(), "paused");
}

#[test]
fn a_relay_killed_before_it_has_drained_is_no_proof_and_the_source_comes_back() {
    let host = Host::start();
    let guest = host.guest(&one_disk());
    let mut migration = Migration::of(&host, &guest);
    migration.reach(Want::Mirror);
    migration.wait_in_sync();
    shut_down_undrained(&host, &guest, &mut migration);
    let last = guest.console().last_ack().unwrap();
    migration.restart_relay();
    host.storage.resume().unwrap();
    let message = migration.problem("NotInSync");
    assert!(message.contains("lost after the guest powered off"), "{message}");
    assert_eq!((guest.state().unwrap().as_str(), migration.status().reached), ("shut off", None));
    migration.want(Want::Release);
    migration.finish();
    assert_eq!((host.mark(&guest), migration.claim(&host, &guest)), (None, None));
    assert!(guest.autostart().unwrap());
    guest.wait_for_ack(last + 5, LIMIT).unwrap();
    let verified = guest.console().verified()[&0];
    assert!(verified.upto >= last && verified.bad == 0, "{verified:?}, {last} were acknowledged");
}

#[test]
fn a_machine_that_others_switch_off_and_on_is_copied_anew() {
    let host = Host::start();
    let guest = host.guest(&one_disk());
    let mut migration = Migration::of(&host, &guest);
    migration.reach(Want::Mirror);
    migration.wait_in_sync();
    guest.shutdown().unwrap();
    guest.wait_state("shut off", LIMIT).unwrap();
    migration.problem("SourceNotRunning");
    assert!(!migration.status().in_sync.is_yes());
    migration.want(Want::Quiesce);
    migration.problem("SourceNotRunning");
    assert_eq!((migration.status().reached, migration.status().quiesce), (None, None));
    migration.want(Want::Mirror);
    guest.start().unwrap();
    let status = migration.wait_in_sync();
    assert_eq!(status.restarts, 1);
    writes_on(&guest);
    migration.quiesce(&host, &guest);
}

#[test]
fn a_hung_relay_is_ended_by_a_release() {
    let host = Host::start();
    let guest = host.guest(&one_disk());
    let mut migration = Migration::of(&host, &guest);
    migration.reach(Want::Mirror);
    migration.wait_in_sync();
    migration.relay.signal(Signal::SIGSTOP).unwrap();
    migration.problem("RelayUnreachable");
    migration.want(Want::Release);
    migration.finish();
    assert_eq!(host.mirrors(&guest), [""; 0]);
    assert_eq!((host.mark(&guest), migration.claim(&host, &guest)), (None, None));
    writes_on(&guest);
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
    // Whatever a broken copy may have left there: also what is zero on the source has to be written now.
    let target = File::options().write(true).open(&migration.targets[0]).unwrap();
    target.write_all_at(&vec![0x55; DISK as usize], 0).unwrap();
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
    let load = drover_lab::guest::Load { rate: 0, payload_bytes: 500_000, ring: 160, stride: 1 };
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
fn a_qemu_that_stands_still_is_unknown_and_not_broken() {
    let host = Host::start();
    let guest = host.guest(&one_disk());
    let mut migration = Migration::of(&host, &guest);
    migration.reach(Want::Mirror);
    migration.wait_in_sync();
    let attempt = migration.attempt(&host, &guest);
    let qemu = Pid::from_raw(host.qemu(&guest).trim().parse().unwrap());
    kill(qemu, Signal::SIGSTOP).unwrap();
    migration.wait("unknown", |status| status.in_sync == Tri::Unknown);
    migration.want(Want::Quiesce);
    migration.problem("AwaitingSync");
    assert_eq!(migration.status().quiesce, None);
    migration.want(Want::Mirror);
    kill(qemu, Signal::SIGCONT).unwrap();
    let status = migration.wait_in_sync();
    assert_eq!((status.restarts, migration.attempt(&host, &guest)), (0, attempt));
    migration.quiesce(&host, &guest);
}

#[test]
fn a_restarted_daemon_is_waited_for_while_the_mirror_goes_on() {
    let host = Host::start();
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
    migration.order.shutdown.timeout_seconds = 5;
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
    killed_instead(&host, &guest, migration);
}

/// A guest that somebody kills after it was asked to shut down is off, but not cleanly.
fn killed_instead(host: &Host, guest: &Domain, mut migration: Migration) {
    migration.order.shutdown.timeout_seconds = 60;
    migration.want(Want::Quiesce);
    migration
        .wait("asked", |status| status.quiesce.as_ref().is_some_and(|proofs| proofs.shutdown_requested_at.is_some()));
    guest.destroy().unwrap();
    let status = migration.wait("proven off", |status| {
        status.quiesce.as_ref().is_some_and(|proofs| proofs.off_by_host_at.is_some() && proofs.how.is_some())
    });
    assert_eq!(status.quiesce.unwrap().how, Some(HowOff::Unclear));
    migration.want(Want::Release);
    migration.finish();
    assert_eq!((guest.state().unwrap().as_str(), guest.autostart().unwrap()), ("running", true));
    assert_eq!((host.mark(guest), migration.claim(host, guest)), (None, None));
}

#[test]
fn a_guest_that_does_not_obey_is_powered_off_if_its_policy_says_so_and_loses_nothing_it_was_promised() {
    let host = Host::start();
    let guest = host.guest(&GuestSpec { deaf: true, ..one_disk() });
    let mut migration = Migration::of(&host, &guest);
    migration.order.shutdown.timeout_seconds = 5;
    migration.order.shutdown.on_timeout = OnShutdownTimeout::ForceOff;
    // A write that was under way when the plug was pulled may have reached one side only.
    migration.order.repair_within_seconds = 900;
    migration.reach(Want::Mirror);
    migration.wait_in_sync();
    let status = migration.reach(Want::Quiesce);
    assert_eq!(status.quiesce.as_ref().unwrap().how, Some(HowOff::Forced));
    migration.assert_equal(&host, &guest, &status);
}

#[test]
fn a_guest_that_reboots_instead_of_powering_off_is_noticed_and_stays_in_step() {
    let host = Host::start();
    let guest = host.guest(&GuestSpec { reboots: true, ..one_disk() });
    let mut migration = Migration::of(&host, &guest);
    migration.reach(Want::Mirror);
    migration.wait_in_sync();
    migration.want(Want::Quiesce);
    let message = migration.problem("GuestRebooted");
    assert!(message.contains("rebooted instead of powering off"), "{message}");
    writes_on(&guest);
    migration.want(Want::Mirror);
    let status = migration.wait_in_sync();
    assert_eq!(status.restarts, 0, "a reboot does not break the mirror");
    assert!(guest.autostart().unwrap());
}

#[test]
fn a_source_that_is_started_after_its_target_took_over_is_told_and_powered_off_if_the_policy_says_so() {
    let host = Host::start();
    let guest = host.guest(&one_disk());
    let mut migration = Migration::of(&host, &guest);
    migration.reach(Want::Mirror);
    migration.wait_in_sync();
    migration.quiesce(&host, &guest);
    migration.want(Want::KeepOff);
    migration.wait("kept off", |status| status.reached == Some(Want::KeepOff));
    host.libvirt.virsh(&["start", "web01"]).unwrap();
    let message = migration.problem("SourceRunning");
    assert!(message.contains("by hand at once"), "{message}");
    assert_eq!(guest.state().unwrap(), "running");
    migration.order.power_off_source = true;
    migration.want(Want::KeepOff);
    guest.wait_state("shut off", LIMIT).unwrap();
    migration.wait("kept off", |status| status.reached == Some(Want::KeepOff));
}
