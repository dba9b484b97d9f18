//! The soak: migrations without end, each with faults at random moments, and each checked.
//!
//! A seed decides what happens to which migration at which moment. What a machine's processes make of it is theirs: the same seed repeats
//! the same faults at the same moments, not the same microseconds. [`faults`] says what may break, [`plan`] draws, [`person`] is the one
//! who approves, rolls back and raises attempts, [`round`] checks what came of it, [`tally`] counts.

mod chance;
mod faults;
mod person;
mod plan;
mod round;
mod tally;

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::sync::RwLock;

use crate::guest::Load;
use crate::lab::Lab;
use crate::libvirt::{Domain, GuestSpec};
use crate::watch::Watch;
use chance::Chance;
use faults::{Fault, Faults};
use plan::{Moment, Plan};

pub use tally::Tally;

const MIB: u64 = 1 << 20;
/// What the storage takes: a disk is copied in seconds, and a moment in the copy can be met.
pub const STORAGE_BYTES_PER_S: u64 = 16 * MIB;

/// Most time until a guest writes.
const BOOTED: Duration = Duration::from_secs(120);
/// How often a fault is to meet its moment before it is given up.
const TRIES: u32 = 3;

/// How long, and how much beside each other.
#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    /// When no further migration is begun.
    pub limit: Duration,
    /// How many migrations of the reused guests are begun, all together.
    pub migrations: u32,
    /// Guests that are migrated and rolled back over and over.
    pub guests: u32,
    /// Migrations of new guests, one after the other, provisioned by Terraform and deleted in the end.
    pub complete: u32,
}

/// What the soak's tasks share.
struct Soak {
    lab: Arc<Lab>,
    watch: Watch,
    faults: Faults,
    tally: Mutex<Tally>,
    /// Terraform is not ours to test: while it provisions (a writer), Prism works (faults of Prism are readers).
    provisioning: RwLock<()>,
    options: Options,
    start: Instant,
    /// Migrations of the reused guests that were begun.
    begun: AtomicU32,
}

/// Asks again and again, whatever the API server and libvirt's daemon are going through.
async fn insist<T, F: Future<Output = Result<T>>>(ask: impl Fn() -> F) -> Result<T> {
    let start = Instant::now();
    loop {
        let answer = tokio::time::timeout(Duration::from_secs(10), ask()).await;
        match answer.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within 10 s"))) {
            Ok(answer) => return Ok(answer),
            Err(error) if start.elapsed() > Duration::from_secs(60) => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    }
}

/// Runs the soak in a lab. Every violation is in the tally.
pub async fn run(lab: Arc<Lab>, options: Options) -> Result<Tally> {
    let soak = Arc::new(Soak {
        watch: Watch::start(&lab)?,
        faults: Faults::new(lab.clone()),
        lab,
        tally: Mutex::default(),
        provisioning: RwLock::default(),
        options: options.clone(),
        start: Instant::now(),
        begun: AtomicU32::new(0),
    });
    let sweep = plan::sweep(options.seed, options.guests);
    soak.tally().sweeps(sweep.iter().map(VecDeque::len).sum());
    let mut tasks = tokio::task::JoinSet::new();
    for (lane, pairs) in (1..).zip(sweep) {
        tasks.spawn(soak.clone().reused(lane, pairs));
    }
    if options.complete > 0 {
        tasks.spawn(soak.clone().new_guests());
    }
    // A lane that met a violation ends; the others go on.
    while let Some(ended) = tasks.join_next().await {
        let outcome = ended.map_err(anyhow::Error::from).and_then(|outcome| outcome);
        if let Err(error) = outcome {
            let violation = format!("{error:#}");
            println!("VIOLATION {violation}\n");
            soak.tally().violation(violation);
        }
    }
    let tally = soak.tally().clone();
    Ok(tally)
}

impl Soak {
    /// One guest, migrated and rolled back until the soak is over, then given back for good. First each of `pairs` happens to it.
    async fn reused(self: Arc<Self>, lane: u32, mut pairs: VecDeque<(Moment, Fault)>) -> Result<()> {
        let name = format!("again{lane:02}");
        let mut chance = Chance::new(self.options.seed, u64::from(lane));
        let domain = self.guest(&name, lane).await?;
        insist(|| async { self.lab.libvirt.virsh(&["autostart", &name]) }).await?;
        {
            let _quiet = self.provisioning.write().await;
            insist(|| self.lab.migrate(&name)).await?;
            self.lab.wait_reason(&name, "Approval", Duration::from_secs(300)).await?;
            self.applied(&name).await?;
        }
        self.know_target(&name)?;
        let mut tried: BTreeMap<(Moment, Fault), u32> = BTreeMap::new();
        for number in 1.. {
            if self.is_over() || self.begun.fetch_add(1, Ordering::Relaxed) >= self.options.migrations {
                break;
            }
            let wanted = pairs.pop_front();
            let plan = match wanted {
                Some(pair) => Plan::with(&mut chance, pair),
                None => Plan::draw(&mut chance),
            };
            let met = self.round_of_reused(&domain, number, &plan).await?;
            // The moment was over before anybody saw it, or there was nothing to break.
            if let Some(pair) = wanted.filter(|pair| !met.contains(pair)) {
                let tries = tried.entry(pair).or_insert(0);
                *tries += 1;
                if *tries < TRIES { pairs.push_back(pair) } else { self.tally().unmet([pair]) }
            }
        }
        self.tally().unmet(pairs);
        self.end(&name).await
    }

    fn is_over(&self) -> bool {
        self.start.elapsed() >= self.options.limit
    }

    /// New guests one after the other, each with all that belongs to a migration.
    async fn new_guests(self: Arc<Self>) -> Result<()> {
        for number in 1..=self.options.complete {
            if self.is_over() {
                return Ok(());
            }
            let mut chance = Chance::new(self.options.seed, 1000 + u64::from(number));
            let name = format!("new{number:02}");
            let domain = self.guest(&name, 100 + number).await?;
            {
                let _quiet = self.provisioning.write().await;
                insist(|| self.lab.migrate(&name)).await?;
                let pinned = |migration: &drover::api::VmMigration| {
                    migration.status.as_ref().is_some_and(|status| status.target.is_some())
                };
                self.lab.wait(&name, "provisioned", Duration::from_secs(300), pinned).await?;
                self.applied(&name).await?;
            }
            self.know_target(&name)?;
            self.round_of_new(&domain, number, &Plan::draw_complete(&mut chance)).await?;
            self.end(&name).await?;
            self.clear_away(&domain).await?;
        }
        Ok(())
    }

    /// Waits for the end of the run that created a target. The provider looks at its VM's power state in the end, and powers off one that runs:
    /// a run that a broken Prism draws out would meet a target that has taken over.
    async fn applied(self: &Arc<Self>, name: &str) -> Result<()> {
        let status = insist(|| async { Ok(self.lab.migrations().get(name).await?) }).await?.status.unwrap_or_default();
        let commit = status.terraform.map(|terraform| terraform.commit).unwrap_or_default();
        let soak = self.clone();
        let ended = tokio::task::spawn_blocking(move || {
            let pipeline = soak.lab.pipeline.as_ref();
            pipeline.map(|pipeline| pipeline.wait_for(&commit, Duration::from_secs(120))).transpose()
        });
        ended.await?.map(drop)
    }

    /// A guest that runs and writes, on two small disks if its number is even.
    async fn guest(&self, name: &str, number: u32) -> Result<Domain> {
        let load = Load { rate: 10, payload_bytes: 8000, ring: 512, ..Load::default() };
        self.lab.hypervisor.set_load(name, load);
        let disks = if number.is_multiple_of(2) { vec![24 * MIB, 16 * MIB] } else { vec![32 * MIB] };
        let mac = Some(format!("52:54:00:0b:{:02x}:{:02x}", number / 256, number % 256));
        let spec = GuestSpec { name: name.into(), disks, ballast_bytes: 4 * MIB, mac, load, ..GuestSpec::default() };
        let domain = insist(|| async { self.lab.libvirt.define(&spec) }).await?;
        let begun = Instant::now();
        while domain.console().last_ack().unwrap_or(0) < 5 {
            ensure!(begun.elapsed() < BOOTED, "{name} does not write; its console:\n{}", domain.console().text());
            self.start_if_off(&domain);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        self.watch.add(name);
        Ok(domain)
    }

    fn know_target(&self, name: &str) -> Result<()> {
        let vm = self.lab.prism.vm_by_name(name);
        self.watch.set_target(name, &vm.ok_or_else(|| anyhow::anyhow!("Prism has no VM {name}"))?.uuid);
        Ok(())
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
