//! The host's processes through /proc: who holds a disk, who still lives, which sockets outlived their process.
//!
//! Disks are compared by device and inode, block devices by their device number: QEMU under libvirt has a /dev of its own, where the same
//! disk is another inode. Needs the host's process ids (`hostPID`) and the right to read other processes' descriptors (root).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::flow::copy::{Holder, ProcessId};
use crate::flow::doctor::ProcessTrace;

/// Why the host could not be looked at. Any of these means "unknown".
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("reading {what}")]
    Read { what: String, source: io::Error },
    #[error("looking at the disk {path}: is it visible to this process?")]
    Disk { path: String, source: io::Error },
    #[error("{what} has an unexpected form: {line}")]
    Form { what: String, line: String },
    #[error("sending {signal} to process {pid}")]
    Signal { signal: &'static str, pid: u32, source: nix::Error },
}

fn read(path: &str) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::Read { what: path.into(), source })
}

/// The process `pid` as it is now; `None` if there is none, or only its zombie.
///
/// One whose first thread has ended has a zombie's state, but lives on in its other threads, with all that it holds: a thread that waits for a
/// disk cannot be killed.
pub fn identify(pid: u32) -> Result<Option<ProcessId>, Error> {
    let path = format!("/proc/{pid}/stat");
    let stat = match fs::read_to_string(&path) {
        Ok(stat) => stat,
        Err(err) if is_gone(&err) => return Ok(None),
        Err(source) => return Err(Error::Read { what: path, source }),
    };
    // The command's name stands in parentheses and may hold anything; state and start time are the 1st and 20th field behind it (proc(5)).
    let form = || Error::Form { what: path.clone(), line: stat.clone() };
    let (_, fields) = stat.rsplit_once(") ").ok_or_else(form)?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let state = fields.first().ok_or_else(form)?;
    if matches!(*state, "Z" | "X" | "x") && other_threads(pid)?.is_empty() {
        return Ok(None);
    }
    let start_ticks = fields.get(19).and_then(|ticks| ticks.parse().ok()).ok_or_else(form)?;
    let boot_id = read("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    Ok(Some(ProcessId { pid, start_ticks, boot_id }))
}

/// The threads of a process but its first.
fn other_threads(pid: u32) -> Result<Vec<u32>, Error> {
    let directory = format!("/proc/{pid}/task");
    match fs::read_dir(&directory) {
        Ok(entries) => {
            let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str().and_then(|id| id.parse().ok()));
            Ok(ids.filter(|id| *id != pid).collect())
        }
        Err(err) if is_gone(&err) => Ok(Vec::new()),
        Err(source) => Err(Error::Read { what: directory, source }),
    }
}

fn is_gone(err: &io::Error) -> bool {
    err.kind() == io::ErrorKind::NotFound || err.raw_os_error() == Some(nix::libc::ESRCH)
}

/// Whether exactly this process still lives.
pub fn is_alive(process: &ProcessId) -> Result<bool, Error> {
    Ok(identify(process.pid)?.as_ref() == Some(process))
}

/// Asks a process to end, or ends it. No error if it is gone already or its number belongs to another process.
pub fn end(process: &ProcessId, force: bool) -> Result<(), Error> {
    if !is_alive(process)? {
        return Ok(());
    }
    let (signal, name) = if force { (Signal::SIGKILL, "SIGKILL") } else { (Signal::SIGTERM, "SIGTERM") };
    let pid = Pid::from_raw(i32::try_from(process.pid).unwrap_or(i32::MAX));
    match kill(pid, signal) {
        Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
        Err(source) => Err(Error::Signal { signal: name, pid: process.pid, source }),
    }
}

/// What makes a disk that disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Identity {
    File { dev: u64, inode: u64 },
    Block { rdev: u64 },
}

fn identity(metadata: &fs::Metadata) -> Identity {
    if metadata.file_type().is_block_device() {
        Identity::Block { rdev: metadata.rdev() }
    } else {
        Identity::File { dev: metadata.dev(), inode: metadata.ino() }
    }
}

/// Who has each of `disks` (name, path) open, our own process left out. `domain_uuid` in a command line makes a holder the domain's QEMU.
///
/// An error if a process that might matter could not be looked at. One whose descriptors are hidden even from root (an init that guards
/// itself) is passed over, unless its command line names the domain or one of the disks.
pub fn holders(disks: &[(String, String)], domain_uuid: &str) -> Result<BTreeMap<String, Vec<Holder>>, Error> {
    let mut wanted: BTreeMap<Identity, Vec<&str>> = BTreeMap::new();
    for (name, path) in disks {
        let metadata = fs::metadata(path).map_err(|source| Error::Disk { path: path.clone(), source })?;
        wanted.entry(identity(&metadata)).or_default().push(name);
    }
    let mut found: BTreeMap<String, Vec<Holder>> = disks.iter().map(|(name, _)| (name.clone(), Vec::new())).collect();
    for pid in pids()?.into_iter().filter(|pid| *pid != std::process::id()) {
        let held = match held_by(pid, &wanted) {
            Err(Error::Read { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied && !names(pid, disks, domain_uuid) =>
            {
                continue;
            }
            held => held?,
        };
        if held.is_empty() {
            continue;
        }
        let Some(process) = identify(pid)? else { continue };
        let (command, qemu) = command(pid, domain_uuid);
        for name in held {
            let holder = Holder { process: process.clone(), command: command.clone(), qemu };
            found.entry(name.to_owned()).or_default().push(holder);
        }
    }
    Ok(found)
}

/// Whether the command line of a process names the domain or one of its disks.
fn names(pid: u32, disks: &[(String, String)], domain_uuid: &str) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line);
    line.contains(domain_uuid) || disks.iter().any(|(_, path)| line.contains(path.as_str()))
}

fn pids() -> Result<Vec<u32>, Error> {
    let entries = fs::read_dir("/proc").map_err(|source| Error::Read { what: "/proc".into(), source })?;
    let mut pids = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| Error::Read { what: "/proc".into(), source })?;
        pids.extend(entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(pids)
}

fn held_by<'a>(pid: u32, wanted: &BTreeMap<Identity, Vec<&'a str>>) -> Result<BTreeSet<&'a str>, Error> {
    if let Some(held) = held_in(format!("/proc/{pid}/fd"), wanted)? {
        return Ok(held);
    }
    // Nothing is shown where the first thread has ended.
    let mut held = BTreeSet::new();
    for thread in other_threads(pid)? {
        held.extend(held_in(format!("/proc/{pid}/task/{thread}/fd"), wanted)?.into_iter().flatten());
    }
    Ok(held)
}

/// What of `wanted` is open in this directory of descriptors; `None` if nothing at all is.
fn held_in<'a>(
    directory: String,
    wanted: &BTreeMap<Identity, Vec<&'a str>>,
) -> Result<Option<BTreeSet<&'a str>>, Error> {
    let mut held = None;
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(err) if is_gone(&err) => return Ok(held),
        Err(source) => return Err(Error::Read { what: directory, source }),
    };
    for entry in entries {
        let held = held.get_or_insert_with(BTreeSet::new);
        // Descriptors and processes come and go while they are listed; those that went hold nothing.
        let metadata = match entry.and_then(|entry| fs::metadata(entry.path())) {
            Ok(metadata) => metadata,
            Err(err) if is_gone(&err) => continue,
            // A descriptor on something that cannot be stat'ed (a stale network file system) is none of a local disk.
            Err(err) if matches!(err.raw_os_error(), Some(nix::libc::ESTALE | nix::libc::EIO)) => continue,
            Err(source) => return Err(Error::Read { what: directory, source }),
        };
        held.extend(wanted.get(&identity(&metadata)).into_iter().flatten().copied());
    }
    Ok(held)
}

fn command(pid: u32, domain_uuid: &str) -> (String, bool) {
    let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned();
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let qemu = line.split(|byte| *byte == 0).any(|argument| argument == domain_uuid.as_bytes());
    (command, qemu)
}

/// Relays and drivers that work in `run_directory`, by the migration whose directory there their command line names.
pub fn parts(run_directory: &str) -> Result<Vec<ProcessTrace>, Error> {
    let mut parts = Vec::new();
    for pid in pids()? {
        let path = format!("/proc/{pid}/cmdline");
        let line = match fs::read(&path) {
            Ok(line) => line,
            Err(err) if is_gone(&err) => continue,
            Err(source) => return Err(Error::Read { what: path, source }),
        };
        let line = String::from_utf8_lossy(&line);
        parts.extend(part(&line.split('\0').collect::<Vec<_>>(), run_directory).map(|(part, uid)| ProcessTrace {
            pid,
            part,
            uid,
        }));
    }
    Ok(parts)
}

/// Which part of the host side a command line is, and whom it serves.
fn part(arguments: &[&str], run_directory: &str) -> Option<(String, String)> {
    let host = arguments.iter().position(|argument| *argument == "host")?;
    let part = arguments.get(host + 1).filter(|part| matches!(**part, "relay" | "driver"))?;
    let uid = arguments.iter().find_map(|argument| argument.strip_prefix(run_directory)?.strip_prefix('/'))?;
    Some(((*part).into(), uid.into()))
}

/// TCP sockets to `servers` that no process owns any more but whose kernel may still deliver data: everything but TIME_WAIT.
pub fn orphan_sockets(servers: &BTreeSet<IpAddr>) -> Result<Vec<String>, Error> {
    let mut orphans = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        // A host without IPv6 has no such table, and no such socket.
        if !Path::new(table).exists() {
            continue;
        }
        orphans.extend(orphans_in(&read(table)?, table, servers)?);
    }
    Ok(orphans)
}

/// TIME_WAIT in the kernel's numbering (include/net/tcp_states.h): everything was delivered and acknowledged.
const TIME_WAIT: &str = "06";

fn orphans_in(text: &str, table: &str, servers: &BTreeSet<IpAddr>) -> Result<Vec<String>, Error> {
    let mut orphans = Vec::new();
    for line in text.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let form = || Error::Form { what: table.into(), line: line.into() };
        let (remote, state, inode) = match fields.as_slice() {
            [_, _, remote, state, _, _, _, _, _, inode, ..] => (*remote, *state, *inode),
            _ => return Err(form()),
        };
        let (address, _port) = remote.split_once(':').ok_or_else(form)?;
        let address = hex_address(address).ok_or_else(form)?;
        if servers.contains(&address) && state != TIME_WAIT && inode == "0" {
            orphans.push(format!("{address} in state {state}"));
        }
    }
    Ok(orphans)
}

/// The kernel prints addresses as words of 32 bits in the machine's byte order.
fn hex_address(hex: &str) -> Option<IpAddr> {
    let words: Vec<[u8; 4]> = hex
        .as_bytes()
        .chunks(8)
        .map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok().map(u32::to_ne_bytes))
        .collect::<Option<_>>()?;
    match words.as_slice() {
        [v4] => Some(IpAddr::V4(Ipv4Addr::from(*v4))),
        [_, _, _, _] => {
            let v6 = Ipv6Addr::from(<[u8; 16]>::try_from(words.concat()).ok()?);
            Some(v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_holder_is_found_and_its_zombie_is_not_alive() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        fs::write(&path, b"x").unwrap();
        let uuid = "5d4ae1e7-0000-4000-8000-00000000beef";
        let disks = [("vda".to_owned(), path.display().to_string())];
        assert_eq!(holders(&disks, uuid).unwrap()["vda"], []);
        let mut child =
            Command::new("sleep").args(["60"]).stdin(Stdio::from(fs::File::open(&path).unwrap())).spawn().unwrap();
        // What another test starts at this moment has a copy of the open file until it is a program of its own.
        let seen = loop {
            let seen = holders(&disks, uuid).unwrap().remove("vda").unwrap();
            if seen.len() == 1 {
                break seen;
            }
        };
        assert_eq!((seen[0].process.pid, seen[0].qemu), (child.id(), false));
        assert!(is_alive(&seen[0].process).unwrap());
        let earlier = ProcessId { start_ticks: seen[0].process.start_ticks - 1, ..seen[0].process.clone() };
        assert!(!is_alive(&earlier).unwrap(), "the same number of an earlier process");
        end(&earlier, true).unwrap();
        assert!(child.try_wait().unwrap().is_none(), "a process of the same number is not ended");
        end(&seen[0].process, true).unwrap();
        while is_alive(&seen[0].process).unwrap() {
            std::thread::yield_now();
        }
        assert!(Path::new(&format!("/proc/{}", child.id())).exists(), "its zombie is still there");
        child.wait().unwrap();
        assert_eq!(holders(&disks, uuid).unwrap()["vda"], []);
    }

    /// As a QEMU looks that was killed while one of its threads waits for a disk that does not answer.
    #[test]
    fn a_process_whose_first_thread_has_ended_lives_and_holds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        fs::write(&path, b"x").unwrap();
        let disks = [("vda".to_owned(), path.display().to_string())];
        let script = "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); \
            ctypes.CDLL(None).syscall(60, 0)"; // exit(2): this thread and no other
        let file = Stdio::from(fs::File::open(&path).unwrap());
        let mut child = Command::new("python3").args(["-c", script]).stdin(file).spawn().unwrap();
        let stat = format!("/proc/{}/stat", child.id());
        while !fs::read_to_string(&stat).unwrap().contains(") Z ") {
            std::thread::yield_now();
        }
        let process = identify(child.id()).unwrap().expect("it lives");
        let holders = holders(&disks, "5d4ae1e7-0000-4000-8000-00000000beef").unwrap().remove("vda").unwrap();
        assert_eq!(holders.iter().map(|holder| &holder.process).collect::<Vec<_>>(), [&process]);
        end(&process, true).unwrap();
        while is_alive(&process).unwrap() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }

    #[test]
    fn a_part_of_the_host_side_is_known_by_its_directory() {
        let relay =
            ["/usr/bin/drover", "host", "relay", "--run-directory", "/run/drover/uid-1", "--memory-mib", "64", ""];
        assert_eq!(part(&relay, "/run/drover"), Some(("relay".into(), "uid-1".into())));
        let driver = ["drover", "host", "driver", "--block-copy", "web", "--relay-directory", "/run/drover/uid-1", ""];
        assert_eq!(part(&driver, "/run/drover"), Some(("driver".into(), "uid-1".into())));
        assert_eq!(part(&relay, "/run/drove"), None);
        let others: [&[&str]; 3] = [
            &["drover", "host", "doctor", "--run-directory", "/run/drover"],
            &["ls", "host", "relay", "/run/elsewhere/uid-1"],
            &["vi", "/run/drover/uid-1/x"],
        ];
        assert!(others.iter().all(|arguments| part(arguments, "/run/drover").is_none()));
    }

    #[test]
    fn an_unreadable_disk_is_an_error() {
        assert!(matches!(holders(&[("vda".into(), "/nonexistent/disk".into())], "u"), Err(Error::Disk { .. })));
    }

    #[test]
    fn only_sockets_without_a_process_that_may_deliver_count() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:0016 0100007F:0801 01 0:0 0:0 0 0 0 4711 1\n\
            1: 0100007F:0016 0100007F:0801 06 0:0 0:0 0 0 0 0 1\n\
            2: 0100007F:0016 0200007F:0801 04 0:0 0:0 0 0 0 0 1\n\
            3: 0100007F:0016 0100007F:0801 04 0:0 0:0 0 0 0 0 1\n";
        let servers = BTreeSet::from([IpAddr::from([127, 0, 0, 1])]);
        assert_eq!(orphans_in(text, "t", &servers).unwrap(), ["127.0.0.1 in state 04"]);
        assert_eq!(hex_address("0000000000000000FFFF00000100007F"), Some(IpAddr::from([127, 0, 0, 1])));
        assert!(orphans_in("head\nnonsense\n", "t", &servers).is_err());
    }
}
