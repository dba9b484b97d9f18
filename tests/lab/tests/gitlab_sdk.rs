//! Simulated GitLab, used by python-gitlab.

use std::fs;
use std::process::Command;
use std::time::Duration;

use drover_lab::git::git;
use drover_lab::gitlab::{DEPLOY, GitLab, GitLabConfig, Jobs, Role, Scope, Status, User};

#[path = "common/python.rs"]
mod python;
use python::{python, run, script};

const PIPELINES: usize = 3;

#[test]
#[ignore = "slow: make test-all"]
fn python_gitlab_takes_a_pipeline_and_a_merge_request_to_their_ends() {
    let python = python();
    let dir = tempfile::tempdir().unwrap();
    let clone = dir.path().join("clone");
    let work = |arguments: &[&str]| git(&clone, arguments).unwrap().trim_end().to_owned();
    git(dir.path(), &["init", "--quiet", "--bare", "--initial-branch=main", "machines.git"]).unwrap();
    git(dir.path(), &["clone", "--quiet", "machines.git", "clone"]).unwrap();
    work(&["checkout", "--quiet", "-B", "main"]);
    let user = |username: &str, scope, role| User {
        username: username.into(),
        token: format!("glpat-{username}"),
        scope,
        role,
    };
    let gitlab = GitLab::start(GitLabConfig {
        dir: dir.path().join("gitlab"),
        repository: dir.path().join("machines.git"),
        project: "vms/machines".into(),
        default_branch: "main".into(),
        protected_for: Role::Maintainer,
        deploy_may_fail: false,
        users: vec![
            user("bot", Scope::Api, Role::Maintainer),
            user("reader", Scope::ReadApi, Role::Maintainer),
            user("stranger", Scope::Api, Role::Stranger),
        ],
        jobs: Jobs::Shell {
            plan: r#"echo '{"resource_changes":[]}' > plan.json"#.into(),
            deploy: "test -s plan.json".into(),
        },
        log_path: dir.path().join("gitlab.log"),
    })
    .unwrap();
    for number in 0..PIPELINES {
        fs::write(clone.join("README.md"), format!("{number}\n")).unwrap();
        work(&["add", "--all"]);
        work(&["commit", "--quiet", "--message", "Change"]);
        work(&["push", "--quiet", "origin", "main"]);
        let waits = |job: Option<&drover_lab::gitlab::JobView>| job.is_some_and(|job| job.status == Status::Manual);
        gitlab
            .wait_for(&work(&["rev-parse", "HEAD"]), Duration::from_secs(120), |pipeline| waits(pipeline.job(DEPLOY)))
            .unwrap();
    }
    let commit = work(&["rev-parse", "HEAD"]);
    fs::write(clone.join("web01.tf"), "# web01\n").unwrap();
    work(&["add", "--all"]);
    work(&["commit", "--quiet", "--message", "Add web01"]);
    work(&["push", "--quiet", "origin", "HEAD:machines/web01"]);
    run(
        Command::new(python)
            .arg(script("check_gitlab.py"))
            .env("GITLAB_URL", gitlab.url())
            .env("GITLAB_CA", dir.path().join("gitlab/ca.pem"))
            .env("GITLAB_PROJECT", gitlab.project())
            .env("GITLAB_COMMIT", &commit)
            .env("GITLAB_PIPELINES", PIPELINES.to_string())
            .env("GITLAB_BRANCH", "machines/web01")
            .env("GITLAB_TOKEN", "glpat-bot")
            .env("GITLAB_READ_TOKEN", "glpat-reader")
            .env("GITLAB_STRANGER_TOKEN", "glpat-stranger")
            .env("NO_PROXY", "127.0.0.1"),
        "check_gitlab.py",
    );
    assert!(gitlab.pipeline_of(&commit).unwrap().jobs.len() == 4, "plan and deployment were each run twice");
}
