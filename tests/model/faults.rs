//! What goes wrong, and what people do by hand past Drover. Each costs one of the run's faults.

use crate::controller::Errand;
use crate::controller::current_order;
use crate::host::{self, Driver};
use crate::prism::{On, Task};
use crate::world::{Disk, Mirror, Model, State, Stop, broken, only_if};
use drover::api::block_copy::Want;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    DriverDies,
    RelayDies,
    /// The same, and what it had sent is still under way.
    RelayDiesSending,
    /// The target's storage hangs: the relay answers with errors, the mirror ends.
    MirrorBreaks,
    GuestIgnoresRequest,
    GuestQuits,
    SourceCrashes,
    /// libvirt says that it is off, but the process lives on.
    LibvirtWrong,
    SourceStartedByHand,
    SourceStoppedByHand,
    HypervisorReboots,
    TargetOnByHand,
    TargetOffByHand,
    /// Somebody changes something else of the target.
    TargetChangedByHand,
    TaskFails,
}

impl Fault {
    pub const ALL: [Self; 15] = [
        Self::DriverDies,
        Self::RelayDies,
        Self::RelayDiesSending,
        Self::MirrorBreaks,
        Self::GuestIgnoresRequest,
        Self::GuestQuits,
        Self::SourceCrashes,
        Self::LibvirtWrong,
        Self::SourceStartedByHand,
        Self::SourceStoppedByHand,
        Self::HypervisorReboots,
        Self::TargetOnByHand,
        Self::TargetOffByHand,
        Self::TargetChangedByHand,
        Self::TaskFails,
    ];
}

pub fn spend(state: &mut State) -> Result<(), Stop> {
    only_if(state.events_left > 0)?;
    state.events_left -= 1;
    Ok(())
}

pub fn happens(model: &mut Model, state: &mut State, fault: Fault) -> Result<(), Stop> {
    spend(state)?;
    match fault {
        Fault::DriverDies => {
            only_if(state.driver.up)?;
            host::forget_comparison(state);
            state.driver = Driver::default();
        }
        Fault::RelayDies => {
            only_if(state.relay.up)?;
            host::end_relay(state);
        }
        Fault::RelayDiesSending => {
            only_if(state.relay.up && state.relay.backlog)?;
            state.disk.late = true;
            host::end_relay(state);
        }
        Fault::MirrorBreaks => {
            only_if(state.source.mirror != Mirror::None)?;
            host::end_mirror(state);
            if let Some(export) = &mut state.relay.export {
                export.broken = true;
            }
        }
        Fault::GuestIgnoresRequest => {
            only_if(state.source.asked)?;
            state.source.asked = false;
        }
        Fault::GuestQuits => {
            only_if(state.source.on && !state.source.asked)?;
            state.ghost.owed = false;
            host::power_off(state, true);
        }
        Fault::SourceCrashes => {
            only_if(state.source.on)?;
            state.ghost.owed = false;
            host::power_off(state, false);
        }
        Fault::LibvirtWrong => {
            only_if(state.source.on && state.source.asked)?;
            (state.source.on, state.source.orderly, state.driver.saw_event) = (false, true, state.driver.up);
            state.source.asked = false;
            // The guest has stopped and its mirror has ended, but the process lives on and holds the disks.
            state.source.mirror = Mirror::None;
        }
        Fault::SourceStoppedByHand => {
            only_if(state.source.on)?;
            state.ghost.owed = false;
            host::power_off(state, false);
        }
        Fault::SourceStartedByHand => start_source(state)?,
        Fault::HypervisorReboots => reboot(state)?,
        Fault::TargetOnByHand => target_on(model, state)?,
        Fault::TargetOffByHand => {
            only_if(state.prism.vm.on != On::No)?;
            state.prism.change(|vm| vm.on = On::No);
            state.ghost.hand_after_release = false;
        }
        Fault::TargetChangedByHand => {
            only_if(state.prism.exists)?;
            state.prism.change(|_| {});
        }
        Fault::TaskFails => {
            only_if(!state.prism.tasks.is_empty())?;
            state.prism.tasks.remove(0);
        }
    }
    Ok(())
}

fn start_source(state: &mut State) -> Result<(), Stop> {
    only_if(!state.source.on && !state.source.qemu)?;
    host::power_on(state);
    state.ghost.owed = true;
    state.ghost.hand_unreported = true;
    // What is on its way now was decided before anybody could know.
    let excuse = |task: &mut Task| {
        if let Task::PowerOn { excused } = task {
            *excused = true;
        }
    };
    state.prism.tasks.iter_mut().for_each(excuse);
    for errand in state.controllers.iter_mut().flat_map(|controller| &mut controller.effects) {
        if let Errand::Target(_, task) = errand {
            excuse(task);
        }
    }
    Ok(())
}

fn target_on(model: &Model, state: &mut State) -> Result<(), Stop> {
    only_if(state.prism.exists && state.prism.vm.on == On::No)?;
    state.prism.change(|vm| vm.on = On::ByHand);
    // An order that Prism has accepted is carried out after that; nobody can take it back.
    state.ghost.taken_over |= state.prism.power_on_is_queued();
    let gives_back = |want: Want| matches!(want, Want::Release | Want::Undo);
    let on_its_way =
        |errand: &Errand| matches!(errand, Errand::Order(spec) if gives_back(model.orders.get(*spec).want));
    state.ghost.hand_after_release = current_order(model, state).is_some_and(|order| gives_back(order.want))
        || state.controllers.iter().flat_map(|controller| &controller.effects).any(on_its_way);
    Ok(())
}

/// Everything that runs on the hypervisor ends, and so does what lies in its memory file system.
fn reboot(state: &mut State) -> Result<(), Stop> {
    host::end_relay(state);
    host::forget_comparison(state);
    if state.disk.late {
        // What was under way arrives now, or never.
        state.disk = Disk { equal: false, spoilt: true, late: false, hidden: true };
    }
    let ran = state.source.qemu;
    if ran {
        host::power_off(state, false);
    }
    (state.source.on, state.source.orderly) = (false, false);
    state.claim = None;
    state.driver = Driver::default();
    if state.source.autostart {
        if state.prism.vm.on == On::ByUs {
            return Err(broken("I1", "the hypervisor's reboot started the source while the target runs"));
        }
        if state.prism.power_on_is_queued() {
            return Err(broken("I1", "the hypervisor's reboot started the source while a power-on is queued"));
        }
        host::power_on(state);
        state.ghost.owed = true;
    }
    Ok(())
}
