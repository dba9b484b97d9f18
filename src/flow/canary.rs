//! The marker that shows that a file is a disk: written over NFS by the host side, read through Prism by the controller.

use sha2::{Digest, Sha256};

/// Length of a marker: one sector, at the start of the disk.
pub const MARKER_BYTES: usize = 512;

/// The marker of a migration's disk. Its words are for whoever finds one; the rest makes that nothing else is taken for it.
pub fn marker(migration_uid: &str, device: &str, nonce: &str) -> [u8; MARKER_BYTES] {
    let words = format!("Drover canary {migration_uid} {device} {nonce}\n");
    let words = &words.as_bytes()[..words.len().min(MARKER_BYTES / 2)];
    let mut marker = [0; MARKER_BYTES];
    for (number, chunk) in (0_u32..).zip(marker.chunks_mut(32)) {
        let hash = Sha256::new().chain_update(words).chain_update(number.to_le_bytes()).finalize();
        chunk.copy_from_slice(&hash);
    }
    marker[..words.len()].copy_from_slice(words);
    marker
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_one_disks_of_one_migration_at_one_time() {
        let one = marker("uid-1", "vda", "n");
        assert!(one.starts_with(b"Drover canary uid-1 vda n\n"));
        assert_eq!(one, marker("uid-1", "vda", "n"));
        for other in [marker("uid-2", "vda", "n"), marker("uid-1", "vdb", "n"), marker("uid-1", "vda", "m")] {
            assert_ne!(one[..256], other[..256]);
            assert_ne!(one[256..], other[256..], "not only by its words");
        }
        assert!(one[256..].chunks(32).all(|chunk| chunk.iter().any(|byte| *byte != 0)));
        marker(&"u".repeat(600), "vda", "n");
    }
}
