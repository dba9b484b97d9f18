//! A source disk and its target, read side by side, extent by extent.
//!
//! The source is read with O_DIRECT, past the host's page cache, as QEMU wrote it. A file system without O_DIRECT is an error and not
//! a reason for cached reads, but for tmpfs, where the page cache is the storage. Holes are no shortcut: the target is read there too.
//! The target is read through connections that this pair opened for itself.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use nix::errno::Errno;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use tokio::sync::Mutex;

use super::VerifyError;
use super::ledger::Hash;
use crate::host::relay::target::{Target, TargetConnection, TargetError, TargetSpec, file_size_bytes};
use crate::host::relay::writes::EXTENT_BYTES;

/// What O_DIRECT asks of buffers, offsets and lengths on any common disk.
const ALIGNMENT: usize = 4096;

/// See the module's text. Needs a multi-threaded tokio runtime.
pub struct Pair {
    source: Arc<File>,
    source_path: PathBuf,
    target: Arc<dyn Target>,
    size_bytes: u64,
    idle: Mutex<Vec<Box<dyn TargetConnection>>>,
}

/// How an extent was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// blake3 of its content.
    Equal(Hash),
    /// Where on the disk the first difference in it lies.
    Differs { offset: u64 },
}

impl Pair {
    /// Opens the source, which must have exactly `size_bytes`, and the target, which may have more.
    pub async fn open(source_path: &Path, size_bytes: u64, target: &TargetSpec) -> Result<Arc<Self>, VerifyError> {
        let source = Arc::new(open_source(source_path, size_bytes)?);
        let target = target.open(size_bytes).await?;
        Ok(Arc::new(Self { source, source_path: source_path.into(), target, size_bytes, idle: Mutex::default() }))
    }

    /// Reads an extent from both and compares.
    pub async fn compare(self: Arc<Self>, extent: usize) -> Result<Verdict, VerifyError> {
        let (offset, len) = self.place(extent);
        let (source, from_target) = tokio::join!(self.read_source(offset, len), self.read_target(offset, len));
        let source = source?;
        Ok(match first_difference(source.as_ref(), &from_target?) {
            None => Verdict::Equal(*blake3::hash(source.as_ref()).as_bytes()),
            Some(at) => Verdict::Differs { offset: offset + at },
        })
    }

    /// Writes an extent of the target anew from the source; returns when that is on stable storage. A write that its caller gives up is
    /// not sent any more.
    pub async fn repair(&self, extent: usize) -> Result<(), VerifyError> {
        let (offset, len) = self.place(extent);
        let content = self.read_source(offset, len).await?;
        let mut connection = self.target.connect().await?;
        let bytes = Bytes::copy_from_slice(content.as_ref());
        Ok(connection.write(offset, &[bytes]).await?)
    }

    fn place(&self, extent: usize) -> (u64, usize) {
        let offset = extent as u64 * EXTENT_BYTES;
        (offset, EXTENT_BYTES.min(self.size_bytes - offset) as usize)
    }

    async fn read_source(&self, offset: u64, len: usize) -> Result<Aligned, VerifyError> {
        let source = Arc::clone(&self.source);
        let read = tokio::task::spawn_blocking(move || read_direct(&source, offset, len)).await;
        read.expect("reading does not panic").map_err(|cause| VerifyError::Source {
            operation: "read",
            path: self.source_path.clone(),
            cause,
        })
    }

    async fn read_target(&self, offset: u64, len: usize) -> Result<Vec<u8>, TargetError> {
        let idle = self.idle.lock().await.pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => self.target.connect().await?,
        };
        let mut buffer = vec![0; len];
        connection.read(offset, &mut buffer).await?;
        self.idle.lock().await.push(connection); // only a connection in step goes back
        Ok(buffer)
    }
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
            // A short read in the middle goes on from the last aligned byte.
            Ok(n) if done + n >= len || n >= ALIGNMENT => {
                done += if done + n >= len { n } else { n / ALIGNMENT * ALIGNMENT }
            }
            Ok(_) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ends early")),
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
