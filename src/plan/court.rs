//! The plan court: a Terraform plan is judged before anybody applies it, and what it may have done to others after that.
//!
//! One state holds the VMs of many. A plan that is to create one VM may also delete, restart or empty another, because somebody changed
//! something by hand, or because the provider compares disks by their place in a list. Such a plan is refused, with the address and the
//! reason. The input is what `terraform show -json` prints of a saved plan (HashiCorp's "JSON Output Format", format 1.x; OpenTofu's is the
//! same). What is not known here is refused, not guessed.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// Resources that are VMs.
const VM_TYPES: [&str; 2] = ["nutanix_virtual_machine_v2", "nutanix_virtual_machine"];

/// Attributes of a VM that may change without touching its power, boot, disks or NICs. All others are taken to be dangerous.
const HARMLESS: [&str; 6] = ["categories", "description", "name", "owner_reference", "project", "project_reference"];

/// What a plan would do, and whether it may.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// `sha256:` over every change of the plan: the same changes have the same digest, whatever commit or pipeline they come from.
    pub digest: String,
    /// In a few words, for a person.
    pub summary: String,
    /// The plan creates the VM that was asked for.
    pub creates_target: bool,
    /// Why it must not be applied; empty = nothing speaks against it. Each names an address.
    pub refused: Vec<String>,
    /// What was changed outside of Terraform since it last looked.
    pub drift: Vec<String>,
    /// The VMs that the state held before, to look at them again afterwards.
    pub others: Vec<OtherVm>,
}

/// A VM that the plan is not about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherVm {
    /// Its address in the Terraform code.
    pub address: String,
    /// Prism's identifier.
    pub ext_id: String,
    /// Prism's identifiers of its disks.
    pub disks: BTreeSet<String>,
}

/// Why a plan could not be judged.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CourtError {
    #[error("the plan file is not what `terraform show -json` prints of a plan: {0}")]
    Malformed(String),
    #[error("the plan file has format {0:?}, and Drover judges format 1.x: update Drover, or use an older Terraform")]
    UnknownFormat(String),
}

/// The plan as Terraform prints it, as far as it matters.
#[derive(Deserialize)]
struct Plan {
    format_version: String,
    #[serde(default)]
    errored: bool,
    #[serde(default)]
    resource_changes: Vec<ResourceChange>,
    #[serde(default)]
    resource_drift: Vec<ResourceChange>,
}

#[derive(Deserialize)]
struct ResourceChange {
    address: String,
    #[serde(default)]
    mode: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    provider_name: String,
    #[serde(default)]
    deposed: Option<String>,
    change: Change,
}

#[derive(Deserialize)]
struct Change {
    actions: Vec<Action>,
    #[serde(default)]
    before: Value,
    #[serde(default)]
    after: Value,
    #[serde(default)]
    after_unknown: Value,
    #[serde(default)]
    before_sensitive: Value,
    #[serde(default)]
    after_sensitive: Value,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Action {
    NoOp,
    Create,
    Read,
    Update,
    Delete,
    Forget,
    /// Anything that a later Terraform may do.
    #[serde(other)]
    Unknown,
}

/// Judges the plan that is to create the VM whose description bears `uid`.
pub fn judge(plan_json: &[u8], uid: &str) -> Result<Verdict, CourtError> {
    let plan: Plan = serde_json::from_slice(plan_json).map_err(|error| CourtError::Malformed(error.to_string()))?;
    if !plan.format_version.starts_with("1.") {
        return Err(CourtError::UnknownFormat(plan.format_version));
    }
    let mut refused: Vec<String> = plan.resource_changes.iter().filter_map(|change| change.refusal(uid)).collect();
    if plan.errored {
        refused.push("the plan is incomplete: Terraform met an error while planning".into());
    }
    Ok(Verdict {
        digest: digest(&plan.resource_changes),
        summary: summary(&plan.resource_changes),
        creates_target: plan.resource_changes.iter().any(|change| change.creates(uid)),
        refused,
        drift: plan.resource_drift.iter().map(ResourceChange::drift).collect(),
        others: plan.resource_changes.iter().filter_map(|change| change.other_vm(uid)).collect(),
    })
}

/// What became of the others: VMs that are gone, and disks that are. `now` tells a VM's disks, and `None` if there is no such VM.
pub fn harm(others: &[OtherVm], now: impl Fn(&str) -> Option<BTreeSet<String>>) -> Vec<String> {
    let harmed = |vm: &OtherVm| match now(&vm.ext_id) {
        None => Some(format!("{}: the VM {} is gone from Prism", vm.address, vm.ext_id)),
        Some(disks) => {
            let gone: Vec<&str> = vm.disks.difference(&disks).map(String::as_str).collect();
            let text = || format!("{}: disks of VM {} are gone: {}", vm.address, vm.ext_id, gone.join(", "));
            (!gone.is_empty()).then(text)
        }
    };
    others.iter().filter_map(harmed).collect()
}

impl ResourceChange {
    fn does(&self, action: Action) -> bool {
        self.change.actions.contains(&action)
    }

    fn is_managed(&self) -> bool {
        self.mode != "data"
    }

    fn is_vm(&self) -> bool {
        self.is_managed() && VM_TYPES.contains(&self.kind.as_str())
    }

    fn changes_anything(&self) -> bool {
        self.is_managed() && self.change.actions.iter().any(|action| !matches!(action, Action::NoOp | Action::Read))
    }

    /// The VM that this migration asked for, which its description tells.
    fn is_target(&self, uid: &str) -> bool {
        let bears = |state: &Value| state["description"].as_str().is_some_and(|text| text.contains(uid));
        self.is_vm() && (bears(&self.change.after) || bears(&self.change.before))
    }

    fn creates(&self, uid: &str) -> bool {
        self.is_target(uid) && self.change.actions == [Action::Create]
    }

    /// Why this change must not be made.
    fn refusal(&self, uid: &str) -> Option<String> {
        if !self.changes_anything() {
            return None;
        }
        let address = match &self.deposed {
            Some(deposed) => format!("{} (deposed {deposed})", self.address),
            None => self.address.clone(),
        };
        let why = if self.does(Action::Unknown) {
            "would do what this version of Drover does not know".to_owned()
        } else if self.is_vm() {
            self.refusal_of_vm(uid)?
        } else if self.kind.starts_with("nutanix_") && (self.does(Action::Delete) || self.does(Action::Forget)) {
            format!("would be {}: VMs may depend on it", self.loss())
        } else {
            return None;
        };
        Some(format!("{address} {why}"))
    }

    fn refusal_of_vm(&self, uid: &str) -> Option<String> {
        if self.does(Action::Delete) || self.does(Action::Forget) {
            return Some(format!("is a VM and would be {}", self.loss()));
        }
        if self.does(Action::Create) {
            let on = self.is_target(uid) && self.change.after["power_state"] != "OFF";
            return on.then(|| "is the target and would be created powered on: its power_state must be \"OFF\"".into());
        }
        let changed: Vec<String> =
            self.changed().into_iter().filter(|name| !HARMLESS.contains(&name.as_str())).collect();
        (!changed.is_empty()).then(|| {
            format!(
                "is a VM and would be changed in {}: that may restart it, or take disks or NICs from it",
                changed.join(", ")
            )
        })
    }

    fn loss(&self) -> &'static str {
        match (self.does(Action::Create), self.does(Action::Delete)) {
            (true, _) => "deleted and created anew",
            (false, true) => "deleted",
            (false, false) => "forgotten by Terraform",
        }
    }

    /// Attributes that differ, or whose new value is not known yet.
    fn changed(&self) -> Vec<String> {
        let keys = |value: &Value| -> Vec<String> {
            value.as_object().map(|fields| fields.keys().cloned().collect()).unwrap_or_default()
        };
        let unknown = &self.change.after_unknown;
        let all: BTreeSet<String> =
            [&self.change.before, &self.change.after, unknown].into_iter().flat_map(keys).collect();
        let differs = |name: &String| {
            let name = name.as_str();
            self.change.before[name] != self.change.after[name] || is_marked(&unknown[name])
        };
        all.into_iter().filter(differs).collect()
    }

    fn drift(&self) -> String {
        if self.does(Action::Delete) {
            return format!("{} was deleted outside of Terraform", self.address);
        }
        format!("{} was changed outside of Terraform: {}", self.address, self.changed().join(", "))
    }

    fn other_vm(&self, uid: &str) -> Option<OtherVm> {
        if !self.is_vm() || self.is_target(uid) {
            return None;
        }
        let before = &self.change.before;
        let ext_id = [&before["ext_id"], &before["id"]].into_iter().find_map(Value::as_str)?.to_owned();
        let list = |name: &str, id: &str| -> Vec<String> {
            let disks = before[name].as_array().into_iter().flatten();
            disks.filter_map(|disk| disk[id].as_str()).map(str::to_owned).collect()
        };
        // A VM that the plan itself changes is judged before; what remains is what nobody was to touch.
        let disks = list("disks", "ext_id").into_iter().chain(list("disk_list", "uuid")).collect();
        Some(OtherVm { address: self.address.clone(), ext_id, disks })
    }

    /// The change as it is hashed. Sensitive values are left out: a digest is shown to everybody, and must not tell a guess from a hit.
    fn canonical(&self) -> Value {
        json!({
            "address": self.address,
            "deposed": self.deposed,
            "type": self.kind,
            "provider": self.provider_name,
            "actions": self.change.actions,
            "before": masked(&self.change.before, &self.change.before_sensitive),
            "after": masked(&self.change.after, &self.change.after_sensitive),
            "afterUnknown": self.change.after_unknown,
        })
    }
}

/// Whether anything in a tree of marks is true.
fn is_marked(marks: &Value) -> bool {
    match marks {
        Value::Bool(marked) => *marked,
        Value::Array(members) => members.iter().any(is_marked),
        Value::Object(fields) => fields.values().any(is_marked),
        Value::Null | Value::Number(_) | Value::String(_) => false,
    }
}

/// The value without what the tree of marks calls sensitive.
fn masked(value: &Value, marks: &Value) -> Value {
    match (value, marks) {
        (_, Value::Bool(true)) => Value::String("(sensitive)".into()),
        (Value::Object(fields), Value::Object(_)) => {
            let fields: Map<String, Value> =
                fields.iter().map(|(name, value)| (name.clone(), masked(value, &marks[name.as_str()]))).collect();
            Value::Object(fields)
        }
        (Value::Array(members), Value::Array(_)) => {
            members.iter().enumerate().map(|(index, member)| masked(member, &marks[index])).collect()
        }
        (plain, _) => plain.clone(),
    }
}

fn digest(changes: &[ResourceChange]) -> String {
    let mut changes: Vec<Value> =
        changes.iter().filter(|change| change.changes_anything()).map(ResourceChange::canonical).collect();
    changes.sort_by_key(ToString::to_string);
    let mut hash = Sha256::new();
    for change in changes {
        // `serde_json::Value` keeps its keys sorted, which makes the text canonical.
        hash.update(change.to_string());
        hash.update([0]);
    }
    format!("sha256:{:x}", hash.finalize())
}

fn summary(changes: &[ResourceChange]) -> String {
    let managed: Vec<&ResourceChange> = changes.iter().filter(|change| change.is_managed()).collect();
    let count = |action| managed.iter().filter(|change| change.does(action)).count();
    format!(
        "{} to create, {} to change, {} to delete",
        count(Action::Create),
        count(Action::Update),
        count(Action::Delete)
    )
}

#[cfg(test)]
mod tests;
