//! `TerraformRepository`: the git repository that defines a team's machines.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::SecretRef;

/// Git URL, branch, path template and credentials. Drover pushes one file per machine; the repository's pipeline applies it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "drover.dev",
    version = "v1alpha1",
    kind = "TerraformRepository",
    plural = "terraformrepositories",
    shortname = "tfr",
    category = "drover",
    namespaced,
    printcolumn(name = "URL", type_ = "string", json_path = ".spec.url"),
    printcolumn(name = "Branch", type_ = "string", json_path = ".spec.branch"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "self.url.startsWith('http') || has(self.credentials)",
    "ssh needs a key: set credentials to a Secret with ssh-privatekey and known_hosts"
))]
pub struct TerraformRepositorySpec {
    /// `https://host/path` (or `http://`), `ssh://user@host:port/path`, or `user@host:path`. Without a password.
    #[schemars(length(min = 5, max = 1024), regex(pattern = r"^(https?://|ssh://|[^\s/@:]+@)[^\s]+$"))]
    #[x_kube(validation = (
        "!self.matches('^https?://[^/]*@') && !self.matches('^ssh://[^/@]*:[^/]*@')",
        "url must hold no password and no token: put them into the Secret that credentials names"
    ))]
    pub url: String,
    /// Branch that the pipeline applies.
    #[serde(default = "default_branch")]
    #[schemars(length(min = 1, max = 244), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._/-]*$"))]
    pub branch: String,
    /// Path of a machine's file in the repository; `{hostname}` is replaced by the machine's hostname.
    #[serde(default = "default_path")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^[A-Za-z0-9._{}/-]+\.tf$"))]
    #[x_kube(validation = ("self.contains('{hostname}')", "path must contain {hostname}, so that each machine has a file of its own"))]
    #[x_kube(validation = ("!self.startsWith('/') && !self.contains('..')", "path must be relative and must not contain '..'"))]
    pub path: String,
    /// How a machine's file names the cluster, its storage container, subnets and categories.
    #[serde(default)]
    pub identifiers: Identifiers,
    /// Secret beside this object. For https: `username` and `password` (or a token), and `ca.crt` if a private authority signed the
    /// server's certificate. For ssh: `ssh-privatekey`, `passphrase` if it has one, and `known_hosts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<SecretRef>,
    /// Host keys of the ssh server, as in OpenSSH's `known_hosts`, beside those in the Secret. A server whose key is not listed is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16384))]
    pub known_hosts: Option<String>,
    /// How a machine's file gets to `branch`. `Commit`: Drover commits to it. `Branch`: Drover commits to a branch `drover/<hostname>`, and
    /// goes on when somebody has merged it. `MergeRequest`: the same, and the push asks the server to open a merge request, by GitLab's
    /// push options; a server that takes none refuses the push.
    #[serde(default)]
    pub delivery: Delivery,
    /// Who the commits are by.
    #[serde(default)]
    pub author: CommitAuthor,
    /// Who made the commits, if not the author.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committer: Option<CommitAuthor>,
    /// Who applies what is committed, as far as Drover can follow it. Empty = somebody else (Atlantis, tofu-controller, people): Drover waits
    /// for the VM to appear.
    #[serde(default)]
    pub apply: ApplySpec,
}

/// Who applies what is committed: one of the ways, or none of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!has(self.gitlab) || !has(self.job)", "apply.gitlab and apply.job exclude each other"))]
pub struct ApplySpec {
    /// The repository's GitLab pipeline plans every commit; a person starts its manual job, or Drover does for a plan that was approved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gitlab: Option<GitLabApply>,
    /// No CI at all: a Job in this namespace plans, keeps the plan, and applies exactly that plan when it was approved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobApply>,
}

/// A GitLab pipeline with one job that plans and one that applies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GitLabApply {
    /// Base URL of GitLab, e.g. `https://gitlab.example.com`.
    #[schemars(length(min = 9, max = 1024), regex(pattern = r"^https://[^/@]+(/[^@]*)?$"))]
    pub url: String,
    /// Path of the project, e.g. `team-a/machines`.
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$"))]
    pub project: String,
    /// Name of the job that plans.
    #[serde(default = "default_plan_job")]
    #[schemars(length(min = 1, max = 255))]
    pub plan_job: String,
    /// What `terraform show -json` printed of the plan: a file among that job's artifacts.
    #[serde(default = "default_plan_file")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = ("!self.startsWith('/') && !self.contains('..')", "planFile must be relative and must not contain '..'"))]
    pub plan_file: String,
    /// Name of the job that applies that saved plan: `when: manual`.
    #[serde(default = "default_apply_job")]
    #[schemars(length(min = 1, max = 255))]
    pub apply_job: String,
    /// Secret beside this object with `token` (scope `read_api`; `api` if Drover is to start the job that applies) and, unless the
    /// certificate is publicly trusted, `ca.crt`.
    pub credentials: SecretRef,
}

/// Jobs in the repository's namespace that run Terraform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobApply {
    /// Image with `drover` and, on its PATH, `terraform` or `tofu`.
    #[schemars(length(min = 1, max = 512))]
    pub image: String,
    /// Directory of the repository that is planned.
    #[serde(default = "default_directory")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = ("!self.startsWith('/') && !self.contains('..')", "directory must be relative and must not contain '..'"))]
    pub directory: String,
    /// Secret beside this object whose keys become environment variables: credentials of the provider and of the state's backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<SecretRef>,
    /// Service account of the Jobs: it may create, read and update Secrets in this namespace, where the plan is kept.
    #[serde(default = "default_service_account")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account: String,
    /// Labels of the nodes that the Jobs may run on; empty = any.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(length(max = 16))]
    pub node_selector: BTreeMap<String, String>,
    /// How long Terraform waits for the state's lock, in seconds.
    #[serde(default = "default_lock_timeout")]
    #[schemars(range(max = 86_400))]
    pub lock_timeout_seconds: u32,
}

/// How a machine's file gets to the branch that is applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Delivery {
    #[default]
    Commit,
    Branch,
    MergeRequest,
}

/// How a file names what exists in Prism already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Identifiers {
    /// By its uuid.
    #[default]
    Uuid,
    /// By its name, through the provider's data sources. Terraform then refuses a name that is missing or ambiguous.
    DataSource,
}

/// Name and address in a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommitAuthor {
    #[serde(default = "default_author_name")]
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[^<>\n\r]+$"))]
    pub name: String,
    #[serde(default = "default_author_email")]
    #[schemars(length(min = 3, max = 254), regex(pattern = r"^[^<>\s]+$"))]
    pub email: String,
}

impl Default for CommitAuthor {
    fn default() -> Self {
        Self { name: default_author_name(), email: default_author_email() }
    }
}

fn default_plan_job() -> String {
    "plan".into()
}

fn default_plan_file() -> String {
    "plan.json".into()
}

fn default_apply_job() -> String {
    "deploy".into()
}

fn default_directory() -> String {
    "vms".into()
}

fn default_service_account() -> String {
    "drover-terraform".into()
}

fn default_lock_timeout() -> u32 {
    300
}

fn default_branch() -> String {
    "main".into()
}

fn default_path() -> String {
    "vms/{hostname}.tf".into()
}

fn default_author_name() -> String {
    "Drover".into()
}

fn default_author_email() -> String {
    "drover@localhost.invalid".into()
}
