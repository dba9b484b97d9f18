//! The storage container's list of addresses that it lets in over NFS: looked at before anything is written, added to if the
//! `NutanixCluster` says so, and put back when no migration needs the entry any more.
//!
//! Who needs an entry records that before he looks at the list, and who needs it no longer records that before he looks at the others. So
//! of several that begin and end at the same time none takes away what another relies on, and the last one takes away what Drover has added.

use std::net::IpAddr;

use super::decide::{Draft, Input};
use super::effect::Effect;
use super::seen::{Fact, Refusal, Setup, Whitelist};
use super::step::{self, Progress, Step};
use super::target_order;
use crate::api::VmMigrationStatus;
use crate::api::common::{Time, Tri};
use crate::api::nutanix_cluster::WhitelistPolicy;
use crate::api::vm_migration::StorageAccess;

const REASON: &str = "StorageAccess";

/// Whether the next decision needs to see the list: a target is being prepared, or what was added is to be put back.
pub fn is_needed(status: &VmMigrationStatus, ending: bool) -> bool {
    let Some(target) = &status.target else { return false };
    let preparing = !step::is_done(status, Step::Prepare);
    let looking = target.access.as_ref().is_none_or(|access| access.found.is_none());
    let putting_back = target.access.as_ref().is_some_and(|access| access.added_by_drover && access.ended_at.is_some());
    (preparing && looking) || (ending && putting_back)
}

/// See that the hypervisor may reach the storage.
pub fn let_in(input: &Input<'_>, draft: &mut Draft) -> Progress {
    let Ok(setup) = &input.seen.setup else {
        return Progress::waits(REASON, "the references could not be resolved");
    };
    if draft.status.target.as_ref().and_then(|target| target.access.as_ref()).is_some_and(|it| it.found.is_some()) {
        return Progress::Done;
    }
    let address = match (setup.cluster.whitelist, &setup.host.storage_address) {
        (WhitelistPolicy::Ignore, _) | (WhitelistPolicy::Check, None) => return Progress::Done,
        (WhitelistPolicy::Manage, None) => {
            let message = format!(
                "NutanixCluster {} says whitelist: Manage, but LibvirtHost {} does not say by which address the storage sees it: set spec.storageAddress",
                setup.cluster_name, setup.host_name
            );
            return Progress::stalled("StorageAddressUnknown", message);
        }
        (_, Some(address)) => address,
    };
    let list = match &input.seen.whitelist {
        Fact::NotAsked => return Progress::waits(REASON, "asking Prism whom the storage container lets in"),
        Fact::Unknown(refusal) => return Progress::Waits { refusal: refusal.clone(), stalled: false },
        Fact::Known(list) => list,
    };
    let Some(target) = draft.status.target.as_mut() else { return Progress::Done };
    let Some(mut access) = target.access.clone() else {
        // Recorded before the list that counts is looked at.
        target.access = Some(needed(address, list));
        return Progress::waits(REASON, "asking Prism whom the storage container lets in");
    };
    let progress = match found(address, list) {
        Tri::Yes => {
            access.found = Some(format!("{address} is on the filesystem whitelist of storage container {}", list.name));
            let added = access.added_by_drover || list.others.iter().any(|other| other.added_by_drover);
            access.added_by_drover = added && holds_own_entry(address, list);
            access.order = None;
            Progress::Done
        }
        Tri::Unknown => {
            let message = "not checked: the storage container inherits the cluster's list, which Prism does not tell";
            access.found = Some(message.into());
            Progress::Done
        }
        Tri::No => missing(input, draft, setup, &mut access, list),
    };
    if let Some(target) = draft.status.target.as_mut() {
        target.access = Some(access);
    }
    progress
}

fn needed(address: &str, list: &Whitelist) -> StorageAccess {
    StorageAccess {
        address: address.into(),
        container_ext_id: list.container_ext_id.clone(),
        found: None,
        added_by_drover: false,
        order: None,
        ended_at: None,
    }
}

fn found(address: &str, list: &Whitelist) -> Tri {
    match &list.entries {
        None => Tri::Unknown,
        Some(entries) => Tri::from(entries.iter().any(|entry| lets_in(entry, address))),
    }
}

/// Whether the entry is there that Drover would have added; one for a whole network is somebody else's.
fn holds_own_entry(address: &str, list: &Whitelist) -> bool {
    let own = format!("{address}/{}", if address.contains(':') { 128 } else { 32 });
    !list.inherited && list.entries.as_ref().is_some_and(|entries| entries.contains(&own))
}

/// Whether an entry of a list means this address: `192.0.2.7`, `192.0.2.0/24` or `192.0.2.0/255.255.255.0`, and the same for IPv6. A host
/// name means none: nobody here knows whose it is.
fn lets_in(entry: &str, address: &str) -> bool {
    let (network, mask) = match entry.split_once('/') {
        Some((network, mask)) => (network, Some(mask)),
        None => (entry, None),
    };
    let (Ok(network), Ok(address)) = (network.trim().parse::<IpAddr>(), address.parse::<IpAddr>()) else {
        return false;
    };
    let (network, address, bits) = match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            (u128::from(network.to_bits()), u128::from(address.to_bits()), 32)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => (network.to_bits(), address.to_bits(), 128),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
    };
    let prefix = match mask.map(str::trim) {
        None => Some(bits),
        Some(mask) => match mask.parse::<std::net::Ipv4Addr>() {
            Ok(mask) => Some(mask.to_bits().leading_ones()),
            Err(_) => mask.parse().ok().filter(|prefix| *prefix <= bits),
        },
    };
    // A shift by all bits leaves nothing to compare.
    prefix.is_some_and(|prefix| (network ^ address).checked_shr(bits - prefix).unwrap_or(0) == 0)
}

/// The address is not on the list: somebody has to put it there, or Drover does.
fn missing(
    input: &Input<'_>,
    draft: &mut Draft,
    setup: &Setup,
    access: &mut StorageAccess,
    list: &Whitelist,
) -> Progress {
    let (address, container) = (access.address.clone(), &list.name);
    let manages = setup.cluster.whitelist == WhitelistPolicy::Manage;
    if list.inherited {
        let own = "Drover does not add it: that would give the container a list of its own, which counts instead of the cluster's for everybody";
        let message = format!(
            "storage container {container} inherits the cluster's filesystem whitelist, which does not let {address} (LibvirtHost {}) in: add it to the cluster's list in Prism.{}",
            setup.host_name,
            if manages { format!(" {own}") } else { String::new() }
        );
        return Progress::stalled("NotWhitelisted", message);
    }
    if !manages {
        let message = format!(
            "the filesystem whitelist of storage container {container} does not let {address} (LibvirtHost {}) in: add it in Prism, or have Drover do it (NutanixCluster.spec.whitelist: Manage)",
            setup.host_name
        );
        return Progress::stalled("NotWhitelisted", message);
    }
    // With the record of the order, which comes before the order: whoever sends it may be stopped before he can tell.
    access.added_by_drover = true;
    draft.effects.extend(change(input, access, list, true));
    Progress::waits(REASON, format!("{address} is added to the filesystem whitelist of storage container {container}"))
}

/// The order to change the list, if it was recorded in an earlier turn and is still good; otherwise it is recorded now.
fn change(input: &Input<'_>, access: &mut StorageAccess, list: &Whitelist, wanted: bool) -> Option<Effect> {
    let what = if wanted { "whitelist" } else { "whitelist-back" };
    let order = target_order::recorded(input, &mut access.order, what, &list.etag)?;
    let (container_ext_id, address) = (access.container_ext_id.clone(), access.address.clone());
    Some(Effect::Whitelist { container_ext_id, address, wanted, order })
}

/// This migration comes to its end. `Done` = what Drover has added is taken off the list, or another migration needs it.
pub fn put_back(input: &Input<'_>, draft: &mut Draft) -> Progress {
    let Some(target) = draft.status.target.as_mut() else { return Progress::Done };
    let Some(mut access) = target.access.clone() else { return Progress::Done };
    let progress = match (&access.ended_at, access.added_by_drover) {
        (None, added) => {
            access.ended_at = Some(Time(input.now));
            access.order = None;
            // Recorded before the others are looked at.
            if added { putting_back(&access) } else { Progress::Done }
        }
        (Some(_), false) => Progress::Done,
        (Some(_), true) => take_off(input, draft, &mut access),
    };
    if let Some(target) = draft.status.target.as_mut() {
        target.access = Some(access);
    }
    progress
}

fn putting_back(access: &StorageAccess) -> Progress {
    Progress::waits(REASON, format!("{} is taken off the storage container's list again", access.address))
}

fn take_off(input: &Input<'_>, draft: &mut Draft, access: &mut StorageAccess) -> Progress {
    let left_alone = |setup: &Setup| setup.cluster.whitelist == WhitelistPolicy::Ignore;
    if input.seen.setup.as_ref().is_ok_and(left_alone) {
        return Progress::Done;
    }
    let list = match &input.seen.whitelist {
        Fact::NotAsked => return putting_back(access),
        Fact::Unknown(refusal) => {
            let message = format!(
                "{}. Until then {} stays on the storage container's list; whitelist: Ignore in the NutanixCluster leaves it there for good",
                refusal.message.trim_end_matches('.'),
                access.address
            );
            return Progress::Waits { refusal: Refusal::new(&refusal.reason, message), stalled: true };
        }
        Fact::Known(list) => list,
    };
    // Whoever still needs it knows that Drover added it, and comes to his end later.
    let needed = list.others.iter().any(|other| !other.ended);
    if needed || !holds_own_entry(&access.address, list) {
        if needed {
            access.found = Some(format!("{} is left on the list: another migration needs it", access.address));
        }
        (access.added_by_drover, access.order) = (false, None);
        return Progress::Done;
    }
    draft.effects.extend(change(input, access, list, false));
    putting_back(access)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_means_an_address_or_a_network() {
        let cases = [
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.8", false),
            ("192.0.2.7/32", "192.0.2.7", true),
            ("192.0.2.0/24", "192.0.2.200", true),
            ("192.0.2.0/24", "192.0.3.1", false),
            ("192.0.2.0/255.255.255.0", "192.0.2.9", true),
            ("192.0.2.0/255.255.255.128", "192.0.2.200", false),
            ("0.0.0.0/0", "198.51.100.1", true),
            ("0.0.0.0/0.0.0.0", "198.51.100.1", true),
            ("2001:db8::/32", "2001:db8::7", true),
            ("2001:db8::7", "2001:db8::8", false),
            ("::/0", "2001:db8::7", true),
            ("::/0", "192.0.2.7", false),
            ("192.0.2.0/33", "192.0.2.7", false),
            ("kvm1.example.com", "192.0.2.7", false),
            ("", "192.0.2.7", false),
        ];
        for (entry, address, expected) in cases {
            assert_eq!(lets_in(entry, address), expected, "{address} by {entry:?}");
        }
    }
}
