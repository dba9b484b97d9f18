//! A relay process in a directory of its own.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use drover::host::relay::{ExportStatus, RelayClient, RelayStatus, TargetSpec};
use drover_lab::process::Process;
use tempfile::TempDir;

pub const MIB: u64 = 1 << 20;

pub struct Relay {
    pub process: Process,
    pub client: RelayClient,
    directory: TempDir,
}

impl Relay {
    pub async fn start(memory_mib: u32, max_guest_stall_millis: u32) -> Result<Self> {
        let directory = TempDir::new()?;
        let process = start_in(directory.path(), memory_mib, max_guest_stall_millis)?;
        let client = RelayClient::new(directory.path());
        let relay = Self { process, client, directory };
        relay.wait_for("its first answer", |_| true).await?;
        Ok(relay)
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("nbd.sock")
    }

    /// URI of an export, as NBD tools want it.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }

    /// A sparse file beside the sockets, opened as the target of export `vda`.
    pub async fn open_file(&self, source_bytes: u64, target_bytes: u64, fresh: bool) -> Result<PathBuf> {
        let path = self.directory.path().join("target.img");
        if !path.exists() {
            std::fs::File::create(&path)?.set_len(target_bytes)?;
        }
        self.client.open("vda", source_bytes, &TargetSpec::File(path.clone()), fresh).await?;
        Ok(path)
    }

    pub async fn export(&self) -> Result<ExportStatus> {
        self.client.status().await?.exports.into_iter().next().context("no export is open")
    }

    /// Waits until the status is as wanted.
    pub async fn wait_for(&self, what: &str, ready: impl Fn(&RelayStatus) -> bool) -> Result<RelayStatus> {
        let mut last = None;
        for _ in 0..600 {
            if let Ok(status) = self.client.status().await {
                if ready(&status) {
                    return Ok(status);
                }
                last = Some(status);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        anyhow::bail!("no {what}; last status {last:#?}; log:\n{}", self.process.tail())
    }

    pub async fn wait_drained(&self) -> Result<()> {
        let drained = |status: &RelayStatus| status.exports.iter().all(|e| e.backlog_bytes == 0 && e.broken.is_none());
        self.wait_for("end of the backlog", drained).await.map(|_| ())
    }
}

pub fn start_in(directory: &Path, memory_mib: u32, max_guest_stall_millis: u32) -> Result<Process> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_drover"));
    command.args(["host", "relay", "--run-directory"]).arg(directory);
    command.arg(format!("--memory-mib={memory_mib}"));
    command.arg(format!("--max-guest-stall-millis={max_guest_stall_millis}"));
    command.env("RUST_BACKTRACE", "0"); // the log's end is to be the message
    Process::spawn("relay", command, &directory.join("relay.log"))
}

/// Runs a tool to its end and returns its output.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {:?}", command.get_program()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed ({}):\n{text}", output.status);
    Ok(text)
}

/// Bytes that no compression or zero detection makes smaller; the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    std::iter::repeat_with(|| next().to_le_bytes()).take(len.div_ceil(8)).flatten().take(len).collect()
}

/// What a file occupies on its disk.
pub fn allocated_bytes(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path)?.blocks() * 512)
}
