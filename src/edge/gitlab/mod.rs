//! GitLab's REST API v4, as far as one project's pipelines, their jobs and its merge requests go.
//!
//! Thin: a method is a call or two. What to make of an answer, its callers decide. Of what GitLab does, its documentation tells the
//! calls; three things it does not tell, and this file rests on them:
//!
//! - `play` of a manual job that has *ended* retries it (a second deployment), so a job is only played after it was seen waiting.
//! - The `user` of a job is who started its pipeline until somebody plays it, from then on who played it.
//! - 404 is also the answer to a token that may not see the project.

mod http;

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use http::Server;

/// The longest answer that is read: plans of a thousand machines as JSON are well below it.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Why a call to GitLab did not succeed. Each says what was tried; tokens are in none of them.
#[derive(Debug, thiserror::Error)]
pub enum GitLabError {
    #[error("{tried}: the client could not be set up: {why}")]
    Setup { tried: String, why: String },
    #[error("{tried}: no answer: {why}. Check the URL, the network and ca.crt in the Secret")]
    Unreachable { tried: String, why: String },
    #[error(
        "{tried}: the token is refused ({message}): it is wrong, expired or revoked; put a valid one into the TerraformRepository's Secret"
    )]
    Unauthorized { tried: String, message: String },
    #[error(
        "{tried}: the token may not do this ({message}): reading needs the scope read_api and the role Reporter; starting jobs and opening merge \
         requests need the scope api and the role Developer, a protected branch the right to push or merge to it, a protected environment the \
         right to deploy"
    )]
    Forbidden { tried: String, message: String },
    #[error(
        "{tried}: not found, or not to be seen with this token ({message}): check the project in the TerraformRepository, and that the token \
         belongs to a member of it"
    )]
    NotFound { tried: String, message: String },
    #[error("{tried}: too many requests{}: lower the number of callers, or raise GitLab's rate limit", wait_text(.after.as_ref()))]
    TooManyRequests {
        tried: String,
        /// How long GitLab wants to be left alone.
        after: Option<Duration>,
    },
    #[error(
        "job {job} cannot be started: it is {status} ({message}). Look at it in GitLab; retry it or its pipeline there"
    )]
    NotPlayable { job: u64, status: Status, message: String },
    #[error("{tried}: the answer is larger than {} MiB: nothing that large is read", MAX_ANSWER_BYTES >> 20)]
    TooLarge { tried: String },
    #[error("{tried}: refused with status {status}: {message}")]
    Refused { tried: String, status: u16, message: String },
    #[error("{tried}: the answer is not what GitLab's API describes: {why}")]
    Malformed { tried: String, why: String },
}

fn wait_text(after: Option<&Duration>) -> String {
    after.map_or_else(String::new, |after| format!(", asks for {} s of rest", after.as_secs()))
}

impl GitLabError {
    /// One CamelCase word for a condition.
    pub fn reason(&self) -> &'static str {
        match self {
            GitLabError::Setup { .. } => "GitLabMisconfigured",
            GitLabError::Unreachable { .. } => "GitLabUnreachable",
            GitLabError::Unauthorized { .. } => "GitLabUnauthorized",
            GitLabError::Forbidden { .. } => "GitLabForbidden",
            GitLabError::NotFound { .. } => "GitLabNotFound",
            GitLabError::TooManyRequests { .. } => "GitLabBusy",
            GitLabError::NotPlayable { .. } => "GitLabJobNotPlayable",
            GitLabError::TooLarge { .. } => "GitLabAnswerTooLarge",
            GitLabError::Refused { .. } => "GitLabRefused",
            GitLabError::Malformed { .. } => "GitLabMalformed",
        }
    }
}

/// Where a pipeline or a job stands, in GitLab's words.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum Status {
    Created,
    WaitingForResource,
    Preparing,
    Pending,
    Running,
    Success,
    Failed,
    Canceling,
    Canceled,
    Skipped,
    Manual,
    Scheduled,
    /// Newer GitLabs have more of them.
    Unknown(String),
}

/// Every status that is known, with GitLab's name of it.
const STATUSES: [(Status, &str); 12] = [
    (Status::Created, "created"),
    (Status::WaitingForResource, "waiting_for_resource"),
    (Status::Preparing, "preparing"),
    (Status::Pending, "pending"),
    (Status::Running, "running"),
    (Status::Success, "success"),
    (Status::Failed, "failed"),
    (Status::Canceling, "canceling"),
    (Status::Canceled, "canceled"),
    (Status::Skipped, "skipped"),
    (Status::Manual, "manual"),
    (Status::Scheduled, "scheduled"),
];

impl From<String> for Status {
    fn from(name: String) -> Self {
        let known = STATUSES.iter().find(|(_, known)| *known == name);
        known.map_or(Self::Unknown(name), |(status, _)| status.clone())
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self {
            Self::Unknown(name) => name,
            known => STATUSES.iter().find(|(status, _)| status == known).map_or("", |(_, name)| name),
        };
        formatter.write_str(name)
    }
}

/// One run of a commit.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Pipeline {
    pub id: u64,
    #[serde(rename = "sha")]
    pub commit: String,
    pub status: Status,
    /// For people.
    #[serde(rename = "web_url")]
    pub url: String,
    /// What started it: `push`, `web`, `schedule`, `merge_request_event`, …
    #[serde(default)]
    pub source: String,
}

/// One job of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "JobShape")]
pub struct Job {
    pub id: u64,
    pub name: String,
    pub stage: String,
    pub status: Status,
    /// For people.
    pub url: String,
    /// `script_failure`, `runner_system_failure`, …; only of a failed job.
    pub failure_reason: Option<String>,
    /// Who played it; of a job that nobody played, who started its pipeline.
    pub user: Option<String>,
    /// Whether its pipeline goes on without it. A manual job that may fail leaves its pipeline `success`, else `manual`.
    pub allow_failure: bool,
    pub commit: String,
}

/// A job as GitLab writes it.
#[derive(Deserialize)]
struct JobShape {
    id: u64,
    name: String,
    #[serde(default)]
    stage: String,
    status: Status,
    web_url: String,
    failure_reason: Option<String>,
    user: Option<UserShape>,
    #[serde(default)]
    allow_failure: bool,
    pipeline: PipelineShape,
}

#[derive(Deserialize)]
struct UserShape {
    username: String,
}

#[derive(Deserialize)]
struct PipelineShape {
    sha: String,
}

impl From<JobShape> for Job {
    fn from(shape: JobShape) -> Self {
        Self {
            id: shape.id,
            name: shape.name,
            stage: shape.stage,
            status: shape.status,
            url: shape.web_url,
            failure_reason: shape.failure_reason,
            user: shape.user.map(|user| user.username),
            allow_failure: shape.allow_failure,
            commit: shape.pipeline.sha,
        }
    }
}

/// A merge request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergeRequest {
    /// Its number within the project.
    pub iid: u64,
    /// For people.
    pub url: String,
    /// `opened`, `merged`, `closed` or `locked`.
    pub state: String,
    /// The commit of the target branch that has it, once it is merged.
    pub merge_commit: Option<String>,
}

/// A merge request as GitLab writes it.
#[derive(Deserialize)]
struct MergeRequestShape {
    iid: u64,
    web_url: String,
    state: String,
    merge_commit_sha: Option<String>,
    squash_commit_sha: Option<String>,
    sha: Option<String>,
    source_project_id: Option<u64>,
    target_project_id: Option<u64>,
}

impl MergeRequestShape {
    /// Those of forks may have the same branch names.
    fn is_of_this_project(&self) -> bool {
        self.source_project_id == self.target_project_id
    }
}

impl From<MergeRequestShape> for MergeRequest {
    fn from(shape: MergeRequestShape) -> Self {
        // A fast-forward makes no commit: the source branch's own is on the target branch then.
        let commit = shape.merge_commit_sha.or(shape.squash_commit_sha).or(shape.sha);
        let merge_commit = commit.filter(|_| shape.state == "merged");
        Self { iid: shape.iid, url: shape.web_url, state: shape.state, merge_commit }
    }
}

/// One project of a GitLab.
#[derive(Clone)]
pub struct GitLab {
    server: Server,
}

impl GitLab {
    /// `project` is its path with all groups, or its id.
    pub fn new(url: &str, project: &str, token: &str, ca_pem: Option<&str>) -> Result<Self, GitLabError> {
        Ok(Self { server: Server::new(url, project, token, ca_pem)? })
    }

    /// Pipelines of a commit on a branch, newest first. A commit that was pushed a moment ago may have none yet.
    pub async fn pipelines(&self, commit: &str, branch: &str) -> Result<Vec<Pipeline>, GitLabError> {
        self.newest_pipelines(&[("sha", commit), ("ref", branch)], usize::MAX).await
    }

    /// The newest pipelines of a branch whatever their commit: a later commit's pipeline may have taken the place of ours.
    pub async fn branch_pipelines(&self, branch: &str, at_most: usize) -> Result<Vec<Pipeline>, GitLabError> {
        self.newest_pipelines(&[("ref", branch)], at_most).await
    }

    async fn newest_pipelines(&self, filter: &[(&str, &str)], at_most: usize) -> Result<Vec<Pipeline>, GitLabError> {
        let query = [filter, &[("order_by", "id"), ("sort", "desc")]].concat();
        let mut pipelines: Vec<Pipeline> = self.server.list(&["pipelines"], &query, at_most).await?;
        // One that appears between two pages moves all others on by a place.
        let mut seen = HashSet::new();
        pipelines.retain(|pipeline| seen.insert(pipeline.id));
        Ok(pipelines)
    }

    /// The newest job of each name.
    ///
    /// The retried ones are asked for, too, and left out here: while GitLab leaves them out, a retry between two pages makes a job vanish
    /// from a page that is still to come and appear on one that was read.
    pub async fn jobs(&self, pipeline: u64) -> Result<Vec<Job>, GitLabError> {
        let path = ["pipelines", &pipeline.to_string(), "jobs"];
        let all: Vec<Job> = self.server.list(&path, &[("include_retried", "true")], usize::MAX).await?;
        let mut newest: BTreeMap<String, Job> = BTreeMap::new();
        for job in all {
            if newest.get(&job.name).is_none_or(|known| known.id < job.id) {
                newest.insert(job.name.clone(), job);
            }
        }
        let mut jobs: Vec<Job> = newest.into_values().collect();
        jobs.sort_by_key(|job| job.id);
        Ok(jobs)
    }

    /// A job as it is now.
    pub async fn job(&self, job: u64) -> Result<Job, GitLabError> {
        self.server.get(&["jobs", &job.to_string()], &[]).await
    }

    /// A file of a job's artifacts. None = the job left none, they have expired, or the file is not among them.
    pub async fn artifact(&self, job: u64, path: &str) -> Result<Option<Vec<u8>>, GitLabError> {
        let id = job.to_string();
        let segments: Vec<&str> = ["jobs", &id, "artifacts"].into_iter().chain(path.split('/')).collect();
        match self.server.file(&segments).await {
            Ok(file) => Ok(Some(file)),
            // Of a token that may not see the job this would be said, too.
            Err(GitLabError::NotFound { .. }) => self.job(job).await.map(|_| None),
            Err(error) => Err(error),
        }
    }

    /// Starts a manual job. One that was played already is no error.
    pub async fn play(&self, job: u64) -> Result<(), GitLabError> {
        let seen = self.job(job).await?.status;
        if !matches!(seen, Status::Manual | Status::Scheduled) {
            return played(job, seen, "nobody played it");
        }
        match self.server.post(&["jobs", &job.to_string(), "play"], &json!({})).await {
            Ok(_) => Ok(()),
            // Somebody else may have been faster.
            Err(GitLabError::Refused { status: 400, message, .. }) => {
                played(job, self.job(job).await?.status, &message)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether `commit` is an ancestor of `of`, or is `of`.
    pub async fn contains(&self, of: &str, commit: &str) -> Result<bool, GitLabError> {
        let base = self.server.get::<Value>(&["repository", "merge_base"], &[("refs[]", of), ("refs[]", commit)]).await;
        match base {
            Ok(base) => Ok(base["id"].as_str() == Some(commit)),
            // The two have nothing in common, or one of them is not in the repository (any more).
            Err(GitLabError::NotFound { message, .. }) if message.contains("Merge Base") => Ok(false),
            Err(GitLabError::Refused { status: 400, message, .. }) if message.contains("Could not find ref") => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// The open, else the merged merge request from `source` to `target`, else a new one.
    pub async fn ensure_merge_request(
        &self,
        source: &str,
        target: &str,
        title: &str,
        description: &str,
    ) -> Result<MergeRequest, GitLabError> {
        if let Some(found) = self.find_merge_request(source, target).await? {
            return Ok(found);
        }
        let body = json!({
            "source_branch": source, "target_branch": target, "title": title, "description": description,
        });
        let path = ["merge_requests"];
        match self.server.post(&path, &body).await {
            Ok(made) => serde_json::from_value::<MergeRequestShape>(made).map(Into::into).map_err(|error| {
                GitLabError::Malformed { tried: format!("make a merge request of {source}"), why: error.to_string() }
            }),
            // Somebody else may have been faster.
            Err(error @ GitLabError::Refused { status: 409, .. }) => {
                self.find_merge_request(source, target).await?.ok_or(error)
            }
            Err(error) => Err(error),
        }
    }

    async fn find_merge_request(&self, source: &str, target: &str) -> Result<Option<MergeRequest>, GitLabError> {
        for state in ["opened", "merged"] {
            let query = [("source_branch", source), ("target_branch", target), ("state", state)];
            let found: Vec<MergeRequestShape> = self.server.list(&["merge_requests"], &query, usize::MAX).await?;
            let newest = found.into_iter().filter(MergeRequestShape::is_of_this_project).max_by_key(|found| found.iid);
            if let Some(newest) = newest {
                return Ok(Some(newest.into()));
            }
        }
        Ok(None)
    }
}

/// What a job's status says of whether it was started.
fn played(job: u64, status: Status, message: &str) -> Result<(), GitLabError> {
    match status {
        Status::WaitingForResource
        | Status::Preparing
        | Status::Pending
        | Status::Running
        | Status::Success
        | Status::Failed
        | Status::Canceling => Ok(()),
        // A canceled one may have been played or not; it will not run.
        Status::Created
        | Status::Canceled
        | Status::Skipped
        | Status::Manual
        | Status::Scheduled
        | Status::Unknown(_) => Err(GitLabError::NotPlayable { job, status, message: message.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_is_read_and_written_in_gitlabs_words() {
        for (status, name) in STATUSES {
            assert_eq!(Status::from(name.to_owned()), status);
            assert_eq!(status.to_string(), name);
        }
        let newer = Status::from("waiting_for_callback".to_owned());
        assert_eq!(newer, Status::Unknown("waiting_for_callback".into()));
        assert_eq!(newer.to_string(), "waiting_for_callback");
    }

    #[test]
    fn a_merged_request_names_the_commit_however_it_was_merged() {
        let merge_commit = |changes: &[(&str, Value)]| {
            let mut shape = json!({"iid": 5, "web_url": "u", "state": "merged", "sha": "head", "merge_commit_sha": null, "squash_commit_sha": null});
            for (name, value) in changes {
                shape[name] = value.clone();
            }
            MergeRequest::from(serde_json::from_value::<MergeRequestShape>(shape).expect("a shape")).merge_commit
        };
        assert_eq!(merge_commit(&[("merge_commit_sha", json!("merge"))]).as_deref(), Some("merge"));
        assert_eq!(merge_commit(&[("squash_commit_sha", json!("squash"))]).as_deref(), Some("squash"));
        assert_eq!(merge_commit(&[]).as_deref(), Some("head"), "a fast-forward");
        assert_eq!(merge_commit(&[("state", json!("opened"))]), None);
    }

    #[test]
    fn a_forks_merge_request_is_none_of_ours() {
        let of = |source: u64| {
            let shape = json!({"iid": 5, "web_url": "u", "state": "opened", "source_project_id": source, "target_project_id": 42});
            serde_json::from_value::<MergeRequestShape>(shape).expect("a shape").is_of_this_project()
        };
        assert!(of(42) && !of(43));
    }
}
