//! Terraform's engine, `terraform` or `tofu`, as a process. What it prints goes where this process prints.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

/// Names that are looked for on the PATH.
const NAMES: [&str; 2] = ["terraform", "tofu"];

/// The engine, in a directory.
pub struct Engine {
    program: PathBuf,
    directory: PathBuf,
}

impl Engine {
    /// The given program, or the first of the usual names on the PATH.
    pub fn find(given: Option<&Path>, directory: &Path) -> Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let on_path = || {
            std::env::split_paths(&path).flat_map(|dir| NAMES.map(|name| dir.join(name))).find(|file| file.is_file())
        };
        let Some(program) = given.map(Path::to_path_buf).or_else(on_path) else {
            bail!("neither {} is on the PATH: use an image that has one, or set DROVER_TERRAFORM", NAMES.join(" nor "));
        };
        Ok(Self { program, directory: directory.into() })
    }

    /// The directory that is planned.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Fetches providers and opens the state's backend.
    pub async fn init(&self) -> Result<()> {
        self.run(&["init", "-input=false", "-no-color"]).await
    }

    /// Plans, and saves the plan.
    pub async fn plan(&self, saved: &Path, lock_timeout_seconds: u32) -> Result<()> {
        let (out, lock) = (format!("-out={}", saved.display()), lock_timeout(lock_timeout_seconds));
        self.run(&["plan", "-input=false", "-no-color", &lock, &out]).await
    }

    /// Applies a saved plan.
    pub async fn apply(&self, saved: &Path, lock_timeout_seconds: u32) -> Result<()> {
        let (saved, lock) = (saved.display().to_string(), lock_timeout(lock_timeout_seconds));
        self.run(&["apply", "-input=false", "-no-color", &lock, &saved]).await
    }

    /// A saved plan as JSON. It is not printed: it holds sensitive values.
    pub async fn show(&self, saved: &Path) -> Result<Vec<u8>> {
        let mut command = self.command(&["show", "-no-color", "-json", &saved.display().to_string()]);
        let output = command.stderr(Stdio::inherit()).output().await;
        let output = output.with_context(|| format!("start {}", self.program.display()))?;
        ensure!(output.status.success(), "terraform show failed ({})", output.status);
        Ok(output.stdout)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).current_dir(&self.directory).stdin(Stdio::null());
        // Its own telemetry and prompts have no place in a Job.
        command.env("TF_IN_AUTOMATION", "1").env("CHECKPOINT_DISABLE", "1");
        command
    }

    /// Runs to the end. When the pod is to end, the engine is interrupted: it ends what it has begun and saves its state.
    async fn run(&self, arguments: &[&str]) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
        let mut engine =
            self.command(arguments).spawn().with_context(|| format!("start {}", self.program.display()))?;
        let status = loop {
            tokio::select! {
                status = engine.wait() => break status.context("wait for the engine")?,
                _ = terminate.recv() => interrupt(&engine)?,
            }
        };
        ensure!(status.success(), "terraform {} failed ({status}): see what it printed above", arguments[0]);
        Ok(())
    }
}

fn interrupt(engine: &Child) -> Result<()> {
    let Some(pid) = engine.id() else { return Ok(()) };
    println!("drover: this Job is to end; terraform is interrupted");
    kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGINT).context("interrupt the engine")
}

fn lock_timeout(seconds: u32) -> String {
    format!("-lock-timeout={seconds}s")
}
