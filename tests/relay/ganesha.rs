//! NFS-Ganesha with one export, on ports of its own. Its rpcbind lives in namespaces of its own, so that several can run beside each other.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use drover::api::block_copy::NfsFile;
use drover::api::nutanix_cluster::NfsAddress;
use drover::host::relay::TargetSpec;
use drover_lab::process::{Process, free_port};
use tempfile::TempDir;

/// rpcbind is reached over its socket in /run: a private /run and a private network make it private.
const START: &str = r#"
mount -t tmpfs tmpfs /run
unshare --net rpcbind -f &
while ! [ -S /run/rpcbind.sock ]; do sleep 0.05; done
exec ganesha.nfsd -F -f "$1/ganesha.conf" -L "$1/ganesha.log" -p "$1/ganesha.pid"
"#;

pub struct Ganesha {
    process: Process,
    port: u16,
    mount_port: u16,
    directory: TempDir,
}

impl Ganesha {
    pub fn start() -> Result<Self> {
        let directory = TempDir::new()?;
        let (port, mount_port) = (free_port()?, free_port()?);
        let root = directory.path().display();
        std::fs::create_dir_all(directory.path().join("container/.acropolis/vmdisk"))?;
        std::fs::create_dir(directory.path().join("recovery"))?;
        let config = format!(
            "NFS_CORE_PARAM {{ NFS_Port = {port}; MNT_Port = {mount_port}; Bind_addr = 127.0.0.1; Protocols = 3;
               Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false; }}
             NFSv4 {{ Graceless = true; RecoveryRoot = {root}/recovery; }}
             EXPORT {{ Export_Id = 1; Path = {root}/container; Pseudo = /container; Protocols = 3; Transports = TCP;
               Access_Type = RW; Squash = No_Root_Squash; SecType = sys; FSAL {{ Name = VFS; }} }}\n"
        );
        std::fs::write(directory.path().join("ganesha.conf"), config)?;
        let process = start(directory.path(), port)?;
        Ok(Self { process, port, mount_port, directory })
    }

    /// Kills the server; its disks stay.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same ports.
    pub fn start_again(&mut self) -> Result<()> {
        self.process = start(self.directory.path(), self.port)?;
        Ok(())
    }

    /// To the server and its rpcbind.
    pub fn signal(&self, signal: nix::sys::signal::Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Where a disk lies on the server.
    pub fn path(&self, disk: &str) -> PathBuf {
        self.directory.path().join("container/.acropolis/vmdisk").join(disk)
    }

    /// A new sparse disk, as the relay is told of it.
    pub fn disk(&self, disk: &str, size_bytes: u64) -> Result<TargetSpec> {
        std::fs::File::create(self.path(disk))?.set_len(size_bytes)?;
        Ok(TargetSpec::Nfs(self.file(disk, size_bytes)))
    }

    pub fn file(&self, disk: &str, size_bytes: u64) -> NfsFile {
        NfsFile {
            server: NfsAddress {
                address: "127.0.0.1".into(),
                port: Some(self.port),
                mount_port: Some(self.mount_port),
            },
            export: self.directory.path().join("container").display().to_string(),
            path: format!(".acropolis/vmdisk/{disk}"),
            size_bytes,
        }
    }
}

fn start(directory: &Path, port: u16) -> Result<Process> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", START, "sh"]).arg(directory);
    let mut process = Process::spawn("ganesha", command, &directory.join("start.log"))?;
    let answers = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
    process.wait_until("its NFS port", Duration::from_secs(60), answers)?;
    Ok(process)
}
