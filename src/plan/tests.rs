//! Plans of small machines.

use super::*;
use crate::api::machine::{Disk, DiskBus, DiskFormat, DiskSource, LeftOutDisk, Nic};
use crate::api::shutdown::ShutdownPolicy;

pub(crate) fn machine() -> Machine {
    let disk = |device: &str, size_bytes| Disk {
        device: device.into(),
        bus: DiskBus::Virtio,
        source: DiskSource::File,
        path: format!("/images/{device}.img"),
        format: DiskFormat::Raw,
        size_bytes,
    };
    Machine {
        name: "web01".into(),
        uuid: "5d2d1c1a-0000-4000-8000-000000000001".into(),
        title: None,
        cpu: Cpu { sockets: 2, cores_per_socket: 3, threads_per_core: 1 },
        memory_bytes: 5 * GIB,
        firmware: Firmware::Bios,
        board: Board::Pc,
        disks: vec![disk("vda", GIB), disk("vdb", 3 * GIB + 512)],
        left_out: vec![],
        nics: vec![Nic { mac: "52:54:00:00:00:01".into(), vlan: Some(10), network: None }],
        on_poweroff: "destroy".into(),
        persistent: true,
    }
}

fn plan_of(machine: &Machine) -> Result<Plan, PlanError> {
    plan_with(machine, &Choices::default(), "vms/{hostname}.tf")
}

fn plan_with(machine: &Machine, choices: &Choices, path_template: &str) -> Result<Plan, PlanError> {
    make(&PlanInput {
        machine,
        hostname: "web01",
        placement: &placement(),
        choices,
        path_template,
        identifiers: Identifiers::Uuid,
        shutdown: &ShutdownPolicy::default(),
        origin: "test",
    })
}

pub(crate) fn placement() -> Placement {
    let named = |name: &str| Named { name: name.into(), ext_id: format!("{name}-id") };
    Placement {
        cluster: named("cluster"),
        container: named("container"),
        subnets: vec![(10, named("subnet"))],
        categories: vec![],
    }
}

fn reasons(machine: &Machine) -> Vec<&'static str> {
    findings(machine, "web01", &[10], TargetBus::Scsi).into_iter().map(|finding| finding.reason).collect()
}

#[test]
fn targets_are_a_gibibyte_larger_in_whole_mebibytes() {
    let plan = plan_of(&machine()).expect("it can be planned");
    let sizes: Vec<u64> = plan.disks.iter().map(|disk| disk.size_bytes).collect();
    assert_eq!(sizes, [2 * GIB, 4 * GIB + MIB]);
    assert_eq!(plan.path, "vms/web01.tf");
}

#[test]
fn the_digest_changes_with_everything_that_matters_and_with_nothing_else() {
    let digest_of = |machine: &Machine| digest(&plan_of(machine).expect("plan"), "file");
    let base = machine();
    assert_eq!(digest_of(&base), digest_of(&base.clone()));
    let changes: [fn(&mut Machine); 6] = [
        |machine| machine.uuid.push('0'),
        |machine| machine.disks.reverse(),
        |machine| machine.disks[0].size_bytes += 512,
        |machine| machine.disks[0].path.push('x'),
        |machine| machine.nics[0].mac.push('0'),
        |machine| machine.memory_bytes += 1,
    ];
    for change in changes {
        let mut changed = machine();
        change(&mut changed);
        assert_ne!(digest_of(&base), digest_of(&changed));
    }
    let plan = plan_of(&base).expect("plan");
    assert_ne!(digest(&plan, "file"), digest(&plan, "another file"));
}

#[test]
fn a_fit_machine_has_no_findings() {
    assert_eq!(reasons(&machine()), Vec::<&str>::new());
}

#[test]
fn unfit_machines_are_found_before_anything_starts() {
    #[allow(clippy::type_complexity)]
    let table: [(fn(&mut Machine), &str); 10] = [
        (|machine| machine.firmware = Firmware::SecureBoot, "SecureBootWithoutQ35"),
        (|machine| machine.persistent = false, "TransientDomain"),
        (|machine| machine.on_poweroff = "restart".into(), "OnPoweroff"),
        (|machine| machine.disks.clear(), "NoDisks"),
        (|machine| machine.disks[0].source = DiskSource::Other, "UnsupportedDiskSource"),
        (|machine| machine.disks[0].format = DiskFormat::Qcow2, "UnsupportedDiskFormat"),
        (|machine| machine.disks[0].size_bytes = 1000, "OddDiskSize"),
        (|machine| machine.disks[0].size_bytes = 0, "DiskSizeUnknown"),
        (|machine| machine.nics[0].vlan = None, "NoSubnetForVlan"),
        (
            |machine| machine.left_out.push(LeftOutDisk { device: "hda".into(), why: "it is a cdrom".into() }),
            "DiskLeftOut",
        ),
    ];
    for (change, reason) in table {
        let mut changed = machine();
        change(&mut changed);
        assert_eq!(reasons(&changed), [reason]);
    }
}

#[test]
fn secure_boot_on_q35_is_fit() {
    let secure = Machine { firmware: Firmware::SecureBoot, board: Board::Q35, ..machine() };
    assert_eq!(reasons(&secure), Vec::<&str>::new());
}

#[test]
fn each_bus_has_its_limit() {
    let with_disks = |count: usize| Machine { disks: vec![machine().disks[0].clone(); count], ..machine() };
    let is_too_many = |count, bus| {
        findings(&with_disks(count), "web01", &[10], bus).iter().any(|finding| finding.reason == "TooManyDisks")
    };
    assert!(!is_too_many(7, TargetBus::Pci) && is_too_many(8, TargetBus::Pci));
    assert!(!is_too_many(256, TargetBus::Scsi) && is_too_many(257, TargetBus::Scsi));
}

#[test]
fn overrides_add_categories_and_replace_the_project() {
    let category = |value: &str| Category { key: "Environment".into(), value: value.into() };
    let mut cluster: NutanixClusterSpec = serde_json::from_value(serde_json::json!({
        "prismCentral": {"url": "https://pc:9440", "credentials": {"name": "pc"}},
        "prismElement": {"url": "https://pe:9440", "credentials": {"name": "pe"}},
        "clusterName": "c1", "storageContainer": "ctr", "nfs": {"address": "10.0.0.1"},
    }))
    .expect("valid");
    cluster.categories = vec![category("Test"), category("Production")];
    cluster.project = Some("the cluster's".into());
    assert_eq!(choices(&cluster, &Overrides::default()).project.as_deref(), Some("the cluster's"));
    let overrides = Overrides {
        categories: vec![category("Test"), category("Migrated")],
        project: Some("its own".into()),
        disk_bus: Some(TargetBus::Pci),
    };
    let chosen = choices(&cluster, &overrides);
    assert_eq!(chosen.categories, ["Migrated", "Production", "Test"].map(category));
    assert_eq!((chosen.project.as_deref(), chosen.disk_bus), (Some("its own"), TargetBus::Pci));
    assert_eq!(plan_with(&machine(), &chosen, "{hostname}.tf").expect("plan").disk_bus, TargetBus::Pci);
}

#[test]
fn a_file_that_terraform_would_merge_into_others_is_refused() {
    for template in ["{hostname}_override.tf", "vms/{hostname}/override.tf"] {
        let refused = plan_with(&machine(), &Choices::default(), template);
        assert!(matches!(refused, Err(PlanError::OverrideFile { .. })), "{template}");
    }
    assert!(plan_with(&machine(), &Choices::default(), "vms/{hostname}.override.tf").is_ok());
}
