//! The Prism edge against simulated Prism, which is itself held to the vendor's SDKs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on is to panic, in its helpers too")]

use std::sync::Arc;

use drover::edge::prism::{PowerState, PrismCentral, PrismElement, PrismError, TaskState};
use drover_lab::hypervisor::NoHypervisor;
use drover_lab::prism::{Prism, PrismConfig};
use serde_json::json;

const GIB: u64 = 1 << 30;

struct Bench {
    prism: Prism,
    central: PrismCentral,
    element: PrismElement,
    _dir: tempfile::TempDir,
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
    let central = PrismCentral::new(prism.central_url(), "admin", "secret", Some(prism.ca_pem())).unwrap();
    let element = PrismElement::new(prism.element_url(), "admin", "secret", Some(prism.ca_pem())).unwrap();
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
    let wrong = PrismCentral::new(prism.central_url(), "admin", "wrong", Some(prism.ca_pem())).unwrap();
    assert!(matches!(wrong.find_cluster("ahv1").await, Err(PrismError::Unauthorized { .. })));
    let untrusting = PrismCentral::new(prism.central_url(), "admin", "secret", None).unwrap();
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
