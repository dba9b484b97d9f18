//! The store's things as v4 objects.

use serde_json::{Value, json};

use super::model::{Category, Disk, Inventory, Nic, Subnet, Vm};
use super::store::{Container, Store};
use super::v4::typed;

/// A VM as `GET` shows it.
pub fn vm(store: &Store, vm: &Vm) -> Value {
    let mut whole = Value::Object(vm.settings.clone());
    whole["extId"] = json!(vm.uuid);
    whole["powerState"] = json!(if vm.was_on { "ON" } else { "OFF" });
    whole["createTime"] = json!(vm.created.to_string());
    whole["updateTime"] = json!(vm.updated.to_string());
    if vm.was_on {
        whole["host"] = json!({ "extId": store.inventory.host_uuid });
    }
    let mut disks: Vec<Value> = vm.disks.iter().map(disk).collect();
    if store.switches.v4_disks_are_reversed() {
        disks.reverse();
    }
    let ips = if vm.was_on { store.hypervisor.learned_ips(&vm.uuid) } else { Vec::new() };
    let nics = vm.nics.iter().enumerate().map(|(index, one)| nic(one, if index == 0 { &ips } else { &[] })).collect();
    let cd_roms = vm.cd_roms.iter().map(|cd_rom| typed("vmm.v4.ahv.config.CdRom", cd_rom.clone())).collect();
    for (key, list) in [("disks", disks), ("nics", nics), ("cdRoms", cd_roms)] {
        if !list.is_empty() {
            whole[key] = Value::Array(list);
        }
    }
    whole
}

/// A disk. `extId` and `diskExtId` are both the device's uuid; v4 never shows the file's.
pub fn disk(disk: &Disk) -> Value {
    typed(
        "vmm.v4.ahv.config.Disk",
        json!({
            "extId": disk.device_uuid,
            "diskAddress": { "busType": disk.address.bus, "index": disk.address.index },
            "backingInfo": {
                "$objectType": "vmm.v4.ahv.config.VmDisk",
                "diskExtId": disk.device_uuid,
                "diskSizeBytes": disk.size_bytes,
                "storageContainer": { "extId": disk.container_uuid },
                "storageConfig": { "isFlashModeEnabled": false },
                "isMigrationInProgress": false,
            },
        }),
    )
}

/// A NIC, in the deprecated pair of fields and in the new one. The hypervisor does not say which NIC learned an address: the first
/// shows them.
pub fn nic(nic: &Nic, learned: &[String]) -> Value {
    let backing = json!({ "model": nic.model, "macAddress": nic.mac, "isConnected": nic.is_connected });
    let mut network =
        json!({ "nicType": nic.nic_type, "vlanMode": nic.vlan_mode, "subnet": { "extId": nic.subnet_uuid } });
    if let Some(config) = &nic.ipv4_config {
        network["ipv4Config"] = config.clone();
    }
    if !learned.is_empty() {
        let ips: Vec<Value> = learned.iter().map(|ip| json!({ "value": ip, "prefixLength": 32 })).collect();
        network["ipv4Info"] = json!({ "learnedIpAddresses": ips });
    }
    typed(
        "vmm.v4.ahv.config.Nic",
        json!({
            "extId": nic.uuid,
            "backingInfo": typed("vmm.v4.ahv.config.EmulatedNic", backing.clone()),
            "networkInfo": typed("vmm.v4.ahv.config.NicNetworkInfo", network.clone()),
            "nicBackingInfo": typed("vmm.v4.ahv.config.VirtualEthernetNic", backing),
            "nicNetworkInfo": typed("vmm.v4.ahv.config.VirtualEthernetNicNetworkInfo", network),
        }),
    )
}

/// The clusters that Prism Central lists: the AHV cluster, and itself.
pub fn clusters(inventory: &Inventory, whitelist: Option<&Vec<String>>) -> Vec<Value> {
    let address = json!({ "ipv4": { "value": "127.0.0.1", "prefixLength": 32 } });
    let one = |uuid: &str, name: &str, function: &str, hypervisor: &str| {
        json!({
            "extId": uuid,
            "name": name,
            "config": { "clusterFunction": [function], "hypervisorTypes": [hypervisor], "clusterArch": "X86_64",
                "isAvailable": true, "timezone": "UTC" },
            "network": { "externalAddress": address },
            "nodes": { "numberOfNodes": 1,
                "nodeList": [{ "nodeUuid": inventory.host_uuid, "controllerVmIp": address, "hostIp": address }] },
        })
    };
    let mut cluster = one(&inventory.cluster.uuid, &inventory.cluster.name, "AOS", "AHV");
    if let Some(whitelist) = whitelist {
        cluster["network"]["nfsSubnetWhitelist"] = json!(whitelist);
    }
    vec![one(&inventory.prism_central.uuid, &inventory.prism_central.name, "PRISM_CENTRAL", "AHV"), cluster]
}

/// The storage containers of the AHV cluster.
pub fn storage_containers(inventory: &Inventory, container: &Container) -> Vec<Value> {
    let mut shown = json!({
        "extId": inventory.container.uuid,
        "containerExtId": inventory.container.uuid,
        "name": inventory.container.name,
        "clusterExtId": inventory.cluster.uuid,
        "clusterName": inventory.cluster.name,
        "replicationFactor": 1,
        "isInternal": false,
        "isNfsWhitelistInherited": container.whitelist.is_none(),
    });
    if let Some(whitelist) = &container.whitelist {
        shown["nfsWhitelistAddress"] = json!(whitelist);
    }
    vec![shown]
}

/// The guest tools of a VM; without any, Prism says so.
pub fn guest_tools(vm: &Vm) -> Value {
    let none = || json!({ "isEnabled": false, "isInstalled": false, "isIsoInserted": false });
    vm.settings.get("guestTools").cloned().unwrap_or_else(none)
}

/// A VLAN subnet.
pub fn subnet(inventory: &Inventory, subnet: &Subnet) -> Value {
    json!({
        "extId": subnet.uuid,
        "name": subnet.name,
        "subnetType": "VLAN",
        "networkId": subnet.vlan,
        "clusterReference": inventory.cluster.uuid,
        "clusterReferenceList": [inventory.cluster.uuid],
        "bridgeName": "br0",
        "isExternal": false,
    })
}

/// A category, as its user made it.
pub fn category(category: &Category) -> Value {
    json!({ "extId": category.uuid, "key": category.key, "value": category.value, "type": "USER" })
}
