//! Tasks: every change is accepted at once and done later, and whoever asks sees it pass through its states.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::model::Nic;
use super::model::new_uuid;
use super::parse::{DiskRequest, VmRequest};
use super::v4;

/// How far a task has got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    Queued,
    Running,
    Succeeded,
    /// With the message that `errorMessages` shows.
    Failed(String),
}

impl Progress {
    /// The v4 spelling.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Queued => "QUEUED",
            Self::Running => "RUNNING",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed(_) => "FAILED",
        }
    }
}

/// What a task will do.
pub enum Work {
    Create {
        vm: String,
        request: Box<VmRequest>,
    },
    Update {
        vm: String,
        request: Box<VmRequest>,
    },
    Delete {
        vm: String,
    },
    PowerOn {
        vm: String,
    },
    PowerOff {
        vm: String,
    },
    /// ACPI: done when the button was pressed, whatever the guest does.
    ShutDown {
        vm: String,
    },
    AddDisk {
        vm: String,
        disk: DiskRequest,
    },
    ResizeDisk {
        vm: String,
        device_uuid: String,
        size_bytes: u64,
    },
    DeleteDisk {
        vm: String,
        device_uuid: String,
    },
    AddNic {
        vm: String,
        nic: Nic,
    },
    /// The NIC with the same uuid becomes this one.
    UpdateNic {
        vm: String,
        nic: Nic,
    },
    DeleteNic {
        vm: String,
        uuid: String,
    },
    /// Associates categories, or takes them away.
    Categories {
        vm: String,
        ext_ids: Vec<String>,
        associate: bool,
    },
    /// Guest tools: their CD-ROM is inserted and, if wanted, they are installed.
    GuestTools {
        vm: String,
        capabilities: Value,
        install: bool,
    },
    /// The storage container gets this list of its own.
    UpdateContainer {
        container: String,
        whitelist: Vec<Value>,
    },
}

impl Work {
    /// The VM, or the storage container, it is done to.
    pub fn entity(&self) -> &str {
        match self {
            Self::Create { vm, .. } | Self::Update { vm, .. } | Self::Delete { vm } | Self::PowerOn { vm } => vm,
            Self::PowerOff { vm } | Self::ShutDown { vm } | Self::AddDisk { vm, .. } => vm,
            Self::ResizeDisk { vm, .. } | Self::DeleteDisk { vm, .. } => vm,
            Self::AddNic { vm, .. } | Self::UpdateNic { vm, .. } | Self::DeleteNic { vm, .. } => vm,
            Self::Categories { vm, .. } | Self::GuestTools { vm, .. } => vm,
            Self::UpdateContainer { container, .. } => container,
        }
    }

    /// What kind of thing that is.
    pub fn rel(&self) -> &'static str {
        match self {
            Self::UpdateContainer { .. } => "clustermgmt:config:storage-container",
            _ => "vmm:ahv:config:vm",
        }
    }

    /// The name that the task bears.
    pub fn operation(&self) -> &'static str {
        match self {
            Self::Create { .. } => "CreateVm",
            Self::Update { .. } => "UpdateVm",
            Self::Delete { .. } => "DeleteVm",
            Self::PowerOn { .. } => "PowerOnVm",
            Self::PowerOff { .. } => "PowerOffVm",
            Self::ShutDown { .. } => "ShutdownVm",
            Self::AddDisk { .. } => "CreateDisk",
            Self::ResizeDisk { .. } => "UpdateDisk",
            Self::DeleteDisk { .. } => "DeleteDisk",
            Self::AddNic { .. } => "CreateNic",
            Self::UpdateNic { .. } => "UpdateNic",
            Self::DeleteNic { .. } => "DeleteNic",
            Self::Categories { associate: true, .. } => "AssociateCategories",
            Self::Categories { associate: false, .. } => "DisassociateCategories",
            Self::GuestTools { install: true, .. } => "InstallGuestTools",
            Self::GuestTools { install: false, .. } => "InsertGuestTools",
            Self::UpdateContainer { .. } => "UpdateStorageContainer",
        }
    }
}

/// One task. Nobody sees it finished before the third look, however fast it was, so that every client has to poll.
pub struct Task {
    /// `ZXJnb24=:` and a uuid; opaque to clients.
    pub ext_id: String,
    pub operation: &'static str,
    pub progress: Progress,
    entity: String,
    entity_name: String,
    rel: &'static str,
    looks: u32,
    created: Timestamp,
    completed: Option<Timestamp>,
}

impl Task {
    /// A queued task.
    pub fn new(work: &Work, entity_name: &str) -> Self {
        Self {
            ext_id: format!("ZXJnb24=:{}", new_uuid()),
            operation: work.operation(),
            progress: Progress::Queued,
            entity: work.entity().to_owned(),
            entity_name: entity_name.to_owned(),
            rel: work.rel(),
            looks: 0,
            created: Timestamp::now(),
            completed: None,
        }
    }

    /// Whether it has ended, whatever clients have seen.
    pub fn has_ended(&self) -> bool {
        matches!(self.progress, Progress::Succeeded | Progress::Failed(_))
    }

    /// Records its end.
    pub fn end(&mut self, outcome: Result<(), String>) {
        self.progress = outcome.map_or_else(Progress::Failed, |()| Progress::Succeeded);
        self.completed = Some(Timestamp::now());
    }

    /// The v4 object as this look shows it.
    pub fn look(&mut self) -> Value {
        self.looks = self.looks.saturating_add(1);
        let shown = match (self.looks, &self.progress) {
            (1, _) => Progress::Queued,
            (2, Progress::Succeeded | Progress::Failed(_)) => Progress::Running,
            (_, progress) => progress.clone(),
        };
        let mut task = json!({
            "extId": self.ext_id,
            "operation": self.operation,
            "operationDescription": self.operation,
            "status": shown.name(),
            "progressPercentage": match shown { Progress::Queued => 0, Progress::Running => 50, _ => 100 },
            "createdTime": self.created.to_string(),
            "entitiesAffected": [{
                "$objectType": "prism.v4.config.EntityReference",
                "extId": self.entity, "name": self.entity_name, "rel": self.rel,
            }],
        });
        match &shown {
            Progress::Queued | Progress::Running => {}
            Progress::Succeeded => task["completedTime"] = json!(self.completed.unwrap_or(self.created).to_string()),
            Progress::Failed(message) => {
                task["completedTime"] = json!(self.completed.unwrap_or(self.created).to_string());
                task["errorMessages"] = v4::app_messages("SIM-TASK", "TASK_FAILED", message);
                task["legacyErrorMessage"] = json!(message);
            }
        }
        task
    }
}
