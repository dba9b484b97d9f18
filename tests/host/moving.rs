//! The way as it is meant: inspected, mirrored, shut down, proven equal; then retired or given back.

use std::process::Command;

use drover::api::block_copy::Want;
use drover::api::shutdown::{GuestCommand, OnCommandFailure, ShutdownMethod};
use drover_lab::libvirt::GuestSpec;

use crate::host::{DISK, Host, LIMIT, run};
use crate::migration::{Migration, assert_not_held_up};

#[test]
fn a_guest_is_moved_whole_and_its_source_stays_off() {
    let host = Host::start();
    let guest = host.guest(&GuestSpec { disks: vec![DISK, DISK + 512], ..GuestSpec::default() });
    let mut migration = Migration::of(&host, &guest);
    assert_eq!(host.mark(&guest), Some(("claimed".into(), 1)));
    assert!(guest.autostart().unwrap(), "an order to look has changed the machine");
    assert_eq!(host.mirrors(&guest), [""; 0]);

    migration.want(Want::Mirror);
    let status = migration.wait_in_sync();
    assert_eq!((status.restarts, status.problem), (0, None));
    assert!(guest.autostart().unwrap());
    // Too slow for what the guest writes: were its writes not mirrored before they are acknowledged, its last ones would be lost.
    host.libvirt.virsh(&["blockjob", "web01", "vda", "--bytes", "--bandwidth", "65536"]).unwrap();
    guest.wait_for_ack(guest.console().last_ack().unwrap() + 20, LIMIT).unwrap();
    migration.quiesce(&host, &guest);
    assert_not_held_up(&guest, 10);

    migration.want(Want::Retire);
    migration.finish();
    assert_eq!(migration.status().reached, Some(Want::Retire));
    assert_eq!(guest.state().unwrap(), "shut off");
    assert_eq!(host.mark(&guest), Some(("migrated".into(), migration.order.epoch)));
    assert!(!guest.autostart().unwrap());
    assert_eq!(migration.claim(&host, &guest), None);
    never_again(&host, &guest);
}

/// A machine that has moved is not copied or started again, by its own migration or another.
fn never_again(host: &Host, guest: &drover_lab::libvirt::Domain) {
    for uid in ["uid-web01", "uid-later"] {
        let mut migration = Migration::start(host, uid, "web01", &[DISK, DISK + 512]);
        for want in [Want::Mirror, Want::Quiesce] {
            migration.order.epoch += 10;
            migration.want(want);
            assert!(migration.problem("AlreadyMigrated").contains("runs elsewhere"));
        }
        migration.want(Want::Release);
        migration.finish();
        assert_eq!(migration.status().reached, Some(Want::Release));
        assert_eq!(guest.state().unwrap(), "shut off");
        assert_eq!(host.mark(guest).unwrap().0, "migrated");
        assert!(!guest.autostart().unwrap());
        assert_eq!(migration.claim(host, guest), None);
    }
}

#[test]
fn a_released_machine_runs_again_as_it_was() {
    let host = Host::start();
    let guest = host.guest(&GuestSpec::default());
    let mut migration = Migration::of(&host, &guest);
    migration.reach(Want::Mirror);
    migration.wait_in_sync();
    migration.quiesce(&host, &guest);
    let last = guest.console().last_ack().unwrap();

    migration.want(Want::Release);
    migration.finish();
    assert_eq!(migration.status().reached, Some(Want::Release));
    assert_eq!(guest.state().unwrap(), "running");
    assert!(guest.autostart().unwrap());
    assert_eq!(host.mark(&guest), None);
    assert_eq!(migration.claim(&host, &guest), None);
    guest.wait_for_ack(last + 5, LIMIT).unwrap();
    let verified = guest.console().verified()[&0];
    assert!(verified.upto >= last && verified.bad == 0, "{verified:?}, {last} were acknowledged");
}

#[test]
fn a_mirror_that_is_released_leaves_the_guest_running() {
    let host = Host::start();
    let guest = host.guest(&GuestSpec { disks: vec![DISK], ..GuestSpec::default() });
    let qemu = host.qemu(&guest);
    let mut migration = Migration::of(&host, &guest);
    migration.reach(Want::Mirror);
    migration.wait_in_sync();
    migration.want(Want::Release);
    migration.finish();
    assert_eq!((host.qemu(&guest), guest.state().unwrap()), (qemu, "running".into()));
    assert_eq!(host.mirrors(&guest), [""; 0]);
    assert_eq!((host.mark(&guest), migration.claim(&host, &guest)), (None, None));
    assert!(guest.autostart().unwrap());
    guest.wait_for_ack(guest.console().last_ack().unwrap() + 20, LIMIT).unwrap();
    assert_not_held_up(&guest, 10);
}

#[test]
fn the_agent_in_the_guest_runs_a_command_and_then_shuts_it_down() {
    let host = Host::start();
    let guest = host.guest(&GuestSpec { disks: vec![DISK], agent: true, deaf: true, ..GuestSpec::default() });
    let mut migration = Migration::of(&host, &guest);
    migration.reach(Want::Mirror);
    migration.wait_in_sync();
    let says = |words: &str| vec!["/bin/sh".into(), "-c".into(), words.to_owned()];
    let command =
        |words: &str| GuestCommand { command: says(words), timeout_seconds: 5, on_failure: OnCommandFailure::GiveUp };
    migration.order.shutdown.method = ShutdownMethod::Agent;

    for (words, part) in [
        ("echo database is busy; exit 3", "ended with 3, so it was not shut down: database is busy"),
        ("sleep 60", "did not end by itself"),
    ] {
        migration.order.shutdown.before = Some(command(words));
        migration.want(Want::Quiesce);
        let message = migration.problem("GuestCommandFailed");
        assert!(message.contains(part), "{message}");
        assert_eq!(guest.state().unwrap(), "running");
        migration.want(Want::Mirror);
        migration.wait_in_sync();
    }
    migration.order.shutdown.before = Some(command("echo COMMAND ran > /dev/console; echo all is well"));
    let status = migration.quiesce(&host, &guest);
    let outcome = status.quiesce.unwrap().command.unwrap();
    assert_eq!((outcome.exit_code, outcome.output.as_str()), (Some(0), "all is well"));
    let console = guest.console().text();
    let place = |words: &str| console.find(words).unwrap_or_else(|| panic!("{words} is not on the console: {console}"));
    assert!(place("COMMAND ran") < place("SHUTDOWN asked"));
}

#[test]
fn with_the_hook_nobody_but_drover_starts_a_source_that_was_shut_down() {
    let host = Host::start();
    let hooks = host.dir().join("v/etc/hooks").display().to_string();
    let hook = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_drover"));
        run(command.args(["host", "install-hook", "--directory", &hooks]).args(more));
    };
    hook(&[]);
    host.libvirt.restart_daemon().unwrap();
    let guest = host.guest(&GuestSpec { disks: vec![DISK], ..GuestSpec::default() });
    let mut migration = Migration::of(&host, &guest);
    let refused = |host: &Host, why: &str| {
        let error = host.libvirt.virsh(&["start", "web01"]).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert_eq!(guest.state().unwrap(), "shut off");
    };
    guest.destroy().unwrap();
    guest.start_and_write(10).unwrap();
    migration.reach(Want::Mirror);
    migration.wait_in_sync();
    migration.quiesce(&host, &guest);
    refused(&host, "is being moved away");
    migration.want(Want::KeepOff);
    migration.wait("kept off", |status| status.reached == Some(Want::KeepOff));
    refused(&host, "was moved away");
    migration.want(Want::Undo);
    migration.finish();
    assert_eq!(guest.state().unwrap(), "running");
    hook(&["--remove"]);
    hook(&["--remove"]);
}
