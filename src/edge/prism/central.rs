//! Prism Central, API v4.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::Method;
use serde_json::{Value, json};

use super::PrismError;
use super::http::{Access, Answer, Call, Server};
use crate::render::odata::quoted;

/// The newest minor version of the v4 API whose shapes this code knows.
const NEWEST_MINOR: u32 = 2;
/// The oldest that will do: below it the Terraform provider 2.4, whose attributes our files have, does not negotiate and gets 404.
const OLDEST_MINOR: u32 = 2;
/// Most entries that a v4 list gives in one page.
const PAGE: usize = 100;

/// A client for Prism Central. Clones share what was found out about the server.
#[derive(Clone)]
pub struct PrismCentral {
    pub(super) server: Server,
    /// Path prefix of each namespace, in the newest version that both sides know.
    roots: Arc<Mutex<HashMap<String, String>>>,
}

/// A VM as v4 shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    pub ext_id: String,
    pub name: String,
    pub description: String,
    pub power_state: PowerState,
    /// In the order of the answer, which is not that of their indexes.
    pub disks: Vec<VmDisk>,
    pub nics: Vec<VmNic>,
}

/// Whether a VM runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerState {
    On,
    Off,
    Paused,
    /// Prism does not know, or says a word that is not known here.
    Undetermined,
}

/// A disk of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmDisk {
    /// `device_uuid` in the words of v2.
    pub ext_id: String,
    pub bus: String,
    pub index: u32,
    pub size_bytes: u64,
}

/// A network interface of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmNic {
    pub mac: String,
    /// Addresses that AHV learned from the guest's traffic.
    pub ips: Vec<String>,
}

/// Who a storage container lets in over NFS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageContainer {
    pub name: String,
    pub cluster_ext_id: String,
    /// It has no list of its own: the cluster's counts.
    pub inherits_whitelist: bool,
    /// Addresses and networks, like `192.0.2.7/32`; or host names.
    pub whitelist: Vec<String>,
}

/// Nutanix Guest Tools on a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestTools {
    pub is_installed: bool,
    /// Their CD-ROM is in the VM's drive.
    pub is_iso_inserted: bool,
}

/// How far a task is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// Queued, running, or in a state that this version does not know.
    Open,
    Succeeded,
    Failed {
        message: String,
    },
}

impl PrismCentral {
    /// A client.
    pub fn new(access: &Access) -> Result<Self, PrismError> {
        Ok(Self { server: Server::new(access)?, roots: Arc::default() })
    }

    /// Identifier of the AHV cluster of that name. Prism Central lists itself too.
    pub async fn find_cluster(&self, name: &str) -> Result<Option<String>, PrismError> {
        let found = self.list("clustermgmt", "config/clusters", &named(name)).await?;
        let is_prism_central =
            |cluster: &Value| list(&cluster["config"]["clusterFunction"]).iter().any(|word| word == "PRISM_CENTRAL");
        let ids = found.iter().filter(|cluster| cluster["name"] == name && !is_prism_central(cluster));
        only(&format!("cluster {name:?}"), ids.filter_map(|cluster| text(&cluster["extId"])).collect())
    }

    /// Identifier of the storage container of that name in a cluster.
    pub async fn find_container(&self, name: &str, cluster_ext_id: &str) -> Result<Option<String>, PrismError> {
        let found = self.list("clustermgmt", "config/storage-containers", &named(name)).await?;
        let here =
            found.iter().filter(|container| container["name"] == name && container["clusterExtId"] == cluster_ext_id);
        let id = |container: &Value| text(&container["containerExtId"]).or_else(|| text(&container["extId"]));
        only(&format!("storage container {name:?}"), here.filter_map(id).collect())
    }

    /// Identifier of the subnet of that name in a cluster. A subnet that names no cluster is in all of them.
    pub async fn find_subnet(&self, name: &str, cluster_ext_id: &str) -> Result<Option<String>, PrismError> {
        let found = self.list("networking", "config/subnets", &named(name)).await?;
        let is_here = |subnet: &Value| {
            let (one, several) = (&subnet["clusterReference"], list(&subnet["clusterReferenceList"]));
            one == cluster_ext_id
                || several.iter().any(|cluster| cluster == cluster_ext_id)
                || one.is_null() && several.is_empty()
        };
        let here = found.iter().filter(|subnet| subnet["name"] == name && is_here(subnet));
        only(&format!("subnet {name:?}"), here.filter_map(|subnet| text(&subnet["extId"])).collect())
    }

    /// Identifier of a category.
    pub async fn find_category(&self, key: &str, value: &str) -> Result<Option<String>, PrismError> {
        let filter = format!("key eq {} and value eq {}", quoted(key), quoted(value));
        let found = self.list("prism", "config/categories", &filter).await?;
        let same = found.iter().filter(|category| category["key"] == key && category["value"] == value);
        only(&format!("category {key}:{value}"), same.filter_map(|category| text(&category["extId"])).collect())
    }

    /// Identifiers of all VMs of that name: names are not unique.
    pub async fn find_vms_by_name(&self, name: &str) -> Result<Vec<String>, PrismError> {
        let found = self.list("vmm", "ahv/config/vms", &named(name)).await?;
        Ok(found.iter().filter(|vm| vm["name"] == name).filter_map(|vm| text(&vm["extId"])).collect())
    }

    /// Identifiers of all VMs, each with those of its disks.
    pub async fn disks_of_all_vms(&self) -> Result<Vec<(String, BTreeSet<String>)>, PrismError> {
        let found = self.list("vmm", "ahv/config/vms", "").await?;
        let disks = |vm: &Value| list(&vm["disks"]).iter().filter_map(|disk| text(&disk["extId"])).collect();
        Ok(found.iter().filter_map(|vm| Some((text(&vm["extId"])?, disks(vm)))).collect())
    }

    /// A VM and its ETag; `None` = there is no such VM.
    pub async fn get_vm(&self, ext_id: &str) -> Result<Option<(Vm, String)>, PrismError> {
        let tail = vm_path(ext_id);
        let answer = match self.call("vmm", Call::get(&tail, &[])).await {
            // Only the API's own word makes a VM gone: a gateway whose services are being started says 404 too.
            Err(PrismError::NotFound { by_api: true, .. }) => return Ok(None),
            other => other?,
        };
        let what = "a VM without extId, or a disk without identity or size";
        let vm = vm(&answer.body["data"]).ok_or_else(|| malformed(&tail, what))?;
        Ok(Some((vm, etag_of(&answer, &tail)?)))
    }

    /// Orders a VM to be powered on; the identifier of the task. The same request id gives the same task, and one effect.
    pub async fn power_on(&self, ext_id: &str, etag: &str, request_id: &str) -> Result<String, PrismError> {
        self.vm_action(ext_id, "power-on", etag, request_id).await
    }

    /// Orders a VM to be powered off, hard; the identifier of the task.
    pub async fn power_off(&self, ext_id: &str, etag: &str, request_id: &str) -> Result<String, PrismError> {
        self.vm_action(ext_id, "power-off", etag, request_id).await
    }

    /// Asks a VM's guest to power off, by ACPI; the identifier of the task.
    pub async fn shut_down(&self, ext_id: &str, etag: &str, request_id: &str) -> Result<String, PrismError> {
        self.vm_action(ext_id, "shutdown", etag, request_id).await
    }

    /// Changes a VM's description, and nothing else, if the VM still is what `etag` says; the identifier of the task.
    pub async fn describe(
        &self,
        ext_id: &str,
        description: &str,
        etag: &str,
        request_id: &str,
    ) -> Result<String, PrismError> {
        let tail = vm_path(ext_id);
        // An update carries the whole VM. Should this be another state than `etag`, Prism refuses it.
        let mut body = self.call("vmm", Call::get(&tail, &[])).await?.body["data"].take();
        body["description"] = Value::String(description.into());
        self.change("vmm", Method::PUT, &tail, &body, etag, request_id).await
    }

    /// A storage container and its ETag; `None` = there is no such container.
    pub async fn get_container(&self, ext_id: &str) -> Result<Option<(StorageContainer, String)>, PrismError> {
        let tail = container_path(ext_id);
        let answer = match self.call("clustermgmt", Call::get(&tail, &[])).await {
            Err(PrismError::NotFound { by_api: true, .. }) => return Ok(None),
            other => other?,
        };
        let data = &answer.body["data"];
        let container = StorageContainer {
            name: text(&data["name"]).unwrap_or_default(),
            cluster_ext_id: text(&data["clusterExtId"]).unwrap_or_default(),
            // Told by no word at all is the same as inherited: then there is nothing of its own to add to.
            inherits_whitelist: data["isNfsWhitelistInherited"] != false,
            whitelist: list(&data["nfsWhitelistAddress"]).iter().filter_map(whitelisted).collect(),
        };
        Ok(Some((container, etag_of(&answer, &tail)?)))
    }

    /// The list that storage containers without one of their own inherit; `None` = Prism does not tell it.
    pub async fn cluster_whitelist(&self, cluster_ext_id: &str) -> Result<Option<Vec<String>>, PrismError> {
        let tail = format!("config/clusters/{cluster_ext_id}");
        let answer = self.call("clustermgmt", Call::get(&tail, &[])).await?;
        let told = answer.body["data"]["network"]["nfsSubnetWhitelist"].as_array();
        Ok(told.map(|entries| entries.iter().filter_map(text).collect()))
    }

    /// Puts an address on a storage container's own list, or takes it off, if the container still is what `etag` says; the identifier of
    /// the task.
    pub async fn set_whitelisted(
        &self,
        container_ext_id: &str,
        address: std::net::IpAddr,
        wanted: bool,
        etag: &str,
        request_id: &str,
    ) -> Result<String, PrismError> {
        let tail = container_path(container_ext_id);
        let mut body = self.call("clustermgmt", Call::get(&tail, &[])).await?.body["data"].take();
        let (family, bits) = if address.is_ipv4() { ("ipv4", 32) } else { ("ipv6", 128) };
        let mut entries = list(&body["nfsWhitelistAddress"]).to_vec();
        let own = format!("{address}/{bits}");
        entries.retain(|entry| whitelisted(entry).as_ref() != Some(&own));
        if wanted {
            entries.push(json!({ family: { "value": address.to_string(), "prefixLength": bits } }));
        }
        body["nfsWhitelistAddress"] = Value::Array(entries);
        self.change("clustermgmt", Method::PUT, &tail, &body, etag, request_id).await
    }

    /// A VM's guest tools, and the ETag that an order about them needs.
    pub async fn guest_tools(&self, vm_ext_id: &str) -> Result<(GuestTools, String), PrismError> {
        let tail = format!("{}/guest-tools", vm_path(vm_ext_id));
        let answer = self.call("vmm", Call::get(&tail, &[])).await?;
        let data = &answer.body["data"];
        let tools =
            GuestTools { is_installed: data["isInstalled"] == true, is_iso_inserted: data["isIsoInserted"] == true };
        Ok((tools, etag_of(&answer, &tail)?))
    }

    /// Puts the guest tools' CD-ROM into a VM's drive; the identifier of the task.
    pub async fn mount_guest_tools(&self, vm: &str, etag: &str, request_id: &str) -> Result<String, PrismError> {
        let tail = format!("{}/guest-tools/$actions/insert-iso", vm_path(vm));
        let body = json!({ "capabilities": CAPABILITIES, "isConfigOnly": false });
        self.change("vmm", Method::POST, &tail, &body, etag, request_id).await
    }

    /// Installs the guest tools with an account of the guest, without a restart; the identifier of the task.
    pub async fn install_guest_tools(
        &self,
        vm: &str,
        username: &str,
        password: &str,
        etag: &str,
        request_id: &str,
    ) -> Result<String, PrismError> {
        let tail = format!("{}/guest-tools/$actions/install", vm_path(vm));
        let body = json!({
            "capabilities": CAPABILITIES,
            "credential": { "username": username, "password": password },
            "rebootPreference": { "scheduleType": "SKIP" },
        });
        self.change("vmm", Method::POST, &tail, &body, etag, request_id).await
    }

    /// Whether a task on a VM is queued or running.
    pub async fn has_open_task(&self, vm_ext_id: &str) -> Result<bool, PrismError> {
        let filter = format!("entitiesAffected/any(e:e/extId eq '{vm_ext_id}')");
        let tasks = self.list("prism", "config/tasks", &filter).await?;
        Ok(tasks.iter().any(|task| state_of(task) == TaskState::Open))
    }

    async fn vm_action(&self, ext_id: &str, action: &str, etag: &str, request_id: &str) -> Result<String, PrismError> {
        let tail = format!("{}/$actions/{action}", vm_path(ext_id));
        self.change("vmm", Method::POST, &tail, &Value::Object(serde_json::Map::new()), etag, request_id).await
    }

    /// Orders a change of what is at `tail`; the identifier of the task.
    async fn change(
        &self,
        namespace: &str,
        method: Method,
        tail: &str,
        body: &Value,
        etag: &str,
        request_id: &str,
    ) -> Result<String, PrismError> {
        let call =
            Call { method, request_id: Some(request_id), etag: Some(etag), body: Some(body), ..Call::get(tail, &[]) };
        let answer = self.call(namespace, call).await?;
        text(&answer.body["data"]["extId"]).ok_or_else(|| malformed(tail, "there is no task"))
    }

    /// How far a task is.
    pub async fn task(&self, ext_id: &str) -> Result<TaskState, PrismError> {
        let answer = self.call("prism", Call::get(&format!("config/tasks/{ext_id}"), &[])).await?;
        Ok(state_of(&answer.body["data"]))
    }

    /// Makes a call whose path is given below the root of its namespace.
    ///
    /// A 404 may mean that there is no such thing, or that there is no such version any more: the version is asked for anew then, and if
    /// it is another one by now the call is made again. Nothing of the first one was carried out: its path led nowhere.
    async fn call(&self, namespace: &str, call: Call<'_>) -> Result<Answer, PrismError> {
        let known = self.roots.lock().unwrap_or_else(PoisonError::into_inner).get(namespace).cloned();
        let root = match &known {
            Some(root) => root.clone(),
            None => self.negotiate(namespace).await?,
        };
        let answer = self.server.call(&Call { path: &format!("{root}/{}", call.path), ..call.clone() }).await;
        if !matches!(answer, Err(PrismError::NotFound { .. })) || known.is_none() {
            return answer;
        }
        let now = self.negotiate(namespace).await?;
        if now == root {
            return answer;
        }
        self.server.call(&Call { path: &format!("{now}/{}", call.path), ..call }).await
    }

    /// Asks for the version of a namespace and remembers the path prefix that follows.
    async fn negotiate(&self, namespace: &str) -> Result<String, PrismError> {
        let path = format!("/api/{namespace}/unversioned/info");
        let too_old = |found: String| PrismError::TooOld {
            tried: format!("OPTIONS {path}"),
            found,
            needed: format!("v4.{OLDEST_MINOR}"),
        };
        let answer = match self.server.call(&Call { method: Method::OPTIONS, ..Call::get(&path, &[]) }).await {
            Err(PrismError::NotFound { .. }) => return Err(too_old("there is no v4 API".into())),
            Err(PrismError::Refused { status: status @ (405 | 410 | 501), .. }) => {
                return Err(too_old(format!("it does not tell the version of its v4 API (status {status})")));
            }
            other => other?,
        };
        let version = answer.body["data"].as_str().unwrap_or_default();
        let minor = version.strip_prefix("v4.").and_then(|minor| minor.parse::<u32>().ok());
        let minor = minor.filter(|minor| *minor >= OLDEST_MINOR);
        let minor = minor.ok_or_else(|| too_old(format!("the newest version is {version:?}")))?;
        let root = format!("/api/{namespace}/v4.{}", minor.min(NEWEST_MINOR));
        self.roots.lock().unwrap_or_else(PoisonError::into_inner).insert(namespace.into(), root.clone());
        Ok(root)
    }

    /// All entries of a list that an OData filter selects, over all pages. An empty filter selects all.
    async fn list(&self, namespace: &str, kind: &str, filter: &str) -> Result<Vec<Value>, PrismError> {
        let limit = PAGE.to_string();
        let mut all = Vec::new();
        for page in 0_usize.. {
            let page = page.to_string();
            let pages = [("$limit", limit.as_str()), ("$page", page.as_str())];
            let filters = (!filter.is_empty()).then_some(("$filter", filter));
            let query: Vec<(&str, &str)> = pages.into_iter().chain(filters).collect();
            let answer = self.call(namespace, Call::get(kind, &query)).await?;
            let entries = answer.body["data"].as_array().cloned().unwrap_or_default();
            let is_last = entries.len() < PAGE;
            all.extend(entries);
            if is_last {
                break;
            }
        }
        Ok(all)
    }
}

/// What guest tools are for: nothing that Drover uses, so all that they offer.
const CAPABILITIES: [&str; 2] = ["SELF_SERVICE_RESTORE", "VSS_SNAPSHOT"];

fn vm_path(ext_id: &str) -> String {
    format!("ahv/config/vms/{ext_id}")
}

fn container_path(ext_id: &str) -> String {
    format!("config/storage-containers/{ext_id}")
}

fn malformed(tail: &str, why: &str) -> PrismError {
    PrismError::Malformed { tried: format!("Prism Central, {tail}"), why: why.into() }
}

fn etag_of(answer: &Answer, tail: &str) -> Result<String, PrismError> {
    answer.etag.clone().ok_or_else(|| malformed(tail, "there is no ETag"))
}

/// An entry of a storage container's list, as one text.
fn whitelisted(entry: &Value) -> Option<String> {
    let network = |family: &str, bits: u64| {
        let prefix = entry[family]["prefixLength"].as_u64().unwrap_or(bits);
        Some(format!("{}/{prefix}", entry[family]["value"].as_str()?))
    };
    network("ipv4", 32).or_else(|| network("ipv6", 128)).or_else(|| text(&entry["fqdn"]["value"]))
}

fn state_of(task: &Value) -> TaskState {
    match task["status"].as_str() {
        Some("SUCCEEDED") => TaskState::Succeeded,
        Some("FAILED" | "CANCELED") => {
            let message = text(&task["errorMessages"][0]["message"]).unwrap_or_else(|| "Prism gives no reason".into());
            TaskState::Failed { message }
        }
        Some(_) | None => TaskState::Open,
    }
}

/// An OData filter by name.
fn named(name: &str) -> String {
    format!("name eq {}", quoted(name))
}

/// What was found, if it is one and no more.
fn only(what: &str, mut ids: Vec<String>) -> Result<Option<String>, PrismError> {
    match ids.len() {
        0 | 1 => Ok(ids.pop()),
        count => Err(PrismError::Ambiguous { what: what.into(), count }),
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn vm(data: &Value) -> Option<Vm> {
    let disks: Option<Vec<VmDisk>> =
        list(&data["disks"]).iter().filter(|disk| disk["backingInfo"]["diskSizeBytes"].is_number()).map(disk).collect();
    Some(Vm {
        ext_id: text(&data["extId"])?,
        name: text(&data["name"]).unwrap_or_default(),
        description: text(&data["description"]).unwrap_or_default(),
        power_state: match data["powerState"].as_str() {
            Some("ON") => PowerState::On,
            Some("OFF") => PowerState::Off,
            Some("PAUSED") => PowerState::Paused,
            Some(_) | None => PowerState::Undetermined,
        },
        disks: disks?,
        nics: list(&data["nics"]).iter().map(nic).collect(),
    })
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn disk(disk: &Value) -> Option<VmDisk> {
    Some(VmDisk {
        ext_id: text(&disk["extId"])?,
        bus: text(&disk["diskAddress"]["busType"])?,
        index: u32::try_from(disk["diskAddress"]["index"].as_u64()?).ok()?,
        size_bytes: disk["backingInfo"]["diskSizeBytes"].as_u64()?,
    })
}

/// Newer servers show `nicBackingInfo`/`nicNetworkInfo`, older ones the pair without the prefix.
fn nic(nic: &Value) -> VmNic {
    let either = |new: &str, old: &str| if nic[new].is_null() { nic[old].clone() } else { nic[new].clone() };
    let backing = either("nicBackingInfo", "backingInfo");
    let network = either("nicNetworkInfo", "networkInfo");
    let learned = list(&network["ipv4Info"]["learnedIpAddresses"]).iter().filter_map(|ip| text(&ip["value"])).collect();
    VmNic { mac: text(&backing["macAddress"]).unwrap_or_default(), ips: learned }
}
