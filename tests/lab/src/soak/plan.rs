//! What is to happen to one migration: how it ends, and what breaks at which moments. First every pair of both once, then at random.

use std::collections::VecDeque;

use drover::api::VmMigration;

use super::chance::Chance;
use super::faults::Fault;

/// How far a migration is, as its status tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    Beginning,
    Copying,
    InSync,
    CutoverOrdered,
    ShuttingDown,
    SourceOff,
    /// The order to power the target on is recorded: the point of no return.
    BootOrdered,
    TargetOn,
    /// A rollback was asked for.
    Undoing,
    /// The target was proven off after it had been ordered to boot.
    GivingBack,
}

impl Moment {
    pub const ALL: [Self; 10] = [
        Self::Beginning,
        Self::Copying,
        Self::InSync,
        Self::CutoverOrdered,
        Self::ShuttingDown,
        Self::SourceOff,
        Self::BootOrdered,
        Self::TargetOn,
        Self::Undoing,
        Self::GivingBack,
    ];
}

/// How a migration ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Rolled back as soon as this moment is reached.
    RolledBackAt(Moment),
    /// The target has taken over.
    Moved,
}

/// One migration's fate.
#[derive(Clone, Debug)]
pub struct Plan {
    pub end: End,
    /// In the order of their moments.
    pub faults: Vec<(Moment, Fault)>,
}

/// The moments from which a migration may be rolled back.
const TO_THE_END: [Moment; 7] = [
    Moment::Copying,
    Moment::InSync,
    Moment::CutoverOrdered,
    Moment::ShuttingDown,
    Moment::SourceOff,
    Moment::BootOrdered,
    Moment::TargetOn,
];

impl Plan {
    /// For a guest that goes back to where it was in any case: `wanted` happens, and sometimes another fault.
    pub fn with(chance: &mut Chance, wanted: (Moment, Fault)) -> Self {
        let moved = chance.percent(50);
        let ends: Vec<Moment> = TO_THE_END.into_iter().filter(|end| moments(*end, true).contains(&wanted.0)).collect();
        let end = if moved { End::Moved } else { End::RolledBackAt(chance.pick(&ends)) };
        let more = if chance.percent(30) { 1 } else { 0 };
        Self::with_faults(chance, end, true, vec![wanted], more)
    }

    /// Drawn as a whole, for the same.
    pub fn draw(chance: &mut Chance) -> Self {
        let end = if chance.percent(50) { End::Moved } else { End::RolledBackAt(chance.pick(&TO_THE_END)) };
        let count = if chance.percent(30) { 2 } else { 1 };
        Self::with_faults(chance, end, true, Vec::new(), count)
    }

    /// For a guest that stays where it was moved to.
    pub fn draw_complete(chance: &mut Chance) -> Self {
        let count = if chance.percent(30) { 2 } else { 1 };
        Self::with_faults(chance, End::Moved, false, Vec::new(), count)
    }

    fn with_faults(chance: &mut Chance, end: End, undone: bool, mut faults: Vec<(Moment, Fault)>, more: usize) -> Self {
        let last = match end {
            End::RolledBackAt(moment) => moment,
            End::Moved => Moment::TargetOn,
        };
        let moments = moments(last, undone);
        faults.extend((0..more).filter_map(|_| draw_fault(chance, &moments)));
        faults.sort_by_key(|(moment, _)| *moment);
        Self { end, faults }
    }

    /// Whether the cutover is to begin.
    pub fn cuts_over(&self) -> bool {
        match self.end {
            End::RolledBackAt(moment) => moment > Moment::InSync,
            End::Moved => true,
        }
    }
}

/// Every fault at every moment at which it fits, in an order that follows from the seed, dealt to so many lanes.
pub fn sweep(seed: u64, lanes: u32) -> Vec<VecDeque<(Moment, Fault)>> {
    let at = |moment: Moment| Fault::ALL.iter().filter(move |f| f.fits(moment)).map(move |fault| (moment, *fault));
    let mut pairs: Vec<(Moment, Fault)> = moments(Moment::TargetOn, true).into_iter().flat_map(at).collect();
    Chance::new(seed, 0).shuffle(&mut pairs);
    let mut dealt = vec![VecDeque::new(); lanes as usize];
    let count = dealt.len();
    for (index, pair) in pairs.into_iter().enumerate() {
        dealt[index % count].push_back(pair);
    }
    dealt
}

/// What a migration that is rolled back, if at all, from `last` on goes through.
fn moments(last: Moment, undone: bool) -> Vec<Moment> {
    let way = [Moment::Beginning].into_iter().chain(TO_THE_END).filter(|moment| *moment <= last);
    let back = [(Moment::Undoing, Moment::Beginning), (Moment::GivingBack, Moment::BootOrdered)];
    way.chain(back.into_iter().filter(|(_, from)| undone && last >= *from).map(|(moment, _)| moment)).collect()
}

/// A fault and one of the moments at which it makes sense; none if this migration has no such moment.
fn draw_fault(chance: &mut Chance, moments: &[Moment]) -> Option<(Moment, Fault)> {
    let fault = chance.pick(Fault::ALL);
    let fitting: Vec<Moment> = moments.iter().copied().filter(|moment| fault.fits(*moment)).collect();
    (!fitting.is_empty()).then(|| (chance.pick(&fitting), fault))
}

/// The furthest moment that the current attempt has reached.
pub fn moment_of(migration: &VmMigration) -> Moment {
    let status = migration.status.clone().unwrap_or_default();
    let cutover = status.cutover.unwrap_or_default();
    let reason = status.waiting_for.as_ref().map(|waiting| waiting.reason.as_str());
    let copying = |disk: &drover::api::vm_migration::DiskStatus| disk.state == "Copying" && disk.copied_bytes > 0;
    let proven_off = cutover.undo.is_some_and(|undo| undo.proven_off_at.is_some());
    let reached = [
        (proven_off, Moment::GivingBack),
        (migration.spec.rollback == Some(true), Moment::Undoing),
        (cutover.target_on_at.is_some(), Moment::TargetOn),
        (cutover.power_on.is_some(), Moment::BootOrdered),
        (cutover.source_off_at.is_some(), Moment::SourceOff),
        (cutover.shutdown_requested_at.is_some(), Moment::ShuttingDown),
        (cutover.ordered_at.is_some(), Moment::CutoverOrdered),
        (matches!(reason, Some("Approval" | "Held")), Moment::InSync),
        (status.disks.iter().any(copying), Moment::Copying),
    ];
    reached.iter().find(|(holds, _)| *holds).map_or(Moment::Beginning, |(_, moment)| *moment)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn all(sweep: &[VecDeque<(Moment, Fault)>]) -> Vec<(Moment, Fault)> {
        sweep.iter().flatten().copied().collect()
    }

    #[test]
    fn a_sweep_has_every_fitting_pair_once_and_follows_from_its_seed() {
        let pairs = all(&sweep(7, 3));
        let different: BTreeSet<_> = pairs.iter().copied().collect();
        assert_eq!(different.len(), pairs.len());
        for fault in Fault::ALL {
            assert!(pairs.iter().any(|(_, of)| of == fault), "{fault:?} has no moment");
        }
        assert!(pairs.iter().all(|(moment, fault)| fault.fits(*moment)));
        assert!(pairs.len() > 200, "{}", pairs.len());
        assert_eq!(pairs, all(&sweep(7, 3)));
        assert_ne!(pairs, all(&sweep(8, 3)));
    }

    #[test]
    fn a_migration_goes_through_the_moment_at_which_something_is_to_break() {
        let mut chance = Chance::new(1, 1);
        for pair in all(&sweep(1, 1)) {
            let plan = Plan::with(&mut chance, pair);
            assert!(plan.faults.contains(&pair), "{plan:?}");
            let last = match plan.end {
                End::RolledBackAt(moment) => moment,
                End::Moved => Moment::TargetOn,
            };
            assert!(plan.faults.iter().all(|(moment, _)| moments(last, true).contains(moment)), "{plan:?}");
        }
    }
}
