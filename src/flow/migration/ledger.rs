//! The ledger: what a migration has changed in the world, where, in what state it is, and whether it is undone in the end or kept.
//!
//! It is a projection of what was seen and recorded, made anew in each turn: not a second memory, and nothing is decided by it.

use super::decide::{Draft, Input, reached};
use super::effect::Effect;
use super::permit::too_old;
use super::seen::Fact;
use super::step::{self, Step, pinned_target};
use crate::api::BlockCopy;
use crate::api::block_copy::{DomainStatus, MirrorState, Want};
use crate::api::common::{MicroTime, Tri};
use crate::api::terraform_repository::Delivery;
use crate::api::vm_migration::{CutoverStatus, End, SideEffect, SideEffectKind};
use crate::render::commit::review_branch;
use crate::render::job::{copy_name, relay_directory};

/// The ledger after this turn's decision.
pub fn ledger(input: &Input<'_>, draft: &Draft) -> Vec<SideEffect> {
    let view = View::new(input, draft);
    let entries = [
        view.finalizer(),
        view.block_copy(),
        view.job(),
        view.relay(),
        view.claim(),
        view.mark(),
        view.autostart(),
        view.shutdown(),
        view.mirror(),
        view.terraform_file(),
        view.target_vm(),
        view.target_description(),
        view.whitelist_entry(),
    ];
    entries.into_iter().flatten().collect()
}

/// What is kept on purpose, in words; nothing if nothing is.
pub fn kept(ledger: &[SideEffect]) -> Option<String> {
    let kept = ledger.iter().filter(|entry| entry.end == End::Kept);
    let places: Vec<String> =
        kept.map(|entry| format!("{:?}: {} ({})", entry.what, entry.place, entry.state)).collect();
    (!places.is_empty()).then(|| format!("Kept on purpose: {}", places.join("; ")))
}

/// What the entries are made from.
struct View<'a> {
    input: &'a Input<'a>,
    draft: &'a Draft,
    cutover: CutoverStatus,
    /// The BlockCopy, if it was seen.
    copy: Option<&'a BlockCopy>,
    /// The machine was found, and is held by this migration as far as anybody can tell.
    claimed: bool,
    /// The target has taken over, and that is not being undone.
    taken_over: bool,
}

impl<'a> View<'a> {
    fn new(input: &'a Input<'a>, draft: &'a Draft) -> Self {
        let cutover = draft.status.cutover.clone().unwrap_or_default();
        let taken_over = cutover.target_on_at.is_some() && cutover.undo.is_none();
        let (copy, unread) = match &input.seen.copy {
            Fact::Known(copy) => (copy.as_ref(), false),
            Fact::Unknown(_) | Fact::NotAsked => (None, true),
        };
        let ended = |copy: &BlockCopy| [Want::Release, Want::Undo, Want::Retire].iter().any(|end| reached(copy, *end));
        let retired = step::is_done(&draft.status, Step::Retire) && input.spec.finalize == Some(true);
        let found = draft.status.source.as_ref().is_some_and(|source| !source.already_migrated);
        let claimed = found
            && match copy {
                Some(copy) => !ended(copy),
                // Without its BlockCopy a source that was found still bears a claim, until it was retired.
                None => unread || !retired,
            };
        Self { input, draft, cutover, copy, claimed, taken_over }
    }

    fn domain(&self) -> Option<&'a DomainStatus> {
        self.copy?.status.as_ref()?.domain.as_ref()
    }

    /// The domain by the names that people know it by.
    fn domain_place(&self) -> String {
        let status = &self.draft.status;
        let name = status.plan.as_ref().map_or(self.input.spec.hostname.as_str(), |plan| plan.machine.name.as_str());
        let (uuid, host) = status.source.as_ref().map_or(("", ""), |source| (&source.uuid, &source.host));
        format!("domain {name} ({uuid}) on {host}")
    }

    /// Whether what was done to the source stays.
    fn end_of_source(&self) -> End {
        if self.taken_over { End::Kept } else { End::Undone }
    }

    fn finalizer(&self) -> Option<SideEffect> {
        let place = format!("VmMigration {}/{}", self.input.namespace, self.input.name);
        self.input.held.then(|| entry(SideEffectKind::Finalizer, place, "set", End::Undone))
    }

    fn block_copy(&self) -> Option<SideEffect> {
        let name = copy_name(self.input.name, self.input.uid);
        let ordered = self.draft.effects.iter().any(|effect| matches!(effect, Effect::OrderCopy(_)));
        let state = match (self.copy, &self.input.seen.copy) {
            (Some(copy), _) if copy.metadata.deletion_timestamp.is_some() => {
                "deleted by hand; works on until the migration has ended".into()
            }
            (Some(copy), _) => {
                let reached = copy.status.as_ref().filter(|status| status.epoch == Some(copy.spec.epoch));
                let reached = reached.and_then(|status| status.reached);
                format!(
                    "wanted {:?}, reached {}",
                    copy.spec.want,
                    reached.map_or("not yet".into(), |it| format!("{it:?}"))
                )
            }
            (None, Fact::Known(_)) if ordered => "being created".into(),
            (None, Fact::Known(_)) => return None,
            (None, _) => "could not be read".into(),
        };
        Some(entry(SideEffectKind::BlockCopy, name, &state, End::Undone))
    }

    fn job(&self) -> Option<SideEffect> {
        let copy = self.copy?;
        let node = self.input.seen.setup.as_ref().map_or("its hypervisor", |setup| &setup.host.node_name);
        let place = format!("{} on {node}", copy_name(self.input.name, self.input.uid));
        let state = match &copy.status {
            None => "starting",
            Some(report) if too_old(self.input, report).is_some() => "silent",
            Some(_) => "reporting",
        };
        Some(entry(SideEffectKind::Job, place, state, End::Undone))
    }

    fn relay(&self) -> Option<SideEffect> {
        let copy = self.copy?;
        let state = if self.mirrored(copy).is_empty() { "no mirror leads to it" } else { "serves the mirror" };
        Some(entry(SideEffectKind::Relay, relay_directory(copy), state, End::Undone))
    }

    fn claim(&self) -> Option<SideEffect> {
        let uuid = self.claimed.then_some(self.draft.status.source.as_ref()?)?.uuid.as_str();
        let directory = self.copy.map_or("the run directory", |copy| &copy.spec.run_directory);
        let place = format!("{directory}/claims/{uuid}.json");
        let state = if self.copy.is_some() { "held" } else { "not seen: no BlockCopy tells" };
        Some(entry(SideEffectKind::Claim, place, state, End::Undone))
    }

    fn mark(&self) -> Option<SideEffect> {
        let state = match (self.domain(), self.claimed) {
            (Some(domain), _) => format!("{:?}", domain.mark?).to_lowercase(),
            (None, true) => "not seen: no BlockCopy tells".into(),
            (None, false) if self.taken_over => "migrated".into(),
            (None, false) => return None,
        };
        Some(entry(SideEffectKind::Mark, self.domain_place(), &state, self.end_of_source()))
    }

    fn autostart(&self) -> Option<SideEffect> {
        let was = self.domain().and_then(|domain| domain.autostart_was);
        let state = match was {
            Some(true) => "disabled; was enabled",
            // It was disabled before: nothing was changed, but it is seen to that it stays so.
            Some(false) | None if self.taken_over => "disabled",
            Some(false) | None => return None,
        };
        Some(entry(SideEffectKind::Autostart, self.domain_place(), state, self.end_of_source()))
    }

    fn shutdown(&self) -> Option<SideEffect> {
        if !self.claimed && !self.taken_over {
            return None;
        }
        let state = match (&self.cutover.source_off_at, &self.cutover.shutdown_requested_at) {
            (Some(MicroTime(off)), _) => format!("off since {off:.0}"),
            (None, Some(MicroTime(asked))) => format!("asked to power off at {asked:.0}"),
            (None, None) => return None,
        };
        Some(entry(SideEffectKind::Shutdown, self.domain_place(), &state, self.end_of_source()))
    }

    fn mirrored(&self, copy: &'a BlockCopy) -> Vec<&'a str> {
        let disks = copy.status.iter().flat_map(|status| &status.disks);
        let mirrored = disks.filter(|disk| matches!(disk.state, MirrorState::Copying | MirrorState::Ready));
        mirrored.map(|disk| disk.device.as_str()).collect()
    }

    fn mirror(&self) -> Option<SideEffect> {
        let copy = self.copy?;
        let devices = self.mirrored(copy);
        let copying =
            copy.status.iter().flat_map(|status| &status.disks).any(|disk| disk.state == MirrorState::Copying);
        let state = if copying { "copying" } else { "ready" };
        let place = format!("{} of {}", devices.join(", "), self.domain_place());
        (!devices.is_empty()).then(|| entry(SideEffectKind::Mirror, place, state, End::Undone))
    }

    fn terraform_file(&self) -> Option<SideEffect> {
        let plan = self.draft.status.plan.as_ref()?;
        let pushing = self.draft.effects.iter().any(|effect| matches!(effect, Effect::Publish(_)));
        let state = match &self.draft.status.terraform {
            Some(terraform) => format!("commit {}", terraform.commit),
            None if !pushing => return None,
            None if self.is_reviewed() => format!("on branch {}, to be merged", review_branch(plan)),
            None => "being pushed".into(),
        };
        let repository = self.input.seen.setup.as_ref().map_or("the repository", |setup| &setup.repository.url);
        Some(entry(SideEffectKind::TerraformFile, format!("{} in {repository}", plan.path), &state, End::Kept))
    }

    fn is_reviewed(&self) -> bool {
        self.input.seen.setup.as_ref().is_ok_and(|setup| setup.repository.delivery != Delivery::Commit)
    }

    fn target_place(&self) -> Option<String> {
        let name = self.draft.status.plan.as_ref().map_or("", |plan| plan.target_name.as_str());
        Some(format!("{name} ({})", self.draft.status.target.as_ref()?.ext_id))
    }

    fn target_vm(&self) -> Option<SideEffect> {
        let state = match (&self.input.seen.target, pinned_target(self.input).map(|vm| vm.on)) {
            (_, Some(Tri::Yes)) => "on",
            (_, Some(Tri::No)) => "off",
            (Fact::Known(_), None) => "gone from Prism",
            (Fact::Unknown(_), _) | (_, Some(Tri::Unknown)) => "Prism does not tell",
            (Fact::NotAsked, _) => "not looked at",
        };
        Some(entry(SideEffectKind::TargetVm, self.target_place()?, state, End::Kept))
    }

    fn target_description(&self) -> Option<SideEffect> {
        let past = self.draft.status.earlier_cutovers.iter().chain([&self.cutover]).rev();
        let undo = past.filter_map(|cutover| cutover.undo.as_ref()).find(|undo| undo.fence.is_some())?;
        let state = format!("says that it was undone at order {}", undo.epoch);
        Some(entry(SideEffectKind::TargetDescription, self.target_place()?, &state, End::Kept))
    }

    fn whitelist_entry(&self) -> Option<SideEffect> {
        let access = self.draft.status.target.as_ref()?.access.as_ref().filter(|access| access.added_by_drover)?;
        let state = match (&access.found, &access.ended_at) {
            (_, Some(_)) => "being taken off",
            (Some(_), None) => "added",
            (None, None) => "being added",
        };
        let place = format!("{} on storage container {}", access.address, access.container_ext_id);
        Some(entry(SideEffectKind::WhitelistEntry, place, state, End::Undone))
    }
}

fn entry(what: SideEffectKind, place: String, state: &str, end: End) -> SideEffect {
    let clip = |text: &str, most: usize| text.chars().take(most).collect();
    SideEffect { what, place: clip(&place, 2048), state: clip(state, 256), end }
}
