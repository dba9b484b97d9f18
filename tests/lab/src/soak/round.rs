//! One migration from its beginning to its end, and what must be true then.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tokio::time::sleep;

use super::Soak;
use super::faults::Fault;
use super::person::{Course, Person, answered};
use super::plan::{Moment, Plan};
use super::tally::Round;
use crate::hypervisor::Hypervisor;
use crate::libvirt::Domain;

/// Most time until a source that was given back has booted and writes, and everything of its migration is gone.
const SETTLED: Duration = Duration::from_secs(120);

/// What broke, and at which moments.
type Met = Vec<(Moment, Fault)>;

impl Soak {
    /// A migration of a guest that is the source again in the end.
    pub(super) async fn round_of_reused(&self, domain: &Domain, number: u32, plan: &Plan) -> Result<Met> {
        let (name, begun) = (&domain.name, Instant::now());
        let first = domain.console().last_ack().unwrap_or(0);
        let attempt = self.lab.migrations().get(name).await.map_or(number, |m| m.spec.attempt.unwrap_or(0) + 1);
        let again =
            json!({"rollback": null, "hold": null, "approved": null, "approvedDigest": null, "attempt": attempt});
        self.patch(name, again).await?;
        let course =
            Person::new(self, domain, plan, false).follow().await.with_context(|| repeat(name, number, plan))?;
        self.settle(domain).await.with_context(|| repeat(name, number, plan))?;
        let left = self.lab.leftovers_on_host(domain, false)?;
        let lost = domain.console().lost_at_boots();
        self.count(domain, number, plan, Seen { begun, first, lost, left, course }).await
    }

    /// A migration of a guest that stays where it went.
    pub(super) async fn round_of_new(&self, domain: &Domain, number: u32, plan: &Plan) -> Result<Met> {
        let begun = Instant::now();
        let course =
            Person::new(self, domain, plan, true).follow().await.with_context(|| repeat(&domain.name, number, plan))?;
        self.count(domain, number, plan, Seen { begun, first: 10, lost: 0, left: Vec::new(), course }).await
    }

    /// Waits until the source runs, writes and is watched as before.
    async fn settle(&self, domain: &Domain) -> Result<()> {
        let start = Instant::now();
        let uuid = self.lab.prism.vm_by_name(&domain.name).context("Prism has lost the target")?.uuid;
        let had = domain.console().acks().len();
        while domain.console().acks().len() < had + 5 {
            ensure!(
                start.elapsed() < SETTLED,
                "the source does not write; libvirt: {:?}\n{}",
                domain.state(),
                self.lab.describe(&domain.name).await
            );
            // One that went off by itself, in a migration that was rolled back before anybody had approved it.
            if start.elapsed() > Duration::from_secs(3) && domain.state().is_ok_and(|state| state == "shut off") {
                let _ = domain.start();
            }
            sleep(Duration::from_millis(200)).await;
        }
        while domain.state().is_err() {
            ensure!(start.elapsed() < SETTLED, "libvirt does not answer");
            sleep(Duration::from_millis(200)).await;
        }
        ensure!(!self.lab.hypervisor.is_on(&uuid), "the target runs after the rollback");
        ensure!(domain.autostart()?, "autostart was not restored");
        self.watch.may_be_off(&domain.name, false);
        Ok(())
    }

    async fn count(&self, domain: &Domain, number: u32, plan: &Plan, seen: Seen) -> Result<Met> {
        let gap = domain.console().longest_gap_since(seen.first);
        let moved = seen.course.outcome.as_ref();
        let sighting = self.watch.take(&domain.name);
        let round = Round {
            name: format!("{} #{number}", domain.name),
            seconds: seen.begun.elapsed().as_secs_f64(),
            moved: moved.is_some(),
            lost: seen.lost + moved.map_or(0, crate::lab::Outcome::lost),
            double_runs: sighting.double_runs,
            early_stops: sighting.early_stops,
            stall: Duration::from_millis(gap.map_or(0, |gap| gap.millis)),
            // What the guest's emulated CPU, and the watch itself, wait for on this computer.
            busy: self.watch.slowest(),
            retried: seen.course.retried,
            missed: seen.course.missed,
            leftovers: seen.left,
            injected: seen.course.injected,
            spent: seen.course.spent,
            breaking: seen.course.breaking,
        };
        println!("{:8.1} s  {round}", self.start.elapsed().as_secs_f64());
        let (violations, met) = (round.violations(), round.injected.clone());
        self.tally().add(round);
        if violations.is_empty() {
            return Ok(met);
        }
        bail!(
            "{}: {} (longest wait: {gap:?})\n{}",
            repeat(&domain.name, number, plan),
            violations.join(", "),
            self.lab.describe(&domain.name).await
        )
    }

    /// Deletes the migration; nothing of it may be left.
    pub(super) async fn end(&self, name: &str) -> Result<()> {
        let migration = answered(async || Ok(self.lab.migrations().get(name).await?)).await?;
        let uid = migration.metadata.uid.unwrap_or_default();
        self.lab.delete(name).await?;
        let start = Instant::now();
        loop {
            let left = self.lab.leftovers_of(&uid).await.unwrap_or_else(|error| vec![format!("{error:#}")]);
            if left.is_empty() {
                return Ok(());
            }
            if start.elapsed() > SETTLED {
                self.tally().leftovers(&left);
                bail!("{name} was deleted {SETTLED:?} ago and left: {}", left.join(", "));
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    /// What its owner does with a machine that was moved and is not needed any more.
    pub(super) fn clear_away(&self, domain: &Domain) -> Result<()> {
        self.watch.remove(&domain.name);
        let vm = self.lab.prism.vm_by_name(&domain.name).context("Prism has lost the target")?;
        ensure!(self.lab.hypervisor.is_on(&vm.uuid), "the target of {} went off after its migration", domain.name);
        self.lab.hypervisor.power_off(&vm.uuid)?;
        let left = self.lab.leftovers_on_host(domain, true)?;
        ensure!(left.is_empty(), "{} was moved and left on its host: {}", domain.name, left.join(", "));
        self.lab.libvirt.virsh(&["undefine", &domain.name])?;
        for disk in domain.disk_paths() {
            std::fs::remove_file(disk)?;
        }
        Ok(())
    }
}

/// What there is to judge a migration by.
struct Seen {
    begun: Instant,
    /// The first record of this migration.
    first: u64,
    lost: u64,
    left: Vec<String>,
    course: Course,
}

fn repeat(name: &str, number: u32, plan: &Plan) -> String {
    format!("{name} #{number}, which was to end {:?} with {:?}", plan.end, plan.faults)
}
