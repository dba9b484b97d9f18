//! Carries out effects. Each may be carried out twice; what it achieved is seen in the next turn.

use k8s_openapi::api::batch::v1::Job;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, PropagationPolicy};
use kube::{Api, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::context::{Context, Error};
use super::{application, observe, setup};
use crate::api::block_copy::BlockCopySpec;
use crate::api::vm_migration::{PlanStatus, TargetOrder};
use crate::api::{BlockCopy, MIGRATION_FINALIZER, MIGRATION_LABEL, NutanixClusterSpec, VmMigration};
use crate::edge::prism::{PrismCentral, PrismError, TaskState};
use crate::edge::{fail_point, git};
use crate::flow::migration::{Effect, Fact, PowerOnPermit, Refusal, Seen};
use crate::render;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Carries out the effects in order; the first failure ends the turn.
pub async fn act(context: &Context, migration: &VmMigration, seen: &Seen, effects: Vec<Effect>) -> Result<(), Error> {
    for effect in effects {
        let point = effect.name();
        fail_point::before(point);
        let (name, result) = match effect {
            Effect::AddFinalizer => ("add the finalizer", finalizer(context, migration, true).await),
            Effect::RemoveFinalizer => ("remove the finalizer", finalizer(context, migration, false).await),
            Effect::OrderCopy(spec) => ("order the BlockCopy", order_copy(context, migration, seen, *spec).await),
            Effect::EnsureJob => ("ensure the host-side Job", ensure_job(context, migration, seen).await),
            Effect::DeleteCopy => ("delete the BlockCopy", delete_copy(context, migration).await),
            Effect::Publish(plan) => ("publish the Terraform file", publish(context, migration, seen, &plan).await),
            Effect::Plan { round } => ("have Terraform plan", plan(context, migration, seen, round).await),
            Effect::Apply { handle } => ("apply Terraform's plan", apply(context, migration, seen, &handle).await),
            Effect::PowerOn { permit, ext_id, order } => {
                ("power the target on", power_on(context, migration, seen, permit, &ext_id, &order).await)
            }
            Effect::ShutDownTarget { ext_id, order } => {
                let ordered = async {
                    let prism = prism(context, migration, seen).await?;
                    carried_out(&prism, prism.shut_down(&ext_id, &order.etag, &order.request_id).await).await
                };
                ("ask the target's guest to power off", ordered.await)
            }
            Effect::PowerOffTarget { ext_id, order } => {
                let ordered = async {
                    let prism = prism(context, migration, seen).await?;
                    carried_out(&prism, prism.power_off(&ext_id, &order.etag, &order.request_id).await).await
                };
                ("power the target off", ordered.await)
            }
            Effect::DescribeTarget { ext_id, order, description } => {
                let ordered = async {
                    let prism = prism(context, migration, seen).await?;
                    let task = prism.describe(&ext_id, &description, &order.etag, &order.request_id).await;
                    carried_out(&prism, task).await
                };
                ("change the target's description", ordered.await)
            }
            Effect::Whitelist { container_ext_id, address, wanted, order } => {
                let ordered = whitelist(context, migration, seen, &container_ext_id, &address, wanted, &order);
                ("change the storage container's list", ordered.await)
            }
            Effect::GuestTools { ext_id, install, order } => {
                let ordered = guest_tools(context, migration, seen, &ext_id, install, &order);
                ("order the guest tools", ordered.await)
            }
        };
        result.map_err(|source| Error::Act { effect: name, source })?;
        fail_point::after(point);
    }
    Ok(())
}

async fn finalizer(context: &Context, migration: &VmMigration, wanted: bool) -> Result<(), Failure> {
    let api: Api<VmMigration> = Api::namespaced(context.client.clone(), &migration.namespace().unwrap_or_default());
    let mut now = migration.clone();
    loop {
        let mut finalizers: Vec<String> = now.finalizers().to_vec();
        finalizers.retain(|finalizer| finalizer != MIGRATION_FINALIZER);
        if wanted {
            finalizers.push(MIGRATION_FINALIZER.into());
        }
        // With the version that was read: a finalizer that someone added meanwhile is not dropped.
        let patch = json!({"metadata": {"finalizers": finalizers, "resourceVersion": now.resource_version()}});
        match api.patch(&now.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
            // In a deletion others take their finalizers off at the same time. The BlockCopy is gone by now, and a new turn would begin
            // with a new one.
            Err(kube::Error::Api(status)) if status.is_conflict() && !wanted => {}
            other => return or_gone(other.map(drop)),
        }
        match api.get_opt(&now.name_any()).await? {
            Some(fresh) if fresh.uid() == migration.uid() => now = fresh,
            Some(_) | None => return Ok(()),
        }
    }
}

fn copies(context: &Context) -> Api<BlockCopy> {
    Api::namespaced(context.client.clone(), &context.namespace)
}

/// Changes the `BlockCopy` only if it is still the one that was seen: an order of a controller that was paused is refused.
async fn order_copy(
    context: &Context,
    migration: &VmMigration,
    seen: &Seen,
    spec: BlockCopySpec,
) -> Result<(), Failure> {
    let Fact::Known(known) = &seen.copy else { return Ok(()) };
    match known {
        Some(copy) => {
            let api = copies(context);
            let mut changed = BlockCopy { spec, ..copy.clone() };
            // The host side reports all the time, and each report is a new version. The order is fenced by the spec that it replaces.
            while let Err(error) = api.replace(&changed.name_any(), &PostParams::default(), &changed).await {
                let is_conflict = matches!(&error, kube::Error::Api(status) if status.is_conflict());
                let now = api.get(&copy.name_any()).await?;
                if !is_conflict || now.spec != copy.spec || now.metadata.uid != copy.metadata.uid {
                    return Err(error.into());
                }
                changed = BlockCopy { spec: changed.spec, ..now };
            }
        }
        None => {
            let mut copy = BlockCopy::new(&observe::copy_name(migration), spec);
            let label = (MIGRATION_LABEL.to_owned(), migration.uid().unwrap_or_default());
            // What it reports is evidence: one that somebody deletes stays and works on until its migration has ended.
            let finalizers = Some(vec![MIGRATION_FINALIZER.to_owned()]);
            copy.metadata = ObjectMeta { labels: Some([label].into()), finalizers, ..copy.metadata };
            copies(context).create(&PostParams::default(), &copy).await?;
        }
    }
    Ok(())
}

async fn ensure_job(context: &Context, migration: &VmMigration, seen: &Seen) -> Result<(), Failure> {
    // It needs no more than the hypervisor: a machine can be given back though its team's other objects are gone.
    let host = match &seen.setup {
        Ok(setup) => setup.host.clone(),
        Err(_) => setup::host(context, migration).await.map_err(|refusal| refused(&refusal))?.spec,
    };
    let name = observe::copy_name(migration);
    let jobs: Api<Job> = Api::namespaced(context.client.clone(), &context.namespace);
    if let Some(job) = jobs.get_opt(&name).await? {
        if ended(&job) && job.metadata.deletion_timestamp.is_none() {
            delete(&jobs, &name).await?;
        }
        return Ok(());
    }
    let Some(copy) = copies(context).get_opt(&name).await? else { return Ok(()) };
    let job = render::job::job(&copy, &host, &context.jobs);
    match jobs.create(&PostParams::default(), &job).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => {}
        other => drop(other?),
    }
    // A controller that stood still before it created the Job must not leave one that nobody deletes any more.
    match copies(context).get_opt(&name).await? {
        Some(_) => Ok(()),
        None => delete(&jobs, &name).await,
    }
}

/// A Job ends with the condition Complete or Failed; kube's own helper knows only the first.
fn ended(job: &Job) -> bool {
    let conditions = job.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions
        .iter()
        .any(|condition| condition.status == "True" && matches!(condition.type_.as_str(), "Complete" | "Failed"))
}

/// The Job goes first: without its BlockCopy nobody would know of it.
async fn delete_copy(context: &Context, migration: &VmMigration) -> Result<(), Failure> {
    let (api, name) = (copies(context), observe::copy_name(migration));
    delete(&Api::<Job>::namespaced(context.client.clone(), &context.namespace), &name).await?;
    delete(&api, &name).await?;
    let without_finalizers = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    or_gone(api.patch(&name, &PatchParams::default(), &without_finalizers).await.map(drop))
}

/// Deletes an object and, without waiting for it, what it owns; no error if it is gone.
async fn delete<K>(api: &Api<K>, name: &str) -> Result<(), Failure>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let parameters =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
    or_gone(api.delete(name, &parameters).await.map(drop))
}

fn or_gone(result: kube::Result<()>) -> Result<(), Failure> {
    match result {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        other => Ok(other?),
    }
}

async fn publish(context: &Context, migration: &VmMigration, seen: &Seen, plan: &PlanStatus) -> Result<(), Failure> {
    let uid = migration.uid().unwrap_or_default();
    if context.is_in_review(&uid) {
        return Ok(());
    }
    let setup = seen.setup.as_ref().map_err(refused)?;
    let publication =
        observe::publication(context, migration, setup, plan).await.map_err(|refusal| refused(&refusal))?;
    let git::Published { commit, branch, changed } =
        tokio::task::spawn_blocking(move || git::publish(&publication)).await??;
    if branch != setup.repository.branch {
        let opened = application::merge_request(context, migration, &setup.repository, &branch, plan).await;
        context.remember_review(&uid, opened.map_err(|refusal| refused(&refusal))?);
    }
    tracing::info!(migration = %migration.name_any(), commit, branch, changed, path = plan.path, "published");
    Ok(())
}

async fn plan(context: &Context, migration: &VmMigration, seen: &Seen, round: u32) -> Result<(), Failure> {
    let setup = seen.setup.as_ref().map_err(refused)?;
    let planned = application::plan(context, migration, &setup.repository, round).await;
    planned.map_err(|refusal| refused(&refusal))
}

async fn apply(context: &Context, migration: &VmMigration, seen: &Seen, handle: &str) -> Result<(), Failure> {
    let setup = seen.setup.as_ref().map_err(refused)?;
    let applied = application::apply(context, migration, &setup.repository, handle).await;
    applied.map_err(|refusal| refused(&refusal))
}

async fn power_on(
    context: &Context,
    migration: &VmMigration,
    seen: &Seen,
    _proven: PowerOnPermit,
    ext_id: &str,
    order: &TargetOrder,
) -> Result<(), Failure> {
    let prism = prism(context, migration, seen).await?;
    carried_out(&prism, prism.power_on(ext_id, &order.etag, &order.request_id).await).await
}

async fn whitelist(
    context: &Context,
    migration: &VmMigration,
    seen: &Seen,
    container_ext_id: &str,
    address: &str,
    wanted: bool,
    order: &TargetOrder,
) -> Result<(), Failure> {
    let address = address.parse()?;
    let prism = prism(context, migration, seen).await?;
    let task = prism.set_whitelisted(container_ext_id, address, wanted, &order.etag, &order.request_id).await;
    carried_out(&prism, task).await
}

async fn guest_tools(
    context: &Context,
    migration: &VmMigration,
    seen: &Seen,
    ext_id: &str,
    install: bool,
    order: &TargetOrder,
) -> Result<(), Failure> {
    let TargetOrder { request_id, etag, .. } = order;
    let prism = prism(context, migration, seen).await?;
    if !install {
        return carried_out(&prism, prism.mount_guest_tools(ext_id, etag, request_id).await).await;
    }
    let secret = cluster(context, migration, seen).await?.guest_tools_credentials;
    let secret = secret.ok_or("the NutanixCluster names no guestToolsCredentials")?;
    let secret = context.secret(&context.namespace, &secret.name).await.map_err(|refusal| refused(&refusal))?;
    let value = |key: &str| secret.require(key).map_err(|refusal| refused(&refusal));
    let (username, password) = (value("username")?, value("password")?);
    carried_out(&prism, prism.install_guest_tools(ext_id, &username, &password, etag, request_id).await).await
}

/// What was changed at a cluster can be put back though the team's other objects are gone.
async fn cluster(context: &Context, migration: &VmMigration, seen: &Seen) -> Result<NutanixClusterSpec, Failure> {
    match &seen.setup {
        Ok(setup) => Ok(setup.cluster.clone()),
        Err(_) => Ok(setup::cluster(context, migration).await.map_err(|refusal| refused(&refusal))?.spec),
    }
}

async fn prism(context: &Context, migration: &VmMigration, seen: &Seen) -> Result<PrismCentral, Failure> {
    let cluster = cluster(context, migration, seen).await?;
    observe::central(context, &cluster).await.map_err(|refusal| refused(&refusal))
}

/// Tells at once if the task of an order has failed. One that is not carried out yet is seen in a later turn.
async fn carried_out(prism: &PrismCentral, task: Result<String, PrismError>) -> Result<(), Failure> {
    match prism.task(&task?).await? {
        TaskState::Failed { message } => Err(format!("Prism did not carry it out: {message}").into()),
        TaskState::Open | TaskState::Succeeded => Ok(()),
    }
}

fn refused(refusal: &Refusal) -> Failure {
    format!("{}: {}", refusal.reason, refusal.message).into()
}
