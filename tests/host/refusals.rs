//! What is refused, by name, with the source untouched.

use std::fs::File;

use drover::api::block_copy::Want;
use drover_lab::libvirt::{Domain, GuestSpec};

use crate::host::{DISK, Host};
use crate::migration::Migration;

fn machine(name: &str) -> GuestSpec {
    GuestSpec { name: name.into(), disks: vec![DISK], mac: None, ..GuestSpec::default() }
}

/// Nothing was shut down, mirrored or marked for a cutover.
fn assert_untouched(host: &Host, domain: &Domain, qemu: &str) {
    assert_eq!(domain.state().unwrap(), "paused");
    assert_eq!(host.qemu(domain), qemu);
    assert_eq!(host.mirrors(domain), [""; 0]);
    assert!(host.mark(domain).is_none_or(|(state, _)| state == "claimed"));
}

/// Orders a mirror and a cutover, sees both refused for `reason`, and releases the machine again.
fn refused(host: &Host, domain: &Domain, reason: &str, why: &str) {
    let qemu = host.qemu(domain);
    let mut migration = Migration::of(host, domain);
    migration.want(Want::Mirror);
    let message = migration.problem(reason);
    assert!(message.contains(why), "{message}");
    migration.want(Want::Quiesce);
    let waiting = migration.problem("AwaitingSync");
    assert!(waiting.contains(reason), "{waiting}");
    assert_untouched(host, domain, &qemu);
    migration.want(Want::Release);
    migration.finish();
    assert_untouched(host, domain, &qemu);
    assert_eq!(migration.claim(host, domain), None);
}

#[test]
fn a_machine_that_could_not_stay_off_is_refused() {
    let host = Host::start();
    let transient = host.paused(&machine("transient"));
    host.libvirt.virsh(&["undefine", "transient"]).unwrap();
    refused(&host, &transient, "UnsupportedMachine", "transient");
    let restarting = host.paused(&GuestSpec { on_poweroff: "restart".into(), ..machine("restarting") });
    refused(&host, &restarting, "UnsupportedMachine", "on_poweroff is restart");
}

#[test]
fn somebody_else_s_block_job_is_left_alone() {
    let host = Host::start();
    let domain = host.paused(&machine("copied"));
    let other = host.dir().join("other.img").display().to_string();
    host.libvirt.virsh(&["blockcopy", "copied", "vda", "--dest", &other, "--transient-job"]).unwrap();
    let mirrors = host.mirrors(&domain);
    let mut migration = Migration::of(&host, &domain);
    migration.want(Want::Mirror);
    assert!(migration.problem("ForeignBlockJob").contains("disk vda"));
    migration.want(Want::Release);
    migration.finish();
    assert_eq!(host.mirrors(&domain), mirrors);
    assert_eq!((host.mark(&domain), migration.claim(&host, &domain)), (None, None));
}

#[test]
fn a_machine_that_is_off_is_refused() {
    let host = Host::start();
    let domain = host.libvirt.define(&machine("off")).unwrap();
    let mut migration = Migration::start(&host, "uid-off", "off", &[DISK]);
    for want in [Want::Inspect, Want::Mirror] {
        migration.want(want);
        migration.problem("SourceNotRunning");
    }
    migration.want(Want::Release);
    migration.finish();
    assert_eq!(domain.state().unwrap(), "shut off", "it was started though nobody had shut it down");
    assert_eq!((host.mark(&domain), migration.claim(&host, &domain)), (None, None));
}

#[test]
fn a_disk_that_is_no_whole_number_of_sectors_is_refused() {
    let host = Host::start();
    let spec = machine("odd");
    let domain = host.libvirt.define(&spec).unwrap();
    File::options().write(true).open(&domain.disk_paths()[0]).unwrap().set_len(DISK + 100).unwrap();
    host.libvirt.virsh(&["start", "--paused", "odd"]).unwrap();
    let qemu = host.qemu(&domain);
    let mut migration = Migration::start(&host, "uid-odd", "odd", &[DISK + 512]);
    let machine = migration.wait("inspected", |status| status.reached == Some(Want::Inspect)).machine.unwrap();
    assert_eq!(machine.disks[0].size_bytes, DISK + 100, "QEMU rounds it up");
    migration.want(Want::Mirror);
    let message = migration.problem("UnsupportedMachine");
    assert!(message.contains("512"), "{message}");
    assert_untouched(&host, &domain, &qemu);
}

#[test]
fn a_second_claimant_is_refused_by_name() {
    let host = Host::start();
    let domain = host.paused(&machine("web01"));
    let qemu = host.qemu(&domain);
    let mut first = Migration::of(&host, &domain);
    let mut second = Migration::start(&host, "uid-second", "web01", &[DISK]);
    for want in [Want::Inspect, Want::Mirror, Want::Quiesce, Want::Retire] {
        second.want(want);
        let message = second.problem("AlreadyClaimed");
        assert!(message.contains("shop/migration-uid-web01 (uid uid-web01, installation lab)"), "{message}");
    }
    assert_untouched(&host, &domain, &qemu);
    assert_eq!(first.claim(&host, &domain).unwrap()["claim"]["uid"], "uid-web01");
    // Its release gives up what it never had.
    second.want(Want::Release);
    second.finish();
    assert_eq!(host.mark(&domain), Some(("claimed".into(), 1)));
    assert_eq!(first.claim(&host, &domain).unwrap()["claim"]["uid"], "uid-web01");

    // The mark refuses, too, when the run directory is lost.
    std::fs::remove_dir_all(host.dir().join("run/claims")).unwrap();
    let mut third = Migration::start(&host, "uid-third", "web01", &[DISK]);
    third.problem("AlreadyClaimed");
    first.want(Want::Release);
    first.finish();
    // Now that it is given up, whoever waits has it.
    third.want(Want::Inspect);
    third.wait("inspected", |status| status.reached == Some(Want::Inspect));
    assert_eq!(host.mark(&domain), Some(("claimed".into(), 2)));
    assert_untouched(&host, &domain, &qemu);
}

#[test]
fn a_hostname_that_means_no_machine_or_several_is_refused() {
    let host = Host::start();
    let domains =
        [host.paused(&machine("web01")), host.paused(&GuestSpec { title: Some("WEB01".into()), ..machine("web02") })];
    let qemu = domains.each_ref().map(|domain| host.qemu(domain));
    let several = Migration::start(&host, "uid-several", "web01", &[DISK]);
    let message = several.problem("AmbiguousHostname");
    assert!(message.contains("web01, web02"), "{message}");
    let mut none = Migration::start(&host, "uid-none", "web03", &[DISK]);
    let message = none.problem("DomainNotFound");
    assert!(message.contains("Seen there: web01, web02"), "{message}");
    none.want(Want::Release);
    none.finish();
    for (domain, qemu) in domains.iter().zip(&qemu) {
        assert_untouched(&host, domain, qemu);
        assert_eq!((host.mark(domain), none.claim(&host, domain)), (None, None));
    }
}

#[test]
fn an_order_older_than_one_that_was_seen_is_refused() {
    let host = Host::start();
    let domain = host.paused(&machine("web01"));
    let qemu = host.qemu(&domain);
    let mut migration = Migration::of(&host, &domain);
    migration.order.epoch = 6;
    migration.reach(Want::Inspect);
    let stale = |migration: &mut Migration| {
        migration.order.epoch = 3;
        migration.order_again(Want::Mirror);
        let message = migration.problem("StaleOrder");
        assert!(message.contains("Order 3 is older than order 7"), "{message}");
        assert_untouched(&host, &domain, &qemu);
    };
    stale(&mut migration);
    // The report is lost: the claim file knows. That is lost as well: the mark does.
    for lost in ["run/uid-web01/status.json", "run/claims"] {
        migration.driver.kill();
        let path = host.dir().join(lost);
        if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) }.unwrap();
        let _ = std::fs::remove_file(host.dir().join("run/uid-web01/status.json"));
        migration.restart_driver();
        stale(&mut migration);
    }
    migration.order.epoch = 7;
    migration.want(Want::Inspect);
    migration.wait("inspected", |status| status.reached == Some(Want::Inspect));
    assert_eq!(host.mark(&domain), Some(("claimed".into(), 8)));
}
