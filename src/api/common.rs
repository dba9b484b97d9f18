//! Shapes that several resources share.

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A reference by name: to a cluster-scoped object, or to one in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NameRef {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A Secret. For a cluster-scoped resource it lies in the operator's namespace, else in the resource's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A category of Prism. It must exist there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Category {
    #[schemars(length(min = 1, max = 64))]
    pub key: String,
    #[schemars(length(min = 1, max = 64))]
    pub value: String,
}

/// Why something is not moving: a machine-readable reason, words for a person, and since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// One CamelCase word.
    #[schemars(length(min = 1, max = 64))]
    pub reason: String,
    /// What was tried, on what, what to do.
    #[schemars(length(max = 4096))]
    pub message: String,
    /// When it was first seen.
    pub since: Time,
}

/// An observed fact. `Unknown` means that nobody could look: it is never treated as `No`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Tri {
    Yes,
    No,
    #[default]
    Unknown,
}

impl Tri {
    /// Whether the fact was seen to hold.
    pub fn is_yes(self) -> bool {
        self == Tri::Yes
    }
}

impl From<bool> for Tri {
    fn from(seen: bool) -> Self {
        if seen { Tri::Yes } else { Tri::No }
    }
}
