//! The runner: gives each push its pipeline, and runs one pending job after the other, as a runner does whose settings nobody touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

use super::model::{Job, PLAN, Status};
use super::repository::{self, Pushes};
use super::store::{Outcome, Store};
use crate::terraform::{self, Run, Terraform};

const POLL_EVERY: Duration = Duration::from_millis(50);

/// The files that jobs of `plan` leave, as far as they make them: the plan as JSON, for people, and the plan itself.
const PLAN_JSON: &str = "plan.json";
const PLAN_TEXT: &str = "plan.txt";
const SAVED_PLAN: &str = "plan.tfplan";

/// What the jobs do.
pub enum Work {
    /// Plans `vms/`; deploys exactly the plan that was saved.
    Terraform(Box<Terraform>),
    /// These commands, each in a checkout of the commit; `plan` may write the files that a plan leaves, `deploy` finds them.
    Shell { plan: String, deploy: String },
}

/// Runs what is pending.
pub struct Runner {
    store: Arc<Store>,
    work: Work,
    dir: PathBuf,
}

/// Starts the two threads; they end when the store says so.
pub fn start(store: Arc<Store>, work: Work, dir: PathBuf, mut pushes: Pushes) -> Result<Vec<JoinHandle<()>>> {
    let watched = store.clone();
    let watcher = std::thread::Builder::new().name("gitlab-pushes".into()).spawn(move || {
        while !watched.state().is_stopping {
            make_pipelines(&watched, &mut pushes);
            std::thread::sleep(POLL_EVERY);
        }
    })?;
    let runner = Runner { store, work, dir };
    let runner = std::thread::Builder::new().name("gitlab-runner".into()).spawn(move || runner.run())?;
    Ok(vec![watcher, runner])
}

fn make_pipelines(store: &Store, pushes: &mut Pushes) {
    let delay = store.switches.now().pipeline_delay;
    while let Some(push) = pushes.take(|push| push.at.elapsed() >= delay) {
        // Who pushes is who comes first: git's own credentials are not GitLab's users here.
        let pusher = store.project.users.first().map(|user| user.username.clone()).unwrap_or_default();
        match repository::commit(&store.project.repository, &push.commit) {
            Ok(commit) => store.pushed(commit, &push.branch, &pusher),
            Err(error) => tracing::error!("no pipeline for {}: {error:#}", push.commit),
        }
    }
}

impl Runner {
    fn run(&self) {
        loop {
            let mut state = self.store.state();
            if state.is_stopping {
                return;
            }
            let job = if self.store.switches.now().holds_jobs { None } else { state.take_pending() };
            let Some(job) = job else {
                drop(self.store.wait(state, POLL_EVERY));
                continue;
            };
            let commit = state.pipeline(job.pipeline).map(|pipeline| pipeline.commit.id.clone()).unwrap_or_default();
            drop(state);
            let outcome = self.run_job(&job, &commit);
            self.store.change(|state| state.finish(job.id, outcome));
        }
    }

    fn is_stopping(&self, job: u64) -> bool {
        let state = self.store.state();
        state.is_stopping || state.job(job).is_some_and(|job| job.status == Status::Canceling)
    }

    fn run_job(&self, job: &Job, commit: &str) -> Outcome {
        let log = trace_of(&self.dir, job.id);
        let is_stopping = || self.is_stopping(job.id);
        let result = self.script(job, commit, Run { log: &log, is_stopping: &is_stopping });
        let note = match &result {
            Ok(Outcome::Failed(reason)) => format!("ERROR: Job failed: {reason}\n"),
            Ok(_) => "Job succeeded\n".to_owned(),
            Err(error) => format!("ERROR: Job failed: {error:#}\n"),
        };
        append(&log, &note);
        match result {
            Ok(outcome) => outcome,
            Err(_) if is_stopping() => Outcome::Stopped,
            Err(_) => Outcome::Failed("script_failure"),
        }
    }

    fn script(&self, job: &Job, commit: &str, run: Run<'_>) -> Result<Outcome> {
        let left = self.dir.join("artifacts").join(job.id.to_string());
        let checkout = self.dir.join("builds").join(job.id.to_string());
        for dir in [&left, &self.dir.join("builds"), &self.dir.join("traces")] {
            fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        }
        terraform::check_out(&self.store.project.repository, commit, &checkout)?;
        if job.name == PLAN {
            self.plan(&checkout, run)?;
            if !self.store.switches.now().leaves_no_artifacts {
                copy(&checkout, &left)?;
            }
        } else {
            let dependency =
                self.store.state().newest_job(job.pipeline, PLAN).and_then(Job::available_artifacts).cloned();
            let Some(dependency) = dependency else { return Ok(Outcome::Failed("missing_dependency_failure")) };
            copy(&dependency.dir, &checkout)?;
            self.deploy(&checkout, run)?;
        }
        fs::remove_dir_all(&checkout).with_context(|| format!("remove {}", checkout.display()))?;
        Ok(Outcome::Success(left))
    }

    fn plan(&self, checkout: &Path, run: Run<'_>) -> Result<()> {
        match &self.work {
            Work::Shell { plan, .. } => shell(plan, checkout, run),
            Work::Terraform(terraform) => {
                let workspace = terraform.within(checkout, run)?;
                let saved = checkout.join(SAVED_PLAN);
                workspace.init()?;
                workspace.plan(&saved)?;
                fs::write(checkout.join(PLAN_TEXT), workspace.show(&saved, false)?)?;
                fs::write(checkout.join(PLAN_JSON), workspace.show(&saved, true)?)?;
                Ok(())
            }
        }
    }

    fn deploy(&self, checkout: &Path, run: Run<'_>) -> Result<()> {
        match &self.work {
            Work::Shell { deploy, .. } => shell(deploy, checkout, run),
            Work::Terraform(terraform) => {
                let workspace = terraform.within(checkout, run)?;
                workspace.init()?;
                workspace.apply(&checkout.join(SAVED_PLAN))
            }
        }
    }
}

fn shell(script: &str, checkout: &Path, run: Run<'_>) -> Result<()> {
    let mut command = Command::new("sh");
    command.args(["-e", "-c", script]).current_dir(checkout);
    run.step("script", script, command)
}

/// Copies the files of a plan, as far as there are any.
fn copy(from: &Path, to: &Path) -> Result<()> {
    for name in [PLAN_JSON, PLAN_TEXT, SAVED_PLAN] {
        let file = from.join(name);
        if file.exists() {
            fs::copy(&file, to.join(name)).with_context(|| format!("copy {}", file.display()))?;
        }
    }
    Ok(())
}

/// Where a job's output is.
pub fn trace_of(dir: &Path, job: u64) -> PathBuf {
    dir.join("traces").join(format!("{job}.log"))
}

fn append(log: &Path, note: &str) {
    use std::io::Write;
    let file = fs::OpenOptions::new().create(true).append(true).open(log);
    let _ = file.and_then(|mut file| file.write_all(note.as_bytes()));
}
