//! One round: a machine moves, comes back, and something breaks meanwhile. The round plays the person who approves and tries again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use drover::api::VmMigration;
use serde_json::{Value, json};

use super::fault::{At, Blow, waits_for};
use super::random::Random;
use super::tally::Tally;
use super::watch::judge;
use crate::lab::Lab;
use crate::libvirt::Domain;

/// A round that takes longer is stuck.
const LIMIT: Duration = Duration::from_secs(240);
const LOOKS_EVERY: Duration = Duration::from_millis(100);
/// Records that the source writes before the next round, so that each round has something of its own to lose.
const FRESH_RECORDS: u64 = 20;

/// A guest of the soak and its rounds.
pub struct Rounds {
    pub lab: Arc<Lab>,
    pub source: Domain,
    pub random: Random,
    pub tally: Tally,
    /// Told what happens.
    pub say: fn(&str, &str),
    attempt: u32,
}

/// Why a round ended early.
pub struct Stuck(pub String);

impl Rounds {
    /// The rounds of a guest that runs and has been written down as a migration.
    pub fn new(lab: Arc<Lab>, source: Domain, random: Random, say: fn(&str, &str)) -> Self {
        Self { lab, source, random, tally: Tally::default(), say, attempt: 0 }
    }

    /// Moves the machine and brings it back.
    pub async fn round(&mut self, number: u64) -> Result<(), Stuck> {
        let deadline = Instant::now() + LIMIT;
        let blow = Blow::draw(&mut self.random);
        self.tell(&format!("round {number}: {blow}"));
        // Now and then nobody is asked again: the approval that was given before goes for this round, too.
        let keeps_approval = number > 1 && blow.at != At::InSync && self.random.once_in(4);
        let mut armed = Some(blow);
        let ended = self.there_and_back(number, keeps_approval, deadline, &mut armed).await;
        let stuck = |error: anyhow::Error| Stuck(format!("{} round {number} ({blow}): {error:#}", self.source.name));
        ended.map_err(stuck)?;
        if armed.is_some() {
            self.tally.missed += 1;
        }
        self.tally.rounds += 1;
        Ok(())
    }

    async fn there_and_back(
        &mut self,
        number: u64,
        keeps_approval: bool,
        deadline: Instant,
        armed: &mut Option<Blow>,
    ) -> Result<()> {
        if number > 1 {
            self.try_again(keeps_approval).await?;
        }
        self.go_to("Migrated", deadline, armed).await?;
        self.tally.migrations += 1;
        self.compare().await?;
        self.patch(json!({"rollback": true})).await?;
        self.go_to("RolledBack", deadline, armed).await?;
        self.tally.rollbacks += 1;
        self.source_writes_on(deadline).await
    }

    /// Acts as a person would until the migration is in `phase`.
    async fn go_to(&mut self, phase: &str, deadline: Instant, armed: &mut Option<Blow>) -> Result<()> {
        loop {
            anyhow::ensure!(Instant::now() < deadline, "not {phase} within {LIMIT:?}");
            tokio::time::sleep(LOOKS_EVERY).await;
            // The API server answers later if it is busy.
            let Ok(migration) = self.lab.migrations().get(&self.source.name).await else { continue };
            if let Some(blow) = armed.filter(|blow| blow.at.reached(&migration)) {
                *armed = None;
                self.strike(blow).await;
                continue;
            }
            let Some(status) = migration.status.as_ref().filter(|_| is_current(&migration)) else { continue };
            if status.phase.as_deref() == Some(phase) {
                return Ok(());
            }
            let message = status.waiting_for.as_ref().map(|waiting| waiting.message.as_str()).unwrap_or_default();
            if migration.spec.rollback == Some(true) && phase == "Migrated" {
                if status.phase.as_deref() == Some("RolledBack") {
                    self.tally.rollbacks += 1;
                    self.try_again(true).await?;
                }
            } else if waits_for(status, "Approval") && migration.spec.approved != Some(true) {
                self.lab.approve(&self.source.name).await?;
            } else if status.phase.as_deref() == Some("Stalled") && message.contains("aise spec.attempt") {
                self.tell(&format!("given up: {message}"));
                self.tally.given_up += 1;
                self.attempt += 1;
                self.patch(json!({"attempt": self.attempt})).await?;
            }
        }
    }

    async fn strike(&mut self, blow: Blow) {
        match blow.strike(&self.lab, &self.source.name).await {
            Ok(()) => {
                self.tell(&format!("{}, now", blow.fault));
                *self.tally.faults.entry(blow.fault.kind().into()).or_default() += 1;
            }
            Err(error) => {
                self.tell(&format!("{}: {error:#}", blow.fault));
                self.tally.missed += 1;
            }
        }
    }

    /// What the target found when it booted, against what the source acknowledged.
    async fn compare(&mut self) -> Result<()> {
        let outcome = self.lab.outcome(&self.source.name, &self.source).await?;
        self.tally.lost += outcome.lost();
        for found in &outcome.found {
            if let (_, Some(complaint)) = judge(*found, outcome.acknowledged) {
                let round = self.tally.rounds + 1;
                self.tally
                    .violations
                    .push(format!("{} round {round}: the target booted: {complaint}", self.source.name));
            }
        }
        let downtime = outcome.total().as_secs_f64();
        self.tell(&format!(
            "migrated, {} records, lost {}, downtime {downtime:.1} s",
            outcome.acknowledged,
            outcome.lost()
        ));
        Ok(())
    }

    /// Withdraws the rollback and begins anew.
    async fn try_again(&mut self, keeps_approval: bool) -> Result<()> {
        self.attempt += 1;
        let mut spec = json!({"rollback": null, "attempt": self.attempt});
        if !keeps_approval {
            spec["approved"] = Value::Null;
            spec["approvedDigest"] = Value::Null;
        }
        self.patch(spec).await
    }

    async fn source_writes_on(&self, deadline: Instant) -> Result<()> {
        // Its console holds this boot alone: its first record comes after those it found.
        let mut first = None;
        loop {
            let newest = self.source.console().last_ack();
            first = first.or(newest);
            if let (Some(first), Some(newest)) = (first, newest)
                && newest >= first + FRESH_RECORDS
            {
                return Ok(());
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "the source does not write on; its console:\n{}",
                self.source.console().text()
            );
            tokio::time::sleep(LOOKS_EVERY).await;
        }
    }

    async fn patch(&self, spec: Value) -> Result<()> {
        self.lab.patch(&self.source.name, spec.clone()).await.with_context(|| format!("patch the spec with {spec}"))
    }

    fn tell(&self, text: &str) {
        (self.say)(&self.source.name, text);
    }
}

/// Whether the status speaks of the spec as it is now.
fn is_current(migration: &VmMigration) -> bool {
    migration.status.as_ref().and_then(|status| status.observed_generation) == migration.metadata.generation
}
