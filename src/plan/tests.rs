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
    make(&PlanInput {
        machine,
        hostname: "web01",
        cluster_ext_id: "cluster",
        container_ext_id: "container",
        subnet_ext_ids: &[(10, "subnet".into())],
        path_template: "vms/{hostname}.tf",
        shutdown: &ShutdownPolicy::default(),
        origin: "test",
    })
}

fn reasons(machine: &Machine) -> Vec<&'static str> {
    findings(machine, "web01", &[10]).into_iter().map(|finding| finding.reason).collect()
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
    let table: [(fn(&mut Machine), &str); 9] = [
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
