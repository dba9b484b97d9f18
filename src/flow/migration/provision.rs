//! Publish and Provision: the definition of the target goes into the repository, and what that repository's owners use creates the VM.
//!
//! Where Drover can follow that (GitLab, a Job), Terraform's plan is judged before it is applied: [`crate::plan::court`]. Drover has a plan
//! applied only if a person has approved that very plan, by its digest, and the court has nothing against it.

use super::decide::{Draft, Input};
use super::effect::Effect;
use super::seen::{Application, Fact, Stage, TargetVm};
use super::step::{Progress, clip};
use crate::api::common::{Time, Tri};
use crate::api::terraform_repository::Delivery;
use crate::api::vm_migration::{PlanStatus, TerraformStatus};
use crate::plan::court::Verdict;
use crate::render;

/// What `edge::git` says of a file that others have taken into their hands.
const NOT_OURS: &[&str] = &["FileNotOurs", "FileEditedByHand"];

/// Put the definition of the target into the repository.
pub fn publish(input: &Input<'_>, draft: &mut Draft) -> Progress {
    if draft.status.target.is_some() {
        return Progress::Done;
    }
    if let Some(terraform) = &draft.status.terraform {
        match &input.seen.published {
            Fact::Unknown(refusal) if NOT_OURS.contains(&refusal.reason.as_str()) => {
                return Progress::Waits { refusal: refusal.clone(), stalled: true };
            }
            Fact::Known(Some(_)) | Fact::Unknown(_) | Fact::NotAsked => return Progress::Done,
            Fact::Known(None) => {}
        }
        let message = format!("commit {} is gone from the branch: it is published anew", terraform.commit);
        draft.status.terraform = None;
        return Progress::waits("Publishing", message);
    }
    if input.spec.hold == Some(true) {
        return Progress::stalled("Held", "planned; spec.hold is set: remove it to go on");
    }
    let Some(plan) = draft.status.plan.clone() else { return Progress::waits("Publishing", "there is no plan yet") };
    match &input.seen.published {
        Fact::Known(Some(commit)) => {
            draft.status.terraform = Some(TerraformStatus {
                commit: commit.clone(),
                pushed_at: Time(input.now),
                pipeline_url: None,
                plan_digest: None,
                summary: None,
                refused: Vec::new(),
                drift: Vec::new(),
                apply_ordered_at: None,
            });
            Progress::Done
        }
        Fact::Known(None) => {
            let waits = unpublished(input, &plan);
            draft.effects.push(Effect::Publish(Box::new(plan)));
            waits
        }
        Fact::Unknown(refusal) => Progress::Waits { refusal: refusal.clone(), stalled: true },
        Fact::NotAsked => Progress::waits("Publishing", "asking the repository"),
    }
}

/// What a file waits for that is not on the branch yet.
fn unpublished(input: &Input<'_>, plan: &PlanStatus) -> Progress {
    let repository = input.seen.setup.as_ref().ok().map(|setup| &setup.repository);
    match repository.filter(|repository| repository.delivery != Delivery::Commit) {
        Some(repository) => Progress::waits(
            "AwaitingMerge",
            format!(
                "waits for somebody to merge branch {} of {} into {}{}: it adds {}",
                render::commit::review_branch(plan),
                repository.url,
                repository.branch,
                input.seen.review_url.as_ref().map(|url| format!(" ({url})")).unwrap_or_default(),
                plan.path
            ),
        ),
        None => Progress::waits("Publishing", format!("pushing {} to the repository", plan.path)),
    }
}

/// Wait for the VM to be created, and see that it is the one that was planned.
pub fn provision(input: &Input<'_>, draft: &mut Draft) -> Progress {
    if draft.status.target.is_some() {
        return Progress::Done;
    }
    note_application(input, draft);
    if let Some(stop) = must_not_go_on(input) {
        return stop;
    }
    match planned_target(input, draft) {
        Ok(_) => Progress::Done,
        Err(progress) => {
            order_application(input, draft);
            progress
        }
    }
}

fn application<'a>(input: &'a Input<'_>) -> Option<&'a Application> {
    match &input.seen.application {
        Fact::Known(application) => Some(application),
        Fact::Unknown(_) | Fact::NotAsked => None,
    }
}

/// Shows the pipeline and the plan as they are now. A new plan replaces the old one, and with it what was said of that.
fn note_application(input: &Input<'_>, draft: &mut Draft) {
    let (Some(application), Some(terraform)) = (application(input), draft.status.terraform.as_mut()) else { return };
    terraform.pipeline_url = application.url.clone().or(terraform.pipeline_url.take());
    let Fact::Known(verdict) = &application.verdict else { return };
    let few = |texts: &[String]| texts.iter().take(32).map(|text| text.chars().take(1024).collect()).collect();
    terraform.plan_digest = Some(verdict.digest.clone());
    terraform.summary = Some(verdict.summary.clone());
    terraform.refused = few(&verdict.refused);
    terraform.drift = few(&verdict.drift);
}

/// What keeps the migration from going on even if the VM is there: a plan that harms others, or one that is being applied right now.
fn must_not_go_on(input: &Input<'_>) -> Option<Progress> {
    if let Fact::Unknown(refusal) = &input.seen.application {
        return Some(Progress::Waits { refusal: refusal.clone(), stalled: false });
    }
    let application = application(input)?;
    if let Fact::Known(Verdict { refused, .. }) = &application.verdict
        && !refused.is_empty()
    {
        let message = format!(
            "the Terraform plan{} must not be applied: {}. Mend the repository or what was changed by hand, and have it planned anew",
            at(application),
            refused.join("; ")
        );
        return Some(Progress::stalled("PlanRefused", clip(&message)));
    }
    match &application.harm {
        Fact::Known(harm) if !harm.is_empty() => {
            let message = format!(
                "since the Terraform plan{} was made, other VMs have lost something: {}. See who changed them; a plan that is made anew clears this",
                at(application),
                harm.join("; ")
            );
            return Some(Progress::stalled("OthersHarmed", clip(&message)));
        }
        Fact::Unknown(refusal) => return Some(Progress::Waits { refusal: refusal.clone(), stalled: false }),
        Fact::Known(_) | Fact::NotAsked => {}
    }
    let applying = application.stage == Stage::Applying;
    applying.then(|| Progress::waits("Applying", format!("Terraform's plan is being applied{}", at(application))))
}

/// ` (<pipeline>)`, for the middle of a sentence.
fn at(application: &Application) -> String {
    application.url.as_ref().map(|url| format!(" ({url})")).unwrap_or_default()
}

/// Why the VM does not exist yet, and who creates it.
fn not_there_yet(input: &Input<'_>, plan: &PlanStatus, terraform: &TerraformStatus) -> Progress {
    let (commit, name) = (&terraform.commit, &plan.target_name);
    let Some(application) = application(input) else {
        let message = format!("waits for the repository's pipeline to apply commit {commit}, which creates VM {name}");
        return Progress::waits("Provisioning", message);
    };
    match &application.stage {
        Stage::Absent { why } => Progress::waits("Provisioning", why.clone()),
        Stage::Unplanned { .. } | Stage::Planning => {
            Progress::waits("Provisioning", format!("commit {commit} is being planned{}", at(application)))
        }
        Stage::Planned { .. } => planned(input, application, name),
        Stage::Applying => Progress::waits("Applying", format!("Terraform's plan is being applied{}", at(application))),
        Stage::Applied => {
            let message = format!(
                "Terraform's plan{} was applied, but Prism has no VM {name} yet: if it stays so, see whether that applies to this Prism",
                at(application)
            );
            Progress::waits("Provisioning", message)
        }
        Stage::Failed { why } => Progress::stalled("ApplyFailed", why.clone()),
    }
}

/// The plan is there and waits for a person.
fn planned(input: &Input<'_>, application: &Application, name: &str) -> Progress {
    let verdict = match &application.verdict {
        Fact::Known(verdict) => verdict,
        Fact::Unknown(refusal) => return Progress::Waits { refusal: refusal.clone(), stalled: true },
        Fact::NotAsked => return Progress::waits("Provisioning", "reading the plan"),
    };
    if !verdict.creates_target {
        let message = format!(
            "the Terraform plan{} ({}) does not create VM {name}: see whether the directory of the file is the one that is planned",
            at(application),
            verdict.summary
        );
        return Progress::stalled("PlanWithoutTarget", message);
    }
    let digest = &verdict.digest;
    let how = format!(
        "kubectl -n {} patch vmm {} --type merge -p '{{\"spec\":{{\"terraform\":{{\"approvedDigest\":\"{digest}\"}}}}}}'",
        input.namespace, input.name
    );
    match approved_digest(input) {
        Some(approved) if approved == digest => {
            Progress::waits("Applying", format!("the approved plan{} is being started", at(application)))
        }
        Some(_) => Progress::waits(
            "PlanApprovalVoid",
            format!(
                "spec.terraform.approvedDigest names another plan than this one ({}): look again, then {how}",
                verdict.summary
            ),
        ),
        None => Progress::waits(
            "PlanApproval",
            format!("planned: {}{}. Start its job there, or: {how}", verdict.summary, at(application)),
        ),
    }
}

fn approved_digest<'a>(input: &'a Input<'_>) -> Option<&'a String> {
    input.spec.terraform.as_ref()?.approved_digest.as_ref()
}

/// Has a plan made where that is Drover's to do, and the plan applied that was approved, if it is the one that lies there and nothing speaks
/// against it.
fn order_application(input: &Input<'_>, draft: &mut Draft) {
    let Some(application) = application(input).filter(|_| input.spec.hold != Some(true)) else { return };
    if let Stage::Unplanned { round } = application.stage {
        draft.effects.push(Effect::Plan { round });
        return;
    }
    let (Stage::Planned { handle }, Fact::Known(verdict)) = (&application.stage, &application.verdict) else { return };
    let approved = approved_digest(input) == Some(&verdict.digest);
    let vm_is_absent = matches!(&input.seen.target, Fact::Known(vms) if vms.is_empty());
    if !approved || !verdict.creates_target || !verdict.refused.is_empty() || !vm_is_absent {
        return;
    }
    if let Some(terraform) = draft.status.terraform.as_mut() {
        terraform.apply_ordered_at.get_or_insert(Time(input.now));
    }
    draft.effects.push(Effect::Apply { handle: handle.clone() });
}

/// The VM in Prism that the pipeline has made from our file, if it is as it was planned.
pub fn planned_target<'a>(input: &'a Input<'_>, draft: &Draft) -> Result<&'a TargetVm, Progress> {
    let (Some(plan), Some(terraform)) = (&draft.status.plan, &draft.status.terraform) else {
        return Err(Progress::waits("Provisioning", "nothing was published yet"));
    };
    let vms = match &input.seen.target {
        Fact::Known(vms) => vms,
        Fact::Unknown(refusal) => return Err(Progress::Waits { refusal: refusal.clone(), stalled: false }),
        Fact::NotAsked => return Err(Progress::waits("Provisioning", "asking Prism")),
    };
    let ours: Vec<&TargetVm> = vms.iter().filter(|vm| vm.description.contains(input.uid)).collect();
    let vm = match ours.as_slice() {
        [vm] => *vm,
        [] if !vms.is_empty() => {
            let message = format!(
                "a VM named {} ({}) exists in Prism, but its description does not bear this migration's uid {}: the pipeline did not create it from our file. Rename or remove it",
                vms[0].name, vms[0].ext_id, input.uid
            );
            return Err(Progress::stalled("TargetNotOurs", message));
        }
        [] => return Err(not_there_yet(input, plan, terraform)),
        several => {
            let message = format!(
                "{} VMs in Prism were created for {}: remove or rename all but the one that Terraform created",
                several.len(),
                plan.target_name
            );
            return Err(Progress::stalled("AmbiguousTarget", message));
        }
    };
    let named = format!("VM {} ({})", vm.name, vm.ext_id);
    match vm.on {
        Tri::No => {}
        Tri::Yes => {
            let message = format!("{named} runs, but was defined to be created off: somebody started it; power it off");
            return Err(Progress::stalled("TargetRunning", message));
        }
        Tri::Unknown => {
            return Err(Progress::waits("Provisioning", format!("Prism does not tell whether {named} is off")));
        }
    }
    let sizes: Vec<u64> = vm.disks.iter().map(|disk| disk.size_bytes).collect();
    if sizes != plan.target_disk_bytes {
        let message = format!(
            "{named} has disks of {sizes:?} bytes, planned are {:?}: see what the pipeline applied",
            plan.target_disk_bytes
        );
        return Err(Progress::stalled("TargetDiffers", message));
    }
    Ok(vm)
}
