//! Command line: operator | host | crds.

use clap::{Parser, Subcommand};
use drover::host::driver::{self, DriverArgs};
use drover::host::relay::{self, RelayArgs};

#[derive(Parser)]
#[command(name = "drover", version, about)]
enum Drover {
    /// Run on a hypervisor.
    #[command(subcommand)]
    Host(Host),
    /// Print the custom resource definitions.
    Crds,
}

#[derive(Subcommand)]
enum Host {
    /// The process between QEMU and the target's storage.
    Relay(RelayArgs),
    /// The process that follows the orders for one migration.
    Driver(DriverArgs),
}

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    match Drover::parse() {
        Drover::Host(Host::Relay(args)) => relay::run(args),
        Drover::Host(Host::Driver(args)) => Ok(tokio::runtime::Runtime::new()?.block_on(driver::run(args))?),
        Drover::Crds => {
            for crd in drover::api::crds() {
                println!("---\n{}", serde_saphyr::to_string(&crd)?);
            }
            Ok(())
        }
    }
}
