//! Reads, only. What could not be read becomes a fact "unknown" with its reason, not an error.

use std::time::Duration;

use kube::{Api, ResourceExt};

use super::context::{Context, SecretText};
use super::setup;
use crate::api::common::Tri;
use crate::api::nutanix_cluster::PrismEndpoint;
use crate::api::vm_migration::PlanStatus;
use crate::api::{BlockCopy, NutanixClusterSpec, VmMigration, VmMigrationStatus};
use crate::edge::git::{self, Publication};
use crate::edge::prism::{Access, Credentials, ElementDisk, PowerState, PrismCentral, PrismElement, Vm};
use crate::flow::migration::{Fact, Needs, Placement, Refusal, Seen, Setup, TargetVm, TargetVmDisk, needs};
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
            seen.placement = fact(placement(context, &central, &setup.cluster).await);
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
        seen.published = fact(published(context, migration, setup, plan).await);
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

fn prism(error: &crate::edge::prism::PrismError) -> Refusal {
    Refusal::new(error.reason(), error.to_string())
}

async fn placement(
    context: &Context,
    central: &Result<PrismCentral, Refusal>,
    cluster: &NutanixClusterSpec,
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
    let missing = |what: &str, name: &str| {
        Refusal::new(
            "PlacementNotFound",
            format!("Prism Central knows no {what} named {name}: check the NutanixCluster"),
        )
    };
    let cluster_ext_id = central.find_cluster(&cluster.cluster_name).await.map_err(|error| prism(&error))?;
    let cluster_ext_id = cluster_ext_id.ok_or_else(|| missing("cluster", &cluster.cluster_name))?;
    let container =
        central.find_container(&cluster.storage_container, &cluster_ext_id).await.map_err(|error| prism(&error))?;
    let container_ext_id = container.ok_or_else(|| missing("storage container", &cluster.storage_container))?;
    let mut subnet_ext_ids = Vec::new();
    for subnet in &cluster.subnets {
        let found = central.find_subnet(&subnet.subnet).await.map_err(|error| prism(&error))?;
        subnet_ext_ids.push((subnet.vlan, found.ok_or_else(|| missing("subnet", &subnet.subnet))?));
    }
    Ok(Placement { cluster_ext_id, container_ext_id, subnet_ext_ids })
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
    let credentials = match &repository.credentials {
        None => None,
        Some(reference) => {
            let secret = context.secret(&namespace, &reference.name).await?;
            Some(git::Credentials { username: secret.require("username")?, password: secret.require("password")? })
        }
    };
    Ok(Publication {
        url: repository.url.clone(),
        branch: repository.branch.clone(),
        path: plan.path.clone(),
        content: plan.terraform.clone(),
        message: render::commit::message(&namespace, &migration.name_any(), plan),
        author_name: repository.author.name.clone(),
        author_email: repository.author.email.clone(),
        owner: migration.uid().unwrap_or_default(),
        credentials,
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
