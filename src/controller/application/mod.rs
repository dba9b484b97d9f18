//! Who applies the published commit, as the `TerraformRepository` says: how far that is, and the order to go on.

mod gitlab;
mod job;

use std::collections::{BTreeSet, HashMap};

use super::context::Context;
use super::observe;
use crate::api::terraform_repository::Delivery;
use crate::api::vm_migration::PlanStatus;
use crate::api::{TerraformRepositorySpec, VmMigration};
use crate::flow::migration::{Application, Fact, Refusal, Setup, Stage};
use crate::plan::court::{self, Verdict};

/// Where the application of `commit` stands. Reads only. Not asked where nobody can follow it.
pub async fn observe(context: &Context, migration: &VmMigration, setup: &Setup, commit: &str) -> Fact<Application> {
    let repository = &setup.repository;
    let seen = match (&repository.apply.gitlab, &repository.apply.job) {
        (Some(gitlab), _) => gitlab::observe(context, migration, repository, gitlab, commit).await,
        (None, Some(job)) => job::observe(context, migration, repository, job, commit).await,
        (None, None) => return Fact::NotAsked,
    };
    match seen {
        Ok(mut application) => {
            application.harm = harm(context, setup, &application).await;
            Fact::Known(application)
        }
        Err(refusal) => Fact::Unknown(refusal),
    }
}

/// The merge request of a branch, where the repository wants one and GitLab's API can be asked for it; where a person looks at it.
pub async fn merge_request(
    context: &Context,
    migration: &VmMigration,
    repository: &TerraformRepositorySpec,
    branch: &str,
    plan: &PlanStatus,
) -> Result<Option<String>, Refusal> {
    match (repository.delivery, &repository.apply.gitlab) {
        (Delivery::MergeRequest, Some(gitlab)) => {
            gitlab::merge_request(context, migration, repository, gitlab, branch, plan).await.map(Some)
        }
        (Delivery::Commit | Delivery::Branch | Delivery::MergeRequest, _) => Ok(None),
    }
}

/// Has a plan made. One that is being made already is no error.
pub async fn plan(
    context: &Context,
    migration: &VmMigration,
    repository: &TerraformRepositorySpec,
    round: u32,
) -> Result<(), Refusal> {
    match &repository.apply.job {
        Some(job) => job::plan(context, migration, repository, job, round).await,
        None => Err(nobody()),
    }
}

/// Has the plan applied that `handle` stands for. One that is being applied already, or was, is no error.
pub async fn apply(
    context: &Context,
    migration: &VmMigration,
    repository: &TerraformRepositorySpec,
    handle: &str,
) -> Result<(), Refusal> {
    match (&repository.apply.gitlab, &repository.apply.job) {
        (Some(gitlab), _) => gitlab::play(context, migration, gitlab, handle).await,
        (None, Some(job)) => job::apply(context, migration, repository, job, handle).await,
        (None, None) => Err(nobody()),
    }
}

fn nobody() -> Refusal {
    Refusal::new("ApplyFailed", "the TerraformRepository's spec.apply was changed meanwhile")
}

/// What other VMs have lost by an application that has ended, well or not.
async fn harm(context: &Context, setup: &Setup, application: &Application) -> Fact<Vec<String>> {
    let ended = matches!(application.stage, Stage::Applied | Stage::Failed { .. });
    let (true, Fact::Known(Verdict { others, .. })) = (ended, &application.verdict) else { return Fact::NotAsked };
    if others.is_empty() {
        return Fact::Known(Vec::new());
    }
    let central = match observe::central(context, &setup.cluster).await {
        Ok(central) => central,
        Err(refusal) => return Fact::Unknown(refusal),
    };
    match central.disks_of_all_vms().await {
        Ok(vms) => {
            let vms: HashMap<String, BTreeSet<String>> = vms.into_iter().collect();
            Fact::Known(court::harm(others, |ext_id| vms.get(ext_id).cloned()))
        }
        Err(error) => Fact::Unknown(Refusal::new(error.reason(), error.to_string())),
    }
}
