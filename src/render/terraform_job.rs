//! The Jobs in a team's namespace that plan and apply its repository, where there is no CI.
//!
//! One Job plans and leaves the plan in a Secret; another applies exactly that plan. A plan that could not be applied, because another apply
//! came first or because it stopped half-way, is made anew in the next round.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, EmptyDirVolumeSource, EnvFromSource, PodSpec, PodTemplateSpec, SeccompProfile,
    SecretEnvSource, SecretVolumeSource, SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ObjectMeta;

use crate::api::terraform_repository::JobApply;
use crate::api::{MIGRATION_LABEL, TerraformRepositorySpec};

/// Annotation with the number of the round, counted from 0.
pub const ROUND_ANNOTATION: &str = "drover.dev/round";
/// Label that tells the two Jobs apart.
pub const ACTION_LABEL: &str = "drover.dev/terraform";
/// Key of the plan, as Terraform has saved it, in the plan's Secret.
pub const PLAN_KEY: &str = "plan";
/// Key of the judgement of it.
pub const VERDICT_KEY: &str = "verdict.json";
/// Key of the lock file with the providers that it was made with.
pub const LOCK_KEY: &str = "lock.hcl";

/// Where the Jobs see the repository's credentials.
const CREDENTIALS_DIRECTORY: &str = "/run/secrets/drover.dev/git";
/// An interrupted Terraform ends what it has begun and saves its state.
const GRACE_SECONDS: i64 = 600;
/// How long an ended Job and its log are kept.
const KEPT_SECONDS: i32 = 7 * 86_400;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Plan,
    /// Apply the plan with this digest.
    Apply {
        digest: String,
    },
}

/// What the Jobs of a migration are made from.
#[derive(Clone, Copy, Debug)]
pub struct JobInput<'a> {
    pub migration: &'a str,
    pub namespace: &'a str,
    pub uid: &'a str,
    /// Commit that holds the file: another commit means other Jobs.
    pub commit: &'a str,
    pub round: u32,
    pub repository: &'a TerraformRepositorySpec,
    pub apply: &'a JobApply,
}

impl JobInput<'_> {
    /// Name of the plan's Secret and of the Job that makes it.
    pub fn plan_name(&self) -> String {
        self.name("plan")
    }

    /// Name of the Job that applies.
    pub fn apply_name(&self) -> String {
        self.name("apply")
    }

    fn name(&self, action: &str) -> String {
        let short = |text: &str| text.chars().take(8).collect::<String>();
        format!("terraform-{}-{}-{}-{action}", short(self.uid), short(self.commit), self.round)
    }
}

/// The migration, which its plan goes with.
pub fn owner(migration: &str, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: "drover.dev/v1alpha1".into(),
        kind: "VmMigration".into(),
        name: migration.into(),
        uid: uid.into(),
        ..OwnerReference::default()
    }
}

/// The Job that carries out `action`.
pub fn job(input: &JobInput<'_>, action: &Action) -> Job {
    let (name, word) = match action {
        Action::Plan => (input.plan_name(), "plan"),
        Action::Apply { .. } => (input.apply_name(), "apply"),
    };
    let labels = BTreeMap::from([
        ("app.kubernetes.io/name".into(), "drover".into()),
        ("app.kubernetes.io/component".into(), "terraform".into()),
        (MIGRATION_LABEL.into(), input.uid.to_owned()),
        (ACTION_LABEL.into(), word.to_owned()),
    ]);
    // What is being applied is not broken off because the migration is deleted.
    let owners = (*action == Action::Plan).then(|| vec![owner(input.migration, input.uid)]);
    Job {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(input.namespace.into()),
            labels: Some(labels.clone()),
            annotations: Some(BTreeMap::from([(ROUND_ANNOTATION.into(), input.round.to_string())])),
            owner_references: owners,
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            // A plan is tried again; half an apply is not: what is left to do is planned anew.
            backoff_limit: Some(if *action == Action::Plan { 2 } else { 0 }),
            ttl_seconds_after_finished: Some(KEPT_SECONDS),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
                spec: Some(pod(input, action)),
            },
            ..JobSpec::default()
        }),
        ..Job::default()
    }
}

fn pod(input: &JobInput<'_>, action: &Action) -> PodSpec {
    let credentials = input.repository.credentials.as_ref().map(|secret| Volume {
        name: "git".into(),
        secret: Some(SecretVolumeSource { secret_name: Some(secret.name.clone()), ..SecretVolumeSource::default() }),
        ..Volume::default()
    });
    let work = Volume { name: "work".into(), empty_dir: Some(EmptyDirVolumeSource::default()), ..Volume::default() };
    PodSpec {
        service_account_name: Some(input.apply.service_account.clone()),
        restart_policy: Some("Never".into()),
        node_selector: (!input.apply.node_selector.is_empty()).then(|| input.apply.node_selector.clone()),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        volumes: Some([work].into_iter().chain(credentials).collect()),
        containers: vec![container(input, action)],
        ..PodSpec::default()
    }
}

fn container(input: &JobInput<'_>, action: &Action) -> Container {
    let mount =
        |name: &str, path: &str| VolumeMount { name: name.into(), mount_path: path.into(), ..VolumeMount::default() };
    let credentials = input.repository.credentials.as_ref().map(|_| mount("git", CREDENTIALS_DIRECTORY));
    let environment = input.apply.environment.as_ref().map(|secret| EnvFromSource {
        secret_ref: Some(SecretEnvSource { name: secret.name.clone(), optional: None }),
        ..EnvFromSource::default()
    });
    Container {
        name: "terraform".into(),
        image: Some(input.apply.image.clone()),
        command: Some(command(input, action)),
        env_from: environment.map(|source| vec![source]),
        volume_mounts: Some([mount("work", "/tmp")].into_iter().chain(credentials).collect()),
        security_context: Some(SecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(65_532),
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), localhost_profile: None }),
            ..SecurityContext::default()
        }),
        ..Container::default()
    }
}

fn command(input: &JobInput<'_>, action: &Action) -> Vec<String> {
    let word = match action {
        Action::Plan => "plan",
        Action::Apply { .. } => "apply",
    };
    let mut command: Vec<String> = ["drover", "terraform", word].map(String::from).to_vec();
    let mut option = |name: &str, value: &str| command.extend([format!("--{name}"), value.to_owned()]);
    option("namespace", input.namespace);
    option("secret", &input.plan_name());
    option("migration", input.migration);
    option("migration-uid", input.uid);
    option("url", &input.repository.url);
    option("branch", &input.repository.branch);
    option("directory", &input.apply.directory);
    option("lock-timeout-seconds", &input.apply.lock_timeout_seconds.to_string());
    if input.repository.credentials.is_some() {
        option("credentials", CREDENTIALS_DIRECTORY);
    }
    if let Some(known_hosts) = &input.repository.known_hosts {
        option("known-hosts", known_hosts);
    }
    if let Action::Apply { digest } = action {
        option("digest", digest);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository() -> TerraformRepositorySpec {
        serde_json::from_value(serde_json::json!({
            "url": "https://git/x.git", "credentials": {"name": "git"},
            "apply": {"job": {"image": "drover-terraform:1", "environment": {"name": "prism"}}},
        }))
        .expect("valid")
    }

    fn input<'a>(repository: &'a TerraformRepositorySpec, round: u32) -> JobInput<'a> {
        JobInput {
            migration: "web01",
            namespace: "team-a",
            uid: "0b0e5a9c-1111",
            commit: "0123456789abcdef",
            round,
            repository,
            apply: repository.apply.job.as_ref().expect("a job"),
        }
    }

    #[test]
    fn each_round_and_commit_has_jobs_of_its_own() {
        let repository = repository();
        assert_eq!(input(&repository, 0).plan_name(), "terraform-0b0e5a9c-01234567-0-plan");
        assert_eq!(input(&repository, 3).apply_name(), "terraform-0b0e5a9c-01234567-3-apply");
    }

    #[test]
    fn an_apply_outlives_its_migration_and_is_not_tried_twice() {
        let repository = repository();
        let plan = job(&input(&repository, 0), &Action::Plan);
        let apply = job(&input(&repository, 0), &Action::Apply { digest: "sha256:1".into() });
        assert!(plan.metadata.owner_references.is_some() && apply.metadata.owner_references.is_none());
        assert_eq!(apply.spec.expect("a spec").backoff_limit, Some(0));
    }

    #[test]
    fn secrets_are_mounted_and_never_arguments() {
        let repository = repository();
        let pod = pod(&input(&repository, 0), &Action::Plan);
        let container = &pod.containers[0];
        assert_eq!(container.volume_mounts.as_ref().map(Vec::len), Some(2));
        assert!(container.env.is_none() && container.env_from.is_some());
    }
}
