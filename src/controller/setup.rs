//! Resolves the resources a migration refers to, and says in words what is missing.

use kube::{Api, ResourceExt};

use super::context::Context;
use crate::api::common::NameRef;
use crate::api::{LibvirtHost, NutanixCluster, TerraformRepository, VmMigration};
use crate::flow::migration::{Refusal, Setup};

/// Resolves the three references of a migration.
pub async fn resolve(context: &Context, migration: &VmMigration) -> Result<Setup, Refusal> {
    let namespace = migration.namespace().unwrap_or_default();
    let client = &context.client;
    let host = host(context, migration).await?;
    let cluster = cluster(context, migration).await?;
    let repositories =
        list::<TerraformRepository>(Api::namespaced(client.clone(), &namespace), "TerraformRepository").await?;
    let spec = &migration.spec;
    let repository =
        choose("TerraformRepository", "terraformRef", spec.terraform_ref.as_ref(), repositories, |_| true)?;
    Ok(Setup {
        host_name: host.name_any(),
        host: host.spec,
        cluster_name: cluster.name_any(),
        cluster: cluster.spec,
        repository: repository.spec,
        installation: context.installation.clone(),
    })
}

/// Resolves the hypervisor alone. Once the machine was found, its orders go to that one and no other.
pub async fn host(context: &Context, migration: &VmMigration) -> Result<LibvirtHost, Refusal> {
    let namespace = migration.namespace().unwrap_or_default();
    let hosts = list::<LibvirtHost>(Api::all(context.client.clone()), "LibvirtHost").await?;
    let found_on = migration.status.as_ref().and_then(|status| status.source.as_ref());
    let found_on = found_on.map(|source| NameRef { name: source.host.clone() });
    choose("LibvirtHost", "sourceRef", found_on.as_ref().or(migration.spec.source_ref.as_ref()), hosts, |host| {
        host.spec.allowed_namespaces.contains(&namespace)
    })
}

/// Resolves the cluster alone: what was changed there can be put back though the team's other objects are gone.
pub async fn cluster(context: &Context, migration: &VmMigration) -> Result<NutanixCluster, Refusal> {
    let namespace = migration.namespace().unwrap_or_default();
    let clusters = list::<NutanixCluster>(Api::all(context.client.clone()), "NutanixCluster").await?;
    choose("NutanixCluster", "targetRef", migration.spec.target_ref.as_ref(), clusters, |cluster| {
        cluster.spec.allowed_namespaces.contains(&namespace)
    })
}

async fn list<K>(api: Api<K>, kind: &str) -> Result<Vec<K>, Refusal>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let found = api.list(&kube::api::ListParams::default()).await;
    found
        .map(|list| list.items)
        .map_err(|error| Refusal::new("ReferenceUnreadable", format!("list {kind} objects: {error}")))
}

/// The named object if this namespace may use it, or the only one it may use. One that it may not use does not exist for it.
fn choose<K: ResourceExt>(
    kind: &str,
    field: &str,
    wanted: Option<&NameRef>,
    all: Vec<K>,
    allowed: impl Fn(&K) -> bool,
) -> Result<K, Refusal> {
    let mut usable: Vec<K> = all.into_iter().filter(|object| allowed(object)).collect();
    if let Some(wanted) = wanted {
        usable.retain(|object| object.name_any() == wanted.name);
    }
    match (usable.pop(), usable.is_empty(), wanted) {
        (Some(only), true, _) => Ok(only),
        (Some(_), false, _) => Err(Refusal::new(
            "AmbiguousReference",
            format!("this namespace may use several {kind} objects: say which in spec.{field}"),
        )),
        (None, _, Some(wanted)) => Err(Refusal::new(
            "ReferenceNotFound",
            format!(
                "there is no {kind} {} that this namespace may use: check spec.{field}, and the object's allowedNamespaces",
                wanted.name
            ),
        )),
        (None, _, None) => Err(Refusal::new(
            "ReferenceNotFound",
            format!(
                "there is no {kind} that this namespace may use: create one, or add this namespace to its allowedNamespaces"
            ),
        )),
    }
}
