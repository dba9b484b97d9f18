//! One migration from its beginning to its end, and what must be true then.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kube::api::DeleteParams;
use serde_json::json;
use tokio::time::sleep;

use super::faults::Fault;
use super::person::{Course, Person};
use super::plan::{Moment, Plan};
use super::tally::Round;
use super::{Soak, insist};
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
        let api = self.lab.migrations();
        let attempt = insist(|| async { Ok(api.get(name).await?) }).await?.spec.attempt.unwrap_or(0) + 1;
        let again =
            json!({"rollback": null, "hold": null, "approved": null, "approvedDigest": null, "attempt": attempt});
        self.patch(name, again).await?;
        let course =
            Person::new(self, domain, plan, false).follow().await.with_context(|| repeat(name, number, plan))?;
        self.settle(domain).await.with_context(|| repeat(name, number, plan))?;
        let left = insist(|| async { self.lab.leftovers_on_host(domain, false) }).await?;
        let lost = domain.console().lost_at_boots();
        self.count(domain, number, plan, Seen { begun, first, lost, left, course }).await
    }

    /// A migration of a guest that stays where it went.
    pub(super) async fn round_of_new(&self, domain: &Domain, number: u32, plan: &Plan) -> Result<Met> {
        let begun = Instant::now();
        let course =
            Person::new(self, domain, plan, true).follow().await.with_context(|| repeat(&domain.name, number, plan))?;
        self.count(domain, number, plan, Seen { begun, first: 5, lost: 0, left: Vec::new(), course }).await
    }

    /// Waits until the source runs, writes and is watched as before.
    async fn settle(&self, domain: &Domain) -> Result<()> {
        let start = Instant::now();
        let uuid = self.lab.prism.vm_by_name(&domain.name).context("Prism has lost the target")?.uuid;
        let had = domain.console().last_ack().unwrap_or(0);
        while domain.console().last_ack().unwrap_or(0) < had + 5 {
            ensure!(
                start.elapsed() < SETTLED,
                "the source does not write; libvirt: {:?}\n{}",
                domain.state(),
                self.lab.describe(&domain.name).await
            );
            // One that went off by itself, in a migration that was rolled back before anybody had approved it.
            if start.elapsed() > Duration::from_secs(3) {
                self.start_if_off(domain);
                sleep(Duration::from_millis(800)).await;
            }
            sleep(Duration::from_millis(200)).await;
        }
        ensure!(!self.lab.hypervisor.is_on(&uuid), "the target runs after the rollback");
        ensure!(insist(|| async { domain.autostart() }).await?, "autostart was not restored");
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
        let api = self.lab.migrations();
        let uid = insist(|| async { Ok(api.get(name).await?) }).await?.metadata.uid.unwrap_or_default();
        insist(|| async {
            match api.delete(name, &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
                answer => Ok(answer.map(drop)?),
            }
        })
        .await?;
        let start = Instant::now();
        loop {
            let mut left = self.lab.leftovers_of(&uid).await.unwrap_or_else(|error| vec![format!("{error:#}")]);
            if !matches!(api.get_opt(name).await, Ok(None)) {
                left.push("the VmMigration".to_owned());
            }
            if left.is_empty() {
                return Ok(());
            }
            if start.elapsed() > SETTLED {
                self.tally().leftovers(&left);
                let why = self.lab.describe(name).await;
                bail!("{name} was deleted {SETTLED:?} ago and left: {}\n{why}", left.join(", "));
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    /// What its owner does with a machine that was moved and is not needed any more.
    pub(super) async fn clear_away(&self, domain: &Domain) -> Result<()> {
        self.watch.remove(&domain.name);
        let vm = self.lab.prism.vm_by_name(&domain.name).context("Prism has lost the target")?;
        ensure!(self.lab.hypervisor.is_on(&vm.uuid), "the target of {} went off after its migration", domain.name);
        self.lab.hypervisor.power_off(&vm.uuid)?;
        let left = insist(|| async { self.lab.leftovers_on_host(domain, true) }).await?;
        ensure!(left.is_empty(), "{} was moved and left on its host: {}", domain.name, left.join(", "));
        insist(|| async { self.lab.libvirt.virsh(&["undefine", &domain.name]) }).await?;
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
