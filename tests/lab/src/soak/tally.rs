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
    pub spent: BTreeMap<Moment, Duration>,
    pub breaking: Duration,
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
    /// How many pairs of fault and moment there are.
    pairs: usize,
    /// Those that could not be met.
    unmet: Vec<(Moment, Fault)>,
}

impl Tally {
    pub(super) fn add(&mut self, round: Round) {
        self.leftovers += u32::try_from(round.leftovers.len()).unwrap_or(u32::MAX);
        self.rounds.push(round);
    }

    pub(super) fn leftovers(&mut self, found: &[String]) {
        self.leftovers += u32::try_from(found.len()).unwrap_or(u32::MAX);
    }

    pub(super) fn sweeps(&mut self, pairs: usize) {
        self.pairs = pairs;
    }

    pub(super) fn unmet(&mut self, pairs: impl IntoIterator<Item = (Moment, Fault)>) {
        self.unmet.extend(pairs);
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
        self.show_faults(out)?;
        self.show_time(out)
    }
}

impl Tally {
    /// How often each fault met each moment.
    fn show_faults(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut met: BTreeMap<Fault, BTreeMap<Moment, u32>> = BTreeMap::new();
        let mut stalls: BTreeMap<Fault, Duration> = BTreeMap::new();
        for (round, (moment, fault)) in self.rounds.iter().flat_map(|r| r.injected.iter().map(move |pair| (r, pair))) {
            *met.entry(*fault).or_default().entry(*moment).or_default() += 1;
            let stall = stalls.entry(*fault).or_default();
            *stall = round.stall.max(*stall);
        }
        let different: usize = met.values().map(BTreeMap::len).sum();
        writeln!(out, "\n  {different} different pairs of fault and moment were met; {} make sense", self.pairs)?;
        write!(out, "\n  {:<24}{:>12}", "fault", "worst stall")?;
        Moment::ALL.iter().try_for_each(|moment| write!(out, "{:>16}", format!("{moment:?}")))?;
        for (fault, moments) in &met {
            write!(out, "\n  {:<24}{:>9} ms", format!("{fault:?}"), stalls[fault].as_millis())?;
            for moment in Moment::ALL {
                let times = moments.get(&moment).map(u32::to_string);
                let none = if fault.fits(moment) { "-" } else { "" };
                write!(out, "{:>16}", times.as_deref().unwrap_or(none))?;
            }
        }
        if !self.unmet.is_empty() {
            let unmet: Vec<String> = self.unmet.iter().map(|(at, fault)| format!("{fault:?} at {at:?}")).collect();
            write!(out, "\n\n  not met, or not yet: {}", unmet.join(", "))?;
        }
        writeln!(out)
    }

    /// Where the time of a migration goes.
    fn show_time(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.rounds.len().max(1) as f64;
        let mut spent: BTreeMap<Moment, Duration> = BTreeMap::new();
        for (moment, time) in self.rounds.iter().flat_map(|round| &round.spent) {
            *spent.entry(*moment).or_default() += *time;
        }
        let breaking: Duration = self.rounds.iter().map(|round| round.breaking).sum();
        let whole: f64 = self.rounds.iter().map(|round| round.seconds).sum();
        write!(out, "\n  mean of a migration: {:.1} s", whole / count)?;
        write!(out, ", of which breaking {:.1}", breaking.as_secs_f64() / count)?;
        spent.iter().try_for_each(|(at, time)| write!(out, ", {at:?} {:.1}", time.as_secs_f64() / count))?;
        writeln!(out)
    }
}
