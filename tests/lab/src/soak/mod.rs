//! The soak: machines move and come back for as long as one likes, while things break at random. What must never happen is counted.

mod fault;
mod leftovers;
mod random;
mod round;
mod tally;
mod watch;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::guest::Load;
use crate::lab::{Lab, LabOptions};
use crate::libvirt::{Domain, GuestSpec};
use random::Random;
use round::{Rounds, Stuck};
use watch::Seen;

pub use tally::Tally;

const MIB: u64 = 1 << 20;
/// So slow that a copy lasts long enough to be broken.
const STORAGE_BYTES_PER_S: u64 = 8 * MIB;
/// What a guest may add to the stated bound by itself: an emulated CPU that shares a busy machine.
const NOISE_MILLIS: u64 = 2000;
/// How long the host side may take to clean up after the last migration is gone.
const CLEAN_UP: Duration = Duration::from_secs(60);

/// What to soak.
#[derive(Clone, Debug)]
pub struct Soak {
    pub duration: Duration,
    pub seed: u64,
    pub guests: u8,
    /// Told what happens: the guest, and what.
    pub say: fn(&str, &str),
}

impl Soak {
    /// Soaks in a lab of its own in `dir`.
    pub async fn run(&self, dir: &Path, drover: &Path) -> Result<Tally> {
        let options = LabOptions { storage_bytes_per_s: Some(STORAGE_BYTES_PER_S), ..LabOptions::default() };
        let bound = u64::from(options.max_guest_stall_millis) + NOISE_MILLIS;
        let lab = Arc::new(Lab::start(dir, drover, options).await?);
        let sources = (1..=self.guests).map(|number| guest(&lab, number)).collect::<Result<Vec<Domain>>>()?;
        let start = Instant::now();
        let mut running = Vec::new();
        for (number, source) in (1..).zip(&sources) {
            let seen = watch::watch(&lab, source, start);
            let rounds = Rounds::new(lab.clone(), source.clone(), Random::part(self.seed, number), self.say);
            running.push((tokio::spawn(soak(rounds, seen.clone(), start + self.duration)), seen));
        }
        let mut all = Tally { stall_bound_millis: bound, ..Tally::default() };
        for (task, seen) in running {
            let mut tally = task.await.context("a guest's rounds ended in a panic")?;
            seen.stop();
            take_in(&mut tally, &seen, bound);
            all.add(tally);
        }
        self.clean_up(&lab, &sources, &mut all).await?;
        Ok(all)
    }

    /// Deletes the migrations and looks at what stays behind.
    async fn clean_up(&self, lab: &Lab, sources: &[Domain], tally: &mut Tally) -> Result<()> {
        for source in sources {
            (self.say)(&source.name, "deleting the migration");
            if let Err(error) = lab.delete(&source.name).await {
                tally.violations.push(format!("{error:#}"));
            }
        }
        let start = Instant::now();
        let left = loop {
            let left = leftovers::leftovers(lab, sources).await?;
            if left.is_empty() || start.elapsed() > CLEAN_UP {
                break left;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        };
        tally.leftovers = left.len() as u64;
        tally.inert_files = leftovers::inert(lab) as u64;
        tally.violations.extend(left.into_iter().map(|what| format!("left behind: {what}")));
        Ok(())
    }
}

/// A small machine with a name and a network card of its own.
fn guest(lab: &Lab, number: u8) -> Result<Domain> {
    let spec = GuestSpec {
        name: format!("web{number:02}"),
        disks: vec![64 * MIB],
        ballast_bytes: 24 * MIB,
        mac: Some(format!("52:54:00:0a:01:{number:02x}")),
        load: Load::default(),
        ..GuestSpec::default()
    };
    lab.hypervisor.set_load(&spec.name, spec.load);
    let source = lab.libvirt.define(&spec)?;
    source.start_and_write(20)?;
    Ok(source)
}

/// Rounds until the time is over; the first that is stuck is the last, so that it can be looked at.
async fn soak(mut rounds: Rounds, seen: Arc<Seen>, until: Instant) -> Tally {
    if let Err(error) = rounds.lab.migrate(&rounds.source.name).await {
        rounds.tally.violations.push(format!("{error:#}"));
        return rounds.tally;
    }
    for number in 1.. {
        if Instant::now() >= until {
            break;
        }
        seen.round.store(number, Ordering::SeqCst);
        if let Err(Stuck(why)) = rounds.round(number).await {
            println!("{why}\n{}", rounds.lab.describe(&rounds.source.name).await);
            rounds.tally.stuck += 1;
            rounds.tally.violations.push(why);
            break;
        }
    }
    rounds.tally
}

/// Adds what the watch saw to what the rounds counted.
fn take_in(tally: &mut Tally, seen: &Seen, bound: u64) {
    let ledger = seen.ledger();
    tally.acknowledged = ledger.acknowledged;
    tally.source_boots = ledger.checked_boots;
    tally.lost += ledger.lost;
    tally.double_runs = ledger.double_runs.len() as u64;
    tally.looks = (seen.source_looks.load(Ordering::SeqCst), seen.target_looks.load(Ordering::SeqCst));
    if tally.migrations > 0 && (tally.looks.0 == 0 || tally.looks.1 == 0) {
        tally.violations.push(format!("the watch was blind: it saw a source and a target {:?} times", tally.looks));
    }
    tally.worst_stall_millis = ledger.worst_stall_millis;
    tally.violations.extend(ledger.complaints);
    tally.violations.extend(ledger.double_runs.into_iter().map(|when| format!("both sides ran: {when}")));
    if ledger.worst_stall_millis > bound {
        tally.violations.push(format!("a guest waited {} ms for a write", ledger.worst_stall_millis));
    }
}
