//! Prism: the target, its version, and the tasks that it works off when it likes.

use crate::world::{Model, State, Stop, broken, only_if};

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Prism {
    /// The file is in the repository.
    pub published: bool,
    /// The pipeline has created the target.
    pub exists: bool,
    pub vm: Vm,
    /// The target as it was before its last change: what an old answer shows.
    pub before: Vm,
    /// Accepted, not carried out.
    pub tasks: Vec<Task>,
    /// Request ids that were answered with a task.
    pub requests: Vec<u16>,
    /// Different orders that were recorded.
    pub orders: u8,
    /// The file that the target's disk is thought to be is another one.
    pub foreign: bool,
}

/// The target as Prism shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Vm {
    pub on: On,
    /// Grows with each change.
    pub etag: u8,
    /// Which description it bears; 0 = the one it was created with.
    pub description: u16,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum On {
    #[default]
    No,
    ByUs,
    ByHand,
}

/// An order as it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sent {
    pub etag: u8,
    pub request: u16,
}

/// What a task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Task {
    /// `excused`: somebody started the source by hand when it was too late to know.
    PowerOn {
        excused: bool,
    },
    /// Asked or forced: the end is the same.
    PowerOff,
    Describe(u16),
}

impl Prism {
    pub fn change(&mut self, change: impl FnOnce(&mut Vm)) {
        self.before = self.vm;
        change(&mut self.vm);
        self.vm.etag += 1;
    }

    /// A power-on that will be carried out and that we have to answer for.
    pub fn power_on_is_queued(&self) -> bool {
        self.tasks.contains(&Task::PowerOn { excused: false })
    }
}

/// A request: accepted if it speaks of the VM as it is, or answered as it was answered before. False: refused.
pub fn order(state: &mut State, sent: Sent, task: Task) -> Result<bool, Stop> {
    let prism = &mut state.prism;
    if prism.requests.contains(&sent.request) {
        return Ok(true);
    }
    if sent.etag != prism.vm.etag {
        return Ok(false);
    }
    if state.source.qemu && task == (Task::PowerOn { excused: false }) {
        return Err(broken("I1", "an order to power the target on was accepted while the source runs"));
    }
    prism.requests.push(sent.request);
    prism.requests.sort_unstable();
    prism.tasks.push(task);
    Ok(true)
}

pub fn task_runs(model: &Model, state: &mut State, place: usize) -> Result<(), Stop> {
    only_if(place < state.prism.tasks.len())?;
    if state.prism.vm.etag >= model.bounds.changes {
        return Err(Stop::Cut);
    }
    match state.prism.tasks.remove(place) {
        Task::PowerOn { excused } => power_on(state, excused),
        Task::PowerOff => {
            if state.prism.vm.on != On::No {
                state.prism.change(|vm| vm.on = On::No);
            }
            Ok(())
        }
        Task::Describe(description) => {
            state.prism.change(|vm| vm.description = description);
            Ok(())
        }
    }
}

fn power_on(state: &mut State, excused: bool) -> Result<(), Stop> {
    if state.prism.vm.on != On::No {
        return Ok(());
    }
    if state.source.qemu && !excused {
        return Err(broken("I1", "the target was powered on while the source runs"));
    }
    let disk = &state.disk;
    if (!disk.equal || state.relay.backlog || disk.late) && !excused && !state.ghost.taken_over {
        return Err(broken("I2", "the target was powered on with other content than the source's"));
    }
    state.ghost.taken_over = true;
    state.prism.change(|vm| vm.on = On::ByUs);
    Ok(())
}
