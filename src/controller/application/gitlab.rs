//! A GitLab pipeline that plans, and applies when its manual job is started.

use kube::ResourceExt;

use crate::api::terraform_repository::GitLabApply;
use crate::api::vm_migration::PlanStatus;
use crate::api::{TerraformRepositorySpec, VmMigration};
use crate::controller::context::Context;
use crate::edge::gitlab::{GitLab, GitLabError, Job, Pipeline, Status};
use crate::flow::migration::{Application, Fact, JobState, PipelineJob, Refusal, Stage, stage};
use crate::plan::court::{self, Verdict};
use crate::render::commit;

/// How many pipelines of the branch are looked at for one that covers our commit.
const LOOKED_AT: usize = 20;

/// The newest pipeline that covers our commit, and what its jobs say.
pub async fn observe(
    context: &Context,
    migration: &VmMigration,
    repository: &TerraformRepositorySpec,
    apply: &GitLabApply,
    commit: &str,
) -> Result<Application, Refusal> {
    let gitlab = client(context, migration, apply).await?;
    let Some(pipeline) = covering(&gitlab, &repository.branch, commit).await.map_err(|error| refusal(&error))? else {
        let why = format!(
            "GitLab has no pipeline for commit {commit} of {} on {}: see whether the project's CI runs for pushes to that branch",
            apply.project, repository.branch
        );
        let stage = Stage::Absent { why };
        return Ok(Application { url: None, stage, verdict: Fact::NotAsked, harm: Fact::NotAsked });
    };
    let jobs = gitlab.jobs(pipeline.id).await.map_err(|error| refusal(&error))?;
    let planned = jobs.iter().find(|job| job.name == apply.plan_job && job.status == Status::Success);
    let verdict = match planned {
        None => Fact::NotAsked,
        Some(job) => match verdict(context, migration, &gitlab, apply, job).await {
            Ok(verdict) => Fact::Known(verdict),
            Err(refusal) => Fact::Unknown(refusal),
        },
    };
    let jobs: Vec<PipelineJob> = jobs.into_iter().map(fact).collect();
    let stage = stage(&jobs, &apply.plan_job, &apply.apply_job);
    Ok(Application { url: Some(pipeline.url), stage, verdict, harm: Fact::NotAsked })
}

/// Starts the job that applies.
pub async fn play(
    context: &Context,
    migration: &VmMigration,
    apply: &GitLabApply,
    handle: &str,
) -> Result<(), Refusal> {
    let job = handle.parse().map_err(|_| Refusal::new("ApplyFailed", format!("{handle:?} is no job of GitLab")))?;
    client(context, migration, apply).await?.play(job).await.map_err(|error| refusal(&error))
}

/// The merge request of a branch, opened if there is none; where a person looks at it.
pub async fn merge_request(
    context: &Context,
    migration: &VmMigration,
    repository: &TerraformRepositorySpec,
    apply: &GitLabApply,
    branch: &str,
    plan: &PlanStatus,
) -> Result<String, Refusal> {
    let namespace = migration.namespace().unwrap_or_default();
    let text = commit::message(&namespace, &migration.name_any(), &migration.uid().unwrap_or_default(), plan);
    let (title, description) = text.split_once("\n\n").unwrap_or((text.as_str(), ""));
    let gitlab = client(context, migration, apply).await?;
    let opened = gitlab.ensure_merge_request(branch, &repository.branch, title, description).await;
    opened.map(|opened| opened.url).map_err(|error| refusal(&error))
}

async fn client(context: &Context, migration: &VmMigration, apply: &GitLabApply) -> Result<GitLab, Refusal> {
    let namespace = migration.namespace().unwrap_or_default();
    let secret = context.secret(&namespace, &apply.credentials.name).await?;
    let (token, ca) = (secret.require("token")?, secret.get("ca.crt"));
    GitLab::new(&apply.url, &apply.project, &token, ca.as_deref()).map_err(|error| refusal(&error))
}

fn refusal(error: &GitLabError) -> Refusal {
    Refusal::new(error.reason(), error.to_string())
}

/// Commits that arrive together share the pipeline of the last, and GitLab cancels older pipelines as redundant.
async fn covering(gitlab: &GitLab, branch: &str, commit: &str) -> Result<Option<Pipeline>, GitLabError> {
    for pipeline in gitlab.branch_pipelines(branch, LOOKED_AT).await? {
        if pipeline.commit == commit || gitlab.contains(&pipeline.commit, commit).await? {
            return Ok(Some(pipeline));
        }
    }
    Ok(gitlab.pipelines(commit, branch).await?.into_iter().next())
}

/// A job's plan never changes, so it is read and judged once.
async fn verdict(
    context: &Context,
    migration: &VmMigration,
    gitlab: &GitLab,
    apply: &GitLabApply,
    job: &Job,
) -> Result<Verdict, Refusal> {
    let uid = migration.uid().unwrap_or_default();
    let key = format!("{uid} {}", job.url);
    if let Some(known) = context.verdict(&key) {
        return Ok(known);
    }
    let unreadable = |why: &str| {
        let message =
            format!("{why}. Drover cannot judge this plan, and does not start it: see job {} at {}", job.name, job.url);
        Refusal::new("PlanUnreadable", message)
    };
    let file = gitlab.artifact(job.id, &apply.plan_file).await.map_err(|error| refusal(&error))?;
    let file = file.ok_or_else(|| {
        unreadable(&format!(
            "job {} has no {} among its artifacts, or they have expired (its script has to run `terraform show -json` on the saved plan; apply.gitlab.planFile says where)",
            job.name, apply.plan_file
        ))
    })?;
    let verdict = court::judge(&file, &uid).map_err(|error| unreadable(&error.to_string()))?;
    context.remember_verdict(key, verdict.clone());
    Ok(verdict)
}

fn fact(job: Job) -> PipelineJob {
    let state = match job.status {
        Status::Created => JobState::Created,
        Status::WaitingForResource | Status::Preparing | Status::Pending | Status::Scheduled => JobState::Queued,
        // One that is being cancelled still runs.
        Status::Running | Status::Canceling => JobState::Running,
        Status::Success => JobState::Succeeded,
        Status::Failed => JobState::Failed,
        Status::Canceled => JobState::Canceled,
        Status::Skipped => JobState::Skipped,
        Status::Manual => JobState::Manual,
        Status::Unknown(word) => JobState::Unknown(word),
    };
    PipelineJob { id: job.id, name: job.name, state, url: job.url, failure: job.failure_reason }
}
