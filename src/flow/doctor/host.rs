//! The hypervisor's side: domains, claims, files and processes that bear a migration's uid, and whether that migration lives.

use std::collections::BTreeSet;

use super::Leftover;
use crate::api::METADATA_URI;
use crate::api::block_copy::MarkState;
use crate::flow::copy::{Mark, Memory};

/// What was seen on one hypervisor.
#[derive(Clone, Debug, Default)]
pub struct HostSeen {
    /// libvirt's connection URI, for the commands that are proposed.
    pub uri: String,
    pub run_directory: String,
    /// The uids of the migrations that live, if somebody told.
    pub living: Option<BTreeSet<String>>,
    pub domains: Vec<DomainTraces>,
    pub claims: Vec<ClaimFile>,
    pub files: Vec<StrayFile>,
    pub processes: Vec<ProcessTrace>,
}

/// What a domain may bear of a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainTraces {
    pub name: String,
    pub uuid: String,
    pub running: bool,
    pub autostart: bool,
    /// The mark in its definition or, if that has none, in what runs.
    pub mark: Option<Mark>,
    pub mirrors: Vec<MirrorTrace>,
}

/// A mirror to a local socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorTrace {
    pub device: String,
    pub socket: String,
}

/// A claim.
#[derive(Clone, Debug, PartialEq)]
pub struct ClaimFile {
    pub path: String,
    pub domain_uuid: String,
    pub memory: Memory,
}

/// Any other file in the run directory, but for the lock files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StrayFile {
    pub path: String,
    pub of: FileOf,
}

/// What a file belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileOf {
    /// A migration, by its uid.
    Migration(String),
    /// A domain's claim, by the domain's uuid.
    Claim(String),
    /// Nothing that can be named.
    Nothing,
}

/// A relay or a driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessTrace {
    pub pid: u32,
    /// `relay` or `driver`.
    pub part: String,
    /// The migration that it serves.
    pub uid: String,
}

/// Finds what was left behind.
pub fn host(seen: &HostSeen) -> Vec<Leftover> {
    let look = Look { seen };
    let domains = seen.domains.iter().flat_map(|domain| look.domain(domain));
    let processes = seen.processes.iter().filter_map(|process| look.process(process));
    let claims = seen.claims.iter().filter_map(|claim| look.claim(claim));
    let files = seen.files.iter().filter_map(|file| look.file(file));
    domains.chain(processes).chain(claims).chain(files).collect()
}

struct Look<'a> {
    seen: &'a HostSeen,
}

impl Look<'_> {
    /// Whether a migration lives: as somebody told or, if nobody did, if a process works for it here.
    fn lives(&self, uid: &str) -> bool {
        match &self.seen.living {
            Some(living) => living.contains(uid),
            None => self.seen.processes.iter().any(|process| process.uid == uid),
        }
    }

    fn gone(&self, uid: &str) -> String {
        match &self.seen.living {
            Some(_) => format!("its migration (uid {uid}) is gone"),
            None => format!("no process works for its migration (uid {uid}); --living tells whether that is gone"),
        }
    }

    fn virsh(&self, command: &str) -> String {
        format!("virsh -c '{}' {command}", self.seen.uri)
    }

    fn domain(&self, domain: &DomainTraces) -> Vec<Leftover> {
        let mirrors = domain.mirrors.iter().filter_map(|mirror| self.mirror(domain, mirror));
        // The mark of a finished cutover is kept: it keeps the source from being started and copied again.
        let mark =
            domain.mark.as_ref().filter(|mark| mark.state != MarkState::Migrated && !self.lives(&mark.claim.uid));
        let autostart = mark.and_then(|mark| self.autostart(domain, mark));
        mirrors.chain(autostart).chain(mark.map(|mark| self.mark(domain, mark))).collect()
    }

    /// A mirror that leads to a socket in the run directory is Drover's.
    fn mirror(&self, domain: &DomainTraces, mirror: &MirrorTrace) -> Option<Leftover> {
        let inside = mirror.socket.strip_prefix(&self.seen.run_directory)?.strip_prefix('/')?;
        let uid = inside.split('/').next().filter(|uid| !self.lives(uid))?;
        let abort = self.virsh(&format!("blockjob {} {} --abort", domain.name, mirror.device));
        Some(Leftover {
            what: format!("mirror of disk {} of domain {}", mirror.device, domain.name),
            why: format!("it leads to {}, and {}", mirror.socket, self.gone(uid)),
            // An abort waits for what the relay has not answered.
            todo: format!("end the relay first, if one runs, then {abort}; the guest runs on"),
        })
    }

    fn autostart(&self, domain: &DomainTraces, mark: &Mark) -> Option<Leftover> {
        let disabled = mark.autostart_was == Some(true) && !domain.autostart;
        disabled.then(|| Leftover {
            what: format!("autostart of domain {}", domain.name),
            why: format!("it was enabled before a cutover disabled it, and {}", self.gone(&mark.claim.uid)),
            todo: format!("{}, unless its target runs in Prism", self.virsh(&format!("autostart {}", domain.name))),
        })
    }

    fn mark(&self, domain: &DomainTraces, mark: &Mark) -> Leftover {
        let live = if domain.running { " --live" } else { "" };
        let remove = self.virsh(&format!("metadata {} --uri {METADATA_URI} --remove --config{live}", domain.name));
        let todo = match mark.state {
            MarkState::Claimed | MarkState::Migrated => remove,
            MarkState::Cutover => format!(
                "see in Prism whether its target runs. If it does, leave the mark; if not, {remove}, and start the domain if it is off"
            ),
        };
        let Mark { claim, state, .. } = mark;
        Leftover {
            what: format!("mark on domain {} ({})", domain.name, domain.uuid),
            why: format!("{state:?} for {}/{}, and {}", claim.namespace, claim.name, self.gone(&claim.uid)),
            todo,
        }
    }

    /// Without being told who lives, a process counts as a sign of life.
    fn process(&self, process: &ProcessTrace) -> Option<Leftover> {
        let ProcessTrace { pid, part, uid } = process;
        (!self.lives(uid)).then(|| Leftover {
            what: format!("process {pid} ({part})"),
            why: self.gone(uid),
            todo: format!("see its pod, and if there is none: kill {pid}. A mirror to a relay that ends is broken off; the guest runs on"),
        })
    }

    fn claim(&self, claim: &ClaimFile) -> Option<Leftover> {
        let owner = &claim.memory.claim;
        (!self.lives(&owner.uid)).then(|| Leftover {
            what: format!("claim {}", claim.path),
            why: format!(
                "it keeps domain {} for {}/{}, and {}",
                claim.domain_uuid,
                owner.namespace,
                owner.name,
                self.gone(&owner.uid)
            ),
            todo: format!("remove it when the domain bears neither mirror nor mark of it: rm {}", claim.path),
        })
    }

    fn file(&self, file: &StrayFile) -> Option<Leftover> {
        let why = match &file.of {
            FileOf::Migration(uid) => (!self.lives(uid)).then(|| self.gone(uid))?,
            FileOf::Claim(domain) => {
                let claim = self.seen.claims.iter().find(|claim| claim.domain_uuid == *domain);
                match claim.map(|claim| &claim.memory.claim.uid) {
                    Some(uid) => (!self.lives(uid)).then(|| self.gone(uid))?,
                    None => format!("nobody claims domain {domain}"),
                }
            }
            FileOf::Nothing => "it bears the name of no migration and no domain".into(),
        };
        let todo = match file.of {
            FileOf::Migration(_) | FileOf::Claim(_) => format!("rm {}", file.path),
            FileOf::Nothing => "look at it; nothing else should lie there".into(),
        };
        Some(Leftover { what: format!("file {}", file.path), why, todo })
    }
}
