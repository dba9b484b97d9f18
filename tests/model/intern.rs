//! Numbers for values, so that a state is small and a decision is made once: `decide` is pure, so the same input has the same answer.

use std::collections::HashMap;
use std::rc::Rc;

use drover::api::VmMigrationStatus;
use drover::api::block_copy::{BlockCopySpec, BlockCopyStatus};
use drover::api::common::{MicroTime, Time};
use drover::flow::copy::Memory;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The time of every decision. A stored time is as old as one of the ages, or in the future; a tick makes all of them older.
pub const NOW: &str = "2030-01-01T00:00:00";
const A_LITTLE_LATER: &str = "2030-01-01T00:16:40";
/// A time whose age nothing depends on.
const WHENEVER: &str = "2020-01-01T00:00:00";

pub fn now() -> Time {
    Time(timestamp(NOW))
}

fn timestamp(text: &str) -> Timestamp {
    format!("{text}Z").parse().expect("a timestamp")
}

/// A value without what no decision reads back, so that states which differ in that only are one.
pub trait Canonical: Serialize + DeserializeOwned {
    fn canonical(self) -> Self;
}

fn whenever(time: &mut Option<MicroTime>) {
    if let Some(time) = time {
        *time = MicroTime(timestamp(WHENEVER));
    }
}

impl Canonical for VmMigrationStatus {
    fn canonical(mut self) -> Self {
        let constant = Time(timestamp(WHENEVER));
        self.observed_generation = None;
        self.phase = None;
        self.waiting_for = None;
        self.conditions.clear();
        self.earlier_cutovers.clear();
        (self.rollback, self.ledger) = (None, Vec::new());
        self.copied = None;
        self.downtime = None;
        self.disks.clear();
        self.steps.retain(|step| matches!(step.name.as_str(), "Prepare" | "Retire") && step.finished_at.is_some());
        for step in &mut self.steps {
            step.started_at = constant.clone();
            step.finished_at = Some(constant.clone());
        }
        if let Some(plan) = &mut self.plan {
            plan.frozen_at = constant.clone();
        }
        if let Some(terraform) = &mut self.terraform {
            terraform.pushed_at = constant.clone();
        }
        if let Some(canary) = self.target.as_mut().and_then(|target| target.canary.as_mut()) {
            canary.written_at = canary.written_at.take().map(|_| constant.clone());
            canary.confirmed_at = canary.confirmed_at.take().map(|_| constant.clone());
        }
        if let Some(approval) = &mut self.approval {
            approval.at = constant.clone();
            approval.void = approval.void.take().map(|_| "void".into());
        }
        if let Some(cutover) = &mut self.cutover {
            whenever(&mut cutover.shutdown_requested_at);
            whenever(&mut cutover.proven_equal_at);
            whenever(&mut cutover.target_on_at);
            whenever(&mut cutover.reachable_at);
            cutover.proofs = None;
            if let Some(undo) = &mut cutover.undo {
                undo.why.clear();
                whenever(&mut undo.fenced_at);
                whenever(&mut undo.proven_off_at);
            }
            if let Some(abandoned) = &mut cutover.abandoned {
                abandoned.message.clear();
                abandoned.since = constant;
            }
        }
        self
    }
}

impl Canonical for BlockCopySpec {
    fn canonical(self) -> Self {
        self
    }
}

impl Canonical for BlockCopyStatus {
    fn canonical(mut self) -> Self {
        self.observed_generation = None;
        self.restarts = 0;
        self.guest_throttled = false;
        if let Some(problem) = &mut self.problem {
            problem.message.clear();
            if problem.reason != "AwaitingSync" {
                problem.since = Time(timestamp(WHENEVER));
            }
        }
        if let Some(domain) = &mut self.domain {
            domain.state.clear();
            (domain.mark, domain.autostart_was) = (None, None);
        }
        for disk in &mut self.disks {
            (disk.copied_bytes, disk.total_bytes, disk.rate_mib_s, disk.backlog_bytes) = (0, 0, 0, 0);
        }
        if let Some(quiesce) = &mut self.quiesce {
            whenever(&mut quiesce.marked_at);
            whenever(&mut quiesce.off_by_host_at);
            whenever(&mut quiesce.writers_gone_at);
            whenever(&mut quiesce.equal_at);
            if let Some(repair) = &mut quiesce.repair {
                repair.why.clear();
                repair.begun_at = MicroTime(timestamp(WHENEVER));
            }
        }
        self
    }
}

impl Canonical for Memory {
    fn canonical(mut self) -> Self {
        if let Some(failure) = &mut self.quiesce_failed {
            failure.message.clear();
        }
        self.repair = self.repair.map(|_| String::new());
        // Only the length of a pause hangs on the number of failures.
        self.failures = self.failures.min(1);
        self.retry_at = self.retry_at.filter(|retry| retry.0 > now().0).map(|_| Time(timestamp(A_LITTLE_LATER)));
        if let Some(started) = self.attempt.as_mut().and_then(|attempt| attempt.started_at.as_mut()) {
            *started = Time(timestamp(WHENEVER));
        }
        self
    }
}

/// Values by their numbers.
pub struct Table<T> {
    values: Vec<Rc<T>>,
    texts: Vec<String>,
    numbers: HashMap<String, u32>,
    renamed: HashMap<(u32, &'static str), u32>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { values: Vec::new(), texts: Vec::new(), numbers: HashMap::new(), renamed: HashMap::new() }
    }
}

impl<T: Canonical> Table<T> {
    pub fn number(&mut self, value: T) -> u32 {
        let value = value.canonical();
        let text = serde_json::to_string(&value).expect("every value of the contract is JSON");
        if let Some(number) = self.numbers.get(&text) {
            return *number;
        }
        let number = u32::try_from(self.values.len()).expect("few values");
        self.values.push(Rc::new(value));
        self.texts.push(text.clone());
        self.numbers.insert(text, number);
        number
    }

    pub fn get(&self, number: u32) -> Rc<T> {
        Rc::clone(&self.values[number as usize])
    }

    /// The value after `change` was made to its text; `name` stands for the change.
    pub fn change(&mut self, number: u32, name: &'static str, change: impl FnOnce(&str) -> String) -> u32 {
        if let Some(changed) = self.renamed.get(&(number, name)) {
            return *changed;
        }
        let text = change(&self.texts[number as usize]);
        let changed = self.number(serde_json::from_str(&text).expect("only names and times were changed"));
        self.renamed.insert((number, name), changed);
        changed
    }

    /// The value when some time has passed.
    pub fn tick(&mut self, number: u32, ages: &[&str]) -> u32 {
        self.change(number, "tick", |text| {
            let oldest = ages.last().expect("there is one");
            let mut text = text.replace(A_LITTLE_LATER, oldest);
            for pair in ages.windows(2).rev() {
                text = text.replace(pair[0], pair[1]);
            }
            text
        })
    }
}
