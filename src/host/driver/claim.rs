//! The claim file of a domain: created atomically, replaced atomically, and on disk before anything is done that it must remember.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::flow::copy::Memory;

/// Ending of the files that keep what was verified of a disk.
const LEDGER_ENDING: &str = "verified";
/// Ending of a claim that is being written.
const DRAFT_ENDING: &str = "draft";
const LOCK_ENDING: &str = "lock";

/// Why a claim could not be read, taken or kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{doing} {path}")]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("the claim file {path} is not valid; repair or remove it once nothing is being moved")]
    Invalid { path: PathBuf, source: serde_json::Error },
    #[error("somebody else has just taken the claim {path}")]
    Taken { path: PathBuf },
    #[error("{name:?} cannot be part of a file name")]
    Name { name: String },
    #[error("another driver of this migration runs on this host (it holds {path})")]
    Locked { path: PathBuf },
}

/// A file among the claims, by its name.
#[derive(Debug, PartialEq, Eq)]
pub enum Entry {
    /// The claim of the domain with this uuid.
    Claim(String),
    /// Something that belongs to the claim of the domain with this uuid.
    Beside(String),
    /// Keeps a second driver of a migration away; it stays.
    Lock,
    Unknown,
}

/// The claims of a host.
pub struct Claims {
    directory: PathBuf,
}

impl Claims {
    /// `run_directory` is the host's, shared by all migrations.
    pub fn new(run_directory: &Path) -> Self {
        Self { directory: run_directory.join("claims") }
    }

    fn path(&self, name: &str, ending: &str) -> Result<PathBuf, Error> {
        let valid = !name.is_empty() && name.len() <= 64 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        if !valid {
            return Err(Error::Name { name: name.into() });
        }
        Ok(self.directory.join(format!("{name}.{ending}")))
    }

    /// Where what was verified of a disk is kept, beside the domain's claim.
    pub fn ledger(&self, domain_uuid: &str, device: &str) -> Result<PathBuf, Error> {
        if device.contains('/') {
            return Err(Error::Name { name: device.into() });
        }
        self.path(domain_uuid, &format!("{device}.{LEDGER_ENDING}"))
    }

    /// Every file among the claims. No error if there never was one.
    pub fn entries(&self) -> Result<Vec<(PathBuf, Entry)>, Error> {
        let at = || Self::at("reading", &self.directory);
        let listed = match fs::read_dir(&self.directory) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            listed => listed.map_err(at())?,
        };
        listed
            .map(|entry| {
                entry.map_err(at()).map(|entry| (entry.path(), Entry::of(&entry.file_name().to_string_lossy())))
            })
            .collect()
    }

    fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
        let path = path.to_owned();
        move |source| Error::Io { doing, path, source }
    }

    /// Makes sure that only one driver serves a migration on this host. The lock ends with the process, however it ends.
    pub fn lock(&self, claim_uid: &str) -> Result<Flock<File>, Error> {
        let path = self.path(claim_uid, LOCK_ENDING)?;
        fs::create_dir_all(&self.directory).map_err(Self::at("creating", &self.directory))?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.map_err(Self::at("opening", &path))?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            nix::Error::EWOULDBLOCK => Error::Locked { path },
            errno => Error::Io { doing: "locking", path, source: errno.into() },
        })
    }

    /// The claim of a domain, if there is one.
    pub fn read(&self, domain_uuid: &str) -> Result<Option<Memory>, Error> {
        let path = self.path(domain_uuid, "json")?;
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|source| Error::Invalid { path, source }),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Io { doing: "reading", path, source }),
        }
    }

    /// Takes the claim: of any number who try at one time, one succeeds.
    pub fn create(&self, domain_uuid: &str, memory: &Memory) -> Result<(), Error> {
        let path = self.path(domain_uuid, "json")?;
        let draft = self.draft(domain_uuid, memory)?;
        let linked = fs::hard_link(&draft, &path);
        fs::remove_file(&draft).map_err(Self::at("removing", &draft))?;
        match linked {
            Ok(()) => self.sync(),
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Err(Error::Taken { path }),
            Err(source) => Err(Error::Io { doing: "creating", path, source }),
        }
    }

    /// Replaces the claim's content.
    pub fn write(&self, domain_uuid: &str, memory: &Memory) -> Result<(), Error> {
        let path = self.path(domain_uuid, "json")?;
        let draft = self.draft(domain_uuid, memory)?;
        fs::rename(&draft, &path).map_err(Self::at("replacing", &path))?;
        self.sync()
    }

    /// Gives the claim up, and what was kept beside it; no error if there is none. A driver that died while it wrote has left its draft. One
    /// of somebody who is taking the claim at this moment is lost with it, and written again.
    pub fn delete(&self, domain_uuid: &str) -> Result<(), Error> {
        let path = self.path(domain_uuid, "json")?;
        let at = |doing| Self::at(doing, &self.directory);
        for entry in fs::read_dir(&self.directory).into_iter().flatten() {
            let beside = entry.map_err(at("reading"))?.path();
            let of_it =
                beside.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(domain_uuid));
            if of_it && beside.extension().is_some_and(|ending| ending == LEDGER_ENDING || ending == DRAFT_ENDING) {
                fs::remove_file(&beside).map_err(at("removing what is beside a claim in"))?;
            }
        }
        match fs::remove_file(&path) {
            Ok(()) => self.sync(),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(Error::Io { doing: "removing", path, source }),
        }
    }

    /// A complete file beside the claim, named by the claimant, so that two claimants do not write the same one.
    fn draft(&self, domain_uuid: &str, memory: &Memory) -> Result<PathBuf, Error> {
        fs::create_dir_all(&self.directory).map_err(Self::at("creating", &self.directory))?;
        let path = self.path(domain_uuid, &format!("{}.{DRAFT_ENDING}", std::process::id()))?;
        let bytes =
            serde_json::to_vec_pretty(memory).map_err(|source| Error::Invalid { path: path.clone(), source })?;
        let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&path);
        let written = file.and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()));
        written.map_err(Self::at("writing", &path))?;
        Ok(path)
    }

    fn sync(&self) -> Result<(), Error> {
        File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(Self::at("syncing", &self.directory))
    }
}

impl Entry {
    fn of(name: &str) -> Self {
        let domain = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
        match name.rsplit_once('.') {
            Some((uuid, "json")) => Self::Claim(uuid.into()),
            Some((beside, LEDGER_ENDING | DRAFT_ENDING)) => Self::Beside(domain(beside)),
            Some((_, LOCK_ENDING)) => Self::Lock,
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::block_copy::Claim;

    const DOMAIN: &str = "5d4ae1e7-0000-4000-8000-00000000beef";

    fn memory(uid: &str) -> Memory {
        let claim = Claim { namespace: "shop".into(), name: "web".into(), uid: uid.into(), installation: "i".into() };
        Memory::new(claim, 1)
    }

    #[test]
    fn of_two_claimants_the_first_has_it_until_it_gives_it_up() {
        let dir = tempfile::tempdir().unwrap();
        let claims = Claims::new(dir.path());
        assert_eq!(claims.read(DOMAIN).unwrap(), None);
        claims.create(DOMAIN, &memory("a")).unwrap();
        assert!(matches!(claims.create(DOMAIN, &memory("b")), Err(Error::Taken { .. })));
        assert_eq!(claims.read(DOMAIN).unwrap(), Some(memory("a")));
        let newer = Memory { epoch: 2, ..memory("a") };
        claims.write(DOMAIN, &newer).unwrap();
        assert_eq!(claims.read(DOMAIN).unwrap(), Some(newer));
        let ledger = claims.ledger(DOMAIN, "vda").unwrap();
        fs::write(&ledger, b"").unwrap();
        let left_by_the_dead = dir.path().join(format!("claims/{DOMAIN}.7.draft"));
        fs::write(&left_by_the_dead, b"{").unwrap();
        let lock = claims.lock("a").unwrap();
        fs::write(dir.path().join("claims/what"), b"").unwrap();
        let entries = claims.entries().unwrap().into_iter().map(|(_, entry)| entry).collect::<Vec<_>>();
        assert_eq!(entries.len(), 5);
        for entry in [Entry::Claim(DOMAIN.into()), Entry::Beside(DOMAIN.into()), Entry::Lock, Entry::Unknown] {
            assert!(entries.contains(&entry), "{entry:?} in {entries:?}");
        }
        drop(lock);
        claims.delete(DOMAIN).unwrap();
        claims.delete(DOMAIN).unwrap();
        assert!(!ledger.exists() && !left_by_the_dead.exists());
        claims.create(DOMAIN, &memory("b")).unwrap();
        assert_eq!(claims.entries().unwrap().len(), 3, "no drafts are left");
    }

    #[test]
    fn a_spoilt_claim_is_an_error_and_not_free() {
        let dir = tempfile::tempdir().unwrap();
        let claims = Claims::new(dir.path());
        claims.create(DOMAIN, &memory("a")).unwrap();
        fs::write(dir.path().join("claims").join(format!("{DOMAIN}.json")), b"{").unwrap();
        assert!(matches!(claims.read(DOMAIN), Err(Error::Invalid { .. })));
        assert!(matches!(claims.read("../../etc/passwd"), Err(Error::Name { .. })));
        assert!(matches!(claims.ledger(DOMAIN, "../vda"), Err(Error::Name { .. })));
    }

    #[test]
    fn one_driver_per_migration() {
        let dir = tempfile::tempdir().unwrap();
        let claims = Claims::new(dir.path());
        let held = claims.lock("u-1").unwrap();
        assert!(matches!(claims.lock("u-1"), Err(Error::Locked { .. })));
        claims.lock("u-2").unwrap();
        drop(held);
        claims.lock("u-1").unwrap();
    }
}
