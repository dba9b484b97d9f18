//! The proof without which no target is powered on.

use super::decide::Input;
use super::gate;
use super::seen::{Fact, TargetVm, TargetVmDisk};
use crate::api::block_copy::{BlockCopyStatus, HowOff, QuiesceStatus, Want};
use crate::api::common::{Time, Tri};
use crate::api::shutdown::OnShutdownTimeout;
use crate::api::vm_migration::TargetDisk;

/// Says that everything was proven: only [`PowerOnPermit::prove`] can make one, and an order to power on cannot be written without it.
#[derive(Debug)]
pub struct PowerOnPermit(());

/// What is still missing, in words.
pub type Missing = String;

impl PowerOnPermit {
    /// Checks every proof: source off twice, how it went off, drained, all writers gone, equal, approved as planned, target off and still
    /// the same. Returns the target as it was seen with the permit.
    pub fn prove<'a>(input: &'a Input<'_>) -> Result<(Self, &'a TargetVm), Missing> {
        if !gate::approved(input) {
            return Err("the approval does not count (any more)".into());
        }
        Self::prove_again(input)
    }

    /// The same for an order that is recorded already: it was approved when it was recorded, and cannot be taken back since.
    pub fn prove_again<'a>(input: &'a Input<'_>) -> Result<(Self, &'a TargetVm), Missing> {
        let copy = current_copy(input)?;
        quiesced(input, copy.quiesce.as_ref().ok_or("the host side has not reported the shutdown")?)?;
        let target = same_target(input)?;
        if compared_target(input) != Some(target.etag.as_str()) {
            return Err("the target was changed after it was compared: it is compared again".into());
        }
        Ok((Self(()), target))
    }
}

/// Oldest report that still tells how things are; the host side reports every 3 s.
const MAX_REPORT_AGE_SECONDS: i64 = 30;

/// Why a report is not to be relied on, if it is too old, or of a time that has not come: then one of the two clocks is wrong.
pub fn too_old(input: &Input<'_>, report: &BlockCopyStatus) -> Option<String> {
    let age = report.seen_at.as_ref().map_or(i64::MAX, |Time(at)| input.now.duration_since(*at).as_secs());
    if age > MAX_REPORT_AGE_SECONDS {
        return Some(format!("the host side last reported {age} s ago: is its job running, and its clock right?"));
    }
    let early = age < -MAX_REPORT_AGE_SECONDS;
    early.then(|| format!("the host side last reported {} s from now: are the clocks right?", age.unsigned_abs()))
}

fn current_copy<'a>(input: &'a Input<'_>) -> Result<&'a BlockCopyStatus, Missing> {
    let Fact::Known(Some(copy)) = &input.seen.copy else { return Err("the BlockCopy could not be read".into()) };
    let status = copy.status.as_ref().ok_or("the host side has not reported")?;
    if copy.spec.want != Want::Quiesce
        || Some(copy.spec.epoch) != input.status.epoch
        || status.epoch != input.status.epoch
    {
        return Err("the host side has not answered the current order".into());
    }
    if let Some(why) = too_old(input, status) {
        return Err(why);
    }
    if status.reached != Some(Want::Quiesce) {
        return Err("the host side has not finished".into());
    }
    Ok(status)
}

/// Version of the target under which the current order has compared it.
fn compared_target<'a>(input: &'a Input<'_>) -> Option<&'a str> {
    let Fact::Known(Some(copy)) = &input.seen.copy else { return None };
    copy.spec.target_version.as_deref()
}

fn quiesced(input: &Input<'_>, quiesce: &QuiesceStatus) -> Result<(), Missing> {
    let QuiesceStatus {
        marked_at,
        command: _,
        shutdown_requested_at,
        off_by_libvirt_at,
        how,
        off_by_host_at,
        drained_at,
        repair,
        writers_gone_at,
        equal_at,
        blake3: _,
        compared_extents: _,
        verified_extents: _,
    } = quiesce;
    // What the relay had not written was written from the source's disk, and everything was compared after that.
    let repaired = repair.as_ref().is_some_and(|repair| repair.repaired_extents.is_some());
    let written_at = drained_at.as_ref().or(equal_at.as_ref().filter(|_| repaired));
    let proofs = [
        (marked_at.as_ref(), "the source bears its mark"),
        (shutdown_requested_at.as_ref(), "the shutdown was requested in sync"),
        (off_by_libvirt_at.as_ref(), "libvirt says that the source is off"),
        (off_by_host_at.as_ref(), "the host shows that the source is off"),
        (written_at, "all writes are on the target"),
        (writers_gone_at.as_ref(), "every writer is gone"),
        (equal_at.as_ref(), "source and target are equal"),
    ];
    if let Some((_, proof)) = proofs.iter().find(|(at, _)| at.is_none()) {
        return Err(format!("not proven: {proof}"));
    }
    let policy = input.status.plan.as_ref().map(|plan| plan.shutdown.on_timeout);
    let may_be_forced = policy == Some(OnShutdownTimeout::ForceOff);
    match how {
        Some(HowOff::Clean) => Ok(()),
        Some(HowOff::Forced) if may_be_forced => Ok(()),
        Some(HowOff::Forced | HowOff::Unclear) | None => Err("it is not clear how the source went off".into()),
    }
}

fn same_target<'a>(input: &'a Input<'_>) -> Result<&'a TargetVm, Missing> {
    let pinned = input.status.target.as_ref().ok_or("no target is pinned")?;
    let Fact::Known(vms) = &input.seen.target else { return Err("Prism could not be asked for the target".into()) };
    let vm = vms.iter().find(|vm| vm.ext_id == pinned.ext_id).ok_or("the target VM is gone from Prism")?;
    if vm.on != Tri::No {
        return Err("the target was not seen off".into());
    }
    // The file too: a disk that was moved to another container keeps its identity, and boots from a file that nobody compared.
    let same_disk = |(now, then): (&TargetVmDisk, &TargetDisk)| {
        let file = (then.vmdisk_uuid.clone(), then.nfs_path.clone());
        now.ext_id == then.ext_id && now.size_bytes == then.size_bytes && now.backing.as_ref() == Some(&file)
    };
    let same_disks = vm.disks.len() == pinned.disks.len() && vm.disks.iter().zip(&pinned.disks).all(same_disk);
    if !same_disks {
        return Err("the target's disks are no longer those that were written".into());
    }
    Ok(vm)
}
