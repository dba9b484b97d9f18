//! Simulated GitLab with a real git repository, the real Terraform engine and the provider, against simulated Prism.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use drover_lab::git::git;
use drover_lab::gitlab::{DEPLOY, GitLab, GitLabConfig, Jobs, PLAN, PipelineView, Role, Scope, Status, User};
use drover_lab::hypervisor::NoHypervisor;
use drover_lab::pipeline::seed_files;
use drover_lab::prism::{Prism, PrismConfig};
use drover_lab::terraform::TerraformConfig;
use drover_lab::tools::Tools;

#[path = "common/machine.rs"]
mod machine;
use machine::{GIB, vm_file};

const LIMIT: Duration = Duration::from_secs(300);
const PASSWORD: &str = "prism-password-4711";

struct Bench {
    // Dropped first: a job in progress needs Prism.
    gitlab: GitLab,
    prism: Prism,
    clone: PathBuf,
    dir: tempfile::TempDir,
}

impl Bench {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let prism = Prism::start(PrismConfig {
            dir: at("prism"),
            export_root: at("export"),
            container: "drover".into(),
            cluster_name: "ahv1".into(),
            subnets: vec![("lan".into(), 10)],
            username: "admin".into(),
            password: PASSWORD.into(),
            hypervisor: Arc::new(NoHypervisor::default()),
            log_path: at("prism.log"),
        })
        .unwrap();
        git(dir.path(), &["init", "--quiet", "--bare", "--initial-branch=main", "machines.git"]).unwrap();
        git(dir.path(), &["clone", "--quiet", "machines.git", "clone"]).unwrap();
        git(&at("clone"), &["checkout", "--quiet", "-B", "main"]).unwrap();
        let seed = seed_files().into_iter().map(|(path, text)| (path, text.to_owned()));
        commit(&at("clone"), &seed.collect::<Vec<_>>());
        let user = |username: &str| User {
            username: username.into(),
            token: format!("glpat-{username}"),
            scope: Scope::Api,
            role: Role::Maintainer,
        };
        let gitlab = GitLab::start(GitLabConfig {
            dir: at("gitlab"),
            repository: at("machines.git"),
            project: "vms/machines".into(),
            default_branch: "main".into(),
            protected_for: Role::Maintainer,
            deploy_may_fail: false,
            users: vec![user("bot"), user("erika")],
            jobs: Jobs::Terraform(TerraformConfig {
                state: at("state/terraform.tfstate"),
                tools: Tools::ready().unwrap(),
                prism_url: prism.central_url().into(),
                username: "admin".into(),
                password: PASSWORD.into(),
            }),
            log_path: at("gitlab.log"),
        })
        .unwrap();
        Self { gitlab, prism, clone: at("clone"), dir }
    }

    /// Pushes the files of machines and waits for the plan; the commit.
    fn push_and_plan(&self, machines: &[(&str, &str)]) -> String {
        let file = |(name, mac): &(&str, &str)| (format!("vms/{name}.tf"), vm_file(name, mac, &[1]));
        let files: Vec<(String, String)> = machines.iter().map(file).collect();
        let files: Vec<(&str, String)> = files.iter().map(|(path, text)| (path.as_str(), text.clone())).collect();
        let commit = commit(&self.clone, &files);
        self.wait(&commit, DEPLOY, Status::Manual);
        commit
    }

    fn wait(&self, commit: &str, job: &str, status: Status) -> PipelineView {
        let done = |pipeline: &PipelineView| {
            pipeline.job(job).is_some_and(|job| job.status.has_ended() || job.status == status)
        };
        let pipeline = self.gitlab.wait_for(commit, LIMIT, done).unwrap();
        let job = pipeline.job(job).unwrap();
        assert_eq!(job.status, status, "{}", self.gitlab.trace(job.id));
        pipeline
    }

    /// A person deploys; how it ends.
    fn deploy(&self, commit: &str, status: Status) -> u64 {
        let job = self.gitlab.pipeline_of(commit).unwrap().job(DEPLOY).unwrap().id;
        self.gitlab.play_by_hand(job, "erika").unwrap();
        self.wait(commit, DEPLOY, status);
        job
    }

    /// The addresses that the plan of a commit creates.
    fn created(&self, commit: &str) -> Vec<String> {
        let job = self.gitlab.pipeline_of(commit).unwrap().job(PLAN).unwrap().id;
        let file = self.dir.path().join(format!("gitlab/artifacts/{job}/plan.json"));
        let plan: serde_json::Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        let changes = plan["resource_changes"].as_array().unwrap().clone();
        let created = changes.into_iter().filter(|change| change["change"]["actions"] == serde_json::json!(["create"]));
        created.map(|change| change["address"].as_str().unwrap().to_owned()).collect()
    }
}

fn commit(clone: &Path, files: &[(&str, String)]) -> String {
    for (path, text) in files {
        fs::create_dir_all(clone.join(path).parent().unwrap()).unwrap();
        fs::write(clone.join(path), text).unwrap();
    }
    git(clone, &["add", "--all"]).unwrap();
    git(clone, &["commit", "--quiet", "--message", "Change"]).unwrap();
    git(clone, &["push", "--quiet", "origin", "main"]).unwrap();
    git(clone, &["rev-parse", "HEAD"]).unwrap().trim_end().to_owned()
}

/// Every file below a directory that holds this text.
fn holding(dir: &Path, text: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            holding(&path, text, found);
        } else if fs::read(&path).unwrap().windows(text.len()).any(|window| window == text.as_bytes()) {
            found.push(path);
        }
    }
}

#[test]
fn exactly_the_plan_that_was_saved_is_deployed() {
    let bench = Bench::start();
    let first = bench.push_and_plan(&[("web01", "52:54:00:aa:bb:01")]);
    assert_eq!(bench.created(&first), ["nutanix_virtual_machine_v2.web01"]);
    assert!(bench.prism.vms().is_empty(), "nobody deployed");
    let second = bench.push_and_plan(&[("web02", "52:54:00:aa:bb:02")]);
    assert_eq!(bench.created(&second).len(), 2, "the first was not deployed yet");

    bench.deploy(&first, Status::Success);
    let vm = bench.prism.vm_by_name("web01").unwrap();
    assert_eq!((vm.is_on, vm.disks[0].size_bytes), (false, GIB));
    assert!(bench.prism.vm_by_name("web02").is_none());

    // What was planned before the first deployment does not hold any more.
    let stale = bench.deploy(&second, Status::Failed);
    assert!(bench.gitlab.trace(stale).contains("Saved plan is stale"), "{}", bench.gitlab.trace(stale));
    assert_eq!(bench.prism.vms().len(), 1);
    let pipeline = bench.gitlab.pipeline_of(&second).unwrap();
    bench.gitlab.retry_by_hand(pipeline.job(PLAN).unwrap().id, "erika").unwrap();
    bench.wait(&second, PLAN, Status::Success);
    assert_eq!(bench.created(&second), ["nutanix_virtual_machine_v2.web02"]);
    bench.gitlab.retry_by_hand(stale, "erika").unwrap();
    bench.wait(&second, DEPLOY, Status::Success);
    assert_eq!(bench.prism.vms().len(), 2);
    assert_eq!(bench.prism.vm_by_name("web01").unwrap().etag, vm.etag, "the first VM is not touched");

    for kept in ["gitlab/artifacts", "gitlab/traces", "state"] {
        let mut found = Vec::new();
        holding(&bench.dir.path().join(kept), PASSWORD, &mut found);
        assert_eq!(found, [] as [PathBuf; 0]);
    }
}

#[test]
fn a_deployment_that_fails_half_way_is_planned_again_and_ended() {
    let bench = Bench::start();
    let commit = bench.push_and_plan(&[("web01", "52:54:00:aa:bb:01"), ("web02", "52:54:00:aa:bb:02")]);
    bench.prism.switches().fail_next_tasks(1);
    let failed = bench.deploy(&commit, Status::Failed);
    assert!(bench.gitlab.trace(failed).contains("told to fail this task"), "{}", bench.gitlab.trace(failed));
    assert_eq!(bench.prism.vms().len(), 1, "one of two is there");

    let plan = bench.gitlab.pipeline_of(&commit).unwrap().job(PLAN).unwrap().id;
    bench.gitlab.retry_by_hand(plan, "erika").unwrap();
    bench.wait(&commit, PLAN, Status::Success);
    assert_eq!(bench.created(&commit).len(), 1, "the other");
    bench.gitlab.retry_by_hand(failed, "erika").unwrap();
    let pipeline = bench.wait(&commit, DEPLOY, Status::Success);
    assert_eq!((pipeline.status, bench.prism.vms().len()), (Status::Success, 2));
}
