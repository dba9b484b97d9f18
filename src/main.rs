//! Command line: operator | host | crds.

use clap::{Parser, Subcommand};
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
}

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    match Drover::parse() {
        Drover::Host(Host::Relay(args)) => relay::run(args),
        Drover::Crds => {
            for crd in drover::api::crds() {
                println!("---\n{}", serde_saphyr::to_string(&crd)?);
            }
            Ok(())
        }
    }
}
