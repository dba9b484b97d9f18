//! The parts of a domain's XML that only the host side reads or writes: mirrors, Drover's mark, the names a domain bears.

use std::collections::BTreeMap;

use roxmltree::{Document, Node};

use crate::api::METADATA_URI;
use crate::api::block_copy::Claim;
use crate::flow::copy::{Mark, MarkState, MirrorSeen};
use crate::flow::doctor::MirrorTrace;

/// Prefix of the mark's namespace.
pub const METADATA_PREFIX: &str = "drover";

/// Why a domain's XML could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the domain's XML cannot be parsed")]
    Xml(#[from] roxmltree::Error),
    #[error(
        "Drover's mark in the domain's metadata has no valid {0}; correct or remove it (virsh metadata --uri {METADATA_URI})"
    )]
    Mark(&'static str),
}

fn child<'a>(node: Node<'a, 'a>, name: &str) -> Option<Node<'a, 'a>> {
    node.children().find(|child| child.has_tag_name(name))
}

/// `<mirror>` of each disk of a running domain. `socket` is the relay's: mirrors to it are ours.
pub fn mirrors(domain_xml: &str, socket: &str) -> Result<BTreeMap<String, MirrorSeen>, Error> {
    let document = Document::parse(domain_xml)?;
    let found = mirror_elements(&document).map(|(device, mirror)| {
        let export = child(mirror, "source").and_then(|source| source.attribute("name"));
        let ours = export == Some(device) && socket_of(mirror) == Some(socket);
        (device.to_owned(), MirrorSeen { ours, ready: mirror.attribute("ready") == Some("yes") })
    });
    Ok(found.collect())
}

/// The mirrors of a running domain that lead to a local socket.
pub fn mirror_traces(domain_xml: &str) -> Result<Vec<MirrorTrace>, Error> {
    let document = Document::parse(domain_xml)?;
    let found = mirror_elements(&document)
        .filter_map(|(device, mirror)| Some(MirrorTrace { device: device.into(), socket: socket_of(mirror)?.into() }));
    Ok(found.collect())
}

/// The disks that have a `<mirror>`, by device.
fn mirror_elements<'a>(document: &'a Document<'a>) -> impl Iterator<Item = (&'a str, Node<'a, 'a>)> {
    let disks = document.descendants().filter(|node| node.has_tag_name("disk"));
    disks.filter_map(|disk| Some((child(disk, "target")?.attribute("dev")?, child(disk, "mirror")?)))
}

fn socket_of<'a>(mirror: Node<'a, 'a>) -> Option<&'a str> {
    child(child(mirror, "source")?, "host")?.attribute("socket")
}

/// Whether a domain bears `hostname`: as its name, its title, or the whole text of any element in its metadata.
pub fn bears(domain_xml: &str, hostname: &str) -> Result<bool, Error> {
    let document = Document::parse(domain_xml)?;
    let root = document.root_element();
    let is = |node: Node<'_, '_>| node.text().is_some_and(|text| text.trim().eq_ignore_ascii_case(hostname));
    let named = ["name", "title"].iter().filter_map(|tag| child(root, tag)).any(is);
    Ok(named || child(root, "metadata").is_some_and(|metadata| metadata.descendants().filter(Node::is_element).any(is)))
}

/// Drover's mark in the XML of a persistent domain.
pub fn mark(domain_xml: &str) -> Result<Option<Mark>, Error> {
    let document = Document::parse(domain_xml)?;
    let metadata = child(document.root_element(), "metadata");
    let Some(element) =
        metadata.and_then(|metadata| metadata.children().find(|node| node.has_tag_name((METADATA_URI, "migration"))))
    else {
        return Ok(None);
    };
    let text = |name: &'static str| element.attribute(name).map(str::to_owned).ok_or(Error::Mark(name));
    let state = match text("state")?.as_str() {
        "claimed" => MarkState::Claimed,
        "cutover" => MarkState::Cutover,
        "migrated" => MarkState::Migrated,
        _ => return Err(Error::Mark("state")),
    };
    let autostart_was = match element.attribute("autostart") {
        None => None,
        Some("yes") => Some(true),
        Some("no") => Some(false),
        Some(_) => return Err(Error::Mark("autostart")),
    };
    let claim = Claim {
        namespace: text("namespace")?,
        name: text("name")?,
        uid: text("uid")?,
        installation: text("installation")?,
    };
    Ok(Some(Mark { claim, epoch: text("epoch")?.parse().map_err(|_| Error::Mark("epoch"))?, state, autostart_was }))
}

/// The element for [`mark`]. libvirt adds the namespace itself.
pub fn render_mark(mark: &Mark) -> String {
    let state = match mark.state {
        MarkState::Claimed => "claimed",
        MarkState::Cutover => "cutover",
        MarkState::Migrated => "migrated",
    };
    let autostart = match mark.autostart_was {
        None => "",
        Some(true) => " autostart='yes'",
        Some(false) => " autostart='no'",
    };
    let Claim { namespace, name, uid, installation } = &mark.claim;
    format!(
        "<migration state='{state}' epoch='{}' namespace='{}' name='{}' uid='{}' installation='{}'{autostart}/>",
        mark.epoch,
        escape(namespace),
        escape(name),
        escape(uid),
        escape(installation),
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;")
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNNING: &str = "<domain type='kvm'><name>web1</name><title>Web One</title>
        <metadata><x:host xmlns:x='urn:x'><x:fqdn> web1.example.com </x:fqdn></x:host></metadata>
        <devices>
          <disk type='file' device='disk'><source file='/a'/>
            <mirror type='network' job='copy' ready='yes'><format type='raw'/>
              <source protocol='nbd' name='vda'><host transport='unix' socket='/run/nbd.sock'/></source></mirror>
            <target dev='vda' bus='virtio'/></disk>
          <disk type='file' device='disk'><source file='/b'/>
            <mirror type='file' file='/other' job='copy'><source file='/other'/></mirror><target dev='vdb'/></disk>
          <disk type='file' device='disk'><source file='/c'/><target dev='vdc'/></disk>
        </devices></domain>";

    #[test]
    fn mirrors_are_ours_only_at_our_socket_and_our_export() {
        let seen = mirrors(RUNNING, "/run/nbd.sock").unwrap();
        assert_eq!(seen["vda"], MirrorSeen { ours: true, ready: true });
        assert_eq!(seen["vdb"], MirrorSeen { ours: false, ready: false });
        assert!(!seen.contains_key("vdc"));
        assert!(!mirrors(RUNNING, "/run/else.sock").unwrap()["vda"].ours);
        let trace = MirrorTrace { device: "vda".into(), socket: "/run/nbd.sock".into() };
        assert_eq!(mirror_traces(RUNNING).unwrap(), [trace]);
    }

    #[test]
    fn a_hostname_is_a_name_a_title_or_a_text_in_the_metadata() {
        for name in ["web1", "Web One", "web1.example.com", "WEB1.example.com"] {
            assert!(bears(RUNNING, name).unwrap(), "{name}");
        }
        for name in ["web", "web1.example", "/a", ""] {
            assert!(!bears(RUNNING, name).unwrap(), "{name}");
        }
    }

    #[test]
    fn a_mark_survives_the_way_through_xml() {
        let claim =
            Claim { namespace: "shop".into(), name: "o'<web>&1".into(), uid: "u-1".into(), installation: "i-1".into() };
        for (state, autostart_was) in
            [(MarkState::Claimed, None), (MarkState::Cutover, Some(true)), (MarkState::Migrated, Some(false))]
        {
            let before = Mark { claim: claim.clone(), epoch: 7, state, autostart_was };
            let element = render_mark(&before).replacen(
                "<migration",
                "<drover:migration xmlns:drover='https://drover.dev/migration'",
                1,
            );
            let xml = format!("<domain><metadata>{element}</metadata></domain>");
            assert_eq!(mark(&xml).unwrap(), Some(before));
        }
        assert_eq!(mark(RUNNING).unwrap(), None);
    }

    /// A mark that cannot be read must not count as "no mark".
    #[test]
    fn a_spoilt_mark_is_an_error() {
        let xml =
            "<domain><metadata><d:migration xmlns:d='https://drover.dev/migration' state='what'/></metadata></domain>";
        assert!(matches!(mark(xml), Err(Error::Mark("state"))));
    }
}
