//! What the simulated Prism promises to Drover's tests: two APIs over one store, tasks, ETags, idempotent requests, refusals, faults.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use drover_lab::hypervisor::{Hypervisor, VmShape};
use drover_lab::prism::{Prism, PrismConfig, VmView};
use reqwest::{Certificate, Client, Method};
use serde_json::{Value, json};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const VMS: &str = "/api/vmm/v4.2/ahv/config/vms";
const V2: &str = "/PrismGateway/services/rest/v2.0";

/// Remembers what it was asked to run, and lets a test act as the guest.
#[derive(Default)]
struct Guests(Mutex<BTreeMap<String, VmShape>>);

impl Hypervisor for Guests {
    fn power_on(&self, vm: &VmShape) -> anyhow::Result<()> {
        anyhow::ensure!(vm.name != "broken", "no such firmware");
        self.0.lock().unwrap().insert(vm.uuid.clone(), vm.clone());
        Ok(())
    }

    fn shut_down(&self, uuid: &str) -> anyhow::Result<()> {
        self.power_off(uuid)
    }

    fn power_off(&self, uuid: &str) -> anyhow::Result<()> {
        self.0.lock().unwrap().remove(uuid);
        Ok(())
    }

    fn is_on(&self, uuid: &str) -> bool {
        self.0.lock().unwrap().contains_key(uuid)
    }

    fn learned_ips(&self, _uuid: &str) -> Vec<String> {
        vec!["10.1.2.3".into()]
    }
}

struct Lab {
    dir: TempDir,
    prism: Prism,
    guests: Arc<Guests>,
    http: Client,
    runtime: tokio::runtime::Runtime,
}

/// Status, ETag and body of an answer.
type Answer = (u16, String, Value);

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let guests = Arc::new(Guests::default());
        let prism = Prism::start(PrismConfig {
            dir: dir.path().to_owned(),
            export_root: dir.path().join("export"),
            container: "drover".into(),
            cluster_name: "ahv1".into(),
            subnets: vec![("lan".into(), 7), ("dmz".into(), 8)],
            username: "admin".into(),
            password: "secret/4u".into(),
            hypervisor: guests.clone(),
            log_path: dir.path().join("calls.log"),
        })
        .unwrap();
        let ca = Certificate::from_pem(prism.ca_pem().as_bytes()).unwrap();
        let http = Client::builder().no_proxy().tls_certs_only([ca]).build().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { dir, prism, guests, http, runtime }
    }

    fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        self.runtime.block_on(async {
            let answer = request.send().await.unwrap();
            let status = answer.status().as_u16();
            let etag = answer.headers().get("etag").map(|etag| etag.to_str().unwrap().to_owned());
            (status, etag.unwrap_or_default(), answer.json().await.unwrap_or(Value::Null))
        })
    }

    fn request(&self, method: Method, url: &str) -> reqwest::RequestBuilder {
        self.http.request(method, url).basic_auth("admin", Some("secret/4u"))
    }

    fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, &format!("{}{path}", self.prism.central_url())))
    }

    fn get_v2(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, &format!("{}{path}", self.prism.element_url())))
    }

    /// A change with an ETag and a request id, either of which may be left empty.
    fn change(&self, method: Method, path: &str, body: &Value, etag: &str, id: &str) -> Answer {
        let mut request = self.request(method, &format!("{}{path}", self.prism.central_url())).json(body);
        if !etag.is_empty() {
            request = request.header("If-Match", etag);
        }
        if !id.is_empty() {
            request = request.header("NTNX-Request-Id", id);
        }
        self.send(request)
    }

    /// A change with the current ETag; the task at its end.
    fn change_now(&self, method: Method, vm: &str, tail: &str, body: &Value) -> Value {
        let (_, etag, _) = self.get(&format!("{VMS}/{vm}"));
        let (status, _, answer) = self.change(method, &format!("{VMS}/{vm}{tail}"), body, &etag, "");
        assert_eq!(status, 202, "{answer}");
        self.end_of(&answer)
    }

    fn power(&self, vm: &str, action: &str) -> Value {
        self.change_now(Method::POST, vm, &format!("/$actions/{action}"), &Value::Null)
    }

    /// Polls the task that an answer refers to.
    fn end_of(&self, answer: &Value) -> Value {
        let path = format!("/api/prism/v4.2/config/tasks/{}", answer["data"]["extId"].as_str().unwrap());
        for _ in 0..2000 {
            let (status, _, answer) = self.get(&path);
            assert_eq!(status, 200, "{answer}");
            if ["SUCCEEDED", "FAILED"].contains(&answer["data"]["status"].as_str().unwrap()) {
                return answer["data"].clone();
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        panic!("{path} does not end");
    }

    fn disk(&self, bus: &str, index: u32, size_bytes: u64) -> Value {
        json!({ "diskAddress": { "busType": bus, "index": index }, "backingInfo": {
            "$objectType": "vmm.v4.ahv.config.VmDisk", "diskSizeBytes": size_bytes,
            "storageContainer": { "extId": self.prism.container_uuid() } } })
    }

    /// A body as SDKs send it, with their decorations; the disks out of order.
    fn body(&self, name: &str) -> Value {
        json!({
            "$reserved": { "$fv": "v4.r2" }, "$unknownFields": {}, "name": name, "description": null,
            "numSockets": 2, "memorySizeBytes": 512 * MIB, "cluster": { "extId": self.prism.cluster_uuid() },
            "bootConfig": { "$objectType": "vmm.v4.ahv.config.UefiBoot", "bootOrder": ["DISK"] },
            "disks": [self.disk("SCSI", 1, 3 * MIB), self.disk("SCSI", 0, 2 * MIB)],
            "nics": [{ "nicBackingInfo": { "macAddress": "52:54:00:00:00:01" },
                "nicNetworkInfo": { "subnet": { "extId": self.prism.subnet_uuid("lan").unwrap() } } }],
        })
    }

    fn create(&self, name: &str) -> VmView {
        let (status, _, answer) = self.change(Method::POST, VMS, &self.body(name), "", "");
        assert_eq!(status, 202, "{answer}");
        assert_eq!(self.end_of(&answer)["status"], "SUCCEEDED");
        self.vm(name)
    }

    fn vm(&self, name: &str) -> VmView {
        self.prism.vm_by_name(name).unwrap()
    }

    fn files(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("export/.acropolis/vmdisk")).unwrap().count()
    }
}

fn message(task: &Value) -> &str {
    task["errorMessages"][0]["message"].as_str().unwrap_or_else(|| panic!("no message in {task}"))
}

#[test]
fn a_new_vm_has_sparse_files_that_only_v2_can_name() {
    let lab = Lab::new();
    let vm = lab.create("web01");
    assert!(!vm.is_on);
    assert_eq!(vm.macs, ["52:54:00:00:00:01"]);
    assert_eq!(
        vm.disks.iter().map(|disk| (disk.index, disk.size_bytes)).collect::<Vec<_>>(),
        [(0, 2 * MIB), (1, 3 * MIB)]
    );
    for disk in &vm.disks {
        assert_ne!(disk.device_uuid, disk.vmdisk_uuid);
        let file = std::fs::metadata(&disk.path).unwrap();
        assert_eq!((file.len(), file.blocks(), file.mode() & 0o777), (disk.size_bytes, 0, 0o600));
        assert_eq!(disk.path.file_name().unwrap(), Path::new(&disk.vmdisk_uuid));
    }
    let (_, _, v4) = lab.get(&format!("{VMS}/{}", vm.uuid));
    assert!(!v4.to_string().contains(&vm.disks[0].vmdisk_uuid), "v4 must not show the file's uuid");
    assert_eq!(v4["data"]["disks"][0]["extId"], v4["data"]["disks"][0]["backingInfo"]["diskExtId"]);
    assert_eq!(v4["data"]["disks"][0]["diskAddress"]["index"], 1, "as they were given, not by index");

    let path = format!("{V2}/vms/{}?include_vm_disk_config=true&include_vm_nic_config=true", vm.uuid);
    let (status, _, v2) = lab.get_v2(&path);
    assert_eq!((status, &v2["power_state"], &v2["num_vcpus"]), (200, &json!("off"), &json!(2)));
    assert_eq!(v2["vm_nics"][0]["mac_address"], "52:54:00:00:00:01");
    let first = v2["vm_disk_info"].as_array().unwrap().iter().find(|disk| disk["disk_address"]["device_index"] == 0);
    let address = &first.unwrap()["disk_address"];
    assert_eq!(address["device_uuid"], *vm.disks[0].device_uuid);
    assert_eq!(address["ndfs_filepath"], format!("/drover/.acropolis/vmdisk/{}", vm.disks[0].vmdisk_uuid));
    let (_, _, bare) = lab.get_v2(&format!("/api/nutanix/v2.0/vms/{}", vm.uuid));
    assert!(bare.get("vm_disk_info").is_none() && bare.get("vm_nics").is_none(), "only when asked for: {bare}");
    let (_, _, disk) = lab.get_v2(&format!("{V2}/virtual_disks/{}", vm.disks[1].vmdisk_uuid));
    assert_eq!((&disk["attached_vm_uuid"], &disk["disk_capacity_in_bytes"]), (&json!(vm.uuid), &json!(3 * MIB)));

    assert_eq!(lab.change_now(Method::DELETE, &vm.uuid, "", &Value::Null)["status"], "SUCCEEDED");
    assert_eq!((lab.files(), lab.get(&format!("{VMS}/{}", vm.uuid)).0), (0, 404));
}

#[test]
fn every_change_needs_the_current_etag_and_makes_a_new_one() {
    let lab = Lab::new();
    let vm = lab.create("web01");
    let path = format!("{VMS}/{}", vm.uuid);
    let off = format!("{path}/$actions/power-on");
    for etag in ["", "YXBwbGljYXRpb24vanNvbg==:77"] {
        let (status, _, answer) = lab.change(Method::POST, &off, &Value::Null, etag, "");
        assert_eq!((status, answer["data"]["error"][0]["code"].as_str()), (412, Some("VMM-30303")));
    }
    let mut etags = vec![lab.get(&path).1];
    lab.power(&vm.uuid, "power-on");
    etags.push(lab.get(&path).1);
    lab.guests.power_off(&vm.uuid).unwrap();
    etags.push(lab.get(&path).1);
    let mut body = lab.get(&path).2["data"].clone();
    body["description"] = json!("fenced");
    assert_eq!(lab.change_now(Method::PUT, &vm.uuid, "", &body)["status"], "SUCCEEDED");
    etags.push(lab.get(&path).1);
    assert_eq!(etags.iter().collect::<BTreeSet<_>>().len(), 4, "all different: {etags:?}");
    assert_eq!(lab.vm("web01").description, "fenced");
    let (status, _, _) = lab.change(Method::POST, &off, &Value::Null, &etags[2], "");
    assert_eq!(status, 412, "a fence makes older permits worthless");
}

#[test]
fn the_same_request_id_leads_to_the_same_task_and_to_one_effect() {
    let lab = Lab::new();
    let body = lab.body("web01");
    let first = lab.change(Method::POST, VMS, &body, "", "id-1").2;
    lab.end_of(&first);
    let again = lab.change(Method::POST, VMS, &body, "", "id-1").2;
    assert_eq!(first["data"]["extId"], again["data"]["extId"]);
    assert_eq!((lab.prism.vms().len(), lab.prism.tasks().len()), (1, 1));

    let path = format!("{VMS}/{}/$actions/power-on", lab.vm("web01").uuid);
    let etag = lab.vm("web01").etag;
    lab.prism.switches().lose_next_answers(1);
    assert_eq!(lab.change(Method::POST, &path, &Value::Null, &etag, "id-2").0, 503, "it was done, but nobody was told");
    let (status, _, told) = lab.change(Method::POST, &path, &Value::Null, &etag, "id-2");
    assert_eq!(status, 202, "a retry is not a stale change: {told}");
    assert_eq!(lab.end_of(&told)["status"], "SUCCEEDED");
    assert_eq!(lab.change(Method::POST, VMS, &body, "", "id-2").0, 400, "an id stands for one request");
}

#[test]
fn a_task_passes_through_its_states_and_can_be_held_or_failed() {
    let lab = Lab::new();
    lab.prism.switches().hold_tasks(true);
    let task = lab.change(Method::POST, VMS, &lab.body("web01"), "", "").2;
    let path = format!("/api/prism/v4.2/config/tasks/{}", task["data"]["extId"].as_str().unwrap());
    for _ in 0..5 {
        assert_eq!(lab.get(&path).2["data"]["status"], "QUEUED");
    }
    let open = "/api/prism/v4.2/config/tasks?$filter=status+eq+Prism.Config.TaskStatus'QUEUED'";
    assert_eq!(lab.get(open).2["metadata"]["totalAvailableResults"], 1);
    assert!(lab.prism.vms().is_empty());
    lab.prism.switches().hold_tasks(false);
    assert_eq!(lab.end_of(&task)["entitiesAffected"][0]["rel"], "vmm:ahv:config:vm");
    assert_eq!(lab.get(open).2.get("data"), None, "an empty list has no data");

    let vm = lab.vm("web01");
    let quick = lab.change(Method::DELETE, &format!("{VMS}/{}", vm.uuid), &Value::Null, &vm.etag, "").2;
    while !lab.prism.tasks()[1].has_ended {
        std::thread::yield_now();
    }
    let path = format!("/api/prism/v4.2/config/tasks/{}", quick["data"]["extId"].as_str().unwrap());
    let seen: Vec<Value> = (0..3).map(|_| lab.get(&path).2["data"]["status"].clone()).collect();
    assert_eq!(seen, ["QUEUED", "RUNNING", "SUCCEEDED"], "however fast it was");

    lab.prism.switches().fail_next_tasks(1);
    let failed = lab.end_of(&lab.change(Method::POST, VMS, &lab.body("web02"), "", "").2);
    assert_eq!((failed["status"].as_str(), lab.prism.vms().len()), (Some("FAILED"), 0));
    assert!(message(&failed).contains("told to fail"));
}

#[test]
fn power_on_boots_the_disks_in_the_order_of_their_addresses() {
    let lab = Lab::new();
    let vm = lab.create("web01");
    assert_eq!(lab.power(&vm.uuid, "power-on")["status"], "SUCCEEDED");
    let shape = lab.guests.0.lock().unwrap()[&vm.uuid].clone();
    let sizes: Vec<u64> = shape.disks.iter().map(|disk| std::fs::metadata(disk).unwrap().len()).collect();
    assert_eq!(sizes, [2 * MIB, 3 * MIB], "by index, though they were given the other way round");
    assert_eq!((shape.vcpus, shape.memory_bytes, shape.macs), (2, 512 * MIB, vm.macs.clone()));
    let (_, _, v4) = lab.get(&format!("{VMS}/{}", vm.uuid));
    let nic = &v4["data"]["nics"][0];
    assert_eq!(v4["data"]["powerState"], "ON");
    for network in ["networkInfo", "nicNetworkInfo"] {
        assert_eq!(nic[network]["ipv4Info"]["learnedIpAddresses"][0]["value"], "10.1.2.3");
    }
    assert!(message(&lab.power(&vm.uuid, "power-on")).contains("is on"));
    lab.guests.power_off(&vm.uuid).unwrap();
    assert_eq!(lab.get(&format!("{VMS}/{}", vm.uuid)).2["data"]["powerState"], "OFF", "a guest may turn itself off");
    for order in ["power-off", "shutdown"] {
        assert!(message(&lab.power(&vm.uuid, order)).contains("is off"));
    }
    let broken = lab.create("broken");
    assert!(message(&lab.power(&broken.uuid, "power-on")).contains("no such firmware"));
    let (status, _, _) =
        lab.change(Method::POST, &format!("{VMS}/{}/$actions/guest-shutdown", vm.uuid), &Value::Null, "", "");
    assert_eq!(status, 501, "what is not simulated says so");
}

#[test]
fn what_cannot_be_is_refused_and_leaves_no_file() {
    let lab = Lab::new();
    type Change<'a> = &'a dyn Fn(&mut Value);
    let refused = |change: Change| {
        let mut body = lab.body("web01");
        change(&mut body);
        lab.change(Method::POST, VMS, &body, "", "")
    };
    let unknown = json!(uuid::Uuid::new_v4().to_string());
    let (status, _, answer) = refused(&|body| body["name"] = json!("x".repeat(81)));
    assert_eq!(
        (status, &answer["data"]["error"]["validationErrorMessages"][0]["attributePath"]),
        (400, &json!("name"))
    );
    assert_eq!(refused(&|body| body["cluster"]["extId"] = unknown.clone()).0, 404);
    assert_eq!(refused(&|body| body["disks"][0]["backingInfo"]["diskSizeBytes"] = json!(0)).0, 400);
    let late: [(&str, Change); 4] = [
        ("taken", &|body| body["disks"][0]["diskAddress"]["index"] = json!(0)),
        ("no bus", &|body| body["disks"][0]["diskAddress"]["busType"] = json!("VIRTIO")),
        ("storage container", &|body| body["disks"][0]["backingInfo"]["storageContainer"]["extId"] = unknown.clone()),
        ("subnet", &|body| body["nics"][0]["nicNetworkInfo"]["subnet"]["extId"] = unknown.clone()),
    ];
    for (expected, change) in late {
        let task = lab.end_of(&refused(change).2);
        assert!(message(&task).contains(expected), "{expected}: {task}");
    }
    assert_eq!((lab.prism.vms().len(), lab.files()), (0, 0));
}

#[test]
fn disks_grow_and_go_but_never_shrink_or_move() {
    let lab = Lab::new();
    let vm = lab.create("web01");
    let disk = &vm.disks[0];
    let tail = format!("/disks/{}", disk.device_uuid);
    let grown = lab.change_now(Method::PUT, &vm.uuid, &tail, &lab.disk("SCSI", 0, 4 * MIB));
    assert_eq!((grown["status"].as_str(), std::fs::metadata(&disk.path).unwrap().len()), (Some("SUCCEEDED"), 4 * MIB));
    assert!(message(&lab.change_now(Method::PUT, &vm.uuid, &tail, &lab.disk("SCSI", 0, MIB))).contains("shrink"));
    let path = format!("{VMS}/{}{tail}", vm.uuid);
    let moved = lab.change(Method::PUT, &path, &lab.disk("SCSI", 5, 4 * MIB), &lab.vm("web01").etag, "");
    assert_eq!(moved.0, 400);
    assert_eq!(lab.change_now(Method::POST, &vm.uuid, "/disks", &lab.disk("SCSI", 2, MIB))["status"], "SUCCEEDED");
    assert_eq!(lab.change_now(Method::DELETE, &vm.uuid, &tail, &Value::Null)["status"], "SUCCEEDED");
    assert!(!disk.path.exists());
    assert_eq!(lab.vm("web01").disks.iter().map(|disk| disk.index).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn a_running_vm_takes_a_new_description_but_no_cold_change() {
    let lab = Lab::new();
    let vm = lab.create("web01");
    lab.power(&vm.uuid, "power-on");
    let shown = lab.get(&format!("{VMS}/{}", vm.uuid)).2["data"].clone();
    let changed = |key: &str, value: Value| {
        let mut body = shown.clone();
        body[key] = value;
        lab.change_now(Method::PUT, &vm.uuid, "", &body)
    };
    assert_eq!(changed("description", json!("epoch 4"))["status"], "SUCCEEDED");
    for (key, value) in [
        ("numCoresPerSocket", json!(2)),
        ("machineType", json!("Q35")),
        ("bootConfig", json!({ "$objectType": "vmm.v4.ahv.config.LegacyBoot" })),
        ("memorySizeBytes", json!(256 * MIB)),
    ] {
        assert!(message(&changed(key, value)).contains(key));
    }
    lab.power(&vm.uuid, "power-off");
    assert_eq!(changed("numCoresPerSocket", json!(2))["status"], "SUCCEEDED");
}

#[test]
fn lists_have_pages_filters_and_a_total() {
    let lab = Lab::new();
    for name in ["a", "b", "c"] {
        lab.create(name);
    }
    let (_, _, page) = lab.get(&format!("{VMS}?$page=1&$limit=2"));
    assert_eq!((page["data"].as_array().unwrap().len(), &page["metadata"]["totalAvailableResults"]), (1, &json!(3)));
    for query in ["%24filter=name+eq+%27b%27", "$filter=name%20eq%20'b'"] {
        let (_, _, found) = lab.get(&format!("{VMS}?{query}"));
        assert_eq!((&found["data"][0]["name"], found["data"].as_array().unwrap().len()), (&json!("b"), 1));
    }
    assert_eq!(lab.get(&format!("{VMS}?$limit=101")).0, 400);
    assert_eq!(lab.get(&format!("{VMS}?$filter=name%20resembles%20'b'")).0, 400);
    let (_, _, clusters) = lab.get("/api/clustermgmt/v4.2/config/clusters");
    assert_eq!(clusters["data"][0]["config"]["clusterFunction"][0], "PRISM_CENTRAL", "it lists itself too");
    let (_, _, subnets) = lab.get("/api/networking/v4.3/config/subnets?$filter=networkId+eq+8");
    assert_eq!(subnets["data"][0]["name"], "dmz");
    let (_, _, second) = lab.get_v2(&format!("{V2}/vms/?count=2&page=2"));
    assert_eq!((second["entities"].as_array().unwrap().len(), &second["metadata"]["total_entities"]), (1, &json!(3)));
}

#[test]
fn strangers_old_versions_and_the_wrong_port_are_turned_away() {
    let lab = Lab::new();
    let url = |path: &str| format!("{}{path}", lab.prism.central_url());
    assert_eq!(lab.send(lab.http.get(url(VMS))).0, 401);
    assert_eq!(lab.send(lab.http.get(url(VMS)).basic_auth("admin", Some("wrong"))).0, 401);
    assert_eq!(lab.send(lab.http.get(url(VMS)).header("X-ntnx-api-key", lab.prism.api_key())).0, 200);
    let info = lab.send(lab.request(Method::OPTIONS, &url("/api/vmm/unversioned/info")));
    assert_eq!((info.0, &info.2["data"]), (200, &json!("v4.3")));
    lab.prism.switches().set_max_minor(1);
    assert_eq!((lab.get(VMS).0, lab.get(&VMS.replace("v4.2", "v4.1")).0, lab.get("/api/vmm/v3/x").0), (404, 200, 404));
    assert_eq!((lab.get(&format!("{V2}/vms/")).0, lab.get_v2(&VMS.replace("v4.2", "v4.1")).0), (404, 404));
    assert_eq!(lab.get_v2(&format!("{V2}/vms/")).0, 200);
    lab.prism.switches().remove_v2(true);
    assert_eq!(lab.get_v2(&format!("{V2}/vms/")).0, 404);
}

#[test]
fn faults_are_answered_and_every_call_is_noted() {
    let lab = Lab::new();
    lab.prism.switches().refuse_next_calls(2);
    let statuses: Vec<u16> = (0..3).map(|_| lab.get(VMS).0).collect();
    assert_eq!(statuses, [503, 503, 200]);
    lab.change(Method::POST, VMS, &lab.body("web01"), "tag", "id-1");
    let call = lab.prism.calls().pop().unwrap();
    assert_eq!((call.method.as_str(), call.path.as_str(), call.status), ("POST", VMS, 202));
    assert_eq!((call.request_id.as_deref(), call.if_match.as_deref()), (Some("id-1"), Some("tag")));
    let log = std::fs::read_to_string(lab.dir.path().join("calls.log")).unwrap();
    assert_eq!(log.lines().count(), 4, "{log}");
    lab.end_of(&json!({ "data": { "extId": lab.prism.tasks()[0].ext_id } }));
    lab.prism.switches().reverse_v4_disks(true);
    let (_, _, vm) = lab.get(&format!("{VMS}/{}", lab.vm("web01").uuid));
    assert_eq!(vm["data"]["disks"][0]["diskAddress"]["index"], 0, "the other way round than given");
}

#[test]
fn v3_shows_the_start_of_a_disk_on_both_ports_and_no_more() {
    let lab = Lab::new();
    let vm = lab.create("web01");
    let data = |disk: &str, query: &str| format!("/api/nutanix/v3/vms/{}/vm_disk/{disk}/data?{query}", vm.uuid);
    let device = vm.disks[0].device_uuid.as_str();
    for base in [lab.prism.central_url(), lab.prism.element_url()] {
        let answer = lab.runtime.block_on(async {
            let url = format!("{base}{}", data(device, "offset=0&length=512"));
            lab.request(Method::GET, &url).send().await.unwrap().text().await.unwrap()
        });
        assert_eq!(answer, "A".repeat(683) + "=", "512 zeroes");
    }
    let cases = [
        (device, "offset=16777217&length=512", 422),
        (device, "offset=0&length=16777217", 422),
        (device, "offset=0", 422),
        (device, "offset=16777216&length=512", 422), // the disk has 2 MiB
        (vm.disks[0].vmdisk_uuid.as_str(), "offset=0&length=512", 404),
    ];
    for (disk, query, status) in cases {
        let (answered, _, body) = lab.get(&data(disk, query));
        assert_eq!((answered, &body["state"]), (status, &json!("ERROR")), "{query}");
    }
}

#[tokio::test]
async fn it_can_be_started_and_stopped_by_an_async_test() {
    let dir = tempfile::tempdir().unwrap();
    let config = PrismConfig {
        dir: dir.path().to_owned(),
        export_root: dir.path().join("export"),
        container: "drover".into(),
        cluster_name: "ahv1".into(),
        subnets: Vec::new(),
        username: "admin".into(),
        password: "secret/4u".into(),
        hypervisor: Arc::new(Guests::default()),
        log_path: dir.path().join("calls.log"),
    };
    let prism = Prism::start(config).unwrap();
    let port: u16 = prism.element_url().rsplit(':').next().unwrap().parse().unwrap();
    drop(prism);
    assert!(tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err(), "nothing listens any more");
}
