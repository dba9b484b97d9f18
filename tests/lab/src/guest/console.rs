//! What a guest said on its serial console.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Records;

/// A console's file, read anew by each question.
#[derive(Clone, Debug)]
pub struct Console {
    path: PathBuf,
}

impl Console {
    /// The console that is logged to `path`; the file may not exist yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// All of it.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.path).unwrap_or_default()).into_owned()
    }

    /// Every acknowledged record: its number, and the guest's clock in milliseconds.
    pub fn acks(&self) -> Vec<(u64, u64)> {
        let text = self.text();
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        complete.lines().filter_map(ack).collect()
    }

    /// The newest acknowledged record.
    pub fn last_ack(&self) -> Option<u64> {
        self.acks().last().map(|(n, _)| *n)
    }

    /// The longest time between two acknowledgements from record `since` on, by the guest's own clock, in milliseconds.
    pub fn max_gap_millis_since(&self, since: u64) -> u64 {
        let acks = self.acks();
        acks.windows(2)
            .filter(|pair| pair[0].0 >= since)
            .map(|pair| pair[1].1.saturating_sub(pair[0].1))
            .max()
            .unwrap_or(0)
    }

    /// How many records that were acknowledged before a boot were not found, or were damaged, at that boot; the worst boot counts.
    pub fn lost_at_boots(&self) -> u64 {
        let (mut acknowledged, mut worst) = (0_u64, 0);
        for line in self.text().lines() {
            if let Some((_, records)) = verified(line) {
                worst = worst.max(acknowledged.saturating_sub(records.upto) + records.bad);
            } else if let Some((n, _)) = ack(line) {
                acknowledged = n;
            }
        }
        worst
    }

    /// What each disk held when the guest booted last.
    pub fn verified(&self) -> BTreeMap<u32, Records> {
        self.text().lines().filter_map(verified).collect()
    }
}

/// `ACK 42 5310`: number, and the guest's clock in milliseconds.
fn ack(line: &str) -> Option<(u64, u64)> {
    let (n, at) = line.trim().strip_prefix("ACK ")?.split_once(' ')?;
    Some((n.parse().ok()?, at.parse().ok()?))
}

/// `VERIFIED disk=0 upto=41 bad=0`.
fn verified(line: &str) -> Option<(u32, Records)> {
    let mut fields = line
        .trim()
        .strip_prefix("VERIFIED ")?
        .split(' ')
        .filter_map(|field| field.split_once('=')?.1.parse::<u64>().ok());
    Some((u32::try_from(fields.next()?).ok()?, Records { upto: fields.next()?, bad: fields.next()? }))
}
