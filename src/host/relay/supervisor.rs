//! The watchdog: a small process that starts itself again as the [worker](super::worker) and kills it when it hangs.
//!
//! The worker says, at every turn of its runtime, how long its guest has been waiting: 8 bytes over a socket pair, its standard output.
//! From the last sign of life on, that time can only have grown, so the worker is killed when it would exceed the limit: early when a
//! request was waiting already, later when none was. Killing it cuts QEMU's connection, the mirror fails and the guest runs on.
//!
//! The lock on the run directory is inherited by the worker as its standard input: it holds as long as either process lives.
//! The supervisor ends when the worker has ended, never well; the worker is killed by the kernel when the supervisor ends.
//! Freezing both at once (a paused pod) is beyond this. A relay that is asked to end (SIGTERM) takes its sockets with it.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};

use super::RelayArgs;
use super::control::{CONTROL_SOCKET, NBD_SOCKET};
use super::writes;

/// File that a living relay holds locked. It stays: whoever waits for the lock has it open.
pub const LOCK_FILE: &str = "relay.lock";
/// How long to wait for the end of an earlier relay.
const LOCK_LIMIT: Duration = Duration::from_secs(2);
/// A worker serves nobody before its first sign of life: it gets time to start on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Starts the worker, on this thread, which must be the process's main one: the kernel ties the worker's life to it.
pub fn run(args: &RelayArgs) -> Result<()> {
    let lock = lock(&args.run_directory)?;
    clear_away_when_asked(args.run_directory.clone())?;
    let (mut ours, theirs) = UnixStream::pair().context("make a socket pair for the worker's signs of life")?;
    theirs.set_nonblocking(true).context("let the worker go on when nobody listens")?;
    let mut worker = Command::new("/proc/self/exe") // the same program even if its file was replaced
        .arg0(std::env::args_os().next().unwrap_or_default())
        .args(std::env::args_os().skip(1))
        .arg(format!("--worker-of={}", std::process::id()))
        .stdin(Stdio::from(lock))
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .context("start the relay's worker")?;
    let why = watch(&mut ours, args.limits().kill);
    let _ = worker.kill(); // SIGKILL; an error means that it has ended
    end(&mut worker, why)
}

fn clear_away_when_asked(run_directory: PathBuf) -> Result<()> {
    let mut asked = SigSet::empty();
    asked.add(Signal::SIGTERM);
    asked.thread_block().context("keep SIGTERM for the thread that waits for it")?;
    std::thread::spawn(move || {
        if asked.wait().is_ok() {
            let _ = remove_sockets(&run_directory);
        }
        std::process::exit(128 + Signal::SIGTERM as i32)
    });
    Ok(())
}

fn remove_sockets(run_directory: &Path) -> io::Result<()> {
    [CONTROL_SOCKET, NBD_SOCKET].iter().try_for_each(|socket| gone(std::fs::remove_file(run_directory.join(socket))))
}

/// That there was nothing to be removed is no error.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|err| if err.kind() == ErrorKind::NotFound { Ok(()) } else { Err(err) })
}

/// Removes what relays left in their directory when nobody needs it any more: the write counters and, if no relay lives, the sockets.
pub fn clear_away(run_directory: &Path) -> io::Result<()> {
    gone(writes::remove_every(run_directory))?;
    match File::options().write(true).open(run_directory.join(LOCK_FILE)) {
        // Held while they are removed: a relay that starts meanwhile waits for it. One that lives takes them with it.
        Ok(lock) if lock.try_lock().is_ok() => remove_sockets(run_directory),
        Ok(_) => Ok(()),
        Err(err) => gone(Err(err)),
    }
}

fn end(worker: &mut Child, why: Result<Stall>) -> Result<()> {
    let status = worker.wait().context("wait for the relay's worker")?;
    match why? {
        Stall::Hung(age) => {
            bail!("the relay's worker was killed: a guest may have been waiting for {} ms", age.as_millis())
        }
        Stall::Ended => bail!("the relay's worker ended: {status}"),
    }
}

/// Why watching came to an end.
enum Stall {
    Hung(Duration),
    Ended,
}

fn watch(signs: &mut UnixStream, limit: Duration) -> Result<Stall> {
    // `since`: from when on a guest may be waiting.
    let (mut since, mut limit_now) = (Instant::now(), START_LIMIT);
    let (mut buffer, mut filled) = ([0; 8], 0);
    loop {
        let Some(left) = limit_now.checked_sub(since.elapsed()).filter(|left| !left.is_zero()) else {
            return Ok(Stall::Hung(since.elapsed()));
        };
        signs.set_read_timeout(Some(left)).context("set a limit on the worker's next sign of life")?;
        match signs.read(&mut buffer[filled..]) {
            Ok(0) => return Ok(Stall::Ended),
            Ok(n) => filled += n,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return Ok(Stall::Ended),
            Err(e) => return Err(e).context("read the worker's signs of life"),
        }
        if filled == buffer.len() {
            let now = Instant::now();
            since = now.checked_sub(Duration::from_millis(u64::from_le_bytes(buffer))).unwrap_or(now);
            (limit_now, filled) = (limit, 0);
        }
    }
}

fn lock(run_directory: &Path) -> Result<File> {
    // QEMU's user must pass through it, nobody needs to list it.
    let made = DirBuilder::new().recursive(true).mode(0o711).create(run_directory);
    made.with_context(|| format!("make the run directory {}", run_directory.display()))?;
    let path = run_directory.join(LOCK_FILE);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("open {}: the run directory must be writable", path.display()))?;
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            // A relay that was killed a moment ago may still be on its way out.
            Err(TryLockError::WouldBlock) if start.elapsed() < LOCK_LIMIT => std::thread::sleep(LOCK_LIMIT / 40),
            Err(TryLockError::WouldBlock) => {
                bail!("another relay serves {}: each machine needs a run directory of its own", run_directory.display())
            }
            Err(TryLockError::Error(e)) => return Err(e).with_context(|| format!("lock {}", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dead_relays_left_is_cleared_away_and_a_living_one_keeps_its_sockets() {
        let dir = tempfile::tempdir().unwrap();
        clear_away(&dir.path().join("never used")).unwrap();
        let counters = dir.path().join("vda-5d4ae1e7-0000-4000-8000-00000000beef.writes");
        let sockets = [CONTROL_SOCKET, NBD_SOCKET].map(|socket| dir.path().join(socket));
        let left = || sockets.iter().chain([&counters]).filter(|path| path.exists()).count();
        let lock = lock(dir.path()).unwrap();
        for path in sockets.iter().chain([&counters]) {
            std::fs::write(path, b"").unwrap();
        }
        clear_away(dir.path()).unwrap();
        assert_eq!(left(), 2, "a relay lives: only its counters go");
        drop(lock);
        clear_away(dir.path()).unwrap();
        assert_eq!(left(), 0);
        assert!(dir.path().join(LOCK_FILE).exists());
    }
}
