//! `NutanixCluster`: where machines are moved to.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{Category, SecretRef};

/// Prism endpoints, the storage container, subnets by VLAN, and the NFS address of the storage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "drover.dev",
    version = "v1alpha1",
    kind = "NutanixCluster",
    plural = "nutanixclusters",
    shortname = "ntnx",
    category = "drover",
    printcolumn(name = "Prism Central", type_ = "string", json_path = ".spec.prismCentral.url"),
    printcolumn(name = "Container", type_ = "string", json_path = ".spec.storageContainer"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "!has(self.guestTools) || self.guestTools != 'Install' || has(self.guestToolsCredentials)",
    "guestTools: Install needs guestToolsCredentials: the guest's account to install them with"
))]
pub struct NutanixClusterSpec {
    /// Prism Central: the v4 API.
    pub prism_central: PrismEndpoint,
    /// Prism Element of this cluster: the v2 API, the only one that tells a disk's path on the storage.
    pub prism_element: PrismEndpoint,
    /// Name of the AHV cluster in Prism Central.
    #[schemars(length(min = 1, max = 80))]
    pub cluster_name: String,
    /// Name of the storage container that new disks lie in.
    #[schemars(length(min = 1, max = 75))]
    pub storage_container: String,
    /// NFSv3 service of the storage, as the hypervisors see it.
    pub nfs: NfsAddress,
    /// Subnets by VLAN.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    #[x_kube(validation = ("self.all(a, self.exists_one(b, b.vlan == a.vlan))", "each vlan may be listed once in subnets"))]
    pub subnets: Vec<SubnetByVlan>,
    /// Categories that every VM is created with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = ("self.all(a, self.exists_one(b, b.key == a.key && b.value == a.value))", "each category may be listed once"))]
    pub categories: Vec<Category>,
    /// Prism's uuid of the project that every VM is created in: projects cannot be looked up by name in the v4 API. Absent = none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 36), regex(pattern = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"))]
    pub project: Option<String>,
    /// What is done about the list of addresses that the storage container lets in over NFS.
    #[serde(default)]
    pub whitelist: WhitelistPolicy,
    /// Whether a marker that the host side writes to each target disk has to be seen through Prism before anything is copied.
    #[serde(default)]
    pub canary: CanaryPolicy,
    /// What is done about Nutanix Guest Tools once the target's guest was heard.
    #[serde(default)]
    pub guest_tools: GuestToolsPolicy,
    /// Secret in the operator's namespace with `username` and `password` of an account of the guests that may install software.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_tools_credentials: Option<SecretRef>,
    /// Namespaces whose migrations may use this cluster. Empty = none: naming them is the opt-in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 63)))]
    pub allowed_namespaces: Vec<String>,
}

/// What is done about a storage container's list of addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WhitelistPolicy {
    /// It is not looked at.
    Ignore,
    /// A migration through a host whose `storageAddress` is not on it is refused before anything is written.
    #[default]
    Check,
    /// The address is added to the container's own list, and taken off again when no migration needs it any more.
    Manage,
}

/// How much a marker that is read back through Prism matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CanaryPolicy {
    /// Nothing is copied before Prism has shown it.
    Require,
    /// A Prism that does not offer to read disks is put up with, and that is recorded. One that shows something else never is.
    #[default]
    IfPossible,
    /// No marker is written.
    Skip,
}

/// What is done about guest tools. That they could not be had never holds a migration up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum GuestToolsPolicy {
    #[default]
    None,
    /// Their CD-ROM is put into the target's drive.
    Mount,
    /// They are installed with `guestToolsCredentials`. The guest is not restarted for it.
    Install,
}

/// One Prism API server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PrismEndpoint {
    /// Base URL, e.g. `https://prism.example.com:9440`.
    #[schemars(length(min = 9, max = 1024), regex(pattern = r"^https://[^/]+$"))]
    pub url: String,
    /// Secret in the operator's namespace with `username` and `password`, or `apiKey` instead of both; and `ca.crt` unless the
    /// certificate is publicly trusted.
    pub credentials: SecretRef,
}

/// An NFSv3 server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NfsAddress {
    /// IP address of a CVM or of the cluster.
    #[schemars(length(min = 2, max = 45))]
    #[x_kube(validation = ("isIP(self)", "address must be an IP address: names are not resolved on the storage path"))]
    pub address: String,
    /// Port of the NFS service; absent = ask the portmapper.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<u16>,
    /// Port of the mount service; absent = ask the portmapper.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub mount_port: Option<u16>,
}

/// A VLAN and the AHV subnet that carries it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SubnetByVlan {
    /// VLAN id; 0 = untagged.
    #[schemars(range(max = 4094))]
    pub vlan: u16,
    /// Name of the subnet in Prism.
    #[schemars(length(min = 1, max = 80))]
    pub subnet: String,
}
