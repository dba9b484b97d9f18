//! The one project: its pipelines, jobs and merge requests, and what may become of them.

use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use jiff::{Timestamp, ToSpan};

use super::model::{Artifacts, Commit, DEPLOY, Job, MergeRequest, PLAN, Pipeline, Role, Status, User, composite};
use super::switches::Switches;

/// How long artifacts are kept, as GitLab's own default says.
const KEPT_DAYS: i64 = 30;

/// A call that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub method: String,
    /// With its query.
    pub path: String,
    /// Whose token it bore.
    pub user: Option<String>,
    pub status: u16,
}

/// What does not change while the simulator runs.
pub struct Project {
    pub path: String,
    pub default_branch: String,
    /// Who may push and merge to the default branch, and so run jobs on it.
    pub protected_for: Role,
    pub deploy_may_fail: bool,
    pub repository: PathBuf,
    pub users: Vec<User>,
}

#[derive(Default)]
pub struct State {
    pub pipelines: Vec<Pipeline>,
    pub jobs: Vec<Job>,
    pub merge_requests: Vec<MergeRequest>,
    pub calls: Vec<Call>,
    pub is_stopping: bool,
}

/// Everything that servers and runner share.
pub struct Store {
    pub project: Project,
    pub switches: Switches,
    /// Where the API is served.
    pub url: OnceLock<String>,
    state: Mutex<State>,
    changed: Condvar,
}

/// How a job that ran came out.
pub enum Outcome {
    Success(PathBuf),
    Failed(&'static str),
    /// It was interrupted.
    Stopped,
}

impl Store {
    pub fn new(project: Project) -> Self {
        Self {
            project,
            switches: Switches::default(),
            url: OnceLock::new(),
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
        }
    }

    /// The state, to be looked at.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes who waits for that.
    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.changed.notify_all();
        result
    }

    /// Waits for a change, but not for long: switches and pushes are not part of the state.
    pub fn wait<'a>(&self, state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0
    }

    pub fn user(&self, username: &str) -> Option<&User> {
        self.project.users.iter().find(|user| user.username == username)
    }

    /// Whether a user may run jobs of a branch.
    pub fn may_run(&self, user: &User, branch: &str) -> bool {
        let needed = if branch == self.project.default_branch { self.project.protected_for } else { Role::Developer };
        user.role >= needed
    }

    /// A branch was pushed: its pipeline appears, and takes the place of older ones that nothing was begun of.
    pub fn pushed(&self, commit: Commit, branch: &str, username: &str) {
        let is_skipped = ["[ci skip]", "[skip ci]"].iter().any(|mark| commit.message.contains(mark));
        self.change(|state| {
            let now = Timestamp::now();
            let id = state.next_pipeline();
            let user = username.to_owned();
            state.pipelines.push(Pipeline {
                id,
                commit,
                branch: branch.into(),
                user,
                created_at: now,
                updated_at: now,
            });
            if is_skipped {
                return;
            }
            state.add_job(id, PLAN, Status::Pending, false, username);
            if branch == self.project.default_branch {
                state.add_job(id, DEPLOY, Status::Created, self.project.deploy_may_fail, username);
            }
            state.cancel_redundant(id, branch);
        });
    }
}

impl State {
    fn next_pipeline(&self) -> u64 {
        // Ids are those of the whole GitLab, so they do not start at one, and have gaps.
        self.pipelines.last().map_or(4711, |pipeline| pipeline.id + 7)
    }

    fn add_job(&mut self, pipeline: u64, name: &'static str, status: Status, allow_failure: bool, user: &str) -> u64 {
        let id = self.jobs.last().map_or(815, |job| job.id + 3);
        self.jobs.push(Job {
            id,
            pipeline,
            name,
            status,
            is_manual: name == DEPLOY,
            allow_failure,
            user: user.to_owned(),
            created_at: Timestamp::now(),
            started_at: None,
            finished_at: None,
            failure_reason: None,
            artifacts: None,
            is_retried: false,
        });
        id
    }

    pub fn pipeline(&self, id: u64) -> Option<&Pipeline> {
        self.pipelines.iter().find(|pipeline| pipeline.id == id)
    }

    pub fn job(&self, id: u64) -> Option<&Job> {
        self.jobs.iter().find(|job| job.id == id)
    }

    fn job_mut(&mut self, id: u64) -> Option<&mut Job> {
        self.jobs.iter_mut().find(|job| job.id == id)
    }

    /// The jobs of a pipeline that count: no retried ones.
    pub fn newest_jobs(&self, pipeline: u64) -> impl Iterator<Item = &Job> {
        self.jobs.iter().filter(move |job| job.pipeline == pipeline && !job.is_retried)
    }

    /// The newest job of this name.
    pub fn newest_job(&self, pipeline: u64, name: &str) -> Option<&Job> {
        self.newest_jobs(pipeline).find(|job| job.name == name)
    }

    pub fn status_of(&self, pipeline: u64) -> Status {
        let jobs: Vec<(Status, bool)> = self.newest_jobs(pipeline).map(|job| (job.status, job.allow_failure)).collect();
        composite(&jobs)
    }

    /// GitLab's default: older pipelines of the branch end if none of their jobs was begun.
    fn cancel_redundant(&mut self, newest: u64, branch: &str) {
        let older = self.pipelines.iter().filter(|pipeline| pipeline.id < newest && pipeline.branch == branch);
        let redundant: Vec<u64> = older
            .map(|pipeline| pipeline.id)
            .filter(|id| self.status_of(*id).is_alive())
            .filter(|id| !self.jobs.iter().any(|job| job.pipeline == *id && job.status.was_started()))
            .collect();
        for pipeline in redundant {
            self.cancel_pipeline(pipeline);
        }
    }

    /// Cancels what can be canceled.
    pub fn cancel_pipeline(&mut self, pipeline: u64) {
        let ids: Vec<u64> = self.newest_jobs(pipeline).map(|job| job.id).collect();
        for id in ids {
            self.end_early(id);
        }
        self.proceed(pipeline);
    }

    /// Cancels one job.
    pub fn cancel_job(&mut self, id: u64) {
        self.end_early(id);
        if let Some(pipeline) = self.job(id).map(|job| job.pipeline) {
            self.proceed(pipeline);
        }
    }

    fn end_early(&mut self, id: u64) {
        let Some(job) = self.job_mut(id).filter(|job| job.status.is_cancelable()) else { return };
        if job.status == Status::Running {
            // The runner stops it.
            job.status = Status::Canceling;
        } else {
            job.status = Status::Canceled;
            job.finished_at = Some(Timestamp::now());
        }
    }

    /// Starts a playable job in somebody's name; the id of the job that will run.
    pub fn play(&mut self, id: u64, username: &str) -> Option<u64> {
        let job = self.job_mut(id).filter(|job| job.is_playable())?;
        if job.status != Status::Manual {
            return self.retry(id, username);
        }
        job.status = Status::Pending;
        job.user = username.to_owned();
        let pipeline = job.pipeline;
        self.proceed(pipeline);
        Some(id)
    }

    /// Puts a new job in the place of one that has ended; its id.
    pub fn retry(&mut self, id: u64, username: &str) -> Option<u64> {
        let job = self.job_mut(id).filter(|job| job.is_retryable())?;
        job.is_retried = true;
        let (pipeline, name, allow_failure) = (job.pipeline, job.name, job.allow_failure);
        let new = self.add_job(pipeline, name, Status::Pending, allow_failure, username);
        // What was skipped because of it may come after it again.
        for job in self.jobs.iter_mut().filter(|job| job.pipeline == pipeline && job.status == Status::Skipped) {
            job.status = Status::Created;
        }
        self.proceed(pipeline);
        Some(new)
    }

    /// A pending job for the runner.
    pub fn take_pending(&mut self) -> Option<Job> {
        let job = self.jobs.iter_mut().find(|job| job.status == Status::Pending)?;
        job.status = Status::Running;
        job.started_at = Some(Timestamp::now());
        let (taken, pipeline) = (job.clone(), job.pipeline);
        self.proceed(pipeline);
        Some(taken)
    }

    /// A job that ran has ended.
    pub fn finish(&mut self, id: u64, outcome: Outcome) {
        let Some(job) = self.job_mut(id) else { return };
        let now = Timestamp::now();
        job.finished_at = Some(now);
        (job.status, job.failure_reason) = match (&outcome, job.status) {
            (_, Status::Canceling) | (Outcome::Stopped, _) => (Status::Canceled, None),
            (Outcome::Success(_), _) => (Status::Success, None),
            (Outcome::Failed(reason), _) => (Status::Failed, Some(*reason)),
        };
        if let (Outcome::Success(dir), Status::Success) = (outcome, job.status)
            && std::fs::read_dir(&dir).is_ok_and(|mut files| files.next().is_some())
        {
            job.artifacts = Some(Artifacts { dir, expire_at: now + (24 * KEPT_DAYS).hours(), have_expired: false });
        }
        let pipeline = job.pipeline;
        self.proceed(pipeline);
    }

    /// The deployment follows what became of the plan.
    fn proceed(&mut self, pipeline: u64) {
        let plan = self.newest_job(pipeline, PLAN).map(|plan| plan.status);
        let deploy = self.newest_job(pipeline, DEPLOY).map(|deploy| deploy.id);
        if let Some(deploy) = deploy.and_then(|id| self.job_mut(id)).filter(|job| job.status == Status::Created) {
            match plan {
                Some(Status::Success) => deploy.status = Status::Manual,
                Some(Status::Failed | Status::Canceled | Status::Skipped) => deploy.status = Status::Skipped,
                _ => {}
            }
        }
        if let Some(pipeline) = self.pipelines.iter_mut().find(|known| known.id == pipeline) {
            pipeline.updated_at = Timestamp::now();
        }
    }

    /// Artifacts are gone.
    pub fn expire_artifacts(&mut self, job: u64) {
        if let Some(artifacts) = self.job_mut(job).and_then(|job| job.artifacts.as_mut()) {
            artifacts.have_expired = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> Store {
        Store::new(Project {
            path: "vms/machines".into(),
            default_branch: "main".into(),
            protected_for: Role::Maintainer,
            deploy_may_fail: false,
            repository: PathBuf::new(),
            users: Vec::new(),
        })
    }

    fn commit(id: &str, message: &str) -> Commit {
        Commit { id: id.into(), message: message.into(), author_name: String::new(), author_email: String::new() }
    }

    fn statuses(store: &Store) -> Vec<(Status, Vec<Status>)> {
        let state = store.state();
        let of = |pipeline: &Pipeline| state.newest_jobs(pipeline.id).map(|job| job.status).collect();
        state.pipelines.iter().map(|pipeline| (state.status_of(pipeline.id), of(pipeline))).collect()
    }

    #[test]
    fn a_newer_push_ends_only_what_was_not_begun() {
        use Status::{Canceled, Created, Pending, Running};
        let store = store();
        store.pushed(commit("a", "one"), "main", "bot");
        store.pushed(commit("b", "two"), "main", "bot");
        store.pushed(commit("x", "elsewhere"), "other", "bot");
        assert_eq!(
            statuses(&store),
            [(Canceled, vec![Canceled, Canceled]), (Pending, vec![Pending, Created]), (Pending, vec![Pending])]
        );
        store.change(State::take_pending);
        store.pushed(commit("c", "three"), "main", "bot");
        assert_eq!(statuses(&store)[1], (Running, vec![Running, Created]), "it was begun");
    }

    #[test]
    fn a_deployment_follows_its_plan_and_a_retry_opens_it_again() {
        use Status::{Created, Failed, Manual, Pending, Skipped};
        let store = store();
        store.pushed(commit("a", "one"), "main", "bot");
        let plan = store.change(State::take_pending).unwrap();
        store.change(|state| state.finish(plan.id, Outcome::Failed("script_failure")));
        assert_eq!(statuses(&store), [(Failed, vec![Failed, Skipped])]);

        let again = store.change(|state| state.retry(plan.id, "erika")).unwrap();
        assert_eq!(statuses(&store), [(Pending, vec![Created, Pending])]);
        assert_eq!(store.change(|state| state.retry(plan.id, "erika")), None, "a retried job is past");
        store.change(State::take_pending);
        store.change(|state| state.finish(again, Outcome::Success(PathBuf::from("/nowhere"))));
        assert_eq!(statuses(&store)[0].0, Manual);
        assert!(store.state().job(again).unwrap().artifacts.is_none(), "an empty directory is no artifact");
    }

    #[test]
    fn playing_a_job_that_has_ended_runs_it_again() {
        let store = store();
        store.pushed(commit("a", "one"), "main", "bot");
        let plan = store.change(State::take_pending).unwrap().id;
        store.change(|state| state.finish(plan, Outcome::Success(PathBuf::from("/nowhere"))));
        let pipeline = store.state().pipelines[0].id;
        let deploy = store.state().newest_job(pipeline, DEPLOY).unwrap().id;
        assert_eq!(store.change(|state| state.play(deploy, "erika")), Some(deploy));
        assert_eq!(store.change(|state| state.play(deploy, "bot")), None, "it waits for its runner");
        assert_eq!(store.state().job(deploy).unwrap().user, "erika");
        store.change(State::take_pending);
        store.change(|state| state.finish(deploy, Outcome::Failed("script_failure")));
        let again = store.change(|state| state.play(deploy, "bot")).unwrap();
        assert_ne!(again, deploy);
        assert_eq!(store.state().newest_job(pipeline, DEPLOY).unwrap().id, again);
    }

    #[test]
    fn a_push_may_ask_for_no_pipeline() {
        let store = store();
        store.pushed(commit("a", "one [skip ci]"), "main", "bot");
        assert_eq!(statuses(&store), [(Status::Skipped, vec![])]);
    }
}
