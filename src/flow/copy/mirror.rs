//! `Mirror`: every disk is copied to its target and kept in step, as one attempt that holds or breaks as a whole.
//!
//! An attempt belongs to one relay process and one QEMU process. When a mirror vanishes, the relay reports an export broken, or either
//! process is another one, everything copied is void: the exports are closed (which ends what is left of the mirrors without anything to
//! wait for) and a new attempt begins after a pause. The source is never touched by it.
//!
//! Disks that are in step are verified meanwhile. A difference that stands although nothing was written there is the storage's, or ours:
//! nothing is repaired under a running guest; the attempt is void, and the alarm stands until a later one is in sync.

use super::effect::{Effect, Proviso};
use super::memory::{Attempt, Memory};
use super::pace;
use super::seen::{BlockSeen, DomainSeen, ExportSeen, Fact, JobSeen, MirrorSeen, Power, ProcessId, RelaySeen};
use super::turn::Turn;
use crate::api::block_copy::{DiskCopy, DiskCopyStatus, MirrorState, Want};
use crate::api::common::Tri;
use crate::api::machine::{DiskFormat, DiskSource, Machine};

/// QEMU mirrors whole sectors.
const SECTOR_BYTES: u64 = 512;
/// In sync demands that the relay's backlog can be written within this time, at the rate the target takes it now: it bounds the outage.
pub const MAX_DRAIN_SECONDS: u64 = 60;
/// A backlog this small is in sync whatever the rate: a rate is not known while nearly nothing is written.
const SMALL_BACKLOG_BYTES: u64 = 1 << 20;
/// Once a disk was in step, `end - cur` of its job is what the guest has in flight at this moment, not yet told to be written.
const MAX_IN_FLIGHT_BYTES: u64 = 64 << 20;
/// Pause before a target that was refused is opened again.
const REOPEN_SECONDS: u64 = 3;
/// Longest pause between attempts.
pub(super) const MAX_PAUSE_SECONDS: u64 = 60;

/// The alarm of a disk that was found different from its target while it ran.
const VERIFY_FAILED: &str = "VerifyFailed";

/// Follows the order `Mirror`; also keeps the mirror going while `Quiesce` waits for it.
pub(super) fn mirror(turn: &mut Turn<'_>, domain: &DomainSeen, memory: &mut Memory) {
    attempt(turn, domain, memory);
    let alarm = turn.before.problem.as_ref().filter(|before| before.reason == VERIFY_FAILED);
    let outweighed = turn.status.problem.as_ref().is_none_or(|problem| problem.reason == "CopyBroken");
    if alarm.is_some() && outweighed && !turn.status.in_sync.is_yes() {
        turn.status.problem = alarm.cloned();
    }
}

fn attempt(turn: &mut Turn<'_>, domain: &DomainSeen, memory: &mut Memory) {
    report(turn, domain, memory);
    if !matches!(domain.power, Power::Running | Power::Paused) {
        return super::not_running(turn, domain);
    }
    if let Err((reason, message)) = check_source(turn, domain, memory) {
        return turn.problem(reason, message);
    }
    let Some(relay) = turn.relay() else {
        turn.status.in_sync = Tri::Unknown;
        return;
    };
    match memory.attempt.clone() {
        None => begin(turn, domain, memory, relay),
        Some(attempt) => match broken(turn, domain, &attempt, relay) {
            Some(why) => void(turn, memory, relay, &why),
            None if attempt.started_at.is_none() => start(turn, domain, memory, relay),
            None => follow(turn, domain, memory, relay),
        },
    }
}

/// Whether the domain is still what the order was made for, and can be moved at all.
pub(super) fn check_source(
    turn: &Turn<'_>,
    domain: &DomainSeen,
    memory: &Memory,
) -> Result<(), (&'static str, String)> {
    let machine = domain.machine.as_ref().map_err(|why| ("UnsupportedMachine", why.clone()))?;
    let unsupported = |what: String| Err(("UnsupportedMachine", what));
    if !machine.persistent {
        return unsupported("The domain is transient: it would vanish when it stops. Define it first.".into());
    }
    if machine.on_poweroff != "destroy" {
        return unsupported(format!(
            "on_poweroff is {}: only a domain that stays off after power-off can be moved.",
            machine.on_poweroff
        ));
    }
    for disk in &machine.disks {
        if disk.format != DiskFormat::Raw || disk.source == DiskSource::Other {
            return unsupported(format!("Disk {} is no raw file or block device.", disk.device));
        }
        if !disk.size_bytes.is_multiple_of(SECTOR_BYTES) {
            return unsupported(format!(
                "Disk {} has {} bytes, no multiple of {SECTOR_BYTES}: its last bytes could not be compared.",
                disk.device, disk.size_bytes
            ));
        }
    }
    if turn.order.disks.is_empty() {
        return Err(("OrderIncomplete", "The order names no disks.".into()));
    }
    match changed(turn, machine, memory) {
        Some(what) => {
            Err(("SourceChanged", format!("{what} Look at the machine again, plan again and approve again.")))
        }
        None => Ok(()),
    }
}

/// In what the machine is no longer what the order was made for.
pub(super) fn changed(turn: &Turn<'_>, machine: &Machine, memory: &Memory) -> Option<String> {
    for disk in &machine.disks {
        let Some(ordered) = turn.order.disks.iter().find(|ordered| ordered.device == disk.device) else {
            return Some(format!("Disk {} is not part of the order.", disk.device));
        };
        // 0 = the monitor did not tell in this turn.
        if disk.size_bytes != 0 && disk.size_bytes != ordered.size_bytes {
            return Some(format!(
                "Disk {} has {} bytes; the order says {}.",
                disk.device, disk.size_bytes, ordered.size_bytes
            ));
        }
        if let Some(path) = memory.source_paths.get(&disk.device).filter(|path| **path != disk.path) {
            return Some(format!("Disk {} is now {}; copying began from {path}.", disk.device, disk.path));
        }
    }
    let gone =
        turn.order.disks.iter().find(|ordered| !machine.disks.iter().any(|disk| disk.device == ordered.device))?;
    Some(format!("The domain has no disk {} any more.", gone.device))
}

/// No attempt runs: clear what is left of the last one, then open the exports.
fn begin(turn: &mut Turn<'_>, domain: &DomainSeen, memory: &mut Memory, relay: &RelaySeen) {
    if !clear(turn, domain, relay) {
        return;
    }
    if let Some(device) = foreign_job(domain) {
        let message = format!("Another block job runs on disk {device}. It was left alone: wait for it, or end it.");
        return turn.problem("ForeignBlockJob", message);
    }
    if !turn.is_past(memory.retry_at.as_ref()) {
        return turn.same_problem("CopyBroken", "The copy broke; it starts again shortly.");
    }
    let Fact::Known(processes) = &turn.seen.processes else {
        return cannot_prove(turn, "the host's processes cannot be looked at");
    };
    let Some(writer) = processes.relay.clone() else {
        return cannot_prove(turn, "the relay's process cannot be seen (does the job share the host's process ids?)");
    };
    let Some(qemu) = qemu_of_all_disks(turn) else {
        return cannot_prove(turn, "no single QEMU process of this domain was seen holding all of its disks");
    };
    // A process that has ended holds nothing any more; who is seen beside this attempt's QEMU from now on, breaks its proofs.
    for holders in memory.holders.values_mut() {
        holders.retain(|process| processes.alive.contains(process));
    }
    memory.writers.insert(writer);
    memory.attempt = Some(Attempt {
        relay_instance: relay.instance.clone(),
        qemu,
        started_at: None,
        synced: Default::default(),
        cut: false,
    });
    if let Ok(machine) = &domain.machine {
        memory.source_paths = machine.disks.iter().map(|disk| (disk.device.clone(), disk.path.clone())).collect();
    }
    open_missing(turn, memory, relay);
}

fn cannot_prove(turn: &mut Turn<'_>, why: &str) {
    turn.problem(
        "HostProofImpossible",
        format!("That the source is off could not be proven later: {why}. So nothing is copied."),
    );
}

/// The QEMU process of this domain that holds every disk of the order.
pub(super) fn qemu_of_all_disks(turn: &Turn<'_>) -> Option<ProcessId> {
    let Fact::Known(processes) = &turn.seen.processes else { return None };
    let holds = |disk: &DiskCopy, process: &ProcessId| {
        processes
            .holders
            .get(&disk.device)
            .is_some_and(|holders| holders.iter().any(|h| h.qemu && h.process == *process))
    };
    let first = turn.order.disks.first()?;
    let candidates = processes.holders.get(&first.device)?;
    let qemu = candidates.iter().filter(|holder| holder.qemu).map(|holder| &holder.process);
    qemu.into_iter().find(|process| turn.order.disks.iter().all(|disk| holds(disk, process))).cloned()
}

/// Ends what is left of an earlier attempt. True when nothing is.
fn clear(turn: &mut Turn<'_>, domain: &DomainSeen, relay: &RelaySeen) -> bool {
    let closed = turn.close_exports(relay, true);
    let left: Vec<&String> =
        domain.mirrors.iter().filter(|(_, mirror)| mirror.ours).map(|(device, _)| device).collect();
    if closed {
        // With no export left the connection is gone: nothing can hold the abort up.
        turn.effects.extend(left.iter().map(|device| Effect::AbortMirror { device: (*device).clone() }));
    }
    if !closed || !left.is_empty() {
        turn.same_problem("CopyBroken", "The remains of a broken copy are being cleared; the guest is not affected.");
    }
    closed && left.is_empty()
}

fn foreign_job(domain: &DomainSeen) -> Option<&String> {
    let mirror = domain.mirrors.iter().find(|(_, mirror)| !mirror.ours).map(|(device, _)| device);
    let Fact::Known(blocks) = &domain.blocks else { return mirror };
    mirror.or_else(|| blocks.iter().find(|(_, block)| block.job.is_some()).map(|(device, _)| device))
}

/// Opens the exports that the relay does not have yet, a target as fresh only if nothing was ever written to it.
fn open_missing(turn: &mut Turn<'_>, memory: &mut Memory, relay: &RelaySeen) {
    let order = turn.order;
    for disk in order.disks.iter().filter(|disk| !relay.exports.contains_key(&disk.device)) {
        let recorded = turn.before.disks.iter().any(|before| before.device == disk.device && before.dirtied);
        let fresh = !recorded && !memory.dirtied.contains(&disk.device);
        turn.effects.push(Effect::OpenExport { disk: disk.clone(), fresh });
    }
    memory.retry_at = Some(turn.after(REOPEN_SECONDS));
    turn.soon();
}

/// The exports are being opened; when all are there, the mirrors are started.
fn start(turn: &mut Turn<'_>, domain: &DomainSeen, memory: &mut Memory, relay: &RelaySeen) {
    let order = turn.order;
    if order.disks.iter().any(|disk| !relay.exports.contains_key(&disk.device)) {
        match &turn.seen.trouble {
            Some(trouble) => turn.problem(
                "TargetRefused",
                format!(
                    "The relay could not open the targets: {trouble}. It is tried again; the guest is not affected."
                ),
            ),
            None => turn.same_problem("TargetRefused", "The targets are being opened."),
        }
        if turn.is_past(memory.retry_at.as_ref()) {
            open_missing(turn, memory, relay);
        }
        return;
    }
    let wrong = order
        .disks
        .iter()
        .find(|disk| relay.exports.get(&disk.device).is_some_and(|e| e.size_bytes != disk.size_bytes));
    if let Some(disk) = wrong {
        return void(
            turn,
            memory,
            relay,
            &format!("the relay's export {} has another size than the disk", disk.device),
        );
    }
    if matches!(domain.blocks, Fact::Unknown(_)) {
        return;
    }
    if let Some(attempt) = &mut memory.attempt {
        attempt.started_at = Some(turn.now.clone());
    }
    // From here on something may be written: both records are on disk before the mirrors are ordered.
    memory.dirtied.extend(order.disks.iter().map(|disk| disk.device.clone()));
    for disk in &mut turn.status.disks {
        disk.dirtied = true;
    }
    let bandwidth_bytes_s = pace::speed_bytes_s(share_bytes(turn, relay), 0, 0);
    turn.effects
        .extend(order.disks.iter().map(|disk| Effect::StartMirror { device: disk.device.clone(), bandwidth_bytes_s }));
    turn.soon();
}

/// Why a running attempt is void, if it is.
pub(super) fn broken(turn: &Turn<'_>, domain: &DomainSeen, attempt: &Attempt, relay: &RelaySeen) -> Option<String> {
    if let Some(why) = relay_broken(turn, attempt, relay) {
        return Some(why);
    }
    let Fact::Known(processes) = &turn.seen.processes else { return None };
    if !processes.alive.contains(&attempt.qemu) {
        return Some("the machine's QEMU process is another one now".into());
    }
    attempt.started_at.as_ref()?;
    turn.order.disks.iter().find_map(|disk| {
        let device = &disk.device;
        match (domain.mirrors.get(device), relay.exports.get(device)) {
            (None, _) => Some(format!("the mirror of disk {device} ended by itself")),
            (Some(_), Some(export)) if !export.connected => {
                Some(format!("QEMU is no longer connected to export {device}"))
            }
            (Some(_), _) => None,
        }
    })
}

/// The part of [`broken`] that still means something when the guest has powered off.
pub(super) fn relay_broken(turn: &Turn<'_>, attempt: &Attempt, relay: &RelaySeen) -> Option<String> {
    if relay.instance != attempt.relay_instance {
        return Some("the relay was started anew".into());
    }
    turn.order.disks.iter().find_map(|disk| match relay.exports.get(&disk.device) {
        None if attempt.started_at.is_some() => Some(format!("the relay has no export {} any more", disk.device)),
        None => None,
        Some(export) => export.broken.as_ref().map(|why| format!("export {} is broken: {why}", disk.device)),
    })
}

/// Gives the attempt up and starts again after a pause that grows.
fn void(turn: &mut Turn<'_>, memory: &mut Memory, relay: &RelaySeen, why: &str) {
    let trouble = turn.seen.trouble.as_ref().map(|trouble| format!(" ({trouble})")).unwrap_or_default();
    turn.close_exports(relay, true);
    memory.attempt = None;
    memory.retry_at =
        Some(turn.after(1u64.checked_shl(memory.failures).unwrap_or(MAX_PAUSE_SECONDS).min(MAX_PAUSE_SECONDS)));
    memory.failures = memory.failures.saturating_add(1);
    turn.status.restarts = turn.status.restarts.saturating_add(1);
    turn.problem("CopyBroken", format!("The copy broke and starts again: {why}{trouble}. The guest is not affected."));
}

/// The mirrors run: keep the pace, say how far they are.
fn follow(turn: &mut Turn<'_>, domain: &DomainSeen, memory: &mut Memory, relay: &RelaySeen) {
    if let Some((device, offset)) = difference(turn, relay) {
        let message = format!(
            "Disk {device} differs from its target at byte {offset}: both were read twice, and nothing was written there in between. Look at the storage. The copy is void and starts again; the guest is not affected."
        );
        turn.problem(VERIFY_FAILED, message);
        return void(turn, memory, relay, "its target differs");
    }
    turn.status.reached = Some(Want::Mirror);
    remember_synced(turn, domain, memory);
    let disks: Vec<DiskView<'_>> =
        turn.order.disks.iter().map(|disk| DiskView::new(disk, domain, Some(relay))).collect();
    let total = |of: fn(&ExportSeen) -> u64| disks.iter().filter_map(|disk| disk.export).map(of).sum::<u64>();
    let (backlog, drain) = (total(|export| export.backlog_bytes), total(|export| export.drain_rate_bytes_s));
    keep_pace(turn, &disks, relay);
    turn.status.guest_throttled =
        disks.iter().any(|disk| disk.ready() && disk.export.is_some_and(|export| export.throttled));
    turn.status.in_sync = in_sync(&disks, memory, domain, turn, backlog, drain);
    if turn.status.in_sync.is_yes() {
        memory.failures = 0;
    }
    verify(turn, &disks, domain, memory, relay);
}

/// Where a disk was found to differ, if one was.
fn difference(turn: &Turn<'_>, relay: &RelaySeen) -> Option<(String, u64)> {
    turn.order.disks.iter().find_map(|disk| {
        let verification = turn.seen.verifications.get(&disk.device)?;
        let export = relay.exports.get(&disk.device).filter(|export| export.opening == verification.opening)?;
        verification.difference_offset.filter(|_| export.broken.is_none()).map(|offset| (disk.device.clone(), offset))
    })
}

/// Orders the disks that are in step to be verified, but never while the guest's writes wait for the target.
fn verify(turn: &mut Turn<'_>, disks: &[DiskView<'_>], domain: &DomainSeen, memory: &Memory, relay: &RelaySeen) {
    let bytes_s = (u64::from(turn.order.limits.verify_mib_per_second) << 20) / (disks.len() as u64).max(1);
    let (Some(attempt), Ok(machine)) = (&memory.attempt, &domain.machine) else { return };
    let throttled = disks.iter().any(|disk| disk.export.is_some_and(|export| export.throttled));
    if bytes_s == 0 || throttled || !is_only_writer(turn, memory) {
        return;
    }
    for disk in disks.iter().filter(|disk| disk.in_step(attempt)) {
        let source = machine.disks.iter().find(|source| source.device == disk.order.device);
        if let (Some(source), Some(export)) = (source, disk.export) {
            turn.effects.push(Effect::Verify {
                disk: disk.order.clone(),
                source_path: source.path.clone(),
                opening: export.opening.clone(),
                proviso: Proviso {
                    relay_instance: relay.instance.clone(),
                    interruptions: domain.interruptions,
                    target_version: turn.order.target_version.clone(),
                },
                bytes_s,
            });
        }
    }
}

/// Whether nothing of an earlier relay can still write: what is verified now would not stay so.
fn is_only_writer(turn: &Turn<'_>, memory: &Memory) -> bool {
    let Fact::Known(processes) = &turn.seen.processes else { return false };
    let mut earlier = memory.writers.iter().filter(|writer| Some(*writer) != processes.relay.as_ref());
    // The sockets count even if no writer is known: those of a claim that was given up may be theirs.
    processes.orphan_sockets.is_empty() && !earlier.any(|writer| processes.alive.contains(writer))
}

/// Sets the speed of the disks that are still being copied.
fn keep_pace(turn: &mut Turn<'_>, disks: &[DiskView<'_>], relay: &RelaySeen) {
    let share = share_bytes(turn, relay);
    for disk in disks.iter().filter(|disk| !disk.ready()) {
        let (Some(job), Some(export)) = (disk.job(), disk.export) else { continue };
        let wanted = pace::speed_bytes_s(share, export.backlog_bytes, export.drain_rate_bytes_s);
        if pace::worth_changing(job.bandwidth_bytes_s, wanted) {
            turn.effects.push(Effect::SetSpeed { device: disk.order.device.clone(), bandwidth_bytes_s: wanted });
        }
    }
}

/// The relay shares its memory evenly among its exports.
fn share_bytes(turn: &Turn<'_>, relay: &RelaySeen) -> u64 {
    relay.memory_bytes / (turn.order.disks.len() as u64).max(1)
}

fn in_sync(
    disks: &[DiskView<'_>],
    memory: &Memory,
    domain: &DomainSeen,
    turn: &Turn<'_>,
    backlog: u64,
    drain: u64,
) -> Tri {
    if matches!(domain.blocks, Fact::Unknown(_)) || matches!(turn.seen.processes, Fact::Unknown(_)) {
        return Tri::Unknown;
    }
    let Some(attempt) = &memory.attempt else { return Tri::No };
    let drains_in_time = backlog <= SMALL_BACKLOG_BYTES || backlog / drain.max(1) <= MAX_DRAIN_SECONDS;
    Tri::from(!disks.is_empty() && disks.iter().all(|disk| disk.in_step(attempt)) && drains_in_time)
}

fn remember_synced(turn: &Turn<'_>, domain: &DomainSeen, memory: &mut Memory) {
    let Some(attempt) = &mut memory.attempt else { return };
    for disk in &turn.order.disks {
        let view = DiskView::new(disk, domain, None);
        if view.ready() && view.job().is_some_and(|job| job.end > 0 && job.cur == job.end) {
            attempt.synced.insert(disk.device.clone());
        }
    }
}

/// How far each disk is. With the relay unknown the last figures of its part stay.
pub(super) fn report(turn: &mut Turn<'_>, domain: &DomainSeen, memory: &Memory) {
    let relay = match &turn.seen.relay {
        Fact::Known(relay) => Some(relay),
        Fact::Unknown(_) => None,
    };
    let off = matches!(domain.power, Power::Off { .. });
    let started = memory.attempt.as_ref().is_some_and(|attempt| attempt.started_at.is_some());
    let disks = turn.order.disks.iter().map(|disk| {
        let before = turn.before.disks.iter().find(|before| before.device == disk.device);
        let view = DiskView::new(disk, domain, relay);
        let export = view.export;
        let backlog_bytes = export.map(|e| e.backlog_bytes).or(before.map(|b| b.backlog_bytes)).unwrap_or(0);
        // QEMU's counters are shares of the work, which starts tiny: before they mean anything the disk's size is the better total.
        let job = view.job().filter(|job| job.end > 1);
        let (copied_bytes, total_bytes) = match (job, before) {
            (Some(job), _) => (job.cur.min(job.end), job.end),
            // The jobs end a moment before the domain is seen off: what they had reached stays.
            (None, Some(before)) if off || started => (before.copied_bytes, before.total_bytes),
            (None, _) => (0, disk.size_bytes),
        };
        let state = match (view.mirror, before.map(|before| before.state)) {
            (Some(_), _) if view.ready() => MirrorState::Ready,
            (Some(_), _) => MirrorState::Copying,
            (None, Some(MirrorState::Drained)) if off => MirrorState::Drained,
            (None, _) if off && memory.attempt.is_some() => MirrorState::Draining,
            (None, _) => MirrorState::None,
        };
        let verification = turn.seen.verifications.get(&disk.device);
        let verified_bytes = match (verification, relay, before) {
            // Proven in full, or as far as it had come.
            (_, _, Some(before)) if off => before.verified_bytes,
            (Some(verification), Some(_), _) if export.is_some_and(|e| e.opening == verification.opening) => {
                verification.verified_bytes
            }
            (_, None, Some(before)) if started => before.verified_bytes,
            _ => 0,
        };
        DiskCopyStatus {
            device: disk.device.clone(),
            state,
            copied_bytes,
            total_bytes,
            rate_mib_s: u32::try_from(export.map_or(0, |e| e.drain_rate_bytes_s) >> 20).unwrap_or(u32::MAX),
            backlog_bytes,
            verified_bytes,
            dirtied: before.is_some_and(|before| before.dirtied) || memory.dirtied.contains(&disk.device),
        }
    });
    turn.status.disks = disks.collect();
}

/// One disk's facts side by side.
struct DiskView<'a> {
    order: &'a DiskCopy,
    mirror: Option<&'a MirrorSeen>,
    block: Option<BlockSeen>,
    export: Option<&'a ExportSeen>,
}

impl<'a> DiskView<'a> {
    fn new(order: &'a DiskCopy, domain: &'a DomainSeen, relay: Option<&'a RelaySeen>) -> Self {
        let block = match &domain.blocks {
            Fact::Known(blocks) => blocks.get(&order.device).copied(),
            Fact::Unknown(_) => None,
        };
        let mirror = domain.mirrors.get(&order.device).filter(|mirror| mirror.ours);
        Self { order, mirror, block, export: relay.and_then(|relay| relay.exports.get(&order.device)) }
    }

    /// Every write of the guest goes to both sides, and all that was there before has gone to the target.
    fn in_step(&self, attempt: &Attempt) -> bool {
        self.ready()
            && attempt.synced.contains(&self.order.device)
            && self.export.is_some_and(|export| export.connected && export.broken.is_none())
            && self.job().is_some_and(|job| job.end.saturating_sub(job.cur) <= MAX_IN_FLIGHT_BYTES)
    }

    fn ready(&self) -> bool {
        self.mirror.is_some_and(|mirror| mirror.ready)
    }

    fn job(&self) -> Option<JobSeen> {
        self.block.and_then(|block| block.job)
    }
}
