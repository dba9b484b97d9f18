//! The process that serves: sockets, exports, deadline, signs of life.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use tokio::net::UnixListener;

use super::control::{CONTROL_SOCKET, NBD_SOCKET, serve_control};
use super::exports::Exports;
use super::memory::Memory;
use super::transmission::serve_nbd;
use super::{Limits, RelayArgs};

/// Runs the worker under its supervisor until it is killed.
pub fn run(args: &RelayArgs, supervisor: u32) -> Result<()> {
    // When the supervisor's thread ends, so do we; if it ended before this call, its parent is ours now.
    set_pdeathsig(Signal::SIGKILL).context("tie the worker's life to its supervisor")?;
    ensure!(std::os::unix::process::parent_id() == supervisor, "the relay's supervisor has ended");
    // Its supervisor blocks it, and a mask is inherited: a driver that asks us to end would wait in vain, in the outage.
    SigSet::from(Signal::SIGTERM).thread_unblock().context("let SIGTERM end the worker")?;
    // A task that panicked would leave writes undrained in a process that looks alive.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
    let signs = std::io::stdout().as_fd().try_clone_to_owned().context("take the way to the supervisor")?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .context("start the relay's runtime")?
        .block_on(serve(args, File::from(signs)))
}

async fn serve(args: &RelayArgs, signs: File) -> Result<()> {
    let instance = uuid::Uuid::new_v4();
    let exports = Exports::new(Memory::new(u64::from(args.memory_mib) << 20), &args.run_directory, instance);
    // The directory decides who reaches QEMU's socket: QEMU runs as another user. Control is for the driver alone.
    let nbd = listen(&args.run_directory.join(NBD_SOCKET), 0o666)?;
    let control = listen(&args.run_directory.join(CONTROL_SOCKET), 0o600)?;
    tracing::info!(%instance, directory = %args.run_directory.display(), memory_mib = args.memory_mib, "relay serves");
    tokio::select! {
        result = serve_nbd(nbd, Arc::clone(&exports)) => result.context("accept NBD clients"),
        result = serve_control(control, Arc::clone(&exports)) => result.context("accept drivers"),
        result = keep_time(&exports, args.limits(), signs) => result,
    }
}

/// Holds requests to the deadline and tells the supervisor how long a guest has been waiting.
async fn keep_time(exports: &Exports, limits: Limits, mut signs: File) -> Result<()> {
    let mut tick = tokio::time::interval(limits.tick);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let waited = exports.tick(limits.deadline);
        let millis = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
        match signs.write(&millis.to_le_bytes()) {
            Ok(8) => {}
            Ok(n) => bail!("the way to the supervisor took {n} of 8 bytes"),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {} // it is stopped; it will read the older signs first
            Err(e) => return Err(e).context("give the supervisor a sign of life"),
        }
    }
}

/// Listens on `path`. A socket left by a dead relay is replaced: the lock on the directory says that no other lives.
fn listen(path: &Path, mode: u32) -> Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("remove the old socket {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("set the mode of {}", path.display()))?;
    Ok(listener)
}
