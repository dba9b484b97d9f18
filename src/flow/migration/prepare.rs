//! Prepare: pin the target's disks, see that the storage lets the hypervisor in, and that the files that are going to be written to are the
//! disks that AHV sees. All of it before the first byte is copied, and never again after that.

use super::decide::{Draft, Input, order, reached};
use super::effect::Effect;
use super::seen::{CanarySeen, Fact, TargetVmDisk};
use super::step::{self, Progress, Step};
use super::{provision, whitelist};
use crate::api::block_copy::Want;
use crate::api::common::Time;
use crate::api::machine::Disk;
use crate::api::nutanix_cluster::CanaryPolicy;
use crate::api::vm_migration::{CanaryStatus, TargetDisk, TargetStatus};
use crate::flow::canary::marker;

/// From here on the target is this VM and no other.
pub fn prepare(input: &Input<'_>, draft: &mut Draft) -> Progress {
    if step::is_done(input.status, Step::Prepare) {
        return Progress::Done;
    }
    let steps = [pin, whitelist::let_in, see_canary];
    let waits = steps.iter().map(|step| step(input, draft)).find(|progress| *progress != Progress::Done);
    waits.unwrap_or(Progress::Done)
}

/// Learn where the target's disks lie on the storage.
fn pin(input: &Input<'_>, draft: &mut Draft) -> Progress {
    if draft.status.target.is_some() {
        return Progress::Done;
    }
    let (vm, Some(plan)) = (provision::planned_target(input, draft), &draft.status.plan) else {
        return Progress::waits("Preparing", "there is no plan yet");
    };
    let vm = match vm {
        Ok(vm) => vm,
        Err(progress) => return progress,
    };
    let disks: Option<Vec<TargetDisk>> =
        plan.machine.disks.iter().zip(&vm.disks).map(|(source, target)| target_disk(source, target)).collect();
    let Some(disks) = disks else {
        return Progress::waits("Preparing", "Prism Element does not list every disk of the target yet");
    };
    draft.status.target =
        Some(TargetStatus { ext_id: vm.ext_id.clone(), disks, created_by_us: true, access: None, canary: None });
    Progress::Done
}

fn target_disk(source: &Disk, target: &TargetVmDisk) -> Option<TargetDisk> {
    let (vmdisk_uuid, nfs_path) = target.backing.clone()?;
    Some(TargetDisk {
        device: source.device.clone(),
        ext_id: target.ext_id.clone(),
        vmdisk_uuid,
        nfs_path,
        size_bytes: target.size_bytes,
    })
}

/// Have a marker written over NFS to each disk, and see Prism show it.
fn see_canary(input: &Input<'_>, draft: &mut Draft) -> Progress {
    let Ok(setup) = &input.seen.setup else {
        return Progress::waits("Canary", "the references could not be resolved");
    };
    let policy = setup.cluster.canary;
    let Some(target) = draft.status.target.as_mut().filter(|_| policy != CanaryPolicy::Skip) else {
        return Progress::Done;
    };
    let canary = target.canary.get_or_insert_with(|| new_canary(input));
    if canary.confirmed_at.is_some() || canary.not_confirmed.is_some() {
        return Progress::Done;
    }
    if let Some(waits) = written(input, draft) {
        return waits;
    }
    match &input.seen.canary {
        Fact::NotAsked => Progress::waits("Canary", "the markers are read back through Prism"),
        Fact::Unknown(refusal) => Progress::Waits { refusal: refusal.clone(), stalled: false },
        Fact::Known(seen) => judge(input, draft, policy, seen),
    }
}

fn new_canary(input: &Input<'_>) -> CanaryStatus {
    let seed = format!("{}/canary/{}", input.uid, input.now);
    let nonce = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, seed.as_bytes()).to_string();
    CanaryStatus { nonce, written_at: None, confirmed_at: None, not_confirmed: None }
}

/// What the host side's part waits for; `None` = all markers are written, and that is recorded.
fn written(input: &Input<'_>, draft: &mut Draft) -> Option<Progress> {
    if let Some(stop) = step::target_in_the_way(input) {
        order(input, draft, Want::Inspect);
        return Some(stop);
    }
    order(input, draft, Want::Canary);
    let Fact::Known(Some(copy)) = &input.seen.copy else {
        return Some(Progress::waits("Canary", "starting the host-side job"));
    };
    if draft.effects.iter().any(|effect| matches!(effect, Effect::OrderCopy(_))) {
        return Some(Progress::waits(
            "Canary",
            "the host side is told to write a marker to each of the target's disks",
        ));
    }
    if let Some(waits) = step::silent(input, copy).or_else(|| step::problem(copy)) {
        return Some(waits);
    }
    let canary = draft.status.target.as_mut()?.canary.as_mut()?;
    if canary.written_at.is_some() {
        return None;
    }
    if !reached(copy, Want::Canary) {
        return Some(Progress::waits("Canary", "the host side writes a marker to each of the target's disks"));
    }
    canary.written_at = Some(Time(input.now));
    Some(Progress::waits("Canary", "the markers are written; they are read back through Prism"))
}

/// What Prism shows is what was written, or it is not, or Prism does not show it.
fn judge(input: &Input<'_>, draft: &mut Draft, policy: CanaryPolicy, seen: &CanarySeen) -> Progress {
    let Some(target) = draft.status.target.as_mut() else { return Progress::Done };
    let Some(canary) = target.canary.as_mut() else { return Progress::Done };
    let blocks = match seen {
        CanarySeen::Blocks(blocks) => blocks,
        CanarySeen::NotOffered(why) if policy == CanaryPolicy::Require => {
            let message = format!(
                "Prism does not offer to read the markers back, so it is not shown that the files are the target's disks: {why}. NutanixCluster.spec.canary is Require: IfPossible goes on without"
            );
            return Progress::stalled("CanaryImpossible", message);
        }
        CanarySeen::NotOffered(why) => {
            canary.not_confirmed = Some(why.chars().take(1024).collect());
            return Progress::Done;
        }
    };
    for disk in &target.disks {
        let wanted = marker(input.uid, &disk.device, &canary.nonce);
        let shown = blocks.iter().find(|(ext_id, _)| *ext_id == disk.ext_id).map(|(_, block)| block.as_slice());
        if shown != Some(wanted.as_slice()) {
            let message = format!(
                "Prism shows something else at the start of the target's disk {} ({}) than the host side has written to {}: that file is not this disk. Nothing is copied. Do prismCentral, prismElement and nfs of the NutanixCluster belong to the same cluster?",
                disk.device, disk.ext_id, disk.nfs_path
            );
            return Progress::stalled("CanaryDiffers", message);
        }
    }
    canary.confirmed_at = Some(Time(input.now));
    Progress::Done
}

/// What is read through Prism: the first bytes of these disks of that VM.
pub fn to_be_read(status: &crate::api::VmMigrationStatus) -> Option<(&str, Vec<&str>)> {
    let target = status.target.as_ref().filter(|_| !step::is_done(status, Step::Prepare))?;
    let canary = target.canary.as_ref()?;
    let undecided = canary.written_at.is_some() && canary.confirmed_at.is_none() && canary.not_confirmed.is_none();
    undecided.then(|| (target.ext_id.as_str(), target.disks.iter().map(|disk| disk.ext_id.as_str()).collect()))
}
