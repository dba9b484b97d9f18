//! The definition in the repository, and who applies it.

use super::{World, new_target};
use crate::flow::migration::seen::{Application, Fact, Refusal, Stage};
use crate::plan::court::Verdict;

const DIGEST: &str = "sha256:1111";

fn verdict() -> Verdict {
    Verdict {
        digest: DIGEST.into(),
        summary: "1 to create, 0 to change, 0 to delete".into(),
        creates_target: true,
        refused: vec![],
        drift: vec![],
        others: vec![],
    }
}

fn at(stage: Stage) -> Application {
    let verdict = if matches!(stage, Stage::Planning | Stage::Unplanned { .. }) {
        Fact::NotAsked
    } else {
        Fact::Known(verdict())
    };
    Application { url: Some("https://gitlab/pipelines/1".into()), stage, verdict, harm: Fact::NotAsked }
}

fn planned() -> Application {
    at(Stage::Planned { handle: "7".into() })
}

/// Up to the published file, with a pipeline that can be followed.
fn published(application: Application) -> World {
    let mut world = World::new();
    world.application = Some(application);
    world.turns(6);
    assert!(world.status.terraform.is_some(), "{:?}", world.status.waiting_for);
    world
}

fn reason(world: &World) -> (&str, &str) {
    let waiting = world.status.waiting_for.as_ref().expect("it waits");
    (waiting.reason.as_str(), waiting.message.as_str())
}

fn approve(world: &mut World, digest: &str) {
    world.spec.terraform = Some(serde_json::from_value(serde_json::json!({"approvedDigest": digest})).expect("valid"));
}

#[test]
fn a_plan_waits_for_a_person_and_says_what_it_would_do() {
    let world = published(planned());
    let (reason, message) = reason(&world);
    assert_eq!(reason, "PlanApproval");
    assert!(
        message.contains("1 to create") && message.contains("https://gitlab/pipelines/1") && message.contains(DIGEST),
        "{message}"
    );
    let terraform = world.status.terraform.as_ref().expect("published");
    assert_eq!(terraform.plan_digest.as_deref(), Some(DIGEST));
    assert!(world.applied.is_empty());
}

#[test]
fn the_approved_plan_and_no_other_is_applied() {
    let mut world = published(planned());
    approve(&mut world, "sha256:2222");
    world.turns(2);
    assert_eq!(reason(&world).0, "PlanApprovalVoid");
    assert!(world.applied.is_empty());

    approve(&mut world, DIGEST);
    world.turn();
    assert_eq!(world.applied, ["7"]);
    assert!(world.status.terraform.as_ref().is_some_and(|terraform| terraform.apply_ordered_at.is_some()));
}

#[test]
fn a_plan_is_made_where_that_is_ours_to_do() {
    let mut world = published(at(Stage::Unplanned { round: 2 }));
    assert_eq!(world.applied.last().map(String::as_str), Some("plan 2"));
    world.applied.clear();
    world.spec.hold = Some(true);
    world.turns(2);
    assert!(world.applied.is_empty());
}

#[test]
fn approving_the_cutover_approves_no_plan() {
    let mut world = published(planned());
    world.spec.approved = Some(true);
    world.turns(3);
    assert!(world.applied.is_empty());
}

#[test]
fn nothing_is_begun_while_it_is_held() {
    let mut world = published(planned());
    approve(&mut world, DIGEST);
    world.spec.hold = Some(true);
    world.turns(3);
    assert!(world.applied.is_empty());
}

#[test]
fn a_plan_that_changes_voids_the_approval() {
    let mut world = published(at(Stage::Planning));
    approve(&mut world, DIGEST);
    let changed = Verdict { digest: "sha256:3333".into(), ..verdict() };
    world.application = Some(Application { verdict: Fact::Known(changed), ..planned() });
    world.turns(2);
    assert_eq!(reason(&world).0, "PlanApprovalVoid");
    assert!(world.applied.is_empty());
}

#[test]
fn what_the_court_refuses_is_not_applied_and_stops_the_migration() {
    let refused =
        Verdict { refused: vec!["nutanix_virtual_machine_v2.db01 is a VM and would be deleted".into()], ..verdict() };
    let mut world = published(Application { verdict: Fact::Known(refused.clone()), ..planned() });
    approve(&mut world, DIGEST);
    world.turns(2);
    let (word, message) = reason(&world);
    assert_eq!(word, "PlanRefused");
    assert!(message.contains("db01"), "{message}");
    assert!(world.applied.is_empty());
    // Not even if somebody applies it all the same.
    world.application = Some(Application { verdict: Fact::Known(refused), ..at(Stage::Applied) });
    world.target = Some(new_target());
    world.turns(2);
    assert_eq!(reason(&world).0, "PlanRefused");
    assert!(world.status.target.is_none());
    // A new plan clears it.
    world.application = Some(at(Stage::Applied));
    world.turns(3);
    assert!(world.status.target.is_some());
}

#[test]
fn a_plan_without_the_target_is_not_applied() {
    let mut world =
        published(Application { verdict: Fact::Known(Verdict { creates_target: false, ..verdict() }), ..planned() });
    approve(&mut world, DIGEST);
    world.turns(2);
    assert_eq!(reason(&world).0, "PlanWithoutTarget");
    assert!(world.applied.is_empty());
}

#[test]
fn a_plan_that_cannot_be_read_is_not_applied() {
    let unreadable = Fact::Unknown(Refusal::new("PlanUnreadable", "there is no plan.json"));
    let mut world = published(Application { verdict: unreadable, ..planned() });
    approve(&mut world, DIGEST);
    world.turns(2);
    assert_eq!(reason(&world).0, "PlanUnreadable");
    assert!(world.applied.is_empty());
}

#[test]
fn the_vm_is_taken_only_when_nobody_works_on_it_any_more() {
    let mut world = published(at(Stage::Applying));
    world.target = Some(new_target());
    world.turns(2);
    assert_eq!(reason(&world).0, "Applying");
    assert!(world.status.target.is_none());
    // Other resources of the same run may have failed.
    world.application = Some(at(Stage::Failed { why: "job deploy failed".into() }));
    world.turns(2);
    assert!(world.status.target.is_some());
}

#[test]
fn a_failed_application_says_what_to_do() {
    let world = published(at(Stage::Failed { why: "job deploy failed: retry it".into() }));
    assert_eq!(reason(&world), ("ApplyFailed", "job deploy failed: retry it"));
}

#[test]
fn what_others_have_lost_stops_the_migration() {
    let harmed = Application { harm: Fact::Known(vec!["db01: the VM vm-db01 is gone".into()]), ..at(Stage::Applied) };
    let mut world = published(harmed);
    world.target = Some(new_target());
    world.turns(2);
    assert_eq!(reason(&world).0, "OthersHarmed");
    assert!(world.status.target.is_none());
}

#[test]
fn a_commit_that_is_gone_from_the_branch_is_published_again() {
    let mut world = published(planned());
    world.published = None;
    world.turn();
    assert!(reason(&world).1.contains("published anew"), "{:?}", reason(&world));
    world.turns(4);
    assert!(world.published.is_some());
    assert_eq!(reason(&world).0, "PlanApproval");
}
