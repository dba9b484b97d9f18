//! Prism Element: the part of the v2 API that tells where a disk's file is. Read-only.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::model::{Disk, Nic, Vm};
use super::store::Store;

type Params = Query<HashMap<String, String>>;
type Shared = State<Arc<Store>>;

/// The base path and its alias.
const BASES: [&str; 2] = ["/PrismGateway/services/rest/v2.0", "/api/nutanix/v2.0"];

/// The routes.
pub fn router(store: Arc<Store>) -> Router {
    let v2 = Router::new()
        .route("/cluster", get(cluster))
        .route("/storage_containers", get(containers))
        .route("/vms", get(list_vms))
        .route("/vms/", get(list_vms))
        .route("/vms/{uuid}", get(get_vm))
        .route("/virtual_disks", get(list_disks))
        .route("/virtual_disks/", get(list_disks))
        .route("/virtual_disks/{uuid}", get(get_disk))
        .with_state(store.clone());
    let mut router = Router::new();
    for base in BASES {
        router = router.nest(base, v2.clone());
    }
    let v2 = router.fallback(|| async { not_found("resource") }).layer(from_fn_with_state(store.clone(), unless_gone));
    v2.merge(super::disk_data::router(store))
}

async fn unless_gone(State(store): Shared, request: Request, next: Next) -> Response {
    if store.switches.v2_is_gone() { not_found("v2 API") } else { next.run(request).await }
}

fn not_found(what: &str) -> Response {
    let message = format!("{what} does not exist");
    let body = json!({ "error_code": { "code": 1202 }, "message": message, "detailed_message": message });
    (StatusCode::NOT_FOUND, Json(body)).into_response()
}

/// The page that `count` and `page` (from 1) ask for, in v2's envelope.
fn list(entities: Vec<Value>, params: &HashMap<String, String>) -> Response {
    let number = |key: &str| params.get(key).and_then(|text| text.parse::<usize>().ok());
    let total = entities.len();
    let count = number("count").unwrap_or(total);
    let page = number("page").unwrap_or(1).max(1);
    let start = count.saturating_mul(page - 1);
    let shown: Vec<Value> = entities.into_iter().skip(start).take(count).collect();
    let metadata = json!({
        "grand_total_entities": total, "total_entities": total, "count": shown.len(), "page": page,
        "start_index": start + 1, "end_index": start + shown.len(), "filter_criteria": "", "sort_criteria": "",
    });
    Json(json!({ "metadata": metadata, "entities": shown })).into_response()
}

async fn cluster(State(store): Shared) -> Response {
    let cluster = &store.inventory.cluster;
    Json(json!({ "uuid": cluster.uuid, "cluster_uuid": cluster.uuid, "name": cluster.name })).into_response()
}

async fn containers(State(store): Shared, Query(params): Params) -> Response {
    let (container, cluster) = (&store.inventory.container, &store.inventory.cluster);
    let whitelist = store.raw_state().container.whitelist.clone();
    let address = |entry: &Value| entry["ipv4"]["value"].as_str().map(str::to_owned);
    let entries: Vec<String> = whitelist.iter().flatten().filter_map(address).collect();
    let one = json!({
        "id": container.uuid, "storage_container_uuid": container.uuid, "name": container.name,
        "cluster_uuid": cluster.uuid, "nfs_whitelist": entries, "nfs_whitelist_inherited": whitelist.is_none(),
    });
    list(vec![one], &params)
}

async fn list_vms(State(store): Shared, Query(params): Params) -> Response {
    let vms = store.state().vms.values().map(|one| vm(&store, one, &params)).collect();
    list(vms, &params)
}

async fn get_vm(State(store): Shared, Path(uuid): Path<String>, Query(params): Params) -> Response {
    match store.state().vms.get(&uuid) {
        Some(found) => Json(vm(&store, found, &params)).into_response(),
        None => not_found(&format!("VM {uuid}")),
    }
}

fn vm(store: &Store, vm: &Vm, params: &HashMap<String, String>) -> Value {
    let wants = |key: &str| params.get(key).is_some_and(|value| value == "true");
    let uefi = vm.settings.get("bootConfig").is_some_and(|boot| boot["$objectType"] == "vmm.v4.ahv.config.UefiBoot");
    let mut whole = json!({
        "uuid": vm.uuid,
        "name": vm.name(),
        "description": vm.text("description"),
        "power_state": if vm.was_on { "on" } else { "off" },
        "num_vcpus": vm.number("numSockets"),
        "num_cores_per_vcpu": vm.number("numCoresPerSocket"),
        "memory_mb": vm.number("memorySizeBytes").unwrap_or_default() >> 20,
        "host_uuid": vm.was_on.then_some(&store.inventory.host_uuid),
        "machine_type": vm.text("machineType").to_lowercase(),
        "timezone": vm.text("hardwareClockTimezone"),
        "vm_logical_timestamp": vm.version,
        "boot": { "uefi_boot": uefi, "secure_boot": false },
        "vm_features": { "AGENT_VM": false, "VGA_CONSOLE": true },
    });
    if wants("include_vm_disk_config") {
        whole["vm_disk_info"] = Value::Array(disk_info(store, vm));
    }
    if wants("include_vm_nic_config") {
        let ips = if vm.was_on { store.hypervisor.learned_ips(&vm.uuid) } else { Vec::new() };
        let nics = vm.nics.iter().enumerate().map(|(index, nic)| nic_info(nic, if index == 0 { &ips } else { &[] }));
        whole["vm_nics"] = nics.collect();
    }
    whole
}

/// CD-ROMs come first, and disks backwards: readers must go by the address.
fn disk_info(store: &Store, vm: &Vm) -> Vec<Value> {
    let cd_roms = vm.cd_roms.iter().map(|cd_rom| {
        let bus = cd_rom.pointer("/diskAddress/busType").and_then(Value::as_str).unwrap_or("IDE").to_lowercase();
        let index = cd_rom.pointer("/diskAddress/index").and_then(Value::as_u64).unwrap_or_default();
        json!({
            "disk_address": { "device_bus": bus, "device_index": index, "disk_label": format!("{bus}.{index}"),
                "device_uuid": cd_rom["extId"] },
            "is_cdrom": true, "is_empty": true,
        })
    });
    let disks = vm.disks_by_address().into_iter().rev().map(|disk| {
        let bus = disk.address.bus.to_lowercase();
        json!({
            "disk_address": {
                "device_bus": bus,
                "device_index": disk.address.index,
                "disk_label": format!("{bus}.{}", disk.address.index),
                "device_uuid": disk.device_uuid,
                "vmdisk_uuid": disk.vmdisk_uuid,
                "ndfs_filepath": nfs_path(store, disk),
            },
            "is_cdrom": false,
            "is_empty": false,
            "is_thin_provisioned": false,
            "is_scsi_passthrough": true,
            "flash_mode_enabled": false,
            "storage_container_uuid": disk.container_uuid,
            "size": disk.size_bytes,
        })
    });
    cd_roms.chain(disks).collect()
}

fn nic_info(nic: &Nic, ips: &[String]) -> Value {
    json!({
        "mac_address": nic.mac, "nic_uuid": nic.uuid, "network_uuid": nic.subnet_uuid, "model": "",
        "ip_address": ips.first(), "ip_addresses": ips, "vlan_mode": "Access", "is_connected": nic.is_connected,
    })
}

/// The file as NFS names it: container first.
fn nfs_path(store: &Store, disk: &Disk) -> String {
    format!("/{}/.acropolis/vmdisk/{}", store.inventory.container.name, disk.vmdisk_uuid)
}

fn virtual_disks(store: &Store) -> Vec<Value> {
    let state = store.state();
    let disks = state.vms.values().flat_map(|vm| vm.disks.iter().map(move |disk| (vm, disk)));
    disks
        .map(|(vm, disk)| {
            json!({
                "uuid": disk.vmdisk_uuid,
                "device_uuid": disk.device_uuid,
                "nutanix_nfsfile_path": nfs_path(store, disk),
                "attached_vm_uuid": vm.uuid,
                "attached_vmname": vm.name(),
                "disk_address": format!("{}.{}", disk.address.bus.to_lowercase(), disk.address.index),
                "disk_capacity_in_bytes": disk.size_bytes,
                "storage_container_uuid": disk.container_uuid,
                "cluster_uuid": store.inventory.cluster.uuid,
            })
        })
        .collect()
}

async fn list_disks(State(store): Shared, Query(params): Params) -> Response {
    list(virtual_disks(&store), &params)
}

async fn get_disk(State(store): Shared, Path(uuid): Path<String>) -> Response {
    match virtual_disks(&store).into_iter().find(|disk| disk["uuid"] == uuid) {
        Some(disk) => Json(disk).into_response(),
        None => not_found(&format!("virtual disk {uuid}")),
    }
}
