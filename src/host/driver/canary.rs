//! Markers at the start of targets, written in the background of the turns: a storage that hangs must not hang them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::chain;
use crate::api::block_copy::DiskCopy;
use crate::flow::canary::{MARKER_BYTES, marker};
use crate::flow::copy::{CanaryProgress, CanarySeen};
use crate::host::relay::TargetSpec;

/// Pause before one that failed is written again.
const PAUSE: Duration = Duration::from_secs(5);

/// Markers that are being written or were, by device.
#[derive(Default)]
pub(super) struct Canaries(BTreeMap<String, Canary>);

struct Canary {
    nonce: String,
    task: tokio::task::JoinHandle<CanaryProgress>,
    ended: Option<(Instant, CanaryProgress)>,
}

impl Canaries {
    /// Writes one, unless it is being written, is written, or has failed only just now. It is never broken off: a call that the storage has
    /// taken in may be carried out after whatever is written next.
    pub(super) fn write(&mut self, disk: DiskCopy, migration_uid: String, nonce: String) {
        if let Some(begun) = self.0.get(&disk.device) {
            match &begun.ended {
                None => return,
                Some((_, CanaryProgress::Written)) if begun.nonce == nonce => return,
                Some((at, CanaryProgress::Failed(_))) if at.elapsed() < PAUSE => return,
                Some(_) => {}
            }
        }
        let bytes = marker(&migration_uid, &disk.device, &nonce);
        let device = disk.device.clone();
        let task = tokio::spawn(async move {
            match write(disk, bytes).await {
                Ok(()) => CanaryProgress::Written,
                Err(why) => CanaryProgress::Failed(why),
            }
        });
        self.0.insert(device, Canary { nonce, task, ended: None });
    }

    /// How far each one is.
    pub(super) fn seen(&mut self) -> BTreeMap<String, CanarySeen> {
        use futures::FutureExt;
        let look = |canary: &mut Canary| {
            if canary.ended.is_none()
                && let Some(ended) = (&mut canary.task).now_or_never()
            {
                let ended = ended.unwrap_or_else(|err| CanaryProgress::Failed(err.to_string()));
                canary.ended = Some((Instant::now(), ended));
            }
            let progress = canary.ended.as_ref().map_or(CanaryProgress::Writing, |(_, ended)| ended.clone());
            CanarySeen { nonce: canary.nonce.clone(), progress }
        };
        self.0.iter_mut().map(|(device, canary)| (device.clone(), look(canary))).collect()
    }
}

/// Writes a marker, and reads it back over another connection.
async fn write(disk: DiskCopy, bytes: [u8; MARKER_BYTES]) -> Result<(), String> {
    let spec = TargetSpec::Nfs(disk.target);
    let target = spec.open(disk.size_bytes).await.map_err(|err| chain(&err))?;
    let mut writer = target.connect().await.map_err(|err| chain(&err))?;
    writer.write(0, &[Bytes::copy_from_slice(&bytes)]).await.map_err(|err| chain(&err))?;
    drop(writer);
    let mut reader = target.connect().await.map_err(|err| chain(&err))?;
    let mut there = [0; MARKER_BYTES];
    reader.read(0, &mut there).await.map_err(|err| chain(&err))?;
    if there == bytes { Ok(()) } else { Err(format!("{spec} does not hold what was written to it a moment ago")) }
}
