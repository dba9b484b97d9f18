//! `make soak`: machines move and come back in the lab for as long as one likes, while things break at random; anything that must never
//! happen ends it with exit code 1.

use std::process::ExitCode;
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Parser;
use drover_lab::process;
use drover_lab::soak::{Soak, Tally};
use tokio::signal::unix::{SignalKind, signal};

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Moves machines there and back in a lab while things break.
#[derive(Clone, Parser)]
struct Args {
    /// How long rounds are begun.
    #[arg(long, default_value_t = 30)]
    minutes: u64,
    /// Draws the same faults again; without it another seed is taken and printed.
    #[arg(long)]
    seed: Option<u64>,
    /// Machines that move side by side.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    guests: u8,
}

#[tokio::main]
async fn main() -> ExitCode {
    LazyLock::force(&START);
    let args = Args::parse();
    let seed = args
        .seed
        .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs() % 1_000_000));
    let repeat = format!("make soak MINUTES={} SEED={seed} GUESTS={}", args.minutes, args.guests);
    println!("seed {seed}; again: {repeat}");
    let work = tokio::spawn(soak(args, seed));
    let stopped = async {
        let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return std::future::pending().await;
        };
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
    };
    let code = tokio::select! {
        done = work => match done {
            Ok(Ok(tally)) => {
                println!("\nseed {seed}\n{tally}");
                u8::from(!tally.violations.is_empty())
            }
            Ok(Err(error)) => {
                eprintln!("soak: {error:#}");
                1
            }
            Err(panic) => {
                eprintln!("soak: {panic}");
                1
            }
        },
        () = stopped => {
            eprintln!("\nstopping: every process of the lab is ended and its directory removed");
            130
        }
    };
    if code == 1 {
        println!("again: {repeat}");
    }
    // A watch or a repair may still be at work: it is not waited for.
    process::end_all();
    std::process::exit(code.into())
}

async fn soak(args: Args, seed: u64) -> Result<Tally> {
    let dir = tempfile::Builder::new().prefix("drover-soak").tempdir()?;
    let drover = std::env::current_exe()?.with_file_name("drover");
    let soak = Soak { duration: Duration::from_secs(60 * args.minutes), seed, guests: args.guests, say };
    soak.run(dir.path(), &drover).await
}

fn say(guest: &str, text: &str) {
    println!("{:7.1} s  {guest}  {text}", START.elapsed().as_secs_f64());
}
