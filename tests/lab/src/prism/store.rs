//! The one store behind both APIs: inventory, VMs, tasks, and what was called. Requests are accepted here and carried out by
//! [`super::work`].

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use super::model::{Category, Disk, Inventory, Vm};
use super::switches::Switches;
use super::tasks::{Task, Work};
use super::v4::Refusal;
use crate::hypervisor::{Hypervisor, VmShape};

/// Everything that the simulator knows.
pub struct Store {
    pub inventory: Inventory,
    pub switches: Switches,
    /// Where `.acropolis` lies.
    pub export_root: PathBuf,
    pub hypervisor: Arc<dyn Hypervisor>,
    state: Mutex<State>,
    /// Signalled when a task is queued and when the simulator stops.
    changed: Condvar,
}

/// What changes.
#[derive(Default)]
pub struct State {
    pub vms: BTreeMap<String, Vm>,
    pub categories: Vec<Category>,
    /// In the order in which they were accepted.
    pub tasks: Vec<Task>,
    pub queue: VecDeque<(String, Work)>,
    pub calls: Vec<Call>,
    pub container: Container,
    /// The list that the container inherits if it has none of its own. Absent: not shown, as the real one may not.
    pub cluster_whitelist: Option<Vec<String>>,
    /// What each `NTNX-Request-Id` led to.
    answered: HashMap<String, Answered>,
    pub stopping: bool,
}

/// What changes of the storage container.
#[derive(Default)]
pub struct Container {
    /// Its own list, as v4 shows it.
    pub whitelist: Option<Vec<Value>>,
    pub version: u64,
}

impl Container {
    /// What a change of it has to name.
    pub fn etag(&self) -> String {
        format!("YXBwbGljYXRpb24vanNvbg==:c{}", self.version)
    }
}

struct Answered {
    method: String,
    path: String,
    task: String,
}

/// A call that was made, as the tests see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub method: String,
    /// With the query, as it came.
    pub path: String,
    pub request_id: Option<String>,
    pub if_match: Option<String>,
    /// Status of the answer that the client got.
    pub status: u16,
}

/// The headers of a change that decide whether it is accepted.
#[derive(Clone, Debug)]
pub struct Intent {
    pub method: String,
    pub path: String,
    pub request_id: Option<String>,
    pub if_match: Option<String>,
}

impl Store {
    /// An empty store.
    pub fn new(inventory: Inventory, export_root: PathBuf, hypervisor: Arc<dyn Hypervisor>) -> Self {
        Self {
            inventory,
            switches: Switches::default(),
            export_root,
            hypervisor,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Locks the state with every VM's power state looked up.
    pub fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.raw_state();
        for vm in state.vms.values_mut() {
            let is_on = self.hypervisor.is_on(&vm.uuid);
            if is_on != vm.was_on {
                vm.was_on = is_on;
                vm.touch();
            }
        }
        state
    }

    /// Locks the state as it is.
    pub fn raw_state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for [`Store::notify`], at most as long as told.
    pub fn wait<'a>(&self, state: MutexGuard<'a, State>, at_most: std::time::Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, at_most).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Wakes the worker.
    pub fn notify(&self) {
        self.changed.notify_all();
    }

    /// Where a disk's bytes are.
    pub fn disk_path(&self, disk: &Disk) -> PathBuf {
        self.export_root.join(".acropolis/vmdisk").join(&disk.vmdisk_uuid)
    }

    /// What a hypervisor needs to know to run a VM.
    pub fn shape(&self, vm: &Vm) -> VmShape {
        let counts = ["numSockets", "numCoresPerSocket", "numThreadsPerCore"].map(|key| vm.number(key).unwrap_or(1));
        VmShape {
            uuid: vm.uuid.clone(),
            name: vm.name().to_owned(),
            vcpus: u32::try_from(counts.iter().product::<u64>()).unwrap_or(u32::MAX),
            memory_bytes: vm.number("memorySizeBytes").unwrap_or_default(),
            disks: vm.disks_by_address().into_iter().map(|disk| self.disk_path(disk)).collect(),
            macs: vm.nics.iter().map(|nic| nic.mac.clone()).collect(),
        }
    }

    /// Accepts a change and queues it; the answer is its task. The same request id leads to the same task, whatever became of it.
    /// `guarded` changes need the VM's current ETag. It is checked now, not when the task runs.
    pub fn accept(&self, intent: &Intent, guarded: bool, work: Work) -> Result<String, Refusal> {
        let mut state = self.state();
        if let Some(task) = state.repeated(intent)? {
            return Ok(task);
        }
        let name = match (&work, guarded) {
            (Work::Create { request, .. }, _) => {
                request.settings.get("name").and_then(Value::as_str).map(str::to_owned)
            }
            (Work::UpdateContainer { container, .. }, _) => {
                check_etag(intent, true, &state.container.etag(), &format!("storage container {container}"))?;
                Some(self.inventory.container.name.clone())
            }
            (work, guarded) => {
                let vm = state.vm(work.entity())?;
                check_etag(intent, guarded, &vm.etag(), &format!("VM {}", vm.uuid))?;
                Some(vm.name().to_owned())
            }
        };
        let task = Task::new(&work, &name.unwrap_or_default());
        let ext_id = task.ext_id.clone();
        state.tasks.push(task);
        state.queue.push_back((ext_id.clone(), work));
        state.remember(intent, &ext_id);
        self.notify();
        Ok(ext_id)
    }
}

fn check_etag(intent: &Intent, guarded: bool, etag: &str, what: &str) -> Result<(), Refusal> {
    if !guarded || intent.if_match.as_deref() == Some(etag) {
        return Ok(());
    }
    Err(Refusal::EtagMismatch { what: what.to_owned(), given: intent.if_match.clone() })
}

impl State {
    /// A VM, or the refusal for one that is not there.
    pub fn vm(&self, uuid: &str) -> Result<&Vm, Refusal> {
        self.vms.get(uuid).ok_or_else(|| Refusal::NotFound(format!("VM {uuid}")))
    }

    /// A VM that a task is about; it may have gone meanwhile.
    pub fn vm_mut(&mut self, uuid: &str) -> Result<&mut Vm, String> {
        self.vms.get_mut(uuid).ok_or_else(|| format!("VM {uuid} is gone"))
    }

    /// A task by its external id.
    pub fn task_mut(&mut self, ext_id: &str) -> Option<&mut Task> {
        self.tasks.iter_mut().find(|task| task.ext_id == ext_id)
    }

    fn repeated(&self, intent: &Intent) -> Result<Option<String>, Refusal> {
        match intent.request_id.as_ref().and_then(|id| self.answered.get(id)) {
            None => Ok(None),
            Some(before) if before.method == intent.method && before.path == intent.path => {
                Ok(Some(before.task.clone()))
            }
            Some(before) => Err(Refusal::Invalid(format!(
                "this NTNX-Request-Id was used for {} {}, it cannot be used for {} {}",
                before.method, before.path, intent.method, intent.path
            ))),
        }
    }

    fn remember(&mut self, intent: &Intent, task: &str) {
        if let Some(id) = &intent.request_id {
            let answered = Answered { method: intent.method.clone(), path: intent.path.clone(), task: task.to_owned() };
            self.answered.insert(id.clone(), answered);
        }
    }
}
