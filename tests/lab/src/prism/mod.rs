//! A simulated Prism: Prism Central's v4 API and Prism Element's v2 API, on two TLS ports, over one store of VMs; and v3's one call that
//! reads the start of a disk, on both.
//!
//! It does what Drover and the Terraform provider ask of the real one, and refuses what the real one refuses: a change without the
//! current ETag, a smaller disk, two disks at one address, a cold change of a running VM. Creating a VM makes sparse files under
//! `<export_root>/.acropolis/vmdisk`; powering it on boots it through a [`Hypervisor`]. What no public source tells (most error
//! codes) is marked as the simulator's own. Its proof is in clients that nobody here wrote: the vendor's SDK for Python
//! (`tests/prism_sdk.rs`) and the Terraform provider.

mod central;
mod disk_data;
mod element;
mod model;
mod odata;
mod parse;
mod server;
mod shapes;
mod store;
mod switches;
mod tasks;
mod v4;
mod work;

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use anyhow::{Context, Result};

use crate::https::{Authority, Server};
use crate::hypervisor::Hypervisor;
use model::{Inventory, Named, Subnet, Vm};
use server::Gate;
use store::Store;

pub use store::Call;
pub use switches::{DiskData, Switches};

/// What to simulate.
pub struct PrismConfig {
    /// For the simulator's own files; `ca.pem` is put there.
    pub dir: PathBuf,
    /// The directory that is exported as the storage container; `.acropolis/vmdisk` is made in it.
    pub export_root: PathBuf,
    /// Name of the storage container.
    pub container: String,
    /// Name of the AHV cluster.
    pub cluster_name: String,
    /// Names and VLAN ids of its subnets.
    pub subnets: Vec<(String, u16)>,
    pub username: String,
    pub password: String,
    /// Runs the VMs.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// One line is appended for each call.
    pub log_path: PathBuf,
}

/// A running simulator. Dropping it stops both servers; VMs that run are the hypervisor's.
pub struct Prism {
    store: Arc<Store>,
    central: Server,
    element: Server,
    ca_pem: String,
    api_key: String,
    worker: Option<JoinHandle<()>>,
}

/// A VM as it is in the store, for assertions.
#[derive(Clone, Debug)]
pub struct VmView {
    pub uuid: String,
    pub name: String,
    pub description: String,
    pub is_on: bool,
    pub etag: String,
    /// In the order of (bus, index).
    pub disks: Vec<DiskView>,
    pub macs: Vec<String>,
}

/// A disk as it is in the store.
#[derive(Clone, Debug)]
pub struct DiskView {
    /// The uuid that v3 and v4 show.
    pub device_uuid: String,
    /// The uuid that names the file.
    pub vmdisk_uuid: String,
    pub bus: String,
    pub index: u32,
    pub size_bytes: u64,
    /// The file behind it, on this machine.
    pub path: PathBuf,
}

/// A task as it really is, whatever clients have seen of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskView {
    pub ext_id: String,
    /// `CreateVm`, `PowerOnVm`, …
    pub operation: String,
    /// `QUEUED`, `RUNNING`, `SUCCEEDED` or `FAILED`.
    pub status: String,
    pub has_ended: bool,
}

impl Prism {
    /// Starts both servers on free ports of the loopback.
    pub fn start(config: PrismConfig) -> Result<Self> {
        let vmdisks = config.export_root.join(".acropolis/vmdisk");
        std::fs::create_dir_all(&vmdisks).with_context(|| format!("make {}", vmdisks.display()))?;
        std::fs::create_dir_all(&config.dir).with_context(|| format!("make {}", config.dir.display()))?;
        let log = OpenOptions::new().create(true).append(true).open(&config.log_path);
        let log = log.with_context(|| format!("open the log {}", config.log_path.display()))?;
        let inventory = Inventory {
            cluster: Named::new("cluster", &config.cluster_name),
            prism_central: Named::new("Prism Central", "Unnamed"),
            host_uuid: model::new_uuid(),
            container: Named::new("container", &config.container),
            subnets: config
                .subnets
                .into_iter()
                .map(|(name, vlan)| Subnet { uuid: model::given_uuid("subnet", &name), name, vlan })
                .collect(),
        };
        let store = Arc::new(Store::new(inventory, config.export_root, config.hypervisor));
        let api_key = model::new_uuid();
        let basic = server::basic(&config.username, &config.password);
        let gate = Arc::new(Gate { store: store.clone(), basic, api_key: api_key.clone(), log: Mutex::new(log) });
        let authority = Authority::new("Simulated Prism CA")?;
        let ca_pem = authority.pem();
        std::fs::write(config.dir.join("ca.pem"), &ca_pem).context("write ca.pem")?;
        let central = server::central(gate.clone(), authority.server("Simulated Prism Central")?)?;
        let element = server::element(gate, authority.server("Simulated Prism Element")?)?;
        let worker = Some(work::start(store.clone())?);
        Ok(Self { store, central, element, ca_pem, api_key, worker })
    }

    /// Base of the v4 API: `https://127.0.0.1:<port>`.
    pub fn central_url(&self) -> &str {
        &self.central.url
    }

    /// Base of the v2 API: `https://127.0.0.1:<port>`.
    pub fn element_url(&self) -> &str {
        &self.element.url
    }

    /// The authority that signed both servers' certificates, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Accepted as `X-ntnx-api-key` instead of the password.
    pub fn api_key(&self) -> &str {
        &self.api_key
    }

    /// `extId` of the AHV cluster.
    pub fn cluster_uuid(&self) -> &str {
        &self.store.inventory.cluster.uuid
    }

    /// `containerExtId` of the storage container.
    pub fn container_uuid(&self) -> &str {
        &self.store.inventory.container.uuid
    }

    /// `extId` of a subnet.
    pub fn subnet_uuid(&self, name: &str) -> Option<&str> {
        self.store.inventory.subnets.iter().find(|subnet| subnet.name == name).map(|subnet| subnet.uuid.as_str())
    }

    /// Makes a category, as somebody does in Prism's own console; its `extId`.
    pub fn add_category(&self, key: &str, value: &str) -> String {
        let uuid = model::given_uuid("category", &format!("{key}:{value}"));
        let category = model::Category { uuid: uuid.clone(), key: key.into(), value: value.into() };
        self.store.raw_state().categories.push(category);
        uuid
    }

    /// `extId` of a category.
    pub fn category_uuid(&self, key: &str, value: &str) -> Option<String> {
        let state = self.store.raw_state();
        let found = state.categories.iter().find(|category| category.key == key && category.value == value);
        found.map(|category| category.uuid.clone())
    }

    /// Faults and variants.
    pub fn switches(&self) -> &Switches {
        &self.store.switches
    }

    /// Gives the storage container a list of its own, of addresses and networks, or has it inherit the cluster's.
    pub fn set_whitelist(&self, own: Option<&[&str]>) {
        let mut state = self.store.raw_state();
        state.container.whitelist = own.map(|entries| entries.iter().map(|entry| parse::network(entry)).collect());
        state.container.version += 1;
    }

    /// The storage container's own list.
    pub fn whitelist(&self) -> Option<Vec<String>> {
        let state = self.store.raw_state();
        let text = |entry: &serde_json::Value| {
            let ipv4 = &entry["ipv4"];
            format!("{}/{}", ipv4["value"].as_str().unwrap_or_default(), ipv4["prefixLength"])
        };
        state.container.whitelist.as_ref().map(|entries| entries.iter().map(text).collect())
    }

    /// The list that containers inherit; absent: Prism does not show it.
    pub fn set_cluster_whitelist(&self, entries: Option<&[&str]>) {
        let entries = entries.map(|entries| entries.iter().map(ToString::to_string).collect());
        self.store.raw_state().cluster_whitelist = entries;
    }

    /// A VM's guest tools as v4 shows them.
    pub fn guest_tools(&self, uuid: &str) -> Option<serde_json::Value> {
        self.store.raw_state().vms.get(uuid).map(shapes::guest_tools)
    }

    /// Every VM, with its power state as it is now.
    pub fn vms(&self) -> Vec<VmView> {
        self.store.state().vms.values().map(|vm| self.view(vm)).collect()
    }

    /// The VM of this name; the first if there are several.
    pub fn vm_by_name(&self, name: &str) -> Option<VmView> {
        self.vms().into_iter().find(|vm| vm.name == name)
    }

    /// Powers a VM on without a task, whatever anybody has ordered: somebody else, in Prism's own console.
    pub fn power_on_by_hand(&self, uuid: &str) -> Result<()> {
        let state = self.store.state();
        let vm = state.vms.get(uuid).with_context(|| format!("Prism has no VM {uuid}"))?;
        self.store.hypervisor.power_on(&self.store.shape(vm))
    }

    /// Every task, in the order of acceptance.
    pub fn tasks(&self) -> Vec<TaskView> {
        let view = |task: &tasks::Task| TaskView {
            ext_id: task.ext_id.clone(),
            operation: task.operation.to_owned(),
            status: task.progress.name().to_owned(),
            has_ended: task.has_ended(),
        };
        self.store.raw_state().tasks.iter().map(view).collect()
    }

    /// Every call so far, in the order of the answers.
    pub fn calls(&self) -> Vec<Call> {
        self.store.raw_state().calls.clone()
    }

    fn view(&self, vm: &Vm) -> VmView {
        let disk = |disk: &model::Disk| DiskView {
            device_uuid: disk.device_uuid.clone(),
            vmdisk_uuid: disk.vmdisk_uuid.clone(),
            bus: disk.address.bus.clone(),
            index: disk.address.index,
            size_bytes: disk.size_bytes,
            path: self.store.disk_path(disk),
        };
        VmView {
            uuid: vm.uuid.clone(),
            name: vm.name().to_owned(),
            description: vm.text("description").to_owned(),
            is_on: vm.was_on,
            etag: vm.etag(),
            disks: vm.disks_by_address().into_iter().map(disk).collect(),
            macs: vm.nics.iter().map(|nic| nic.mac.clone()).collect(),
        }
    }
}

impl Drop for Prism {
    fn drop(&mut self) {
        self.store.raw_state().stopping = true;
        self.store.notify();
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}
