//! Records as the test guest writes them: numbered, checksummed, in a ring of slots in one file per disk.
//!
//! Shared by the guest's writer, which is compiled by itself, and by the lab: standard library only.
//!
//! Record `n` (from 1) lies `stride` slots after the record before it, round the ring. A slot is a header of 32 bytes (magic, number, payload
//! length, checksum, all little-endian) and a payload that follows from the number alone. Writing record `n` destroys record `n - ring`; so of
//! a ring whose newest record is `upto`, the records above `upto + 1 - ring` must all be there.

pub const HEADER_BYTES: usize = 32;
const MAGIC: u64 = u64::from_le_bytes(*b"DRVREC01");

/// What a ring holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// The newest valid record; 0 = none.
    pub upto: u64,
    /// Records that should be there and are not, or are damaged.
    pub bad: u64,
}

/// Where records lie in a file.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    /// How many there are.
    pub slots: u64,
    /// 1 = one after the other; more = apart, as a database writes its pages. It must have no divisor in common with `slots`.
    pub stride: u64,
    pub payload_bytes: usize,
}

impl Ring {
    /// Bytes of one slot: a whole number of sectors.
    pub fn slot_bytes(self) -> usize {
        (HEADER_BYTES + self.payload_bytes).div_ceil(512) * 512
    }

    /// Where record `n` begins.
    pub fn offset(self, n: u64) -> u64 {
        n % self.slots * self.stride % self.slots * self.slot_bytes() as u64
    }

    /// Reads the whole ring, slot by slot: `read` fills a slot from an offset, or says that it cannot.
    pub fn check(self, mut read: impl FnMut(u64, &mut [u8]) -> bool) -> Records {
        let mut slot = vec![0; self.slot_bytes()];
        let mut at = |n: u64| if read(self.offset(n), &mut slot) { decode(&slot, self.payload_bytes) } else { None };
        let found: Vec<Option<u64>> = (0..self.slots).map(&mut at).collect();
        let upto = found.iter().flatten().copied().max().unwrap_or(0);
        let first = (upto + 2).saturating_sub(self.slots).max(1);
        let bad = (first..=upto).filter(|n| found[(n % self.slots) as usize] != Some(*n)).count() as u64;
        Records { upto, bad }
    }
}

/// The whole slot of record `n`.
pub fn encode(n: u64, ring: Ring) -> Vec<u8> {
    let payload_bytes = ring.payload_bytes;
    let mut slot = vec![0; ring.slot_bytes()];
    let payload = &mut slot[HEADER_BYTES..HEADER_BYTES + payload_bytes];
    let mut state = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for chunk in payload.chunks_mut(8) {
        // xorshift64: incompressible enough, and each number has a payload of its own.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    let sum = checksum(n, payload);
    slot[0..8].copy_from_slice(&MAGIC.to_le_bytes());
    slot[8..16].copy_from_slice(&n.to_le_bytes());
    slot[16..24].copy_from_slice(&(payload_bytes as u64).to_le_bytes());
    slot[24..32].copy_from_slice(&sum.to_le_bytes());
    slot
}

/// The number of the record in a slot, if it is whole.
pub fn decode(slot: &[u8], payload_bytes: usize) -> Option<u64> {
    let word = |at: usize| Some(u64::from_le_bytes(slot.get(at..at + 8)?.try_into().ok()?));
    let n = word(8)?;
    let payload = slot.get(HEADER_BYTES..HEADER_BYTES + payload_bytes)?;
    let whole = word(0)? == MAGIC && word(16)? == payload_bytes as u64 && word(24)? == checksum(n, payload);
    whole.then_some(n)
}

/// FNV-1a over the number and, by words, the payload.
fn checksum(n: u64, payload: &[u8]) -> u64 {
    let mut sum = 0xCBF2_9CE4_8422_2325_u64 ^ n;
    for chunk in payload.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        sum = (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x0000_0100_0000_01B3);
        sum ^= sum >> 29;
    }
    sum
}
