//! A simulated GitLab: one private project over the lab's bare repository, its REST API v4 on a TLS port, and a runner.
//!
//! Each push gets a pipeline: `plan`, and on the default branch the manual job `deploy`, which applies exactly the plan that was saved,
//! with the real Terraform. The rules are those of GitLab's documentation and of its published source: statuses that follow from the
//! jobs, pages, who sees and may do what, artifacts that are there or not, retries that make new jobs, pipelines that a newer commit
//! makes redundant. Its proof is in a client that nobody here wrote, python-gitlab (`tests/gitlab_sdk.rs`).

mod api;
mod model;
mod page;
mod refusal;
mod repository;
mod server;
mod shapes;
mod store;
mod switches;
mod work;

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use axum::middleware::from_fn_with_state;

use crate::https::{Authority, Server};
use crate::terraform::{Terraform, TerraformConfig};
use api::Api;
use model::Pipeline;
use repository::Pushes;
use server::Gate;
use store::{Project, Store};

pub use model::{DEPLOY, PLAN, Role, Scope, Status, User};
pub use store::Call;
pub use switches::{PageHeaders, Switches};

/// What the jobs of every pipeline do.
pub enum Jobs {
    /// Plan the directory `vms/` and deploy exactly the plan that was saved.
    Terraform(TerraformConfig),
    /// These shell commands, each in a checkout of the commit. What `plan` writes to `plan.json`, `plan.txt` and `plan.tfplan` are its
    /// artifacts, and `deploy` finds them.
    Shell { plan: String, deploy: String },
}

/// What to simulate.
pub struct GitLabConfig {
    /// For the simulator's own files; `ca.pem` is put there. Made if missing.
    pub dir: PathBuf,
    /// The bare repository that is pushed to.
    pub repository: PathBuf,
    /// The project's path with its groups, `vms/machines`.
    pub project: String,
    pub default_branch: String,
    /// The least role that may run jobs on the default branch, and merge to it: what protects it.
    pub protected_for: Role,
    /// `allow_failure` of `deploy`: if true, a pipeline that nobody deployed is `success`, else `manual`.
    pub deploy_may_fail: bool,
    /// All who have a token. Pushes are in the name of the first.
    pub users: Vec<User>,
    pub jobs: Jobs,
    /// One line is appended for each call.
    pub log_path: PathBuf,
}

/// A running simulator. Dropping it interrupts a job that runs and stops the server.
pub struct GitLab {
    store: Arc<Store>,
    server: Server,
    ca_pem: String,
    dir: PathBuf,
    threads: Vec<JoinHandle<()>>,
}

/// A pipeline as it is now, whatever clients have seen of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineView {
    pub id: u64,
    pub commit: String,
    pub branch: String,
    pub status: Status,
    /// In the order in which they were made; retried ones too.
    pub jobs: Vec<JobView>,
}

impl PipelineView {
    /// The newest job of this name.
    pub fn job(&self, name: &str) -> Option<&JobView> {
        self.jobs.iter().rev().find(|job| job.name == name)
    }
}

/// A job as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobView {
    pub id: u64,
    pub name: &'static str,
    pub status: Status,
    /// Who played or retried it; before that, who pushed.
    pub user: String,
    pub failure_reason: Option<&'static str>,
}

impl GitLab {
    /// Starts server and runner. Only what is pushed from now on gets pipelines.
    pub fn start(config: GitLabConfig) -> Result<Self> {
        std::fs::create_dir_all(&config.dir).with_context(|| format!("make {}", config.dir.display()))?;
        let log = OpenOptions::new().create(true).append(true).open(&config.log_path);
        let log = log.with_context(|| format!("open the log {}", config.log_path.display()))?;
        let work = match config.jobs {
            Jobs::Terraform(terraform) => work::Work::Terraform(Box::new(Terraform::new(terraform)?)),
            Jobs::Shell { plan, deploy } => work::Work::Shell { plan, deploy },
        };
        let pushes = Pushes::watch(&config.repository, &config.dir)?;
        let store = Arc::new(Store::new(Project {
            path: config.project,
            default_branch: config.default_branch,
            protected_for: config.protected_for,
            deploy_may_fail: config.deploy_may_fail,
            repository: config.repository,
            users: config.users,
        }));
        let signature = uuid::Uuid::new_v4().simple().to_string();
        let api = Arc::new(Api { store: store.clone(), dir: config.dir.clone(), signature });
        let gate = Arc::new(Gate { store: store.clone(), log: Mutex::new(log) });
        let router = api::router(api.clone()).layer(from_fn_with_state(gate, server::enter));
        let router = router.merge(api::object_storage(api));
        let authority = Authority::new("Simulated GitLab CA")?;
        let ca_pem = authority.pem();
        std::fs::write(config.dir.join("ca.pem"), &ca_pem).context("write ca.pem")?;
        let server = Server::start("gitlab", router, authority.server("Simulated GitLab")?)?;
        store.url.get_or_init(|| server.url.clone());
        let threads = work::start(store.clone(), work, config.dir.clone(), pushes)?;
        Ok(Self { store, server, ca_pem, dir: config.dir, threads })
    }

    /// `https://127.0.0.1:<port>`
    pub fn url(&self) -> &str {
        &self.server.url
    }

    /// The authority that signed the server's certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The project's path.
    pub fn project(&self) -> &str {
        &self.store.project.path
    }

    /// The access token of a user.
    pub fn token(&self, username: &str) -> Option<&str> {
        self.store.user(username).map(|user| user.token.as_str())
    }

    /// Faults and variants.
    pub fn switches(&self) -> &Switches {
        &self.store.switches
    }

    /// Every pipeline, oldest first.
    pub fn pipelines(&self) -> Vec<PipelineView> {
        let state = self.store.state();
        state.pipelines.iter().map(|pipeline| view(&state, pipeline)).collect()
    }

    /// The newest pipeline of a commit.
    pub fn pipeline_of(&self, commit: &str) -> Option<PipelineView> {
        self.pipelines().into_iter().rev().find(|pipeline| pipeline.commit == commit)
    }

    /// Every call so far, in the order of the answers.
    pub fn calls(&self) -> Vec<Call> {
        self.store.state().calls.clone()
    }

    /// What a job printed.
    pub fn trace(&self, job: u64) -> String {
        std::fs::read_to_string(work::trace_of(&self.dir, job)).unwrap_or_default()
    }

    /// Waits until a commit's pipeline is as wanted.
    ///
    /// # Errors
    /// It is not after `limit`.
    pub fn wait_for(
        &self,
        commit: &str,
        limit: Duration,
        is_wanted: impl Fn(&PipelineView) -> bool,
    ) -> Result<PipelineView> {
        let deadline = Instant::now() + limit;
        let mut state = self.store.state();
        loop {
            let newest = state.pipelines.iter().rev().find(|pipeline| pipeline.commit.id == commit);
            let seen = newest.map(|pipeline| view(&state, pipeline));
            match seen {
                Some(pipeline) if is_wanted(&pipeline) => return Ok(pipeline),
                seen => ensure!(Instant::now() < deadline, "after {limit:?} the pipeline of {commit} is {seen:?}"),
            }
            state = self.store.wait(state, Duration::from_millis(200));
        }
    }

    /// A person starts a manual job.
    pub fn play_by_hand(&self, job: u64, username: &str) -> Result<()> {
        self.may_run(job, username)?;
        let played = self.store.change(|state| state.play(job, username));
        played.map(|_| ()).with_context(|| format!("job {job} is not playable"))
    }

    /// A person retries a job that has ended; the new job.
    pub fn retry_by_hand(&self, job: u64, username: &str) -> Result<u64> {
        self.may_run(job, username)?;
        let new = self.store.change(|state| state.retry(job, username));
        new.with_context(|| format!("job {job} is not retryable"))
    }

    /// A person cancels a pipeline.
    pub fn cancel_by_hand(&self, pipeline: u64) {
        self.store.change(|state| state.cancel_pipeline(pipeline));
    }

    /// A person merges; the commit.
    pub fn merge_by_hand(&self, iid: u64, username: &str) -> Result<String> {
        self.store.merge(iid, username)
    }

    /// The artifacts of a job are gone.
    pub fn expire_artifacts(&self, job: u64) {
        self.store.change(|state| state.expire_artifacts(job));
    }

    fn may_run(&self, job: u64, username: &str) -> Result<()> {
        let user = self.store.user(username).with_context(|| format!("there is no user {username}"))?;
        let state = self.store.state();
        let pipeline = state.job(job).and_then(|job| state.pipeline(job.pipeline));
        let branch = &pipeline.with_context(|| format!("there is no job {job}"))?.branch;
        if !self.store.may_run(user, branch) {
            bail!("{username} may not run jobs on {branch}");
        }
        Ok(())
    }
}

impl Store {
    /// Carries out a merge request; its pipeline follows as after any push.
    fn merge(&self, iid: u64, username: &str) -> Result<String> {
        let open = |state: &mut store::State| {
            let found = state.merge_requests.iter().find(|request| request.iid == iid && request.state == "opened");
            found.cloned()
        };
        let request = self.change(open).with_context(|| format!("there is no open merge request !{iid}"))?;
        let commit = repository::merge(&self.project.repository, &request)?;
        self.change(|state| {
            if let Some(request) = state.merge_requests.iter_mut().find(|request| request.iid == iid) {
                request.state = "merged";
                request.merge_commit = Some(commit.clone());
            }
        });
        self.pushed(repository::commit(&self.project.repository, &commit)?, &request.target, username);
        Ok(commit)
    }
}

fn view(state: &store::State, pipeline: &Pipeline) -> PipelineView {
    let jobs = state.jobs.iter().filter(|job| job.pipeline == pipeline.id);
    let job = |job: &model::Job| JobView {
        id: job.id,
        name: job.name,
        status: job.status,
        user: job.user.clone(),
        failure_reason: job.failure_reason,
    };
    PipelineView {
        id: pipeline.id,
        commit: pipeline.commit.id.clone(),
        branch: pipeline.branch.clone(),
        status: state.status_of(pipeline.id),
        jobs: jobs.map(job).collect(),
    }
}

impl Drop for GitLab {
    fn drop(&mut self) {
        self.store.change(|state| state.is_stopping = true);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
