//! A hypervisor and a storage, and what can be read back from them.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use drover::api::nutanix_cluster::NfsAddress;
use drover_lab::libvirt::{Domain, GuestSpec, Libvirt};
use drover_lab::network::Network;
use drover_lab::nfs::{NfsExport, NfsOptions};
use drover_lab::nfs_proxy::NfsProxy;
use drover_lab::throttle::Throttle;

pub const MIB: u64 = 1 << 20;
/// Size of a source disk unless a test needs another.
pub const DISK: u64 = 64 * MIB;
/// Most time that anything may take which has no bound of its own.
pub const LIMIT: Duration = Duration::from_secs(120);
/// A rate at which a copy is seen under way, and one that does not hold it up.
pub const SLOW: u64 = 4 * MIB;
pub const FAST: u64 = 1 << 40;

/// libvirt with its guests, and Ganesha behind a line whose rate can be set, or behind a network.
pub struct Host {
    pub libvirt: Libvirt,
    pub storage: NfsExport,
    pub line: Throttle,
    /// What relay and driver reach the storage over, if it is not this machine's loopback and the line.
    pub network: Option<Arc<Network>>,
    dir: tempfile::TempDir,
}

impl Host {
    pub fn start() -> Self {
        Self::with(|dir| NfsExport::start(dir, "ctr").unwrap(), NfsExport::port)
    }

    /// The storage's file system has no more room than that.
    pub fn with_room(room_bytes: u64) -> Self {
        let options = NfsOptions { room_bytes: Some(room_bytes), ..NfsOptions::default() };
        Self::with(|dir| NfsExport::start_with(dir, "ctr", options).unwrap(), NfsExport::port)
    }

    /// The storage answers WRITE as the proxy is told to.
    pub fn behind_proxy() -> (Self, NfsProxy) {
        let mut proxy = None;
        let host = Self::with(
            |dir| NfsExport::start(dir, "ctr").unwrap(),
            |storage| proxy.insert(NfsProxy::start(storage.port()).unwrap()).port(),
        );
        (host, proxy.unwrap())
    }

    /// The storage is another host, behind a router.
    pub fn behind_network() -> (Self, Arc<Network>) {
        let mut network = None;
        let mut host = Self::with(
            |dir| {
                let connected = Arc::new(Network::start(&dir.join("net")).unwrap());
                let options = NfsOptions { network: Some(Arc::clone(&connected)), ..NfsOptions::default() };
                network = Some(connected);
                NfsExport::start_with(dir, "ctr", options).unwrap()
            },
            NfsExport::port,
        );
        host.network.clone_from(&network);
        (host, network.unwrap())
    }

    /// `upstream`: the port that the line leads to.
    fn with(storage: impl FnOnce(&Path) -> NfsExport, upstream: impl FnOnce(&NfsExport) -> u16) -> Self {
        let dir = tempfile::Builder::new().prefix("host").tempdir().unwrap();
        let storage = storage(&dir.path().join("n"));
        let line = Throttle::start(upstream(&storage), FAST).unwrap();
        let libvirt = Libvirt::start(&dir.path().join("v")).unwrap();
        Self { libvirt, storage, line, network: None, dir }
    }

    /// Where relay and driver find the storage.
    pub fn nfs_address(&self) -> NfsAddress {
        let port = if self.network.is_some() { self.storage.port() } else { self.line.port() };
        NfsAddress {
            address: self.storage.address().to_string(),
            port: Some(port),
            mount_port: Some(self.storage.mount_port()),
        }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A guest that runs and writes, starts with its host, and has something to copy on each disk.
    pub fn guest(&self, spec: &GuestSpec) -> Domain {
        let domain = self.libvirt.define(spec).unwrap();
        for disk in domain.disk_paths() {
            self.fill(disk);
        }
        self.libvirt.virsh(&["autostart", &spec.name]).unwrap();
        domain.start_and_write(10).unwrap();
        domain
    }

    /// A domain whose QEMU holds its disks while its guest stands still: enough for whoever only looks at it.
    pub fn paused(&self, spec: &GuestSpec) -> Domain {
        let domain = self.libvirt.define(spec).unwrap();
        self.libvirt.virsh(&["start", "--paused", &spec.name]).unwrap();
        domain
    }

    /// Puts a file of random bytes on an ext4 image.
    fn fill(&self, disk: &Path) {
        let noise = self.dir().join("noise");
        let mut bytes = vec![0; 36 * MIB as usize];
        File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
        File::create(&noise).unwrap().write_all(&bytes).unwrap();
        run(Command::new("debugfs").args(["-w", "-R"]).arg(format!("write {} noise", noise.display())).arg(disk));
    }

    /// State and epoch of Drover's mark in a domain's persistent definition.
    pub fn mark(&self, domain: &Domain) -> Option<(String, u64)> {
        let xml = self.libvirt.virsh(&["dumpxml", "--inactive", &domain.name]).unwrap();
        let document = roxmltree::Document::parse(&xml).unwrap();
        let mark =
            document.descendants().find(|node| node.has_tag_name(("https://drover.dev/migration", "migration")))?;
        let attribute = |name| mark.attribute(name).unwrap();
        Some((attribute("state").to_owned(), attribute("epoch").parse().unwrap()))
    }

    /// A domain's persistent definition, without the empty element that libvirt leaves where a mark was.
    pub fn definition(&self, domain: &Domain) -> String {
        self.libvirt.virsh(&["dumpxml", "--inactive", &domain.name]).unwrap().replace("  <metadata/>\n", "")
    }

    pub fn uuid(&self, domain: &Domain) -> String {
        self.libvirt.virsh(&["domuuid", &domain.name]).unwrap().trim().to_owned()
    }

    /// Numbers of the running mirrors, as libvirt counts everything that it plugs into a QEMU: a new mirror has a new one.
    pub fn mirrors(&self, domain: &Domain) -> Vec<String> {
        let xml = domain.xml().unwrap();
        let document = roxmltree::Document::parse(&xml).unwrap();
        let mirrors = document.descendants().filter(|node| node.has_tag_name("mirror"));
        let sources = mirrors.filter_map(|mirror| mirror.children().find(|child| child.has_tag_name("source")));
        sources.map(|source| source.attribute("index").unwrap().to_owned()).collect()
    }

    /// Bytes that the mirror of `vda` has behind it, by libvirt.
    pub fn copied_bytes(&self, domain: &Domain) -> u64 {
        let text = self.libvirt.virsh(&["blockjob", &domain.name, "vda", "--raw"]).unwrap();
        text.lines().find_map(|line| line.trim().strip_prefix("cur=")).unwrap().parse().unwrap()
    }

    /// Process id of a domain's QEMU.
    pub fn qemu(&self, domain: &Domain) -> String {
        std::fs::read_to_string(self.dir().join(format!("v/run/qemu/{}.pid", domain.name))).unwrap()
    }

    /// The file that is the disk `name` of the storage, and its path on the export.
    pub fn target(&self, name: &str) -> (PathBuf, String) {
        let path = format!(".acropolis/vmdisk/{name}");
        (self.storage.root().join(&path), path)
    }
}

/// Waits until `holds`.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LIMIT, "not {what} after {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Runs a tool that must succeed.
pub fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
