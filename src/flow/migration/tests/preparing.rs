//! What happens before the first byte, and after the last: the storage's list, the canary, the guest tools.

use super::*;
use crate::api::nutanix_cluster::{CanaryPolicy, GuestToolsPolicy, WhitelistPolicy};
use crate::api::vm_migration::{CanaryStatus, StorageAccess};

const ADDRESS: &str = "192.0.2.7";
/// What Drover adds for it.
const ENTRY: &str = "192.0.2.7/32";

/// One whose hypervisor has an address on the storage's side, and a container with a list of its own.
fn listed(policy: WhitelistPolicy, entries: &[&str]) -> World {
    let mut world = World::new();
    world.setup.host.storage_address = Some(ADDRESS.into());
    world.setup.cluster.whitelist = policy;
    world.whitelist = Ok(entries.iter().map(ToString::to_string).collect());
    world
}

/// What Prism shows, by disk.
type Blocks = Vec<(String, Vec<u8>)>;

fn canary(world: &World) -> Option<&CanaryStatus> {
    world.status.target.as_ref()?.canary.as_ref()
}

fn access(world: &World) -> Option<&StorageAccess> {
    world.status.target.as_ref()?.access.as_ref()
}

fn ordered(world: &World) -> Want {
    world.copy.as_ref().map_or(Want::Inspect, |copy| copy.spec.want)
}

fn entries(world: &World) -> Vec<String> {
    world.whitelist.clone().expect("a list of its own")
}

#[test]
fn nothing_is_copied_before_prism_has_shown_every_marker() {
    let mut world = World::new();
    let mut markers = 0;
    while world.waits_for() != "Approval" {
        world.turn();
        markers += usize::from(ordered(&world) == Want::Canary);
        let confirmed = canary(&world).is_some_and(|canary| canary.confirmed_at.is_some());
        assert!(confirmed || ordered(&world) != Want::Mirror);
    }
    assert!(markers > 0);
    let confirmed = canary(&world).cloned().expect("recorded");
    assert!(confirmed.written_at.is_some() && confirmed.not_confirmed.is_none());
    world.turns(5);
    assert_eq!(canary(&world), Some(&confirmed), "once, and never again");
}

#[test]
fn a_file_that_is_not_the_disk_is_refused_until_it_is() {
    let swapped = |blocks: &mut Blocks| {
        let first = blocks[0].1.clone();
        blocks[0].1 = blocks[1].1.clone();
        blocks[1].1 = first;
    };
    let spoils: [fn(&mut Blocks); 3] =
        [|blocks| blocks[1].1.fill(0), |blocks| blocks[0].1[511] ^= 1, |blocks| drop(blocks.pop())];
    for spoil in spoils.into_iter().chain([swapped as fn(&mut Blocks)]) {
        for policy in [CanaryPolicy::Require, CanaryPolicy::IfPossible] {
            let mut world = World::new();
            world.setup.cluster.canary = policy;
            while canary(&world).is_none_or(|canary| canary.written_at.is_none()) {
                world.turn();
            }
            let CanarySeen::Blocks(mut blocks) = world.shown() else { panic!("it is shown") };
            spoil(&mut blocks);
            world.canary = Some(CanarySeen::Blocks(blocks));
            for _ in 0..30 {
                world.turn();
                assert_ne!(ordered(&world), Want::Mirror);
            }
            assert_eq!(world.waits_for(), "CanaryDiffers");
            world.canary = None;
            world.turns(20);
            assert_eq!(world.waits_for(), "Approval");
        }
    }
}

#[test]
fn a_prism_that_does_not_show_disks_is_put_up_with_or_not_as_the_policy_says() {
    let not_offered = || Some(CanarySeen::NotOffered("404: no such path".into()));
    let mut world = World::new();
    world.canary = not_offered();
    world.turns(20);
    assert_eq!(world.waits_for(), "Approval");
    assert_eq!(canary(&world).and_then(|canary| canary.not_confirmed.as_deref()), Some("404: no such path"));

    let mut world = World::new();
    world.setup.cluster.canary = CanaryPolicy::Require;
    world.canary = not_offered();
    world.turns(30);
    assert_eq!((world.waits_for(), ordered(&world)), ("CanaryImpossible", Want::Canary));
    world.setup.cluster.canary = CanaryPolicy::IfPossible;
    world.turns(20);
    assert_eq!(world.waits_for(), "Approval");

    let mut world = World::new();
    world.setup.cluster.canary = CanaryPolicy::Skip;
    while world.waits_for() != "Approval" {
        world.turn();
        assert_ne!(ordered(&world), Want::Canary);
    }
    assert_eq!(canary(&world), None);
}

#[test]
fn no_marker_is_written_to_a_target_that_runs() {
    let mut world = World::new();
    while world.status.target.is_none() {
        world.turn();
    }
    assert_eq!(ordered(&world), Want::Canary);
    let mut seen = world.seen();
    let Fact::Known(vms) = &mut seen.target else { panic!("it was asked for") };
    vms[0].on = Tri::Yes;
    let decision = world.decide(&seen);
    assert_eq!(decision.status.waiting_for.map(|waiting| waiting.reason).as_deref(), Some("TargetRunning"));
    let takes_back = |effect: &Effect| matches!(effect, Effect::OrderCopy(spec) if spec.want == Want::Inspect);
    assert!(decision.effects.iter().any(takes_back), "{:?}", decision.effects);
}

#[test]
fn a_rollback_while_the_markers_are_written_gives_the_source_back_and_goes_on_when_it_is_removed() {
    let mut world = World::new();
    world.canary = Some(CanarySeen::Blocks(vec![]));
    world.turns(20);
    assert_eq!(world.waits_for(), "CanaryDiffers");
    world.spec.rollback = Some(true);
    world.turns(5);
    assert_eq!((world.waits_for(), ordered(&world)), ("RolledBack", Want::Release));
    (world.spec.rollback, world.canary) = (None, None);
    world.turns(20);
    assert_eq!(world.waits_for(), "Approval");
}

#[test]
fn a_host_that_the_storage_does_not_let_in_is_refused_before_anything_is_written() {
    let mut world = listed(WhitelistPolicy::Check, &["198.51.100.0/24"]);
    for _ in 0..30 {
        world.turn();
        assert_eq!(ordered(&world), Want::Inspect);
    }
    assert_eq!(world.waits_for(), "NotWhitelisted");
    let words = world.status.waiting_for.clone().expect("waits").message;
    assert!(words.contains(ADDRESS) && words.contains("ctr") && words.contains("kvm1"), "{words}");
    world.whitelist = Ok(vec!["192.0.2.0/24".into()]);
    world.turns(20);
    assert_eq!(world.waits_for(), "Approval");
    assert!(access(&world).is_some_and(|access| access.found.is_some() && !access.added_by_drover));
}

#[test]
fn an_inherited_list_is_read_where_it_is_told_and_never_replaced() {
    for policy in [WhitelistPolicy::Check, WhitelistPolicy::Manage] {
        let mut world = listed(policy, &[]);
        world.whitelist = Err(Some(vec!["198.51.100.0/255.255.255.0".into()]));
        world.turns(30);
        assert_eq!(world.waits_for(), "NotWhitelisted");
        assert!(world.status.waiting_for.as_ref().is_some_and(|waiting| waiting.message.contains("inherits")));
        world.whitelist = Err(Some(vec!["192.0.2.0/255.255.255.0".into()]));
        world.turns(20);
        assert_eq!(world.waits_for(), "Approval");

        // What nobody tells is not "no".
        let mut world = listed(policy, &[]);
        world.whitelist = Err(None);
        world.turns(20);
        assert_eq!(world.waits_for(), "Approval");
        let found = access(&world).and_then(|access| access.found.clone()).expect("recorded");
        assert!(found.starts_with("not checked"), "{found}");
    }
}

#[test]
fn without_an_address_the_list_is_not_looked_at_and_cannot_be_managed() {
    for policy in [WhitelistPolicy::Ignore, WhitelistPolicy::Check] {
        let mut world = listed(policy, &[]);
        world.setup.host.storage_address = None;
        world.turns(20);
        assert_eq!((world.waits_for(), access(&world)), ("Approval", None));
    }
    let mut world = listed(WhitelistPolicy::Ignore, &[]);
    world.turns(20);
    assert_eq!((world.waits_for(), access(&world)), ("Approval", None));
    let mut world = listed(WhitelistPolicy::Manage, &[]);
    world.setup.host.storage_address = None;
    world.turns(20);
    assert_eq!(world.waits_for(), "StorageAddressUnknown");
}

#[test]
fn an_entry_that_drover_has_added_is_taken_off_in_the_end() {
    type End = fn(&mut World);
    let ends: [End; 2] = [
        |world| world.deleting = true,
        |world| {
            world.approve();
            world.turns(10);
            assert_eq!(world.status.phase.as_deref(), Some("Migrated"));
            world.spec.finalize = Some(true);
        },
    ];
    for end in ends {
        let mut world = listed(WhitelistPolicy::Manage, &["198.51.100.0/24"]);
        world.turns(30);
        assert_eq!(world.waits_for(), "Approval");
        assert_eq!(entries(&world), ["198.51.100.0/24", ENTRY]);
        let entry = entry(&world, SideEffectKind::WhitelistEntry).expect("in the ledger");
        assert_eq!((entry.state.as_str(), entry.end), ("added", super::End::Undone));
        end(&mut world);
        world.turns(20);
        assert_eq!(entries(&world), ["198.51.100.0/24"]);
        assert!(world.copy.is_none());
        assert!(entry_of_whitelist(&world).is_none());
    }
}

fn entry_of_whitelist(world: &World) -> Option<&SideEffect> {
    entry(world, SideEffectKind::WhitelistEntry)
}

#[test]
fn an_entry_that_was_there_before_or_that_others_need_is_left() {
    let mut world = listed(WhitelistPolicy::Manage, &[ENTRY]);
    world.turns(20);
    world.deleting = true;
    world.turns(20);
    assert!(!world.held && entries(&world) == [ENTRY], "Drover did not add it");

    let mut world = listed(WhitelistPolicy::Manage, &[]);
    world.turns(30);
    world.others = vec![OtherUse { added_by_drover: false, ended: false }];
    world.deleting = true;
    world.turns(20);
    assert!(!world.held && entries(&world) == [ENTRY], "another one needs it");

    let mut world = listed(WhitelistPolicy::Manage, &[]);
    world.turns(30);
    world.whitelist = Ok(vec!["192.0.2.0/24".into()]);
    world.deleting = true;
    world.turns(20);
    assert!(!world.held && entries(&world) == ["192.0.2.0/24"], "somebody put a network in its place");

    // That other one found it on the list, and knows that Drover has put it there.
    let mut world = listed(WhitelistPolicy::Manage, &[ENTRY]);
    world.others = vec![OtherUse { added_by_drover: true, ended: false }];
    world.turns(30);
    world.others = vec![OtherUse { added_by_drover: true, ended: true }];
    world.deleting = true;
    world.turns(20);
    assert!(!world.held && entries(&world).is_empty(), "the last one takes it off");
}

#[test]
fn whoever_needs_an_entry_says_so_before_he_looks_and_whoever_does_not_before_he_takes_it_off() {
    let mut world = listed(WhitelistPolicy::Manage, &[ENTRY]);
    while access(&world).is_none() {
        world.turn();
    }
    assert_eq!(access(&world).expect("recorded").found, None, "recorded before the look that counts");
    let mut world = listed(WhitelistPolicy::Manage, &[]);
    world.turns(30);
    world.deleting = true;
    while access(&world).is_some_and(|access| access.ended_at.is_none()) {
        assert_eq!(entries(&world), [ENTRY]);
        world.turn();
    }
    assert_eq!(entries(&world), [ENTRY], "recorded before the look at the others");
}

#[test]
fn a_list_that_cannot_be_put_back_is_told_and_can_be_left() {
    let mut world = listed(WhitelistPolicy::Manage, &[]);
    world.turns(30);
    world.deleting = true;
    world.turns(3);
    let mut seen = world.seen();
    seen.whitelist = Fact::Unknown(Refusal::new("PrismUnreachable", "no answer"));
    let decision = world.decide(&seen);
    let waiting = decision.status.waiting_for.expect("it waits");
    assert!(waiting.message.contains("whitelist: Ignore"), "{}", waiting.message);
    assert!(decision.effects.iter().all(|effect| !matches!(effect, Effect::RemoveFinalizer)));
    world.setup.cluster.whitelist = WhitelistPolicy::Ignore;
    world.turns(5);
    assert!(!world.held && entries(&world) == [ENTRY]);
}

#[test]
fn guest_tools_are_ordered_once_the_guest_was_heard_and_recorded() {
    for (policy, installed) in [(GuestToolsPolicy::Mount, false), (GuestToolsPolicy::Install, true)] {
        let mut world = World::new();
        world.setup.cluster.guest_tools = policy;
        world.turns(20);
        world.approve();
        world.turns(20);
        assert_eq!(world.status.phase.as_deref(), Some("Migrated"));
        let tools = world.status.guest_tools.clone().expect("recorded");
        assert!(tools.done_at.is_some() && tools.failed_at.is_none() && tools.tries == 1, "{tools:?}");
        assert_eq!((world.guest_tools.is_installed, world.guest_tools.is_iso_inserted), (installed, true));
        let ordered = world.tool_orders.len();
        world.turns(20);
        assert_eq!(world.tool_orders.len(), ordered, "done is done");
    }
    let mut world = World::migrated();
    world.turns(10);
    assert_eq!((world.status.guest_tools.as_ref(), world.tool_orders.len()), (None, 0), "nobody asked for them");
}

#[test]
fn guest_tools_that_do_not_come_are_given_up_and_hold_nothing_up() {
    let mut world = World::new();
    world.setup.cluster.guest_tools = GuestToolsPolicy::Install;
    world.tools_obey = false;
    world.turns(20);
    world.approve();
    for _ in 0..1500 {
        world.turn();
    }
    assert_eq!(world.status.phase.as_deref(), Some("Migrated"));
    let tools = world.status.guest_tools.clone().expect("recorded");
    assert!(tools.failed_at.is_some() && tools.message.is_some() && tools.tries == 3, "{tools:?}");
    let different: std::collections::BTreeSet<&String> = world.tool_orders.iter().collect();
    assert_eq!(different.len(), 3, "each try is another request");
    world.spec.finalize = Some(true);
    world.turns(10);
    assert!(world.copy.is_none());
}
