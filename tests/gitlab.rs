//! The GitLab edge against simulated GitLab, which is itself held to python-gitlab.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on is to panic, in its helpers too")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use drover::edge::gitlab::{GitLab, GitLabError, Job, Pipeline, Status};
use drover_lab::git::git;
use drover_lab::gitlab::{self as lab, DEPLOY, GitLabConfig, Jobs, PLAN, PageHeaders, Role, Scope, User};

/// Only ends a test that would hang.
const LIMIT: Duration = Duration::from_secs(120);
const PLAN_JSON: &str = r#"{"resource_changes":[]}"#;

/// A simulated GitLab, somebody's clone of its repository, and our client with the bot's token.
struct Bench {
    // Dropped first: jobs work in the directory.
    gitlab: lab::GitLab,
    client: GitLab,
    clone: PathBuf,
    dir: tempfile::TempDir,
}

fn user(username: &str, scope: Scope, role: Role) -> User {
    User { username: username.into(), token: format!("glpat-{username}-secret"), scope, role }
}

fn users() -> Vec<User> {
    vec![
        user("bot", Scope::Api, Role::Maintainer),
        user("erika", Scope::Api, Role::Maintainer),
        user("reader", Scope::ReadApi, Role::Maintainer),
        user("developer", Scope::Api, Role::Developer),
        user("guest", Scope::Api, Role::Guest),
        user("stranger", Scope::Api, Role::Stranger),
    ]
}

impl Bench {
    /// Jobs run the commit's own `plan.sh` and `deploy.sh`.
    fn start() -> Self {
        Self::with(false, |_| scripts())
    }

    fn with(deploy_may_fail: bool, jobs: impl FnOnce(&Path) -> Jobs) -> Self {
        let dir = tempfile::tempdir().unwrap();
        git(dir.path(), &["init", "--quiet", "--bare", "--initial-branch=main", "machines.git"]).unwrap();
        git(dir.path(), &["clone", "--quiet", "machines.git", "clone"]).unwrap();
        let clone = dir.path().join("clone");
        git(&clone, &["checkout", "--quiet", "-B", "main"]).unwrap();
        let seed = commit(&clone, &plan_that("true"), "Seed");
        assert_eq!(seed.len(), 40);
        let gitlab = lab::GitLab::start(GitLabConfig {
            dir: dir.path().join("gitlab"),
            repository: dir.path().join("machines.git"),
            project: "vms/machines".into(),
            default_branch: "main".into(),
            protected_for: Role::Maintainer,
            deploy_may_fail,
            users: users(),
            jobs: jobs(dir.path()),
            log_path: dir.path().join("gitlab.log"),
        })
        .unwrap();
        let client = client_of(&gitlab, "bot");
        Self { gitlab, client, clone, dir }
    }

    fn client(&self, username: &str) -> GitLab {
        client_of(&self.gitlab, username)
    }

    /// Commits files and pushes `main`; the commit.
    fn push(&self, files: &[(String, String)]) -> String {
        commit(&self.clone, files, "Change")
    }

    /// Pushes a commit whose plan and deployment succeed, and waits until the deployment waits for somebody.
    fn push_and_plan(&self) -> (String, u64) {
        self.push_and_plan_with("test -s plan.json")
    }

    /// The same with another deployment.
    fn push_and_plan_with(&self, deploy: &str) -> (String, u64) {
        let files = [plan_that("true"), vec![("deploy.sh".to_owned(), deploy.to_owned())]].concat();
        let commit = self.push(&files);
        let pipeline = self.wait_for_job(&commit, DEPLOY, lab::Status::Manual);
        (commit, pipeline.job(DEPLOY).unwrap().id)
    }

    fn wait_for_job(&self, commit: &str, name: &str, status: lab::Status) -> lab::PipelineView {
        let is_there = |pipeline: &lab::PipelineView| pipeline.job(name).is_some_and(|job| job.status == status);
        self.gitlab.wait_for(commit, LIMIT, is_there).unwrap()
    }

    async fn pipeline(&self, commit: &str) -> Pipeline {
        let pipelines = self.client.pipelines(commit, "main").await.unwrap();
        assert_eq!(pipelines.len(), 1, "{pipelines:?}");
        pipelines.into_iter().next().unwrap()
    }

    async fn job(&self, commit: &str, name: &str) -> Job {
        let pipeline = self.pipeline(commit).await;
        let jobs = self.client.jobs(pipeline.id).await.unwrap();
        let mut named = jobs.into_iter().filter(|job| job.name == name);
        let job = named.next().unwrap();
        assert!(named.next().is_none(), "one of each name");
        job
    }

    /// How often somebody with our token asked for a job to be played.
    fn plays(&self) -> usize {
        self.gitlab.calls().iter().filter(|call| call.path.ends_with("/play")).count()
    }
}

fn client_of(gitlab: &lab::GitLab, username: &str) -> GitLab {
    let token = gitlab.token(username).unwrap();
    GitLab::new(gitlab.url(), gitlab.project(), token, Some(gitlab.ca_pem())).unwrap()
}

fn scripts() -> Jobs {
    Jobs::Shell { plan: "sh -e ./plan.sh".into(), deploy: "sh -e ./deploy.sh".into() }
}

/// A plan that first does this. Each is another commit, even if it is made in the same second.
fn plan_that(first: &str) -> Vec<(String, String)> {
    let script = format!("{first}\necho '{PLAN_JSON}' > plan.json\necho saved > plan.tfplan\n");
    vec![("plan.sh".into(), script), ("nonce".into(), uuid::Uuid::new_v4().to_string())]
}

fn commit(clone: &Path, files: &[(String, String)], message: &str) -> String {
    for (path, text) in files {
        let file = clone.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    git(clone, &["add", "--all"]).unwrap();
    git(clone, &["commit", "--quiet", "--message", message]).unwrap();
    git(clone, &["push", "--quiet", "origin", "main"]).unwrap();
    git(clone, &["rev-parse", "HEAD"]).unwrap().trim_end().to_owned()
}

/// A line that waits for a file.
fn until(file: &Path) -> String {
    format!("until test -e '{}'; do sleep 0.05; done", file.display())
}

/// The error, after a look at whether it gives a token away.
fn error_of<T: std::fmt::Debug>(result: Result<T, GitLabError>) -> GitLabError {
    let error = result.unwrap_err();
    let shown = format!("{error} {error:?}");
    assert!(users().iter().all(|user| !shown.contains(&user.token)), "{shown}");
    error
}

#[tokio::test]
async fn a_plan_is_read_and_its_deployment_played_once() {
    let bench = Bench::start();
    let (commit, deploy) = bench.push_and_plan();
    let pipeline = bench.pipeline(&commit).await;
    assert_eq!((pipeline.status, pipeline.source.as_str()), (Status::Manual, "push"));
    assert_eq!(pipeline.commit, commit);
    assert!(pipeline.url.ends_with(&format!("/vms/machines/-/pipelines/{}", pipeline.id)), "{}", pipeline.url);

    let plan = bench.job(&commit, PLAN).await;
    assert_eq!((&plan.status, plan.stage.as_str(), &plan.commit), (&Status::Success, "plan", &commit));
    let json = bench.client.artifact(plan.id, "plan.json").await.unwrap().unwrap();
    assert_eq!(String::from_utf8(json).unwrap().trim_end(), PLAN_JSON);
    assert_eq!(bench.client.artifact(plan.id, "other/plan.json").await.unwrap(), None, "not among them");

    bench.client.play(deploy).await.unwrap();
    bench.wait_for_job(&commit, DEPLOY, lab::Status::Success);
    let played = bench.job(&commit, DEPLOY).await;
    assert_eq!((played.id, played.status, played.user.as_deref()), (deploy, Status::Success, Some("bot")));
    assert_eq!(bench.pipeline(&commit).await.status, Status::Success);

    // GitLab would run it again.
    bench.client.play(deploy).await.unwrap();
    assert_eq!(bench.plays(), 1);
    assert_eq!(bench.gitlab.pipeline_of(&commit).unwrap().jobs.len(), 2, "nothing was run again");
}

#[tokio::test]
async fn who_played_is_told_and_is_not_followed_by_us() {
    let bench = Bench::start();
    let go = bench.dir.path().join("go");
    let (commit, deploy) = bench.push_and_plan_with(&until(&go));
    assert_eq!(bench.job(&commit, DEPLOY).await.user.as_deref(), Some("bot"), "who pushed");
    bench.gitlab.play_by_hand(deploy, "erika").unwrap();
    bench.wait_for_job(&commit, DEPLOY, lab::Status::Running);
    bench.client.play(deploy).await.unwrap();
    let running = bench.job(&commit, DEPLOY).await;
    assert_eq!((running.status, running.user.as_deref()), (Status::Running, Some("erika")));
    assert_eq!(bench.plays(), 0);
    fs::write(go, "").unwrap();
    bench.wait_for_job(&commit, DEPLOY, lab::Status::Success);
}

#[tokio::test]
async fn an_optional_deployment_is_judged_by_its_job() {
    let bench = Bench::with(true, |_| scripts());
    let (commit, deploy) = bench.push_and_plan_with("exit 1");
    assert_eq!(bench.pipeline(&commit).await.status, Status::Success, "although nobody deployed");
    let waiting = bench.job(&commit, DEPLOY).await;
    assert_eq!((waiting.status, waiting.allow_failure), (Status::Manual, true));
    bench.client.play(deploy).await.unwrap();
    bench.wait_for_job(&commit, DEPLOY, lab::Status::Failed);
    assert_eq!(bench.pipeline(&commit).await.status, Status::Success, "although it failed");
    assert_eq!(bench.job(&commit, DEPLOY).await.status, Status::Failed);
}

#[tokio::test]
async fn a_plan_that_fails_leaves_nothing_to_read_or_play() {
    let bench = Bench::start();
    let commit = bench.push(&plan_that("echo 'Error: no such subnet' >&2; exit 1"));
    bench.wait_for_job(&commit, PLAN, lab::Status::Failed);
    assert_eq!(bench.pipeline(&commit).await.status, Status::Failed);
    let plan = bench.job(&commit, PLAN).await;
    assert_eq!((plan.status, plan.failure_reason.as_deref()), (Status::Failed, Some("script_failure")));
    assert_eq!(bench.client.artifact(plan.id, "plan.json").await.unwrap(), None);
    assert!(bench.gitlab.trace(plan.id).contains("no such subnet"));

    let deploy = bench.job(&commit, DEPLOY).await;
    assert_eq!(deploy.status, Status::Skipped);
    let error = error_of(bench.client.play(deploy.id).await);
    assert!(matches!(error, GitLabError::NotPlayable { status: Status::Skipped, .. }), "{error}");
    assert_eq!(error.reason(), "GitLabJobNotPlayable");

    // A person mends what was wrong outside of the repository and retries.
    bench.gitlab.retry_by_hand(plan.id, "erika").unwrap();
    bench.wait_for_job(&commit, PLAN, lab::Status::Failed);
    let again = bench.job(&commit, PLAN).await;
    assert!(again.id > plan.id);
    assert_eq!(again.user.as_deref(), Some("erika"));
}

#[tokio::test]
async fn artifacts_that_are_missing_or_expired_are_none() {
    let bench = Bench::start();
    bench.gitlab.switches().leave_no_artifacts(true);
    let (commit, deploy) = bench.push_and_plan();
    let plan = bench.job(&commit, PLAN).await;
    assert_eq!(bench.client.artifact(plan.id, "plan.json").await.unwrap(), None);
    bench.client.play(deploy).await.unwrap();
    bench.wait_for_job(&commit, DEPLOY, lab::Status::Failed);
    assert_eq!(bench.job(&commit, DEPLOY).await.failure_reason.as_deref(), Some("missing_dependency_failure"));

    bench.gitlab.switches().leave_no_artifacts(false);
    let (commit, _) = bench.push_and_plan();
    let plan = bench.job(&commit, PLAN).await;
    assert!(bench.client.artifact(plan.id, "plan.json").await.unwrap().is_some());
    bench.gitlab.expire_artifacts(plan.id);
    assert_eq!(bench.client.artifact(plan.id, "plan.json").await.unwrap(), None);

    let error = error_of(bench.client.artifact(1, "plan.json").await);
    assert!(matches!(error, GitLabError::NotFound { .. }), "no artifacts is not no job: {error}");
}

#[tokio::test]
async fn an_artifact_may_lie_elsewhere_but_not_be_of_any_size() {
    let bench = Bench::start();
    bench.gitlab.switches().redirect_downloads(true);
    let (commit, _) = bench.push_and_plan();
    let plan = bench.job(&commit, PLAN).await;
    let json = bench.client.artifact(plan.id, "plan.json").await.unwrap().expect("the other host got no token");
    assert_eq!(String::from_utf8(json).unwrap().trim_end(), PLAN_JSON);

    bench.gitlab.switches().redirect_downloads(false);
    let commit = bench.push(&plan_that("head -c 68000000 /dev/zero > plan.txt"));
    bench.wait_for_job(&commit, PLAN, lab::Status::Success);
    let plan = bench.job(&commit, PLAN).await;
    let error = error_of(bench.client.artifact(plan.id, "plan.txt").await);
    assert!(matches!(error, GitLabError::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn what_is_canceled_is_not_played() {
    let bench = Bench::start();
    bench.gitlab.switches().hold_jobs(true);
    let commit = bench.push(&plan_that("true"));
    let pipeline = bench.wait_for_job(&commit, PLAN, lab::Status::Pending);
    assert_eq!(bench.pipeline(&commit).await.status, Status::Pending);
    let waiting = error_of(bench.client.play(pipeline.job(DEPLOY).unwrap().id).await);
    assert!(matches!(waiting, GitLabError::NotPlayable { status: Status::Created, .. }), "{waiting}");
    bench.gitlab.cancel_by_hand(pipeline.id);
    assert_eq!(bench.pipeline(&commit).await.status, Status::Canceled);
    let deploy = bench.job(&commit, DEPLOY).await;
    assert_eq!(deploy.status, Status::Canceled);
    let error = error_of(bench.client.play(deploy.id).await);
    assert!(matches!(error, GitLabError::NotPlayable { status: Status::Canceled, .. }), "{error}");
    assert_eq!(bench.plays(), 0, "a canceled job would be run again");

    bench.gitlab.switches().hold_jobs(false);
    let commit = bench.push(&plan_that("sleep 1000"));
    let pipeline = bench.wait_for_job(&commit, PLAN, lab::Status::Running);
    bench.gitlab.cancel_by_hand(pipeline.id);
    bench.wait_for_job(&commit, PLAN, lab::Status::Canceled);
    assert_eq!(bench.job(&commit, PLAN).await.status, Status::Canceled);
}

#[tokio::test]
async fn a_failed_deployment_that_somebody_retries_is_a_new_job() {
    let bench = Bench::start();
    let mended = bench.dir.path().join("mended");
    let (commit, deploy) = bench.push_and_plan_with(&format!("test -e '{}'", mended.display()));
    bench.client.play(deploy).await.unwrap();
    bench.wait_for_job(&commit, DEPLOY, lab::Status::Failed);
    assert_eq!(bench.pipeline(&commit).await.status, Status::Failed);
    bench.client.play(deploy).await.unwrap();
    assert_eq!(bench.plays(), 1, "a failed one is not run again by us");

    fs::write(mended, "").unwrap();
    let again = bench.gitlab.retry_by_hand(deploy, "erika").unwrap();
    bench.wait_for_job(&commit, DEPLOY, lab::Status::Success);
    let newest = bench.job(&commit, DEPLOY).await;
    assert_eq!((newest.id, newest.status, newest.user.as_deref()), (again, Status::Success, Some("erika")));
    assert_eq!(bench.pipeline(&commit).await.status, Status::Success);
}

#[tokio::test]
async fn a_later_pipeline_takes_the_place_of_one_that_was_not_begun() {
    let bench = Bench::start();
    bench.gitlab.switches().hold_jobs(true);
    let ours = bench.push(&plan_that("true"));
    bench.wait_for_job(&ours, PLAN, lab::Status::Pending);
    let later = bench.push(&plan_that("true"));
    bench.wait_for_job(&later, PLAN, lab::Status::Pending);
    assert_eq!(bench.pipeline(&ours).await.status, Status::Canceled);
    let newest = bench.client.branch_pipelines("main", 1).await.unwrap();
    assert_eq!(newest.len(), 1);
    assert_eq!(newest[0].commit, later);
    assert!(bench.client.contains(&later, &ours).await.unwrap());
    assert!(bench.client.contains(&ours, &ours).await.unwrap());
    assert!(!bench.client.contains(&ours, &later).await.unwrap());

    // The branch is pushed anew, with a history that knows nothing of ours.
    git(&bench.clone, &["checkout", "--quiet", "--orphan", "anew"]).unwrap();
    git(&bench.clone, &["commit", "--quiet", "--message", "Anew"]).unwrap();
    git(&bench.clone, &["push", "--quiet", "--force", "origin", "HEAD:main"]).unwrap();
    let anew = git(&bench.clone, &["rev-parse", "HEAD"]).unwrap().trim_end().to_owned();
    bench.wait_for_job(&anew, PLAN, lab::Status::Pending);
    assert!(!bench.client.contains(&anew, &ours).await.unwrap());
    assert!(!bench.client.contains(&anew, &"1".repeat(40)).await.unwrap(), "no such commit");
}

#[tokio::test]
async fn a_commit_may_have_no_pipeline_or_none_yet_or_a_skipped_one() {
    let bench = Bench::start();
    let seed = git(&bench.clone, &["rev-parse", "HEAD"]).unwrap().trim_end().to_owned();
    assert_eq!(bench.client.pipelines(&seed, "main").await.unwrap(), []);
    assert_eq!(bench.client.branch_pipelines("main", 10).await.unwrap(), []);

    bench.gitlab.switches().set_pipeline_delay(Duration::from_secs(3600));
    let late = bench.push(&plan_that("true"));
    assert_eq!(bench.client.pipelines(&late, "main").await.unwrap(), []);
    bench.gitlab.switches().set_pipeline_delay(Duration::ZERO);
    bench.wait_for_job(&late, DEPLOY, lab::Status::Manual);
    assert_eq!(bench.pipeline(&late).await.commit, late);
    assert_eq!(bench.client.pipelines(&late, "other").await.unwrap(), [], "it is another branch's");

    let skipped = commit(&bench.clone, &plan_that("true"), "Change [skip ci]");
    bench.gitlab.wait_for(&skipped, LIMIT, |_| true).unwrap();
    let pipeline = bench.pipeline(&skipped).await;
    assert_eq!(pipeline.status, Status::Skipped);
    assert_eq!(bench.client.jobs(pipeline.id).await.unwrap(), []);
}

#[tokio::test]
async fn tokens_reach_as_far_as_they_may() {
    let bench = Bench::start();
    let (commit, deploy) = bench.push_and_plan();

    let wrong = GitLab::new(bench.gitlab.url(), "vms/machines", "glpat-wrong", Some(bench.gitlab.ca_pem())).unwrap();
    let error = error_of(wrong.pipelines(&commit, "main").await);
    assert!(matches!(error, GitLabError::Unauthorized { .. }), "{error}");
    assert!(!error.to_string().contains("glpat-wrong"), "{error}");

    let error = error_of(bench.client("stranger").pipelines(&commit, "main").await);
    assert!(matches!(error, GitLabError::NotFound { .. }), "{error}");
    assert!(error.to_string().contains("not to be seen with this token (404 Project Not Found)"), "{error}");
    let error = error_of(bench.client("stranger").contains(&commit, &commit).await);
    assert!(matches!(error, GitLabError::NotFound { .. }), "no access is not no: {error}");
    let error = error_of(bench.client("stranger").artifact(deploy, "plan.json").await);
    assert!(matches!(error, GitLabError::NotFound { .. }), "no access is not none: {error}");

    let error = error_of(bench.client("guest").pipelines(&commit, "main").await);
    assert!(matches!(error, GitLabError::Forbidden { .. }), "{error}");

    let reader = bench.client("reader");
    assert_eq!(reader.pipelines(&commit, "main").await.unwrap().len(), 1);
    let error = error_of(reader.play(deploy).await);
    assert!(matches!(error, GitLabError::Forbidden { .. }), "{error}");
    assert!(error.to_string().contains("higher privileges than provided by the access token"), "{error}");

    let error = error_of(bench.client("developer").play(deploy).await);
    assert!(matches!(error, GitLabError::Forbidden { .. }), "the branch is protected: {error}");
    assert_eq!(bench.job(&commit, DEPLOY).await.status, Status::Manual);

    let error = error_of(
        GitLab::new(bench.gitlab.url(), "vms/other", "glpat-bot-secret", Some(bench.gitlab.ca_pem()))
            .unwrap()
            .job(1)
            .await,
    );
    assert_eq!(error.reason(), "GitLabNotFound");
}

#[tokio::test]
async fn every_page_is_read_however_it_is_told() {
    let bench = Bench::start();
    bench.gitlab.switches().hold_jobs(true);
    let mut commits = Vec::new();
    for _ in 0..5 {
        let commit = bench.push(&plan_that("true"));
        bench.wait_for_job(&commit, PLAN, lab::Status::Pending);
        commits.insert(0, commit);
    }
    bench.gitlab.switches().set_largest_page(2);
    for headers in [PageHeaders::All, PageHeaders::LinkOnly, PageHeaders::NumbersOnly] {
        bench.gitlab.switches().set_page_headers(headers);
        let found = bench.client.branch_pipelines("main", 100).await.unwrap();
        let found: Vec<&String> = found.iter().map(|pipeline| &pipeline.commit).collect();
        assert_eq!(found, commits.iter().collect::<Vec<_>>(), "{headers:?}");
    }
    assert_eq!(bench.client.branch_pipelines("main", 3).await.unwrap().len(), 3);

    // The address in GitLab's settings is one that we cannot reach, and must not bring our token to.
    bench.gitlab.switches().set_page_headers(PageHeaders::All);
    bench.gitlab.switches().set_external_url("https://gitlab.invalid");
    assert_eq!(bench.client.branch_pipelines("main", 100).await.unwrap().len(), 5);

    bench.gitlab.switches().hold_jobs(false);
    bench.wait_for_job(&commits[0], DEPLOY, lab::Status::Manual);
    for _ in 0..3 {
        let plan = bench.job(&commits[0], PLAN).await;
        bench.gitlab.retry_by_hand(plan.id, "erika").unwrap();
        bench.wait_for_job(&commits[0], PLAN, lab::Status::Success);
    }
    let jobs = bench.client.jobs(bench.pipeline(&commits[0]).await.id).await.unwrap();
    let view = bench.gitlab.pipeline_of(&commits[0]).unwrap();
    assert_eq!(view.jobs.len(), 5);
    let newest = [view.job(DEPLOY).unwrap().id, view.job(PLAN).unwrap().id];
    assert_eq!(jobs.iter().map(|job| job.id).collect::<Vec<_>>(), newest);
}

#[tokio::test]
async fn a_read_is_repeated_when_gitlab_says_later() {
    let bench = Bench::start();
    let (commit, _) = bench.push_and_plan();
    let asked = |bench: &Bench| bench.gitlab.calls().len();
    let switches = bench.gitlab.switches();

    switches.refuse_next_calls(2, 429, Some(1));
    let before = asked(&bench);
    bench.pipeline(&commit).await;
    assert_eq!(asked(&bench) - before, 3);

    switches.refuse_next_calls(3, 503, None);
    bench.pipeline(&commit).await;

    // Longer than anybody may be kept waiting for.
    switches.refuse_next_calls(1, 429, Some(3600));
    let before = asked(&bench);
    let error = error_of(bench.client.pipelines(&commit, "main").await);
    assert!(
        matches!(error, GitLabError::TooManyRequests { after: Some(after), .. } if after.as_secs() == 3600),
        "{error}"
    );
    assert_eq!((asked(&bench) - before, error.reason()), (1, "GitLabBusy"));

    switches.refuse_next_calls(100, 502, None);
    let before = asked(&bench);
    let error = error_of(bench.client.pipelines(&commit, "main").await);
    assert!(matches!(error, GitLabError::Refused { status: 502, .. }), "{error}");
    assert_eq!(asked(&bench) - before, 4);
    switches.refuse_next_calls(0, 502, None);
}

#[tokio::test]
async fn a_change_whose_answer_is_lost_is_not_made_twice() {
    let bench = Bench::start();
    let (commit, deploy) = bench.push_and_plan();
    bench.gitlab.switches().lose_next_answers(1);
    let error = error_of(bench.client.play(deploy).await);
    assert!(matches!(error, GitLabError::Refused { status: 502, .. }), "{error}");
    bench.client.play(deploy).await.unwrap();
    bench.wait_for_job(&commit, DEPLOY, lab::Status::Success);
    assert_eq!(bench.plays(), 1);

    git(&bench.clone, &["push", "--quiet", "origin", "HEAD:machines/web01"]).unwrap();
    bench.gitlab.switches().lose_next_answers(1);
    let ensure = || bench.client.ensure_merge_request("machines/web01", "main", "Add web01", "");
    error_of(ensure().await);
    assert_eq!(ensure().await.unwrap().iid, 1);
}

#[tokio::test]
async fn a_slow_gitlab_is_waited_for() {
    let bench = Bench::start();
    let (commit, _) = bench.push_and_plan();
    bench.gitlab.switches().set_answer_delay(Duration::from_secs(2));
    assert_eq!(bench.pipeline(&commit).await.status, Status::Manual);
}

#[tokio::test]
#[ignore = "slow: make test-all (the client waits for half a minute)"]
async fn a_gitlab_that_hangs_is_given_up() {
    let bench = Bench::start();
    bench.gitlab.switches().set_answer_delay(Duration::from_secs(600));
    let error = error_of(bench.client.job(1).await);
    assert!(matches!(error, GitLabError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn only_the_given_authority_is_believed() {
    let bench = Bench::start();
    let other = Bench::start();
    let client =
        GitLab::new(bench.gitlab.url(), "vms/machines", "glpat-bot-secret", Some(other.gitlab.ca_pem())).unwrap();
    let error = error_of(client.job(1).await);
    assert!(matches!(&error, GitLabError::Unreachable { why, .. } if why.contains("certificate")), "{error}");
}

#[tokio::test]
async fn a_merge_request_is_made_once_and_tells_its_merge() {
    let bench = Bench::start();
    git(&bench.clone, &["checkout", "--quiet", "-b", "machines/web01"]).unwrap();
    fs::write(bench.clone.join("web01.tf"), "# web01\n").unwrap();
    git(&bench.clone, &["add", "--all"]).unwrap();
    git(&bench.clone, &["commit", "--quiet", "--message", "Add web01"]).unwrap();
    git(&bench.clone, &["push", "--quiet", "origin", "machines/web01"]).unwrap();
    let commit = git(&bench.clone, &["rev-parse", "HEAD"]).unwrap().trim_end().to_owned();

    let title = "Add \"web01\" & <others>";
    let ensure = || bench.client.ensure_merge_request("machines/web01", "main", title, "Of VmMigration vms/web01");
    // Both look before either has made one.
    bench.gitlab.switches().set_answer_delay(Duration::from_millis(300));
    let (made, at_once) = tokio::join!(ensure(), ensure());
    bench.gitlab.switches().set_answer_delay(Duration::ZERO);
    let made = made.unwrap();
    assert_eq!((made.iid, made.state.as_str(), &made.merge_commit), (1, "opened", &None));
    assert_eq!(at_once.unwrap(), made);
    assert_eq!(ensure().await.unwrap(), made);
    assert!(made.url.ends_with("/vms/machines/-/merge_requests/1"), "{}", made.url);

    let merge = bench.gitlab.merge_by_hand(made.iid, "erika").unwrap();
    let merged = ensure().await.unwrap();
    assert_eq!(
        (merged.iid, merged.state.as_str(), merged.merge_commit.as_deref()),
        (1, "merged", Some(merge.as_str()))
    );
    assert!(bench.client.contains(&merge, &commit).await.unwrap());
    bench.wait_for_job(&merge, DEPLOY, lab::Status::Manual);
    assert_eq!(bench.pipeline(&merge).await.commit, merge);

    let error = error_of(bench.client.ensure_merge_request("machines/none", "main", "None", "").await);
    assert!(matches!(error, GitLabError::Refused { status: 422, .. }), "{error}");
}
