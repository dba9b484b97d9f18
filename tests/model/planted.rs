//! Mistakes that are planted on purpose: each has to be found, or the exploration proves nothing.

use drover::api::block_copy::{BlockCopySpec, BlockCopyStatus, HowOff, QuiesceStatus, Want};
use drover::api::common::{MicroTime, Tri};
use drover::api::{VmMigrationSpec, VmMigrationStatus};
use drover::flow::copy::{self, Found, Power};
use drover::flow::migration::{CanarySeen, Fact, Seen};

use crate::intern::now;

/// A mistake, made by spoiling what a decision sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The host's processes are taken for no proof: libvirt's word is enough.
    NoSecondProof,
    /// The target is powered on before the relay has written everything, and nothing is compared.
    PowerOnBeforeDrain,
    /// An answer to an older order counts for the current one.
    IgnoreEpoch,
    /// Autostart is left as it is.
    ForgetAutostart,
    /// An approval of another plan counts.
    AcceptStaleApproval,
    /// Undoing a boot does not make older orders void.
    NoFence,
    /// Undoing a boot does not look for tasks that are open.
    IgnoreOpenTasks,
    /// Data of a dead relay that is still under way is not waited for.
    IgnoreLateData,
    /// What differs is written anew although equality was reported before, so that the target may run.
    ForgetProven,
    /// What differs is written anew while a relay that holds something else still lives.
    RepairBesideRelay,
    /// Whoever runs the target is not looked at before the source is given back.
    IgnoreTarget,
    /// A marker that Prism does not show counts as shown.
    IgnoreCanary,
}

/// Spoils what the controller sees.
pub fn spoil_controller(bug: Option<Bug>, spec: &mut VmMigrationSpec, status: &mut VmMigrationStatus, seen: &mut Seen) {
    match bug {
        Some(Bug::PowerOnBeforeDrain) => pretend_drained(seen),
        Some(Bug::IgnoreEpoch) => {
            if let Fact::Known(Some(copy)) = &mut seen.copy
                && let Some(report) = &mut copy.status
            {
                report.epoch = Some(copy.spec.epoch);
            }
        }
        Some(Bug::AcceptStaleApproval) => {
            if spec.approved == Some(true) {
                spec.approved_digest = status.plan.as_ref().map(|plan| plan.digest.clone());
            }
        }
        Some(Bug::NoFence) => {
            let epoch = status.cutover.as_ref().and_then(|cutover| cutover.undo.as_ref()).map(|undo| undo.epoch);
            if let (Some(epoch), Fact::Known(vms)) = (epoch, &mut seen.target) {
                vms.iter_mut().for_each(|vm| vm.description.push_str(&format!(" (Drover: undone at order {epoch})")));
            }
        }
        Some(Bug::IgnoreOpenTasks) => {
            if let Fact::Known(vms) = &mut seen.target {
                vms.iter_mut().for_each(|vm| vm.busy = Tri::No);
            }
        }
        Some(Bug::IgnoreTarget) if status.cutover.as_ref().is_some_and(|cutover| cutover.power_on.is_none()) => {
            if let Fact::Known(vms) = &mut seen.target {
                vms.iter_mut().for_each(|vm| vm.on = Tri::No);
            }
        }
        Some(Bug::IgnoreCanary) => {
            if let Fact::Known(canary) = &mut seen.canary {
                *canary = CanarySeen::NotOffered("spoilt".into());
            }
        }
        Some(
            Bug::NoSecondProof
            | Bug::ForgetAutostart
            | Bug::IgnoreLateData
            | Bug::ForgetProven
            | Bug::RepairBesideRelay
            | Bug::IgnoreTarget,
        )
        | None => {}
    }
}

fn pretend_drained(seen: &mut Seen) {
    let Fact::Known(Some(copy)) = &mut seen.copy else { return };
    let Some(report) = copy.status.as_mut().filter(|_| copy.spec.want == Want::Quiesce) else { return };
    let Some(quiesce) = report.quiesce.as_mut().filter(|quiesce| quiesce.off_by_host_at.is_some()) else { return };
    let at = Some(MicroTime(now().0));
    *quiesce = QuiesceStatus {
        how: Some(HowOff::Clean),
        drained_at: at.clone(),
        writers_gone_at: at.clone(),
        equal_at: at,
        ..quiesce.clone()
    };
    report.reached = Some(Want::Quiesce);
}

/// Spoils what the host side sees.
pub fn spoil_host(bug: Option<Bug>, order: &BlockCopySpec, status: &mut BlockCopyStatus, seen: &mut copy::Seen) {
    let copy::Fact::Known(Found::One(domain)) = &mut seen.found else { return };
    match bug {
        Some(Bug::NoSecondProof) if matches!(domain.power, Power::Off { .. }) => {
            if let copy::Fact::Known(processes) = &mut seen.processes {
                processes.holders.values_mut().for_each(Vec::clear);
                processes.alive.retain(|process| process.pid >= 500);
            }
        }
        Some(Bug::ForgetAutostart) => domain.autostart = false,
        Some(Bug::IgnoreEpoch) => {
            status.epoch = status.epoch.map(|_| order.epoch);
            if let copy::Fact::Known(Some(memory)) = &mut seen.memory {
                memory.epoch = memory.epoch.min(order.epoch);
            }
        }
        Some(Bug::RepairBesideRelay) if matches!(domain.power, Power::Off { .. }) => {
            if let copy::Fact::Known(processes) = &mut seen.processes {
                processes.alive.retain(|process| process.pid < 500);
            }
        }
        Some(Bug::ForgetProven) => {
            if let copy::Fact::Known(Some(memory)) = &mut seen.memory {
                memory.proven = false;
            }
        }
        Some(Bug::IgnoreLateData) => {
            if let copy::Fact::Known(processes) = &mut seen.processes {
                processes.orphan_sockets.clear();
            }
        }
        Some(
            Bug::NoSecondProof
            | Bug::PowerOnBeforeDrain
            | Bug::AcceptStaleApproval
            | Bug::NoFence
            | Bug::IgnoreOpenTasks
            | Bug::RepairBesideRelay
            | Bug::IgnoreTarget
            | Bug::IgnoreCanary,
        )
        | None => {}
    }
}
