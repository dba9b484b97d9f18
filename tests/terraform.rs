//! The Terraform files of a set of source machines: `tests/golden/NAME.xml` is what libvirt tells, `NAME.tf` what is committed for it.
//! Each is as it was when somebody last looked (`UPDATE=1` writes them anew), and the real engine makes of all of them together
//! exactly what was planned.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on is to panic, in its helpers too")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use drover::api::common::Category;
use drover::api::machine::{Board, Firmware, TargetBus};
use drover::api::shutdown::ShutdownPolicy;
use drover::api::terraform_repository::Identifiers;
use drover::plan::{self, Choices, Named, Placement, Plan, PlanInput, PlannedCategory};
use drover::{machine, render};
use drover_lab::hypervisor::NoHypervisor;
use drover_lab::pipeline::seed_files;
use drover_lab::prism::{Prism, PrismConfig};
use drover_lab::terraform::{VMS_DIR, environment};
use drover_lab::tools::Tools;
use serde_json::{Value, json};

const GIB: u64 = 1 << 30;
const CLUSTER: &str = "ahv1";
const CONTAINER: &str = "default-container";
/// Subnets by VLAN. A name may be anything in Prism.
const SUBNETS: [(&str, u16); 4] = [("lan", 0), ("vlan10", 10), ("vlan20", 20), ("it's the \"dmz\" ${x} %{y}", 30)];
const CATEGORIES: [(&str, &str); 3] =
    [("AppType", "it's \"quoted\" ${x} %{y} \\"), ("Environment", "Production"), ("Environment", "Test")];
const PROJECT: &str = "9f3c1a52-0000-4000-8000-0000000000aa";

/// A golden file, and what its migration says beside the machine.
struct Case {
    name: &'static str,
    hostname: &'static str,
    identifiers: Identifiers,
    bus: TargetBus,
    /// How many of [`CATEGORIES`] it has.
    categories: usize,
    project: Option<&'static str>,
}

const fn case(name: &'static str, hostname: &'static str) -> Case {
    Case { name, hostname, identifiers: Identifiers::Uuid, bus: TargetBus::Scsi, categories: 0, project: None }
}

const CASES: [Case; 15] = [
    case("bios", "web01"),
    case("uefi", "mail01"),
    case("secure-boot", "win01"),
    case("eight-disks", "db01"),
    Case { bus: TargetBus::Pci, ..case("pci", "cache01") },
    case("nics", "gw01"),
    case("topology", "app01"),
    case("hostile", "web-01.hostile"),
    case("block-devices", "san01"),
    Case { identifiers: Identifiers::DataSource, categories: 3, ..case("data-source", "shop01") },
    Case { categories: 2, project: Some(PROJECT), ..case("categories", "erp01") },
    Case {
        identifiers: Identifiers::DataSource,
        ..case("long-name", "a-machine-of-a-client-with-a-name-as-long-as-prism-lets-it-be-000000.example.com")
    },
    Case { identifiers: Identifiers::DataSource, categories: 1, ..case("dotted", "web.01") },
    Case { identifiers: Identifiers::DataSource, categories: 1, ..case("underscored", "web_01") },
    case("digits", "01web"),
];

fn golden(name: &str, extension: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.{extension}"))
}

/// Identifiers of what a test gives to simulated Prism are the same in every run.
fn prism(dir: &Path) -> Prism {
    let prism = Prism::start(PrismConfig {
        dir: dir.join("prism"),
        export_root: dir.join("export"),
        container: CONTAINER.into(),
        cluster_name: CLUSTER.into(),
        subnets: SUBNETS.map(|(name, vlan)| (name.into(), vlan)).into(),
        username: "admin".into(),
        password: "secret".into(),
        hypervisor: Arc::new(NoHypervisor::default()),
        log_path: dir.join("prism.log"),
    })
    .unwrap();
    for (key, value) in CATEGORIES {
        prism.add_category(key, value);
    }
    prism
}

fn placement(prism: &Prism, case: &Case) -> Placement {
    let named = |name: &str, ext_id: &str| Named { name: name.into(), ext_id: ext_id.into() };
    let subnets = SUBNETS.map(|(name, vlan)| (vlan, named(name, prism.subnet_uuid(name).unwrap())));
    let categories = CATEGORIES[..case.categories].iter().map(|(key, value)| PlannedCategory {
        category: Category { key: (*key).into(), value: (*value).into() },
        ext_id: prism.category_uuid(key, value).unwrap(),
    });
    Placement {
        cluster: named(CLUSTER, prism.cluster_uuid()),
        container: named(CONTAINER, prism.container_uuid()),
        subnets: subnets.into(),
        categories: categories.collect(),
    }
}

/// The plan of a golden machine. Its disks are of 1, 2, 3 … GiB and some sectors: the domain XML tells no sizes.
fn planned(prism: &Prism, case: &Case) -> Plan {
    let mut source = machine::parse(&fs::read_to_string(golden(case.name, "xml")).unwrap(), true).unwrap();
    for (index, disk) in (0..).zip(&mut source.disks) {
        disk.size_bytes = (index + 1) * GIB + index * 512;
    }
    let placement = placement(prism, case);
    let vlans = SUBNETS.map(|(_, vlan)| vlan);
    let found = plan::findings(&source, case.hostname, &vlans, case.bus);
    assert!(!found.iter().any(plan::Finding::blocks), "{}: {found:?}", case.name);
    plan::make(&PlanInput {
        machine: &source,
        hostname: case.hostname,
        placement: &placement,
        choices: &Choices {
            categories: placement.categories.iter().map(|planned| planned.category.clone()).collect(),
            project: case.project.map(str::to_owned),
            disk_bus: case.bus,
        },
        path_template: "vms/{hostname}.tf",
        identifiers: case.identifiers,
        shutdown: &ShutdownPolicy::default(),
        origin: &format!("VmMigration team-a/{} uid 0b5e7c1e-0000-4000-8000-000000000001", case.name),
    })
    .unwrap()
}

#[test]
fn golden_files_are_as_rendered() {
    let dir = tempfile::tempdir().unwrap();
    let prism = prism(dir.path());
    let update = std::env::var_os("UPDATE").is_some();
    for case in &CASES {
        let text = render::terraform::file(&planned(&prism, case));
        let path = golden(case.name, "tf");
        if update {
            fs::write(&path, &text).unwrap();
        }
        let kept = fs::read_to_string(&path).unwrap();
        assert!(text == kept, "{} is not as rendered; UPDATE=1 writes it anew. Rendered:\n{text}", path.display());
    }
    let files = fs::read_dir(golden("x", "tf").parent().unwrap()).unwrap();
    assert_eq!(files.count(), 2 * CASES.len(), "a file in tests/golden belongs to no case");
}

/// The engine, in a directory with all golden files, as a team's repository has them.
struct Repository {
    dir: tempfile::TempDir,
    tools: Tools,
    prism: Prism,
}

impl Repository {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let prism = prism(dir.path());
        let vms = dir.path().join(VMS_DIR);
        fs::create_dir(&vms).unwrap();
        for (path, text) in seed_files() {
            fs::write(dir.path().join(path), text).unwrap();
        }
        for case in &CASES {
            fs::copy(golden(case.name, "tf"), vms.join(format!("{}.tf", case.hostname))).unwrap();
        }
        Self { dir, tools: Tools::ready().unwrap(), prism }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(&self.tools.terraform)
            .args(arguments)
            .arg("-no-color")
            .current_dir(self.dir.path().join(VMS_DIR))
            .envs(environment(&self.tools, self.prism.central_url(), "admin", "secret").unwrap())
            .output()
            .unwrap()
    }

    fn succeeds(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// All entities of a list of the v4 API.
    fn list(&self, path: &str) -> Vec<Value> {
        let ca = reqwest::Certificate::from_pem(self.prism.ca_pem().as_bytes()).unwrap();
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([ca]).build().unwrap();
        let url = format!("{}/api/{path}?$limit=100", self.prism.central_url());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answer: Value = runtime.block_on(async {
            client.get(url).basic_auth("admin", Some("secret")).send().await.unwrap().json().await.unwrap()
        });
        answer["data"].as_array().unwrap().clone()
    }
}

#[test]
fn golden_files_together_become_the_planned_vms() {
    let repository = Repository::new();
    repository.succeeds(&["fmt", "-check", "-diff"]);
    repository.succeeds(&["init"]);
    repository.succeeds(&["validate"]);
    let applied = repository.succeeds(&["apply", "-auto-approve"]);
    assert!(applied.contains(&format!("{} added, 0 changed, 0 destroyed", CASES.len())), "{applied}");

    let again = repository.run(&["plan", "-detailed-exitcode"]);
    let text = String::from_utf8_lossy(&again.stdout);
    assert!(again.status.code() == Some(0) && text.contains("No changes"), "{text}");

    let vms = repository.list("vmm/v4.2/ahv/config/vms");
    let subnets = repository.list("networking/v4.2/config/subnets");
    assert_eq!(vms.len(), CASES.len());
    for case in &CASES {
        let vm = vms.iter().find(|vm| vm["name"] == case.hostname).unwrap();
        let plan = planned(&repository.prism, case);
        assert_eq!(as_it_is(vm, &subnets), as_planned(&plan), "{}", case.name);
    }

    let refused = repository.run(&["destroy", "-auto-approve"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("prevent_destroy"));
    assert_eq!(repository.prism.vms().len(), CASES.len());

    let (key, value) = CATEGORIES[0];
    repository.prism.add_category(key, value);
    let ambiguous = repository.run(&["plan"]);
    assert!(!ambiguous.status.success(), "a name that is there twice was taken for one");
    assert!(String::from_utf8_lossy(&ambiguous.stderr).contains("one(data.nutanix_categories_v2.shop01_AppType"));
}

/// What matters of a VM, as the plan has it.
fn as_planned(plan: &Plan) -> Value {
    let bus = match plan.disk_bus {
        TargetBus::Scsi => "SCSI",
        TargetBus::Pci => "PCI",
    };
    let (boot, secure) = match plan.firmware {
        Firmware::Bios => ("LegacyBoot", Value::Null),
        Firmware::Uefi => ("UefiBoot", json!(false)),
        Firmware::SecureBoot => ("UefiBoot", json!(true)),
    };
    let source = &plan.machine;
    let categories: BTreeSet<&str> = plan.categories.iter().map(|planned| planned.ext_id.as_str()).collect();
    json!({
        "description": format!("Moved by Drover from libvirt domain {} ({}) for {}", source.name, source.uuid, plan.origin),
        "cpu": [plan.cpu.sockets, plan.cpu.cores_per_socket, plan.cpu.threads_per_core],
        "memory": plan.memory_bytes,
        "board": match plan.board { Board::Pc => "PC", Board::Q35 => "Q35" },
        "power": "OFF",
        "boot": format!("vmm.v4.ahv.config.{boot}"),
        "secure": secure,
        "disks": plan.disks.iter().enumerate()
            .map(|(index, disk)| json!([bus, index, disk.size_bytes, plan.container.ext_id])).collect::<Vec<_>>(),
        "nics": plan.nics.iter()
            .map(|nic| json!([nic.mac, nic.vlan, nic.subnet.ext_id, true])).collect::<Vec<_>>(),
        "categories": categories,
        "project": plan.project,
        "cluster": plan.cluster.ext_id,
    })
}

/// The same, as Prism shows it.
fn as_it_is(vm: &Value, subnets: &[Value]) -> Value {
    let list = |name: &str| vm[name].as_array().cloned().unwrap_or_default();
    let vlan = |subnet: &Value| subnets.iter().find(|one| one["extId"] == *subnet).unwrap()["networkId"].clone();
    let disk = |disk: Value| {
        let (address, backing) = (&disk["diskAddress"], &disk["backingInfo"]);
        json!([address["busType"], address["index"], backing["diskSizeBytes"], backing["storageContainer"]["extId"]])
    };
    let nic = |nic: Value| {
        let (card, subnet) = (&nic["nicBackingInfo"], &nic["nicNetworkInfo"]["subnet"]["extId"]);
        json!([card["macAddress"], vlan(subnet), subnet, card["isConnected"]])
    };
    let categories: BTreeSet<String> =
        list("categories").iter().map(|category| category["extId"].as_str().unwrap().to_owned()).collect();
    json!({
        "description": vm["description"],
        "cpu": [vm["numSockets"], vm["numCoresPerSocket"], vm["numThreadsPerCore"]],
        "memory": vm["memorySizeBytes"],
        "board": vm["machineType"],
        "power": vm["powerState"],
        "boot": vm["bootConfig"]["$objectType"],
        "secure": vm["bootConfig"]["isSecureBootEnabled"],
        "disks": list("disks").into_iter().map(disk).collect::<Vec<_>>(),
        "nics": list("nics").into_iter().map(nic).collect::<Vec<_>>(),
        "categories": categories,
        "project": vm["project"]["extId"],
        "cluster": vm["cluster"]["extId"],
    })
}
