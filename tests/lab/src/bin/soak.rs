//! `make soak`: migrations with faults at random moments, for as long as you like. Exits with 1 if anything happened that must not.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use drover_lab::lab::{Lab, LabOptions};
use drover_lab::process;
use drover_lab::soak::{self, STORAGE_BYTES_PER_S, Tally};
use tokio::signal::unix::{SignalKind, signal};

/// Migrates guests in a lab on this machine while everything breaks.
#[derive(Parser)]
struct Args {
    /// When no further migration is begun. Absent = 10, or never if there is a number of migrations.
    #[arg(long)]
    minutes: Option<u64>,
    /// How many migrations of the reused guests are begun. Absent = as many as there is time for.
    #[arg(long)]
    migrations: Option<u32>,
    /// Which faults come when. Absent = another one each time.
    #[arg(long)]
    seed: Option<u64>,
    /// Guests that are migrated and rolled back over and over.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    guests: u32,
    /// Migrations of new guests, provisioned by Terraform.
    #[arg(long, default_value_t = 20)]
    complete: u32,
}

// More than there are lanes: `virsh` and the like keep a thread waiting.
#[tokio::main(worker_threads = 12)]
async fn main() -> ExitCode {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(|| jiff::Timestamp::now().as_millisecond().unsigned_abs() % 1_000_000);
    println!("seed {seed}");
    let minutes = args.minutes.or(if args.migrations.is_some() { None } else { Some(10) });
    let work = tokio::spawn(run(soak::Options {
        seed,
        limit: minutes.map_or(Duration::MAX, |minutes| Duration::from_secs(60 * minutes)),
        migrations: args.migrations.unwrap_or(u32::MAX),
        guests: args.guests,
        complete: args.complete,
    }));
    let code = tokio::select! {
        done = work => report(seed, &args, done.map_err(anyhow::Error::from).and_then(|done| done)),
        () = stopped() => {
            eprintln!("\nstopping: every process of the lab is ended and its directory removed");
            130
        }
    };
    process::end_all();
    std::process::exit(code)
}

async fn run(options: soak::Options) -> Result<Tally> {
    let dir = tempfile::Builder::new().prefix("soak").tempdir()?;
    let drover = std::env::current_exe()?.with_file_name("drover");
    let lab_options =
        LabOptions { storage_bytes_per_s: Some(STORAGE_BYTES_PER_S), start_hook: true, ..LabOptions::default() };
    let lab = Arc::new(Lab::start(dir.path(), &drover, lab_options).await?);
    soak::run(lab, options).await
}

fn report(seed: u64, args: &Args, outcome: Result<Tally>) -> i32 {
    let good = match outcome {
        Ok(tally) => {
            println!("\n{tally}");
            tally.violations().is_empty()
        }
        Err(error) => {
            println!("\nsoak: {error:#}");
            false
        }
    };
    let Args { minutes, migrations, guests, complete, .. } = args;
    let minutes = minutes.map(|minutes| format!(" MINUTES={minutes}")).unwrap_or_default();
    let migrations = migrations.map(|migrations| format!(" MIGRATIONS={migrations}")).unwrap_or_default();
    println!("to repeat: make soak SEED={seed}{minutes}{migrations} GUESTS={guests} COMPLETE={complete}");
    i32::from(!good)
}

async fn stopped() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
}
