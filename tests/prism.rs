//! The Prism edge against simulated Prism, which is itself held to the vendor's SDKs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on is to panic, in its helpers too")]

use std::sync::Arc;

use drover::edge::prism::{Access, Credentials, PowerState, PrismCentral, PrismElement, PrismError, TaskState};
use drover_lab::hypervisor::NoHypervisor;
use drover_lab::prism::{DiskData, Prism, PrismConfig};
use serde_json::json;

const GIB: u64 = 1 << 30;
/// A request id but for its last two digits.
const ORDER: &str = "6f9b1a34-0000-4000-8000-0000000000";

struct Bench {
    prism: Prism,
    central: PrismCentral,
    element: PrismElement,
    _dir: tempfile::TempDir,
}

fn password(password: &str) -> Credentials {
    Credentials::Password { username: "admin".into(), password: password.into() }
}

fn access(prism: &Prism, url: &str, credentials: Credentials) -> Access {
    Access { url: url.into(), credentials, ca_pem: Some(prism.ca_pem().into()) }
}

fn start() -> Bench {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let prism = Prism::start(PrismConfig {
        dir: dir.path().join("prism"),
        export_root: dir.path().join("export"),
        container: "ctr".into(),
        cluster_name: "ahv1".into(),
        subnets: vec![("lan".into(), 10)],
        username: "admin".into(),
        password: "secret".into(),
        hypervisor: Arc::new(NoHypervisor::default()),
        log_path: dir.path().join("prism.log"),
    })
    .unwrap();
    let central = PrismCentral::new(&access(&prism, prism.central_url(), password("secret"))).unwrap();
    let element = PrismElement::new(&access(&prism, prism.element_url(), password("secret"))).unwrap();
    Bench { prism, central, element, _dir: dir }
}

/// Creates a VM with two disks the way any client of the API would.
async fn create(prism: &Prism) -> String {
    let disk = |index: u32, size: u64| {
        json!({"$objectType": "vmm.v4.ahv.config.Disk", "diskAddress": {"busType": "SCSI", "index": index},
               "backingInfo": {"$objectType": "vmm.v4.ahv.config.VmDisk", "diskSizeBytes": size, "storageContainer": {"extId": prism.container_uuid()}}})
    };
    let body = json!({"$objectType": "vmm.v4.ahv.config.Vm", "name": "web01", "numSockets": 1, "memorySizeBytes": GIB,
                      "cluster": {"extId": prism.cluster_uuid()}, "disks": [disk(1, 2 * GIB), disk(0, GIB)]});
    let client = reqwest::Client::builder()
        .tls_certs_only(reqwest::Certificate::from_pem_bundle(prism.ca_pem().as_bytes()).unwrap())
        .build()
        .unwrap();
    let url = format!("{}/api/vmm/v4.2/ahv/config/vms", prism.central_url());
    let id = uuid::Uuid::new_v4().to_string();
    let answer = client
        .post(url)
        .basic_auth("admin", Some("secret"))
        .header("NTNX-Request-Id", id)
        .json(&body)
        .send()
        .await
        .unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    for _ in 0..100 {
        if let Some(vm) = prism.vm_by_name("web01") {
            return vm.uuid;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("the VM was not created");
}

#[tokio::test]
async fn finds_where_to_put_a_machine() {
    let Bench { prism, central, .. } = start();
    let cluster = central.find_cluster("ahv1").await.unwrap();
    assert_eq!(cluster.as_deref(), Some(prism.cluster_uuid()));
    assert_eq!(
        central.find_container("ctr", prism.cluster_uuid()).await.unwrap().as_deref(),
        Some(prism.container_uuid())
    );
    let cluster = prism.cluster_uuid();
    assert_eq!(central.find_subnet("lan", cluster).await.unwrap().as_deref(), prism.subnet_uuid("lan"));
    assert_eq!(central.find_subnet("it's not there", cluster).await.unwrap(), None);
    assert_eq!(central.find_subnet("lan", "another cluster").await.unwrap(), None, "names repeat across clusters");
    let category = prism.add_category("Environment", "it's tested");
    assert_eq!(central.find_category("Environment", "it's tested").await.unwrap(), Some(category));
    assert_eq!(central.find_category("Environment", "Production").await.unwrap(), None);
    assert!(central.find_vms_by_name("web01").await.unwrap().is_empty());
}

#[tokio::test]
async fn reads_a_vm_and_joins_its_disks_to_their_files() {
    let Bench { prism, central, element, _dir } = start();
    let id = create(&prism).await;
    assert_eq!(central.find_vms_by_name("web01").await.unwrap(), vec![id.clone()]);
    let (vm, etag) = central.get_vm(&id).await.unwrap().unwrap();
    assert_eq!((vm.power_state, vm.disks.len(), etag.is_empty()), (PowerState::Off, 2, false));
    let files = element.vm_disks(&id).await.unwrap();
    for disk in &vm.disks {
        let file = files.iter().find(|file| file.device_uuid == disk.ext_id).unwrap();
        assert_eq!((file.index, file.size_bytes), (disk.index, disk.size_bytes));
        assert_ne!(file.vmdisk_uuid, disk.ext_id);
        assert!(file.nfs_path.ends_with(&file.vmdisk_uuid), "{}", file.nfs_path);
    }
    assert!(central.get_vm("00000000-0000-4000-8000-000000000000").await.unwrap().is_none());
}

async fn done(central: &PrismCentral, task: &str) {
    while central.task(task).await.unwrap() == TaskState::Open {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(central.task(task).await.unwrap(), TaskState::Succeeded);
}

#[tokio::test]
async fn a_change_of_the_description_voids_older_orders_and_changes_nothing_else() {
    let Bench { prism, central, element, _dir } = start();
    let id = create(&prism).await;
    let (vm, etag) = central.get_vm(&id).await.unwrap().unwrap();
    let disks = element.vm_disks(&id).await.unwrap();
    prism.switches().hold_tasks(true);
    let task = central.describe(&id, "undone", &etag, "6f9b1a34-0000-4000-8000-000000000003").await.unwrap();
    assert!(central.has_open_task(&id).await.unwrap());
    prism.switches().hold_tasks(false);
    done(&central, &task).await;
    let (now, newer) = central.get_vm(&id).await.unwrap().unwrap();
    assert_ne!(newer, etag);
    assert_eq!(now, drover::edge::prism::Vm { description: "undone".into(), ..vm });
    assert_eq!(element.vm_disks(&id).await.unwrap(), disks);
    let stale = central.power_on(&id, &etag, "6f9b1a34-0000-4000-8000-000000000004").await;
    assert!(matches!(stale, Err(PrismError::PreconditionFailed { .. })));
    // What every client sees of a task lags behind: it is asked until all are seen ended.
    while central.has_open_task(&id).await.unwrap() {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(!central.has_open_task("00000000-0000-4000-8000-000000000000").await.unwrap());
}

#[tokio::test]
async fn a_target_that_is_asked_to_power_off_does_so() {
    let Bench { prism, central, _dir, .. } = start();
    let id = create(&prism).await;
    let (_, etag) = central.get_vm(&id).await.unwrap().unwrap();
    let on = central.power_on(&id, &etag, "6f9b1a34-0000-4000-8000-000000000005").await.unwrap();
    done(&central, &on).await;
    let (_, etag) = central.get_vm(&id).await.unwrap().unwrap();
    let asked = central.shut_down(&id, &etag, "6f9b1a34-0000-4000-8000-000000000006").await.unwrap();
    done(&central, &asked).await;
    assert_eq!(central.get_vm(&id).await.unwrap().unwrap().0.power_state, PowerState::Off);
}

#[tokio::test]
async fn an_order_to_power_on_works_once_and_a_stale_one_never() {
    let Bench { prism, central, _dir, .. } = start();
    let id = create(&prism).await;
    let (_, etag) = central.get_vm(&id).await.unwrap().unwrap();
    let task = central.power_on(&id, &etag, "6f9b1a34-0000-4000-8000-000000000001").await.unwrap();
    assert_eq!(
        central.power_on(&id, &etag, "6f9b1a34-0000-4000-8000-000000000001").await.unwrap(),
        task,
        "the same order is the same task"
    );
    done(&central, &task).await;
    assert_eq!(central.get_vm(&id).await.unwrap().unwrap().0.power_state, PowerState::On);
    let stale = central.power_off(&id, &etag, "6f9b1a34-0000-4000-8000-000000000002").await;
    assert!(matches!(stale, Err(PrismError::PreconditionFailed { .. })));
}

#[tokio::test]
async fn errors_say_what_to_do() {
    let Bench { prism, central, _dir, .. } = start();
    let wrong = PrismCentral::new(&access(&prism, prism.central_url(), password("wrong"))).unwrap();
    assert!(matches!(wrong.find_cluster("ahv1").await, Err(PrismError::Unauthorized { .. })));
    let trusting = access(&prism, prism.central_url(), password("secret"));
    let untrusting = PrismCentral::new(&Access { ca_pem: None, ..trusting }).unwrap();
    let error = untrusting.find_cluster("ahv1").await.unwrap_err();
    assert!(matches!(error, PrismError::Unreachable { .. }) && error.to_string().contains("ca.crt"), "{error}");
    prism.switches().refuse_next_calls(2);
    assert!(central.find_cluster("ahv1").await.is_ok(), "a read is repeated when Prism says later");
}

#[tokio::test]
async fn a_name_that_is_there_twice_is_refused() {
    let Bench { prism, central, _dir, .. } = start();
    prism.add_category("Environment", "Production");
    prism.add_category("Environment", "Production");
    let error = central.find_category("Environment", "Production").await.unwrap_err();
    assert!(matches!(error, PrismError::Ambiguous { count: 2, .. }), "{error}");
    assert!(error.to_string().contains("Environment:Production"), "{error}");
}

#[tokio::test]
async fn a_prism_too_old_for_the_provider_is_told_from_one_that_fails() {
    let Bench { prism, central, _dir, .. } = start();
    let refused = async || central.find_cluster("ahv1").await.unwrap_err();
    prism.switches().set_max_minor(1);
    let error = refused().await;
    assert_eq!(error.reason(), "PrismTooOld");
    assert!(error.to_string().contains("v4.1") && error.to_string().contains("update Prism Central"), "{error}");
    prism.switches().remove_v4(true);
    let error = refused().await;
    assert_eq!(error.reason(), "PrismTooOld");
    assert!(error.to_string().contains("no v4 API"), "{error}");
    prism.switches().remove_v4(false);
    prism.switches().set_max_minor(2);
    assert!(central.find_cluster("ahv1").await.unwrap().is_some());
}

#[tokio::test]
async fn an_api_key_is_as_good_as_a_password() {
    let Bench { prism, _dir, .. } = start();
    let with = |key: &str| access(&prism, prism.central_url(), Credentials::ApiKey(key.into()));
    let central = PrismCentral::new(&with(prism.api_key())).unwrap();
    assert!(central.find_cluster("ahv1").await.unwrap().is_some());
    let stranger = PrismCentral::new(&with("another")).unwrap();
    assert!(matches!(stranger.find_cluster("ahv1").await, Err(PrismError::Unauthorized { .. })));
}

#[tokio::test]
async fn an_order_whose_answer_is_lost_is_sent_again_and_carried_out_once() {
    let Bench { prism, central, _dir, .. } = start();
    let id = create(&prism).await;
    let (_, etag) = central.get_vm(&id).await.unwrap().unwrap();
    let before = prism.tasks().len();
    prism.switches().lose_next_answers(1);
    let task = central.power_on(&id, &etag, "6f9b1a34-0000-4000-8000-000000000007").await.unwrap();
    done(&central, &task).await;
    assert_eq!(prism.tasks().len(), before + 1, "the second was answered with the task of the first");
    let (_, etag) = central.get_vm(&id).await.unwrap().unwrap();
    for status in [429, 504] {
        prism.switches().refuse_next_calls_with(2, status);
        let order = central.power_off(&id, &etag, "6f9b1a34-0000-4000-8000-000000000008").await;
        assert!(order.is_ok(), "{status}: {order:?}");
    }
    prism.switches().refuse_next_calls_with(1, 502);
    let unclear = central.power_off(&id, &etag, "6f9b1a34-0000-4000-8000-000000000008").await;
    assert!(matches!(unclear, Err(PrismError::Refused { status: 502, .. })), "{unclear:?}");
    prism.switches().refuse_next_calls_with(1, 502);
    assert!(central.find_cluster("ahv1").await.is_ok(), "a read is repeated");
}

#[tokio::test]
async fn a_server_that_asks_to_be_left_alone_is_left_alone() {
    let Bench { prism, central, _dir, .. } = start();
    central.find_cluster("ahv1").await.unwrap();
    prism.switches().set_retry_after(1);
    prism.switches().refuse_next_calls_with(1, 429);
    let asked = std::time::Instant::now();
    central.find_cluster("ahv1").await.unwrap();
    assert!(asked.elapsed() >= std::time::Duration::from_secs(1), "{:?}", asked.elapsed());
    prism.switches().set_retry_after(30);
    prism.switches().refuse_next_calls_with(1, 503);
    let calls = prism.calls().len();
    for _ in 0..3 {
        let error = central.find_cluster("ahv1").await.unwrap_err();
        assert_eq!(error.reason(), "PrismBusy", "{error}");
    }
    assert_eq!(prism.calls().len(), calls + 1, "it is not asked meanwhile");
}

#[tokio::test]
async fn there_are_never_many_calls_at_once() {
    let Bench { prism, central, _dir, .. } = start();
    central.find_cluster("ahv1").await.unwrap();
    prism.switches().set_answer_delay(std::time::Duration::from_millis(50));
    let calls = (0..40).map(|_| central.find_cluster("ahv1"));
    for answer in futures::future::join_all(calls).await {
        answer.unwrap();
    }
    let most = prism.switches().most_calls_at_once();
    assert!((2..=8).contains(&most), "{most}");
}

#[tokio::test]
async fn a_version_is_asked_for_once_and_again_when_its_paths_are_gone() {
    let Bench { prism, central, _dir, .. } = start();
    let id = create(&prism).await;
    let questions = || prism.calls().iter().filter(|call| call.method == "OPTIONS").count();
    for _ in 0..3 {
        assert!(central.get_vm(&id).await.unwrap().is_some());
    }
    assert_eq!(questions(), 1);
    prism.switches().set_max_minor(1);
    let gone = central.get_vm(&id).await.unwrap_err();
    assert_eq!(gone.reason(), "PrismTooOld", "a 404 of a version that is gone is not the VM's");
    assert_eq!(questions(), 2);
    prism.switches().set_max_minor(2);
    assert!(central.get_vm(&id).await.unwrap().is_some());
}

#[tokio::test]
async fn a_404_that_is_not_the_apis_own_word_makes_no_vm_gone() {
    let Bench { prism, central, _dir, .. } = start();
    let id = create(&prism).await;
    central.get_vm(&id).await.unwrap();
    prism.switches().refuse_next_calls_with(1, 404);
    let answer = central.get_vm(&id).await;
    assert!(matches!(answer, Err(PrismError::NotFound { by_api: false, .. })), "{answer:?}");
    assert!(central.get_vm("00000000-0000-4000-8000-000000000000").await.unwrap().is_none());
    prism.switches().remove_v4(true);
    for client in [central, PrismCentral::new(&access(&prism, prism.central_url(), password("secret"))).unwrap()] {
        let error = client.get_vm(&id).await.unwrap_err();
        assert_eq!(error.reason(), "PrismTooOld");
    }
}

#[tokio::test]
async fn a_prism_element_without_v2_says_what_it_is_needed_for() {
    let Bench { prism, element, _dir, .. } = start();
    let id = create(&prism).await;
    assert_eq!(element.storage_containers().await.unwrap(), ["ctr"]);
    let unknown = element.vm_disks("00000000-0000-4000-8000-000000000000").await.unwrap_err();
    assert_eq!(unknown.reason(), "PrismNotFound", "v2 is there, the VM is not");
    prism.switches().remove_v2(true);
    for error in [element.storage_containers().await.unwrap_err(), element.vm_disks(&id).await.unwrap_err()] {
        assert_eq!(error.reason(), "PrismElementV2Gone");
        assert!(error.to_string().contains("NFS"), "{error}");
    }
}

#[tokio::test]
async fn an_address_is_put_on_a_containers_list_and_taken_off_again() {
    let Bench { prism, central, _dir, .. } = start();
    let ctr = prism.container_uuid();
    let (inherits, _) = central.get_container(ctr).await.unwrap().unwrap();
    assert!(inherits.inherits_whitelist && inherits.whitelist.is_empty());
    assert_eq!(central.cluster_whitelist(&inherits.cluster_ext_id).await.unwrap(), None, "not told is not empty");
    prism.set_cluster_whitelist(Some(&["10.0.0.0/255.0.0.0"]));
    let told = central.cluster_whitelist(&inherits.cluster_ext_id).await.unwrap();
    assert_eq!(told, Some(vec!["10.0.0.0/255.0.0.0".to_owned()]));

    prism.set_whitelist(Some(&["198.51.100.0/24"]));
    let (own, etag) = central.get_container(ctr).await.unwrap().unwrap();
    assert_eq!((own.inherits_whitelist, own.whitelist), (false, vec!["198.51.100.0/24".to_owned()]));
    let address = "192.0.2.7".parse().unwrap();
    let task = central.set_whitelisted(ctr, address, true, &etag, &format!("{ORDER}20")).await.unwrap();
    done(&central, &task).await;
    let (added, newer) = central.get_container(ctr).await.unwrap().unwrap();
    assert_eq!(added.whitelist, ["198.51.100.0/24", "192.0.2.7/32"]);
    let stale = central.set_whitelisted(ctr, address, false, &etag, &format!("{ORDER}21")).await;
    assert!(matches!(stale, Err(PrismError::PreconditionFailed { .. })));
    let task = central.set_whitelisted(ctr, address, false, &newer, &format!("{ORDER}22")).await.unwrap();
    done(&central, &task).await;
    assert_eq!(prism.whitelist().unwrap(), ["198.51.100.0/24"], "nothing else is changed");
    assert!(central.get_container("00000000-0000-4000-8000-000000000000").await.unwrap().is_none());
}

#[tokio::test]
async fn the_start_of_a_disk_is_read_back_through_both_prisms() {
    use std::os::unix::fs::FileExt;
    let Bench { prism, central, element, _dir } = start();
    let id = create(&prism).await;
    let vm = prism.vm_by_name("web01").unwrap();
    let marker = drover::flow::canary::marker("uid-1", "vda", "n1");
    std::fs::File::options().write(true).open(&vm.disks[0].path).unwrap().write_all_at(&marker, 0).unwrap();
    let disks = [vm.disks[0].device_uuid.as_str(), vm.disks[1].device_uuid.as_str()];
    let starts = central.disk_starts(&id, &disks, 512).await.unwrap();
    assert_eq!(starts[0], (disks[0].to_owned(), marker.to_vec()));
    assert_eq!(starts[1], (disks[1].to_owned(), vec![0; 512]));
    assert_eq!(element.disk_starts(&id, &disks, 512).await.unwrap(), starts);
    prism.switches().remove_v2(true);
    assert!(element.disk_starts(&id, &disks, 512).await.is_ok(), "v3 does not go with v2");
    for status in [403, 404, 410, 422, 501] {
        prism.switches().show_disks(DiskData::Refused(status));
        let error = central.disk_starts(&id, &disks, 512).await.unwrap_err();
        assert!(error.is_not_offered(), "{status}: {error}");
    }
    prism.switches().show_disks(DiskData::Refused(401));
    assert!(!central.disk_starts(&id, &disks, 512).await.unwrap_err().is_not_offered());
    prism.switches().show_disks(DiskData::OfAnother);
    assert_eq!(central.disk_starts(&id, &disks[..1], 512).await.unwrap()[0].1, vec![0; 512]);
}

#[tokio::test]
async fn guest_tools_are_mounted_and_installed() {
    let Bench { prism, central, _dir, .. } = start();
    let id = create(&prism).await;
    let (none, etag) = central.guest_tools(&id).await.unwrap();
    assert!(!none.is_installed && !none.is_iso_inserted);
    let task = central.mount_guest_tools(&id, &etag, &format!("{ORDER}30")).await.unwrap();
    done(&central, &task).await;
    let (mounted, etag) = central.guest_tools(&id).await.unwrap();
    assert!(!mounted.is_installed && mounted.is_iso_inserted);
    let off = central.install_guest_tools(&id, "root", "guest", &etag, &format!("{ORDER}31")).await.unwrap();
    while central.task(&off).await.unwrap() == TaskState::Open {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let failed = central.task(&off).await.unwrap();
    assert!(matches!(&failed, TaskState::Failed { message } if message.contains("is off")), "{failed:?}");
    let (_, etag) = central.get_vm(&id).await.unwrap().unwrap();
    done(&central, &central.power_on(&id, &etag, &format!("{ORDER}32")).await.unwrap()).await;
    let (_, etag) = central.guest_tools(&id).await.unwrap();
    let task = central.install_guest_tools(&id, "root", "guest", &etag, &format!("{ORDER}33")).await.unwrap();
    done(&central, &task).await;
    assert!(central.guest_tools(&id).await.unwrap().0.is_installed);
}
