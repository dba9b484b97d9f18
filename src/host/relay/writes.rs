//! Write counters: how often each extent of an export was touched, in a memory-mapped file that outlives the relay.
//!
//! The file is an array of words of 64 bits in the machine's byte order: the [`Header`]'s, then one per extent of 4 MiB.
//!
//! A counter moves twice for every change: when the relay has received the request (so before it is acknowledged), and when the target has
//! taken it. Whoever reads a counter, then both disks, then the same counter again knows that nothing was on its way through the relay
//! between the two and that the target changed neither under the reading nor after it, for as long as the counter stands still.
//!
//! The file belongs to one opening of one export by one relay process: it is made anew each time, and never changed by another. *Sealed*
//! means that nothing can have been missed: every client of the export said goodbye (a QEMU that is killed does not), no request was
//! refused, the export never broke, and everything was on the target when it was closed.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use nix::fcntl::{FallocateFlags, fallocate};
use uuid::Uuid;

/// Bytes that one counter stands for.
pub const EXTENT_BYTES: u64 = 4 << 20;

/// Names the kind of file and its version.
const MAGIC: u64 = u64::from_be_bytes(*b"DrovWrt1");
const SEALED: u64 = 1;
const ENDING: &str = "writes";

/// The words before the counters.
#[derive(Clone, Copy)]
#[repr(usize)]
enum Header {
    Magic,
    /// Size of the disk in bytes.
    Size,
    /// Uuid of the relay process, two words.
    Instance,
    /// Uuid of this opening of the export, two words.
    Opening = 4,
    /// 0 = counting, 1 = sealed.
    State = 6,
    /// The first counter.
    End,
}

/// Why the counters could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{doing} the write counters {path}")]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{path} holds no write counters of a disk of {size_bytes} bytes by this version")]
    Form { path: PathBuf, size_bytes: u64 },
}

/// How many extents a disk has.
pub fn extent_count(size_bytes: u64) -> usize {
    size_bytes.div_ceil(EXTENT_BYTES) as usize
}

fn path(directory: &Path, export: &str, instance: Uuid) -> PathBuf {
    directory.join(format!("{export}-{instance}.{ENDING}"))
}

/// The relay's side: it alone counts.
#[derive(Debug)]
pub struct WriteCounters {
    words: Words,
    size_bytes: u64,
    opening: Uuid,
}

impl WriteCounters {
    /// Makes the file, all counters 0. What earlier relays left for the same export is void and removed.
    pub fn create(directory: &Path, export: &str, instance: Uuid, size_bytes: u64) -> Result<Self, Error> {
        let path = path(directory, export, instance);
        let fail = |doing| {
            let path = path.clone();
            move |cause| Error::Io { doing, path, cause }
        };
        remove_all(directory, export).map_err(fail("removing what came before"))?;
        let opened = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = opened.map_err(fail("making"))?;
        // All of it now: a full file system is an error here, but would kill the relay at the first touch of a page that is missing.
        let len = file_bytes(size_bytes).cast_signed();
        fallocate(&file, FallocateFlags::empty(), 0, len).map_err(|e| fail("making")(e.into()))?;
        let words = Words(MmapOptions::new().map_raw(&file).map_err(fail("mapping"))?);
        let opening = Uuid::new_v4();
        words.set(Header::Size, &[size_bytes]);
        words.set(Header::Instance, &pair(instance));
        words.set(Header::Opening, &pair(opening));
        words.set(Header::Magic, &[MAGIC]);
        Ok(Self { words, size_bytes, opening })
    }

    /// Identity of this opening.
    pub fn opening(&self) -> Uuid {
        self.opening
    }

    /// Something in `offset..offset + len` was asked to change, or has changed on the target.
    pub fn touch(&self, offset: u64, len: u64) {
        for counter in &self.words.counters()[extents(offset, len, self.size_bytes)] {
            counter.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Nothing can have been missed, and nothing follows. On disk in this order, should the host be lost: a seal covers all counters.
    pub fn seal(&self) -> io::Result<()> {
        self.words.0.flush()?;
        self.words.set(Header::State, &[SEALED]);
        self.words.0.flush()
    }
}

/// Removes the counters of `export`, whichever relay made them.
pub fn remove_all(directory: &Path, export: &str) -> io::Result<()> {
    let prefix = format!("{export}-");
    remove(directory, |name| name.strip_prefix(&prefix).is_some_and(|rest| Uuid::parse_str(rest).is_ok()))
}

/// Removes the counters of every export, whichever relay made them.
pub fn remove_every(directory: &Path) -> io::Result<()> {
    remove(directory, |_| true)
}

fn remove(directory: &Path, of_it: impl Fn(&str) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        if path.extension().is_some_and(|ending| ending == ENDING) && of_it(name) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// The driver's side: it only reads, also when the relay is gone.
#[derive(Debug)]
pub struct WriteCountersView {
    words: Words,
    opening: Uuid,
}

impl WriteCountersView {
    /// Opens the counters that the relay process `instance` keeps, or kept, for an export of `size_bytes` bytes.
    pub fn open(directory: &Path, export: &str, instance: Uuid, size_bytes: u64) -> Result<Self, Error> {
        let path = path(directory, export, instance);
        let fail = |doing| {
            let path = path.clone();
            move |cause| Error::Io { doing, path, cause }
        };
        let file = File::open(&path).map_err(fail("opening"))?;
        let form = || Error::Form { path: path.clone(), size_bytes };
        if file.metadata().map_err(fail("looking at"))?.len() != file_bytes(size_bytes) {
            return Err(form());
        }
        let words = Words(MmapOptions::new().map_raw_read_only(&file).map_err(fail("mapping"))?);
        if words.get(Header::Magic) != [MAGIC, size_bytes] || words.get(Header::Instance) != pair(instance) {
            return Err(form());
        }
        let [high, low] = words.get(Header::Opening);
        Ok(Self { words, opening: Uuid::from_u64_pair(high, low) })
    }

    /// Identity of the opening that they count for.
    pub fn opening(&self) -> Uuid {
        self.opening
    }

    /// Whether nothing can have been missed, and nothing follows.
    pub fn is_sealed(&self) -> bool {
        self.words.get(Header::State)[0] == SEALED
    }

    /// Every counter, now.
    pub fn all(&self) -> Vec<u64> {
        self.words.counters().iter().map(|counter| counter.load(Ordering::SeqCst)).collect()
    }

    /// The counter of an extent, now.
    pub fn get(&self, extent: usize) -> u64 {
        self.words.counters()[extent].load(Ordering::SeqCst)
    }
}

/// The whole file. It is shared with another process, so every access is atomic.
#[derive(Debug)]
struct Words(MmapRaw);

impl Words {
    #[expect(unsafe_code, reason = "the memory of a mapped file is shared with another process")]
    fn all(&self) -> &[AtomicU64] {
        // SAFETY: a mapping begins at a page and lives as long as `self`; any bytes are valid words; both processes access them through
        // atomics only, and the one with the read-only mapping only loads. Nobody truncates the file: it is made once in its full length.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() / size_of::<AtomicU64>()) }
    }

    fn counters(&self) -> &[AtomicU64] {
        &self.all()[Header::End as usize..]
    }

    /// The two words from `at` on.
    fn get(&self, at: Header) -> [u64; 2] {
        [0, 1].map(|next| self.all()[at as usize + next].load(Ordering::SeqCst))
    }

    fn set(&self, at: Header, values: &[u64]) {
        for (word, value) in self.all()[at as usize..].iter().zip(values) {
            word.store(*value, Ordering::SeqCst);
        }
    }
}

fn pair(uuid: Uuid) -> [u64; 2] {
    uuid.as_u64_pair().into()
}

fn file_bytes(size_bytes: u64) -> u64 {
    (size_of::<u64>() * (Header::End as usize + extent_count(size_bytes))) as u64
}

/// The extents that `offset..offset + len` touches.
fn extents(offset: u64, len: u64, size_bytes: u64) -> Range<usize> {
    let end = (offset + len).min(size_bytes);
    if offset >= end {
        return 0..0;
    }
    (offset / EXTENT_BYTES) as usize..end.div_ceil(EXTENT_BYTES) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 3 * EXTENT_BYTES + 512;

    #[test]
    fn a_reader_sees_every_touch_and_the_seal_and_keeps_them_when_the_writer_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let instance = Uuid::new_v4();
        let writer = WriteCounters::create(dir.path(), "vda", instance, SIZE).unwrap();
        let view = WriteCountersView::open(dir.path(), "vda", instance, SIZE).unwrap();
        assert_eq!((view.opening(), view.is_sealed(), view.all()), (writer.opening(), false, vec![0; 4]));
        writer.touch(0, 1);
        writer.touch(EXTENT_BYTES - 1, 2);
        writer.touch(2 * EXTENT_BYTES, 0);
        writer.touch(3 * EXTENT_BYTES + 511, 1 << 40);
        assert_eq!(view.all(), [2, 1, 0, 1]);
        writer.seal().unwrap();
        drop(writer);
        assert!(view.is_sealed());
        assert_eq!((view.all(), view.get(1)), (vec![2, 1, 0, 1], 1));
    }

    #[test]
    fn another_opening_is_another_file_and_the_old_one_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (Uuid::new_v4(), Uuid::new_v4());
        let old = WriteCounters::create(dir.path(), "vda", first, SIZE).unwrap();
        WriteCounters::create(dir.path(), "vda-2", first, SIZE).unwrap();
        old.touch(0, 1);
        let again = WriteCounters::create(dir.path(), "vda", first, SIZE).unwrap();
        let view = WriteCountersView::open(dir.path(), "vda", first, SIZE).unwrap();
        assert_eq!((view.opening(), view.get(0)), (again.opening(), 0));
        assert_ne!(old.opening(), again.opening());
        WriteCounters::create(dir.path(), "vda", second, SIZE).unwrap();
        assert!(WriteCountersView::open(dir.path(), "vda", first, SIZE).is_err());
        WriteCountersView::open(dir.path(), "vda-2", first, SIZE).unwrap();
    }

    #[test]
    fn a_file_that_is_not_whole_or_not_of_this_relay_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (instance, other) = (Uuid::new_v4(), Uuid::new_v4());
        WriteCounters::create(dir.path(), "vda", instance, SIZE).unwrap();
        let open = |size_bytes| WriteCountersView::open(dir.path(), "vda", instance, size_bytes);
        let path = path(dir.path(), "vda", instance);
        for size_bytes in [SIZE + EXTENT_BYTES, SIZE + 512] {
            assert!(matches!(open(size_bytes), Err(Error::Form { .. })));
        }
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 8]).unwrap();
        assert!(matches!(open(SIZE), Err(Error::Form { .. })));
        fs::write(&path, [b"0trWvorD", &whole[8..]].concat()).unwrap();
        assert!(matches!(open(SIZE), Err(Error::Form { .. })));
        fs::write(super::path(dir.path(), "vda", other), whole).unwrap();
        assert!(matches!(WriteCountersView::open(dir.path(), "vda", other, SIZE), Err(Error::Form { .. })));
    }
}
