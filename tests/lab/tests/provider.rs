//! The Terraform provider makes the calls that the vendor's provider 2.4.2 was traced making, in the same order.

use std::fs;
use std::process::{Command, Output};
use std::sync::Arc;

use drover_lab::hypervisor::NoHypervisor;
use drover_lab::prism::{Prism, PrismConfig};
use drover_lab::terraform::environment;
use drover_lab::tools::Tools;

const GIB: u64 = 1 << 30;

/// Terraform in a directory of its own, and the Prism it talks to.
struct Bench {
    prism: Prism,
    tools: Tools,
    dir: tempfile::TempDir,
}

/// What varies in the VM under test.
#[derive(Clone)]
struct Vm {
    power: &'static str,
    cores: u32,
    disks_gib: Vec<u64>,
    rest: &'static str,
}

impl Default for Vm {
    fn default() -> Self {
        Self { power: "OFF", cores: 1, disks_gib: vec![1], rest: "" }
    }
}

impl Bench {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let prism = Prism::start(PrismConfig {
            dir: dir.path().join("prism"),
            export_root: dir.path().join("export"),
            container: "drover".into(),
            cluster_name: "ahv1".into(),
            subnets: vec![("lan".into(), 10)],
            username: "admin".into(),
            password: "secret".into(),
            hypervisor: Arc::new(NoHypervisor::default()),
            log_path: dir.path().join("prism.log"),
        })
        .unwrap();
        let bench = Self { prism, tools: Tools::ready().unwrap(), dir };
        bench.write("terraform {\n  required_providers {\n    nutanix = { source = \"nutanix/nutanix\" }\n  }\n}\n");
        bench.terraform(&["init"]);
        bench
    }

    fn write(&self, text: &str) {
        fs::write(self.dir.path().join("main.tf"), text).unwrap();
    }

    fn write_vm(&self, vm: &Vm) {
        let disk = |(index, gib): (usize, &u64)| {
            format!(
                "disks {{\n disk_address {{\n bus_type = \"SCSI\"\n index = {index}\n }}\n backing_info {{\n vm_disk {{\n \
                 disk_size_bytes = {}\n storage_container {{\n ext_id = \"{}\"\n }}\n }}\n }}\n }}\n",
                gib * GIB,
                self.prism.container_uuid()
            )
        };
        let disks: String = vm.disks_gib.iter().enumerate().map(disk).collect();
        self.write(&format!(
            "terraform {{\n required_providers {{\n nutanix = {{ source = \"nutanix/nutanix\" }}\n }}\n }}\n\
             resource \"nutanix_virtual_machine_v2\" \"vm\" {{\n name = \"vm\"\n num_sockets = 1\n \
             num_cores_per_socket = {}\n memory_size_bytes = 268435456\n power_state = \"{}\"\n \
             cluster {{\n ext_id = \"{}\"\n }}\n {disks}\n {}\n }}\n",
            vm.cores,
            vm.power,
            self.prism.cluster_uuid(),
            vm.rest
        ));
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(&self.tools.terraform)
            .args(arguments)
            .arg("-no-color")
            .current_dir(self.dir.path())
            .envs(environment(&self.tools, self.prism.central_url(), "admin", "secret").unwrap())
            .output()
            .unwrap()
    }

    fn terraform(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// The calls that Terraform makes; repeated polls of a task are one.
    fn calls_of(&self, arguments: &[&str]) -> Vec<String> {
        let before = self.prism.calls().len();
        self.terraform(arguments);
        let mut calls: Vec<String> = Vec::new();
        for call in self.prism.calls().into_iter().skip(before) {
            let guarded = call.method != "GET" && call.if_match.is_some_and(|etag| !etag.is_empty());
            let name = format!("{} {}{}", call.method, shape(&call.path), if guarded { " If-Match" } else { "" });
            if !(name.ends_with("task") && calls.last() == Some(&name)) {
                calls.push(name);
            }
        }
        calls
    }

    fn apply(&self, vm: &Vm) -> Vec<String> {
        self.write_vm(vm);
        self.calls_of(&["apply", "-auto-approve"])
    }

    fn plan(&self) -> String {
        self.terraform(&["plan"])
    }
}

/// `/api/vmm/v4.2/ahv/config/vms/<uuid>/disks/<uuid>` becomes `vm/disk`.
fn shape(path: &str) -> String {
    if path.ends_with("/unversioned/info") {
        return path.split('/').nth(2).unwrap().to_owned();
    }
    if path.contains("/config/tasks/") {
        return "task".into();
    }
    let Some((_, rest)) = path.split_once("/v4.2/ahv/config/") else { return path.to_owned() };
    match rest.split('/').collect::<Vec<_>>()[..] {
        ["vms"] => "vms".into(),
        ["vms", _] => "vm".into(),
        ["vms", _, "disks"] => "vm/disks".into(),
        ["vms", _, "disks", _] => "vm/disk".into(),
        ["vms", _, "$actions", action] => action.into(),
        _ => path.to_owned(),
    }
}

#[test]
fn a_vm_is_created_off_and_reread_without_a_difference() {
    let bench = Bench::start();
    let vm = Vm { disks_gib: vec![2, 1], ..Vm::default() };
    // The second poll of the task, for the VM's id, is merged with the first by `calls_of`.
    let create = ["OPTIONS vmm", "POST vms", "OPTIONS prism", "GET task", "GET vm", "GET vm"];
    assert_eq!(bench.apply(&vm), create);
    assert_eq!(bench.calls_of(&["plan"]), ["OPTIONS vmm", "GET vm"]);
    assert!(bench.plan().contains("No changes"));
    assert!(!bench.prism.vm_by_name("vm").unwrap().is_on);
}

#[test]
fn power_is_changed_by_guarded_actions() {
    let bench = Bench::start();
    let on = Vm { power: "ON", ..Vm::default() };
    let created = bench.apply(&on);
    let power_on = ["GET vm", "GET vm", "POST power-on If-Match", "GET task", "GET vm", "GET vm"];
    assert_eq!(created[..4], ["OPTIONS vmm", "POST vms", "OPTIONS prism", "GET task"]);
    assert_eq!(created[4..], power_on);
    assert!(bench.prism.vm_by_name("vm").unwrap().is_on);

    let off = bench.apply(&Vm::default());
    assert_eq!(off[..2], ["OPTIONS vmm", "GET vm"]);
    let calls: Vec<&str> = off[2..].iter().map(String::as_str).filter(|call| !call.starts_with("OPTIONS")).collect();
    assert_eq!(calls, ["GET vm", "GET vm", "GET vm", "POST power-off If-Match", "GET task", "GET vm", "GET vm"]);
    assert!(!bench.prism.vm_by_name("vm").unwrap().is_on);
}

#[test]
fn a_disk_is_grown_added_and_taken_away_by_calls_of_its_own() {
    let bench = Bench::start();
    bench.apply(&Vm::default());
    let before = bench.prism.vm_by_name("vm").unwrap().disks.remove(0);

    let grown = bench.apply(&Vm { disks_gib: vec![2], ..Vm::default() });
    assert!(grown.contains(&"PUT vm/disk If-Match".to_owned()), "{grown:?}");
    assert!(!grown.contains(&"PUT vm If-Match".to_owned()), "{grown:?}");
    let after = bench.prism.vm_by_name("vm").unwrap().disks.remove(0);
    assert_eq!((after.device_uuid, after.vmdisk_uuid), (before.device_uuid, before.vmdisk_uuid));
    assert_eq!(after.size_bytes, 2 * GIB);
    assert!(bench.plan().contains("No changes"));

    let added = bench.apply(&Vm { disks_gib: vec![2, 1], ..Vm::default() });
    assert!(added.contains(&"POST vm/disks If-Match".to_owned()), "{added:?}");
    assert_eq!(bench.prism.vm_by_name("vm").unwrap().disks.len(), 2);

    let removed = bench.apply(&Vm { disks_gib: vec![2], ..Vm::default() });
    assert!(removed.contains(&"DELETE vm/disk If-Match".to_owned()), "{removed:?}");
    assert_eq!(bench.prism.vm_by_name("vm").unwrap().disks.len(), 1);
}

#[test]
fn a_cold_change_switches_a_running_vm_off_and_on_again() {
    let bench = Bench::start();
    bench.apply(&Vm { power: "ON", ..Vm::default() });
    let changed = bench.apply(&Vm { power: "ON", cores: 2, ..Vm::default() });
    let changes: Vec<&str> = changed.iter().map(String::as_str).filter(|call| call.ends_with("If-Match")).collect();
    assert_eq!(changes, ["POST power-off If-Match", "PUT vm If-Match", "POST power-on If-Match"]);
    assert!(bench.prism.vm_by_name("vm").unwrap().is_on);

    bench.apply(&Vm { cores: 2, ..Vm::default() });
    let cold = bench.apply(&Vm { cores: 1, ..Vm::default() });
    let changes: Vec<&str> = cold.iter().map(String::as_str).filter(|call| call.ends_with("If-Match")).collect();
    assert_eq!(changes, ["PUT vm If-Match"], "a VM that is off stays off");
    assert!(bench.plan().contains("No changes"));
}

#[test]
fn a_vm_is_destroyed_with_its_etag_and_a_vanished_one_is_an_error() {
    let bench = Bench::start();
    bench.apply(&Vm::default());
    let state = bench.dir.path().join("terraform.tfstate");
    let kept = fs::read(&state).unwrap();
    let destroyed = bench.calls_of(&["destroy", "-auto-approve"]);
    assert_eq!(destroyed[..2], ["OPTIONS vmm", "GET vm"]);
    assert!(destroyed.contains(&"DELETE vm If-Match".to_owned()), "{destroyed:?}");
    assert!(bench.prism.vms().is_empty());

    fs::write(&state, &kept).unwrap();
    let output = bench.run(&["plan"]);
    assert!(!output.status.success());
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(complaint.contains("404"), "{complaint}");
}

#[test]
fn what_drover_ignores_is_no_difference() {
    let bench = Bench::start();
    let ignoring = Vm {
        rest: "lifecycle {\n ignore_changes = [power_state, cd_roms, guest_tools]\n prevent_destroy = true\n }",
        ..Vm::default()
    };
    bench.apply(&ignoring);
    // The same machine, found on: somebody powered it on by hand.
    bench.write_vm(&Vm { power: "ON", rest: "", ..Vm::default() });
    bench.terraform(&["apply", "-auto-approve"]);
    bench.write_vm(&ignoring);
    assert!(bench.plan().contains("No changes"));
    assert!(bench.prism.vm_by_name("vm").unwrap().is_on);

    let refused = bench.run(&["destroy", "-auto-approve"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("prevent_destroy"));
}
