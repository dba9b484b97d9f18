//! Terraform as a CI system runs it: a commit is checked out into an empty directory and planned, and exactly the saved plan is applied.
//!
//! Terraform reads the files of one directory of the repository, `vms/`. The state lies outside of the checkout: the backend block is
//! empty and `init` is told where. Endpoint and credentials of Prism reach Terraform by its environment only.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::git::git;
use crate::process::Process;
use crate::tools::Tools;

/// How long an interrupted program may take (Terraform: to save its state) before it is killed.
const INTERRUPT_LIMIT: Duration = Duration::from_secs(20);

/// Directory of the repository that is planned and applied.
pub const VMS_DIR: &str = "vms";

/// What to plan and where to apply it.
#[derive(Clone)]
pub struct TerraformConfig {
    /// The state's file; its directory is made if missing.
    pub state: PathBuf,
    pub tools: Tools,
    /// `https://host:port` of Prism Central.
    pub prism_url: String,
    pub username: String,
    pub password: String,
}

/// Terraform, ready to work on commits of a repository.
pub struct Terraform {
    config: TerraformConfig,
    environment: BTreeMap<&'static str, String>,
}

impl Terraform {
    pub fn new(config: TerraformConfig) -> Result<Self> {
        if let Some(dir) = config.state.parent() {
            fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        }
        let environment = environment(&config.tools, &config.prism_url, &config.username, &config.password)?;
        Ok(Self { config, environment })
    }

    /// Terraform in a checked-out commit.
    pub fn within<'a>(&'a self, checkout: &Path, run: Run<'a>) -> Result<Workspace<'a>> {
        let dir = checkout.join(VMS_DIR);
        ensure!(dir.is_dir(), "the commit has no directory {VMS_DIR}/: nothing to plan");
        Ok(Workspace { terraform: self, dir, run })
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

/// One run of a commit: where its output goes, and whether it is to end early.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    /// Everything that is printed is appended here.
    pub log: &'a Path,
    pub is_stopping: &'a dyn Fn() -> bool,
}

/// Terraform in one checkout.
pub struct Workspace<'a> {
    terraform: &'a Terraform,
    dir: PathBuf,
    run: Run<'a>,
}

impl Workspace<'_> {
    pub fn init(&self) -> Result<()> {
        let backend = format!("-backend-config=path={}", self.terraform.config.state.display());
        self.step(&["init", "-no-color", &backend])
    }

    /// Saves the plan in a file.
    pub fn plan(&self, plan: &Path) -> Result<()> {
        self.step(&["plan", "-no-color", &format!("-out={}", plan.display())])
    }

    /// Applies a saved plan. One that was made for an older state is refused by Terraform.
    pub fn apply(&self, plan: &Path) -> Result<()> {
        self.step(&["apply", "-no-color", &plan.display().to_string()])
    }

    /// A saved plan as Terraform shows it: for people, or as JSON.
    pub fn show(&self, plan: &Path, as_json: bool) -> Result<Vec<u8>> {
        let form = if as_json { "-json" } else { "-no-color" };
        let output =
            self.command(&["show", form, &plan.display().to_string()]).output().context("start terraform show")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "terraform show failed ({}): {complaint}", output.status);
        Ok(output.stdout)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.terraform.config.tools.terraform);
        command.args(arguments).current_dir(&self.dir).envs(&self.terraform.environment);
        command
    }

    fn step(&self, arguments: &[&str]) -> Result<()> {
        let name = format!("terraform {}", arguments[0]);
        self.run.step(&name, &format!("terraform {}", arguments.join(" ")), self.command(arguments))
    }
}

impl Run<'_> {
    /// Runs a command with its output in the log. One that is to stop is interrupted.
    pub fn step(&self, name: &str, shown: &str, command: Command) -> Result<()> {
        ensure!(!(self.is_stopping)(), "{name} not started: the pipeline is being stopped");
        let mut log = fs::OpenOptions::new().create(true).append(true).open(self.log)?;
        writeln!(log, "$ {shown}")?;

        let mut process = Process::spawn(name, command, self.log)?;
        let mut interrupted_at: Option<Instant> = None;
        let status = loop {
            if let Some(status) = process.ended() {
                break status;
            }
            match interrupted_at {
                None if (self.is_stopping)() => {
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
}

/// A fresh clone of a bare repository at a commit; nothing of an earlier run is in it.
pub fn check_out(repository: &Path, commit: &str, checkout: &Path) -> Result<()> {
    if checkout.exists() {
        fs::remove_dir_all(checkout).with_context(|| format!("empty {}", checkout.display()))?;
    }
    git(repository, &["clone", "--quiet", "--shared", "--no-checkout", ".", &checkout.display().to_string()])?;
    git(checkout, &["checkout", "--quiet", "--detach", commit])?;
    Ok(())
}

/// Whether `commit` is `tip` or one of its ancestors.
pub fn contains(repository: &Path, tip: &str, commit: &str) -> bool {
    tip == commit || git(repository, &["merge-base", "--is-ancestor", commit, tip]).is_ok()
}
