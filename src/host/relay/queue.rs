//! What was acknowledged and is not yet on the target: a pure data structure, no clock, no I/O.
//!
//! Extents never overlap within `pending`, nor within `in_flight`: a new write cuts away what it covers of older pending ones, so a block
//! that is rewritten many times reaches the target once. An extent that overlaps one in flight waits for it, which keeps overlapping
//! writes in order. What is pending lies over what is in flight, and that over the target: [`Queue::overlay`] shows it to readers.
//!
//! Every change gets a number, and an extent that covers older pending bytes takes over their number. So "the oldest number is above n"
//! means that everything acknowledged up to n, or something newer in its place, is on the target: that is what an honest flush waits for.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

/// What an extent holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Data(Bytes),
    /// Zeroes: no memory behind them.
    Zero,
}

impl Content {
    fn slice(&self, from: u64, to: u64) -> Self {
        match self {
            Content::Data(bytes) => Content::Data(bytes.slice(from as usize..to as usize)),
            Content::Zero => Content::Zero,
        }
    }
}

#[derive(Clone, Debug)]
struct Extent {
    len: u64,
    number: u64,
    content: Content,
}

/// One write to the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub offset: u64,
    pub len: u64,
    pub content: RunContent,
}

/// What a [`Run`] writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunContent {
    /// Adjacent pieces.
    Data(Vec<Bytes>),
    Zero,
}

/// A part of the disk that is newer here than on the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub offset: u64,
    pub len: u64,
    pub content: Content,
}

/// Which run to take next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefer {
    /// Data before zeroes: data holds memory that writers wait for, and zeroes may still be covered by data that is on its way.
    Data,
    /// Strictly by age: somebody waits for everything up to a point.
    Oldest,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Queue {
    pending: BTreeMap<u64, Extent>,
    data_by_age: BTreeSet<(u64, u64)>,
    zeroes_by_age: BTreeSet<(u64, u64)>,
    in_flight: BTreeMap<u64, Extent>,
    in_flight_ages: BTreeSet<(u64, u64)>,
    last_number: u64,
    pending_bytes: u64,
    in_flight_bytes: u64,
    data_bytes: u64,
}

impl Queue {
    /// Adds a write and returns its number.
    pub fn put(&mut self, offset: u64, len: u64, content: Content) -> u64 {
        self.last_number += 1;
        if len == 0 {
            return self.last_number;
        }
        let number = self.cut(offset, offset + len).unwrap_or(self.last_number);
        self.insert_pending(offset, Extent { len, number, content });
        self.last_number
    }

    /// Number of the newest write.
    pub fn last_number(&self) -> u64 {
        self.last_number
    }

    /// Number of the oldest write that is not on the target; `None` when everything is.
    pub fn oldest_number(&self) -> Option<u64> {
        [&self.data_by_age, &self.zeroes_by_age, &self.in_flight_ages]
            .into_iter()
            .filter_map(|ages| ages.first().map(|(number, _)| *number))
            .min()
    }

    /// Bytes that are not on the target yet, zeroes included.
    pub fn backlog_bytes(&self) -> u64 {
        self.pending_bytes + self.in_flight_bytes
    }

    /// The part of the backlog that holds memory.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Takes the next run of at most `max_bytes`, with its neighbours, and marks it in flight. `None` when nothing may be written now.
    pub fn take(&mut self, max_bytes: u64, prefer: Prefer) -> Option<Run> {
        let start = self.next_start(prefer)?;
        let starts = self.grow(start, max_bytes);
        let mut number = u64::MAX;
        let (mut len, mut pieces) = (0, Vec::new());
        for start in &starts {
            let extent = self.remove_pending(*start).expect("grow returns pending extents");
            let (taken, rest) = split(extent, max_bytes - len);
            if let Some(rest) = rest {
                self.insert_pending(start + taken.len, rest);
            }
            number = number.min(taken.number);
            len += taken.len;
            if let Content::Data(bytes) = taken.content {
                pieces.push(bytes);
            }
        }
        let offset = starts[0];
        let zero = pieces.is_empty();
        self.fly(offset, number, len, &pieces);
        Some(Run { offset, len, content: if zero { RunContent::Zero } else { RunContent::Data(pieces) } })
    }

    /// The run at `offset` is on the target's disk.
    pub fn complete(&mut self, run: &Run) {
        let mut at = run.offset;
        while at < run.offset + run.len {
            let extent = self.in_flight.remove(&at).expect("only a run that was taken is completed");
            self.in_flight_ages.remove(&(extent.number, at));
            self.in_flight_bytes -= extent.len;
            if matches!(extent.content, Content::Data(_)) {
                self.data_bytes -= extent.len;
            }
            at += extent.len;
        }
    }

    /// Forgets what is pending (not what is in flight) and returns how many bytes that was.
    pub fn drop_pending(&mut self) -> u64 {
        let dropped = self.pending_bytes;
        let data: u64 = self.data_by_age.iter().map(|(_, start)| self.pending[start].len).sum();
        self.data_bytes -= data;
        self.pending_bytes = 0;
        self.pending.clear();
        self.data_by_age.clear();
        self.zeroes_by_age.clear();
        dropped
    }

    /// What is newer here than on the target between `offset` and `offset + len`, in the order in which it must be laid over it.
    pub fn overlay(&self, offset: u64, len: u64) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for map in [&self.in_flight, &self.pending] {
            for (start, extent) in overlapping(map, offset, offset + len) {
                let from = offset.max(start);
                let to = (offset + len).min(start + extent.len);
                let content = extent.content.slice(from - start, to - start);
                pieces.push(Piece { offset: from, len: to - from, content });
            }
        }
        pieces
    }

    /// Cuts the pending extents free of `from..to`; the lowest number of what was cut away.
    fn cut(&mut self, from: u64, to: u64) -> Option<u64> {
        let starts: Vec<u64> = overlapping(&self.pending, from, to).map(|(start, _)| start).collect();
        let mut lowest: Option<u64> = None;
        for start in starts {
            let extent = self.remove_pending(start).expect("found a moment ago");
            let end = start + extent.len;
            lowest = Some(lowest.map_or(extent.number, |n| n.min(extent.number)));
            if start < from {
                let content = extent.content.slice(0, from - start);
                self.insert_pending(start, Extent { len: from - start, number: extent.number, content });
            }
            if end > to {
                let content = extent.content.slice(to - start, extent.len);
                self.insert_pending(to, Extent { len: end - to, number: extent.number, content });
            }
        }
        lowest
    }

    fn next_start(&self, prefer: Prefer) -> Option<u64> {
        let first = |ages: &BTreeSet<(u64, u64)>| ages.iter().find(|(_, start)| self.may_fly(*start)).copied();
        let data = first(&self.data_by_age);
        let chosen = match prefer {
            Prefer::Data => data.or_else(|| first(&self.zeroes_by_age)),
            Prefer::Oldest => data.into_iter().chain(first(&self.zeroes_by_age)).min(),
        };
        chosen.map(|(_, start)| start)
    }

    fn may_fly(&self, start: u64) -> bool {
        let end = start + self.pending[&start].len;
        overlapping(&self.in_flight, start, end).next().is_none()
    }

    /// Starts of the extents that make one run with the one at `start`: neighbours without a gap, of one kind, up to `max_bytes`.
    fn grow(&self, start: u64, max_bytes: u64) -> Vec<u64> {
        let first = &self.pending[&start];
        let zero = matches!(first.content, Content::Zero);
        let fits = |at: u64, extent: &Extent, len: u64| {
            matches!(extent.content, Content::Zero) == zero && len + extent.len <= max_bytes && self.may_fly(at)
        };
        let (mut from, mut len) = (start, first.len);
        let mut starts = std::collections::VecDeque::from([start]);
        for (at, extent) in self.pending.range(..start).rev() {
            if at + extent.len != from || !fits(*at, extent, len) {
                break;
            }
            starts.push_front(*at);
            from = *at;
            len += extent.len;
        }
        let mut to = start + first.len;
        for (at, extent) in self.pending.range(start + 1..) {
            if *at != to || !fits(*at, extent, len) {
                break;
            }
            starts.push_back(*at);
            to += extent.len;
            len += extent.len;
        }
        starts.into()
    }

    fn fly(&mut self, offset: u64, number: u64, len: u64, pieces: &[Bytes]) {
        let extents: Vec<Extent> = if pieces.is_empty() {
            vec![Extent { len, number, content: Content::Zero }]
        } else {
            let one = |bytes: &Bytes| Extent { len: bytes.len() as u64, number, content: Content::Data(bytes.clone()) };
            pieces.iter().map(one).collect()
        };
        let mut at = offset;
        for extent in extents {
            self.in_flight_bytes += extent.len;
            if matches!(extent.content, Content::Data(_)) {
                self.data_bytes += extent.len;
            }
            self.in_flight_ages.insert((number, at));
            let len = extent.len;
            self.in_flight.insert(at, extent);
            at += len;
        }
    }

    fn ages(&mut self, content: &Content) -> &mut BTreeSet<(u64, u64)> {
        match content {
            Content::Data(_) => &mut self.data_by_age,
            Content::Zero => &mut self.zeroes_by_age,
        }
    }

    fn insert_pending(&mut self, start: u64, extent: Extent) {
        self.pending_bytes += extent.len;
        if matches!(extent.content, Content::Data(_)) {
            self.data_bytes += extent.len;
        }
        self.ages(&extent.content).insert((extent.number, start));
        self.pending.insert(start, extent);
    }

    fn remove_pending(&mut self, start: u64) -> Option<Extent> {
        let extent = self.pending.remove(&start)?;
        self.pending_bytes -= extent.len;
        if matches!(extent.content, Content::Data(_)) {
            self.data_bytes -= extent.len;
        }
        self.ages(&extent.content).remove(&(extent.number, start));
        Some(extent)
    }
}

/// Extents of `map` that share bytes with `from..to`.
fn overlapping(map: &BTreeMap<u64, Extent>, from: u64, to: u64) -> impl Iterator<Item = (u64, &Extent)> {
    let before = map.range(..from).next_back().filter(move |(start, extent)| **start + extent.len > from);
    before.into_iter().chain(map.range(from..to.max(from))).map(|(start, extent)| (*start, extent))
}

/// The parts of `offset..offset + len` that no piece covers.
pub fn gaps(offset: u64, len: u64, pieces: &[Piece]) -> Vec<(u64, u64)> {
    let mut covered: Vec<(u64, u64)> = pieces.iter().map(|piece| (piece.offset, piece.offset + piece.len)).collect();
    covered.sort_unstable();
    let mut gaps = Vec::new();
    let mut at = offset;
    for (from, to) in covered.into_iter().chain([(offset + len, offset + len)]) {
        if from > at {
            gaps.push((at, from - at));
        }
        at = at.max(to);
    }
    gaps
}

/// The first `max_bytes` of an extent, and what is left of it.
fn split(extent: Extent, max_bytes: u64) -> (Extent, Option<Extent>) {
    if extent.len <= max_bytes {
        return (extent, None);
    }
    let Extent { len, number, content } = extent;
    let head = Extent { len: max_bytes, number, content: content.slice(0, max_bytes) };
    let tail = Extent { len: len - max_bytes, number, content: content.slice(max_bytes, len) };
    (head, Some(tail))
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
