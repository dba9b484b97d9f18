//! From the file in the repository to the VM in Prism: who applies it, what is judged before, and what people do by hand.

use drover::api::TerraformRepository;
use drover::api::vm_migration::TerraformStatus;
use drover_lab::git::git;
use drover_lab::gitlab::{DEPLOY, PLAN, Status};
use drover_lab::lab::{AppliedBy, BOT, ENGINEER, GITLAB_TOKEN};
use k8s_openapi::api::batch::v1::Job;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};

use super::*;

async fn lab_applied_by(applied_by: AppliedBy) -> (tempfile::TempDir, Lab) {
    lab(LabOptions { applied_by, ..LabOptions::default() }).await
}

fn small(name: &str) -> GuestSpec {
    GuestSpec { name: name.into(), disks: vec![32 * MIB], ..GuestSpec::default() }
}

async fn planned(lab: &Lab, name: &str) -> TerraformStatus {
    let migration = lab.wait_reason(name, "PlanApproval", PATIENCE).await.unwrap();
    migration.status.unwrap().terraform.unwrap()
}

async fn waits_with(lab: &Lab, name: &str, reason: &str, words: &str) {
    lab.wait(name, &format!("waiting for {reason}: {words}"), PATIENCE, |migration| {
        let waiting = migration.status.as_ref().and_then(|status| status.waiting_for.as_ref());
        waiting.is_some_and(|waiting| waiting.reason == reason && waiting.message.contains(words))
    })
    .await
    .unwrap();
}

/// A VM of somebody else in the same state, without any protection.
const OTHER: &str = r#"resource "nutanix_virtual_machine_v2" "db01" {
  name                 = "db01"
  num_sockets          = 1
  num_cores_per_socket = 1
  memory_size_bytes    = 536870912
  power_state          = "OFF"
  cluster {
    ext_id = "CLUSTER"
  }
}
"#;

fn other(lab: &Lab) -> String {
    OTHER.replace("CLUSTER", lab.prism.cluster_uuid())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_starts_gitlabs_job_and_the_machine_moves() {
    let (dir, lab) = lab_applied_by(AppliedBy::GitLab).await;
    let source = guest(&lab, small("web01"));
    lab.migrate("web01").await.unwrap();
    let terraform = planned(&lab, "web01").await;
    let gitlab = lab.gitlab.as_ref().unwrap();
    let pipeline = gitlab.pipeline_of(&terraform.commit).unwrap();
    assert_eq!(terraform.summary.as_deref(), Some("1 to create, 0 to change, 0 to delete"));
    assert!(terraform.pipeline_url.unwrap().ends_with(&pipeline.id.to_string()));
    assert!(lab.prism.vm_by_name("web01").is_none(), "nobody has said yes");
    gitlab.play_by_hand(pipeline.job(DEPLOY).unwrap().id, ENGINEER).unwrap();
    in_sync(&lab, "web01").await;
    let played = gitlab.pipeline_of(&terraform.commit).unwrap();
    assert_eq!(played.job(DEPLOY).unwrap().user, ENGINEER);
    lab.approve("web01").await.unwrap();
    migrated(&lab, "web01", &source).await;
    no_secret_is_told(&lab, dir.path()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gitlabs_job_is_started_for_the_approved_plan_and_retried_after_it_failed_half_way() {
    let (_dir, lab) = lab_applied_by(AppliedBy::GitLab).await;
    guest(&lab, small("web01"));
    lab.migrate("web01").await.unwrap();
    let terraform = planned(&lab, "web01").await;
    lab.patch("web01", json!({"terraform": {"approvedDigest": format!("sha256:{}", "0".repeat(64))}})).await.unwrap();
    lab.wait_reason("web01", "PlanApprovalVoid", PATIENCE).await.unwrap();
    lab.prism.switches().fail_next_tasks(1);
    lab.approve_terraform("web01").await.unwrap();
    waits_with(&lab, "web01", "ApplyFailed", "job deploy failed").await;
    let gitlab = lab.gitlab.as_ref().unwrap();
    let deploy = gitlab.pipeline_of(&terraform.commit).unwrap().job(DEPLOY).unwrap().clone();
    assert_eq!((deploy.user.as_str(), deploy.status), (BOT, Status::Failed));
    // A saved plan is applied once. What is left of it is planned and applied anew, by hand in GitLab.
    let pipeline = gitlab.pipeline_of(&terraform.commit).unwrap();
    gitlab.retry_by_hand(pipeline.job(PLAN).unwrap().id, ENGINEER).unwrap();
    gitlab
        .wait_for(&terraform.commit, PATIENCE, |pipeline| pipeline.job(PLAN).unwrap().status == Status::Success)
        .unwrap();
    gitlab.retry_by_hand(deploy.id, ENGINEER).unwrap();
    in_sync(&lab, "web01").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_that_would_delete_another_vm_is_refused_until_it_is_mended() {
    let (_dir, lab) = lab_applied_by(AppliedBy::GitLab).await;
    let gitlab = lab.gitlab.as_ref().unwrap();
    lab.git.commit_by_hand("vms/db01.tf", &other(&lab)).unwrap();
    deploy_by_hand(&lab, &lab.git.head().unwrap());
    let before = lab.prism.vm_by_name("db01").unwrap();
    lab.git.commit_by_hand("vms/db01.tf", "# gone\n").unwrap();

    guest(&lab, small("web01"));
    lab.migrate("web01").await.unwrap();
    waits_with(&lab, "web01", "PlanRefused", "nutanix_virtual_machine_v2.db01 is a VM and would be deleted").await;
    let terraform = lab.migrations().get("web01").await.unwrap().status.unwrap().terraform.unwrap();
    assert_eq!(terraform.refused.len(), 1);
    // Not even an approval of that very plan has it applied.
    lab.approve_terraform("web01").await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(gitlab.pipeline_of(&terraform.commit).unwrap().job(DEPLOY).unwrap().status, Status::Manual);
    assert_eq!(lab.prism.vm_by_name("db01").unwrap().etag, before.etag);

    // Put back, the newest pipeline covers our commit, and its plan is another one.
    lab.git.commit_by_hand("vms/db01.tf", &other(&lab)).unwrap();
    lab.wait_reason("web01", "PlanApprovalVoid", PATIENCE).await.unwrap();
    lab.approve_terraform("web01").await.unwrap();
    in_sync(&lab, "web01").await;
    assert_eq!(lab.prism.vm_by_name("db01").unwrap().uuid, before.uuid);
}

fn deploy_by_hand(lab: &Lab, commit: &str) {
    let gitlab = lab.gitlab.as_ref().unwrap();
    let is = |status| {
        move |pipeline: &drover_lab::gitlab::PipelineView| pipeline.job(DEPLOY).is_some_and(|job| job.status == status)
    };
    let pipeline = gitlab.wait_for(commit, PATIENCE, is(Status::Manual)).unwrap();
    gitlab.play_by_hand(pipeline.job(DEPLOY).unwrap().id, ENGINEER).unwrap();
    gitlab.wait_for(commit, PATIENCE, is(Status::Success)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_without_artifacts_is_not_started_and_a_cancelled_one_says_so() {
    let (_dir, lab) = lab_applied_by(AppliedBy::GitLab).await;
    guest(&lab, small("web01"));
    lab.migrate("web01").await.unwrap();
    let commit = planned(&lab, "web01").await.commit;
    let gitlab = lab.gitlab.as_ref().unwrap();
    // The controller has judged it already; a new one has to read it again.
    gitlab.expire_artifacts(gitlab.pipeline_of(&commit).unwrap().job(PLAN).unwrap().id);
    lab.kill_controller().unwrap();
    waits_with(&lab, "web01", "PlanUnreadable", "plan.json").await;
    lab.approve_terraform("web01").await.unwrap();
    let planning = gitlab.retry_by_hand(gitlab.pipeline_of(&commit).unwrap().job(PLAN).unwrap().id, ENGINEER).unwrap();
    assert!(planning > 0);
    in_sync(&lab, "web01").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_ci_jobs_plan_and_apply_what_was_approved() {
    let (dir, lab) = lab_applied_by(AppliedBy::Jobs).await;
    let source = guest(&lab, small("web01"));
    lab.migrate("web01").await.unwrap();
    let terraform = planned(&lab, "web01").await;
    assert_eq!(terraform.summary.as_deref(), Some("1 to create, 0 to change, 0 to delete"));
    assert!(lab.prism.vm_by_name("web01").is_none(), "nobody has said yes");
    // Stopped half-way, the rest is planned anew: the content is the same, and so is its approval.
    lab.prism.switches().fail_next_tasks(1);
    lab.approve_terraform("web01").await.unwrap();
    in_sync(&lab, "web01").await;
    let jobs: Api<Job> = Api::namespaced(lab.client.clone(), TEAM);
    let mut names: Vec<String> =
        jobs.list(&ListParams::default()).await.unwrap().items.iter().map(ResourceExt::name_any).collect();
    names.sort();
    let ends: Vec<&str> = names.iter().map(|name| &name[name.len() - 7..]).collect();
    assert_eq!(ends, ["0-apply", "-0-plan", "1-apply", "-1-plan"], "{names:?}");
    lab.approve("web01").await.unwrap();
    migrated(&lab, "web01", &source).await;
    no_secret_is_told(&lab, dir.path()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_an_engineer_edits_is_respected_and_one_that_vanishes_is_published_again() {
    let (_dir, lab) = lab_applied_by(AppliedBy::GitLab).await;
    guest(&lab, small("web01"));
    lab.migrate("web01").await.unwrap();
    planned(&lab, "web01").await;
    let ours = lab.git.file("vms/web01.tf").unwrap();
    let edited = ours.replace("num_sockets ", "# more\n  num_sockets ");
    assert_ne!(ours, edited);
    lab.git.commit_by_hand("vms/web01.tf", &edited).unwrap();
    waits_with(&lab, "web01", "FileEditedByHand", "vms/web01.tf").await;
    assert_eq!(lab.git.file("vms/web01.tf").unwrap(), edited);
    // Undone, it goes on.
    lab.git.commit_by_hand("vms/web01.tf", &ours).unwrap();
    let commit = planned(&lab, "web01").await.commit;

    // Somebody rewrites history without it: it is published again.
    let clone = tempfile::tempdir().unwrap();
    let (repository, work) = (lab.git.repository().display().to_string(), clone.path().join("work"));
    git(clone.path(), &["clone", "--quiet", &repository, "work"]).unwrap();
    git(&work, &["checkout", "--quiet", "--orphan", "anew"]).unwrap();
    git(&work, &["rm", "--quiet", "-f", "vms/web01.tf"]).unwrap();
    git(&work, &["commit", "--quiet", "--message", "History begins here"]).unwrap();
    git(&work, &["push", "--quiet", "--force", "origin", "anew:main"]).unwrap();
    lab.wait("web01", "published anew", PATIENCE, |migration| {
        let terraform = migration.status.as_ref().and_then(|status| status.terraform.as_ref());
        terraform.is_some_and(|terraform| terraform.commit != commit && terraform.plan_digest.is_some())
    })
    .await
    .unwrap();
    assert_eq!(lab.git.file("vms/web01.tf").unwrap(), ours);
    planned(&lab, "web01").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merge_request_is_opened_and_what_is_merged_is_applied() {
    let (_dir, lab) = lab_applied_by(AppliedBy::GitLab).await;
    guest(&lab, small("web01"));
    let repositories: Api<TerraformRepository> = Api::namespaced(lab.client.clone(), TEAM);
    let delivery = Patch::Merge(json!({"spec": {"delivery": "MergeRequest"}}));
    repositories.patch("machines", &PatchParams::default(), &delivery).await.unwrap();
    lab.migrate("web01").await.unwrap();
    let gitlab = lab.gitlab.as_ref().unwrap();
    waits_with(&lab, "web01", "AwaitingMerge", &format!("{}/team-a/machines/-/merge_requests/1", gitlab.url())).await;
    assert!(lab.git.file("vms/web01.tf").is_err(), "it is not on the branch");
    gitlab.merge_by_hand(1, ENGINEER).unwrap();
    planned(&lab, "web01").await;
    lab.approve_terraform("web01").await.unwrap();
    in_sync(&lab, "web01").await;
}

/// What Drover's users entrust to it is in no file but those that are there for it, and in no object but Secrets.
async fn no_secret_is_told(lab: &Lab, dir: &Path) {
    let secrets = [GIT_PASSWORD, PRISM_PASSWORD, GITLAB_TOKEN];
    let mut grep = std::process::Command::new("grep");
    grep.args(["--recursive", "--files-with-matches", "--text", "--fixed-strings"]);
    let found = grep.args(secrets.map(|secret| format!("--regexp={secret}"))).arg(dir).output().unwrap();
    // Where API server and kubelet keep Secrets.
    let is_kept_there = |file: &str| ["/cluster/etcd/", "/node/files/"].iter().any(|part| file.contains(part));
    let files = String::from_utf8_lossy(&found.stdout).into_owned();
    let told: Vec<&str> = files.lines().filter(|file| !is_kept_there(file)).collect();
    assert_eq!(told, Vec::<&str>::new());
    for kind in ["vmm", "bc", "jobs", "pods", "events", "configmaps"] {
        let output = lab.cluster.kubectl().args(["get", kind, "-A", "-o", "yaml"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for secret in secrets {
            assert!(!text.contains(secret), "{kind} tell a password:\n{text}");
        }
    }
}
