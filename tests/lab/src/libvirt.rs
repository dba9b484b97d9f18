//! A libvirt daemon of the lab's own, with QEMU guests.
//!
//! It runs in a private mount namespace where libvirt's directories are the lab's; everything else, QEMU's disks and sockets above all, has the
//! same path as outside.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::guest::{Console, GuestImage, Load, make_disk};
use crate::process::{Process, guard_pid_files};

/// A running daemon. Dropping it kills it and its guests.
pub struct Libvirt {
    daemon: Mutex<Process>,
    dir: PathBuf,
    image: GuestImage,
}

/// Debian's libvirt looks its user up even when QEMU is to run as root; a machine without libvirt-daemon-system has none.
const START: &str = r#"
set -e
dir=$1
for pair in run:/run/libvirt etc:/etc/libvirt lib:/var/lib/libvirt log:/var/log/libvirt cache:/var/cache/libvirt; do
  mkdir -p "$dir/${pair%%:*}" "${pair#*:}"
  mount --bind "$dir/${pair%%:*}" "${pair#*:}"
done
cp /etc/passwd "$dir/passwd"; cp /etc/group "$dir/group"
grep -q '^libvirt-qemu:' "$dir/passwd" || echo 'libvirt-qemu:x:64055:64055::/:/bin/false' >> "$dir/passwd"
grep -q '^libvirt-qemu:' "$dir/group" || echo 'libvirt-qemu:x:64055:' >> "$dir/group"
grep -q '^kvm:' "$dir/group" || echo 'kvm:x:64056:' >> "$dir/group"
mount --bind "$dir/passwd" /etc/passwd; mount --bind "$dir/group" /etc/group
exec libvirtd -f "$dir/libvirtd.conf" -p "$dir/libvirtd.pid"
"#;

const QEMU_CONF: &str =
    "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\nnamespaces = []\nstdio_handler = \"file\"\n";

/// A guest to be defined.
#[derive(Clone, Debug)]
pub struct GuestSpec {
    pub name: String,
    pub uuid: Option<String>,
    pub title: Option<String>,
    /// Sizes in bytes.
    pub disks: Vec<u64>,
    /// Bytes of noise on each disk, so that there is something to copy.
    pub ballast_bytes: u64,
    pub mac: Option<String>,
    pub load: Load,
    pub on_poweroff: String,
    /// Does not answer the power button.
    pub deaf: bool,
    /// Reboots when the power button is pressed.
    pub reboots: bool,
    /// Has a channel to the guest agent in it.
    pub agent: bool,
    /// More elements for `<devices>`.
    pub devices_xml: String,
}

impl Default for GuestSpec {
    fn default() -> Self {
        Self {
            name: "web01".into(),
            uuid: None,
            title: None,
            disks: vec![128 << 20],
            ballast_bytes: 0,
            mac: Some("52:54:00:0a:01:01".into()),
            load: Load::default(),
            on_poweroff: "destroy".into(),
            deaf: false,
            reboots: false,
            agent: false,
            devices_xml: String::new(),
        }
    }
}

/// A defined guest.
#[derive(Clone, Debug)]
pub struct Domain {
    uri: String,
    pub name: String,
    pub load: Load,
    console: PathBuf,
    disks: Vec<PathBuf>,
}

impl Libvirt {
    /// Starts a daemon whose state is in `dir`.
    pub fn start(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir.join("etc"))?;
        std::fs::create_dir_all(dir.join("sock"))?;
        std::fs::create_dir_all(dir.join("images"))?;
        std::fs::write(dir.join("etc/qemu.conf"), QEMU_CONF)?;
        let sockets = dir.join("sock");
        let conf =
            format!("unix_sock_dir = \"{}\"\nauth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n", sockets.display());
        std::fs::write(dir.join("libvirtd.conf"), conf)?;
        guard_pid_files(&dir.join("run/qemu"));
        let daemon = launch(dir)?;
        Ok(Self { daemon: Mutex::new(daemon), dir: dir.to_owned(), image: GuestImage::ready()? })
    }

    /// Connection URI, for any process of this machine.
    pub fn uri(&self) -> String {
        uri(&self.dir)
    }

    /// The directory of its sockets.
    pub fn socket_dir(&self) -> PathBuf {
        self.dir.join("sock")
    }

    /// Where the guests' disks lie.
    pub fn disk_dir(&self) -> PathBuf {
        self.dir.join("images")
    }

    /// Runs `virsh` and returns what it prints.
    pub fn virsh(&self, arguments: &[&str]) -> Result<String> {
        virsh(&self.uri(), arguments)
    }

    /// Kills the daemon; guests go on.
    pub fn kill_daemon(&self) {
        self.daemon().kill();
    }

    /// Starts the daemon again.
    pub fn restart_daemon(&self) -> Result<()> {
        let mut daemon = self.daemon();
        daemon.kill();
        *daemon = launch(&self.dir)?;
        Ok(())
    }

    /// Where each guest's QEMU writes its process id to `<name>.pid`, which tells of it also while no daemon runs.
    pub fn pid_files(&self) -> PathBuf {
        self.dir.join("run/qemu")
    }

    fn daemon(&self) -> MutexGuard<'_, Process> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a guest's disks and defines it.
    pub fn define(&self, spec: &GuestSpec) -> Result<Domain> {
        let disks: Vec<PathBuf> =
            (0..spec.disks.len()).map(|index| self.dir.join(format!("images/{}-{index}.img", spec.name))).collect();
        for (index, (path, size_bytes)) in disks.iter().zip(&spec.disks).enumerate() {
            make_disk(path, *size_bytes, index, spec.ballast_bytes)?;
        }
        let console = self.dir.join(format!("images/{}.console", spec.name));
        let xml = self.dir.join(format!("images/{}.xml", spec.name));
        std::fs::write(&xml, domain_xml(spec, &self.image, &disks, &console))?;
        self.virsh(&["define", &xml.display().to_string()])?;
        Ok(Domain { uri: self.uri(), name: spec.name.clone(), load: spec.load, console, disks })
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        self.kill_daemon();
        // Guests outlive their daemon; each has a file with its process id.
        for entry in std::fs::read_dir(self.dir.join("run/qemu")).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "pid")
                && let Ok(text) = std::fs::read_to_string(entry.path())
                && let Ok(pid) = text.trim().parse()
            {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
        }
    }
}

impl Domain {
    /// Boots it.
    pub fn start(&self) -> Result<()> {
        virsh(&self.uri, &["start", &self.name]).map(drop)
    }

    /// Boots it and waits until it has acknowledged `records` records.
    pub fn start_and_write(&self, records: u64) -> Result<()> {
        self.start()?;
        self.wait_for_ack(records, Duration::from_secs(120))
    }

    /// Waits until record `n` is acknowledged.
    pub fn wait_for_ack(&self, n: u64, limit: Duration) -> Result<()> {
        let start = std::time::Instant::now();
        while self.console().last_ack().unwrap_or(0) < n {
            ensure!(
                start.elapsed() < limit,
                "{} did not acknowledge record {n} in {limit:?}; its console:\n{}",
                self.name,
                self.console().text()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// What it says.
    pub fn console(&self) -> Console {
        Console::new(&self.console)
    }

    /// Its disk images, in order.
    pub fn disk_paths(&self) -> &[PathBuf] {
        &self.disks
    }

    /// libvirt's word for its state.
    pub fn state(&self) -> Result<String> {
        Ok(virsh(&self.uri, &["domstate", &self.name])?.trim().to_owned())
    }

    /// Whether libvirt would start it with the host.
    pub fn autostart(&self) -> Result<bool> {
        Ok(virsh(&self.uri, &["dominfo", &self.name])?
            .lines()
            .any(|line| line.starts_with("Autostart:") && line.ends_with("enable")))
    }

    /// Its definition.
    pub fn xml(&self) -> Result<String> {
        virsh(&self.uri, &["dumpxml", &self.name])
    }

    /// Asks the guest to power off.
    pub fn shutdown(&self) -> Result<()> {
        virsh(&self.uri, &["shutdown", &self.name]).map(drop)
    }

    /// Pulls the plug.
    pub fn destroy(&self) -> Result<()> {
        virsh(&self.uri, &["destroy", &self.name]).map(drop)
    }

    /// Waits until libvirt calls it `state`.
    pub fn wait_state(&self, state: &str, limit: Duration) -> Result<()> {
        let start = std::time::Instant::now();
        while self.state()? != state {
            ensure!(start.elapsed() < limit, "{} is not {state} after {limit:?}", self.name);
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }
}

fn launch(dir: &Path) -> Result<Process> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", START, "sh"]).arg(dir);
    let mut daemon = Process::spawn("libvirtd", command, &dir.join("libvirtd.log"))?;
    let uri = uri(dir);
    daemon.wait_until("a connection", Duration::from_secs(30), || virsh(&uri, &["uri"]).is_ok())?;
    Ok(daemon)
}

fn uri(dir: &Path) -> String {
    format!("qemu:///system?socket={}", dir.join("sock/libvirt-sock").display())
}

fn virsh(uri: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new("virsh").args(["-q", "-c", uri]).args(arguments).output().context("run virsh")?;
    ensure!(
        output.status.success(),
        "virsh {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

const AGENT_CHANNEL: &str = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>";

fn domain_xml(spec: &GuestSpec, image: &GuestImage, disks: &[PathBuf], console: &Path) -> String {
    let uuid = spec.uuid.as_ref().map(|uuid| format!("<uuid>{uuid}</uuid>")).unwrap_or_default();
    let title = spec.title.as_ref().map(|title| format!("<title>{title}</title>")).unwrap_or_default();
    let deaf = if spec.deaf { " drover.deaf=1" } else { "" };
    let reboots = if spec.reboots { " drover.reboots=1" } else { "" };
    let agent = if spec.agent { AGENT_CHANNEL } else { "" };
    let disk_xml: String = disks
        .iter()
        .zip('a'..)
        .map(|(path, letter)| {
            format!(
                "<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/><source file='{}'/><target dev='vd{letter}' bus='virtio'/></disk>",
                path.display()
            )
        })
        .collect();
    let nic = spec
        .mac
        .as_ref()
        .map(|mac| format!("<interface type='user'><mac address='{mac}'/><model type='virtio'/></interface>"));
    format!(
        "<domain type='qemu'><name>{name}</name>{uuid}{title}<memory unit='MiB'>160</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type><kernel>{kernel}</kernel><initrd>{initrd}</initrd><cmdline>{cmdline}{deaf}{reboots}</cmdline></os>
<features><acpi/></features><on_poweroff>{on_poweroff}</on_poweroff>
<devices>{disk_xml}{nic}{agent}{devices}<serial type='file'><source path='{console}' append='on'/></serial></devices></domain>",
        name = spec.name,
        kernel = image.kernel.display(),
        initrd = image.initrd.display(),
        cmdline = spec.load.command_line(disks.len()),
        on_poweroff = spec.on_poweroff,
        nic = nic.unwrap_or_default(),
        devices = spec.devices_xml,
        console = console.display(),
    )
}
