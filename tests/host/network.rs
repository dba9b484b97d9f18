//! A network that swallows packets between the hypervisor and its storage, and tells nobody.

use std::collections::BTreeSet;
use std::time::Duration;

use drover::api::block_copy::Want;
use drover::edge::host_processes::{identify, is_alive};
use drover_lab::guest::Load;
use drover_lab::libvirt::GuestSpec;
use drover_lab::network::Network;

use crate::faults::{one_disk, writes_on};
use crate::host::{DISK, Host, MIB, SLOW, until};
use crate::migration::{Migration, assert_not_held_up};

#[test]
fn a_network_that_swallows_packets_in_mid_copy_costs_the_guest_nothing() {
    let (host, network) = Host::behind_network();
    // More bytes, none of them twice, than the relay's memory holds.
    let load = Load { rate: 0, payload_bytes: 500_000, ring: 160, ..Load::default() };
    let guest = host.guest(&GuestSpec { load, disks: vec![3 * DISK], ..GuestSpec::default() });
    let qemu = host.qemu(&guest);
    let mut migration = Migration::of(&host, &guest);
    network.set_rate(Some(SLOW)).unwrap();
    migration.want(Want::Mirror);
    migration.wait_mid_copy();
    network.swallow_all().unwrap();
    let message = migration.problem("CopyBroken");
    assert!(message.contains("does not take writes. Check that server"), "{message}");
    writes_on(&guest);
    network.heal().unwrap();
    network.set_rate(None).unwrap();
    let status = migration.wait_in_sync();
    assert_eq!((status.problem, host.qemu(&guest)), (None, qemu));
    assert_not_held_up(&guest, 10);
    migration.quiesce(&host, &guest);
}

#[test]
fn a_network_that_swallows_packets_in_sync_only_delays_what_the_relay_holds() {
    let (host, network) = Host::behind_network();
    let guest = host.guest(&one_disk());
    let mut migration = Migration::of(&host, &guest);
    migration.reach(Want::Mirror);
    migration.wait_in_sync();
    let attempt = migration.attempt(&host, &guest);
    network.swallow_all().unwrap();
    migration.wait("out of step", |status| !status.in_sync.is_yes() && status.disks[0].backlog_bytes > MIB);
    assert_eq!(guest.state().unwrap(), "running");
    network.heal().unwrap();
    let status = migration.wait_in_sync();
    assert_eq!((status.restarts, status.problem), (0, None));
    assert_eq!(migration.attempt(&host, &guest), attempt);
    assert_not_held_up(&guest, 10);
    migration.quiesce(&host, &guest);
}

/// Its few records lie at the same places again and again: old ones that came late would be seen.
fn over_and_over() -> GuestSpec {
    GuestSpec { load: Load { ring: 16, ..Load::default() }, ..one_disk() }
}

/// Swallows what the relay's connections of this moment carry to the storage; `ports` are those that are swallowed already.
fn dig(network: &Network, ports: &mut BTreeSet<u16>) {
    let known = network.ports_to_storage().unwrap();
    let new: Vec<u16> = known.into_iter().filter(|port| ports.insert(*port)).collect();
    network.swallow(&new).unwrap();
}

/// The same until the relay holds what it cannot write: each of its writers connects when it has something to write.
fn dig_hole(network: &Network, migration: &Migration) -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    until("holding what it cannot write", || {
        dig(network, &mut ports);
        migration.export().backlog_bytes > 32 << 10
    });
    ports
}

/// Kills the relay. From then on the hypervisor's kernel knows nothing that it could still send over these ports.
fn kill_relay(network: &Network, migration: &mut Migration, ports: &BTreeSet<u16>) {
    let writer = identify(migration.relay_status().pid).unwrap().unwrap();
    migration.relay.kill();
    until("dead", || !is_alive(&writer).unwrap());
    let known: BTreeSet<u16> = network.ports_to_storage().unwrap().into_iter().collect();
    assert!(known.is_disjoint(ports), "a dead relay's connections live: {known:?}");
}

/// Longer than a kernel waits that sends again what was not acknowledged for as long as this hole lasts.
const LATE: Duration = Duration::from_secs(10);

#[test]
fn what_a_relay_held_when_it_was_killed_behind_a_hole_never_arrives() {
    let (host, network) = Host::behind_network();
    let guest = host.guest(&over_and_over());
    let mut migration = Migration::of(&host, &guest);
    // Only the relay has connections to the storage.
    migration.order.limits.verify_mib_per_second = 0;
    migration.reach(Want::Mirror);
    migration.wait_in_sync();
    let ports = dig_hole(&network, &migration);
    writes_on(&guest);
    kill_relay(&network, &mut migration, &ports);
    migration.restart_relay();
    // The connections of the new one pass.
    migration.wait("in sync again", |status| status.restarts == 1 && status.in_sync.is_yes());
    writes_on(&guest);
    let status = migration.quiesce(&host, &guest);
    network.heal().unwrap();
    std::thread::sleep(LATE);
    migration.assert_equal(&host, &guest, &status);
    assert_not_held_up(&guest, 10);
}

#[test]
#[ignore = "slow: make test-all (one killed before it is in every run)"]
fn a_relay_killed_behind_a_hole_after_the_shutdown_loses_nothing() {
    let (host, network) = Host::behind_network();
    let guest = host.guest(&over_and_over());
    let mut migration = Migration::of(&host, &guest);
    migration.order.limits.verify_mib_per_second = 0;
    migration.reach(Want::Mirror);
    migration.wait_in_sync();
    let mut ports = dig_hole(&network, &migration);
    migration.want(Want::Quiesce);
    until("off", || {
        dig(&network, &mut ports);
        guest.state().unwrap() == "shut off"
    });
    assert!(migration.export().backlog_bytes > 0);
    kill_relay(&network, &mut migration, &ports);
    migration.restart_relay();
    migration.proven_or_given_back(&host, &guest, || {
        network.heal().unwrap();
        std::thread::sleep(LATE);
    });
}
