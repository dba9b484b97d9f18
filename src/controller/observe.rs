//! Reads, only. What could not be read becomes a fact "unknown" with its reason, not an error.

use std::time::Duration;

use kube::{Api, ResourceExt};

use super::context::{Context, SecretText};
use super::{application, setup};
use crate::api::common::{Category, Tri};
use crate::api::nutanix_cluster::{PrismEndpoint, SubnetByVlan};
use crate::api::terraform_repository::Delivery;
use crate::api::vm_migration::PlanStatus;
use crate::api::{BlockCopy, NutanixClusterSpec, VmMigration, VmMigrationStatus};
use crate::edge::git::{self, Access, Publication, ReviewBranch};
use crate::edge::prism::{ElementDisk, PowerState, PrismCentral, PrismElement, PrismError, Vm};
use crate::flow::migration::{Fact, Needs, Refusal, Seen, Setup, TargetVm, TargetVmDisk, needs};
use crate::plan::{self, Choices, Named, Placement, PlannedCategory};
use crate::render;

/// Name of the `BlockCopy` and the Job of a migration.
pub fn copy_name(migration: &VmMigration) -> String {
    render::job::copy_name(&migration.name_any(), &migration.uid().unwrap_or_default())
}

/// Gathers the facts that the next decision needs.
pub async fn observe(context: &Context, migration: &VmMigration) -> Seen {
    let status = migration.status.clone().unwrap_or_default();
    let setup = setup::resolve(context, migration).await;
    let mut seen = Seen {
        setup,
        copy: Fact::NotAsked,
        placement: Fact::NotAsked,
        published: Fact::NotAsked,
        review_url: context.review_url(&migration.uid().unwrap_or_default()),
        application: Fact::NotAsked,
        target: Fact::NotAsked,
    };
    if let Ok(setup) = seen.setup.clone() {
        outside(context, migration, &status, &setup, &mut seen).await;
    }
    // Last: Prism may take long to answer, and the host side reports every few seconds.
    let copies: Api<BlockCopy> = Api::namespaced(context.client.clone(), &context.namespace);
    seen.copy = match copies.get_opt(&copy_name(migration)).await {
        Ok(copy) => Fact::Known(copy),
        Err(error) => Fact::Unknown(Refusal::new("BlockCopyUnreadable", format!("read the BlockCopy: {error}"))),
    };
    seen
}

/// What Prism and the repository tell, as far as it is needed.
async fn outside(
    context: &Context,
    migration: &VmMigration,
    status: &VmMigrationStatus,
    setup: &Setup,
    seen: &mut Seen,
) {
    let needs = needs(&migration.spec, status);
    if needs.placement || needs.target {
        let central = central(context, &setup.cluster).await;
        if needs.placement {
            let choices = plan::choices(&setup.cluster, &migration.spec.overrides);
            seen.placement = fact(placement(&central, &setup.cluster, &choices).await);
        }
        let uid = migration.uid().unwrap_or_default();
        let remembered = context.recent_target(&uid, Duration::from_secs(needs.target_may_be_seconds_old));
        seen.target = match (needs.target, remembered) {
            (false, _) => Fact::NotAsked,
            (true, Some(vms)) => Fact::Known(vms),
            (true, None) => {
                let ext_id = status.target.as_ref().map(|target| target.ext_id.as_str());
                let vms = target(context, &central, &setup.cluster, &migration.spec.hostname, ext_id, needs);
                let vms = fact(vms.await);
                if let Fact::Known(vms) = &vms {
                    context.remember_target(&uid, vms);
                }
                vms
            }
        };
    }
    if let (true, Some(plan)) = (needs.published, &status.plan) {
        let uid = migration.uid().unwrap_or_default();
        let remembered = context.recent_commit(&uid, Duration::from_secs(needs.published_may_be_seconds_old));
        seen.published = match remembered {
            Some(commit) => Fact::Known(Some(commit)),
            None => {
                let published = fact(published(context, migration, setup, plan).await);
                if let Fact::Known(Some(commit)) = &published {
                    context.remember_commit(&uid, commit);
                }
                published
            }
        };
    }
    if let (true, Some(terraform)) = (needs.application, &status.terraform) {
        seen.application = application::observe(context, migration, setup, &terraform.commit).await;
    }
}

fn fact<T>(result: Result<T, Refusal>) -> Fact<T> {
    match result {
        Ok(value) => Fact::Known(value),
        Err(refusal) => Fact::Unknown(refusal),
    }
}

/// A client for Prism Central, with the credentials as they are now.
pub async fn central(context: &Context, cluster: &NutanixClusterSpec) -> Result<PrismCentral, Refusal> {
    let (username, password, ca) = prism_credentials(context, &cluster.prism_central).await?;
    PrismCentral::new(&cluster.prism_central.url, &username, &password, ca.as_deref()).map_err(|error| prism(&error))
}

async fn element(context: &Context, cluster: &NutanixClusterSpec) -> Result<PrismElement, Refusal> {
    let (username, password, ca) = prism_credentials(context, &cluster.prism_element).await?;
    PrismElement::new(&cluster.prism_element.url, &username, &password, ca.as_deref()).map_err(|error| prism(&error))
}

async fn prism_credentials(
    context: &Context,
    endpoint: &PrismEndpoint,
) -> Result<(String, String, Option<String>), Refusal> {
    let secret: SecretText = context.secret(&context.namespace, &endpoint.credentials.name).await?;
    Ok((secret.require("username")?, secret.require("password")?, secret.get("ca.crt")))
}

fn prism(error: &PrismError) -> Refusal {
    Refusal::new(error.reason(), error.to_string())
}

/// What the plan will refer to in Prism, by its identifiers.
async fn placement(
    central: &Result<PrismCentral, Refusal>,
    cluster: &NutanixClusterSpec,
    choices: &Choices,
) -> Result<Placement, Refusal> {
    let central = central.as_ref().map_err(Clone::clone)?;
    let found = |what: &str, name: &str, ext_id: Result<Option<String>, PrismError>| {
        let ext_id = ext_id.map_err(|error| prism(&error))?;
        let missing = format!("Prism Central knows no {what} named {name}: create it, or change what names it");
        Ok(Named { name: name.into(), ext_id: ext_id.ok_or(Refusal::new("PlacementNotFound", missing))? })
    };
    let name = &cluster.cluster_name;
    let placed = found("cluster", name, central.find_cluster(name).await)?;
    let name = &cluster.storage_container;
    let container = found("storage container", name, central.find_container(name, &placed.ext_id).await)?;
    let mut subnets = Vec::new();
    for SubnetByVlan { vlan, subnet } in &cluster.subnets {
        let named = found("subnet", subnet, central.find_subnet(subnet, &placed.ext_id).await)?;
        subnets.push((*vlan, named));
    }
    let mut categories = Vec::new();
    for category in &choices.categories {
        let Category { key, value } = category;
        let named = found("category", &format!("{key}:{value}"), central.find_category(key, value).await)?;
        categories.push(PlannedCategory { category: category.clone(), ext_id: named.ext_id });
    }
    Ok(Placement { cluster: placed, container, subnets, categories })
}

/// The VMs that bear the target's name or, once it is pinned, that one by its identifier.
async fn target(
    context: &Context,
    central: &Result<PrismCentral, Refusal>,
    cluster: &NutanixClusterSpec,
    name: &str,
    ext_id: Option<&str>,
    needs: Needs,
) -> Result<Vec<TargetVm>, Refusal> {
    let central = central.as_ref().map_err(Clone::clone)?;
    let ids = match ext_id {
        Some(ext_id) => vec![ext_id.to_owned()],
        None => central.find_vms_by_name(name).await.map_err(|error| prism(&error))?,
    };
    let mut vms = Vec::new();
    for id in ids {
        // Before the state: a task that ends in between shows in the state.
        let busy = match needs.tasks {
            true => Tri::from(central.has_open_task(&id).await.map_err(|error| prism(&error))?),
            false => Tri::Unknown,
        };
        let Some((vm, etag)) = central.get_vm(&id).await.map_err(|error| prism(&error))? else { continue };
        let backing = if needs.backing {
            element(context, cluster).await?.vm_disks(&id).await.map_err(|error| prism(&error))?
        } else {
            Vec::new()
        };
        vms.push(TargetVm { busy, ..target_vm(vm, etag, &backing) });
    }
    Ok(vms)
}

fn target_vm(vm: Vm, etag: String, backing: &[ElementDisk]) -> TargetVm {
    let mut disks: Vec<TargetVmDisk> = vm
        .disks
        .iter()
        .map(|disk| TargetVmDisk {
            ext_id: disk.ext_id.clone(),
            index: disk.index,
            size_bytes: disk.size_bytes,
            // Joined by device_uuid and cross-checked by index and size: a file name taken from the wrong disk would be written to.
            backing: backing
                .iter()
                .find(|found| {
                    found.device_uuid == disk.ext_id && found.index == disk.index && found.size_bytes == disk.size_bytes
                })
                .map(|found| (found.vmdisk_uuid.clone(), found.nfs_path.clone())),
        })
        .collect();
    disks.sort_by_key(|disk| disk.index);
    TargetVm {
        ext_id: vm.ext_id,
        name: vm.name,
        description: vm.description,
        on: match vm.power_state {
            PowerState::On => Tri::Yes,
            PowerState::Off => Tri::No,
            PowerState::Paused | PowerState::Undetermined => Tri::Unknown,
        },
        busy: Tri::Unknown,
        etag,
        disks,
        learned_ips: vm.nics.iter().flat_map(|nic| nic.ips.clone()).collect(),
    }
}

async fn published(
    context: &Context,
    migration: &VmMigration,
    setup: &Setup,
    plan: &PlanStatus,
) -> Result<Option<String>, Refusal> {
    if context.is_in_review(&migration.uid().unwrap_or_default()) {
        return Ok(None);
    }
    let publication = publication(context, migration, setup, plan).await?;
    let found = tokio::task::spawn_blocking(move || git::find(&publication)).await;
    let found = found.map_err(|error| Refusal::new("GitFailed", error.to_string()))?;
    found.map_err(|error| Refusal::new(error.reason(), error.to_string()))
}

/// What is to be in the repository.
pub async fn publication(
    context: &Context,
    migration: &VmMigration,
    setup: &Setup,
    plan: &PlanStatus,
) -> Result<Publication, Refusal> {
    let namespace = migration.namespace().unwrap_or_default();
    let repository = &setup.repository;
    let mut access = match &repository.credentials {
        None => Access::default(),
        Some(reference) => {
            let secret = context.secret(&namespace, &reference.name).await?;
            Access::from_keys(|key| secret.get(key)).map_err(|missing| secret.lacks(missing))?
        }
    };
    access.add_known_hosts(repository.known_hosts.as_deref());
    let review = |merge_request| Some(ReviewBranch { name: render::commit::review_branch(plan), merge_request });
    let uid = migration.uid().unwrap_or_default();
    Ok(Publication {
        url: repository.url.clone(),
        branch: repository.branch.clone(),
        path: plan.path.clone(),
        content: plan.terraform.clone(),
        message: render::commit::message(&namespace, &migration.name_any(), &uid, plan),
        author: repository.author.clone(),
        committer: repository.committer.clone().unwrap_or_else(|| repository.author.clone()),
        owner: uid,
        review: match repository.delivery {
            Delivery::Commit => None,
            Delivery::Branch => review(false),
            // By its API, GitLab also tells where that is.
            Delivery::MergeRequest => review(repository.apply.gitlab.is_none()),
        },
        access,
    })
}

/// The field manager that last wrote `spec.approved`: all that the object itself tells about who approved.
pub fn approved_by(migration: &VmMigration) -> Option<String> {
    let entries = migration.metadata.managed_fields.as_ref()?;
    let wrote = entries
        .iter()
        .rev()
        .find(|entry| entry.fields_v1.as_ref().is_some_and(|fields| fields.0.pointer("/f:spec/f:approved").is_some()));
    wrote?.manager.clone()
}
