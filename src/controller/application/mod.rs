//! Who applies the published commit, as the `TerraformRepository` says: how far that is, and the order to go on.

mod gitlab;

use std::collections::{BTreeSet, HashMap};

use super::context::Context;
use super::observe;
use crate::api::{TerraformRepositorySpec, VmMigration};
use crate::flow::migration::{Application, Fact, Refusal, Setup, Stage};
use crate::plan::court::{self, Verdict};

/// Where the application of `commit` stands. Reads only. Not asked where nobody can follow it.
pub async fn observe(context: &Context, migration: &VmMigration, setup: &Setup, commit: &str) -> Fact<Application> {
    let apply = &setup.repository.apply;
    let seen = match &apply.gitlab {
        Some(gitlab) => gitlab::observe(context, migration, &setup.repository, gitlab, commit).await,
        None => return Fact::NotAsked,
    };
    match seen {
        Ok(mut application) => {
            application.harm = harm(context, setup, &application).await;
            Fact::Known(application)
        }
        Err(refusal) => Fact::Unknown(refusal),
    }
}

/// Has the plan applied that `handle` stands for. One that is being applied already, or was, is no error.
pub async fn apply(
    context: &Context,
    migration: &VmMigration,
    repository: &TerraformRepositorySpec,
    handle: &str,
) -> Result<(), Refusal> {
    match &repository.apply.gitlab {
        Some(gitlab) => gitlab::play(context, migration, gitlab, handle).await,
        None => Err(Refusal::new("ApplyFailed", "the TerraformRepository says no more who applies: see spec.apply")),
    }
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
