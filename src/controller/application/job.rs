//! Jobs in the team's namespace that plan and apply, where there is no CI.

use std::collections::HashMap;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ListParams, PostParams};
use kube::{Api, ResourceExt};

use crate::api::terraform_repository::JobApply;
use crate::api::{MIGRATION_LABEL, TerraformRepositorySpec, VmMigration};
use crate::controller::context::{Context, SecretText};
use crate::flow::migration::{Application, Fact, JobEnd, Refusal, TERRAFORM_ROUNDS, TerraformJobs};
use crate::plan::court::Verdict;
use crate::render::terraform_job::{Action, JobInput, VERDICT_KEY, job};

/// The newest round's Jobs, and the plan that they left.
pub async fn observe(
    context: &Context,
    migration: &VmMigration,
    repository: &TerraformRepositorySpec,
    apply: &JobApply,
    commit: &str,
) -> Result<Application, Refusal> {
    let (namespace, uid) = (migration.namespace().unwrap_or_default(), migration.uid().unwrap_or_default());
    let jobs: Api<Job> = Api::namespaced(context.client.clone(), &namespace);
    let ours = ListParams::default().labels(&format!("{MIGRATION_LABEL}={uid}"));
    let listed = jobs.list(&ours).await.map_err(|error| unreadable(&namespace, &error))?;
    let jobs: HashMap<String, Job> = listed.items.into_iter().map(|job| (job.name_any(), job)).collect();
    let input = |round| input(migration, &namespace, &uid, repository, apply, commit, round);
    let newest = (0..=TERRAFORM_ROUNDS).rev().find(|round| {
        let input = input(*round);
        jobs.contains_key(&input.plan_name()) || jobs.contains_key(&input.apply_name())
    });
    let round = newest.unwrap_or(0);
    let names = (input(round).plan_name(), input(round).apply_name());
    let (plan_job, apply_job) = (jobs.get(&names.0).map(state), jobs.get(&names.1).map(state));
    let verdict = match plan_job {
        Some(JobEnd::Complete) | None => kept_verdict(context, &namespace, &names.0).await?,
        Some(JobEnd::Active | JobEnd::Failed) => None,
    };
    let seen = TerraformJobs {
        round,
        plan_job: format!("{namespace}/{}", names.0),
        apply_job: format!("{namespace}/{}", names.1),
        planned: plan_job,
        applied: apply_job,
    };
    let stage = seen.stage(verdict.as_ref().map(|verdict| verdict.digest.as_str()));
    let verdict = verdict.map_or(Fact::NotAsked, Fact::Known);
    Ok(Application { url: None, stage, verdict, harm: Fact::NotAsked })
}

/// Starts the Job that plans. One that is there already is no error.
pub async fn plan(
    context: &Context,
    migration: &VmMigration,
    repository: &TerraformRepositorySpec,
    apply: &JobApply,
    round: u32,
) -> Result<(), Refusal> {
    start(context, migration, repository, apply, round, &Action::Plan).await
}

/// Starts the Job that applies the plan. One that is there already is no error.
pub async fn apply(
    context: &Context,
    migration: &VmMigration,
    repository: &TerraformRepositorySpec,
    apply: &JobApply,
    handle: &str,
) -> Result<(), Refusal> {
    let (round, digest) = handle
        .split_once(' ')
        .and_then(|(round, digest)| Some((round.parse().ok()?, digest.to_owned())))
        .ok_or_else(|| Refusal::new("ApplyFailed", format!("{handle:?} names no plan")))?;
    start(context, migration, repository, apply, round, &Action::Apply { digest }).await
}

async fn start(
    context: &Context,
    migration: &VmMigration,
    repository: &TerraformRepositorySpec,
    apply: &JobApply,
    round: u32,
    action: &Action,
) -> Result<(), Refusal> {
    let (namespace, uid) = (migration.namespace().unwrap_or_default(), migration.uid().unwrap_or_default());
    let commit = migration.status.as_ref().and_then(|status| status.terraform.as_ref());
    let commit = commit.map(|terraform| terraform.commit.clone()).unwrap_or_default();
    let input = input(migration, &namespace, &uid, repository, apply, &commit, round);
    let jobs: Api<Job> = Api::namespaced(context.client.clone(), &namespace);
    match jobs.create(&PostParams::default(), &job(&input, action)).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        Err(error) => Err(unreadable(&namespace, &error)),
        Ok(_) => Ok(()),
    }
}

fn input<'a>(
    migration: &'a VmMigration,
    namespace: &'a str,
    uid: &'a str,
    repository: &'a TerraformRepositorySpec,
    apply: &'a JobApply,
    commit: &'a str,
    round: u32,
) -> JobInput<'a> {
    let name = migration.metadata.name.as_deref().unwrap_or_default();
    JobInput { migration: name, namespace, uid, commit, round, repository, apply }
}

fn unreadable(namespace: &str, error: &kube::Error) -> Refusal {
    let message = format!(
        "read or create Jobs in namespace {namespace}: {error}. The operator needs a RoleBinding there: manifests/terraform-job"
    );
    Refusal::new("TerraformJobForbidden", message)
}

fn state(job: &Job) -> JobEnd {
    let conditions = job.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let holds = |name: &str| conditions.iter().any(|condition| condition.type_ == name && condition.status == "True");
    match (holds("Complete"), holds("Failed")) {
        (true, _) => JobEnd::Complete,
        (false, true) => JobEnd::Failed,
        (false, false) => JobEnd::Active,
    }
}

/// The judgement that lies beside the plan; nothing if there is no plan (any more).
async fn kept_verdict(context: &Context, namespace: &str, name: &str) -> Result<Option<Verdict>, Refusal> {
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    let secret = secrets.get_opt(name).await;
    let secret =
        secret.map_err(|error| Refusal::new("SecretUnreadable", format!("read Secret {namespace}/{name}: {error}")))?;
    let Some(text) = secret.and_then(|secret| SecretText::new(secret).get(VERDICT_KEY)) else { return Ok(None) };
    let verdict = serde_json::from_str(&text);
    verdict.map(Some).map_err(|error| {
        let message =
            format!("Secret {namespace}/{name} holds no judgement of a plan ({error}): delete it to have one made");
        Refusal::new("PlanUnreadable", message)
    })
}
