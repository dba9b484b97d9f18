//! How fast QEMU may copy: as fast as the target takes it, with at least half of the relay's memory left for the guest's own writes.
//!
//! QEMU's limit holds back the bulk copy only; the guest's writes pass it. A relay full of bulk copy would make them wait.

/// The slowest a copy is set to: never 0, which means "unlimited" to QEMU.
pub const MIN_BYTES_S: u64 = 256 << 10;

/// Speed of one disk's copy in bytes/s, from its share of the relay's memory, its backlog there and the rate at which its target takes it.
///
/// The backlog is steered to a quarter of the share. Above half, copying takes a quarter of the drain: a backlog of its own shrinks all the
/// same, and a guest that alone outruns the target does not keep the copy from ever being done.
pub fn speed_bytes_s(share_bytes: u64, backlog_bytes: u64, drain_bytes_s: u64) -> u64 {
    let aim = share_bytes / 4;
    let speed = if backlog_bytes >= share_bytes / 2 {
        drain_bytes_s / 4
    } else if backlog_bytes > aim {
        drain_bytes_s / 2
    } else {
        // A backlog that stays small says that the target could take more: ask for what it took and the free part of the aim.
        drain_bytes_s.saturating_add(aim - backlog_bytes)
    };
    speed.max(MIN_BYTES_S)
}

/// Whether a new speed is worth a call to QEMU.
pub fn worth_changing(now_bytes_s: u64, wanted_bytes_s: u64) -> bool {
    now_bytes_s == 0 || now_bytes_s.abs_diff(wanted_bytes_s) > now_bytes_s / 8
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn an_idle_target_is_asked_for_more_and_a_full_relay_for_little() {
        assert_eq!(speed_bytes_s(128 * MIB, 0, 0), 32 * MIB);
        assert_eq!(speed_bytes_s(128 * MIB, 0, 100 * MIB), 132 * MIB);
        assert_eq!(speed_bytes_s(128 * MIB, 48 * MIB, 10 * MIB), 5 * MIB);
        assert_eq!(speed_bytes_s(128 * MIB, 64 * MIB, 12 * MIB), 3 * MIB);
        assert_eq!(speed_bytes_s(128 * MIB, 128 * MIB, 0), MIN_BYTES_S);
        assert_eq!(speed_bytes_s(0, 0, 0), MIN_BYTES_S);
    }

    /// With a target of any constant speed the backlog never passes half of the memory.
    #[test]
    fn half_of_the_memory_stays_free() {
        for drain in [1, 4, 50, 400].map(|mib| mib * MIB) {
            let (memory, mut backlog) = (128 * MIB, 0u64);
            let mut seen_drain = 0;
            for _ in 0..200 {
                let speed = speed_bytes_s(memory, backlog, seen_drain);
                let drained = drain.min(backlog + speed);
                backlog = backlog + speed - drained;
                seen_drain = drained;
                assert!(backlog <= memory / 2, "target of {drain} B/s: backlog {backlog}");
            }
        }
    }

    #[test]
    fn small_changes_are_not_worth_a_call() {
        assert!(worth_changing(0, MIB));
        assert!(!worth_changing(8 * MIB, 9 * MIB));
        assert!(worth_changing(8 * MIB, 10 * MIB));
    }
}
