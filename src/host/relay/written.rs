//! Which blocks of a target may hold anything but zeroes: a bitmap, one bit for 64 KiB.
//!
//! On a fresh target (it reads as zeroes and only this export writes to it) zeroes for a clear block cost nothing. Once data was written
//! to a block, zeroes for it must really be written. A target that is not fresh starts with every bit set.

/// Bytes that one bit stands for.
pub const BLOCK_BYTES: u64 = 64 << 10;

static ZEROES: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];

/// See the module's text.
#[derive(Debug)]
pub struct Written(Vec<u64>);

impl Written {
    pub fn new(size_bytes: u64, fresh: bool) -> Self {
        let words = size_bytes.div_ceil(BLOCK_BYTES).div_ceil(64);
        Self(vec![if fresh { 0 } else { u64::MAX }; words as usize])
    }

    /// Whether the block that holds `offset` may hold data.
    pub fn contains(&self, offset: u64) -> bool {
        let block = offset / BLOCK_BYTES;
        self.0[(block / 64) as usize] & (1 << (block % 64)) != 0
    }

    /// Data goes to the block that holds `offset`.
    pub fn insert(&mut self, offset: u64) {
        let block = offset / BLOCK_BYTES;
        self.0[(block / 64) as usize] |= 1 << (block % 64);
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
    fn a_fresh_target_is_clear_and_remembers_each_block() {
        let mut written = Written::new(10 << 20, true);
        assert!(!written.contains(5 << 20));
        written.insert(5 << 20);
        assert!(written.contains((5 << 20) + BLOCK_BYTES - 1));
        assert!(!written.contains((5 << 20) + BLOCK_BYTES));
        assert!(Written::new(10 << 20, false).contains((10 << 20) - 1));
    }
}
