//! Counting: one line for each migration, one table for all.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::faults::Fault;
use super::plan::Moment;

/// The stated bound on how long a guest's write may be held up: that of [`crate::lab::LabOptions`].
const STALL_BOUND: Duration = Duration::from_secs(3);
/// What a guest may wait by itself: an emulated CPU on a busy computer.
const NOISE: Duration = Duration::from_secs(2);

/// What came of one migration.
#[derive(Clone, Debug)]
pub struct Round {
    pub name: String,
    pub seconds: f64,
    pub moved: bool,
    pub lost: u64,
    pub double_runs: u32,
    pub early_stops: u32,
    pub stall: Duration,
    pub busy: Duration,
    pub retried: u32,
    pub missed: u32,
    pub leftovers: Vec<String>,
    pub injected: Vec<(Moment, Fault)>,
}

impl Round {
    /// What must not have happened.
    pub fn violations(&self) -> Vec<String> {
        let bound = STALL_BOUND + NOISE.max(self.busy);
        let mut found = self.leftovers.clone();
        let checks = [
            (self.lost > 0, format!("{} records lost", self.lost)),
            (self.double_runs > 0, format!("both sides ran, {} times", self.double_runs)),
            (self.early_stops > 0, format!("the source was off without an approval, {} times", self.early_stops)),
            (self.stall > bound, format!("the guest waited {:?} for a write, the bound is {bound:?}", self.stall)),
        ];
        found.extend(checks.into_iter().filter(|(is, _)| *is).map(|(_, text)| text));
        found
    }
}

impl fmt::Display for Round {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<String> = self.injected.iter().map(|(at, fault)| format!("{fault:?} at {at:?}")).collect();
        let way = if self.moved { "moved" } else { "not moved" };
        let (name, seconds, stall) = (&self.name, self.seconds, self.stall.as_millis());
        write!(out, "{name:<14} {way:<10} {seconds:5.1} s  stall {stall:>4} ms  {}", faults.join(", "))?;
        if self.retried > 0 {
            write!(out, "  (given up and tried again: {})", self.retried)?;
        }
        Ok(())
    }
}

/// All migrations so far.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    rounds: Vec<Round>,
    leftovers: u32,
    violations: Vec<String>,
}

impl Tally {
    pub(super) fn add(&mut self, round: Round) {
        self.leftovers += u32::try_from(round.leftovers.len()).unwrap_or(u32::MAX);
        self.rounds.push(round);
    }

    pub(super) fn leftovers(&mut self, found: &[String]) {
        self.leftovers += u32::try_from(found.len()).unwrap_or(u32::MAX);
    }

    pub(super) fn violation(&mut self, what: String) {
        self.violations.push(what);
    }

    /// What must not have happened; empty is good.
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    fn sum(&self, of: impl Fn(&Round) -> u64) -> u64 {
        self.rounds.iter().map(of).sum()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let complete = self.sum(|round| round.name.starts_with("new").into());
        let worst = self.rounds.iter().map(|round| round.stall).max().unwrap_or_default();
        let rows = [
            ("migrations", self.rounds.len() as u64),
            ("  with a fault", self.sum(|round| (!round.injected.is_empty()).into())),
            ("  in which the target took over", self.sum(|round| round.moved.into())),
            ("  complete, of new guests", complete),
            ("faults", self.sum(|round| round.injected.len() as u64)),
            ("faults that found nothing to break", self.sum(|round| round.missed.into())),
            ("cutovers given up and tried again", self.sum(|round| round.retried.into())),
            ("lost records", self.sum(|round| round.lost)),
            ("double runs", self.sum(|round| round.double_runs.into())),
            ("sources off without an approval", self.sum(|round| round.early_stops.into())),
            ("leftovers", self.leftovers.into()),
            ("violations", self.violations.len() as u64),
        ];
        for (name, number) in rows {
            writeln!(out, "  {name:<36}{number:>8}")?;
        }
        writeln!(out, "  {:<36}{:>5} ms", "worst stall of a guest's write", worst.as_millis())?;
        let mut kinds: BTreeMap<Fault, (u32, Duration)> = BTreeMap::new();
        for round in &self.rounds {
            for (_, fault) in &round.injected {
                let kind = kinds.entry(*fault).or_default();
                *kind = (kind.0 + 1, kind.1.max(round.stall));
            }
        }
        writeln!(out, "\n  {:<36}{:>8}  {:>11}", "fault", "times", "worst stall")?;
        for (fault, (times, stall)) in kinds {
            writeln!(out, "  {:<36}{times:>8}  {:>8} ms", format!("{fault:?}"), stall.as_millis())?;
        }
        Ok(())
    }
}
