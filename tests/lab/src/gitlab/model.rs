//! What GitLab keeps: users, pipelines, jobs, merge requests; and how a pipeline's status follows from its jobs.

use std::path::PathBuf;

use jiff::Timestamp;

/// The stages of every pipeline, in their order; each has one job of the same name.
pub const PLAN: &str = "plan";
pub const DEPLOY: &str = "deploy";

/// What a member of the project may do, in rising order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// No member: the project does not exist for them.
    Stranger,
    Guest,
    Reporter,
    Developer,
    Maintainer,
}

/// What a token may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    ReadApi,
    Api,
}

/// A person or a bot, with an access token.
#[derive(Clone, Debug)]
pub struct User {
    pub username: String,
    pub token: String,
    pub scope: Scope,
    pub role: Role,
}

/// Status of a job or of a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Created,
    Pending,
    Running,
    Success,
    Failed,
    Canceling,
    Canceled,
    Skipped,
    Manual,
}

impl Status {
    /// As the API writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Success => "success",
            Self::Failed => "failed",
            Self::Canceling => "canceling",
            Self::Canceled => "canceled",
            Self::Skipped => "skipped",
            Self::Manual => "manual",
        }
    }

    /// Whether a runner has had it.
    pub fn was_started(self) -> bool {
        matches!(self, Self::Running | Self::Success | Self::Failed | Self::Canceling)
    }

    /// Whether it can be canceled. A manual job that nobody played cannot.
    pub fn is_cancelable(self) -> bool {
        matches!(self, Self::Created | Self::Pending | Self::Running)
    }

    /// Whether it is under way: what makes a pipeline redundant when a newer commit arrives.
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Created | Self::Pending | Self::Running | Self::Canceling)
    }

    pub fn has_ended(self) -> bool {
        matches!(self, Self::Success | Self::Failed | Self::Canceled | Self::Skipped)
    }
}

/// A commit as the API shows it.
#[derive(Clone, Debug)]
pub struct Commit {
    pub id: String,
    pub message: String,
    pub author_name: String,
    pub author_email: String,
}

#[derive(Clone, Debug)]
pub struct Pipeline {
    pub id: u64,
    pub commit: Commit,
    pub branch: String,
    pub user: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

#[derive(Clone, Debug)]
pub struct Job {
    pub id: u64,
    pub pipeline: u64,
    pub name: &'static str,
    pub status: Status,
    pub is_manual: bool,
    pub allow_failure: bool,
    /// Who pushed, until somebody plays or retries it.
    pub user: String,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub failure_reason: Option<&'static str>,
    pub artifacts: Option<Artifacts>,
    /// A newer job of this name has taken its place.
    pub is_retried: bool,
}

impl Job {
    /// Whether it is one that may be run again.
    pub fn is_retryable(&self) -> bool {
        !self.is_retried && matches!(self.status, Status::Success | Status::Failed | Status::Canceled)
    }

    /// Whether `play` takes it. One that has ended is played by retrying it, as the real one does.
    pub fn is_playable(&self) -> bool {
        self.is_manual && (self.status == Status::Manual || self.is_retryable())
    }

    /// Its artifacts, as long as they are there.
    pub fn available_artifacts(&self) -> Option<&Artifacts> {
        self.artifacts.as_ref().filter(|artifacts| !artifacts.have_expired)
    }
}

/// What a job left behind.
#[derive(Clone, Debug)]
pub struct Artifacts {
    pub dir: PathBuf,
    pub expire_at: Timestamp,
    pub have_expired: bool,
}

impl Artifacts {
    /// Bytes of all files.
    pub fn size(&self) -> u64 {
        let files = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        files.filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).sum()
    }
}

#[derive(Clone, Debug)]
pub struct MergeRequest {
    pub iid: u64,
    pub title: String,
    pub description: String,
    pub source: String,
    pub target: String,
    pub author: String,
    pub state: &'static str,
    /// The newest commit of the source branch.
    pub commit: String,
    pub merge_commit: Option<String>,
    pub created_at: Timestamp,
}

/// The status of a pipeline whose newest jobs are these: status, and whether the job may fail.
///
/// By the rules of GitLab's composite status: a manual job that may fail counts for nothing, a failed or canceled one as a warning.
pub fn composite(jobs: &[(Status, bool)]) -> Status {
    use Status::{Canceled, Canceling, Created, Failed, Manual, Pending, Running, Skipped, Success};
    let ignored = |&(status, may_fail): &(Status, bool)| may_fail && status == Manual;
    let warning = |&(status, may_fail): &(Status, bool)| may_fail && matches!(status, Failed | Canceled);
    let counted: Vec<Status> = jobs.iter().filter(|job| !ignored(job) && !warning(job)).map(|job| job.0).collect();
    let has_warning = jobs.iter().any(warning);
    let only = |wanted: &[Status]| counted.iter().all(|status| wanted.contains(status));
    let any = |wanted: &[Status]| counted.iter().any(|status| wanted.contains(status));
    match () {
        () if only(&[Skipped]) && !has_warning => Skipped,
        () if only(&[Success, Skipped]) => Success,
        () if only(&[Created]) => Created,
        () if only(&[Canceled, Success, Skipped]) => Canceled,
        () if only(&[Pending, Created, Skipped]) => Pending,
        () if any(&[Canceling]) => Canceling,
        () if any(&[Running, Pending]) => Running,
        () if any(&[Manual]) => Manual,
        () if any(&[Created]) => Running,
        () => Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipeline_stands_where_its_jobs_stand() {
        use Status::{Canceled, Created, Failed, Manual, Pending, Running, Skipped, Success};
        let blocking = |plan, deploy| composite(&[(plan, false), (deploy, false)]);
        let optional = |plan, deploy| composite(&[(plan, false), (deploy, true)]);
        assert_eq!(composite(&[]), Skipped);
        assert_eq!(blocking(Pending, Created), Pending);
        assert_eq!(blocking(Running, Created), Running);
        assert_eq!(blocking(Success, Manual), Manual);
        assert_eq!(optional(Success, Manual), Success, "although nothing was deployed");
        assert_eq!(blocking(Success, Pending), Running);
        assert_eq!(blocking(Success, Success), Success);
        assert_eq!(blocking(Success, Failed), Failed);
        assert_eq!(optional(Success, Failed), Success, "although the deployment failed");
        assert_eq!(blocking(Failed, Skipped), Failed);
        assert_eq!(blocking(Canceled, Skipped), Canceled);
        assert_eq!(blocking(Canceled, Canceled), Canceled);
        assert_eq!(optional(Success, Canceled), Success);
    }
}
