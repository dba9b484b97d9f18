//! Prism Central: the v4 API, and nothing of v2.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, options, post};
use axum::{Extension, Json};
use serde_json::{Value, json};

use super::model::{Vm, new_uuid};
use super::odata::Filter;
use super::parse::{self, VmRequest};
use super::shapes;
use super::store::{Intent, Store};
use super::tasks::Work;
use super::v4::{self, Refusal};

type Answer = Result<Response, Refusal>;
type Params = Query<HashMap<String, String>>;
type Shared = State<Arc<Store>>;

const VMS: &str = "/api/vmm/{version}/ahv/config/vms";
const DEFAULT_LIMIT: usize = 50;
const MAX_LIMIT: usize = 100;

/// The routes. `{version}` has been checked before a handler runs.
pub fn router(store: Arc<Store>) -> Router {
    let vm = format!("{VMS}/{{vm}}");
    Router::new()
        .route("/api/{namespace}/unversioned/info", options(info))
        .route(VMS, get(list_vms).post(create_vm))
        .route(&vm, get(get_vm).put(update_vm).delete(delete_vm))
        .route(&format!("{vm}/$actions/{{action}}"), post(act))
        .route(&format!("{vm}/disks"), get(list_disks).post(create_disk))
        .route(&format!("{vm}/disks/{{disk}}"), get(get_disk).put(update_disk).delete(delete_disk))
        .route(&format!("{vm}/nics"), get(list_nics).post(create_nic))
        .route(&format!("{vm}/nics/{{nic}}"), get(get_nic).put(update_nic).delete(delete_nic))
        .route(&format!("{vm}/guest-tools"), get(get_guest_tools))
        .route(&format!("{vm}/guest-tools/$actions/{{action}}"), post(order_guest_tools))
        .route("/api/prism/{version}/config/categories", get(list_categories).post(create_category))
        .route("/api/prism/{version}/config/categories/{id}", get(get_category))
        .route("/api/prism/{version}/config/tasks", get(list_tasks))
        .route("/api/prism/{version}/config/tasks/{task}", get(get_task))
        .route("/api/clustermgmt/{version}/config/clusters", get(list_clusters))
        .route("/api/clustermgmt/{version}/config/clusters/{id}", get(get_cluster))
        .route("/api/clustermgmt/{version}/config/storage-containers", get(list_containers))
        .route("/api/clustermgmt/{version}/config/storage-containers/{id}", get(get_container).put(update_container))
        .route("/api/networking/{version}/config/subnets", get(list_subnets))
        .route("/api/networking/{version}/config/subnets/{id}", get(get_subnet))
        .fallback(unknown)
        .with_state(store.clone())
        .merge(super::disk_data::router(store))
}

async fn unknown(method: axum::http::Method, uri: axum::http::Uri) -> Refusal {
    Refusal::NotFound(format!("{method} {}", uri.path()))
}

async fn info(State(store): Shared) -> Response {
    Json(json!({ "data": format!("v4.{}", store.switches.max_minor()) })).into_response()
}

/// Filters and cuts out the page that was asked for.
fn page(answer: &str, kind: &str, mut entities: Vec<Value>, params: &HashMap<String, String>) -> Answer {
    if let Some(filter) = params.get("$filter") {
        let filter = Filter::parse(filter).map_err(Refusal::Invalid)?;
        entities.retain(|entity| filter.matches(entity));
    }
    let number = |key: &str, default: usize| match params.get(key) {
        None => Ok(default),
        Some(text) => text.parse().map_err(|_| Refusal::Invalid(format!("{key} is {text:?}, not a number"))),
    };
    let (page, limit) = (number("$page", 0)?, number("$limit", DEFAULT_LIMIT)?);
    if limit == 0 || limit > MAX_LIMIT {
        return Err(Refusal::Invalid(format!("$limit is {limit}, not between 1 and {MAX_LIMIT}")));
    }
    let total = entities.len();
    let shown = entities.into_iter().skip(page.saturating_mul(limit)).take(limit).collect();
    Ok(v4::many(answer, kind, shown, total))
}

/// The entity with this `extId`.
fn pick(answer: &str, kind: &str, entities: Vec<Value>, id: &str) -> Answer {
    let found = entities.into_iter().find(|entity| entity["extId"] == id);
    let entity = found.ok_or_else(|| Refusal::NotFound(format!("{kind} {id}")))?;
    Ok(v4::one(answer, kind, entity, None))
}

async fn list_vms(State(store): Shared, Query(params): Params) -> Answer {
    let vms = store.state().vms.values().map(|vm| shapes::vm(&store, vm)).collect();
    page("vmm.v4.ahv.config.ListVmsApiResponse", "vmm.v4.ahv.config.Vm", vms, &params)
}

async fn get_vm(State(store): Shared, Path((_, id)): Path<(String, String)>) -> Answer {
    let state = store.state();
    let vm = state.vm(&id)?;
    let body = shapes::vm(&store, vm);
    Ok(v4::one("vmm.v4.ahv.config.GetVmApiResponse", "vmm.v4.ahv.config.Vm", body, Some(&vm.etag())))
}

async fn create_vm(State(store): Shared, Extension(intent): Extension<Intent>, body: Bytes) -> Answer {
    let request = parse::vm(&body)?;
    check_cluster(&store, &request)?;
    check_categories(&store, &request)?;
    let work = Work::Create { vm: new_uuid(), request: Box::new(request) };
    Ok(v4::accepted("vmm.v4.ahv.config.CreateVmApiResponse", &store.accept(&intent, false, work)?))
}

fn check_cluster(store: &Store, request: &VmRequest) -> Result<(), Refusal> {
    let wanted = request.settings.get("cluster").and_then(|cluster| cluster["extId"].as_str()).unwrap_or_default();
    if wanted == store.inventory.cluster.uuid {
        return Ok(());
    }
    Err(Refusal::NotFound(format!("AHV cluster {wanted}")))
}

fn check_categories(store: &Store, request: &VmRequest) -> Result<(), Refusal> {
    let state = store.raw_state();
    let wanted = request.settings.get("categories").and_then(Value::as_array).into_iter().flatten();
    let is_known = |id: &Value| state.categories.iter().any(|category| *id == category.uuid);
    match wanted.map(|reference| &reference["extId"]).find(|id| !is_known(id)) {
        Some(id) => Err(Refusal::NotFound(format!("category {id}"))),
        None => Ok(()),
    }
}

async fn update_vm(
    State(store): Shared,
    Extension(intent): Extension<Intent>,
    Path((_, id)): Path<(String, String)>,
    body: Bytes,
) -> Answer {
    let request = parse::vm(&body)?;
    check_cluster(&store, &request)?;
    check_devices(store.state().vm(&id)?, &request)?;
    let work = Work::Update { vm: id, request: Box::new(request) };
    Ok(v4::accepted("vmm.v4.ahv.config.UpdateVmApiResponse", &store.accept(&intent, true, work)?))
}

/// Devices have paths of their own: an update may repeat them, but not change them.
fn check_devices(vm: &Vm, request: &VmRequest) -> Result<(), Refusal> {
    if let Some(disks) = &request.disks {
        let same = disks.len() == vm.disks.len()
            && vm.disks.iter().all(|disk| {
                disks.iter().any(|given| {
                    given.ext_id.as_deref() == Some(&disk.device_uuid) && given.size_bytes == disk.size_bytes
                })
            });
        if !same {
            return Err(Refusal::Invalid("disks are changed through /disks, not by updating the VM".into()));
        }
    }
    if request.nics.as_ref().is_some_and(|nics| nics.len() != vm.nics.len()) {
        return Err(Refusal::Invalid("NICs are changed through /nics, not by updating the VM".into()));
    }
    Ok(())
}

async fn delete_vm(
    State(store): Shared,
    Extension(intent): Extension<Intent>,
    Path((_, id)): Path<(String, String)>,
) -> Answer {
    let task = store.accept(&intent, true, Work::Delete { vm: id })?;
    Ok(v4::accepted("vmm.v4.ahv.config.DeleteVmApiResponse", &task))
}

/// Power-on, power-off, ACPI shutdown, and categories. The rest would need a guest agent, which the hypervisor's contract does not have.
async fn act(
    State(store): Shared,
    Extension(intent): Extension<Intent>,
    Path((_, id, action)): Path<(String, String, String)>,
    body: Bytes,
) -> Answer {
    let (answer, work) = match action.as_str() {
        "associate-categories" | "disassociate-categories" => {
            let (ext_ids, associate) = (parse::category_ids(&body)?, action == "associate-categories");
            let kind = if associate { "AssociateCategories" } else { "DisassociateCategories" };
            let answer = format!("vmm.v4.ahv.config.{kind}ApiResponse");
            let task = store.accept(&intent, true, Work::Categories { vm: id, ext_ids, associate })?;
            return Ok(v4::accepted(&answer, &task));
        }
        "power-on" => ("vmm.v4.ahv.config.PowerOnVmApiResponse", Work::PowerOn { vm: id }),
        "power-off" => ("vmm.v4.ahv.config.PowerOffVmApiResponse", Work::PowerOff { vm: id }),
        "shutdown" => ("vmm.v4.ahv.config.ShutdownVmApiResponse", Work::ShutDown { vm: id }),
        other => return Err(Refusal::NotSimulated(format!("$actions/{other}"))),
    };
    Ok(v4::accepted(answer, &store.accept(&intent, true, work)?))
}

async fn list_disks(State(store): Shared, Path((_, id)): Path<(String, String)>, Query(params): Params) -> Answer {
    let disks = store.state().vm(&id)?.disks.iter().map(shapes::disk).collect();
    page("vmm.v4.ahv.config.ListDisksApiResponse", "vmm.v4.ahv.config.Disk", disks, &params)
}

async fn get_disk(State(store): Shared, Path((_, id, disk)): Path<(String, String, String)>) -> Answer {
    let state = store.state();
    let vm = state.vm(&id)?;
    let found = vm.disks.iter().find(|one| one.device_uuid == disk);
    let body = shapes::disk(found.ok_or_else(|| Refusal::NotFound(format!("disk {disk} of VM {id}")))?);
    Ok(v4::one("vmm.v4.ahv.config.GetDiskApiResponse", "vmm.v4.ahv.config.Disk", body, Some(&vm.etag())))
}

async fn create_disk(
    State(store): Shared,
    Extension(intent): Extension<Intent>,
    Path((_, id)): Path<(String, String)>,
    body: Bytes,
) -> Answer {
    let task = store.accept(&intent, true, Work::AddDisk { vm: id, disk: parse::disk(&body)? })?;
    Ok(v4::accepted("vmm.v4.ahv.config.CreateDiskApiResponse", &task))
}

async fn update_disk(
    State(store): Shared,
    Extension(intent): Extension<Intent>,
    Path((_, id, disk)): Path<(String, String, String)>,
    body: Bytes,
) -> Answer {
    let wanted = parse::disk(&body)?;
    check_place(store.state().vm(&id)?, &disk, &wanted)?;
    let work = Work::ResizeDisk { vm: id, device_uuid: disk, size_bytes: wanted.size_bytes };
    Ok(v4::accepted("vmm.v4.ahv.config.UpdateDiskApiResponse", &store.accept(&intent, true, work)?))
}

/// Only a disk's size can be changed: its address and container must be repeated or left out.
fn check_place(vm: &Vm, disk: &str, wanted: &parse::DiskRequest) -> Result<(), Refusal> {
    let found = vm.disks.iter().find(|one| one.device_uuid == disk);
    let now = found.ok_or_else(|| Refusal::NotFound(format!("disk {disk} of VM {}", vm.uuid)))?;
    let moved = wanted.bus.as_ref().is_some_and(|bus| *bus != now.address.bus)
        || wanted.index.is_some_and(|index| index != now.address.index)
        || wanted.container_uuid != now.container_uuid;
    if moved {
        return Err(Refusal::Invalid(format!("disk {disk} cannot change its bus, index or container")));
    }
    Ok(())
}

async fn delete_disk(
    State(store): Shared,
    Extension(intent): Extension<Intent>,
    Path((_, id, disk)): Path<(String, String, String)>,
) -> Answer {
    let task = store.accept(&intent, true, Work::DeleteDisk { vm: id, device_uuid: disk })?;
    Ok(v4::accepted("vmm.v4.ahv.config.DeleteDiskApiResponse", &task))
}

async fn list_nics(State(store): Shared, Path((_, id)): Path<(String, String)>, Query(params): Params) -> Answer {
    let nics = store.state().vm(&id)?.nics.iter().map(|nic| shapes::nic(nic, &[])).collect();
    page("vmm.v4.ahv.config.ListNicsApiResponse", "vmm.v4.ahv.config.Nic", nics, &params)
}

const NIC: &str = "vmm.v4.ahv.config.Nic";

async fn get_nic(State(store): Shared, Path((_, id, nic)): Path<(String, String, String)>) -> Answer {
    let state = store.state();
    let vm = state.vm(&id)?;
    let found = vm.nics.iter().find(|one| one.uuid == nic);
    let body = shapes::nic(found.ok_or_else(|| Refusal::NotFound(format!("NIC {nic} of VM {id}")))?, &[]);
    Ok(v4::one("vmm.v4.ahv.config.GetNicApiResponse", NIC, body, Some(&vm.etag())))
}

async fn create_nic(
    State(store): Shared,
    Extension(intent): Extension<Intent>,
    Path((_, id)): Path<(String, String)>,
    body: Bytes,
) -> Answer {
    let task = store.accept(&intent, true, Work::AddNic { vm: id, nic: parse::nic(&body, None)? })?;
    Ok(v4::accepted("vmm.v4.ahv.config.CreateNicApiResponse", &task))
}

async fn update_nic(
    State(store): Shared,
    Extension(intent): Extension<Intent>,
    Path((_, id, nic)): Path<(String, String, String)>,
    body: Bytes,
) -> Answer {
    let nic = parse::nic(&body, Some(&nic))?;
    let task = store.accept(&intent, true, Work::UpdateNic { vm: id, nic })?;
    Ok(v4::accepted("vmm.v4.ahv.config.UpdateNicApiResponse", &task))
}

async fn delete_nic(
    State(store): Shared,
    Extension(intent): Extension<Intent>,
    Path((_, id, nic)): Path<(String, String, String)>,
) -> Answer {
    let task = store.accept(&intent, true, Work::DeleteNic { vm: id, uuid: nic })?;
    Ok(v4::accepted("vmm.v4.ahv.config.DeleteNicApiResponse", &task))
}

async fn get_guest_tools(State(store): Shared, Path((_, id)): Path<(String, String)>) -> Answer {
    let state = store.state();
    let vm = state.vm(&id)?;
    let (answer, kind) = ("vmm.v4.ahv.config.GetGuestToolsApiResponse", "vmm.v4.ahv.config.GuestTools");
    Ok(v4::one(answer, kind, shapes::guest_tools(vm), Some(&vm.etag())))
}

async fn order_guest_tools(
    State(store): Shared,
    Extension(intent): Extension<Intent>,
    Path((_, id, action)): Path<(String, String, String)>,
    body: Bytes,
) -> Answer {
    let (answer, install) = match action.as_str() {
        "insert-iso" => ("vmm.v4.ahv.config.InsertVmGuestToolsApiResponse", false),
        "install" => ("vmm.v4.ahv.config.InstallVmGuestToolsApiResponse", true),
        other => return Err(Refusal::NotSimulated(format!("guest-tools/$actions/{other}"))),
    };
    let work = Work::GuestTools { vm: id, capabilities: parse::guest_tools(&body, install)?, install };
    Ok(v4::accepted(answer, &store.accept(&intent, true, work)?))
}

/// One of the few changes that have no task.
async fn create_category(State(store): Shared, body: Bytes) -> Answer {
    let category = parse::category(&body)?;
    let mut state = store.raw_state();
    if state.categories.iter().any(|known| known.key == category.key && known.value == category.value) {
        return Err(Refusal::Invalid("there is a category with this key and value".into()));
    }
    let shown = shapes::category(&category);
    state.categories.push(category);
    let mut answer = v4::one("prism.v4.config.CreateCategoryApiResponse", CATEGORY, shown, None);
    *answer.status_mut() = axum::http::StatusCode::CREATED;
    Ok(answer)
}

async fn list_tasks(State(store): Shared, Query(params): Params) -> Answer {
    let tasks = store.raw_state().tasks.iter_mut().map(super::tasks::Task::look).collect();
    page("prism.v4.config.ListTasksApiResponse", "prism.v4.config.Task", tasks, &params)
}

async fn get_task(State(store): Shared, Path((_, id)): Path<(String, String)>) -> Answer {
    let mut state = store.raw_state();
    let task = state.task_mut(&id).ok_or_else(|| Refusal::NotFound(format!("task {id}")))?;
    Ok(v4::one("prism.v4.config.GetTaskApiResponse", "prism.v4.config.Task", task.look(), None))
}

const CLUSTER: &str = "clustermgmt.v4.config.Cluster";
const CONTAINER: &str = "clustermgmt.v4.config.StorageContainer";
const SUBNET: &str = "networking.v4.config.Subnet";
const CATEGORY: &str = "prism.v4.config.Category";

fn categories(store: &Store) -> Vec<Value> {
    store.raw_state().categories.iter().map(shapes::category).collect()
}

async fn list_categories(State(store): Shared, Query(params): Params) -> Answer {
    page("prism.v4.config.ListCategoriesApiResponse", CATEGORY, categories(&store), &params)
}

async fn get_category(State(store): Shared, Path((_, id)): Path<(String, String)>) -> Answer {
    pick("prism.v4.config.GetCategoryApiResponse", CATEGORY, categories(&store), &id)
}

async fn list_clusters(State(store): Shared, Query(params): Params) -> Answer {
    let clusters = shapes::clusters(&store.inventory, store.raw_state().cluster_whitelist.as_ref());
    page("clustermgmt.v4.config.ListClustersApiResponse", CLUSTER, clusters, &params)
}

async fn get_cluster(State(store): Shared, Path((_, id)): Path<(String, String)>) -> Answer {
    let clusters = shapes::clusters(&store.inventory, store.raw_state().cluster_whitelist.as_ref());
    pick("clustermgmt.v4.config.GetClusterApiResponse", CLUSTER, clusters, &id)
}

async fn list_containers(State(store): Shared, Query(params): Params) -> Answer {
    let containers = shapes::storage_containers(&store.inventory, &store.raw_state().container);
    page("clustermgmt.v4.config.ListStorageContainersApiResponse", CONTAINER, containers, &params)
}

async fn get_container(State(store): Shared, Path((_, id)): Path<(String, String)>) -> Answer {
    let state = store.raw_state();
    let mut containers = shapes::storage_containers(&store.inventory, &state.container).into_iter();
    let found = containers.find(|container| container["extId"] == id);
    let found = found.ok_or_else(|| Refusal::NotFound(format!("storage container {id}")))?;
    let answer = "clustermgmt.v4.config.GetStorageContainerApiResponse";
    Ok(v4::one(answer, CONTAINER, found, Some(&state.container.etag())))
}

async fn update_container(
    State(store): Shared,
    Extension(intent): Extension<Intent>,
    Path((_, id)): Path<(String, String)>,
    body: Bytes,
) -> Answer {
    if id != store.inventory.container.uuid {
        return Err(Refusal::NotFound(format!("storage container {id}")));
    }
    let whitelist = parse::whitelist(&body, &store.inventory.container.name)?;
    let task = store.accept(&intent, true, Work::UpdateContainer { container: id, whitelist })?;
    Ok(v4::accepted("clustermgmt.v4.config.UpdateStorageContainerApiResponse", &task))
}

fn subnets(store: &Store) -> Vec<Value> {
    store.inventory.subnets.iter().map(|subnet| shapes::subnet(&store.inventory, subnet)).collect()
}

async fn list_subnets(State(store): Shared, Query(params): Params) -> Answer {
    page("networking.v4.config.ListSubnetsApiResponse", SUBNET, subnets(&store), &params)
}

async fn get_subnet(State(store): Shared, Path((_, id)): Path<(String, String)>) -> Answer {
    pick("networking.v4.config.GetSubnetApiResponse", SUBNET, subnets(&store), &id)
}
