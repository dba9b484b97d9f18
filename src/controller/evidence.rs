//! `drover evidence`: prints the evidence of one migration.

use anyhow::Context;
use kube::Api;

use crate::api::VmMigration;
use crate::flow::migration::evidence;

/// Command line of `drover evidence`.
#[derive(Clone, Debug, clap::Args)]
pub struct EvidenceArgs {
    /// Name of the VmMigration.
    pub name: String,
    /// Its namespace.
    #[arg(long, short, default_value = "default")]
    pub namespace: String,
}

/// Reads the migration with the caller's own rights and prints its evidence as JSON.
pub async fn print(args: EvidenceArgs) -> anyhow::Result<()> {
    let client = kube::Client::try_default().await?;
    let migrations: Api<VmMigration> = Api::namespaced(client, &args.namespace);
    let migration = migrations.get(&args.name).await;
    let migration = migration.with_context(|| format!("read VmMigration {}/{}", args.namespace, args.name))?;
    println!("{:#}", evidence(&migration));
    Ok(())
}
