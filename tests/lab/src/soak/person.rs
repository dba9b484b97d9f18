//! The person at the other end: approves, rolls back, raises the attempt, starts what went off by itself. And breaks things on the way.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use drover::api::VmMigration;
use drover::api::vm_migration::CutoverStatus;
use kube::Api;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::faults::{Fault, Wrong};
use super::plan::{End, Moment, Plan, moment_of};
use super::{Soak, insist};
use crate::lab::Outcome;
use crate::libvirt::Domain;

/// Most time for a migration, with all that breaks in it.
const LIMIT: Duration = Duration::from_secs(420);
/// How often a person looks.
const EVERY: Duration = Duration::from_millis(100);
/// More attempts than that are a migration that does not get on.
const ATTEMPTS: u32 = 8;

/// What one migration came to.
#[derive(Debug, Default)]
pub struct Course {
    /// Each with the moment that it met.
    pub injected: Vec<(Moment, Fault)>,
    /// How long the migration was at each moment, but for what was breaking.
    pub spent: BTreeMap<Moment, Duration>,
    pub breaking: Duration,
    /// Faults that found nothing to break.
    pub missed: u32,
    /// Cutovers that were given up and tried again.
    pub retried: u32,
    /// Records and outage, if the target took over.
    pub outcome: Option<Outcome>,
}

/// One migration under way.
pub struct Person<'a> {
    soak: &'a Soak,
    domain: &'a Domain,
    plan: &'a Plan,
    faults: VecDeque<(Moment, Fault)>,
    asked: bool,
    approved: bool,
    /// Ends with the target: a guest that is new.
    stays: bool,
    looked: Instant,
    course: Course,
}

impl<'a> Person<'a> {
    pub fn new(soak: &'a Soak, domain: &'a Domain, plan: &'a Plan, stays: bool) -> Self {
        let faults = plan.faults.iter().copied().collect();
        let looked = Instant::now();
        Self { soak, domain, plan, faults, asked: false, approved: false, stays, looked, course: Course::default() }
    }

    /// Sees the migration to its end.
    pub async fn follow(mut self) -> Result<Course> {
        let start = Instant::now();
        loop {
            ensure!(
                start.elapsed() < LIMIT,
                "no end after {LIMIT:?} (so far: {:?})\n{}",
                self.course,
                self.soak.lab.describe(&self.domain.name).await
            );
            if let Some(migration) = self.look().await
                && self.act(&migration).await?
            {
                return Ok(self.course);
            }
            sleep(EVERY).await;
        }
    }

    /// The migration, if the API server tells and Drover has seen what was last asked of it.
    async fn look(&self) -> Option<VmMigration> {
        let api: Api<VmMigration> = self.soak.lab.migrations();
        let asked = tokio::time::timeout(Duration::from_secs(5), api.get(&self.domain.name)).await;
        let migration = asked.ok()?.ok()?;
        let seen = migration.status.as_ref()?.observed_generation;
        (seen == migration.metadata.generation).then_some(migration)
    }

    /// True: it has come to its end.
    async fn act(&mut self, migration: &VmMigration) -> Result<bool> {
        let status = migration.status.clone().unwrap_or_default();
        let (phase, moment) = (status.phase.as_deref().unwrap_or_default(), moment_of(migration));
        *self.course.spent.entry(moment).or_default() += self.looked.elapsed();
        self.looked = Instant::now();
        let reason = status.waiting_for.as_ref().map_or("", |waiting| waiting.reason.as_str());
        let cutover = status.cutover.clone().unwrap_or_default();
        if phase == "RolledBack" && self.asked {
            return Ok(true);
        }
        if let Some((_, fault)) = self.faults.front().copied().filter(|(at, _)| *at <= moment) {
            self.faults.pop_front();
            let begun = Instant::now();
            self.inject(moment, fault).await?;
            self.course.breaking += begun.elapsed();
            self.looked = Instant::now();
            return Ok(false);
        }
        if phase == "Migrated" && self.course.outcome.is_none() {
            self.course.outcome = Some(self.outcome().await?);
            if self.stays {
                return Ok(true);
            }
        }
        if !self.asked && self.is_to_go_back(moment, phase) {
            self.asked = true;
            self.patch(json!({"rollback": true})).await?;
        } else if reason == "Approval" && !self.approved && self.plan.cuts_over() && !self.asked {
            self.approve(migration).await?;
        } else {
            if reason == "SourceNotRunning" {
                self.soak.start_if_off(self.domain);
            }
            if !self.asked && cutover.abandoned.is_some() {
                self.try_again(migration, &cutover).await?;
            }
        }
        Ok(false)
    }

    fn is_to_go_back(&self, moment: Moment, phase: &str) -> bool {
        match self.plan.end {
            End::RolledBackAt(at) => moment >= at,
            End::Moved => phase == "Migrated" && !self.stays,
        }
    }

    async fn inject(&mut self, at: Moment, fault: Fault) -> Result<()> {
        let (soak, name) = (self.soak, &self.domain.name);
        if fault == Fault::SourceKilled {
            soak.watch.may_be_off(name, true);
        }
        soak.watch.excuse(name, fault == Fault::TargetStartedByHand);
        let quiet = if fault.is_of_prism() { Some(soak.provisioning.read().await) } else { None };
        let injected = soak.faults.inject(fault, self.domain).await;
        drop(quiet);
        soak.watch.excuse(name, false);
        match injected {
            Ok(()) => self.course.injected.push((at, fault)),
            Err(error) if error.is::<Wrong>() => return Err(error.context(format!("{fault:?} at {at:?}"))),
            Err(_) => self.course.missed += 1,
        }
        Ok(())
    }

    async fn approve(&mut self, migration: &VmMigration) -> Result<()> {
        let plan = migration.status.as_ref().and_then(|status| status.plan.as_ref()).context("there is no plan")?;
        self.approved = true;
        self.soak.watch.may_be_off(&self.domain.name, true);
        self.patch(json!({"approved": true, "approvedDigest": plan.digest})).await
    }

    async fn try_again(&mut self, migration: &VmMigration, cutover: &CutoverStatus) -> Result<()> {
        let wanted = migration.spec.attempt.unwrap_or(0);
        let begun = migration.status.as_ref().and_then(|status| status.attempt).unwrap_or(0);
        if wanted > begun {
            // Raised already; it begins when the source is given back.
            return Ok(());
        }
        self.course.retried += 1;
        ensure!(self.course.retried <= ATTEMPTS, "given up again and again, last because of {:?}", cutover.abandoned);
        self.patch(json!({"attempt": wanted + 1})).await
    }

    async fn patch(&self, spec: Value) -> Result<()> {
        self.soak.patch(&self.domain.name, spec).await
    }

    /// What the target found when it booted; asked again while the API server does not answer.
    async fn outcome(&self) -> Result<Outcome> {
        let start = Instant::now();
        loop {
            match self.soak.lab.outcome(&self.domain.name, self.domain).await {
                Ok(outcome) => return Ok(outcome),
                Err(error) if start.elapsed() > Duration::from_secs(60) => return Err(error),
                Err(_) => sleep(Duration::from_secs(1)).await,
            }
        }
    }
}

impl Soak {
    /// Changes a spec, whatever the API server is going through.
    pub(super) async fn patch(&self, name: &str, spec: Value) -> Result<()> {
        insist(|| self.lab.patch(name, spec.clone())).await
    }

    /// A source that went off by itself is for its owner to start.
    pub(super) fn start_if_off(&self, domain: &Domain) {
        if domain.state().is_ok_and(|state| state == "shut off") {
            let _ = domain.start();
        }
    }
}
