//! The pipeline with a real git repository, the real Terraform engine and the provider, against simulated Prism.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use drover_lab::hypervisor::NoHypervisor;
use drover_lab::pipeline::{Pipeline, PipelineConfig, PlanSummary, Run, RunStatus, seed_files};
use drover_lab::prism::{Prism, PrismConfig};
use drover_lab::tools::Tools;

#[path = "common/machine.rs"]
mod machine;
use machine::{GIB, vm_file};

const LIMIT: Duration = Duration::from_secs(300);

/// Everything but the migration: Prism, a bare repository with the seed, someone's clone of it, and the pipeline.
struct Bench {
    // Dropped first: a run in progress needs Prism.
    pipeline: Pipeline,
    prism: Prism,
    clone: PathBuf,
    _dir: tempfile::TempDir,
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
            password: "secret".into(),
            hypervisor: Arc::new(NoHypervisor::default()),
            log_path: at("prism.log"),
        })
        .unwrap();

        git(dir.path(), &["init", "--quiet", "--bare", "--initial-branch=main", "repository.git"]);
        git(dir.path(), &["clone", "--quiet", "repository.git", "clone"]);
        let clone = at("clone");
        git(&clone, &["checkout", "--quiet", "-B", "main"]);
        for (path, text) in seed_files() {
            fs::create_dir_all(clone.join(path).parent().unwrap()).unwrap();
            fs::write(clone.join(path), text).unwrap();
        }

        let pipeline = Pipeline::start(PipelineConfig {
            dir: at("pipeline"),
            repository: at("repository.git"),
            branch: "main".into(),
            tools: Tools::ready().unwrap(),
            prism_url: prism.central_url().into(),
            username: "admin".into(),
            password: "secret".into(),
            log_path: at("pipeline.log"),
        })
        .unwrap();
        Self { pipeline, prism, clone, _dir: dir }
    }

    /// Commits `files` and pushes; the commit's id.
    fn push(&self, files: &[(&str, &str)]) -> String {
        for (path, text) in files {
            fs::write(self.clone.join(path), text).unwrap();
        }
        git(&self.clone, &["add", "--all"]);
        let author = ["-c", "user.name=Test", "-c", "user.email=test@localhost"];
        git(&self.clone, &[&author[..], &["commit", "--quiet", "--allow-empty", "-m", "change"]].concat());
        git(&self.clone, &["push", "--quiet", "origin", "main"]);
        git(&self.clone, &["rev-parse", "HEAD"])
    }

    fn push_and_wait(&self, files: &[(&str, &str)]) -> Run {
        let commit = self.push(files);
        self.pipeline.wait_for(&commit, LIMIT).unwrap()
    }
}

fn git(dir: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git").arg("-C").arg(dir).args(arguments).output().unwrap();
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

fn succeeded(run: &Run) -> PlanSummary {
    assert_eq!(run.status, RunStatus::Succeeded, "{}", run.log_tail);
    run.plan_summary.unwrap()
}

#[test]
fn pushed_machines_appear_off_with_their_disks() {
    let bench = Bench::start();

    let seed = bench.push_and_wait(&[]);
    assert_eq!(succeeded(&seed), PlanSummary::default());

    let web01 = vm_file("web01", "52:54:00:aa:bb:01", &[2, 1]);
    let created = bench.push_and_wait(&[("vms/web01.tf", &web01)]);
    assert_eq!(succeeded(&created), PlanSummary { create: 1, ..PlanSummary::default() });

    let vm = bench.prism.vm_by_name("web01").expect("the VM is there");
    assert!(!vm.is_on);
    assert_eq!(vm.macs, ["52:54:00:aa:bb:01"]);
    let disks: Vec<_> = vm.disks.iter().map(|disk| (disk.bus.as_str(), disk.index, disk.size_bytes)).collect();
    assert_eq!(disks, [("SCSI", 0, 2 * GIB), ("SCSI", 1, GIB)]);
    assert!(vm.disks.iter().all(|disk| fs::metadata(&disk.path).unwrap().len() == disk.size_bytes));

    let unchanged = bench.push_and_wait(&[("README.md", "another text\n")]);
    assert_eq!(succeeded(&unchanged), PlanSummary::default());
    assert!(unchanged.log_tail.contains("No changes"), "{}", unchanged.log_tail);

    let web02 = vm_file("web02", "52:54:00:aa:bb:02", &[1]);
    let second = bench.push_and_wait(&[("vms/web02.tf", &web02)]);
    assert_eq!(succeeded(&second), PlanSummary { create: 1, ..PlanSummary::default() });
    assert_eq!(bench.prism.vms().len(), 2);
    assert_eq!(bench.prism.vm_by_name("web01").unwrap().etag, vm.etag, "the first VM is not touched");
}

#[test]
fn a_bad_file_fails_its_run_readably_and_the_next_push_mends_it() {
    let bench = Bench::start();

    let bad = bench.push_and_wait(&[("vms/web01.tf", "resource \"nutanix_virtual_machine_v2\" \"web01\" {\n")]);
    assert_eq!(bad.status, RunStatus::Failed);
    assert_eq!(bad.plan_summary, None);
    assert!(bad.log_tail.contains("web01.tf line 1"), "{}", bad.log_tail);
    assert!(bad.log_tail.contains("terraform init failed"), "{}", bad.log_tail);
    assert!(bench.prism.vms().is_empty());

    let good = bench.push_and_wait(&[("vms/web01.tf", &vm_file("web01", "52:54:00:aa:bb:01", &[1]))]);
    assert_eq!(succeeded(&good).create, 1);
}

#[test]
fn a_refusal_by_prism_is_in_the_log() {
    let bench = Bench::start();
    bench.prism.switches().fail_next_tasks(1);

    let refused = bench.push_and_wait(&[("vms/web01.tf", &vm_file("web01", "52:54:00:aa:bb:01", &[1]))]);
    assert_eq!(refused.status, RunStatus::Failed);
    assert_eq!(refused.plan_summary, Some(PlanSummary { create: 1, ..PlanSummary::default() }));
    assert!(refused.log_tail.contains("told to fail this task"), "{}", refused.log_tail);
    assert!(refused.log_tail.contains("terraform apply failed"), "{}", refused.log_tail);
}

#[test]
fn pushes_during_a_run_are_applied_by_one_run_of_the_newest() {
    let bench = Bench::start();
    bench.prism.switches().hold_tasks(true);
    let first = bench.push(&[("vms/web01.tf", &vm_file("web01", "52:54:00:aa:bb:01", &[1]))]);
    while bench.prism.tasks().is_empty() {
        assert!(bench.pipeline.runs().iter().all(|run| run.status == RunStatus::Running), "the run waits for its task");
        std::thread::sleep(Duration::from_millis(50));
    }
    let second = bench.push(&[("vms/web02.tf", &vm_file("web02", "52:54:00:aa:bb:02", &[1]))]);
    let third = bench.push(&[("vms/web03.tf", &vm_file("web03", "52:54:00:aa:bb:03", &[1]))]);
    bench.prism.switches().hold_tasks(false);

    let covering = bench.pipeline.wait_for(&second, LIMIT).unwrap();
    assert_eq!(covering.commit, third);
    assert_eq!(succeeded(&covering).create, 2);
    let commits: Vec<String> = bench.pipeline.runs().into_iter().map(|run| run.commit).collect();
    assert_eq!(commits, [first, third]);
}

#[test]
fn stopping_interrupts_a_run_and_leaves_no_process() {
    let bench = Bench::start();
    bench.prism.switches().hold_tasks(true);
    bench.push(&[("vms/web01.tf", &vm_file("web01", "52:54:00:aa:bb:01", &[1]))]);
    while bench.prism.tasks().is_empty() {
        std::thread::sleep(Duration::from_millis(50));
    }
    let dir = bench.clone.parent().unwrap().to_owned();
    let Bench { pipeline, prism: _prism, clone: _, _dir } = bench;
    drop(pipeline);

    let running_in = |pid: &Path| fs::read_link(pid.join("cwd")).is_ok_and(|cwd| cwd.starts_with(&dir));
    let left: Vec<PathBuf> =
        fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path()).filter(|pid| running_in(pid)).collect();
    assert!(left.is_empty(), "{left:?}");
    let log = fs::read_to_string(dir.join("pipeline.log")).unwrap();
    assert!(log.contains("Interrupt received"), "{log}");
}
