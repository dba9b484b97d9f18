//! Domain XMLs and what is read from them.

use super::*;

const USUAL: &str = r#"
<domain type='kvm' id='3'>
  <name>web01</name>
  <uuid>5d2d1c1a-0000-4000-8000-000000000001</uuid>
  <title>Web server of client A</title>
  <memory unit='MiB'>2048</memory>
  <vcpu placement='static'>4</vcpu>
  <os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os>
  <cpu mode='host-model'><topology sockets='2' dies='1' cores='2' threads='1'/></cpu>
  <on_poweroff>destroy</on_poweroff>
  <devices>
    <disk type='file' device='cdrom'><target dev='hda' bus='ide'/><readonly/></disk>
    <disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vg/data'/><target dev='vdb' bus='virtio'/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/images/web01.qcow2'/><target dev='vda' bus='virtio'/><boot order='1'/></disk>
    <disk type='file' device='disk'><source file='/images/shared.img'/><target dev='vdc' bus='virtio'/><shareable/></disk>
    <interface type='bridge'><mac address='52:54:00:AA:BB:CC'/><source bridge='br0'/><vlan><tag id='10'/></vlan></interface>
    <interface type='network'><mac address='52:54:00:aa:bb:cd'/><source network='default'/></interface>
  </devices>
</domain>"#;

fn with(from: &str, to: &str) -> Result<Machine, MachineError> {
    assert!(USUAL.contains(from), "the fixture has no {from}");
    parse(&USUAL.replace(from, to), true)
}

#[test]
fn reads_a_usual_domain() {
    let machine = parse(USUAL, true).expect("it is a usual domain");
    assert_eq!(machine.cpu, Cpu { sockets: 2, cores_per_socket: 2, threads_per_core: 1 });
    assert_eq!(machine.memory_bytes, 2 << 30);
    assert_eq!((machine.firmware, machine.board), (Firmware::Bios, Board::Pc));
    let devices: Vec<&str> = machine.disks.iter().map(|disk| disk.device.as_str()).collect();
    assert_eq!(devices, ["vda", "vdb"], "the boot disk comes first");
    assert_eq!(machine.disks[0].format, DiskFormat::Qcow2);
    assert_eq!((machine.disks[1].source, machine.disks[1].path.as_str()), (DiskSource::Block, "/dev/vg/data"));
    let left_out: Vec<&str> = machine.left_out.iter().map(|disk| disk.device.as_str()).collect();
    assert_eq!(left_out, ["hda", "vdc"]);
    assert_eq!(machine.nics[0].mac, "52:54:00:aa:bb:cc");
    assert_eq!((machine.nics[0].vlan, machine.nics[1].vlan), (Some(10), None));
}

#[test]
fn reads_firmware() {
    let os = "<os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os>";
    let of = |os_xml: &str| with(os, os_xml).map(|machine| (machine.firmware, machine.board));
    assert_eq!(of("<os firmware='efi'><type machine='q35'>hvm</type></os>"), Ok((Firmware::Uefi, Board::Q35)));
    assert_eq!(
        of(
            "<os><type machine='pc-q35-7.2'>hvm</type><loader readonly='yes' secure='yes' type='pflash'>/OVMF.fd</loader></os>"
        ),
        Ok((Firmware::SecureBoot, Board::Q35))
    );
    assert_eq!(
        of(
            "<os firmware='efi'><type machine='q35'>hvm</type><firmware><feature enabled='yes' name='secure-boot'/></firmware></os>"
        ),
        Ok((Firmware::SecureBoot, Board::Q35))
    );
}

#[test]
fn refuses_what_it_does_not_know_instead_of_guessing() {
    let unknown = |from: &str, to: &str| {
        assert!(matches!(with(from, to), Err(MachineError::Unknown { .. })), "{to} was accepted")
    };
    unknown("machine='pc-i440fx-7.2'", "machine='virt-7.2'");
    unknown("<os>", "<os firmware='coreboot'>");
    unknown("dev='vda' bus='virtio'", "dev='vda' bus='xen'");
    unknown("<memory unit='MiB'>", "<memory unit='pages'>");
    unknown("<vcpu placement='static'>4", "<vcpu placement='static'>many");
    unknown("<vlan><tag id='10'/></vlan>", "<vlan trunk='yes'><tag id='10'/></vlan>");
    unknown("<vlan><tag id='10'/></vlan>", "<vlan><tag id='10'/><tag id='11'/></vlan>");
    unknown("<tag id='10'/>", "<tag id='ten'/>");
}

#[test]
fn counts_each_cpu_as_a_socket_without_a_topology() {
    let machine = with("<topology sockets='2' dies='1' cores='2' threads='1'/>", "").expect("valid");
    assert_eq!(machine.cpu, Cpu { sockets: 4, cores_per_socket: 1, threads_per_core: 1 });
}

#[test]
fn never_panics_on_mutilated_xml() {
    let text = USUAL.as_bytes();
    for cut in 0..text.len() {
        let _ = parse(&String::from_utf8_lossy(&text[..cut]), true);
        let without = [&text[..cut], &text[(cut + 7).min(text.len())..]].concat();
        let _ = parse(&String::from_utf8_lossy(&without), true);
    }
}
