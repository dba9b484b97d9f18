//! What is to happen to one migration: how it ends, and what breaks at which moments.

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

const BEFORE: [Moment; 3] = [Moment::Beginning, Moment::Copying, Moment::InSync];
const CUTOVER: [Moment; 5] =
    [Moment::CutoverOrdered, Moment::ShuttingDown, Moment::SourceOff, Moment::BootOrdered, Moment::TargetOn];

impl Plan {
    /// For a guest that goes back to where it was in any case.
    pub fn draw(chance: &mut Chance) -> Self {
        let end = match chance.percent(50) {
            true => End::Moved,
            false => {
                let all: Vec<Moment> =
                    BEFORE.iter().chain(&CUTOVER).copied().filter(|m| *m > Moment::Beginning).collect();
                End::RolledBackAt(chance.pick(&all))
            }
        };
        Self::with_faults(chance, end, true)
    }

    /// For a guest that stays where it was moved to.
    pub fn draw_complete(chance: &mut Chance) -> Self {
        Self::with_faults(chance, End::Moved, false)
    }

    fn with_faults(chance: &mut Chance, end: End, undone: bool) -> Self {
        let last = match end {
            End::RolledBackAt(moment) => moment,
            End::Moved => Moment::TargetOn,
        };
        let mut moments: Vec<Moment> =
            BEFORE.iter().chain(&CUTOVER).copied().filter(|moment| *moment <= last).collect();
        if undone {
            moments.push(Moment::Undoing);
            if last >= Moment::BootOrdered {
                moments.push(Moment::GivingBack);
            }
        }
        let count = if chance.percent(30) { 2 } else { 1 };
        let mut faults: Vec<(Moment, Fault)> = (0..count).filter_map(|_| draw_fault(chance, &moments)).collect();
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
