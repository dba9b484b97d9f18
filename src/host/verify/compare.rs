//! The last word: when the guest is off and every writer gone, reads what is not known to be equal. This is downtime, so it reads in
//! parallel.

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
    /// Where the first difference lies that was there in a second reading as well. The comparison ended there.
    pub first_difference_offset: Option<u64>,
    /// The evidence, in hex; empty if there is a difference. It is blake3 over the blake3 hashes (32 bytes each, one after the other) of
    /// the source's extents of 4 MiB, the last of which may be shorter.
    pub blake3: String,
    /// How many extents were read for it; the others were known.
    pub compared_extents: u64,
}

/// Compares source and target in every extent for which `known` has no hash. The source must have exactly `size_bytes`. `progress` gets
/// the number of bytes that are settled so far.
pub async fn compare(
    source_path: &Path,
    size_bytes: u64,
    target: &TargetSpec,
    known: Vec<Option<Hash>>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Comparison, VerifyError> {
    let pair = Pair::open(source_path, size_bytes, target).await?;
    let compared_extents = known.iter().filter(|hash| hash.is_none()).count() as u64;
    let verdicts = known.into_iter().enumerate().map(|(extent, hash)| {
        let pair = Arc::clone(&pair);
        async move {
            match hash {
                Some(hash) => Ok(Verdict::Equal(hash)),
                None => tokio::spawn(pair.compare(extent)).await.expect("comparing does not panic"),
            }
        }
    });
    let mut verdicts = stream::iter(verdicts).buffered(IN_FLIGHT).enumerate().map(|(extent, v)| v.map(|v| (extent, v)));
    let mut hasher = blake3::Hasher::new();
    while let Some((extent, mut verdict)) = verdicts.try_next().await? {
        if let Verdict::Differs { offset } = verdict {
            tracing::warn!(source = %source_path.display(), offset, "a difference; it is read again");
            tokio::time::sleep(SECOND_READ_AFTER).await;
            verdict = Pair::open(source_path, size_bytes, target).await?.compare(extent).await?;
        }
        match verdict {
            Verdict::Equal(hash) => hasher.update(&hash),
            Verdict::Differs { offset } => {
                let blake3 = String::new();
                return Ok(Comparison { first_difference_offset: Some(offset), blake3, compared_extents });
            }
        };
        progress(size_bytes.min((extent as u64 + 1) * EXTENT_BYTES));
    }
    let blake3 = hasher.finalize().to_hex().to_string();
    Ok(Comparison { first_difference_offset: None, blake3, compared_extents })
}
