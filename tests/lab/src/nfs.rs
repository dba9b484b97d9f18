//! An NFS-Ganesha export laid out like a Nutanix storage container.
//!
//! Ganesha registers with a portmapper or does not start. Ours gets one that nobody else sees: a private `/run`, and rpcbind in a network
//! namespace of its own, reached by its unix socket. Clients are told the ports.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nix::sys::statvfs::statvfs;

use crate::network::{Network, STORAGE};
use crate::process::{Process, free_port};

/// A running server with one export. Dropping it stops it.
pub struct NfsExport {
    process: Mutex<Process>,
    setup: Setup,
    port: u16,
    mount_port: u16,
}

/// How an export differs from the usual one.
#[derive(Clone, Default)]
pub struct NfsOptions {
    /// Its file system has no more room than so many bytes; `None` = all that this machine has.
    pub room_bytes: Option<u64>,
    /// It is reached over this network; `None` = over this machine's loopback.
    pub network: Option<Arc<Network>>,
}

struct Setup {
    dir: PathBuf,
    container: String,
    options: NfsOptions,
}

/// Arguments: directory, exported directory, and the room that it has (empty: no limit).
const START: &str = r#"
set -e
mount -t tmpfs tmpfs /run
[ -z "$3" ] || mount -t tmpfs -o "size=$3" tmpfs "$2"
mkdir -p "$2/.acropolis/vmdisk"
unshare -n rpcbind -f -w &
while ! [ -S /run/rpcbind.sock ]; do sleep 0.05; done
exec ganesha.nfsd -F -f "$1/ganesha.conf" -L "$1/ganesha.log" -p "$1/ganesha.pid"
"#;

impl NfsExport {
    /// Serves `<dir>/<container>` as `/<container>`.
    pub fn start(dir: &Path, container: &str) -> Result<Self> {
        Self::start_with(dir, container, NfsOptions::default())
    }

    /// The same with options.
    pub fn start_with(dir: &Path, container: &str, options: NfsOptions) -> Result<Self> {
        let setup = Setup { dir: dir.to_owned(), container: container.into(), options };
        std::fs::create_dir_all(setup.exported())?;
        std::fs::create_dir_all(dir.join("recovery"))?;
        let (port, mount_port) = (free_port()?, free_port()?);
        let process = launch(&setup, port, mount_port)?;
        Ok(Self { process: Mutex::new(process), setup, port, mount_port })
    }

    /// Where clients find it.
    pub fn address(&self) -> IpAddr {
        self.setup.address()
    }

    /// Port of the NFS service.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Port of the mount service.
    pub fn mount_port(&self) -> u16 {
        self.mount_port
    }

    /// The directory that is exported, as everybody on this machine sees it.
    pub fn root(&self) -> PathBuf {
        let exported = self.setup.exported();
        match self.setup.options.room_bytes {
            None => exported,
            // A file system that only the server's mount namespace has.
            Some(_) => {
                let namespace = format!("/proc/{}/root", self.process().pid());
                Path::new(&namespace).join(exported.strip_prefix("/").unwrap_or(&exported))
            }
        }
    }

    /// Its name: `/<container>` is what clients mount.
    pub fn container(&self) -> &str {
        &self.setup.container
    }

    /// Takes the room that is left, but for so many bytes.
    pub fn fill_up(&self, but_bytes: u64) -> Result<()> {
        let mut filler = std::fs::File::options().create(true).append(true).open(self.filler())?;
        let root = self.root();
        let free_bytes = || statvfs(&root).map(|room| room.blocks_available() * room.fragment_size());
        while free_bytes()? > but_bytes && filler.write_all(&[0x55; 4096]).is_ok() {}
        Ok(())
    }

    /// Gives the room back that [`Self::fill_up`] took.
    pub fn make_room(&self) -> Result<()> {
        std::fs::remove_file(self.filler()).context("make room")
    }

    fn filler(&self) -> PathBuf {
        self.root().join("filler")
    }

    /// From now on the server answers nothing.
    pub fn pause(&self) -> Result<()> {
        self.process().signal(Signal::SIGSTOP)
    }

    /// It answers again.
    pub fn resume(&self) -> Result<()> {
        self.process().signal(Signal::SIGCONT)
    }

    /// Kills it and starts it again on the same ports.
    pub fn restart(&self) -> Result<()> {
        ensure!(self.setup.options.room_bytes.is_none(), "its limited file system would be lost");
        let mut process = self.process();
        process.kill();
        *process = launch(&self.setup, self.port, self.mount_port)?;
        Ok(())
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Setup {
    fn exported(&self) -> PathBuf {
        self.dir.join(&self.container)
    }

    fn address(&self) -> IpAddr {
        IpAddr::V4(if self.options.network.is_some() { STORAGE } else { Ipv4Addr::LOCALHOST })
    }
}

fn launch(setup: &Setup, port: u16, mount_port: u16) -> Result<Process> {
    let dir = &setup.dir;
    std::fs::write(dir.join("ganesha.conf"), config(setup, port, mount_port))
        .context("write Ganesha's configuration")?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", START, "sh"]).arg(dir).arg(setup.exported());
    command.arg(setup.options.room_bytes.map(|bytes| bytes.to_string()).unwrap_or_default());
    if let Some(network) = &setup.options.network {
        command = network.on_storage(command);
    }
    let mut process = Process::spawn("NFS-Ganesha", command, &dir.join("start.log"))?;
    let log = dir.join("ganesha.log");
    let started = || {
        std::fs::read_to_string(&log)
            .is_ok_and(|text| text.contains("NFS SERVER INITIALIZED") || text.contains("NFS STARTUP"))
    };
    let pid = process.pid();
    let open = || [port, mount_port].into_iter().all(|port| is_listening(pid, port));
    process.wait_until("an open port", Duration::from_secs(30), || started() && open())?;
    Ok(process)
}

/// Whether somebody listens on this port in the network of that process. Ganesha takes IPv6 sockets for IPv4, too.
fn is_listening(pid: u32, port: u16) -> bool {
    const LISTEN: &str = "0A";
    let tables = ["tcp", "tcp6"].map(|table| std::fs::read_to_string(format!("/proc/{pid}/net/{table}")));
    let local = format!(":{port:04X}");
    tables.iter().flatten().flat_map(|table| table.lines()).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(1).is_some_and(|address| address.ends_with(&local)) && fields.get(3) == Some(&LISTEN)
    })
}

fn config(setup: &Setup, port: u16, mount_port: u16) -> String {
    let Setup { dir, container, .. } = setup;
    let (dir, address) = (dir.display(), setup.address());
    format!(
        "NFS_CORE_PARAM {{
  NFS_Port = {port}; MNT_Port = {mount_port}; Protocols = 3; Bind_addr = {address};
  Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false; mount_path_pseudo = true;
}}
NFSv4 {{ Graceless = true; RecoveryRoot = {dir}/recovery; }}
EXPORT_DEFAULTS {{ Access_Type = RW; Squash = No_Root_Squash; SecType = sys; Protocols = 3; Transports = TCP; }}
EXPORT {{ Export_Id = 1; Path = {dir}/{container}; Pseudo = /{container}; FSAL {{ Name = VFS; }} }}
LOG {{ Default_Log_Level = EVENT; }}
"
    )
}
