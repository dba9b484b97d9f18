//! What a soak counts, and the table at its end.

use std::collections::BTreeMap;
use std::fmt;

/// Counts of one guest, or of all together.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub rounds: u64,
    pub migrations: u64,
    pub rollbacks: u64,
    /// Cutovers that were given up and tried again.
    pub given_up: u64,
    /// Faults by kind and step, and how many of them found something to break.
    pub faults: BTreeMap<String, u64>,
    /// Faults whose step never came, or that found nothing to break.
    pub missed: u64,
    /// Records that the sources' guests were told are durable.
    pub acknowledged: u64,
    pub source_boots: u64,
    pub lost: u64,
    pub double_runs: u64,
    /// Looks at which the sources ran, and at which the targets ran.
    pub looks: (u64, u64),
    pub worst_stall_millis: u64,
    pub stall_bound_millis: u64,
    pub stuck: u64,
    pub leftovers: u64,
    /// Locks that nobody holds and dead sockets: no violation.
    pub inert_files: u64,
    /// Every violation in words.
    pub violations: Vec<String>,
}

impl Tally {
    /// Adds another guest's counts.
    pub fn add(&mut self, other: Self) {
        self.rounds += other.rounds;
        self.migrations += other.migrations;
        self.rollbacks += other.rollbacks;
        self.given_up += other.given_up;
        for (fault, count) in other.faults {
            *self.faults.entry(fault).or_default() += count;
        }
        self.missed += other.missed;
        self.acknowledged += other.acknowledged;
        self.source_boots += other.source_boots;
        self.lost += other.lost;
        self.double_runs += other.double_runs;
        self.looks = (self.looks.0 + other.looks.0, self.looks.1 + other.looks.1);
        self.worst_stall_millis = self.worst_stall_millis.max(other.worst_stall_millis);
        self.stall_bound_millis = self.stall_bound_millis.max(other.stall_bound_millis);
        self.stuck += other.stuck;
        self.leftovers += other.leftovers;
        self.inert_files += other.inert_files;
        self.violations.extend(other.violations);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: String| writeln!(out, "  {name:<52}{value:>10}");
        row("rounds", self.rounds.to_string())?;
        row("complete migrations", self.migrations.to_string())?;
        row("rollbacks", self.rollbacks.to_string())?;
        row("cutovers given up and tried again", self.given_up.to_string())?;
        row("faults", self.faults.values().sum::<u64>().to_string())?;
        for (fault, count) in &self.faults {
            row(&format!("  {fault}"), count.to_string())?;
        }
        row("faults that found nothing to break", self.missed.to_string())?;
        row("records acknowledged on the sources", self.acknowledged.to_string())?;
        row("boots of the sources, all records checked", self.source_boots.to_string())?;
        row("lost", self.lost.to_string())?;
        let (source, target) = self.looks;
        row("looks at which a source ran", source.to_string())?;
        row("looks at which a target ran", target.to_string())?;
        row("double runs", self.double_runs.to_string())?;
        let stall = format!("worst guest stall (bound {} ms)", self.stall_bound_millis);
        row(&stall, format!("{} ms", self.worst_stall_millis))?;
        row("stuck", self.stuck.to_string())?;
        row("leftovers", self.leftovers.to_string())?;
        row("free locks and dead sockets in the run directory", self.inert_files.to_string())?;
        for violation in &self.violations {
            writeln!(out, "  VIOLATION {violation}")?;
        }
        Ok(())
    }
}
