//! The last word: when the guest is off and every writer gone, reads what is not known to be equal. This is downtime, so it reads in
//! parallel.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};

use super::VerifyError;
use super::ledger::Hash;
use super::pair::{Pair, Verdict};
use crate::host::relay::target::TargetSpec;
use crate::host::relay::writes::EXTENT_BYTES;

/// Extents read at a time, each over its own connection.
const IN_FLIGHT: usize = 6;
/// Pause before what differs is read again.
const SECOND_READ_AFTER: Duration = Duration::from_secs(1);

/// What a comparison found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// Where the first difference lies that stands: it was there in a second reading as well and was not to be repaired, or it was there
    /// again after it was. The comparison ended there.
    pub first_difference_offset: Option<u64>,
    /// The evidence, in hex; empty if there is a difference. It is blake3 over the blake3 hashes (32 bytes each, one after the other) of
    /// the source's extents of 4 MiB, the last of which may be shorter.
    pub blake3: String,
    /// How many extents were read for it; the others were known.
    pub compared_extents: u64,
    /// How many of them had differed and were written anew.
    pub repaired_extents: u64,
}

/// Compares source and target in every extent for which `known` has no hash. The source must have exactly `size_bytes`. With `repair` it
/// writes to the target what differs in a second reading as well, and reads it once more. `progress` gets the number of bytes that are
/// settled so far.
pub async fn compare(
    source_path: &Path,
    size_bytes: u64,
    target: &TargetSpec,
    known: Vec<Option<Hash>>,
    repair: bool,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Comparison, VerifyError> {
    let open = || Pair::open(source_path, size_bytes, target);
    let progress = |extents: u64| progress(size_bytes.min(extents * EXTENT_BYTES));
    let mut hashes = known;
    let mut open_extents: Vec<usize> = (0..hashes.len()).filter(|extent| hashes[*extent].is_none()).collect();
    let compared_extents = open_extents.len() as u64;
    let mut repaired = BTreeSet::new();
    while !open_extents.is_empty() {
        let differing = settle(open().await?, &open_extents, &mut hashes, !repair, &progress).await?;
        if let Some((_, offset)) = differing.first() {
            tracing::warn!(source = %source_path.display(), offset, extents = differing.len(), "differences; they are read again");
            tokio::time::sleep(SECOND_READ_AFTER).await;
            let again: Vec<usize> = differing.iter().map(|(extent, _)| *extent).collect();
            let standing = settle(open().await?, &again, &mut hashes, false, &progress).await?;
            let hopeless = standing.iter().find(|(extent, _)| !repair || repaired.contains(extent));
            if let Some((_, offset)) = hopeless {
                let blake3 = String::new();
                let repaired_extents = repaired.len() as u64;
                let first_difference_offset = Some(*offset);
                return Ok(Comparison { first_difference_offset, blake3, compared_extents, repaired_extents });
            }
            write_anew(open().await?, &standing).await?;
            repaired.extend(standing.into_iter().map(|(extent, _)| extent));
        }
        open_extents.retain(|extent| hashes[*extent].is_none());
    }
    let mut hasher = blake3::Hasher::new();
    hashes.iter().flatten().for_each(|hash| {
        hasher.update(hash);
    });
    let blake3 = hasher.finalize().to_hex().to_string();
    let repaired_extents = repaired.len() as u64;
    Ok(Comparison { first_difference_offset: None, blake3, compared_extents, repaired_extents })
}

/// Reads extents from both sides and fills in the hash of each that is equal. Returns the others, each with the place of its first
/// difference; with `stop`, it ends at the first of them. `progress` gets the number of extents that are settled so far.
async fn settle(
    pair: Arc<Pair>,
    extents: &[usize],
    hashes: &mut [Option<Hash>],
    stop: bool,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Vec<(usize, u64)>, VerifyError> {
    let compare = |extent: usize| {
        let pair = Arc::clone(&pair);
        async move {
            let verdict = tokio::spawn(pair.compare(extent)).await.expect("comparing does not panic");
            verdict.map(|verdict| (extent, verdict))
        }
    };
    let mut verdicts = stream::iter(extents.iter().copied().map(compare)).buffered(IN_FLIGHT);
    let mut differing = Vec::new();
    let mut settled = hashes.iter().flatten().count() as u64;
    while let Some((extent, verdict)) = verdicts.try_next().await? {
        match verdict {
            Verdict::Equal(hash) => {
                hashes[extent] = Some(hash);
                settled += 1;
                progress(settled);
            }
            Verdict::Differs { offset } => differing.push((extent, offset)),
        }
        if stop && !differing.is_empty() {
            break;
        }
    }
    Ok(differing)
}

/// Not in tasks of their own: when this future is dropped, no write goes on.
async fn write_anew(pair: Arc<Pair>, extents: &[(usize, u64)]) -> Result<(), VerifyError> {
    for (extent, offset) in extents {
        tracing::error!(extent, offset, "the target differs from the source; the extent is written anew");
    }
    let extents: Vec<usize> = extents.iter().map(|(extent, _)| *extent).collect();
    let write = |extent| {
        let pair = Arc::clone(&pair);
        async move { pair.repair(extent).await }
    };
    stream::iter(extents).map(write).buffer_unordered(IN_FLIGHT).try_collect().await
}
