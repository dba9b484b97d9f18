//! What the relay writes to: a trait with few methods, and its two kinds, a file on an NFSv3 server and a plain file or block device.
//!
//! No target is ever created, resized, or written past the source's size. A write that returned is on stable storage.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use nix::fcntl::{FallocateFlags, fallocate};
use serde::{Deserialize, Serialize};

use crate::api::block_copy::NfsFile;
use crate::edge::nfs::{NfsConnection, NfsError, RemoteFile};

/// Most bytes that one write to a target carries.
const WRITE_MAX_BYTES: u64 = 1 << 20;

/// Where an export's bytes go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TargetSpec {
    /// A file on an NFSv3 server. Its size must be exactly the one named.
    Nfs(NfsFile),
    /// A file or block device on this machine, at least as large as the source.
    File(PathBuf),
}

impl std::fmt::Display for TargetSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TargetSpec::Nfs(file) => write!(f, "nfs://{}{}/{}", file.server.address, file.export, file.path),
            TargetSpec::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// What went wrong with a target.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error(transparent)]
    Nfs(#[from] NfsError),
    #[error("cannot {operation} {path}")]
    File {
        operation: &'static str,
        path: String,
        #[source]
        cause: io::Error,
    },
    #[error("{path} has {actual_bytes} bytes, the source {source_bytes}: the target is too small")]
    TooSmall { path: String, actual_bytes: u64, source_bytes: u64 },
}

impl TargetError {
    /// Whether the same call may succeed later over a new connection.
    pub fn is_transient(&self) -> bool {
        matches!(self, TargetError::Nfs(error) if error.is_transient())
    }
}

/// Something that can be connected to, more than once.
pub trait Target: Send + Sync {
    /// A new connection. A dropped one has not necessarily been forgotten by the other side: see [`TargetConnection`].
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn TargetConnection>, TargetError>>;

    /// Most bytes that one write should carry.
    fn max_write_bytes(&self) -> u64;
}

/// One connection, one call at a time. After an error it must be dropped.
pub trait TargetConnection: Send {
    /// Writes adjacent pieces from `offset` on; returns when they are on stable storage.
    fn write<'a>(&'a mut self, offset: u64, pieces: &'a [Bytes]) -> BoxFuture<'a, Result<(), TargetError>>;
    /// Makes `len` bytes from `offset` on read as zeroes; returns when that is on stable storage.
    fn zero(&mut self, offset: u64, len: u64) -> BoxFuture<'_, Result<(), TargetError>>;
    /// Fills `buffer` from `offset` on.
    fn read<'a>(&'a mut self, offset: u64, buffer: &'a mut [u8]) -> BoxFuture<'a, Result<(), TargetError>>;
    /// Size in bytes, now.
    fn size_bytes(&mut self) -> BoxFuture<'_, Result<u64, TargetError>>;
}

impl TargetSpec {
    /// Opens the target and checks that it exists and fits a source of `source_bytes`.
    pub async fn open(&self, source_bytes: u64) -> Result<Arc<dyn Target>, TargetError> {
        match self {
            TargetSpec::Nfs(file) => {
                if file.size_bytes < source_bytes {
                    return Err(self.too_small(file.size_bytes, source_bytes));
                }
                let (remote, _) = RemoteFile::open(file).await?;
                Ok(Arc::new(NfsTarget(remote)))
            }
            TargetSpec::File(path) => {
                let target = FileTarget(path.clone());
                let actual_bytes = target.connect().await?.size_bytes().await?;
                if actual_bytes < source_bytes {
                    return Err(self.too_small(actual_bytes, source_bytes));
                }
                Ok(Arc::new(target))
            }
        }
    }

    fn too_small(&self, actual_bytes: u64, source_bytes: u64) -> TargetError {
        TargetError::TooSmall { path: self.to_string(), actual_bytes, source_bytes }
    }
}

struct NfsTarget(Arc<RemoteFile>);

impl Target for NfsTarget {
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn TargetConnection>, TargetError>> {
        async { Ok(Box::new(self.0.connect().await?) as Box<dyn TargetConnection>) }.boxed()
    }

    fn max_write_bytes(&self) -> u64 {
        u64::from(self.0.max_write_bytes()).min(WRITE_MAX_BYTES)
    }
}

impl TargetConnection for NfsConnection {
    fn write<'a>(&'a mut self, offset: u64, pieces: &'a [Bytes]) -> BoxFuture<'a, Result<(), TargetError>> {
        async move {
            match pieces {
                [one] => NfsConnection::write(self, offset, one).await?,
                many => NfsConnection::write(self, offset, &many.concat()).await?,
            }
            Ok(())
        }
        .boxed()
    }

    fn zero(&mut self, offset: u64, len: u64) -> BoxFuture<'_, Result<(), TargetError>> {
        // NFSv3 has no call for it.
        async move { Ok(NfsConnection::write(self, offset, &vec![0; len as usize]).await?) }.boxed()
    }

    fn read<'a>(&'a mut self, offset: u64, buffer: &'a mut [u8]) -> BoxFuture<'a, Result<(), TargetError>> {
        async move { Ok(NfsConnection::read(self, offset, buffer).await?) }.boxed()
    }

    fn size_bytes(&mut self) -> BoxFuture<'_, Result<u64, TargetError>> {
        async move { Ok(NfsConnection::size_bytes(self).await?) }.boxed()
    }
}

struct FileTarget(PathBuf);

struct OpenFile {
    path: PathBuf,
    file: Arc<File>,
}

impl Target for FileTarget {
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn TargetConnection>, TargetError>> {
        async {
            let path = self.0.clone();
            // O_DSYNC: a write that returned is on the disk.
            let open = move || File::options().read(true).write(true).custom_flags(libc::O_DSYNC).open(path);
            let file = blocking("open", &self.0, open).await?;
            Ok(Box::new(OpenFile { path: self.0.clone(), file: Arc::new(file) }) as Box<dyn TargetConnection>)
        }
        .boxed()
    }

    fn max_write_bytes(&self) -> u64 {
        WRITE_MAX_BYTES
    }
}

impl TargetConnection for OpenFile {
    fn write<'a>(&'a mut self, offset: u64, pieces: &'a [Bytes]) -> BoxFuture<'a, Result<(), TargetError>> {
        let file = Arc::clone(&self.file);
        let pieces = pieces.to_vec();
        let write = move || {
            let mut at = offset;
            for piece in &pieces {
                file.write_all_at(piece, at)?;
                at += piece.len() as u64;
            }
            Ok(())
        };
        blocking("write", &self.path, write).boxed()
    }

    fn zero(&mut self, offset: u64, len: u64) -> BoxFuture<'_, Result<(), TargetError>> {
        let file = Arc::clone(&self.file);
        blocking("zero", &self.path, move || zero_file(&file, offset, len)).boxed()
    }

    fn read<'a>(&'a mut self, offset: u64, buffer: &'a mut [u8]) -> BoxFuture<'a, Result<(), TargetError>> {
        async move {
            let file = Arc::clone(&self.file);
            let mut data = vec![0; buffer.len()];
            let read = move || file.read_exact_at(&mut data, offset).map(|()| data);
            buffer.copy_from_slice(&blocking("read", &self.path, read).await?);
            Ok(())
        }
        .boxed()
    }

    fn size_bytes(&mut self) -> BoxFuture<'_, Result<u64, TargetError>> {
        let file = Arc::clone(&self.file);
        blocking("get the size of", &self.path, move || file_size_bytes(&file)).boxed()
    }
}

/// Size of a regular file or a block device.
pub fn file_size_bytes(mut file: &File) -> io::Result<u64> {
    io::Seek::seek(&mut file, io::SeekFrom::End(0))
}

/// Frees the blocks where the file system can, else writes zeroes.
fn zero_file(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    match fallocate(file, flags, offset.cast_signed(), len.cast_signed()) {
        Ok(()) => file.sync_data(),
        Err(_) => file.write_all_at(&vec![0; len as usize], offset),
    }
}

async fn blocking<T: Send + 'static>(
    operation: &'static str,
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, TargetError> {
    let result = tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(io::Error::other(e)));
    result.map_err(|cause| TargetError::File { operation, path: path.display().to_string(), cause })
}
