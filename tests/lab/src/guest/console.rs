//! What a guest said on its serial console.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::Records;

/// What holds the newest records.
const END_BYTES: u64 = 4096;

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

    /// All of it but a line that is being written.
    fn complete_lines(&self) -> String {
        let mut text = self.text();
        text.truncate(text.rfind('\n').unwrap_or(0));
        text
    }

    /// Every acknowledged record: its number, and the guest's clock in milliseconds.
    pub fn acks(&self) -> Vec<(u64, u64)> {
        self.complete_lines().lines().filter_map(ack).collect()
    }

    /// The newest acknowledged record. It is asked for all the time, so only the end of a long console is read.
    pub fn last_ack(&self) -> Option<u64> {
        let end = self.end().unwrap_or_default();
        let text = String::from_utf8_lossy(&end);
        let complete = &text[..text.rfind('\n').unwrap_or(0)];
        let found = complete.lines().rev().find_map(ack).map(|(n, _)| n);
        found.or_else(|| self.acks().last().map(|(n, _)| *n))
    }

    fn end(&self) -> std::io::Result<Vec<u8>> {
        let mut file = File::open(&self.path)?;
        let begin = file.metadata()?.len().saturating_sub(END_BYTES);
        file.seek(SeekFrom::Start(begin))?;
        let mut end = Vec::new();
        file.read_to_end(&mut end)?;
        // The first line may lack its beginning.
        let first =
            if begin == 0 { 0 } else { end.iter().position(|byte| *byte == b'\n').map_or(end.len(), |at| at + 1) };
        Ok(end.split_off(first))
    }

    /// The longest time between two acknowledgements from record `since` on, by the guest's own clock, in milliseconds.
    pub fn max_gap_millis_since(&self, since: u64) -> u64 {
        self.longest_gap_since(since).map_or(0, |gap| gap.millis)
    }

    /// Where that longest time was. A boot is no gap: the clock begins anew.
    pub fn longest_gap_since(&self, since: u64) -> Option<Gap> {
        let (mut last, mut longest): (Option<(u64, u64)>, Option<Gap>) = (None, None);
        for line in self.complete_lines().lines() {
            if verified(line).is_some() {
                last = None;
            }
            let Some((n, at)) = ack(line) else { continue };
            if let Some((before, then)) = last.filter(|(before, _)| *before >= since) {
                let gap = Gap { after: before, at_millis: then, millis: at.saturating_sub(then) };
                longest = longest.filter(|longest| longest.millis >= gap.millis).or(Some(gap));
            }
            last = Some((n, at));
        }
        longest
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

/// Time between two acknowledgements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The record after which it began.
    pub after: u64,
    /// The guest's clock then.
    pub at_millis: u64,
    pub millis: u64,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_record_of_a_long_console_is_its_last_whole_line() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let console = Console::new(file.path());
        assert_eq!(console.last_ack(), None);
        let many: String = (1..=1000).map(|n| format!("ACK {n} {}\n", n * 50)).collect();
        std::fs::write(file.path(), format!("UP\n{many}ACK 10")).expect("written");
        assert_eq!(console.last_ack(), Some(1000));
        std::fs::write(file.path(), format!("{many}{}\n", "x".repeat(5000))).expect("written");
        assert_eq!(console.last_ack(), Some(1000));
    }
}
