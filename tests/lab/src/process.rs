//! Child processes that never outlive the lab, even if the lab is killed.
//!
//! Every child leads a process group of its own. One guard, a shell script that reads the lab's end of a pipe, kills all groups it was
//! told of when that pipe closes. (`PR_SET_PDEATHSIG` would not do: it fires when the *thread* that spawned the child ends.)

use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Write;
use std::net::TcpListener;
use std::ops::RangeInclusive;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Lines: `+pid` a group to kill at the end, `-pid` forget it, `@dir` at the end kill every process named by a `*.pid` file in `dir`
/// (QEMU under libvirt leaves its parent's group, but writes such a file), `=dir` at the end remove `dir` and all that is in it.
/// (`-s KILL` because dash takes no `--` after `-9`; a pid is forgotten once only because the list would double otherwise.)
const GUARD: &str = r#"
trap '' INT TERM HUP QUIT
pids=' ' dirs='' trees=''
while read -r line; do
  case "$line" in
    +*) pids="$pids${line#+} " ;;
    -*) p=" ${line#-} "; case "$pids" in *"$p"*) pids="${pids%%"$p"*} ${pids#*"$p"}" ;; esac ;;
    @*) dirs="$dirs ${line#@}" ;;
    =*) trees="$trees ${line#=}" ;;
  esac
done
for p in $pids; do kill -s KILL -- "-$p" 2>/dev/null; done
for d in $dirs; do for f in "$d"/*.pid; do [ -f "$f" ] && kill -s KILL "$(cat "$f")" 2>/dev/null; done; done
for t in $trees; do rm -rf "$t" 2>/dev/null || { sleep 1; rm -rf "$t"; }; done
exit 0
"#;

static GUARD_PIPE: LazyLock<Mutex<Option<Child>>> = LazyLock::new(|| {
    let guard = Command::new("/bin/sh")
        .args(["-c", GUARD])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn();
    Mutex::new(guard.ok())
});

/// False: there is no guard any more, the end has begun.
fn tell_guard(line: &str) -> bool {
    let mut guard = GUARD_PIPE.lock().unwrap_or_else(PoisonError::into_inner);
    let stdin = guard.as_mut().and_then(|child| child.stdin.as_mut());
    stdin.is_some_and(|stdin| writeln!(stdin, "{line}").is_ok())
}

/// Ends every child and removes every guarded directory now, whatever else the program is doing; nothing can be started after it.
pub fn end_all() {
    let guard = GUARD_PIPE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(mut guard) = guard {
        drop(guard.stdin.take());
        let _ = guard.wait();
    }
}

/// Removes `dir` and all that is in it when the lab ends.
pub fn guard_directory(dir: &Path) {
    tell_guard(&format!("={}", dir.display()));
}

/// Kills every process named by a `*.pid` file in `dir` when the lab ends.
pub fn guard_pid_files(dir: &Path) {
    tell_guard(&format!("@{}", dir.display()));
}

/// A child process with its output in a log file. Dropping it kills its whole process group.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` in a process group of its own, with stdin closed and both outputs appended to `log`.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let out: File = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open the log of {name}, {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {name} ({:?})", command.get_program()))?;
        let guarded = tell_guard(&format!("+{}", child.id()));
        let process = Self { name: name.into(), child, log: log.into() };
        // Dropped, and so killed, if nobody guards it.
        ensure!(guarded, "start {name}: the lab is ending");
        Ok(process)
    }

    /// Process id, also the id of its group.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Sends a signal to the whole group.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        killpg(Pid::from_raw(self.child.id().try_into()?), signal)
            .with_context(|| format!("send {signal} to {}", self.name))
    }

    /// Its exit status if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits until `ready` holds; an error with the log's last lines if the process ends or the time is up first.
    pub fn wait_until(&mut self, what: &str, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let start = Instant::now();
        while !ready() {
            if let Some(status) = self.ended() {
                bail!("{} ended ({status}) before {what}; its log {}:\n{}", self.name, self.log.display(), self.tail());
            }
            if start.elapsed() > limit {
                bail!("{}: no {what} after {limit:?}; its log {}:\n{}", self.name, self.log.display(), self.tail());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The last 20 lines of its output.
    pub fn tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Kills the group and waits for the leader.
    pub fn kill(&mut self) {
        let _ = self.signal(Signal::SIGKILL);
        let _ = self.child.wait();
        tell_guard(&format!("-{}", self.child.id()));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Ports that labs give to servers that cannot choose one themselves: below those that Linux gives to clients, so that no connection takes one
/// between two starts of its server.
const PORTS: RangeInclusive<u16> = 20_000..=29_999;

/// What keeps other labs of this computer off a port: a name in the kernel that ends with this process.
static TAKEN: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());

/// A TCP port on the loopback that is this process's until it ends.
pub fn free_port() -> Result<u16> {
    let random = RandomState::new().build_hasher().finish();
    let count = u64::from(PORTS.end() - PORTS.start()) + 1;
    for index in 0..count {
        let port = PORTS.start() + u16::try_from((random % count + index) % count)?;
        let name = SocketAddr::from_abstract_name(format!("drover-lab-port-{port}"))?;
        let Ok(taken) = UnixListener::bind_addr(&name) else { continue };
        // Somebody else's server may be there all the same.
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            TAKEN.lock().unwrap_or_else(PoisonError::into_inner).push(taken);
            return Ok(port);
        }
    }
    bail!("no port from {} to {} is free", PORTS.start(), PORTS.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_to_one() {
        let ports: std::collections::BTreeSet<u16> = (0..500).map(|_| free_port().expect("a port")).collect();
        assert_eq!(ports.len(), 500);
    }
}
