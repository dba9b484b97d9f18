//! LOOP: what runs in a Job of a team's namespace where there is no CI: `drover terraform plan` and `drover terraform apply`.
//!
//! Terraform's own state, backend and lock are used as the repository declares them. The plan that is applied is the one that was saved and
//! approved: it is judged once more in the Job that applies it, so nothing rests on what lay in between.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt};

use crate::api::MIGRATION_LABEL;
use crate::edge::git::{self, Access};
use crate::edge::terraform::Engine;
use crate::plan::court::{self, Verdict};
use crate::render::terraform_job::{LOCK_KEY, PLAN_KEY, VERDICT_KEY, owner};

/// The file in which Terraform keeps which providers it uses.
const LOCK_FILE: &str = ".terraform.lock.hcl";

/// `drover terraform …`.
#[derive(clap::Subcommand)]
pub enum TerraformCommand {
    /// Plan the repository and keep the plan in a Secret.
    Plan(Options),
    /// Apply exactly the plan that lies in the Secret, if it is the one with this digest and nothing speaks against it.
    Apply {
        #[command(flatten)]
        options: Options,
        /// Digest of the plan that was approved.
        #[arg(long)]
        digest: String,
    },
}

/// What both need to know.
#[derive(clap::Args)]
pub struct Options {
    /// Namespace of the Secret.
    #[arg(long)]
    namespace: String,
    /// Secret that holds the plan.
    #[arg(long)]
    secret: String,
    /// The VmMigration that the plan is for.
    #[arg(long)]
    migration: String,
    /// Its uid, which the description of its VM bears.
    #[arg(long)]
    migration_uid: String,
    /// URL of the repository.
    #[arg(long)]
    url: String,
    /// Branch that is planned.
    #[arg(long)]
    branch: String,
    /// Directory of the repository that is planned.
    #[arg(long)]
    directory: String,
    /// Directory with the keys of the repository's Secret as files.
    #[arg(long)]
    credentials: Option<PathBuf>,
    /// Accepted host keys of an ssh server, beside those among the credentials.
    #[arg(long)]
    known_hosts: Option<String>,
    /// How long to wait for the lock of Terraform's state.
    #[arg(long)]
    lock_timeout_seconds: u32,
    /// Terraform's engine; by default `terraform` or `tofu` on the PATH.
    #[arg(long, env = "DROVER_TERRAFORM")]
    engine: Option<PathBuf>,
}

/// Runs the command to its end. What Terraform prints goes to the Job's log.
pub async fn run(command: TerraformCommand) -> Result<()> {
    match command {
        TerraformCommand::Plan(options) => plan(&options).await,
        TerraformCommand::Apply { options, digest } => apply(&options, &digest).await,
    }
}

async fn plan(options: &Options) -> Result<()> {
    let work = tempfile::tempdir().context("make a directory to work in")?;
    let engine = check_out(options, work.path()).await?;
    let saved = work.path().join("plan");
    engine.init().await?;
    engine.plan(&saved, options.lock_timeout_seconds).await?;
    let verdict = judge(&engine, &saved, options).await?;
    println!("drover: {}, digest {}", verdict.summary, verdict.digest);
    let lock = std::fs::read(engine.directory().join(LOCK_FILE)).unwrap_or_default();
    let plan = std::fs::read(&saved).with_context(|| format!("read the saved plan {}", saved.display()))?;
    keep(options, plan, lock, &verdict).await
}

async fn apply(options: &Options, digest: &str) -> Result<()> {
    let work = tempfile::tempdir().context("make a directory to work in")?;
    let Options { namespace, secret: name, .. } = options;
    let secrets: Api<Secret> = Api::namespaced(Client::try_default().await?, namespace);
    let secret = secrets.get(name).await.with_context(|| format!("read the plan in Secret {namespace}/{name}"))?;
    let mut data = secret.data.unwrap_or_default();
    let plan = data.remove(PLAN_KEY).with_context(|| format!("Secret {namespace}/{name} holds no {PLAN_KEY}"))?;
    let engine = check_out(options, work.path()).await?;
    if let Some(ByteString(lock)) = data.remove(LOCK_KEY).filter(|lock| !lock.0.is_empty()) {
        std::fs::write(engine.directory().join(LOCK_FILE), lock).context("write the lock file")?;
    }
    let saved = work.path().join("plan");
    std::fs::write(&saved, plan.0).context("write the saved plan")?;
    engine.init().await?;
    let verdict = judge(&engine, &saved, options).await?;
    ensure!(
        verdict.digest == digest,
        "the plan in Secret {namespace}/{name} has digest {}, approved was {digest}: it is not applied",
        verdict.digest
    );
    ensure!(verdict.refused.is_empty(), "the plan must not be applied: {}", verdict.refused.join("; "));
    engine.apply(&saved, options.lock_timeout_seconds).await
}

/// The branch's newest commit in a directory, with the engine to run there.
async fn check_out(options: &Options, work: &Path) -> Result<Engine> {
    let repository = work.join("repository");
    let access = access(options)?;
    let (url, branch, target) = (options.url.clone(), options.branch.clone(), repository.clone());
    let commit = tokio::task::spawn_blocking(move || git::check_out(&url, &branch, &access, &target)).await??;
    println!("drover: commit {commit} of {}", options.url);
    let directory = repository.join(&options.directory);
    ensure!(
        directory.is_dir(),
        "commit {commit} has no directory {}: correct apply.job.directory of the TerraformRepository",
        options.directory
    );
    Engine::find(options.engine.as_deref(), &directory)
}

fn access(options: &Options) -> Result<Access> {
    let mut access = match &options.credentials {
        None => Access::default(),
        Some(directory) => {
            let key = |name: &str| std::fs::read_to_string(directory.join(name)).ok();
            Access::from_keys(key).map_err(|missing| anyhow::anyhow!("the repository's Secret has no {missing}"))?
        }
    };
    access.add_known_hosts(options.known_hosts.as_deref());
    Ok(access)
}

async fn judge(engine: &Engine, saved: &Path, options: &Options) -> Result<Verdict> {
    let json = engine.show(saved).await?;
    court::judge(&json, &options.migration_uid).context("judge the plan")
}

/// Puts the plan where it is kept until it is approved.
async fn keep(options: &Options, plan: Vec<u8>, lock: Vec<u8>, verdict: &Verdict) -> Result<()> {
    let Options { namespace, secret: name, migration, migration_uid, .. } = options;
    let secrets: Api<Secret> = Api::namespaced(Client::try_default().await?, namespace);
    let data = BTreeMap::from([
        (PLAN_KEY.to_owned(), ByteString(plan)),
        (LOCK_KEY.to_owned(), ByteString(lock)),
        (VERDICT_KEY.to_owned(), ByteString(serde_json::to_vec(verdict)?)),
    ]);
    let mut secret = Secret {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            labels: Some(BTreeMap::from([(MIGRATION_LABEL.into(), migration_uid.clone())])),
            owner_references: Some(vec![owner(migration, migration_uid)]),
            ..ObjectMeta::default()
        },
        data: Some(data),
        ..Secret::default()
    };
    let what = || format!("keep the plan in Secret {namespace}/{name} (a Secret takes 1 MiB)");
    match secrets.create(&PostParams::default(), &secret).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => {}
        other => return other.map(drop).with_context(what),
    }
    // A Job that is tried again has made a new plan.
    let Some(before) = secrets.get_opt(name).await.with_context(what)? else { bail!("{}: it is gone again", what()) };
    secret.metadata.resource_version = before.resource_version();
    secrets.replace(name, &PostParams::default(), &secret).await.map(drop).with_context(what)
}
