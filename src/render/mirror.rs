//! The destination of a block copy, as libvirt wants to be told.

use std::path::Path;

/// Escapes text for an XML attribute in single quotes.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&apos;").replace('"', "&quot;")
}

/// `<disk>` of a mirror to the relay: its export is named after the device, its NBD server listens on `socket`.
pub fn destination_xml(device: &str, socket: &Path) -> String {
    let (device, socket) = (escape(device), escape(&socket.display().to_string()));
    format!(
        "<disk type='network' device='disk'><driver name='qemu' type='raw' cache='none'/>\
         <source protocol='nbd' name='{device}'><host transport='unix' socket='{socket}'/></source><target dev='{device}'/></disk>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_paths_stay_text() {
        let xml = destination_xml("vda", Path::new("/run/a'/><b/>"));
        let document = roxmltree::Document::parse(&xml).expect("it is XML");
        let host = document.descendants().find(|node| node.has_tag_name("host")).expect("it has a host");
        assert_eq!(host.attribute("socket"), Some("/run/a'/><b/>"));
    }
}
