//! What people write into the `VmMigration`.

use drover::api::VmMigrationSpec;
use drover::api::vm_migration::{CutoverSpec, OnDifference, Overrides};

use crate::controller::migration_changed;
use crate::world::{Model, State, Stop, only_if};

/// The part of the spec that people change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Wish {
    pub approved: Approved,
    pub rollback: bool,
    pub hold: bool,
    pub attempt: u8,
    pub finalize: bool,
    /// Nothing is to be written anew after the power-off.
    pub gives_up: bool,
}

/// An approval, and what it was given for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Approved {
    #[default]
    No,
    /// A bare yes before there was a plan.
    Early,
    /// A bare yes to the plan that is stored.
    Bare,
    /// A yes that names the plan.
    Named,
    /// A yes that names another plan.
    Wrong,
}

impl Wish {
    /// The truth about the approval: a person said yes to the plan.
    pub fn yes(&self) -> bool {
        matches!(self.approved, Approved::Bare | Approved::Named)
    }

    pub fn spec(&self, digest: Option<&str>) -> VmMigrationSpec {
        let wrong = || format!("sha256:{}", "0".repeat(64));
        VmMigrationSpec {
            hostname: "web01".into(),
            approved: (self.approved != Approved::No).then_some(true),
            approved_digest: match self.approved {
                Approved::No | Approved::Early | Approved::Bare => None,
                Approved::Named => digest.map(str::to_owned),
                Approved::Wrong => Some(wrong()),
            },
            rollback: self.rollback.then_some(true),
            hold: self.hold.then_some(true),
            attempt: (self.attempt > 0).then_some(u32::from(self.attempt)),
            finalize: self.finalize.then_some(true),
            source_ref: None,
            target_ref: None,
            terraform_ref: None,
            terraform: None,
            overrides: Overrides::default(),
            cutover: CutoverSpec {
                on_difference: if self.gives_up { OnDifference::GiveUp } else { OnDifference::Repair },
                ..CutoverSpec::default()
            },
        }
    }
}

/// A change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Approve,
    ApproveByDigest,
    ApproveAnother,
    Withdraw,
    Rollback,
    GoOn,
    Hold,
    Release,
    Attempt,
    Finalize,
    Delete,
}

impl Change {
    pub const ALL: [Self; 11] = [
        Self::Approve,
        Self::ApproveByDigest,
        Self::ApproveAnother,
        Self::Withdraw,
        Self::Rollback,
        Self::GoOn,
        Self::Hold,
        Self::Release,
        Self::Attempt,
        Self::Finalize,
        Self::Delete,
    ];
}

pub fn change(model: &Model, state: &mut State, change: Change) -> Result<(), Stop> {
    only_if(!state.migration.gone && !state.migration.deleting)?;
    crate::faults::spend(state)?;
    let planned = model.statuses.get(state.migration.status).plan.is_some();
    let before = state.migration.wish;
    let wish = &mut state.migration.wish;
    match change {
        Change::Approve => wish.approved = if planned { Approved::Bare } else { Approved::Early },
        Change::ApproveByDigest => {
            only_if(planned)?;
            wish.approved = Approved::Named;
        }
        Change::ApproveAnother => wish.approved = Approved::Wrong,
        Change::Withdraw => wish.approved = Approved::No,
        Change::Rollback => (wish.rollback, wish.finalize) = (true, false),
        Change::GoOn => wish.rollback = false,
        Change::Hold => wish.hold = true,
        Change::Release => wish.hold = false,
        Change::Attempt => wish.attempt += 1,
        Change::Finalize => (wish.finalize, wish.rollback) = (true, false),
        Change::Delete => {
            state.migration.deleting = true;
            state.migration.gone = !state.migration.held;
        }
    }
    only_if(change == Change::Delete || state.migration.wish != before)?;
    migration_changed(state, None);
    Ok(())
}
