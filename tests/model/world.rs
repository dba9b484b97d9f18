//! One migration's whole world, small enough to be explored: what is stored, what runs, and the truth about it.

use std::rc::Rc;

use drover::api::VmMigrationStatus;
use drover::api::block_copy::{BlockCopySpec, BlockCopyStatus};
use drover::flow::copy::{MarkState, Memory};

use crate::controller::{self, Choice, Controller, Look};
use crate::explorer::{Broken, Step, World};
use crate::faults::Fault;
use crate::host::{self, Answer, Driver, Glance};
use crate::intern::{NOW, Table};
use crate::planted::Bug;
use crate::prism::{self, Prism};
use crate::user::{self, Wish};
use crate::{faults, invariants};

/// How far the exploration goes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub start: Start,
    /// Faults, hands at a machine, changes of the `VmMigration` by people, and long delays, in one run.
    pub events: u8,
    /// Replicas of the controller.
    pub controllers: usize,
    /// A process may stand still after any of so many first steps of its turn.
    pub pauses: u8,
    /// How old a stored time may be; each tick makes it one older.
    pub ages: &'static [&'static str],
    pub epochs: u64,
    /// Orders to Prism that differ.
    pub target_orders: u8,
    /// Changes of the target.
    pub changes: u8,
    /// The policy forbids to write anew what differs.
    pub gives_up: bool,
    pub canary: Canary,
}

/// What Prism shows of a marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Canary {
    Shown,
    /// Something else: the file is not the target's disk.
    Differs,
    NotOffered,
}

/// Where the exploration begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The `VmMigration` was just created.
    Created,
    /// In sync, waiting for an approval.
    InSync,
    /// The same, and the approval has just come.
    Approved,
    /// The target has taken over.
    Migrated,
}

/// Fresh, and too old for everything that has a limit.
pub const TWO_AGES: &[&str] = &[NOW, "2029-12-31T23:43:20"];

/// Everything that differs from state to state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub migration: Migration,
    pub copy: Option<BlockCopyStored>,
    pub claim: Option<u32>,
    pub controllers: Vec<Controller>,
    pub driver: Driver,
    pub relay: Relay,
    pub source: Source,
    pub disk: Disk,
    pub prism: Prism,
    pub ghost: Ghost,
    pub events_left: u8,
}

/// The `VmMigration` as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Migration {
    pub wish: Wish,
    pub status: u32,
    pub held: bool,
    pub deleting: bool,
    pub gone: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockCopyStored {
    pub spec: u32,
    pub status: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Relay {
    pub up: bool,
    /// Counts its starts: another run is another process.
    pub run: u8,
    pub export: Option<Export>,
    /// Acknowledged, and not on the target's disk.
    pub backlog: bool,
    /// The run whose write counters were closed when all was written.
    pub sealed: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Export {
    pub broken: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mirror {
    None,
    Copying,
    Ready,
}

/// The source: what libvirt says, and whether its QEMU lives.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// libvirt says that it runs.
    pub on: bool,
    /// libvirt's reason of "off" is an orderly shutdown.
    pub orderly: bool,
    /// The process lives: this is what "runs" means.
    pub qemu: bool,
    /// Counts its starts: another run is another process.
    pub run: u8,
    /// The guest was asked to power off, and will.
    pub asked: bool,
    pub autostart: bool,
    pub mark: Option<MarkStored>,
    pub mirror: Mirror,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MarkStored {
    pub epoch: u64,
    pub state: MarkState,
    pub autostart_was: Option<bool>,
}

/// The truth about the bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Disk {
    /// The target's disk and what the relay still holds are the source's content.
    pub equal: bool,
    /// Something else was written to the target since the mirror began: a mirror that gets ready does not make it equal.
    pub spoilt: bool,
    /// Data of a dead relay is under way to the target.
    pub late: bool,
    /// They differ where no write counter tells it.
    pub hidden: bool,
}

/// What nobody in this world knows, but the invariants need.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ghost {
    /// The cutover that is recorded was ordered under an approval of the plan.
    pub approved: bool,
    /// The source would run if there was no Drover: giving it back means that it runs.
    pub owed: bool,
    /// The target has run as the machine, and the source was not started since: the target's content is the machine's.
    pub taken_over: bool,
    /// Somebody started the source by hand, and no report can tell yet.
    pub hand_unreported: bool,
    /// Somebody powered the target on by hand after it was decided, or while it could not be known, that the source is given back.
    pub hand_after_release: bool,
}

/// Everything that can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A controller reads, decides, records and acts.
    Turn(usize, Look),
    /// The same, but it stands still after so many of its steps (recording is one, each effect is one). That is a fault.
    TurnUntil(usize, Look, u8),
    /// It goes on with what it has in hand.
    Resume(usize),
    /// It dies with what it has in hand, or its next call fails: it begins anew.
    Drop(usize),
    /// The driver reads its order, looks, decides, writes the claim file, reports and acts.
    DriverTurn(Glance),
    DriverTurnUntil(Glance, u8),
    DriverResume,
    /// Its next call fails: it begins anew, and remembers what it has seen.
    DriverDrop,
    DriverStarts,
    Guest,
    QemuEnds,
    MirrorReady,
    Repaired,
    RelayDrains,
    RelayStarts,
    LateArrives,
    PipelineApplies,
    /// Prism carries out one of its tasks, not always the oldest.
    TaskRuns(usize),
    Tick,
    Person(user::Change),
    Fault(Fault),
}

/// Why an action leads nowhere.
pub enum Stop {
    NotPossible,
    Cut,
    Broken(Broken),
}

pub fn only_if(condition: bool) -> Result<(), Stop> {
    if condition { Ok(()) } else { Err(Stop::NotPossible) }
}

pub fn broken(invariant: &'static str, what: &str) -> Stop {
    Stop::Broken(Broken { invariant, what: what.into() })
}

/// The world's laws, with all that was decided so far.
pub struct Model {
    pub bounds: Bounds,
    pub bug: Option<Bug>,
    pub statuses: Table<VmMigrationStatus>,
    pub orders: Table<BlockCopySpec>,
    pub reports: Table<BlockCopyStatus>,
    pub memories: Table<Memory>,
    pub request_ids: Vec<String>,
    pub descriptions: Vec<String>,
    pub choices: std::collections::HashMap<controller::Question, Rc<Choice>>,
    pub answers: std::collections::HashMap<host::Question, Rc<Answer>>,
    pub settled: std::collections::HashSet<u128>,
    pub setup: drover::flow::migration::Setup,
}

impl Model {
    pub fn new(bounds: Bounds, bug: Option<Bug>) -> Self {
        Self {
            bounds,
            bug,
            statuses: Table::default(),
            orders: Table::default(),
            reports: Table::default(),
            memories: Table::default(),
            request_ids: Vec::new(),
            descriptions: vec![controller::DESCRIPTION.into()],
            choices: Default::default(),
            answers: Default::default(),
            settled: Default::default(),
            setup: controller::setup(),
        }
    }

    pub fn carry_out(&mut self, state: &mut State, action: Action) -> Result<(), Stop> {
        match action {
            Action::Turn(number, look) => {
                controller::decide(self, state, number, look)?;
                self.controller_steps(state, number, u8::MAX)?;
            }
            Action::TurnUntil(number, look, steps) => {
                faults::spend(state)?;
                controller::decide(self, state, number, look)?;
                self.controller_steps(state, number, steps)?;
                only_if(state.controllers[number] != Controller::default())?;
            }
            Action::Resume(number) => {
                only_if(state.controllers[number] != Controller::default())?;
                self.controller_steps(state, number, u8::MAX)?;
            }
            Action::Drop(number) => {
                only_if(state.controllers[number] != Controller::default())?;
                state.controllers[number] = Controller::default();
            }
            Action::DriverTurn(glance) => {
                host::decide(self, state, glance)?;
                self.driver_steps(state, u8::MAX)?;
            }
            Action::DriverTurnUntil(glance, steps) => {
                faults::spend(state)?;
                host::decide(self, state, glance)?;
                self.driver_steps(state, steps)?;
                only_if(state.driver.held.is_some())?;
            }
            Action::DriverResume => {
                only_if(state.driver.held.is_some())?;
                self.driver_steps(state, u8::MAX)?;
            }
            Action::DriverDrop => only_if(state.driver.held.take().is_some())?,
            Action::DriverStarts => {
                only_if(!state.driver.up && state.copy.is_some())?;
                state.driver = Driver { up: true, ..Driver::default() };
            }
            Action::Guest => {
                only_if(state.source.asked && state.source.on)?;
                host::power_off(state, true);
            }
            Action::QemuEnds => {
                only_if(state.source.qemu && !state.source.on)?;
                host::end_qemu(state);
            }
            Action::MirrorReady => host::mirror_ready(state)?,
            Action::Repaired => host::repaired(state)?,
            Action::RelayDrains => {
                let refilled = state.source.qemu && state.source.mirror != Mirror::None;
                only_if(state.relay.backlog && !refilled)?;
                state.relay.backlog = false;
            }
            Action::RelayStarts => {
                only_if(!state.relay.up && state.copy.is_some())?;
                state.relay.up = true;
                state.relay.run += 1;
            }
            Action::LateArrives => {
                only_if(state.disk.late)?;
                state.disk = Disk { equal: false, spoilt: true, late: false, hidden: true };
            }
            Action::PipelineApplies => {
                only_if(state.prism.published && !state.prism.exists)?;
                state.prism.exists = true;
            }
            Action::TaskRuns(place) => prism::task_runs(self, state, place)?,
            Action::Tick => {
                // A guest that was asked powers off within the time that a release watches it, or never: an assumption of Drover's too.
                only_if(!state.source.asked)?;
                faults::spend(state)?;
                self.tick(state);
            }
            Action::Person(change) => user::change(self, state, change)?,
            Action::Fault(fault) => faults::happens(self, state, fault)?,
        }
        Ok(())
    }

    /// A controller goes on for so many steps, or until it has nothing left in hand. The world follows each of them.
    pub fn controller_steps(&mut self, state: &mut State, number: usize, steps: u8) -> Result<(), Stop> {
        for _ in 0..steps {
            let controller = &state.controllers[number];
            if *controller == Controller::default() {
                break;
            }
            match controller.record {
                Some(_) => controller::record(self, state, number)?,
                None => controller::act(self, state, number)?,
            }
            self.follow(state);
        }
        Ok(())
    }

    /// The same for the driver.
    pub fn driver_steps(&mut self, state: &mut State, steps: u8) -> Result<(), Stop> {
        for _ in 0..steps {
            match &state.driver.held {
                None => break,
                Some(held) if held.report.is_some() => host::report(self, state)?,
                Some(_) => host::act(state)?,
            }
            self.follow(state);
        }
        Ok(())
    }

    /// A world in which nothing was begun.
    fn created(&mut self) -> State {
        State {
            migration: Migration {
                wish: Wish { gives_up: self.bounds.gives_up, ..Wish::default() },
                status: self.statuses.number(VmMigrationStatus::default()),
                held: false,
                deleting: false,
                gone: false,
            },
            copy: None,
            claim: None,
            controllers: vec![Controller::default(); self.bounds.controllers],
            driver: Driver { up: true, ..Driver::default() },
            relay: Relay { up: true, run: 0, export: None, backlog: false, sealed: None },
            source: Source {
                on: true,
                orderly: false,
                qemu: true,
                run: 0,
                asked: false,
                autostart: true,
                mark: None,
                mirror: Mirror::None,
            },
            disk: Disk { equal: false, spoilt: false, late: false, hidden: false },
            prism: Prism { foreign: self.bounds.canary == Canary::Differs, ..Prism::default() },
            ghost: Ghost {
                approved: false,
                owed: true,
                taken_over: false,
                hand_unreported: false,
                hand_after_release: false,
            },
            events_left: 0,
        }
    }

    /// What follows at once from any action.
    pub fn follow(&self, state: &mut State) {
        if state.source.qemu && (state.source.on || state.source.mirror != Mirror::None) {
            // A guest writes all the time. One whose mirror has ended with its machine has stopped.
            match state.source.mirror {
                Mirror::None => (state.disk.equal, state.disk.hidden) = (false, true),
                Mirror::Copying => (state.disk.equal, state.disk.hidden, state.relay.backlog) = (false, true, true),
                Mirror::Ready => state.relay.backlog = true,
            }
        }
        if state.prism.vm.on != prism::On::No {
            (state.disk.equal, state.disk.spoilt, state.disk.hidden) = (false, true, true);
        }
        if !state.relay.backlog || state.relay.export.is_none() {
            state.relay.backlog = false;
        }
        if state.source.mirror == Mirror::None {
            state.disk.spoilt = false;
        }
    }

    pub fn tick(&mut self, state: &mut State) {
        let ages = self.bounds.ages;
        state.migration.status = self.statuses.tick(state.migration.status, ages);
        let report =
            |status: Option<u32>, reports: &mut Table<BlockCopyStatus>| status.map(|number| reports.tick(number, ages));
        if let Some(copy) = &mut state.copy {
            copy.status = report(copy.status, &mut self.reports);
        }
        if let Some(held) = &mut state.driver.held {
            held.report = report(held.report, &mut self.reports);
            held.old = true;
        }
        state.claim = state.claim.map(|number| self.memories.tick(number, ages));
        for controller in &mut state.controllers {
            controller.record = controller.record.map(|number| self.statuses.tick(number, ages));
        }
    }
}

impl World for Model {
    type State = State;
    type Action = Action;

    fn start(&mut self) -> State {
        let mut state = self.created();
        if self.bounds.start != Start::Created {
            state = invariants::at_rest(self, state);
        }
        if matches!(self.bounds.start, Start::Approved | Start::Migrated) {
            state.migration.wish.approved = user::Approved::Bare;
        }
        if self.bounds.start == Start::Migrated {
            state = invariants::at_rest(self, state);
        }
        State { events_left: self.bounds.events, ..state }
    }

    fn actions(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        for number in 0..self.bounds.controllers {
            actions.extend(Look::ALL.map(|look| Action::Turn(number, look)));
            for steps in 0..self.bounds.pauses {
                actions.extend(Look::ALL.map(|look| Action::TurnUntil(number, look, steps)));
            }
            actions.extend([Action::Resume(number), Action::Drop(number)]);
        }
        actions.extend(Glance::ALL.map(Action::DriverTurn));
        for steps in 0..self.bounds.pauses {
            actions.extend(Glance::ALL.map(|glance| Action::DriverTurnUntil(glance, steps)));
        }
        actions.extend([Action::DriverResume, Action::DriverDrop, Action::DriverStarts]);
        actions.extend([Action::Guest, Action::QemuEnds, Action::MirrorReady, Action::Repaired, Action::RelayDrains]);
        actions.extend([
            Action::RelayStarts,
            Action::LateArrives,
            Action::PipelineApplies,
            Action::TaskRuns(0),
            Action::TaskRuns(1),
        ]);
        actions.push(Action::Tick);
        actions.extend(user::Change::ALL.map(Action::Person));
        actions.extend(Fault::ALL.map(Action::Fault));
        actions
    }

    fn apply(&mut self, state: &State, action: Action) -> Option<Step<State>> {
        let mut next = state.clone();
        match self.carry_out(&mut next, action) {
            Ok(()) => {
                self.follow(&mut next);
                // Replicas are alike.
                next.controllers.sort();
                Some(Step::To(next))
            }
            Err(Stop::NotPossible) => None,
            Err(Stop::Cut) => Some(Step::Cut),
            Err(Stop::Broken(broken)) => Some(Step::Broken(broken)),
        }
    }

    fn check(&mut self, state: &State) -> Result<(), Broken> {
        invariants::check(self, state)
    }
}
