//! The host side's mind: from an order, what was reached and what is seen, to what is recorded and done next.
//!
//! ```text
//!   Inspect   find, claim, report
//!   Canary    write a marker to each target                                                            ([`canary`])
//!   Mirror    open exports -> start mirrors -> follow; any break voids the whole attempt and it starts again   ([`mirror`])
//!   Quiesce   in sync -> mark -> shut down -> off, twice -> drained -> writers gone -> equal          ([`quiesce`], [`prove`])
//!   KeepOff   the target runs: write nothing, start nothing, marked as migrated                                ([`release`])
//!   Release   cut the mirror -> autostart back -> start what was shut down -> unmark, unclaim                  ([`release`])
//!   Undo      the same for a source that bears the mark of a finished cutover: its target was shut down for good
//!   Retire    close -> marked as migrated -> unclaim                                                           ([`release`])
//! ```
//!
//! [`decide`] is total and pure. What is unknown leads to waiting and a named problem: never to a shutdown, a start or a proof.

mod canary;
mod effect;
mod memory;
mod mirror;
mod pace;
mod prove;
mod quiesce;
mod release;
mod seen;
#[cfg(test)]
mod tests;
mod turn;

pub use effect::{Decision, Effect, MemoryChange, Proviso};
pub use memory::{Attempt, Mark, MarkState, Memory};
pub use seen::*;
use turn::Turn;

use crate::api::block_copy::{BlockCopySpec, BlockCopyStatus, Claim, DomainStatus, Want};
use crate::api::common::{Time, Tri};

/// Synchronous writes of a block copy came with libvirt 8.0.0 (`VIR_DOMAIN_BLOCK_COPY_SYNCHRONOUS_WRITES`, "Since: 8.0.0").
pub const MIN_LIBVIRT: Version = Version(8, 0, 0);

/// libvirt 8 drives block jobs by node names, which it does from QEMU 4.2 on.
pub const MIN_QEMU: Version = Version(4, 2, 0);

/// A decision that is older is not carried out: whoever stood still for so long looks again.
pub const MAX_DECISION_AGE_SECONDS: u64 = 30;

/// Decides one turn. `status` is what was recorded last; `now` is the only clock.
pub fn decide(order: &BlockCopySpec, status: &BlockCopyStatus, seen: &Seen, now: &Time) -> Decision {
    let mut turn = Turn::begin(order, status, seen, now);
    if turn.finished() {
        return turn.end(MemoryChange::Keep);
    }
    if status.epoch.is_some_and(|newest| newest > order.epoch) {
        turn.status = status.clone();
        turn.problem("StaleOrder", stale(order.epoch, status.epoch.unwrap_or_default()));
        return turn.end(MemoryChange::Keep);
    }
    let change = match find(&mut turn) {
        Some(domain) => claim(&mut turn, domain),
        None => MemoryChange::Keep,
    };
    turn.end(change)
}

/// The one domain that the order means, reported in the status; otherwise a problem.
fn find<'a>(turn: &mut Turn<'a>) -> Option<&'a DomainSeen> {
    let hostname = &turn.order.hostname;
    let found = match &turn.seen.found {
        Fact::Known(found) => found,
        Fact::Unknown(why) => {
            turn.status.in_sync = Tri::Unknown;
            turn.problem(
                "HypervisorUnreachable",
                format!("libvirt does not tell: {why}. Waiting for it; nothing was changed."),
            );
            return None;
        }
    };
    let ending = turn.order.want >= Want::KeepOff;
    match found {
        Found::One(domain) => {
            report_domain(turn, domain);
            return Some(domain);
        }
        // A domain that never was or is no more leaves nothing to release, or to keep off, but the claim.
        Found::None { .. } | Found::Several { .. } if ending => match &turn.seen.memory {
            _ if matches!(turn.order.want, Want::Release | Want::Undo) && turn.shutdown_requested() => turn.problem(
                "SourceGone",
                format!(
                    "The source was shut down for its cutover, and {} has no single domain {hostname} any more to start again. Define it again (virsh define), or take the finalizer off the VmMigration if the machine is given up.",
                    turn.order.libvirt_uri
                ),
            ),
            Fact::Known(Some(memory)) if same(&memory.claim, &turn.order.claim) => {
                turn.effects.push(Effect::DeleteClaim)
            }
            Fact::Known(_) => turn.status.reached = Some(turn.order.want),
            Fact::Unknown(why) => turn.problem("ClaimUnreadable", why.clone()),
        },
        Found::None { seen_names } => {
            let some = if seen_names.is_empty() { "no domain at all".into() } else { seen_names.join(", ") };
            turn.problem(
                "DomainNotFound",
                format!(
                    "No domain on {} bears the name {hostname}. Seen there: {some}. Correct the hostname or the host.",
                    turn.order.libvirt_uri
                ),
            );
        }
        Found::Several { names } => turn.problem(
            "AmbiguousHostname",
            format!(
                "{hostname} may mean any of these domains: {}. Rename one, or its title or metadata.",
                names.join(", ")
            ),
        ),
    }
    None
}

fn report_domain(turn: &mut Turn<'_>, domain: &DomainSeen) {
    let own = turn.own_mark(domain);
    turn.status.domain = Some(DomainStatus {
        state: domain.state_word.clone(),
        migrated: domain.mark.as_ref().is_some_and(|mark| mark.state == MarkState::Migrated),
        mark: own.as_ref().map(|mark| mark.state),
        autostart_was: own.and_then(|mark| mark.autostart_was),
        libvirt_version: domain.libvirt_version.to_string(),
        qemu_version: domain.qemu_version.to_string(),
    });
    if let Ok(machine) = &domain.machine {
        let sizes_known = matches!(domain.blocks, Fact::Known(_));
        if sizes_known || turn.status.machine.is_none() {
            turn.status.machine = Some(machine.clone());
        }
    }
}

/// Whether two claims are one: the same migration of the same Drover.
fn same(a: &Claim, b: &Claim) -> bool {
    a.uid == b.uid && a.installation == b.installation
}

fn stale(order: u64, newest: u64) -> String {
    format!("Order {order} is older than order {newest}, which was already seen. Nothing is done for it.")
}

/// Makes sure that the domain is ours, then does what is wanted.
fn claim(turn: &mut Turn<'_>, domain: &DomainSeen) -> MemoryChange {
    let claim = &turn.order.claim;
    let memory = match &turn.seen.memory {
        Fact::Known(memory) => memory,
        Fact::Unknown(why) => {
            turn.problem("ClaimUnreadable", format!("{why}. Nothing is done until the claim can be read."));
            return MemoryChange::Keep;
        }
    };
    let mark = domain.mark.as_ref();
    let other = match (memory, mark) {
        (Some(memory), _) if !same(&memory.claim, claim) => Some(&memory.claim),
        (None, Some(mark)) if mark.state != MarkState::Migrated && !same(&mark.claim, claim) => Some(&mark.claim),
        _ => None,
    };
    if let Some(other) = other {
        if turn.order.want == Want::Release {
            turn.status.reached = Some(Want::Release);
        } else {
            turn.problem("AlreadyClaimed", already_claimed(domain, other));
        }
        return MemoryChange::Keep;
    }
    let own_mark = mark.filter(|mark| same(&mark.claim, claim));
    let newest = memory.iter().map(|memory| memory.epoch).chain(own_mark.map(|mark| mark.epoch)).max();
    if let Some(newest) = newest.filter(|newest| *newest > turn.order.epoch) {
        turn.problem("StaleOrder", stale(turn.order.epoch, newest));
        return MemoryChange::Keep;
    }
    let migrated = mark.is_some_and(|mark| mark.state == MarkState::Migrated);
    match memory {
        None if migrated && !(turn.order.want == Want::Undo && own_mark.is_some()) => {
            without_claim_on_migrated(turn, own_mark.is_some());
            MemoryChange::Keep
        }
        None if matches!(turn.order.want, Want::Release | Want::Undo) && own_mark.is_none() => {
            turn.status.reached = Some(turn.order.want);
            MemoryChange::Keep
        }
        None => take_claim(turn, domain, own_mark),
        Some(before) => {
            let mut memory = before.clone();
            memory.epoch = turn.order.epoch;
            memory.follow_clock(turn.now, &turn.after(mirror::MAX_PAUSE_SECONDS));
            work(turn, domain, &mut memory, migrated);
            if memory == *before { MemoryChange::Keep } else { MemoryChange::Write(Box::new(memory)) }
        }
    }
}

fn already_claimed(domain: &DomainSeen, other: &Claim) -> String {
    format!(
        "Domain {} belongs to the migration {}/{} (uid {}, installation {}). Delete that one first, or this one.",
        domain.uuid, other.namespace, other.name, other.uid, other.installation
    )
}

fn take_claim(turn: &mut Turn<'_>, domain: &DomainSeen, own_mark: Option<&Mark>) -> MemoryChange {
    let mut memory = Memory::new(turn.order.claim.clone(), turn.order.epoch);
    memory.autostart_was = own_mark.and_then(|mark| mark.autostart_was);
    // The file that would tell how far that cutover came is lost, so it may have come to its end.
    memory.shut_down = own_mark.is_some_and(|mark| mark.state != MarkState::Claimed);
    turn.mark(domain, &memory, own_mark.map_or(MarkState::Claimed, |mark| mark.state));
    turn.soon();
    MemoryChange::Create(Box::new(memory))
}

/// A domain whose cutover is over: it may be looked at, and that is all.
fn without_claim_on_migrated(turn: &mut Turn<'_>, ours: bool) {
    match turn.order.want {
        Want::Inspect | Want::Release => turn.status.reached = Some(turn.order.want),
        Want::KeepOff | Want::Retire if ours => turn.status.reached = Some(turn.order.want),
        Want::Canary | Want::KeepOff | Want::Retire | Want::Mirror | Want::Quiesce | Want::Undo => {
            already_migrated(turn)
        }
    }
}

fn already_migrated(turn: &mut Turn<'_>) {
    turn.problem(
        "AlreadyMigrated",
        "The domain bears the mark of a finished cutover: its machine runs elsewhere. It is not copied or started again.".into(),
    );
}

fn work(turn: &mut Turn<'_>, domain: &DomainSeen, memory: &mut Memory, migrated: bool) {
    remember_holders(turn, memory);
    if migrated && !matches!(turn.order.want, Want::KeepOff | Want::Undo | Want::Retire) {
        return already_migrated(turn);
    }
    let too_old = domain.libvirt_version < MIN_LIBVIRT || domain.qemu_version < MIN_QEMU;
    if too_old && turn.order.want < Want::KeepOff {
        turn.problem(
            "VersionTooOld",
            format!(
                "libvirt {} with QEMU {}: a lossless copy needs libvirt {MIN_LIBVIRT} and QEMU {MIN_QEMU} (synchronous writes). Upgrade the host or move the machine to one that is newer.",
                domain.libvirt_version, domain.qemu_version
            ),
        );
        return;
    }
    match turn.order.want {
        // The target may be running, and the source is behind it or ahead of it.
        Want::Inspect | Want::Canary | Want::Mirror if memory.shut_down => {
            mirror::report(turn, domain, memory);
            cutover_unresolved(turn, domain);
        }
        Want::Inspect => inspect(turn, domain, memory),
        Want::Canary => canary::canary(turn, domain, memory),
        Want::Mirror => {
            quiesce::restore(turn, domain, memory);
            mirror::mirror(turn, domain, memory);
        }
        Want::Quiesce => quiesce::quiesce(turn, domain, memory),
        Want::Release | Want::Undo => release::release(turn, domain, memory),
        Want::KeepOff => release::keep_off(turn, domain, memory),
        Want::Retire => release::retire(turn, domain, memory),
    }
}

fn inspect(turn: &mut Turn<'_>, domain: &DomainSeen, memory: &mut Memory) {
    quiesce::restore(turn, domain, memory);
    match &domain.machine {
        Err(why) => turn.problem("UnsupportedMachine", why.clone()),
        Ok(_) if matches!(domain.power, Power::Running | Power::Paused) => turn.status.reached = Some(Want::Inspect),
        Ok(_) => not_running(turn, domain),
    }
}

fn not_running(turn: &mut Turn<'_>, domain: &DomainSeen) {
    if turn.own_mark(domain).is_some_and(|mark| mark.state == MarkState::Cutover) {
        return cutover_unresolved(turn, domain);
    }
    turn.problem(
        "SourceNotRunning",
        format!(
            "Domain {} is {}: only a running machine can be moved. Start it; it was left as it is.",
            domain.uuid, domain.state_word
        ),
    );
}

fn cutover_unresolved(turn: &mut Turn<'_>, domain: &DomainSeen) {
    turn.problem(
        "CutoverUnresolved",
        format!("Domain {} is {} and a cutover of it was begun: look whether its target runs before anything is started. Release gives the source back.", domain.uuid, domain.state_word),
    );
}

/// Remembers which QEMU processes were seen holding the disks: the probe counts as a proof of "off" only if it saw them while they ran.
fn remember_holders(turn: &Turn<'_>, memory: &mut Memory) {
    if let Fact::Known(processes) = &turn.seen.processes {
        for (device, holders) in &processes.holders {
            for holder in holders.iter().filter(|holder| holder.qemu) {
                memory.holders.entry(device.clone()).or_default().insert(holder.process.clone());
            }
        }
    }
}
