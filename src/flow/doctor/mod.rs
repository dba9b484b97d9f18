//! What was left behind: from what was seen in the cluster, or on a hypervisor, to findings with what to do about each.
//!
//! Nothing here repairs anything: a leftover means that something went wrong which Drover does not understand, and a person looks first.
//! What is kept on purpose is no leftover: Terraform file and target VM, the mark on a source that was moved away, and the empty lock
//! files of relay and driver.

mod cluster;
mod host;
mod living;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::Serialize;

pub use self::living::{read_living, write_living};
pub use cluster::{ClusterSeen, cluster, living_uids};
pub use host::{ClaimFile, DomainTraces, FileOf, HostSeen, MirrorTrace, ProcessTrace, StrayFile, host};

/// Something that nobody will clear away any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Leftover {
    /// What it is, by the name that other tools know it by.
    pub what: String,
    /// Why it is one.
    pub why: String,
    /// What to do.
    pub todo: String,
}

/// The result of a look.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub leftovers: Vec<Leftover>,
    /// What could not be looked at, and why. Then the list may lack something.
    pub unknown: Vec<String>,
}

impl Report {
    /// 0 = nothing was left behind, 1 = something was, 2 = that is not known.
    pub fn exit_code(&self) -> u8 {
        match (self.unknown.is_empty(), self.leftovers.is_empty()) {
            (false, _) => 2,
            (true, false) => 1,
            (true, true) => 0,
        }
    }

    /// For a person, or for a program.
    pub fn text(&self, json: bool) -> String {
        if json { format!("{:#}\n", serde_json::json!(self)) } else { self.to_string() }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Leftover { what, why, todo } in &self.leftovers {
            writeln!(out, "{what}\n  {why}\n  -> {todo}")?;
        }
        for what in &self.unknown {
            writeln!(out, "not known: {what}")?;
        }
        match self.exit_code() {
            0 => writeln!(out, "nothing was left behind"),
            1 => writeln!(out, "{} left behind", self.leftovers.len()),
            _ => writeln!(out, "{} left behind, and not everything could be looked at", self.leftovers.len()),
        }
    }
}
