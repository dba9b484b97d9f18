//! An NFS-Ganesha export laid out like a Nutanix storage container.
//!
//! Ganesha registers with a portmapper or does not start. Ours gets one that nobody else sees: a private `/run`, and rpcbind in a network
//! namespace of its own, reached by its unix socket. Clients are told the ports.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::process::{Process, free_port};

/// A running server with one export. Dropping it stops it.
pub struct NfsExport {
    process: Mutex<Process>,
    dir: PathBuf,
    container: String,
    root: PathBuf,
    port: u16,
    mount_port: u16,
}

const START: &str = r#"
set -e
mount -t tmpfs tmpfs /run
unshare -n rpcbind -f -w &
while ! [ -S /run/rpcbind.sock ]; do sleep 0.05; done
exec ganesha.nfsd -F -f "$1/ganesha.conf" -L "$1/ganesha.log" -p "$1/ganesha.pid"
"#;

impl NfsExport {
    /// Serves `<dir>/<container>` as `/<container>`.
    pub fn start(dir: &Path, container: &str) -> Result<Self> {
        let root = dir.join(container);
        std::fs::create_dir_all(root.join(".acropolis/vmdisk"))?;
        std::fs::create_dir_all(dir.join("recovery"))?;
        let (port, mount_port) = (free_port()?, free_port()?);
        let process = launch(dir, container, port, mount_port)?;
        Ok(Self {
            process: Mutex::new(process),
            dir: dir.to_owned(),
            container: container.into(),
            root,
            port,
            mount_port,
        })
    }

    /// Port of the NFS service on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Port of the mount service.
    pub fn mount_port(&self) -> u16 {
        self.mount_port
    }

    /// The directory that is exported.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Its name: `/<container>` is what clients mount.
    pub fn container(&self) -> &str {
        &self.container
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
        let mut process = self.process();
        process.kill();
        *process = launch(&self.dir, &self.container, self.port, self.mount_port)?;
        Ok(())
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn launch(dir: &Path, container: &str, port: u16, mount_port: u16) -> Result<Process> {
    std::fs::write(dir.join("ganesha.conf"), config(dir, container, port, mount_port))
        .context("write Ganesha's configuration")?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", START, "sh"]).arg(dir);
    let mut process = Process::spawn("NFS-Ganesha", command, &dir.join("start.log"))?;
    let log = dir.join("ganesha.log");
    let started = || {
        std::fs::read_to_string(&log)
            .is_ok_and(|text| text.contains("NFS SERVER INITIALIZED") || text.contains("NFS STARTUP"))
    };
    process
        .wait_until("an open port", Duration::from_secs(30), || started() && is_open(port) && is_open(mount_port))?;
    Ok(process)
}

fn is_open(port: u16) -> bool {
    std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
}

fn config(dir: &Path, container: &str, port: u16, mount_port: u16) -> String {
    let dir = dir.display();
    format!(
        "NFS_CORE_PARAM {{
  NFS_Port = {port}; MNT_Port = {mount_port}; Protocols = 3; Bind_addr = 127.0.0.1;
  Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false; mount_path_pseudo = true;
}}
NFSv4 {{ Graceless = true; RecoveryRoot = {dir}/recovery; }}
EXPORT_DEFAULTS {{ Access_Type = RW; Squash = No_Root_Squash; SecType = sys; Protocols = 3; Transports = TCP; }}
EXPORT {{ Export_Id = 1; Path = {dir}/{container}; Pseudo = /{container}; FSAL {{ Name = VFS; }} }}
LOG {{ Default_Log_Level = EVENT; }}
"
    )
}
