//! `TerraformRepository`: the git repository that defines a team's machines.

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
pub struct TerraformRepositorySpec {
    /// `https://` or `http://` URL of the repository.
    #[schemars(length(min = 8, max = 1024), regex(pattern = r"^https?://"))]
    pub url: String,
    /// Branch that is committed to.
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
    /// Secret beside this object with `username` and `password` (a token).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<SecretRef>,
    /// Who the commits are by.
    #[serde(default)]
    pub author: CommitAuthor,
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
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    #[serde(default = "default_author_email")]
    #[schemars(length(min = 3, max = 254))]
    pub email: String,
}

impl Default for CommitAuthor {
    fn default() -> Self {
        Self { name: default_author_name(), email: default_author_email() }
    }
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
