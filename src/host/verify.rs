//! Proves a target equal to its source, byte for byte: this is downtime, so it reads both sides in parallel.
//!
//! The source is read with O_DIRECT, past the host's page cache, as QEMU wrote it. A file system without O_DIRECT is an error and not
//! a reason for cached reads, but for tmpfs, where the page cache is the storage. Holes are no shortcut: the target is read there too.
//! The target is read through connections opened for this alone; the caller has made sure that every writer is gone.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use nix::errno::Errno;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use tokio::sync::Mutex;

use super::relay::target::{Target, TargetConnection, TargetError, TargetSpec, file_size_bytes};

const EXTENT_BYTES: u64 = 4 << 20;
/// Extents read at a time, each over its own connection.
const IN_FLIGHT: usize = 6;
/// What O_DIRECT asks of buffers, offsets and lengths on any common disk.
const ALIGNMENT: usize = 4096;

/// What a comparison found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    pub equal: bool,
    /// Where the first difference lies. The comparison ended there.
    pub first_difference_offset: Option<u64>,
    /// blake3 of the source's content, in hex; empty unless equal.
    pub blake3: String,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("cannot {operation} the source {path}")]
    Source {
        operation: &'static str,
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("the file system of the source {path} has no O_DIRECT, and what the page cache holds proves nothing")]
    NoDirectRead { path: PathBuf },
    #[error("the source {path} has {actual_bytes} bytes, expected {expected_bytes}")]
    SourceSize { path: PathBuf, expected_bytes: u64, actual_bytes: u64 },
    #[error("cannot read the target")]
    Target(#[from] TargetError),
}

/// Compares the first `size_bytes` of the target with the whole source, which must have that size. `progress` gets the bytes compared
/// so far. Needs a multi-threaded tokio runtime.
pub async fn compare(
    source_path: &Path,
    size_bytes: u64,
    target: &TargetSpec,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Comparison, VerifyError> {
    let source = Arc::new(open_source(source_path, size_bytes)?);
    let target = target.open(size_bytes).await?;
    let pool: Arc<Pool> = Arc::default();
    let offsets = (0..size_bytes).step_by(EXTENT_BYTES as usize);
    let extents = offsets.map(|offset| {
        let len = EXTENT_BYTES.min(size_bytes - offset) as usize;
        let (source, target, pool) = (Arc::clone(&source), Arc::clone(&target), Arc::clone(&pool));
        let path = source_path.to_owned();
        async move {
            let work = tokio::spawn(compare_extent(source, path, target, pool, offset, len));
            work.await.expect("comparing does not panic")
        }
    });
    let mut extents = stream::iter(extents).buffered(IN_FLIGHT);
    let mut hasher = blake3::Hasher::new();
    let mut done = 0;
    while let Some(extent) = extents.try_next().await? {
        if let Some(at) = extent.difference {
            return Ok(Comparison { equal: false, first_difference_offset: Some(done + at), blake3: String::new() });
        }
        hasher.update(extent.source.as_ref());
        done += extent.source.as_ref().len() as u64;
        progress(done);
    }
    Ok(Comparison { equal: true, first_difference_offset: None, blake3: hasher.finalize().to_hex().to_string() })
}

type Pool = Mutex<Vec<Box<dyn TargetConnection>>>;

struct Extent {
    source: Aligned,
    /// Offset of the first difference within the extent.
    difference: Option<u64>,
}

async fn compare_extent(
    source: Arc<File>,
    path: PathBuf,
    target: Arc<dyn Target>,
    pool: Arc<Pool>,
    offset: u64,
    len: usize,
) -> Result<Extent, VerifyError> {
    let read_source = tokio::task::spawn_blocking(move || read_direct(&source, offset, len));
    let read_target = async {
        let idle = pool.lock().await.pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => target.connect().await?,
        };
        let mut buffer = vec![0; len];
        connection.read(offset, &mut buffer).await?;
        pool.lock().await.push(connection);
        Ok::<_, TargetError>(buffer)
    };
    let (from_source, from_target) = tokio::join!(read_source, read_target);
    let source = from_source.expect("reading does not panic").map_err(|cause| VerifyError::Source {
        operation: "read",
        path,
        cause,
    })?;
    let difference = first_difference(source.as_ref(), &from_target?);
    Ok(Extent { source, difference })
}

/// Equality of whole slices is one fast loop also in a debug build; only a slice that differs is searched.
fn first_difference(left: &[u8], right: &[u8]) -> Option<u64> {
    if left == right {
        return None;
    }
    let at = left.iter().zip(right).position(|(left, right)| left != right);
    Some(at.unwrap_or(left.len().min(right.len())) as u64)
}

fn open_source(path: &Path, expected_bytes: u64) -> Result<File, VerifyError> {
    let fail = |operation| move |cause| VerifyError::Source { operation, path: path.into(), cause };
    let file = match File::options().read(true).custom_flags(libc::O_DIRECT).open(path) {
        Err(e) if e.raw_os_error() == Some(Errno::EINVAL as i32) => {
            let file = File::open(path).map_err(fail("open"))?;
            let kind = fstatfs(&file).map_err(|e| fail("look at the file system of")(e.into()))?;
            if kind.filesystem_type() != TMPFS_MAGIC {
                return Err(VerifyError::NoDirectRead { path: path.into() });
            }
            file
        }
        result => result.map_err(fail("open"))?,
    };
    let actual_bytes = file_size_bytes(&file).map_err(fail("get the size of"))?;
    if actual_bytes != expected_bytes {
        return Err(VerifyError::SourceSize { path: path.into(), expected_bytes, actual_bytes });
    }
    Ok(file)
}

/// Bytes at an address that O_DIRECT accepts.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AsRef<[u8]> for Aligned {
    fn as_ref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

/// Reads `len` bytes at `offset`, a multiple of the alignment. The length is rounded up; the end of the file cuts it off again.
fn read_direct(source: &File, offset: u64, len: usize) -> io::Result<Aligned> {
    let room = len.next_multiple_of(ALIGNMENT);
    let mut memory = vec![0; room + ALIGNMENT];
    let start = memory.as_ptr().align_offset(ALIGNMENT);
    let mut done = 0;
    while done < len {
        match source.read_at(&mut memory[start + done..start + room], offset + done as u64) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ends early")),
            // A short read in the middle goes on from the last aligned byte.
            Ok(n) if done + n < len => done = (done + n) / ALIGNMENT * ALIGNMENT,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(Aligned { memory, start, len })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_found() {
        assert_eq!(first_difference(b"abc", b"abc"), None);
        assert_eq!(first_difference(b"abc", b"abd"), Some(2));
    }
}
