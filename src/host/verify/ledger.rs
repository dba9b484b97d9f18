//! Which extents of a disk were verified, and at which value of their write counter: pure bookkeeping, no clock, no I/O.
//!
//! What is due next: an extent that is quiet and not verified, in the disk's order, round and round; when there is none, the one that was
//! verified longest ago, once that is [`RENEW_SECONDS`]. An extent that changes all the time is left for the end.
//!
//! As bytes ([`Ledger::to_bytes`]) it survives its driver. A whole-file checksum stands at the end: what is torn is no ledger.

use uuid::Uuid;

use crate::host::relay::writes::{EXTENT_BYTES, extent_count};

/// blake3 of an extent's content.
pub type Hash = [u8; 32];

/// How long an extent must have been left alone to be worth reading.
const QUIET_SECONDS: u64 = 3;
/// How long a difference must stand, with nothing written, to be one.
const STANDS_SECONDS: u64 = 5;
/// How old a verified extent may get before it is read again, to see whether the storage has kept it.
const RENEW_SECONDS: u64 = 15 * 60;

const MAGIC: &[u8; 8] = b"DrovVer1";
const HEADER_BYTES: usize = 8 + 16 + 8;
const ENTRY_BYTES: usize = 8 + 8 + 32;
const CHECKSUM_BYTES: usize = 32;

/// See the module's text. Times are seconds on any clock that does not go back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    subject: Uuid,
    size_bytes: u64,
    extents: Vec<Extent>,
    /// Where the round is.
    next: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Extent {
    /// The counter when it was last looked at, and since when it stands there.
    counter: u64,
    since: u64,
    verified: Option<Verified>,
    /// It differed at that counter, first seen then.
    differed: Option<(u64, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Verified {
    counter: u64,
    hash: Hash,
    at: u64,
}

/// An extent to be read now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    pub extent: usize,
    /// It differed when it was read before. If it does again, that is final: make sure first that nothing is on its way to it.
    pub again: bool,
}

impl Ledger {
    /// Nothing is verified yet.
    pub fn new(subject: Uuid, size_bytes: u64) -> Self {
        Self { subject, size_bytes, extents: vec![Extent::default(); extent_count(size_bytes)], next: 0 }
    }

    /// Takes all counters as they are now.
    pub fn look(&mut self, counters: &[u64], now: u64) {
        for (extent, counter) in self.extents.iter_mut().zip(counters) {
            extent.look(*counter, now);
        }
    }

    /// What to read next, if anything is worth it.
    pub fn due(&mut self, now: u64) -> Option<Due> {
        let count = self.extents.len();
        let found = (self.next..count).chain(0..self.next).find(|extent| self.extents[*extent].is_due(now));
        if let Some(extent) = found {
            self.next = (extent + 1) % count;
            return Some(Due { extent, again: self.extents[extent].is_suspect() });
        }
        let verified = |(index, extent): (usize, &Extent)| Some((extent.verified_at(extent.counter)?.at, index));
        let oldest = self.extents.iter().enumerate().filter_map(verified).min();
        let (_, extent) = oldest.filter(|(at, _)| now.saturating_sub(*at) >= RENEW_SECONDS)?;
        Some(Due { extent, again: false })
    }

    /// Both sides were the same, and the counter was `counter` before and after.
    pub fn equal(&mut self, extent: usize, counter: u64, hash: Hash, now: u64) {
        let extent = &mut self.extents[extent];
        extent.look(counter, now);
        extent.verified = Some(Verified { counter, hash, at: now });
        extent.differed = None;
    }

    /// They differed, and the counter was `counter` before and after. True: they did so before, long enough ago, and nothing was written.
    pub fn differs(&mut self, extent: usize, counter: u64, now: u64) -> bool {
        let extent = &mut self.extents[extent];
        extent.look(counter, now);
        extent.verified = None;
        match extent.differed {
            Some((at, since)) if at == counter => now.saturating_sub(since) >= STANDS_SECONDS,
            Some(_) | None => {
                extent.differed = Some((counter, now));
                false
            }
        }
    }

    /// An extent that differed cannot be judged now: something may be on its way to it.
    pub fn put_off(&mut self, extent: usize, now: u64) {
        let extent = &mut self.extents[extent];
        extent.differed = extent.differed.map(|(counter, _)| (counter, now));
    }

    /// Of each extent that was verified at the counter it has now, the hash. What has none is to be compared.
    pub fn known(&self, counters: &[u64]) -> Vec<Option<Hash>> {
        let hash = |(extent, counter): (&Extent, &u64)| extent.verified_at(*counter).map(|verified| verified.hash);
        self.extents.iter().zip(counters).map(hash).collect()
    }

    /// How much of the disk is verified at this moment.
    pub fn verified_bytes(&self, counters: &[u64]) -> u64 {
        let len = |index: usize| EXTENT_BYTES.min(self.size_bytes - index as u64 * EXTENT_BYTES);
        let extents = self.extents.iter().zip(counters).enumerate();
        extents.filter(|(_, (extent, c))| extent.verified_at(**c).is_some()).map(|(index, _)| len(index)).sum()
    }

    /// For a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.subject.as_bytes());
        bytes.extend(self.size_bytes.to_le_bytes());
        for (index, extent) in self.extents.iter().enumerate() {
            if let Some(Verified { counter, hash, at: _ }) = extent.verified {
                bytes.extend((index as u64).to_le_bytes());
                bytes.extend(counter.to_le_bytes());
                bytes.extend(hash);
            }
        }
        bytes.extend(blake3::hash(&bytes).as_bytes());
        bytes
    }

    /// From a file; `None` if it is not whole, or about another subject or disk. What it says was verified is taken to be as of 0.
    pub fn from_bytes(bytes: &[u8], subject: Uuid, size_bytes: u64) -> Option<Self> {
        let (content, checksum) = bytes.split_at_checked(bytes.len().checked_sub(CHECKSUM_BYTES)?)?;
        let (header, entries) = content.split_at_checked(HEADER_BYTES)?;
        let expected = [&MAGIC[..], subject.as_bytes(), &size_bytes.to_le_bytes()].concat();
        if checksum != blake3::hash(content).as_bytes() || header != expected {
            return None;
        }
        let mut ledger = Self::new(subject, size_bytes);
        let (entries, []) = entries.as_chunks::<ENTRY_BYTES>() else { return None };
        for entry in entries {
            let word = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().expect("eight bytes"));
            let hash = entry[16..].try_into().expect("the rest of an entry");
            let extent = ledger.extents.get_mut(usize::try_from(word(0)).ok()?)?;
            extent.verified = Some(Verified { counter: word(8), hash, at: 0 });
        }
        Some(ledger)
    }
}

impl Extent {
    fn look(&mut self, counter: u64, now: u64) {
        if self.counter != counter {
            (self.counter, self.since) = (counter, now);
        }
    }

    fn verified_at(&self, counter: u64) -> Option<Verified> {
        self.verified.filter(|verified| verified.counter == counter)
    }

    fn is_due(&self, now: u64) -> bool {
        let wait = match self.differed {
            Some((counter, since)) if counter == self.counter => since + STANDS_SECONDS,
            Some(_) | None => self.since + QUIET_SECONDS,
        };
        self.verified_at(self.counter).is_none() && now >= wait
    }

    fn is_suspect(&self) -> bool {
        self.differed.is_some_and(|(counter, _)| counter == self.counter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 3 * EXTENT_BYTES + 512;

    fn ledger() -> Ledger {
        Ledger::new(Uuid::from_u128(7), SIZE)
    }

    fn due(ledger: &mut Ledger, now: u64) -> Option<usize> {
        ledger.due(now).map(|due| due.extent)
    }

    #[test]
    fn quiet_extents_are_read_in_turn_and_again_once_they_have_changed() {
        let mut ledger = ledger();
        let mut counters = [0, 0, 0, 0];
        ledger.look(&counters, 0);
        assert_eq!(due(&mut ledger, 2), None, "nobody knows yet whether they are quiet");
        counters[1] = 5;
        ledger.look(&counters, 10);
        for extent in [0, 2, 3] {
            assert_eq!(due(&mut ledger, 10), Some(extent));
            ledger.equal(extent, 0, [extent as u8; 32], 10);
        }
        assert_eq!(due(&mut ledger, 12), None, "extent 1 is not quiet, the others are verified");
        assert_eq!(ledger.verified_bytes(&counters), 2 * EXTENT_BYTES + 512);
        counters[3] = 2;
        ledger.look(&counters, 13);
        assert_eq!(due(&mut ledger, 13), Some(1));
        ledger.equal(1, 5, [1; 32], 13);
        assert_eq!(due(&mut ledger, 15), None);
        assert_eq!(due(&mut ledger, 16), Some(3));
    }

    #[test]
    fn only_what_has_changed_since_remains() {
        let mut ledger = ledger();
        for extent in 0..3 {
            ledger.equal(extent, 4, [extent as u8; 32], 0);
        }
        assert_eq!(ledger.known(&[4, 5, 4, 0]), [Some([0; 32]), None, Some([2; 32]), None]);
        assert_eq!(
            ledger.known(&[4, 3, 4, 0])[1],
            None,
            "a counter never goes back; if it did, it would be another file"
        );
        ledger.differs(0, 4, 9);
        assert_eq!(ledger.known(&[4, 4, 4, 0])[0], None);
    }

    #[test]
    fn a_difference_is_one_when_it_stands_and_nothing_was_written() {
        let mut ledger = ledger();
        ledger.look(&[3, 0, 0, 0], 0);
        assert_eq!(ledger.due(10), Some(Due { extent: 0, again: false }));
        assert!(!ledger.differs(0, 3, 10));
        for extent in 1..4 {
            ledger.equal(extent, 0, [0; 32], 10);
        }
        assert_eq!(ledger.due(14), None);
        assert_eq!(ledger.due(15), Some(Due { extent: 0, again: true }));
        ledger.put_off(0, 15);
        assert_eq!(ledger.due(19), None, "something was on its way");
        assert!(!ledger.differs(0, 3, 19), "not long enough after it was put off");
        assert!(ledger.differs(0, 3, 20));
        // Written meanwhile: nothing is said, and it begins anew.
        ledger.look(&[4, 0, 0, 0], 21);
        assert_eq!(ledger.due(24), Some(Due { extent: 0, again: false }));
        assert!(!ledger.differs(0, 4, 30));
    }

    #[test]
    fn what_was_verified_long_ago_is_read_again_the_oldest_first() {
        let mut ledger = ledger();
        for (extent, at) in [40, 20, 30, 50].into_iter().enumerate() {
            ledger.equal(extent, 0, [0; 32], at);
        }
        assert_eq!(due(&mut ledger, 19 + RENEW_SECONDS), None);
        assert_eq!(due(&mut ledger, 20 + RENEW_SECONDS), Some(1));
        ledger.equal(1, 0, [0; 32], 20 + RENEW_SECONDS);
        assert_eq!(due(&mut ledger, 30 + RENEW_SECONDS), Some(2));
    }

    #[test]
    fn a_ledger_comes_back_whole_or_not_at_all() {
        let mut ledger = ledger();
        ledger.equal(0, 4, [9; 32], 7);
        ledger.equal(3, 6, [8; 32], 7);
        let (bytes, counters) = (ledger.to_bytes(), [4, 0, 0, 6]);
        let back = Ledger::from_bytes(&bytes, Uuid::from_u128(7), SIZE).unwrap();
        assert_eq!(back.known(&counters), [Some([9; 32]), None, None, Some([8; 32])]);
        assert_eq!(back.known(&counters), ledger.known(&counters));
        assert_eq!(Ledger::from_bytes(&bytes, Uuid::from_u128(8), SIZE), None, "about something else");
        assert_eq!(Ledger::from_bytes(&bytes, Uuid::from_u128(7), SIZE + 512), None, "of another disk");
        for len in 0..bytes.len() {
            assert_eq!(Ledger::from_bytes(&bytes[..len], Uuid::from_u128(7), SIZE), None, "torn at {len}");
        }
        for at in 0..bytes.len() {
            let mut spoilt = bytes.clone();
            spoilt[at] ^= 1;
            assert_eq!(Ledger::from_bytes(&spoilt, Uuid::from_u128(7), SIZE), None, "spoilt at {at}");
        }
    }
}
