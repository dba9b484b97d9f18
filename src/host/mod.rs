//! LOOP: the host-side job. Two processes: the relay, which holds the writes, and the driver, which talks to libvirt.

pub mod doctor;
pub mod driver;
pub mod hook;
pub mod relay;
pub mod verify;

use std::process::ExitCode;

/// `drover host`: a part of the host side.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum HostCommand {
    /// The process between QEMU and the target's storage.
    Relay(relay::RelayArgs),
    /// The process that follows the orders for one migration.
    Driver(driver::DriverArgs),
    /// Show what migrations that are gone have left on this hypervisor. Exit code 0: nothing; 1: something; 2: it is not known.
    Doctor(doctor::DoctorArgs),
    /// Install a libvirt hook that refuses to start a domain which was moved away.
    InstallHook(hook::HookArgs),
}

/// Runs the part until it is done or told to stop.
pub fn run(command: HostCommand) -> anyhow::Result<ExitCode> {
    match command {
        // The relay starts its own processes and threads: it must come first in its process.
        HostCommand::Relay(args) => relay::run(args)?,
        HostCommand::Driver(args) => tokio::runtime::Runtime::new()?.block_on(driver::run(args))?,
        HostCommand::Doctor(args) => return Ok(tokio::runtime::Runtime::new()?.block_on(doctor::run(args))),
        HostCommand::InstallHook(args) => println!("{}", hook::install(&args)?),
    }
    Ok(ExitCode::SUCCESS)
}
