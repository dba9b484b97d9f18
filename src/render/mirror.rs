//! The destination of a block copy, as libvirt wants to be told.

use crate::api::machine::DiskBus;

/// Escapes text for an XML attribute in single quotes.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&apos;").replace('"', "&quot;")
}

/// libvirt's name of a bus.
fn bus_name(bus: DiskBus) -> &'static str {
    match bus {
        DiskBus::Virtio => "virtio",
        DiskBus::Scsi => "scsi",
        DiskBus::Sata => "sata",
        DiskBus::Ide => "ide",
    }
}

/// `<disk>` of a mirror to export `export` of the NBD server on the unix socket `socket`.
pub fn destination(device: &str, bus: DiskBus, socket: &str, export: &str) -> String {
    format!(
        "<disk type='network' device='disk'><driver name='qemu' type='raw' cache='none'/><source protocol='nbd' name='{}'>\
         <host transport='unix' socket='{}'/></source><target dev='{}' bus='{}'/></disk>",
        escape(export),
        escape(socket),
        escape(device),
        bus_name(bus)
    )
}
