//! Reads, only. What could not be read becomes a fact "unknown" with its reason, not an error.

use std::time::Duration;

use kube::api::ListParams;
use kube::{Api, ResourceExt};

use super::context::{Context, SecretText};
use super::{application, setup};
use crate::api::common::{Category, Tri};
use crate::api::nutanix_cluster::{GuestToolsPolicy, PrismEndpoint, SubnetByVlan, WhitelistPolicy};
use crate::api::terraform_repository::Delivery;
use crate::api::vm_migration::PlanStatus;
use crate::api::{BlockCopy, NutanixClusterSpec, VmMigration, VmMigrationStatus};
use crate::edge::git::{self, Publication, ReviewBranch};
use crate::edge::prism::{Access, Credentials, ElementDisk, PowerState, PrismCentral, PrismElement, PrismError, Vm};
use crate::flow::canary::MARKER_BYTES;
use crate::flow::migration::{
    CanarySeen, Fact, GuestToolsSeen, Needs, OtherUse, Refusal, Seen, Setup, TargetVm, TargetVmDisk, Whitelist,
    canary_to_be_read, guest_tools_are_needed, needs, whitelist_is_needed,
};
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
        whitelist: Fact::NotAsked,
        canary: Fact::NotAsked,
        guest_tools: Fact::NotAsked,
    };
    if let Ok(setup) = seen.setup.clone() {
        outside(context, migration, &status, &setup, &mut seen).await;
    }
    let ending = migration.metadata.deletion_timestamp.is_some() || migration.spec.finalize == Some(true);
    if whitelist_is_needed(&status, ending) {
        seen.whitelist = whitelist(context, migration, &status, &seen.setup).await.unwrap_or_else(Fact::Unknown);
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
            seen.placement = fact(placement(context, &central, &setup.cluster, &choices).await);
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
    if let Some((vm, disks)) = canary_to_be_read(status) {
        seen.canary = fact(canary(context, &setup.cluster, vm, &disks).await);
    }
    let wants_tools = setup.cluster.guest_tools != GuestToolsPolicy::None;
    if let (true, Some(target)) = (wants_tools && guest_tools_are_needed(&migration.spec, status), &status.target) {
        seen.guest_tools = fact(guest_tools(context, &setup.cluster, &target.ext_id).await);
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
    let endpoint = &cluster.prism_central;
    let access = access(context, endpoint).await?;
    let client = context.centrals.get(&endpoint.credentials.name, access, PrismCentral::new);
    client.map_err(|error| prism(&error))
}

async fn element(context: &Context, cluster: &NutanixClusterSpec) -> Result<PrismElement, Refusal> {
    let endpoint = &cluster.prism_element;
    let access = access(context, endpoint).await?;
    let client = context.elements.get(&endpoint.credentials.name, access, PrismElement::new);
    client.map_err(|error| prism(&error))
}

async fn access(context: &Context, endpoint: &PrismEndpoint) -> Result<Access, Refusal> {
    let secret: SecretText = context.secret(&context.namespace, &endpoint.credentials.name).await?;
    let credentials = match secret.get("apiKey") {
        Some(key) => Credentials::ApiKey(key),
        None => Credentials::Password { username: secret.require("username")?, password: secret.require("password")? },
    };
    Ok(Access { url: endpoint.url.clone(), credentials, ca_pem: secret.get("ca.crt") })
}

fn prism(error: &PrismError) -> Refusal {
    Refusal::new(error.reason(), error.to_string())
}

/// What the plan will refer to in Prism, by its identifiers.
async fn placement(
    context: &Context,
    central: &Result<PrismCentral, Refusal>,
    cluster: &NutanixClusterSpec,
    choices: &Choices,
) -> Result<Placement, Refusal> {
    let central = central.as_ref().map_err(Clone::clone)?;
    // Before anything is created that could never be copied to.
    let on_element = element(context, cluster).await?.storage_containers().await.map_err(|error| prism(&error))?;
    if !on_element.contains(&cluster.storage_container) {
        return Err(Refusal::new(
            "PlacementNotFound",
            format!(
                "Prism Element at {} knows no storage container named {}: check spec.prismElement and spec.storageContainer of the NutanixCluster",
                cluster.prism_element.url, cluster.storage_container
            ),
        ));
    }
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

fn missing(what: &str, name: &str) -> Refusal {
    Refusal::new("PlacementNotFound", format!("Prism Central knows no {what} named {name}: check the NutanixCluster"))
}

/// Identifiers of the AHV cluster and of the storage container.
async fn container(central: &PrismCentral, cluster: &NutanixClusterSpec) -> Result<(String, String), Refusal> {
    let cluster_ext_id = central.find_cluster(&cluster.cluster_name).await.map_err(|error| prism(&error))?;
    let cluster_ext_id = cluster_ext_id.ok_or_else(|| missing("cluster", &cluster.cluster_name))?;
    let found = central.find_container(&cluster.storage_container, &cluster_ext_id).await;
    let found = found.map_err(|error| prism(&error))?;
    Ok((cluster_ext_id, found.ok_or_else(|| missing("storage container", &cluster.storage_container))?))
}

/// Whom the storage container lets in, if that matters: then the other migrations that rely on it are looked at, too.
async fn whitelist(
    context: &Context,
    migration: &VmMigration,
    status: &VmMigrationStatus,
    setup: &Result<Setup, Refusal>,
) -> Result<Fact<Whitelist>, Refusal> {
    let access = status.target.as_ref().and_then(|target| target.access.as_ref());
    let cluster = match setup {
        Ok(setup) => setup.cluster.clone(),
        Err(_) => setup::cluster(context, migration).await?.spec,
    };
    let address = match (access, setup) {
        (Some(access), _) => Some(&access.address),
        (None, Ok(setup)) => setup.host.storage_address.as_ref(),
        (None, Err(_)) => None,
    };
    let Some(address) = address.filter(|_| cluster.whitelist != WhitelistPolicy::Ignore) else {
        return Ok(Fact::NotAsked);
    };
    let central = central(context, &cluster).await?;
    let container_ext_id = match access {
        Some(access) => access.container_ext_id.clone(),
        None => container(&central, &cluster).await?.1,
    };
    let found = central.get_container(&container_ext_id).await.map_err(|error| prism(&error))?;
    let (found, etag) = found.ok_or_else(|| missing("storage container", &container_ext_id))?;
    let entries = match found.inherits_whitelist {
        true => central.cluster_whitelist(&found.cluster_ext_id).await.map_err(|error| prism(&error))?,
        false => Some(found.whitelist),
    };
    let migrations = Api::<VmMigration>::all(context.client.clone()).list(&ListParams::default()).await;
    let migrations = migrations.map_err(|error| {
        Refusal::new("MigrationsUnreadable", format!("list VmMigrations of all namespaces: {error}"))
    })?;
    let others = migrations.iter().filter(|other| other.uid() != migration.uid()).filter_map(|other| {
        let access = other.status.as_ref()?.target.as_ref()?.access.as_ref()?;
        let same = access.address == *address && access.container_ext_id == container_ext_id;
        same.then(|| OtherUse { added_by_drover: access.added_by_drover, ended: access.ended_at.is_some() })
    });
    let others = others.collect();
    let (name, inherited) = (found.name, found.inherits_whitelist);
    Ok(Fact::Known(Whitelist { container_ext_id, name, inherited, entries, etag, others }))
}

/// The start of the target's disks: by Prism Central or, if that does not offer it, by Prism Element.
async fn canary(
    context: &Context,
    cluster: &NutanixClusterSpec,
    vm: &str,
    disks: &[&str],
) -> Result<CanarySeen, Refusal> {
    let central = central(context, cluster).await?;
    let central_says = match central.disk_starts(vm, disks, MARKER_BYTES).await {
        Ok(blocks) => return Ok(CanarySeen::Blocks(blocks)),
        Err(error) if error.is_not_offered() => error,
        Err(error) => return Err(prism(&error)),
    };
    match element(context, cluster).await?.disk_starts(vm, disks, MARKER_BYTES).await {
        Ok(blocks) => Ok(CanarySeen::Blocks(blocks)),
        Err(error) if error.is_not_offered() => Ok(CanarySeen::NotOffered(format!("{central_says}; {error}"))),
        Err(error) => Err(prism(&error)),
    }
}

async fn guest_tools(context: &Context, cluster: &NutanixClusterSpec, vm: &str) -> Result<GuestToolsSeen, Refusal> {
    let central = central(context, cluster).await?;
    let (tools, etag) = central.guest_tools(vm).await.map_err(|error| prism(&error))?;
    Ok(GuestToolsSeen { is_installed: tools.is_installed, is_iso_inserted: tools.is_iso_inserted, etag })
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
        None => git::Access::default(),
        Some(reference) => {
            let secret = context.secret(&namespace, &reference.name).await?;
            git::Access::from_keys(|key| secret.get(key)).map_err(|missing| secret.lacks(missing))?
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
