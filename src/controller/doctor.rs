//! `drover doctor`: shows what migrations have left in the cluster. It only looks, with the caller's own rights.

use std::process::ExitCode;

use anyhow::Context;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, ObjectMeta};
use kube::{Api, Client};
use serde::de::DeserializeOwned;

use crate::api::{BlockCopy, MIGRATION_LABEL, VmMigration};
use crate::flow::doctor::{ClusterSeen, Report, cluster, living_uids, write_living};

/// Command line of `drover doctor`.
#[derive(Clone, Debug, clap::Args)]
pub struct DoctorArgs {
    /// Look for BlockCopies, Jobs and pods in this namespace only (migrations count wherever they are). Absent: in all of them.
    #[arg(long, short)]
    pub namespace: Option<String>,
    /// Print the uids of the migrations that live, for `drover host doctor --living`, and nothing else.
    #[arg(long)]
    pub living: bool,
    /// Print JSON.
    #[arg(long, short, value_parser = ["json"], conflicts_with = "living")]
    pub output: Option<String>,
}

/// Looks, and prints what was left behind.
pub async fn run(args: DoctorArgs) -> ExitCode {
    let client = match Client::try_default().await.context("find the cluster") {
        Ok(client) => client,
        Err(error) => return could_not_look(&error),
    };
    if args.living {
        return match migrations(&client).await {
            Ok(migrations) => {
                print!("{}", write_living(&living_uids(&migrations)));
                ExitCode::SUCCESS
            }
            Err(error) => could_not_look(&error),
        };
    }
    let report = match seen(client, args.namespace.as_deref()).await {
        Ok(seen) => Report { leftovers: cluster(&seen, Timestamp::now()), unknown: Vec::new() },
        // What is nobody's shows only when everything is listed.
        Err(error) => Report { leftovers: Vec::new(), unknown: vec![format!("{error:#}")] },
    };
    print!("{}", report.text(args.output.is_some()));
    ExitCode::from(report.exit_code())
}

fn could_not_look(error: &anyhow::Error) -> ExitCode {
    eprintln!("drover: {error:#}");
    ExitCode::from(2)
}

async fn seen(client: Client, namespace: Option<&str>) -> anyhow::Result<ClusterSeen> {
    let copies: Api<BlockCopy> = api(&client, namespace);
    // Whoever owns is listed after what it owns.
    Ok(ClusterSeen {
        pods: labelled(api::<Pod>(&client, namespace)).await.context("list pods")?,
        jobs: labelled(api::<Job>(&client, namespace)).await.context("list Jobs")?,
        copies: copies.list(&ListParams::default()).await.context("list BlockCopies")?.items,
        migrations: migrations(&client).await?,
    })
}

async fn migrations(client: &Client) -> anyhow::Result<Vec<VmMigration>> {
    let all: Api<VmMigration> = Api::all(client.clone());
    Ok(all.list(&ListParams::default()).await.context("list VmMigrations in all namespaces")?.items)
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

async fn labelled<K>(api: Api<K>) -> kube::Result<Vec<ObjectMeta>>
where
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    let listed = api.list_metadata(&ListParams::default().labels(MIGRATION_LABEL)).await?;
    Ok(listed.items.into_iter().map(|object| object.metadata).collect())
}
