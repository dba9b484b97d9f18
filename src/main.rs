//! Command line: operator | host | crds.

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Prints the custom resource definitions.
    Crds,
    /// The host-side job.
    #[cfg(feature = "host")]
    #[command(subcommand)]
    Host(Host),
}

#[cfg(feature = "host")]
#[derive(Subcommand)]
enum Host {
    /// Follows the orders for one migration.
    Driver(drover::host::driver::DriverArgs),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).with_writer(std::io::stderr).init();
    match Cli::parse().command {
        Command::Crds => {
            for crd in drover::api::crds() {
                println!("---\n{}", serde_saphyr::to_string(&crd)?);
            }
        }
        #[cfg(feature = "host")]
        Command::Host(Host::Driver(args)) => drover::host::driver::run(args).await?,
    }
    Ok(())
}
