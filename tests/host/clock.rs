//! The hypervisor's clock is set, forward and back by hours, as the driver sees it.

use std::path::Path;

use drover::api::block_copy::{HowOff, Want};
use drover::api::shutdown::OnShutdownTimeout;
use drover_lab::libvirt::GuestSpec;

use crate::faults::{one_disk, writes_on};
use crate::host::{FAST, Host, LIMIT, SLOW};
use crate::migration::{Migration, assert_not_held_up};

/// Debian's libfaketime, for a process of several threads.
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// A clock that one process sees and a test sets.
struct FakeClock<'a> {
    offset: &'a Path,
}

impl FakeClock<'_> {
    fn set(&self, offset: &str) {
        let draft = self.offset.with_extension("draft");
        std::fs::write(&draft, offset).unwrap();
        std::fs::rename(draft, self.offset).unwrap();
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        assert!(Path::new(LIBRARY).exists(), "there is no {LIBRARY}: run `make setup`");
        let own = [("LD_PRELOAD", LIBRARY), ("FAKETIME_NO_CACHE", "1"), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
        let mut all: Vec<_> = own.map(|(name, value)| (name, value.to_owned())).into();
        all.push(("FAKETIME_TIMESTAMP_FILE", self.offset.display().to_string()));
        all
    }
}

#[test]
#[ignore = "slow: make test-all (the decisions have property tests of it)"]
fn a_clock_that_is_set_neither_ends_a_copy_nor_takes_time_from_a_guest_that_shuts_down() {
    let host = Host::start();
    // It goes off when this test has its agent do so, and not before.
    let guest = host.guest(&GuestSpec { agent: true, deaf: true, ..one_disk() });
    let definition = host.definition(&guest);
    let offset = host.dir().join("offset");
    let clock = FakeClock { offset: &offset };
    clock.set("+0");
    let mut migration = Migration::of(&host, &guest);
    migration.environment = clock.environment();
    migration.restart_driver();
    host.line.set_rate(SLOW);
    migration.want(Want::Mirror);
    migration.wait_mid_copy();
    // The report says what the driver's clock said.
    let seen_after = |set: &str| {
        let before = migration.status().seen_at.unwrap().0;
        clock.set(set);
        migration.wait("seen under another clock", |status| {
            status.seen_at.as_ref().is_some_and(|at| at.0.duration_since(before).as_secs().abs() > 3000)
        })
    };
    seen_after("+2h");
    seen_after("-2h");
    host.line.set_rate(FAST);
    let status = migration.wait_in_sync();
    assert_eq!((status.restarts, status.problem), (0, None));
    seen_after("+2h");
    writes_on(&guest);

    migration.wait_in_sync();
    migration.order.shutdown.timeout_seconds = 120;
    migration.order.shutdown.on_timeout = OnShutdownTimeout::ForceOff;
    migration.want(Want::Quiesce);
    let asked = migration
        .wait("asked", |status| status.quiesce.as_ref().is_some_and(|proofs| proofs.shutdown_requested_at.is_some()));
    for set in ["+24h", "-24h"] {
        clock.set(set);
        let turns = migration.wait("looked at again", |status| status.seen_at > asked.seen_at);
        assert_eq!(turns.problem, None);
        writes_on(&guest);
    }
    host.libvirt.virsh(&["shutdown", "web01", "--mode", "agent"]).unwrap();
    let status = migration.wait("proven", |status| status.reached == Some(Want::Quiesce));
    assert_eq!(status.quiesce.as_ref().unwrap().how, Some(HowOff::Clean));
    migration.assert_equal(&host, &guest, &status);
    let last = guest.console().last_ack().unwrap();
    assert_not_held_up(&guest, 10);

    migration.want(Want::Release);
    migration.finish();
    assert_eq!((host.mark(&guest), migration.claim(&host, &guest)), (None, None));
    assert_eq!(host.definition(&guest), definition);
    guest.wait_for_ack(last + 5, LIMIT).unwrap();
}
