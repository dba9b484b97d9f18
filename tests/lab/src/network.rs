//! A hypervisor, a storage, and a router between them that can swallow packets: nobody is told, as when a cable is cut somewhere.
//!
//! Each is a network namespace of its own, kept by a process that sleeps; the machine's own network is not touched.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::Process;

/// The hypervisor's address, and the storage's.
pub const HYPERVISOR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub const STORAGE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// Run in the router's namespace: `$1` and `$2` are processes of the other two.
const CABLES: &str = r#"
set -e
ip link set lo up
echo 1 > /proc/sys/net/ipv4/ip_forward
plug() { # process, its address, the router's address there
  ip link add "to$1" type veth peer name eth0 netns "$1"
  ip addr add "$3/24" dev "to$1"
  ip link set "to$1" up
  nsenter --net="/proc/$1/ns/net" sh -ec "ip link set lo up; ip addr add $2/24 dev eth0; ip link set eth0 up; ip route add default via $3"
}
plug "$1" "$3" 198.51.100.254
plug "$2" "$4" 203.0.113.254
"#;

/// The three namespaces. Dropping it ends them.
pub struct Network {
    hypervisor: Process,
    storage: Process,
    router: Process,
}

impl Network {
    /// Connects the two through the router.
    pub fn start(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let [hypervisor, storage, router] = ["hypervisor", "storage", "router"].map(|name| namespace(name, dir));
        let network = Self { hypervisor: hypervisor?, storage: storage?, router: router? };
        let pids = [network.hypervisor.pid(), network.storage.pid()].map(|pid| pid.to_string());
        let addresses = [HYPERVISOR, STORAGE].map(|address| address.to_string());
        let mut plug = Command::new("sh");
        plug.args(["-c", CABLES, "sh"]).args(pids).args(addresses);
        run(inside(plug, &network.router))?;
        Ok(network)
    }

    /// Has a command run on the hypervisor's network.
    pub fn on_hypervisor(&self, command: Command) -> Command {
        inside(command, &self.hypervisor)
    }

    /// Has a command run on the storage's network.
    pub fn on_storage(&self, command: Command) -> Command {
        inside(command, &self.storage)
    }

    /// From now on the router swallows every packet between the two.
    pub fn swallow_all(&self) -> Result<()> {
        for address in [HYPERVISOR, STORAGE] {
            self.router("ip", &format!("route add blackhole {address}/32"))?;
        }
        Ok(())
    }

    /// From now on the router swallows the packets of the connections that come from these ports of the hypervisor.
    pub fn swallow(&self, ports: &[u16]) -> Result<()> {
        for port in ports {
            self.router("ip", &format!("rule add ipproto tcp sport {port} blackhole"))?;
            self.router("ip", &format!("rule add ipproto tcp dport {port} blackhole"))?;
        }
        Ok(())
    }

    /// From now on no more than so many bytes a second reach the storage; `None` = as many as it takes.
    pub fn set_rate(&self, bytes_per_s: Option<u64>) -> Result<()> {
        let device = format!("to{}", self.storage.pid());
        let line = match bytes_per_s {
            Some(rate) => format!("qdisc replace dev {device} root tbf rate {rate}bps burst 64kb latency 500ms"),
            None => format!("qdisc del dev {device} root"),
        };
        self.router("tc", &line)
    }

    /// Everything passes again.
    pub fn heal(&self) -> Result<()> {
        while self.router("ip", "rule del blackhole").is_ok() {}
        self.router("ip", "route flush type blackhole")
    }

    /// The ports of the hypervisor whose connections to the storage its kernel still knows, in whatever state.
    pub fn ports_to_storage(&self) -> Result<Vec<u16>> {
        let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", self.hypervisor.pid()))?;
        // Address and port in hexadecimal, the address as a word of the machine's byte order.
        let remote = format!("{:08X}:", u32::from_ne_bytes(STORAGE.octets()));
        let port = |line: &str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let to_storage = fields.get(2)?.starts_with(&remote);
            let (_, port) = fields.get(1)?.split_once(':')?;
            to_storage.then(|| u16::from_str_radix(port, 16).ok()).flatten()
        };
        Ok(table.lines().skip(1).filter_map(port).collect())
    }

    fn router(&self, tool: &str, arguments: &str) -> Result<()> {
        let mut command = Command::new(tool);
        command.args(arguments.split(' '));
        run(inside(command, &self.router))
    }
}

fn namespace(name: &str, dir: &Path) -> Result<Process> {
    let mut command = Command::new("unshare");
    command.args(["--net", "sleep", "infinity"]);
    let mut process = Process::spawn(name, command, &dir.join(format!("{name}.log")))?;
    let own = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let (pid, ours) = (process.pid(), own(std::process::id()));
    process.wait_until("its network", Duration::from_secs(30), || own(pid).is_some_and(|it| Some(it) != ours))?;
    Ok(process)
}

fn inside(command: Command, namespace: &Process) -> Command {
    let mut entering = Command::new("nsenter");
    entering.arg(format!("--net=/proc/{}/ns/net", namespace.pid())).arg("--");
    entering.arg(command.get_program()).args(command.get_args());
    entering.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    entering
}

fn run(mut command: Command) -> Result<()> {
    let output = command.output().context("run nsenter")?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
