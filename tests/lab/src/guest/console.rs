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
        complete
            .lines()
            .filter_map(|line| {
                let (n, at) = line.trim().strip_prefix("ACK ")?.split_once(' ')?;
                Some((n.parse().ok()?, at.parse().ok()?))
            })
            .collect()
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

    /// What each disk held when the guest booted last.
    pub fn verified(&self) -> BTreeMap<u32, Records> {
        let text = self.text();
        let values = |line: &str| -> Option<(u32, Records)> {
            let mut fields = line
                .trim()
                .strip_prefix("VERIFIED ")?
                .split(' ')
                .filter_map(|field| field.split_once('=')?.1.parse::<u64>().ok());
            Some((u32::try_from(fields.next()?).ok()?, Records { upto: fields.next()?, bad: fields.next()? }))
        };
        text.lines().filter_map(values).collect()
    }
}
