//! PURE: what a VM is. libvirt's domain XML in, a [`Machine`] out, or a refusal that names what is not understood.
//!
//! Element names and defaults: libvirt's "Domain XML format" page. What decides how the target must boot (firmware, board, bus) is never
//! guessed: an unknown value is an error.

use roxmltree::{Document, Node};

use crate::api::machine::{Board, Cpu, Disk, DiskBus, DiskFormat, DiskSource, Firmware, LeftOutDisk, Machine, Nic};

/// Why a domain XML could not be read as a machine.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MachineError {
    #[error("the domain XML is not well-formed: {0}")]
    Malformed(String),
    #[error("the domain XML has no {0}")]
    Missing(&'static str),
    #[error("{what} {value:?} is not known to Drover: it cannot tell what the target needs")]
    Unknown { what: &'static str, value: String },
}

/// Reads a domain's XML. Whether the domain is persistent is not in it: libvirt tells that apart.
///
/// Disks are in the guest's boot order: those with `<boot order>` first, then as they are listed. Their `size_bytes` is 0: the XML does not
/// tell it.
pub fn parse(xml: &str, persistent: bool) -> Result<Machine, MachineError> {
    let document = Document::parse(xml).map_err(|error| MachineError::Malformed(error.to_string()))?;
    let domain = document.root_element();
    let devices = child(domain, "devices").ok_or(MachineError::Missing("<devices>"))?;
    let (disks, left_out) = disks(devices)?;
    Ok(Machine {
        name: text(domain, "name").ok_or(MachineError::Missing("<name>"))?,
        uuid: text(domain, "uuid").ok_or(MachineError::Missing("<uuid>"))?,
        title: text(domain, "title"),
        cpu: cpu(domain)?,
        memory_bytes: memory_bytes(domain)?,
        firmware: firmware(domain)?,
        board: board(domain)?,
        disks,
        left_out,
        nics: devices.children().filter(|node| node.has_tag_name("interface")).map(nic).collect::<Result<_, _>>()?,
        on_poweroff: text(domain, "on_poweroff").unwrap_or_else(|| "destroy".into()),
        persistent,
    })
}

fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|child| child.has_tag_name(name))
}

fn text(node: Node<'_, '_>, name: &str) -> Option<String> {
    child(node, name)?.text().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn attribute(node: Node<'_, '_>, element: &str, name: &str) -> Option<String> {
    child(node, element)?.attribute(name).map(str::to_owned)
}

fn number<T: std::str::FromStr>(what: &'static str, value: &str) -> Result<T, MachineError> {
    value.trim().parse().map_err(|_| MachineError::Unknown { what, value: value.to_owned() })
}

/// `<vcpu>` with `<cpu><topology>`. Without a topology libvirt makes each virtual CPU a socket.
fn cpu(domain: Node<'_, '_>) -> Result<Cpu, MachineError> {
    let vcpus: u32 = number("<vcpu>", &text(domain, "vcpu").unwrap_or_else(|| "1".into()))?;
    let topology = child(domain, "cpu").and_then(|cpu| child(cpu, "topology"));
    let Some(topology) = topology else { return Ok(Cpu { sockets: vcpus, cores_per_socket: 1, threads_per_core: 1 }) };
    let part = |name| topology.attribute(name).map_or(Ok(1), |value| number("<topology>", value));
    let (sockets, dies, cores, threads) = (part("sockets")?, part("dies")?, part("cores")?, part("threads")?);
    Ok(Cpu { sockets, cores_per_socket: cores * dies.max(1), threads_per_core: threads })
}

/// `<memory unit='KiB'>`, in any of libvirt's units.
fn memory_bytes(domain: Node<'_, '_>) -> Result<u64, MachineError> {
    let node = child(domain, "memory").ok_or(MachineError::Missing("<memory>"))?;
    let value: u64 = number("<memory>", node.text().unwrap_or_default())?;
    let unit = node.attribute("unit").unwrap_or("KiB");
    let factor: u64 = match unit {
        "b" | "bytes" => 1,
        "KB" => 1_000,
        "k" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "T" | "TiB" => 1 << 40,
        unknown => return Err(MachineError::Unknown { what: "unit of <memory>", value: unknown.into() }),
    };
    value.checked_mul(factor).ok_or_else(|| MachineError::Unknown { what: "<memory>", value: value.to_string() })
}

/// By `<os firmware>`, or by what `<loader>` is; BIOS when neither is there.
fn firmware(domain: Node<'_, '_>) -> Result<Firmware, MachineError> {
    let os = child(domain, "os").ok_or(MachineError::Missing("<os>"))?;
    let loader = child(os, "loader");
    let secure = loader.and_then(|loader| loader.attribute("secure")) == Some("yes")
        || child(os, "firmware").is_some_and(|firmware| {
            firmware.children().any(|feature| {
                feature.attribute("name") == Some("secure-boot") && feature.attribute("enabled") == Some("yes")
            })
        });
    let uefi = match (os.attribute("firmware"), loader.and_then(|loader| loader.attribute("type"))) {
        (Some("efi"), _) => true,
        (Some("bios"), _) => false,
        (Some(unknown), _) => return Err(MachineError::Unknown { what: "<os firmware>", value: unknown.into() }),
        (None, Some("pflash")) => true,
        (None, Some("rom") | None) => false,
        (None, Some(unknown)) => return Err(MachineError::Unknown { what: "type of <loader>", value: unknown.into() }),
    };
    Ok(match (uefi, secure) {
        (true, true) => Firmware::SecureBoot,
        (true, false) => Firmware::Uefi,
        (false, _) => Firmware::Bios,
    })
}

/// `<type machine='pc-i440fx-7.2'>`: only the x86 boards that AHV has.
fn board(domain: Node<'_, '_>) -> Result<Board, MachineError> {
    let os = child(domain, "os").ok_or(MachineError::Missing("<os>"))?;
    let machine = attribute(os, "type", "machine").unwrap_or_else(|| "pc".into());
    if machine == "q35" || machine.starts_with("pc-q35") {
        Ok(Board::Q35)
    } else if machine == "pc" || machine.starts_with("pc-i440fx") || machine.starts_with("pc-") {
        Ok(Board::Pc)
    } else {
        Err(MachineError::Unknown { what: "machine type", value: machine })
    }
}

/// A disk that is moved, with its place in the boot order, or one that stays.
enum Sorted {
    Moved(u32, Disk),
    LeftOut(LeftOutDisk),
}

fn disks(devices: Node<'_, '_>) -> Result<(Vec<Disk>, Vec<LeftOutDisk>), MachineError> {
    let (mut moved, mut left_out) = (Vec::new(), Vec::new());
    for node in devices.children().filter(|node| node.has_tag_name("disk")) {
        match sort_disk(node)? {
            Sorted::Moved(order, disk) => moved.push((order, disk)),
            Sorted::LeftOut(disk) => left_out.push(disk),
        }
    }
    // Stable: disks without an order stay as they are listed, behind those with one.
    moved.sort_by_key(|(order, _)| *order);
    Ok((moved.into_iter().map(|(_, disk)| disk).collect(), left_out))
}

fn sort_disk(node: Node<'_, '_>) -> Result<Sorted, MachineError> {
    let device = attribute(node, "target", "dev").ok_or(MachineError::Missing("<target dev> of a disk"))?;
    let kind = node.attribute("device").unwrap_or("disk");
    let source = child(node, "source");
    let why = match kind {
        "cdrom" | "floppy" => Some(format!("it is a {kind}")),
        _ if child(node, "readonly").is_some() => Some("it is read-only".to_owned()),
        _ if child(node, "shareable").is_some() => Some("it is shared with other machines".to_owned()),
        "disk" if source.is_none() => Some("it has no source".to_owned()),
        "disk" => None,
        other => Some(format!("it is a {other}")),
    };
    if let Some(why) = why {
        return Ok(Sorted::LeftOut(LeftOutDisk { device, why }));
    }
    let order = attribute(node, "boot", "order").map_or(Ok(u32::MAX), |order| number("<boot order>", &order))?;
    let (kind, path) = match (node.attribute("type"), source) {
        (Some("file"), Some(source)) => (DiskSource::File, source.attribute("file")),
        (Some("block"), Some(source)) => (DiskSource::Block, source.attribute("dev")),
        (_, _) => (DiskSource::Other, None),
    };
    Ok(Sorted::Moved(
        order,
        Disk {
            device,
            bus: bus(&attribute(node, "target", "bus").unwrap_or_else(|| "ide".into()))?,
            source: kind,
            path: path.unwrap_or_default().to_owned(),
            format: match attribute(node, "driver", "type").as_deref() {
                Some("raw") | None => DiskFormat::Raw,
                Some("qcow2") => DiskFormat::Qcow2,
                Some(_) => DiskFormat::Other,
            },
            size_bytes: 0,
        },
    ))
}

fn bus(name: &str) -> Result<DiskBus, MachineError> {
    match name {
        "virtio" => Ok(DiskBus::Virtio),
        "scsi" => Ok(DiskBus::Scsi),
        "sata" => Ok(DiskBus::Sata),
        "ide" => Ok(DiskBus::Ide),
        unknown => Err(MachineError::Unknown { what: "disk bus", value: unknown.into() }),
    }
}

fn nic(node: Node<'_, '_>) -> Result<Nic, MachineError> {
    let source = child(node, "source");
    let network = source
        .and_then(|source| source.attribute("network").or(source.attribute("bridge")).or(source.attribute("dev")));
    Ok(Nic {
        mac: attribute(node, "mac", "address").unwrap_or_default().to_ascii_lowercase(),
        vlan: child(node, "vlan").map(vlan).transpose()?,
        network: network.map(str::to_owned),
    })
}

/// The one tag of an access port. Several tags, or `trunk='yes'`, hand tagged frames to the guest.
fn vlan(node: Node<'_, '_>) -> Result<u16, MachineError> {
    let tags: Vec<&str> = node.children().filter_map(|tag| tag.attribute("id")).collect();
    match tags.as_slice() {
        [tag] if node.attribute("trunk") != Some("yes") => number("<vlan> tag", tag),
        _ => Err(MachineError::Unknown { what: "<vlan> trunk", value: tags.join(",") }),
    }
}

#[cfg(test)]
mod tests;
