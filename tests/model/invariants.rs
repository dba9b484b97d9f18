//! What must hold beside what each action checks by itself: a machine that is let go is whole, and everything comes to an end.

use drover::flow::copy::MarkState;

use crate::controller::{Look, Outcome};
use crate::explorer::{Broken, fingerprint};
use crate::host::Glance;
use crate::prism::On;
use crate::world::{Action, Mirror, Model, State, Stop, broken};

/// Rounds of a fair schedule within which a world without faults has come to rest.
const ROUNDS: usize = 60;

/// Reasons to wait that only a person ends, though they are no faults.
const FOR_A_PERSON: [&str; 5] = ["Approval", "ApprovalVoid", "Held", "NotBefore", "RolledBack"];

/// When the last finalizer goes, the machine either runs as it did, or its target has taken over for good.
pub fn let_go(model: &Model, state: &State) -> Result<(), Stop> {
    let source = &state.source;
    let marked = source.mark.map(|mark| mark.state);
    let given_back = marked.is_none() && source.autostart && state.claim.is_none() && source.mirror == Mirror::None;
    let taken_over = marked == Some(MarkState::Migrated) && !source.autostart;
    if !given_back && !taken_over {
        return Err(broken("I4", "the object went while the source was neither given back nor migrated"));
    }
    if given_back && state.ghost.owed && !source.on {
        return Err(broken("I4", "the object went while the source that it had shut down was off"));
    }
    let cutover = model.statuses.get(state.migration.status).cutover.clone().unwrap_or_default();
    if taken_over && cutover.target_on_at.is_none() {
        return Err(broken("I4", "the object went as migrated though its target was never seen on"));
    }
    Ok(())
}

pub fn check(model: &mut Model, state: &State) -> Result<(), Broken> {
    settles(model, state)?;
    can_be_undone(model, state)
}

/// If faults stop and nobody does anything, it ends: done, or waiting for a person who is told why.
fn settles(model: &mut Model, state: &State) -> Result<(), Broken> {
    let Some(end) = settle(model, state.clone())? else { return Ok(()) };
    if end.migration.gone {
        return Ok(());
    }
    if end.migration.deleting {
        return person_is_told(model, &end, "a deleted migration does not go");
    }
    person_is_told(model, &end, "it waits without end, and nobody is told to do something")
}

fn person_is_told(model: &mut Model, end: &State, what: &str) -> Result<(), Broken> {
    let question = model.question(end, Look::Clear);
    match &model.choice(question).outcome {
        Outcome::Done => Ok(()),
        Outcome::Waits { stalled: true, .. } => Ok(()),
        Outcome::Waits { reason, .. } if FOR_A_PERSON.contains(&reason.as_str()) => Ok(()),
        Outcome::Waits { reason, .. } => Err(Broken { invariant: "liveness", what: format!("{what}: {reason}") }),
    }
}

/// One field gives the source back, from wherever it is set.
fn can_be_undone(model: &mut Model, state: &State) -> Result<(), Broken> {
    let status = model.statuses.get(state.migration.status);
    let adopted = status.source.as_ref().is_some_and(|source| source.already_migrated);
    // Somebody who has the target run by hand has to stop it by hand.
    let by_hand = state.prism.vm.on == On::ByHand || !state.ghost.owed;
    let over = state.migration.gone || state.migration.deleting || adopted || state.migration.wish.finalize;
    if by_hand || over || status.source.is_none() {
        return Ok(());
    }
    let mut wanted = state.clone();
    wanted.migration.wish.rollback = true;
    crate::controller::migration_changed(&mut wanted, None);
    let Some(end) = settle(model, wanted)? else { return Ok(()) };
    let source = &end.source;
    let whole = source.on && source.autostart && source.mark.is_none() && end.claim.is_none();
    if whole && end.prism.vm.on == On::No {
        return Ok(());
    }
    let question = model.question(&end, Look::Clear);
    let outcome = &model.choice(question).outcome;
    Err(Broken { invariant: "I4", what: format!("a rollback does not give the source back: {outcome:?}, {source:?}") })
}

/// Where a fair schedule without faults comes to rest. `None`: it was found to come to rest before.
fn settle(model: &mut Model, mut state: State) -> Result<Option<State>, Broken> {
    state.events_left = 0;
    let mut way = Vec::new();
    for _ in 0..ROUNDS {
        let before = fingerprint(&state);
        if model.settled.contains(&before) {
            model.settled.extend(way);
            return Ok(None);
        }
        way.push(before);
        round(model, &mut state)?;
        if fingerprint(&state) != before {
            continue;
        }
        // Time matters only to those who wait. The driver reports more often than a report gets old.
        model.tick(&mut state);
        go(model, &mut state, Action::DriverTurn(Glance::Clear))?;
        if fingerprint(&state) == before {
            model.settled.extend(way);
            return Ok(Some(state));
        }
    }
    let question = model.question(&state, Look::Clear);
    let outcome = model.choice(question).outcome.clone();
    let order = crate::controller::current_order(model, &state).map(|order| order.want);
    Err(Broken {
        invariant: "liveness",
        what: format!("no rest within {ROUNDS} rounds: {outcome:?}, ordered {order:?}"),
    })
}

/// Where a world comes to rest by itself.
pub fn at_rest(model: &mut Model, state: State) -> State {
    let rest = settle(model, state).unwrap_or_else(|broken| panic!("{broken:?}"));
    model.settled.clear();
    rest.expect("nothing was explored before")
}

/// Everybody does what there is to do.
fn round(model: &mut Model, state: &mut State) -> Result<(), Broken> {
    let quiet = [
        Action::DriverStarts,
        Action::RelayStarts,
        Action::PipelineApplies,
        Action::Guest,
        Action::QemuEnds,
        Action::LateArrives,
        Action::MirrorReady,
        Action::Repaired,
        Action::RelayDrains,
        Action::TaskRuns(0),
    ];
    // What is in somebody's hands is finished first.
    for number in 0..state.controllers.len() {
        go(model, state, Action::Resume(number))?;
    }
    go(model, state, Action::DriverResume)?;
    for action in quiet {
        go(model, state, action)?;
    }
    go(model, state, Action::DriverTurn(Glance::Clear))?;
    go(model, state, Action::Turn(0, Look::Clear))
}

/// Does it if it is possible. What lies beyond the bounds of the exploration is allowed here.
fn go(model: &mut Model, state: &mut State, action: Action) -> Result<(), Broken> {
    let bounds = model.bounds;
    (model.bounds.epochs, model.bounds.target_orders, model.bounds.changes) = (u64::MAX, u8::MAX, u8::MAX);
    let mut next = state.clone();
    let done = model.carry_out(&mut next, action);
    model.bounds = bounds;
    match done {
        Ok(()) => {
            model.follow(&mut next);
            *state = next;
            Ok(())
        }
        Err(Stop::NotPossible | Stop::Cut) => Ok(()),
        Err(Stop::Broken(broken)) => Err(broken),
    }
}
