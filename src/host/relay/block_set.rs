//! A set of blocks of a disk, one bit for 64 KiB. An export has two:
//!
//! - *written*: blocks that may hold anything but zeroes. On a fresh target (it reads as zeroes and only this export writes to it) zeroes
//!   for any other block cost nothing. Once data was written to a block, zeroes for it must really be written.
//! - *unknown*: blocks whose content this export has neither read nor written yet.
//!
//! Of a target that is not fresh, both begin with every block; of a fresh one, with the first: a canary may have been written there.

/// Bytes that one bit stands for.
pub const BLOCK_BYTES: u64 = 64 << 10;

static ZEROES: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];

/// See the module's text.
#[derive(Clone, Debug)]
pub struct BlockSet(Vec<u64>);

impl BlockSet {
    /// No block of a disk of `size_bytes`, or every one.
    pub fn new(size_bytes: u64, every: bool) -> Self {
        let words = size_bytes.div_ceil(BLOCK_BYTES).div_ceil(64);
        Self(vec![if every { u64::MAX } else { 0 }; words as usize])
    }

    /// Whether the block that holds `offset` is in the set.
    pub fn contains(&self, offset: u64) -> bool {
        let block = offset / BLOCK_BYTES;
        self.0[(block / 64) as usize] & (1 << (block % 64)) != 0
    }

    /// Adds the block that holds `offset`.
    pub fn insert(&mut self, offset: u64) {
        let block = offset / BLOCK_BYTES;
        self.0[(block / 64) as usize] |= 1 << (block % 64);
    }

    /// Takes the block that holds `offset` out.
    pub fn remove(&mut self, offset: u64) {
        let block = offset / BLOCK_BYTES;
        self.0[(block / 64) as usize] &= !(1 << (block % 64));
    }
}

/// Cuts `offset..offset + len` at block boundaries.
pub fn blocks(offset: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let start = at;
            at = end.min((start / BLOCK_BYTES + 1) * BLOCK_BYTES);
            (start, at - start)
        })
    })
}

/// Whether `data`, at most one block, is all zeroes. A comparison with a constant is a single fast loop, also in a debug build.
pub fn is_zero(data: &[u8]) -> bool {
    data == &ZEROES[..data.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_cut_at_their_boundaries() {
        let cut: Vec<_> = blocks(BLOCK_BYTES - 10, BLOCK_BYTES + 20).collect();
        assert_eq!(cut, [(BLOCK_BYTES - 10, 10), (BLOCK_BYTES, BLOCK_BYTES), (2 * BLOCK_BYTES, 10)]);
        assert_eq!(blocks(5, 0).count(), 0);
    }

    #[test]
    fn a_set_remembers_each_block() {
        let mut set = BlockSet::new(10 << 20, false);
        assert!(!set.contains(5 << 20));
        set.insert(5 << 20);
        assert!(set.contains((5 << 20) + BLOCK_BYTES - 1));
        assert!(!set.contains((5 << 20) + BLOCK_BYTES));
        let mut set = BlockSet::new(10 << 20, true);
        set.remove(5 << 20);
        assert!(!set.contains((5 << 20) + BLOCK_BYTES - 1));
        assert!(set.contains((5 << 20) + BLOCK_BYTES) && set.contains((10 << 20) - 1));
    }
}
