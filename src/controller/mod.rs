//! LOOP: observe, decide, record, act; wiring.

mod act;
mod application;
mod context;
mod doctor;
mod evidence;
mod observe;
mod reconcile;
mod setup;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::Api;
use kube::core::DeserializeGuard;
use kube::runtime::controller::{Config, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use tracing::{debug, info, warn};

use context::Context;
pub use context::Error;
pub use doctor::{DoctorArgs, run as doctor};
pub use evidence::{EvidenceArgs, print as print_evidence};

use crate::api::{BlockCopy, VmMigration};
use crate::render::job::JobSettings;

/// How many migrations are reconciled at the same time.
const CONCURRENCY: u16 = 16;

/// `drover operator`: the controller.
#[derive(Clone, Debug, clap::Args)]
pub struct OperatorArgs {
    /// Namespace of the operator: BlockCopies, host-side Jobs and Prism credentials live here.
    #[arg(long, env = "DROVER_NAMESPACE", default_value = "drover-system")]
    pub namespace: String,
    /// Image of the host-side Job.
    #[arg(long, env = "DROVER_HOST_IMAGE", default_value = "drover:latest")]
    pub host_image: String,
    /// Service account of the host-side Job.
    #[arg(long, env = "DROVER_HOST_SERVICE_ACCOUNT", default_value = "drover-host")]
    pub host_service_account: String,
}

/// Runs the controller until it is told to stop.
pub async fn run(args: OperatorArgs) -> anyhow::Result<()> {
    let client = kube::Client::try_default().await?;
    let settings = JobSettings { image: args.host_image, service_account: args.host_service_account };
    let context = Arc::new(Context::new(client.clone(), args.namespace.clone(), settings).await?);
    info!(namespace = args.namespace, installation = context.installation, "controller starts");
    let migrations: Api<DeserializeGuard<VmMigration>> = Api::all(client.clone());
    let copies: Api<DeserializeGuard<BlockCopy>> = Api::namespaced(client, &args.namespace);
    Controller::new(migrations, watcher::Config::default())
        .with_config(Config::default().concurrency(CONCURRENCY))
        .watches(copies, watcher::Config::default(), |copy| {
            copy.0.ok().map(|copy| ObjectRef::new(&copy.spec.claim.name).within(&copy.spec.claim.namespace))
        })
        .shutdown_on_signal()
        .run(reconcile::reconcile, reconcile::on_error, context)
        .for_each(|turn| async move {
            match turn {
                Ok((object, _)) => debug!(%object, "reconciled"),
                // The object was deleted while it waited in the queue.
                Err(kube::runtime::controller::Error::ObjectNotFound(object)) => debug!(%object, "gone"),
                Err(error) => warn!(%error, "turn failed"),
            }
        })
        .await;
    Ok(())
}

/// Waits between tries that fail: doubled each time, up to this.
const MAX_BACKOFF: Duration = Duration::from_secs(60);
