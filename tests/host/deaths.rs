//! The driver dies before and after everything that it does, and right before and after it writes down what it is about to do. Whoever is
//! started next goes on from there: the guest runs on until its order to shut down, and every byte arrives.

use std::path::PathBuf;

use drover::api::block_copy::{BlockCopyStatus, Want};
use drover::api::shutdown::{GuestCommand, OnCommandFailure, OnShutdownTimeout, ShutdownMethod};
use drover::flow::copy::Effect;
use drover_lab::libvirt::{Domain, GuestSpec};

use crate::faults::{one_disk, writes_on};
use crate::host::{FAST, Host, LIMIT, SLOW, until};
use crate::migration::{Migration, assert_not_held_up};

/// In each of them the driver also dies when it writes claim and report.
const CANARY: &[&str] = &["WriteCanary"];
const COPYING: &[&str] = &["WriteMark", "OpenExport", "StartMirror", "SetSpeed", "Verify"];
const CUTOVER: &[&str] = &["WriteMark", "SetAutostart", "RunInGuest", "Shutdown", "CloseExport", "EndRelay", "Compare"];
const GIVING_BACK: &[&str] = &["SetAutostart", "WriteMark", "Start", "RemoveMark", "DeleteClaim"];
/// Of a mirror whose guest stands still: one that writes ends the mirror by itself.
const GIVING_UP: &[&str] = &["CloseExport", "AbortMirror", "RemoveMark", "DeleteClaim"];
const FORCED_OFF: &[&str] = &["PowerOff"];

#[test]
fn every_effect_is_among_those_that_the_driver_dies_at() {
    let all = [CANARY, COPYING, CUTOVER, GIVING_BACK, GIVING_UP, FORCED_OFF].concat();
    let missing: Vec<_> = Effect::NAMES.iter().filter(|name| !all.contains(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Orders `want` and waits until the report is as wanted, while the driver dies before and after each of `effects` once.
fn dying(
    migration: &mut Migration,
    want: Want,
    effects: &[&str],
    holds: impl Fn(&BlockCopyStatus) -> bool,
) -> BlockCopyStatus {
    let points: Vec<PathBuf> = ["claim", "report"]
        .iter()
        .chain(effects)
        .flat_map(|what| ["before", "after"].map(|side| migration.fail_points().join(format!("{what}.{side}"))))
        .collect();
    for point in &points {
        std::fs::write(point, "").unwrap();
    }
    migration.want(want);
    let mut deaths = 0;
    until(&format!("{want:?} with a death at each of {points:?}"), || {
        if migration.driver.ended().is_some() {
            deaths += 1;
            migration.restart_driver();
        }
        let status = migration.status();
        let left = points.iter().filter(|point| point.exists()).count();
        left == 0 && status.epoch == Some(migration.order.epoch) && holds(&status)
    });
    assert_eq!(deaths, points.len(), "{}", migration.driver.tail());
    migration.status()
}

fn in_sync(status: &BlockCopyStatus) -> bool {
    status.in_sync.is_yes() && status.reached == Some(Want::Mirror)
}

/// As it was before anybody thought of moving it.
fn assert_given_back(host: &Host, guest: &Domain, migration: &Migration, definition: &str) {
    assert!(guest.autostart().unwrap());
    assert_eq!((host.mark(guest), migration.claim(host, guest)), (None, None));
    assert_eq!(host.definition(guest), definition);
}

#[test]
fn a_driver_that_dies_at_every_step_moves_the_guest_and_gives_it_back() {
    let host = Host::start();
    let guest = host.guest(&GuestSpec { agent: true, deaf: true, ..one_disk() });
    let (definition, qemu) = (host.definition(&guest), host.qemu(&guest));
    let mut migration = Migration::of(&host, &guest);
    migration.order.canary = Some("deaths".into());
    dying(&mut migration, Want::Canary, CANARY, |status| status.reached == Some(Want::Canary));
    host.line.set_rate(SLOW / 4);
    let last_of_copying = migration.fail_points().join("SetSpeed.after");
    let status = dying(&mut migration, Want::Mirror, COPYING, |status| {
        if !last_of_copying.exists() {
            host.line.set_rate(FAST);
        }
        in_sync(status)
    });
    // A mirror that was noted and never started cannot be told from one that has ended.
    assert_eq!((status.restarts, status.problem, host.qemu(&guest)), (1, None, qemu));
    writes_on(&guest);
    assert_not_held_up(&guest, 10);

    migration.order.shutdown.method = ShutdownMethod::Agent;
    migration.order.shutdown.before = Some(GuestCommand {
        command: vec!["/bin/true".into()],
        timeout_seconds: 30,
        on_failure: OnCommandFailure::GiveUp,
    });
    let status = dying(&mut migration, Want::Quiesce, CUTOVER, |status| status.reached == Some(Want::Quiesce));
    migration.assert_equal(&host, &guest, &status);
    let last = guest.console().last_ack().unwrap();

    dying(&mut migration, Want::Release, GIVING_BACK, |status| status.reached == Some(Want::Release));
    assert_given_back(&host, &guest, &migration, &definition);
    guest.wait_for_ack(last + 5, LIMIT).unwrap();
    let verified = guest.console().verified()[&0];
    assert!(verified.upto >= last && verified.bad == 0, "{verified:?}, {last} were acknowledged");
    given_up_and_forced_off(&host, &guest, migration, &definition);
}

fn given_up_and_forced_off(host: &Host, guest: &Domain, mut migration: Migration, definition: &str) {
    migration.restart_relay();
    migration.reach(Want::Mirror);
    migration.wait_in_sync();
    host.libvirt.virsh(&["suspend", "web01"]).unwrap();
    dying(&mut migration, Want::Release, GIVING_UP, |status| status.reached == Some(Want::Release));
    host.libvirt.virsh(&["resume", "web01"]).unwrap();
    assert_given_back(host, guest, &migration, definition);
    writes_on(guest);

    migration.reach(Want::Mirror);
    migration.wait_in_sync();
    migration.order.shutdown.method = ShutdownMethod::Acpi;
    migration.order.shutdown.before = None;
    migration.order.shutdown.timeout_seconds = 5;
    migration.order.shutdown.on_timeout = OnShutdownTimeout::ForceOff;
    let status = dying(&mut migration, Want::Quiesce, FORCED_OFF, |status| status.reached == Some(Want::Quiesce));
    migration.assert_equal(host, guest, &status);
}
