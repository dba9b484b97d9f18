//! The pipeline behind the Terraform repository: on each push it runs the real engine against Prism, as a CI system would.
//!
//! It watches one branch of a bare repository. Each new tip is checked out into an empty directory, where `init`, `plan -out` and
//! `apply` of exactly that saved plan run. When several commits arrive during a run, only the newest runs next. A failed run is not
//! repeated; the next push is.
//!
//! Layout of the repository: Terraform reads the files of one directory, `vms/`. It holds a file per machine, written by Drover,
//! beside `provider.tf`, which belongs to the repository's owner and says which provider and which state backend ([`seed_files`]).
//! The state lies outside the checkout: the backend block is empty and `init` is told where.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde::Deserialize;

use crate::process::Process;
use crate::tools::Tools;

const POLL_EVERY: Duration = Duration::from_millis(200);

/// How long an interrupted engine may take to save its state before it is killed.
const INTERRUPT_LIMIT: Duration = Duration::from_secs(20);

const LOG_TAIL_LINES: usize = 40;

/// Directory of the repository that is planned and applied.
pub const VMS_DIR: &str = "vms";

const PROVIDER_TF: &str = r#"terraform {
  required_providers {
    nutanix = {
      source  = "nutanix/nutanix"
      version = "2.4.2"
    }
  }

  # The pipeline says where the state lies.
  backend "local" {}
}

# Endpoint and credentials come from the pipeline: NUTANIX_ENDPOINT, NUTANIX_USERNAME, NUTANIX_PASSWORD.
provider "nutanix" {}
"#;

const README: &str = "# Machines\n\nOne file per machine in `vms/`. A push to the branch is planned and applied.\n";

/// What a Terraform repository holds before the first migration: path and text of each file.
pub fn seed_files() -> Vec<(&'static str, &'static str)> {
    vec![("README.md", README), ("vms/provider.tf", PROVIDER_TF)]
}

/// What to watch and where to apply it.
pub struct PipelineConfig {
    /// For the checkout, the plan and the state; made if missing.
    pub dir: PathBuf,
    /// A bare git repository.
    pub repository: PathBuf,
    pub branch: String,
    pub tools: Tools,
    /// `https://host:port` of Prism Central.
    pub prism_url: String,
    pub username: String,
    pub password: String,
    /// All runs' output is appended here.
    pub log_path: PathBuf,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunStatus {
    Running,
    Succeeded,
    Failed,
}

/// How many resources a plan creates, updates and deletes; a replacement counts as both a deletion and a creation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlanSummary {
    pub create: usize,
    pub update: usize,
    pub delete: usize,
}

/// One run of one commit.
#[derive(Clone, Debug)]
pub struct Run {
    pub commit: String,
    pub status: RunStatus,
    /// None if there was no plan.
    pub plan_summary: Option<PlanSummary>,
    /// The last lines of the output once the run has ended; with the reason if it failed.
    pub log_tail: String,
}

/// A running pipeline. Dropping it interrupts a run in progress and waits until the state is saved.
pub struct Pipeline {
    shared: Arc<Shared>,
    repository: PathBuf,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    runs: Mutex<Vec<Run>>,
    changed: Condvar,
    is_stopping: AtomicBool,
}

impl Shared {
    fn runs(&self) -> MutexGuard<'_, Vec<Run>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::SeqCst)
    }
}

impl Pipeline {
    /// Starts watching. A branch that has commits already is run at once.
    pub fn start(config: PipelineConfig) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let repository = config.repository.clone();
        let worker = Worker::new(config, shared.clone())?;
        let thread = std::thread::Builder::new().name("pipeline".into()).spawn(move || worker.watch())?;
        Ok(Self { shared, repository, thread: Some(thread) })
    }

    /// All runs so far, oldest first.
    pub fn runs(&self) -> Vec<Run> {
        self.shared.runs().clone()
    }

    /// Waits for the end of the run that applied `commit`: its own, or that of a later commit which contains it.
    ///
    /// # Errors
    /// No such run has ended within `limit`. A run that failed is no error here.
    pub fn wait_for(&self, commit: &str, limit: Duration) -> Result<Run> {
        let deadline = Instant::now() + limit;
        let mut runs = self.shared.runs();
        loop {
            let ended = runs.iter().filter(|run| run.status != RunStatus::Running);
            if let Some(run) = ended.into_iter().find(|run| self.contains(&run.commit, commit)) {
                return Ok(run.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "no run of commit {commit} has ended after {limit:?}; runs: {runs:?}");
            runs = self.shared.changed.wait_timeout(runs, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn contains(&self, tip: &str, commit: &str) -> bool {
        tip == commit || git(&self.repository, &["merge-base", "--is-ancestor", commit, tip]).is_ok()
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the engine finds in its environment: where Prism is, who asks, and where providers are.
pub fn environment(
    tools: &Tools,
    prism_url: &str,
    username: &str,
    password: &str,
) -> Result<BTreeMap<&'static str, String>> {
    let url = reqwest::Url::parse(prism_url).with_context(|| format!("read the address of Prism, {prism_url:?}"))?;
    Ok(BTreeMap::from([
        ("NUTANIX_ENDPOINT", url.host_str().context("the address of Prism has no host")?.to_owned()),
        ("NUTANIX_PORT", url.port_or_known_default().unwrap_or(9440).to_string()),
        ("NUTANIX_USERNAME", username.to_owned()),
        ("NUTANIX_PASSWORD", password.to_owned()),
        ("NUTANIX_INSECURE", "true".to_owned()),
        ("TF_CLI_CONFIG_FILE", tools.terraform_cli_config.display().to_string()),
        ("TF_IN_AUTOMATION", "1".to_owned()),
        ("TF_INPUT", "0".to_owned()),
        ("CHECKPOINT_DISABLE", "1".to_owned()),
    ]))
}

/// The thread that watches and runs.
struct Worker {
    config: PipelineConfig,
    environment: BTreeMap<&'static str, String>,
    shared: Arc<Shared>,
}

impl Worker {
    fn new(config: PipelineConfig, shared: Arc<Shared>) -> Result<Self> {
        fs::create_dir_all(&config.dir).with_context(|| format!("make {}", config.dir.display()))?;
        let environment = environment(&config.tools, &config.prism_url, &config.username, &config.password)?;
        Ok(Self { config, environment, shared })
    }

    fn watch(&self) {
        let mut seen = None;
        while !self.shared.is_stopping() {
            match self.tip() {
                Some(commit) if seen.as_ref() != Some(&commit) => {
                    self.record(&commit);
                    seen = Some(commit);
                }
                _ => std::thread::sleep(POLL_EVERY),
            }
        }
    }

    /// The branch's newest commit; none before the first push.
    fn tip(&self) -> Option<String> {
        let name = format!("refs/heads/{}", self.config.branch);
        git(&self.config.repository, &["rev-parse", "--verify", "--quiet", &name]).ok()
    }

    /// Runs a commit and keeps the outcome.
    fn record(&self, commit: &str) {
        let running =
            Run { commit: commit.into(), status: RunStatus::Running, plan_summary: None, log_tail: String::new() };
        self.shared.runs().push(running.clone());
        self.shared.changed.notify_all();

        let log_start = fs::metadata(&self.config.log_path).map_or(0, |meta| meta.len());
        let mut plan_summary = None;
        let outcome = self.run(commit, &mut plan_summary);
        let mut run = Run { status: RunStatus::Succeeded, plan_summary, ..running };
        run.log_tail = tail(&self.config.log_path, log_start).unwrap_or_else(|error| format!("{error:#}"));
        if let Err(error) = outcome {
            run.status = RunStatus::Failed;
            run.log_tail.push_str(&format!("\n{error:#}"));
        }
        if let Some(last) = self.shared.runs().last_mut() {
            *last = run;
        }
        self.shared.changed.notify_all();
    }

    fn run(&self, commit: &str, plan_summary: &mut Option<PlanSummary>) -> Result<()> {
        let work_dir = self.check_out(commit)?;
        let backend = format!("-backend-config=path={}", self.config.dir.join("terraform.tfstate").display());
        let plan = self.config.dir.join("plan");
        let plan_path = plan.display().to_string();
        self.step(&work_dir, &["init", "-no-color", &backend])?;
        self.step(&work_dir, &["plan", "-no-color", &format!("-out={plan_path}")])?;
        *plan_summary = Some(self.summarise(&work_dir, &plan_path)?);
        self.step(&work_dir, &["apply", "-no-color", &plan_path])
    }

    /// A fresh clone at `commit`; nothing of an earlier run is in it.
    fn check_out(&self, commit: &str) -> Result<PathBuf> {
        let checkout = self.config.dir.join("checkout");
        if checkout.exists() {
            fs::remove_dir_all(&checkout).with_context(|| format!("empty {}", checkout.display()))?;
        }
        let target = checkout.display().to_string();
        git(&self.config.repository, &["clone", "--quiet", "--shared", "--no-checkout", ".", &target])?;
        git(&checkout, &["checkout", "--quiet", "--detach", commit])?;
        let work_dir = checkout.join(VMS_DIR);
        ensure!(work_dir.is_dir(), "commit {commit} has no directory {VMS_DIR}/: nothing to plan");
        Ok(work_dir)
    }

    fn engine(&self, work_dir: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.config.tools.terraform);
        command.args(arguments).current_dir(work_dir).envs(&self.environment);
        command
    }

    /// Runs the engine with its output in the log.
    fn step(&self, work_dir: &Path, arguments: &[&str]) -> Result<()> {
        let name = format!("terraform {}", arguments[0]);
        ensure!(!self.shared.is_stopping(), "{name} not started: the pipeline is being stopped");
        let mut log = fs::OpenOptions::new().create(true).append(true).open(&self.config.log_path)?;
        writeln!(log, "$ terraform {}", arguments.join(" "))?;

        let mut process = Process::spawn(&name, self.engine(work_dir, arguments), &self.config.log_path)?;
        let mut interrupted_at: Option<Instant> = None;
        let status = loop {
            if let Some(status) = process.ended() {
                break status;
            }
            match interrupted_at {
                None if self.shared.is_stopping() => {
                    process.signal(Signal::SIGINT)?;
                    interrupted_at = Some(Instant::now());
                }
                Some(at) if at.elapsed() > INTERRUPT_LIMIT => bail!("{name} did not stop: killed"),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        ensure!(status.success(), "{name} failed ({status})");
        Ok(())
    }

    fn summarise(&self, work_dir: &Path, plan: &str) -> Result<PlanSummary> {
        #[derive(Deserialize)]
        struct Plan {
            #[serde(default)]
            resource_changes: Vec<ResourceChange>,
        }
        #[derive(Deserialize)]
        struct ResourceChange {
            change: Change,
        }
        #[derive(Deserialize)]
        struct Change {
            actions: Vec<String>,
        }

        let output = self.engine(work_dir, &["show", "-json", plan]).output().context("start terraform show")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "terraform show failed ({}): {complaint}", output.status);
        let plan: Plan = serde_json::from_slice(&output.stdout).context("read the plan as JSON")?;
        let actions: Vec<String> = plan.resource_changes.into_iter().flat_map(|change| change.change.actions).collect();
        let count = |name: &str| actions.iter().filter(|action| *action == name).count();
        Ok(PlanSummary { create: count("create"), update: count("update"), delete: count("delete") })
    }
}

/// Runs git in `dir`; its output without the final newline.
fn git(dir: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("git").arg("-C").arg(dir).args(arguments).output().context("start git")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "git {} in {}: {}", arguments.join(" "), dir.display(), complaint.trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// The last lines of what was appended to `log` since it had `start` bytes.
fn tail(log: &Path, start: u64) -> Result<String> {
    let mut bytes = Vec::new();
    if let Ok(mut file) = fs::File::open(log) {
        file.seek(SeekFrom::Start(start))?;
        file.read_to_end(&mut bytes)?;
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n"))
}
