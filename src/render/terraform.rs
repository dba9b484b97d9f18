//! A plan as a Terraform file with one `nutanix_virtual_machine_v2`.
//!
//! The VM is created off and stays under the operator's power switch; it is protected from being destroyed; and what would harm it if
//! Terraform "corrected" it is ignored after creation. Attribute names: provider nutanix/nutanix 2.4.2.

use hcl::expr::Variable;
use hcl::{Attribute, Block, Body, Expression, Identifier};
use sha2::{Digest, Sha256};

use crate::api::machine::{Board, Firmware};
use crate::plan::{Plan, PlannedDisk, PlannedNic};

/// The first line of every file that Drover writes: a file without it is somebody's own and is never overwritten.
pub const HEADER: &str = "# Written by Drover";

/// The second line: the digest of all the other lines, by which an edit is told without any history.
const DIGEST: &str = "# Content sha256:";

/// The whole file, formatted as `terraform fmt` has it.
pub fn file(plan: &Plan) -> String {
    let body = Body::builder().add_block(machine(plan)).build();
    let text = hcl::to_string(&body).unwrap_or_default();
    let header =
        format!("{HEADER} for {}. Edit it after the migration is finalised, not before.", one_line(&plan.origin));
    sealed(&header, &format!("\n{}", align(&text)))
}

/// A file with the digest of its content between the first line and the others.
pub fn sealed(header: &str, others: &str) -> String {
    format!("{header}\n{DIGEST}{}\n{others}", content_digest(header, others))
}

/// Whether a file is as Drover wrote it, at whatever time: its content has the digest that it names. If not, somebody has edited it.
pub fn is_as_written(text: &str) -> bool {
    let lines = text.split_once('\n').and_then(|(header, rest)| Some((header, rest.split_once('\n')?)));
    lines.is_some_and(|(header, (digest, others))| {
        digest.strip_prefix(DIGEST) == Some(content_digest(header, others).as_str())
    })
}

fn content_digest(header: &str, others: &str) -> String {
    format!("{:x}", Sha256::digest(format!("{header}\n{others}")))
}

fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

/// The name of the resource: the hostname with everything replaced that an identifier cannot hold.
fn label(hostname: &str) -> String {
    let safe: String = hostname.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
    if safe.starts_with(|c: char| c.is_ascii_alphabetic()) { safe } else { format!("vm_{safe}") }
}

fn block(name: &str) -> hcl::structure::BlockBuilder {
    Block::builder(Identifier::sanitized(name))
}

fn set(name: &str, value: impl Into<Expression>) -> Attribute {
    Attribute::new(Identifier::sanitized(name), value)
}

fn machine(plan: &Plan) -> Block {
    let description = format!(
        "Moved by Drover from libvirt domain {} ({}) for {}",
        plan.machine.name,
        plan.machine.uuid,
        one_line(&plan.origin)
    );
    let mut vm = block("resource")
        .add_label("nutanix_virtual_machine_v2")
        .add_label(label(&plan.target_name))
        .add_attribute(set("name", plan.target_name.clone()))
        .add_attribute(set("description", description))
        .add_attribute(set("num_sockets", plan.cpu.sockets))
        .add_attribute(set("num_cores_per_socket", plan.cpu.cores_per_socket))
        .add_attribute(set("num_threads_per_core", plan.cpu.threads_per_core))
        .add_attribute(set("memory_size_bytes", plan.memory_bytes))
        .add_attribute(set(
            "machine_type",
            match plan.board {
                Board::Pc => "PC",
                Board::Q35 => "Q35",
            },
        ))
        .add_attribute(set("power_state", "OFF"))
        .add_block(block("cluster").add_attribute(set("ext_id", plan.cluster_ext_id.clone())).build())
        .add_block(boot(plan.firmware));
    for (index, disk) in plan.disks.iter().enumerate() {
        vm = vm.add_block(scsi_disk(index, disk));
    }
    for nic in &plan.nics {
        vm = vm.add_block(interface(nic));
    }
    vm.add_block(lifecycle()).build()
}

fn boot(firmware: Firmware) -> Block {
    let boot = match firmware {
        Firmware::Bios => block("legacy_boot").add_attribute(set("boot_order", vec!["DISK"])),
        Firmware::Uefi => block("uefi_boot").add_attribute(set("is_secure_boot_enabled", false)),
        Firmware::SecureBoot => block("uefi_boot").add_attribute(set("is_secure_boot_enabled", true)),
    };
    block("boot_config").add_block(boot.build()).build()
}

fn scsi_disk(index: usize, disk: &PlannedDisk) -> Block {
    let address =
        block("disk_address").add_attribute(set("bus_type", "SCSI")).add_attribute(set("index", index)).build();
    let container = block("storage_container").add_attribute(set("ext_id", disk.container_ext_id.clone())).build();
    let content = block("vm_disk").add_attribute(set("disk_size_bytes", disk.size_bytes)).add_block(container).build();
    let backing = block("backing_info").add_block(content).build();
    block("disks").add_block(address).add_block(backing).build()
}

fn interface(nic: &PlannedNic) -> Block {
    let card = block("virtual_ethernet_nic")
        .add_attribute(set("mac_address", nic.mac.clone()))
        .add_attribute(set("is_connected", true))
        .build();
    let subnet = block("subnet").add_attribute(set("ext_id", nic.subnet_ext_id.clone())).build();
    let network = block("virtual_ethernet_nic_network_info")
        .add_attribute(set("nic_type", "NORMAL_NIC"))
        .add_attribute(set("vlan_mode", "ACCESS"))
        .add_block(subnet)
        .build();
    block("nics")
        .add_block(block("nic_backing_info").add_block(card).build())
        .add_block(block("nic_network_info").add_block(network).build())
        .build()
}

/// What Terraform leaves alone once the VM exists.
///
/// `disks`: the provider compares them by place, so removing the first block of two deletes the *second* disk, and another order in Prism's
/// answer plans to swap them (both seen with provider 2.4.2). `description`: an undo changes it to void older orders.
const IGNORED: [&str; 5] = ["cd_roms", "description", "disks", "guest_tools", "power_state"];

fn lifecycle() -> Block {
    let ignored: Vec<Expression> =
        IGNORED.into_iter().map(|name| Expression::from(Variable::sanitized(name))).collect();
    block("lifecycle").add_attribute(set("ignore_changes", ignored)).add_attribute(set("prevent_destroy", true)).build()
}

/// Aligns the equals signs of neighbouring one-line attributes, which the serializer leaves to `terraform fmt`.
fn align(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut aligned: Vec<String> = Vec::with_capacity(lines.len());
    let mut at = 0;
    while at < lines.len() {
        let end = at + lines[at..].iter().take_while(|line| attribute(line).is_some()).count();
        let width =
            lines[at..end].iter().filter_map(|line| attribute(line)).map(|(name, _)| name.len()).max().unwrap_or(0);
        for line in &lines[at..end] {
            if let Some((name, value)) = attribute(line) {
                aligned.push(format!("{name:width$} = {value}"));
            }
        }
        if end < lines.len() {
            aligned.push(lines[end].to_owned());
        }
        at = end + 1;
    }
    aligned.join("\n") + "\n"
}

/// Name (with its indentation) and value of a line that is an attribute and nothing else.
fn attribute(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once(" = ")?;
    let is_name = name.trim_start().chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let is_one_line = !value.ends_with(['{', '[', '(']);
    (is_name && is_one_line).then_some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{PlanInput, make};

    fn rendered(hostname: &str, origin: &str) -> String {
        let machine = crate::machine::parse(
            &format!(
                "<domain><name>{}</name><uuid>u-1</uuid><memory unit='MiB'>512</memory><vcpu>2</vcpu><os><type machine='pc'>hvm</type></os>
                 <devices><disk type='file' device='disk'><driver type='raw'/><source file='/a'/><target dev='vda' bus='virtio'/></disk>
                 <interface type='user'><mac address='52:54:00:00:00:01'/></interface></devices></domain>",
                "web&quot; ${file(&quot;/etc/passwd&quot;)}"
            ),
            true,
        )
        .expect("valid");
        let plan = make(&PlanInput {
            machine: &machine,
            hostname,
            cluster_ext_id: "c",
            container_ext_id: "s",
            subnet_ext_ids: &[(0, "n".into())],
            path_template: "vms/{hostname}.tf",
            shutdown: &crate::api::shutdown::ShutdownPolicy::default(),
            origin,
        })
        .expect("plan");
        file(&plan)
    }

    #[test]
    fn hostile_names_stay_text() {
        let text = rendered("web01", "a\n}\nresource \"x\" \"y\" {");
        let body: Body = hcl::from_str(&text).expect("it is HCL");
        assert_eq!(body.blocks().count(), 1, "something was injected:\n{text}");
        assert!(text.contains("$${file("), "a template was not escaped:\n{text}");
    }

    #[test]
    fn an_edit_shows_in_the_file_itself() {
        let text = rendered("web01", "VmMigration team-a/web01 uid u-1");
        assert!(is_as_written(&text), "{text}");
        let lines: Vec<&str> = text.lines().collect();
        for at in 0..lines.len() {
            let mut edited: Vec<String> = lines.iter().map(ToString::to_string).collect();
            edited[at].push(' ');
            assert!(!is_as_written(&(edited.join("\n") + "\n")), "an edit of line {} does not show", at + 1);
        }
        assert!(!is_as_written(&text.replacen(lines[1], "", 1)) && !is_as_written(HEADER) && !is_as_written(""));
    }

    #[test]
    fn labels_are_identifiers() {
        assert_eq!(label("web01.example.com"), "web01_example_com");
        assert_eq!(label("01web"), "vm_01web");
    }

    #[test]
    fn neighbouring_attributes_are_aligned() {
        assert_eq!(align("a {\n  x = 1\n  long = 2\n}\n"), "a {\n  x    = 1\n  long = 2\n}\n");
    }
}
