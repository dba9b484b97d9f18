//! Plans of all kinds before the court.

use super::*;

const UID: &str = "uid-1";

/// A change of a VM, as Terraform prints it.
fn vm(address: &str, actions: &[&str], before: Value, after: Value) -> Value {
    json!({
        "address": format!("nutanix_virtual_machine_v2.{address}"), "mode": "managed", "type": "nutanix_virtual_machine_v2",
        "provider_name": "registry.terraform.io/nutanix/nutanix",
        "change": {"actions": actions, "before": before, "after": after, "after_unknown": {}},
    })
}

fn target() -> Value {
    vm(
        "web01",
        &["create"],
        Value::Null,
        json!({"name": "web01", "description": "Moved … uid-1", "power_state": "OFF"}),
    )
}

/// A VM of somebody else, as it is in the state.
fn db01() -> Value {
    json!({"name": "db01", "ext_id": "vm-db01", "description": "the database", "power_state": "ON", "num_sockets": 2,
        "disks": [{"ext_id": "disk-1"}, {"ext_id": "disk-2"}], "nics": [{"ext_id": "nic-1"}]})
}

fn with(mut state: Value, name: &str, value: Value) -> Value {
    state[name] = value;
    state
}

fn plan(changes: &[Value]) -> Vec<u8> {
    json!({"format_version": "1.2", "resource_changes": changes}).to_string().into_bytes()
}

fn verdict(changes: &[Value]) -> Verdict {
    judge(&plan(changes), UID).expect("it can be judged")
}

#[test]
fn a_plan_that_creates_the_target_and_leaves_the_rest_alone_is_accepted() {
    let verdict = verdict(&[target(), vm("db01", &["no-op"], db01(), db01())]);
    assert_eq!(verdict.refused, Vec::<String>::new());
    assert!(verdict.creates_target);
    assert_eq!(verdict.summary, "1 to create, 0 to change, 0 to delete");
    assert_eq!(verdict.others.len(), 1);
}

#[test]
fn whatever_may_harm_another_vm_is_refused_with_its_address() {
    let table = [
        (vm("db01", &["delete"], db01(), Value::Null), "would be deleted"),
        (vm("db01", &["delete", "create"], db01(), db01()), "deleted and created anew"),
        (vm("db01", &["create", "delete"], db01(), db01()), "deleted and created anew"),
        (vm("db01", &["forget"], db01(), Value::Null), "forgotten by Terraform"),
        (vm("db01", &["update"], db01(), with(db01(), "power_state", json!("OFF"))), "power_state"),
        (vm("db01", &["update"], db01(), with(db01(), "disks", json!([{"ext_id": "disk-1"}]))), "disks"),
        (vm("db01", &["update"], db01(), with(db01(), "nics", json!([]))), "nics"),
        (vm("db01", &["update"], db01(), with(db01(), "boot_config", json!([{}]))), "boot_config"),
        (vm("db01", &["update"], db01(), with(db01(), "num_sockets", json!(1))), "num_sockets"),
        (vm("db01", &["update"], db01(), with(db01(), "a_new_attribute", json!(1))), "a_new_attribute"),
        (vm("db01", &["invert"], db01(), db01()), "does not know"),
    ];
    for (change, why) in table {
        let refused = verdict(&[target(), change]).refused;
        assert_eq!(refused.len(), 1, "{why}: {refused:?}");
        assert!(refused[0].starts_with("nutanix_virtual_machine_v2.db01 "), "{refused:?}");
        assert!(refused[0].contains(why), "{refused:?}");
    }
}

#[test]
fn a_value_that_is_not_known_yet_counts_as_changed() {
    let mut change = vm("db01", &["update"], db01(), db01());
    change["change"]["after_unknown"] = json!({"disks": [{"ext_id": true}]});
    assert!(verdict(&[change]).refused[0].contains("disks"));
}

#[test]
fn harmless_changes_and_other_peoples_new_vms_are_accepted() {
    let renamed = vm("db01", &["update"], db01(), with(db01(), "description", json!("another text")));
    let new = vm("web02", &["create"], Value::Null, json!({"name": "web02", "power_state": "ON"}));
    let other = json!({"address": "random_id.x", "mode": "managed", "type": "random_id",
        "change": {"actions": ["delete", "create"], "before": {}, "after": {}}});
    let read = json!({"address": "data.nutanix_clusters_v2.c", "mode": "data", "type": "nutanix_clusters_v2",
        "change": {"actions": ["read"], "before": null, "after": {}}});
    assert_eq!(verdict(&[target(), renamed, new, other, read]).refused, Vec::<String>::new());
}

#[test]
fn a_target_that_would_be_created_running_is_refused() {
    let running = vm("web01", &["create"], Value::Null, json!({"description": "uid-1", "power_state": "ON"}));
    assert!(verdict(&[running]).refused[0].contains("powered on"));
}

#[test]
fn the_loss_of_anything_that_vms_depend_on_is_refused() {
    let subnet = json!({"address": "nutanix_subnet_v2.lan", "mode": "managed", "type": "nutanix_subnet_v2",
        "change": {"actions": ["delete"], "before": {}, "after": null}});
    assert!(verdict(&[subnet]).refused[0].contains("nutanix_subnet_v2.lan would be deleted"));
}

#[test]
fn the_digest_is_that_of_the_content() {
    let base = verdict(&[target(), vm("db01", &["no-op"], db01(), db01())]).digest;
    // Neither order nor what does not change counts.
    assert_eq!(verdict(&[target()]).digest, base);
    let second = vm("web02", &["create"], Value::Null, json!({"name": "web02"}));
    assert_eq!(verdict(&[target(), second.clone()]).digest, verdict(&[second, target()]).digest);
    let mut larger = target();
    larger["change"]["after"]["num_sockets"] = json!(2);
    assert_ne!(verdict(&[larger]).digest, base);
}

#[test]
fn a_sensitive_value_is_not_in_the_digest() {
    let with_password = |password: &str| {
        let mut change = target();
        change["change"]["after"]["credentials"] = json!([{"user": "u", "password": password}]);
        change["change"]["after_sensitive"] = json!({"credentials": [{"password": true}]});
        verdict(&[change]).digest
    };
    assert_eq!(with_password("one"), with_password("two"));
    assert_ne!(with_password("one"), verdict(&[target()]).digest);
}

#[test]
fn drift_is_told_by_address_and_attribute() {
    let drifted = vm("db01", &["update"], db01(), with(db01(), "power_state", json!("OFF")));
    let text = json!({"format_version": "1.2", "resource_drift": [drifted]}).to_string();
    let verdict = judge(text.as_bytes(), UID).expect("it can be judged");
    assert_eq!(verdict.drift, ["nutanix_virtual_machine_v2.db01 was changed outside of Terraform: power_state"]);
    assert_eq!(verdict.refused, Vec::<String>::new());
}

#[test]
fn what_cannot_be_read_is_not_judged() {
    assert!(matches!(judge(b"{}", UID), Err(CourtError::Malformed(_))));
    assert_eq!(judge(br#"{"format_version":"2.0"}"#, UID), Err(CourtError::UnknownFormat("2.0".into())));
    let broken = judge(br#"{"format_version":"1.2","errored":true}"#, UID).expect("it can be judged");
    assert!(broken.refused[0].contains("incomplete"));
}

#[test]
fn vms_and_disks_that_others_have_lost_are_found_afterwards() {
    let others = verdict(&[target(), vm("db01", &["no-op"], db01(), db01())]).others;
    let disks = |ids: &[&str]| Some(ids.iter().map(|id| (*id).to_owned()).collect::<BTreeSet<String>>());
    assert_eq!(harm(&others, |_| disks(&["disk-1", "disk-2", "disk-3"])), Vec::<String>::new());
    assert!(harm(&others, |_| disks(&["disk-2"]))[0].contains("disks of VM vm-db01 are gone: disk-1"));
    assert!(harm(&others, |_| None)[0].contains("gone from Prism"));
}
