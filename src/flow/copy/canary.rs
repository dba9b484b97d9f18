//! `Canary`: a marker at the start of each target, before anything is copied: whoever reads the disks another way sees whether these files
//! are the disks. It is only ever written where nothing was copied to; what it overwrites are zeroes, and an export knows that its first
//! block may not hold them any more.

use super::effect::Effect;
use super::memory::Memory;
use super::mirror;
use super::quiesce;
use super::seen::{CanaryProgress, DomainSeen, Power};
use super::turn::Turn;
use crate::api::block_copy::Want;

/// Follows the order `Canary`.
pub(super) fn canary(turn: &mut Turn<'_>, domain: &DomainSeen, memory: &mut Memory) {
    quiesce::restore(turn, domain, memory);
    mirror::report(turn, domain, memory);
    if !matches!(domain.power, Power::Running | Power::Paused) {
        return super::not_running(turn, domain);
    }
    if let Err((reason, message)) = mirror::check_source(turn, domain, memory) {
        return turn.problem(reason, message);
    }
    let dirtied = turn.status.disks.iter().any(|disk| disk.dirtied);
    if memory.attempt.is_some() || dirtied || memory.proven || memory.repair.is_some() {
        let message = "Something was copied to the targets already: a marker would overwrite it, and is not written. Delete this migration and create it again.";
        return turn.problem("TargetInUse", message.into());
    }
    let order = turn.order;
    let Some(nonce) = &order.canary else {
        return turn.problem("OrderIncomplete", "The order names no canary.".into());
    };
    let mut written = true;
    for disk in &order.disks {
        let seen = turn.seen.canaries.get(&disk.device).filter(|canary| canary.nonce == *nonce);
        match seen.map(|canary| &canary.progress) {
            Some(CanaryProgress::Written) => continue,
            Some(CanaryProgress::Writing) => {}
            Some(CanaryProgress::Failed(why)) => {
                let message = format!(
                    "The marker could not be written to the target of disk {}: {why}. It is tried again; the guest is not affected.",
                    disk.device
                );
                turn.problem("TargetRefused", message);
                turn.effects.push(write(turn, disk, nonce));
            }
            None => turn.effects.push(write(turn, disk, nonce)),
        }
        written = false;
    }
    if written {
        turn.status.reached = Some(Want::Canary);
    } else if turn.status.problem.is_none() {
        turn.soon();
    }
}

fn write(turn: &Turn<'_>, disk: &crate::api::block_copy::DiskCopy, nonce: &str) -> Effect {
    Effect::WriteCanary { disk: disk.clone(), migration_uid: turn.order.claim.uid.clone(), nonce: nonce.into() }
}
