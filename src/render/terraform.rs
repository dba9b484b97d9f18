//! A plan as a Terraform file with one `nutanix_virtual_machine_v2`.
//!
//! The VM is created off and stays under the operator's power switch; it is protected from being destroyed; and what would harm it if
//! Terraform "corrected" it is ignored after creation. Attribute names: provider nutanix/nutanix 2.4.2.

use std::collections::BTreeMap;

use hcl::expr::{FuncCall, TemplateExpr, Traversal, Variable};
use hcl::{Attribute, Block, Body, Expression, Identifier};
use sha2::{Digest, Sha256};

use super::odata::quoted;
use crate::api::machine::{Board, Firmware, TargetBus};
use crate::api::terraform_repository::Identifiers;
use crate::plan::{Plan, PlannedCategory, PlannedDisk, PlannedNic};

/// The first line of every file that Drover writes: a file without it is somebody's own and is never overwritten.
pub const HEADER: &str = "# Written by Drover";

/// The second line: the digest of all the other lines, by which an edit is told without any history.
const DIGEST: &str = "# Content sha256:";

/// The whole file, formatted as `terraform fmt` has it.
pub fn file(plan: &Plan) -> String {
    let lookups = match plan.identifiers {
        Identifiers::Uuid => Vec::new(),
        Identifiers::DataSource => Lookup::all(plan),
    };
    let body = Body::builder().add_blocks(lookups.iter().map(Lookup::block)).add_block(machine(plan)).build();
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

/// Text on one line: without line breaks and other control characters, and without those that show it in another order than it has.
fn one_line(text: &str) -> String {
    let disturbs = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if disturbs(c) { ' ' } else { c }).collect()
}

/// A name as an identifier of Terraform. What an identifier cannot hold is replaced; names that differ only there are told apart by a hash.
fn label(name: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let safe: String = name.chars().map(|c| if fits(c) { c } else { '_' }).collect();
    let safe = if safe.starts_with(|c: char| c.is_ascii_alphabetic()) { safe } else { format!("vm_{safe}") };
    if safe == name && !is_hashed(name) { safe } else { format!("{safe}_{}", hash(name)) }
}

fn hash(text: &str) -> String {
    format!("{:x}", Sha256::digest(text)).chars().take(HASH_LENGTH).collect()
}

const HASH_LENGTH: usize = 8;

/// Whether a name looks as if its hash had been added: kept as it is, it could be another name's label.
fn is_hashed(name: &str) -> bool {
    name.rsplit_once('_').is_some_and(|(_, end)| end.len() == HASH_LENGTH && end.chars().all(|c| c.is_ascii_hexdigit()))
}

fn block(name: &str) -> hcl::structure::BlockBuilder {
    Block::builder(Identifier::sanitized(name))
}

fn set(name: &str, value: impl Into<Expression>) -> Attribute {
    let value = match value.into() {
        Expression::String(text) => TemplateExpr::from(escaped(&text)).into(),
        other => other,
    };
    Attribute::new(Identifier::sanitized(name), value)
}

/// Text as it stands between the quotes of a string of HCL. Not left to the crate (hcl-primitives 0.1.13): it overlooks the second
/// template in `${a} %${b}`, and Terraform would evaluate it.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let opens_template = matches!(c, '$' | '%') && rest.peek() == Some(&'{');
        match c {
            '"' | '\\' => escaped.extend(['\\', c]),
            _ if opens_template || c.is_control() => escaped.push_str(&format!("\\u{:04x}", u32::from(c))),
            _ => escaped.push(c),
        }
    }
    escaped
}

/// Something that the file looks up in Prism by its name. Data sources of a directory share one name space, so that each bears the label
/// of its machine.
struct Lookup {
    kind: &'static str,
    label: String,
    /// What lists the found, and what identifies one of them.
    list: &'static str,
    id: &'static str,
    /// OData; with templates of Terraform in it.
    filter: String,
}

impl Lookup {
    fn all(plan: &Plan) -> Vec<Self> {
        // Several interfaces may be on one VLAN.
        let subnets: BTreeMap<u16, Self> = plan.nics.iter().map(|nic| (nic.vlan, Self::subnet(plan, nic))).collect();
        let categories = plan.categories.iter().map(|category| Self::category(plan, category));
        [Self::cluster(plan), Self::container(plan)]
            .into_iter()
            .chain(subnets.into_values())
            .chain(categories)
            .collect()
    }

    fn cluster(plan: &Plan) -> Self {
        Self {
            kind: "nutanix_clusters_v2",
            label: label(&plan.target_name),
            list: "cluster_entities",
            id: "ext_id",
            filter: format!("name eq {}", literal(&plan.cluster.name)),
        }
    }

    fn container(plan: &Plan) -> Self {
        let name = literal(&plan.container.name);
        Self {
            kind: "nutanix_storage_containers_v2",
            label: label(&plan.target_name),
            list: "storage_containers",
            id: "container_ext_id",
            filter: format!("name eq {name} and clusterExtId eq '${{{}}}'", Self::cluster(plan).found()),
        }
    }

    fn subnet(plan: &Plan, nic: &PlannedNic) -> Self {
        let name = literal(&nic.subnet.name);
        Self {
            kind: "nutanix_subnets_v2",
            label: format!("{}_vlan{}", label(&plan.target_name), nic.vlan),
            list: "subnets",
            id: "ext_id",
            filter: format!("name eq {name} and clusterReference eq '${{{}}}'", Self::cluster(plan).found()),
        }
    }

    fn category(plan: &Plan, planned: &PlannedCategory) -> Self {
        let (key, value) = (&planned.category.key, &planned.category.value);
        // What lies between them fits no identifier, so that the hash tells a_b with c from a with b_c.
        Self {
            kind: "nutanix_categories_v2",
            label: format!("{}_{}", label(&plan.target_name), label(&format!("{key}\0{value}"))),
            list: "categories",
            id: "ext_id",
            filter: format!("key eq {} and value eq {}", literal(key), literal(value)),
        }
    }

    /// The identifier of what is found. Terraform fails if that is nothing, or more than one.
    fn found(&self) -> Expression {
        let all =
            Traversal::builder(Variable::sanitized("data")).attr(self.kind).attr(self.label.as_str()).attr(self.list);
        Traversal::builder(FuncCall::builder("one").arg(all.build()).build()).attr(self.id).build().into()
    }

    fn block(&self) -> Block {
        let filter = Expression::from(TemplateExpr::from(self.filter.clone()));
        block("data").add_label(self.kind).add_label(self.label.clone()).add_attribute(set("filter", filter)).build()
    }
}

/// Text as a literal of OData inside a quoted string of HCL.
fn literal(text: &str) -> String {
    escaped(&quoted(text))
}

/// `ext_id` as the repository's convention has it.
fn ext_id(plan: &Plan, known: &str, lookup: impl FnOnce() -> Lookup) -> Attribute {
    let value = match plan.identifiers {
        Identifiers::Uuid => Expression::from(known),
        Identifiers::DataSource => lookup().found(),
    };
    set("ext_id", value)
}

fn machine(plan: &Plan) -> Block {
    let description = format!(
        "Moved by Drover from libvirt domain {} ({}) for {}",
        one_line(&plan.machine.name),
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
        .add_block(reference("cluster", ext_id(plan, &plan.cluster.ext_id, || Lookup::cluster(plan))));
    if let Some(project) = &plan.project {
        vm = vm.add_block(reference("project", set("ext_id", project.clone())));
    }
    for category in &plan.categories {
        let id = ext_id(plan, &category.ext_id, || Lookup::category(plan, category));
        vm = vm.add_block(reference("categories", id));
    }
    vm = vm.add_block(boot(plan.firmware));
    for (index, planned) in plan.disks.iter().enumerate() {
        vm = vm.add_block(disk(plan, index, planned));
    }
    for nic in &plan.nics {
        vm = vm.add_block(interface(plan, nic));
    }
    vm.add_block(lifecycle()).build()
}

fn reference(name: &str, ext_id: Attribute) -> Block {
    block(name).add_attribute(ext_id).build()
}

fn boot(firmware: Firmware) -> Block {
    let boot = match firmware {
        Firmware::Bios => block("legacy_boot").add_attribute(set("boot_order", vec!["DISK"])),
        Firmware::Uefi => block("uefi_boot").add_attribute(set("is_secure_boot_enabled", false)),
        Firmware::SecureBoot => block("uefi_boot").add_attribute(set("is_secure_boot_enabled", true)),
    };
    block("boot_config").add_block(boot.build()).build()
}

fn disk(plan: &Plan, index: usize, disk: &PlannedDisk) -> Block {
    let bus = match plan.disk_bus {
        TargetBus::Scsi => "SCSI",
        TargetBus::Pci => "PCI",
    };
    let address = block("disk_address").add_attribute(set("bus_type", bus)).add_attribute(set("index", index)).build();
    let container = ext_id(plan, &plan.container.ext_id, || Lookup::container(plan));
    let content = block("vm_disk")
        .add_attribute(set("disk_size_bytes", disk.size_bytes))
        .add_block(reference("storage_container", container))
        .build();
    let backing = block("backing_info").add_block(content).build();
    block("disks").add_block(address).add_block(backing).build()
}

fn interface(plan: &Plan, nic: &PlannedNic) -> Block {
    let card = block("virtual_ethernet_nic")
        .add_attribute(set("mac_address", nic.mac.clone()))
        .add_attribute(set("is_connected", true))
        .build();
    let subnet = ext_id(plan, &nic.subnet.ext_id, || Lookup::subnet(plan, nic));
    let network = block("virtual_ethernet_nic_network_info")
        .add_attribute(set("nic_type", "NORMAL_NIC"))
        .add_attribute(set("vlan_mode", "ACCESS"))
        .add_block(reference("subnet", subnet))
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
mod tests;
