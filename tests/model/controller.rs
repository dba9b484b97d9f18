//! The controllers: `reconcile` and `act`, one step at a time, around the real `decide`.

use std::rc::Rc;

use drover::api::block_copy::{BlockCopySpec, Want};
use drover::api::common::Tri;
use drover::api::vm_migration::{CutoverStatus, TargetOrder};
use drover::api::{BlockCopy, VmMigrationSpec, VmMigrationStatus};
use drover::flow::canary::{MARKER_BYTES, marker};
use drover::flow::migration::{
    CanarySeen, Decision, Effect, Fact, Input, Refusal, Seen, Setup, TargetVm, TargetVmDisk, canary_to_be_read,
    decide as decide_migration, needs,
};
use drover::plan::{Named, Placement};

use crate::faults;
use crate::host::{Driver, GIB};
use crate::intern::now;
use crate::planted;
use crate::prism::{self, On, Sent, Task, Vm};
use crate::user::Wish;
use crate::world::{BlockCopyStored, Canary, Model, State, Stop, broken, only_if};

pub const UID: &str = "uid-1";

/// A controller between reading and the end of its turn. The default is one that has nothing in hand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Controller {
    /// The status that it is about to record. If the migration changes before that, it has lost the race.
    pub record: Option<u32>,
    /// What it has still to do.
    pub effects: Vec<Errand>,
    /// The migration is still the version that it knows.
    pub fresh: bool,
    /// Spec of the `BlockCopy` that it saw; an order replaces that and no other.
    pub saw: Option<u32>,
}

/// An effect, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Errand {
    AddFinalizer,
    RemoveFinalizer,
    Order(u32),
    DeleteCopy,
    Publish,
    /// An order to Prism about the target. A power-on is excused if, when it was decided, somebody had started the source by hand and no
    /// report could tell.
    Target(Sent, Task),
}

/// What a controller cannot read this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Look {
    Clear,
    PrismSilent,
    /// Where an old answer of Prism will do, it is one.
    PrismOld,
    CopyUnreadable,
}

impl Look {
    pub const ALL: [Self; 4] = [Self::Clear, Self::PrismSilent, Self::PrismOld, Self::CopyUnreadable];
}

/// All that a decision is made from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    wish: Wish,
    status: u32,
    held: bool,
    deleting: bool,
    copy: Option<BlockCopyStored>,
    published: bool,
    target: Option<Vm>,
    foreign: bool,
    busy: bool,
    look: Look,
}

/// What was decided.
#[derive(Debug)]
pub struct Choice {
    pub status: u32,
    pub effects: Vec<Errand>,
    pub outcome: Outcome,
}

/// How a decision ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Waits { reason: String, stalled: bool },
}

pub fn setup() -> Setup {
    let valid = "the set-up of the model is valid";
    Setup {
        host_name: "kvm1".into(),
        host: serde_json::from_value(serde_json::json!({"nodeName": "node1", "allowedNamespaces": ["team"]}))
            .expect(valid),
        cluster_name: "ahv1".into(),
        cluster: serde_json::from_value(serde_json::json!({
            "prismCentral": {"url": "https://pc:9440", "credentials": {"name": "pc"}},
            "prismElement": {"url": "https://pe:9440", "credentials": {"name": "pe"}},
            "clusterName": "c1", "storageContainer": "ctr", "nfs": {"address": "192.0.2.1"},
            "subnets": [{"vlan": 10, "subnet": "vlan10"}], "allowedNamespaces": ["team"],
        }))
        .expect(valid),
        repository: serde_json::from_value(serde_json::json!({"url": "https://git/x.git"})).expect(valid),
        installation: "installation-1".into(),
    }
}

/// Description that the target was created with.
pub const DESCRIPTION: &str = "moved by VmMigration team/web01 uid uid-1";

fn target(model: &Model, vm: Vm, busy: Tri) -> TargetVm {
    TargetVm {
        ext_id: "vm-1".into(),
        name: "web01".into(),
        description: model.descriptions[usize::from(vm.description)].clone(),
        on: Tri::from(vm.on != On::No),
        busy,
        etag: format!("v{}", vm.etag),
        disks: vec![TargetVmDisk {
            ext_id: "device-0".into(),
            index: 0,
            size_bytes: 2 * GIB,
            backing: Some(("vmdisk-0".into(), "/ctr/.acropolis/vmdisk/vmdisk-0".into())),
        }],
        learned_ips: vec![],
    }
}

/// What the controller sees of the world.
fn seen(model: &Model, question: &Question, spec: &VmMigrationSpec, status: &VmMigrationStatus) -> Seen {
    let needs = needs(spec, status);
    let silent = || Refusal::new("PrismUnreachable", "no answer");
    let prism = |asked: bool| match (asked, question.look) {
        (false, _) => Err(Fact::NotAsked),
        (true, Look::PrismSilent) => Err(Fact::Unknown(silent())),
        (true, _) => {
            let busy = if needs.tasks { Tri::from(question.busy) } else { Tri::Unknown };
            Ok(question.target.map(|vm| target(model, vm, busy)).into_iter().collect())
        }
    };
    let named = |name: &str| Named { name: name.into(), ext_id: name.into() };
    let placement = match (needs.placement, question.look) {
        (false, _) => Fact::NotAsked,
        (true, Look::PrismSilent) => Fact::Unknown(silent()),
        (true, _) => Fact::Known(Placement {
            cluster: named("c"),
            container: named("s"),
            subnets: vec![(10, named("n"))],
            categories: vec![],
        }),
    };
    let copy = question.copy.map(|stored| {
        let mut copy = BlockCopy::new("web01-uid-1", (*model.orders.get(stored.spec)).clone());
        copy.status = stored.status.map(|status| (*model.reports.get(status)).clone());
        copy
    });
    Seen {
        setup: Ok(model.setup.clone()),
        copy: match question.look {
            Look::CopyUnreadable => Fact::Unknown(Refusal::new("BlockCopyUnreadable", "no answer")),
            Look::Clear | Look::PrismSilent | Look::PrismOld => Fact::Known(copy),
        },
        placement,
        review_url: None,
        application: Fact::NotAsked,
        published: match needs.published {
            true => Fact::Known(question.published.then(|| "commit-1".into())),
            false => Fact::NotAsked,
        },
        target: prism(needs.target).map_or_else(|fact| fact, Fact::Known),
        whitelist: Fact::NotAsked,
        canary: match (canary_to_be_read(status), question.look) {
            (None, _) => Fact::NotAsked,
            (Some(_), Look::PrismSilent) => Fact::Unknown(silent()),
            (Some(_), _) => Fact::Known(canary(model, question.foreign, status)),
        },
        guest_tools: Fact::NotAsked,
    }
}

/// What Prism shows at the start of the disk that it takes for the target's.
fn canary(model: &Model, foreign: bool, status: &VmMigrationStatus) -> CanarySeen {
    if model.bounds.canary == Canary::NotOffered {
        return CanarySeen::NotOffered("404".into());
    }
    let canary = status.target.as_ref().and_then(|target| target.canary.as_ref());
    let nonce = canary.map_or("", |canary| canary.nonce.as_str());
    let block = if foreign { vec![0; MARKER_BYTES] } else { marker(UID, "vda", nonce).to_vec() };
    CanarySeen::Blocks(vec![("device-0".into(), block)])
}

/// Calls the real decision; `planted` may spoil what it sees.
pub fn decide_for(model: &Model, question: &Question, status: &VmMigrationStatus) -> Decision {
    let mut status = status.clone();
    let mut spec = question.wish.spec(status.plan.as_ref().map(|plan| plan.digest.as_str()));
    let mut seen = seen(model, question, &spec, &status);
    planted::spoil_controller(model.bug, &mut spec, &mut status, &mut seen);
    decide_migration(&Input {
        namespace: "team",
        name: "web01",
        uid: UID,
        generation: 1,
        deleting: question.deleting,
        held: question.held,
        approved_by: None,
        last_failure: None,
        spec: &spec,
        status: &status,
        seen: &seen,
        now: now().0,
    })
}

/// Where `text` stands in the list; it is added if it is new.
fn place(list: &mut Vec<String>, text: String) -> u16 {
    let known = list.iter().position(|known| *known == text);
    let place = known.unwrap_or_else(|| {
        list.push(text);
        list.len() - 1
    });
    u16::try_from(place).expect("few texts")
}

impl Model {
    pub fn choice(&mut self, question: Question) -> Rc<Choice> {
        if let Some(choice) = self.choices.get(&question) {
            return Rc::clone(choice);
        }
        let before = self.statuses.get(question.status);
        let decision = decide_for(self, &question, &before);
        let stalled = decision.status.conditions.iter().any(|c| c.type_ == "Stalled" && c.status == "True");
        let outcome = match &decision.status.waiting_for {
            None => Outcome::Done,
            Some(waiting) => Outcome::Waits { reason: waiting.reason.clone(), stalled },
        };
        let effects = decision.effects.into_iter().filter_map(|effect| self.errand(effect)).collect();
        let choice = Rc::new(Choice { status: self.statuses.number(decision.status), effects, outcome });
        self.choices.insert(question, Rc::clone(&choice));
        choice
    }

    fn errand(&mut self, effect: Effect) -> Option<Errand> {
        Some(match effect {
            Effect::AddFinalizer => Errand::AddFinalizer,
            Effect::RemoveFinalizer => Errand::RemoveFinalizer,
            Effect::OrderCopy(spec) => Errand::Order(self.orders.number(*spec)),
            // The Job is there as long as its BlockCopy is.
            Effect::EnsureJob => return None,
            Effect::DeleteCopy => Errand::DeleteCopy,
            Effect::Publish(_) => Errand::Publish,
            Effect::Plan { .. } | Effect::Apply { .. } => unreachable!("nobody follows the pipeline in the model"),
            // The set-up of the model asks for neither.
            Effect::Whitelist { .. } | Effect::GuestTools { .. } => return None,
            Effect::PowerOn { permit: _, ext_id: _, order } => {
                Errand::Target(self.sent(&order), Task::PowerOn { excused: false })
            }
            Effect::ShutDownTarget { order, .. } | Effect::PowerOffTarget { order, .. } => {
                Errand::Target(self.sent(&order), Task::PowerOff)
            }
            Effect::DescribeTarget { order, description, .. } => {
                let description = place(&mut self.descriptions, description);
                Errand::Target(self.sent(&order), Task::Describe(description))
            }
        })
    }

    fn sent(&mut self, order: &TargetOrder) -> Sent {
        let etag = order.etag.trim_start_matches('v').parse().expect("etags of the model are numbers");
        Sent { etag, request: place(&mut self.request_ids, order.request_id.clone()) }
    }

    pub fn question(&self, state: &State, look: Look) -> Question {
        let needs = needs(&state.migration.wish.spec(None), &self.statuses.get(state.migration.status));
        let old = look == Look::PrismOld && needs.target_may_be_seconds_old > 0;
        Question {
            wish: state.migration.wish,
            status: state.migration.status,
            held: state.migration.held,
            deleting: state.migration.deleting,
            copy: state.copy,
            published: state.prism.published,
            target: state.prism.exists.then_some(if old { state.prism.before } else { state.prism.vm }),
            foreign: state.prism.foreign,
            busy: !state.prism.tasks.is_empty(),
            look,
        }
    }

    fn gives_back(&self, errand: &Errand) -> bool {
        matches!(errand, Errand::Order(spec) if matches!(self.orders.get(*spec).want, Want::Release | Want::Undo))
    }
}

pub fn decide(model: &mut Model, state: &mut State, number: usize, look: Look) -> Result<(), Stop> {
    only_if(!state.migration.gone && state.controllers[number] == Controller::default())?;
    if look != Look::Clear {
        faults::spend(state)?;
    }
    let choice = model.choice(model.question(state, look));
    let changed = choice.status != state.migration.status;
    if !changed && choice.effects.is_empty() {
        return Ok(());
    }
    let unreported = state.ghost.hand_unreported && report_is_fresh(model, state);
    let effects = choice.effects.iter().map(|errand| match *errand {
        Errand::Target(sent, Task::PowerOn { .. }) => Errand::Target(sent, Task::PowerOn { excused: unreported }),
        other => other,
    });
    let effects: Vec<Errand> = effects.collect();
    if matches!(look, Look::PrismSilent | Look::PrismOld) && state.prism.vm.on == On::ByHand {
        // Given back while nobody could know.
        state.ghost.hand_after_release |= effects.iter().any(|errand| model.gives_back(errand));
    }
    state.controllers[number] = Controller {
        record: changed.then_some(choice.status),
        effects,
        fresh: true,
        saw: if look == Look::CopyUnreadable { None } else { state.copy.map(|copy| copy.spec) },
    };
    Ok(())
}

/// The age after which a report proves nothing.
fn report_is_fresh(model: &Model, state: &State) -> bool {
    let report = state.copy.and_then(|copy| copy.status).map(|status| model.reports.get(status));
    let seen_at = report.and_then(|report| report.seen_at.clone());
    seen_at.is_some_and(|at| now().0.duration_since(at.0).as_secs() <= 30)
}

/// Everybody who knows another version has lost.
pub fn migration_changed(state: &mut State, by: Option<usize>) {
    for (number, controller) in state.controllers.iter_mut().enumerate() {
        if Some(number) == by {
            continue;
        }
        controller.fresh = false;
        if controller.record.is_some() {
            *controller = Controller::default();
        }
    }
}

pub fn record(model: &mut Model, state: &mut State, number: usize) -> Result<(), Stop> {
    let Some(status) = state.controllers[number].record.take() else { return Err(Stop::NotPossible) };
    let before = model.statuses.get(state.migration.status).cutover.clone().unwrap_or_default();
    let after_status = model.statuses.get(status);
    let after = after_status.cutover.clone().unwrap_or_default();
    if after_status.epoch.is_some_and(|epoch| epoch > model.bounds.epochs) {
        return Err(Stop::Cut);
    }
    let newly_ordered = after.ordered_at.is_some() && before.ordered_at.is_none();
    if newly_ordered && !state.migration.wish.yes() {
        return Err(broken("I5", "a cutover was ordered without an approval of the plan"));
    }
    if after.power_on.is_some() && before.power_on.is_none() && !state.migration.wish.yes() {
        return Err(broken("I5", "the order to power on was recorded without an approval of the plan"));
    }
    state.ghost.approved = after.ordered_at.is_some();
    let ids = |cutover: &CutoverStatus| {
        let undo = cutover.undo.as_ref();
        let undo =
            undo.map(|undo| [undo.shut_down.clone(), undo.power_off.clone(), undo.fence.clone()]).unwrap_or_default();
        let orders = undo.into_iter().flatten().chain(cutover.power_on.clone());
        orders.map(|order| order.request_id).collect::<Vec<_>>()
    };
    let known = ids(&before);
    if ids(&after).iter().any(|id| !known.contains(id)) {
        state.prism.orders += 1;
        if state.prism.orders > model.bounds.target_orders {
            return Err(Stop::Cut);
        }
    }
    state.migration.status = status;
    migration_changed(state, Some(number));
    end_turn(&mut state.controllers[number]);
    Ok(())
}

fn end_turn(controller: &mut Controller) {
    if controller.record.is_none() && controller.effects.is_empty() {
        *controller = Controller::default();
    }
}

pub fn act(model: &mut Model, state: &mut State, number: usize) -> Result<(), Stop> {
    let controller = &mut state.controllers[number];
    only_if(controller.record.is_none() && !controller.effects.is_empty())?;
    let errand = controller.effects.remove(0);
    let (fresh, saw) = (controller.fresh, controller.saw);
    let done = match errand {
        Errand::AddFinalizer => finalizer(model, state, fresh, true)?,
        Errand::RemoveFinalizer => finalizer(model, state, fresh, false)?,
        Errand::Order(spec) => order(state, saw, spec),
        Errand::DeleteCopy => {
            copy_replaced(state, None);
            // Its Job goes with it.
            crate::host::end_relay(state);
            state.driver = Driver::default();
            true
        }
        Errand::Publish => {
            state.prism.published = true;
            true
        }
        Errand::Target(sent, task) => prism::order(state, sent, task)?,
    };
    let controller = &mut state.controllers[number];
    if !done {
        controller.effects.clear();
    }
    end_turn(controller);
    Ok(())
}

fn finalizer(model: &Model, state: &mut State, fresh: bool, wanted: bool) -> Result<bool, Stop> {
    if !fresh || state.migration.gone {
        return Ok(false);
    }
    state.migration.held = wanted;
    if state.migration.deleting && !wanted {
        crate::invariants::let_go(model, state)?;
        state.migration.gone = true;
    }
    migration_changed(state, None);
    Ok(true)
}

fn order(state: &mut State, saw: Option<u32>, spec: u32) -> bool {
    if state.copy.map(|copy| copy.spec) != saw {
        return false;
    }
    copy_replaced(state, Some(spec));
    true
}

/// Another order, or none: a driver that has not reported yet has lost the race, and so has who saw another order.
fn copy_replaced(state: &mut State, spec: Option<u32>) {
    let status = state.copy.and_then(|copy| copy.status);
    state.copy = spec.map(|spec| BlockCopyStored { spec, status });
    if state.driver.held.as_ref().is_some_and(|held| held.report.is_some()) {
        state.driver.held = None;
    }
}

/// The order that the `BlockCopy` holds.
pub fn current_order(model: &Model, state: &State) -> Option<Rc<BlockCopySpec>> {
    state.copy.map(|copy| model.orders.get(copy.spec))
}
