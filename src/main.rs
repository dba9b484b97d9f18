//! Command line: `operator | host | terraform | evidence | doctor | crds`. Parses, sets up logging, maps errors to an exit code; nothing else.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::runtime::Runtime;

/// Moves running VMs from libvirt/KVM to Nutanix AHV with the outage of one reboot.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the controller.
    Operator(drover::controller::OperatorArgs),
    /// Run a part of the host side.
    #[cfg(feature = "host")]
    #[command(subcommand)]
    Host(drover::host::HostCommand),
    /// Plan or apply a team's repository, in a Job of its namespace.
    #[command(subcommand)]
    Terraform(drover::terraform::TerraformCommand),
    /// Print the evidence of a migration as JSON: approval, proofs, orders, times.
    Evidence(drover::controller::EvidenceArgs),
    /// Show what migrations that are gone have left in the cluster. Exit code 0: nothing; 1: something; 2: it is not known.
    Doctor(drover::controller::DoctorArgs),
    /// Print the custom resource definitions as YAML.
    Crds,
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("drover: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Operator(args) => Runtime::new()?.block_on(drover::controller::run(args))?,
        Command::Terraform(command) => Runtime::new()?.block_on(drover::terraform::run(command))?,
        Command::Evidence(args) => Runtime::new()?.block_on(drover::controller::print_evidence(args))?,
        Command::Doctor(args) => return Ok(Runtime::new()?.block_on(drover::controller::doctor(args))),
        #[cfg(feature = "host")]
        Command::Host(command) => return drover::host::run(command),
        Command::Crds => {
            for crd in drover::api::crds() {
                print!("---\n{}", serde_saphyr::to_string(&crd)?);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
