//! Carries out accepted tasks, one after another, on a thread of its own. What the real one finds out only when it acts is found out
//! here too, and ends the task as FAILED.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::model::{Disk, DiskAddress, Nic, Vm, new_uuid};
use super::parse::{self, DiskRequest, VmRequest};
use super::store::{State, Store};
use super::tasks::{Progress, Work};

/// How often the worker looks at the switches while a task waits for them.
const TICK: Duration = Duration::from_millis(10);

/// How long it sleeps when there is nothing to do; a new task wakes it.
const IDLE: Duration = Duration::from_secs(1);

/// Settings that AHV changes only on a VM that is off.
const COLD: [&str; 12] = [
    "numCoresPerSocket",
    "numThreadsPerCore",
    "numNumaNodes",
    "machineType",
    "bootConfig",
    "guestTools",
    "hardwareClockTimezone",
    "isCpuPassthroughEnabled",
    "isVcpuHardPinningEnabled",
    "isCpuHotplugEnabled",
    "isVgaConsoleEnabled",
    "vtpmConfig",
];

/// Starts the worker; it ends when the state says `stopping`.
pub fn start(store: Arc<Store>) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("prism-tasks".into())
        .spawn(move || {
            while let Some((task, work)) = next(&store) {
                let outcome = if store.switches.take_task_failure() {
                    Err("the simulator was told to fail this task".to_owned())
                } else {
                    perform(&store, work)
                };
                if let Some(task) = store.raw_state().task_mut(&task) {
                    task.end(outcome);
                }
            }
        })
        .context("start the thread that carries out tasks")
}

/// Waits for a task whose time has come; nothing once the simulator stops.
fn next(store: &Store) -> Option<(String, Work)> {
    let mut state = store.raw_state();
    let (task, work) = loop {
        if state.stopping {
            return None;
        }
        if !store.switches.tasks_are_held()
            && let Some(next) = state.queue.pop_front()
        {
            break next;
        }
        let nap = if state.queue.is_empty() { IDLE } else { TICK };
        state = store.wait(state, nap);
    };
    if let Some(task) = state.task_mut(&task) {
        task.progress = Progress::Running;
    }
    let begun = Instant::now();
    while begun.elapsed() < store.switches.task_delay() && !state.stopping {
        state = store.wait(state, TICK);
    }
    (!state.stopping).then_some((task, work))
}

fn perform(store: &Store, work: Work) -> Result<(), String> {
    match work {
        Work::Create { vm, request } => create(store, vm, *request),
        Work::Update { vm, request } => update(store, &vm, *request),
        Work::Delete { vm } => delete(store, &vm),
        Work::PowerOn { vm } => power_on(store, &vm),
        Work::PowerOff { vm } => power_off(store, &vm),
        Work::ShutDown { vm } => shut_down(store, &vm),
        Work::AddDisk { vm, disk } => add_disk(store, &vm, &disk),
        Work::ResizeDisk { vm, device_uuid, size_bytes } => resize_disk(store, &vm, &device_uuid, size_bytes),
        Work::DeleteDisk { vm, device_uuid } => delete_disk(store, &vm, &device_uuid),
        Work::AddNic { vm, nic } => add_nic(store, &vm, nic),
        Work::UpdateNic { vm, nic } => update_nic(store, &vm, nic),
        Work::DeleteNic { vm, uuid } => delete_nic(store, &vm, &uuid),
        Work::Categories { vm, ext_ids, associate } => categories(store, &vm, &ext_ids, associate),
        Work::GuestTools { vm, capabilities, install } => guest_tools(store, &vm, &capabilities, install),
        Work::UpdateContainer { whitelist, .. } => {
            let mut state = store.raw_state();
            state.container.whitelist = Some(whitelist);
            state.container.version += 1;
            Ok(())
        }
    }
}

fn create(store: &Store, uuid: String, request: VmRequest) -> Result<(), String> {
    let nics = request.nics.unwrap_or_default();
    check_subnets(store, &nics)?;
    let mut disks = Vec::new();
    for wanted in request.disks.unwrap_or_default() {
        disks.push(place(store, &disks, &wanted)?);
    }
    let mut settings = request.settings;
    settings.entry("biosUuid").or_insert_with(|| Value::String(uuid.clone()));
    settings.entry("generationUuid").or_insert_with(|| Value::String(new_uuid()));
    for disk in &disks {
        make_file(store, disk)?;
    }
    let now = Timestamp::now();
    let cd_roms = request.cd_roms.into_iter().map(with_ext_id).collect();
    let vm = Vm {
        uuid: uuid.clone(),
        settings,
        disks,
        nics,
        cd_roms,
        version: 0,
        created: now,
        updated: now,
        was_on: false,
    };
    store.raw_state().vms.insert(uuid, vm);
    Ok(())
}

fn with_ext_id(mut cd_rom: Value) -> Value {
    cd_rom["extId"] = Value::String(new_uuid());
    cd_rom
}

fn check_subnets(store: &Store, nics: &[Nic]) -> Result<(), String> {
    match nics.iter().find(|nic| !store.inventory.subnets.iter().any(|subnet| subnet.uuid == nic.subnet_uuid)) {
        Some(nic) => Err(format!("subnet {} does not exist", nic.subnet_uuid)),
        None => Ok(()),
    }
}

/// Gives a new disk its address and uuids.
fn place(store: &Store, others: &[Disk], wanted: &DiskRequest) -> Result<Disk, String> {
    if wanted.container_uuid != store.inventory.container.uuid {
        return Err(format!("storage container {} does not exist", wanted.container_uuid));
    }
    let bus = wanted.bus.as_deref().unwrap_or("SCSI");
    let taken = |index: u32| others.iter().any(|disk| disk.address.bus == bus && disk.address.index == index);
    let index = match wanted.index {
        Some(index) if taken(index) => return Err(format!("{bus}.{index} is taken by another disk")),
        Some(index) => index,
        None => (0..).find(|index| !taken(*index)).unwrap_or_default(),
    };
    let address = DiskAddress { bus: bus.to_owned(), index };
    parse::check_address(&address)?;
    Ok(Disk {
        device_uuid: new_uuid(),
        vmdisk_uuid: new_uuid(),
        address,
        size_bytes: wanted.size_bytes,
        container_uuid: wanted.container_uuid.clone(),
    })
}

/// A sparse file of exactly the disk's size; it must not exist yet.
fn make_file(store: &Store, disk: &Disk) -> Result<(), String> {
    let path = store.disk_path(disk);
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    made.and_then(|file| file.set_len(disk.size_bytes)).map_err(|error| format!("make {}: {error}", path.display()))
}

fn remove_file(store: &Store, disk: &Disk) -> Result<(), String> {
    let path = store.disk_path(disk);
    std::fs::remove_file(&path).map_err(|error| format!("remove {}: {error}", path.display()))
}

fn update(store: &Store, uuid: &str, request: VmRequest) -> Result<(), String> {
    let mut state = store.state();
    let vm = state.vm_mut(uuid)?;
    let mut settings = request.settings;
    for kept in ["biosUuid", "generationUuid"] {
        if let (None, Some(value)) = (settings.get(kept), vm.settings.get(kept)) {
            settings.insert(kept.to_owned(), value.clone());
        }
    }
    if vm.was_on {
        check_hot(&vm.settings, &settings)?;
    }
    vm.settings = settings;
    vm.touch();
    Ok(())
}

/// Refuses what cannot be changed on a VM that runs.
fn check_hot(old: &Map<String, Value>, new: &Map<String, Value>) -> Result<(), String> {
    if let Some(cold) = COLD.iter().find(|key| old.get(**key) != new.get(**key)) {
        return Err(format!("{cold} cannot be changed while the VM is on"));
    }
    for key in ["numSockets", "memorySizeBytes"] {
        if new.get(key).and_then(Value::as_u64) < old.get(key).and_then(Value::as_u64) {
            return Err(format!("{key} cannot be reduced while the VM is on"));
        }
    }
    Ok(())
}

fn delete(store: &Store, uuid: &str) -> Result<(), String> {
    store.hypervisor.power_off(uuid).map_err(|error| format!("power off: {error:#}"))?;
    let vm = store.raw_state().vms.remove(uuid).ok_or_else(|| format!("VM {uuid} is gone"))?;
    vm.disks.iter().try_for_each(|disk| remove_file(store, disk))
}

fn power_on(store: &Store, uuid: &str) -> Result<(), String> {
    let shape = {
        let mut state = store.state();
        let vm = state.vm_mut(uuid)?;
        if vm.was_on {
            return Err(format!("VM {} is on already", vm.name()));
        }
        store.shape(vm)
    };
    store.hypervisor.power_on(&shape).map_err(|error| format!("power on {}: {error:#}", shape.name))?;
    // The next look at the power state counts the change.
    drop(store.state());
    Ok(())
}

fn power_off(store: &Store, uuid: &str) -> Result<(), String> {
    require_power(&mut store.state(), uuid, true)?;
    store.hypervisor.power_off(uuid).map_err(|error| format!("power off {uuid}: {error:#}"))?;
    drop(store.state());
    Ok(())
}

fn shut_down(store: &Store, uuid: &str) -> Result<(), String> {
    require_power(&mut store.state(), uuid, true)?;
    store.hypervisor.shut_down(uuid).map_err(|error| format!("shut down {uuid}: {error:#}"))?;
    drop(store.state());
    Ok(())
}

fn require_power(state: &mut State, uuid: &str, on: bool) -> Result<(), String> {
    let vm = state.vm_mut(uuid)?;
    if vm.was_on == on {
        return Ok(());
    }
    Err(format!("VM {} is {}", vm.name(), if vm.was_on { "on" } else { "off" }))
}

fn add_disk(store: &Store, uuid: &str, wanted: &DiskRequest) -> Result<(), String> {
    let mut state = store.state();
    require_power(&mut state, uuid, false)?;
    let vm = state.vm_mut(uuid)?;
    let disk = place(store, &vm.disks, wanted)?;
    make_file(store, &disk)?;
    vm.disks.push(disk);
    vm.touch();
    Ok(())
}

/// Growing works on a running VM too; its guest sees it after the next start.
fn resize_disk(store: &Store, uuid: &str, device_uuid: &str, size_bytes: u64) -> Result<(), String> {
    let mut state = store.state();
    let vm = state.vm_mut(uuid)?;
    let disk = vm.disks.iter_mut().find(|disk| disk.device_uuid == device_uuid);
    let disk = disk.ok_or_else(|| format!("disk {device_uuid} is gone"))?;
    if size_bytes < disk.size_bytes {
        return Err(format!("a disk cannot shrink: {} to {size_bytes} bytes", disk.size_bytes));
    }
    let path = store.disk_path(disk);
    let file = OpenOptions::new().write(true).open(&path);
    let grown = file.and_then(|file| file.set_len(size_bytes));
    grown.map_err(|error| format!("grow {}: {error}", path.display()))?;
    disk.size_bytes = size_bytes;
    vm.touch();
    Ok(())
}

fn delete_disk(store: &Store, uuid: &str, device_uuid: &str) -> Result<(), String> {
    let mut state = store.state();
    require_power(&mut state, uuid, false)?;
    let vm = state.vm_mut(uuid)?;
    let at = vm.disks.iter().position(|disk| disk.device_uuid == device_uuid);
    let disk = vm.disks.remove(at.ok_or_else(|| format!("disk {device_uuid} is gone"))?);
    vm.touch();
    remove_file(store, &disk)
}

/// A NIC comes and goes while a VM runs, too.
fn add_nic(store: &Store, uuid: &str, nic: Nic) -> Result<(), String> {
    check_subnets(store, std::slice::from_ref(&nic))?;
    let mut state = store.state();
    let vm = state.vm_mut(uuid)?;
    if vm.nics.iter().any(|other| other.mac == nic.mac) {
        return Err(format!("the VM has a NIC with address {} already", nic.mac));
    }
    vm.nics.push(nic);
    vm.touch();
    Ok(())
}

fn update_nic(store: &Store, uuid: &str, nic: Nic) -> Result<(), String> {
    check_subnets(store, std::slice::from_ref(&nic))?;
    let mut state = store.state();
    let vm = state.vm_mut(uuid)?;
    let Some(known) = vm.nics.iter_mut().find(|known| known.uuid == nic.uuid) else {
        return Err(format!("NIC {} is gone", nic.uuid));
    };
    *known = nic;
    vm.touch();
    Ok(())
}

fn delete_nic(store: &Store, uuid: &str, nic: &str) -> Result<(), String> {
    let mut state = store.state();
    let vm = state.vm_mut(uuid)?;
    let before = vm.nics.len();
    vm.nics.retain(|known| known.uuid != nic);
    if vm.nics.len() == before {
        return Err(format!("NIC {nic} is gone"));
    }
    vm.touch();
    Ok(())
}

fn categories(store: &Store, uuid: &str, ext_ids: &[String], associate: bool) -> Result<(), String> {
    let mut state = store.state();
    let known = |ext_id: &String| state.categories.iter().any(|category| category.uuid == *ext_id);
    if let Some(unknown) = ext_ids.iter().find(|ext_id| !known(ext_id)) {
        return Err(format!("category {unknown} does not exist"));
    }
    let vm = state.vm_mut(uuid)?;
    let mut list = vm.settings.get("categories").and_then(Value::as_array).cloned().unwrap_or_default();
    list.retain(|category| !ext_ids.iter().any(|ext_id| category["extId"] == **ext_id));
    if associate {
        list.extend(ext_ids.iter().map(|ext_id| json!({ "extId": ext_id })));
    }
    vm.settings.insert("categories".into(), Value::Array(list));
    vm.touch();
    Ok(())
}

/// Their CD-ROM appears in the VM, as everything does that a Terraform definition does not know of.
fn guest_tools(store: &Store, uuid: &str, capabilities: &Value, install: bool) -> Result<(), String> {
    let mut state = store.state();
    if install {
        require_power(&mut state, uuid, true)?;
    }
    let vm = state.vm_mut(uuid)?;
    let is_installed = install || vm.settings.get("guestTools").is_some_and(|tools| tools["isInstalled"] == true);
    let tools = json!({
        "version": "4.1.0", "availableVersion": "4.1.0", "isEnabled": true, "isIsoInserted": true,
        "isInstalled": is_installed, "isReachable": is_installed, "capabilities": capabilities,
    });
    vm.settings.insert("guestTools".into(), tools);
    if !vm.cd_roms.iter().any(|cd_rom| cd_rom["isoType"] == "GUEST_TOOLS") {
        let address = json!({ "busType": "IDE", "index": 3 });
        vm.cd_roms.push(with_ext_id(json!({ "diskAddress": address, "isoType": "GUEST_TOOLS" })));
    }
    vm.touch();
    Ok(())
}
