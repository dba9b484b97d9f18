//! Bounded memory, shared evenly by the open exports.
//!
//! Each export may hold an equal share, so none can starve another. Most of a share is for what was acknowledged; a reserve is kept for
//! taking requests in while they wait to be acknowledged, because the age of a request is only known once it was read from its socket.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

/// Longest request that carries data. NBD clients are told and split longer ones.
pub const MAX_REQUEST_BYTES: u64 = 4 << 20;
/// Smallest share that an export can work with: the reserve, and as much again for acknowledged data.
pub const MIN_SHARE_BYTES: u64 = 2 * MIN_RESERVE_BYTES;
const MIN_RESERVE_BYTES: u64 = 2 * MAX_REQUEST_BYTES;
const MAX_RESERVE_BYTES: u64 = 32 << 20;

/// The memory of one relay.
#[derive(Debug)]
pub struct Memory {
    total_bytes: u64,
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct State {
    used_bytes: u64,
    shares: u64,
}

/// One export's part.
#[derive(Debug)]
pub struct Share {
    memory: Arc<Memory>,
    used_bytes: Mutex<u64>,
}

/// Memory that was handed out; it returns when this is dropped.
#[derive(Debug)]
pub struct Lease {
    share: Arc<Share>,
    bytes: u64,
}

/// A buffer and its lease, until it is frozen into [`Bytes`]: the lease ends with the last of their slices.
#[derive(Debug)]
pub struct Buffer {
    pub data: Vec<u8>,
    /// Dropped after the data, so that the bound holds at every moment.
    _lease: Lease,
}

impl Memory {
    pub fn new(total_bytes: u64) -> Arc<Self> {
        Arc::new(Self { total_bytes, state: Mutex::default(), freed: Notify::new() })
    }

    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// How much is handed out.
    pub fn used_bytes(&self) -> u64 {
        self.state().used_bytes
    }

    /// A share for one more export; `None` when the shares would be too small to work with.
    pub fn share(self: &Arc<Self>) -> Option<Arc<Share>> {
        let mut state = self.state();
        if self.total_bytes / (state.shares + 1) < MIN_SHARE_BYTES {
            return None;
        }
        state.shares += 1;
        Some(Arc::new(Share { memory: Arc::clone(self), used_bytes: Mutex::new(0) }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    fn limit_bytes(&self) -> u64 {
        self.memory.total_bytes / self.memory.state().shares.max(1)
    }

    /// How much acknowledged data may wait for the target.
    pub fn acknowledged_limit_bytes(&self) -> u64 {
        let limit = self.limit_bytes();
        limit - (limit / 4).clamp(MIN_RESERVE_BYTES, MAX_RESERVE_BYTES).min(limit)
    }

    /// A buffer of `len` bytes, at once if there is room for it.
    pub fn try_buffer(self: &Arc<Self>, len: u64) -> Option<Buffer> {
        let limit = self.limit_bytes();
        let mut mine = self.used_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = self.memory.state();
        if *mine + len > limit || all.used_bytes + len > self.memory.total_bytes {
            return None;
        }
        *mine += len;
        all.used_bytes += len;
        drop((all, mine));
        Some(Buffer { data: vec![0; len as usize], _lease: Lease { share: Arc::clone(self), bytes: len } })
    }

    /// A buffer of `len` bytes, as soon as there is room for it.
    pub async fn buffer(self: &Arc<Self>, len: u64) -> Buffer {
        loop {
            let freed = self.memory.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if let Some(buffer) = self.try_buffer(len) {
                return buffer;
            }
            freed.await;
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.memory.state().shares -= 1;
        self.memory.freed.notify_waiters();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        *self.share.used_bytes.lock().unwrap_or_else(PoisonError::into_inner) -= self.bytes;
        self.share.memory.state().used_bytes -= self.bytes;
        self.share.memory.freed.notify_waiters();
    }
}

impl Buffer {
    /// The data as shareable slices.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn one_export_cannot_take_the_share_of_another() {
        let memory = Memory::new(64 * MIB);
        let (first, second) = (memory.share().unwrap(), memory.share().unwrap());
        let held: Vec<Buffer> = std::iter::from_fn(|| first.try_buffer(4 * MIB)).collect();
        assert_eq!(held.len() as u64, 8);
        assert!(second.try_buffer(4 * MIB).is_some());
        assert_eq!(second.acknowledged_limit_bytes(), 24 * MIB);
        drop(second);
        assert!(first.try_buffer(4 * MIB).is_some(), "a closed export's share goes to the others");
    }

    #[test]
    fn the_total_holds_even_while_a_share_is_exceeded() {
        let memory = Memory::new(64 * MIB);
        let first = memory.share().unwrap();
        let held: Vec<Buffer> = std::iter::from_fn(|| first.try_buffer(4 * MIB)).collect();
        assert_eq!(memory.used_bytes(), 64 * MIB);
        let second = memory.share().unwrap();
        assert!(second.try_buffer(1).is_none());
        drop(held);
        assert!(second.try_buffer(1).is_some());
        assert_eq!(memory.used_bytes(), 0);
    }

    #[test]
    fn a_lease_ends_with_the_last_slice() {
        let memory = Memory::new(64 * MIB);
        let share = memory.share().unwrap();
        let bytes = share.try_buffer(MIB).unwrap().freeze();
        let slice = bytes.slice(10..20);
        drop(bytes);
        assert_eq!(memory.used_bytes(), MIB);
        drop(slice);
        assert_eq!(memory.used_bytes(), 0);
    }

    #[test]
    fn too_many_exports_for_the_memory_are_refused() {
        let memory = Memory::new(3 * MIN_SHARE_BYTES);
        let shares: Vec<_> = (0..3).map(|_| memory.share().unwrap()).collect();
        assert!(memory.share().is_none());
        drop(shares);
        assert!(memory.share().is_some());
    }
}
