//! `LibvirtHost`: a hypervisor that machines may be moved from.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// How to reach a hypervisor, who may migrate from it, and how hard its machines may be copied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "drover.dev",
    version = "v1alpha1",
    kind = "LibvirtHost",
    plural = "libvirthosts",
    shortname = "lvh",
    category = "drover",
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.nodeName"),
    printcolumn(name = "URI", type_ = "string", json_path = ".spec.uri"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct LibvirtHostSpec {
    /// The cluster node that is this hypervisor: host-side jobs are pinned to it.
    #[schemars(length(min = 1, max = 253))]
    pub node_name: String,
    /// IP address of the hypervisor as the storage sees it: what a storage container's list has to let in. Absent = the list is not checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 45))]
    #[x_kube(validation = ("isIP(self)", "storageAddress must be an IP address"))]
    pub storage_address: Option<String>,
    /// libvirt connection URI as seen on that node.
    #[serde(default = "default_uri")]
    #[schemars(length(min = 1, max = 1024))]
    pub uri: String,
    /// Namespaces whose migrations may use this host. Empty = none: naming them is the opt-in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 63)))]
    pub allowed_namespaces: Vec<String>,
    /// Directory on the node that QEMU can reach; the relay's sockets live in it. Short: the path of a Unix socket has at most 107 bytes.
    #[serde(default = "default_run_directory")]
    #[schemars(length(min = 1, max = 60), regex(pattern = r"^/[A-Za-z0-9._/-]*$"))]
    pub run_directory: String,
    /// Directory on the node with libvirt's sockets, mounted into the job.
    #[serde(default = "default_libvirt_directory")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^/[A-Za-z0-9._/-]*$"))]
    pub libvirt_directory: String,
    /// Directories on the node with the machines' disks: the host-side job sees these, read-only, and no others.
    #[serde(default = "default_disk_directories")]
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 1024), regex(pattern = r"^/[A-Za-z0-9._/-]*$")))]
    pub disk_directories: Vec<String>,
    /// Limits on copying.
    #[serde(default)]
    pub limits: CopyLimits,
}

/// How hard machines may be copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CopyLimits {
    /// The longest that a hung target may hold up a guest's write before the mirror is broken instead, in milliseconds.
    #[serde(default = "default_stall")]
    #[schemars(range(min = 500, max = 30_000))]
    pub max_guest_stall_millis: u32,
    /// Memory of one relay for writes that the target has not taken yet, in MiB, shared by its disks.
    #[serde(default = "default_memory")]
    #[schemars(range(min = 16, max = 65_536))]
    pub relay_memory_mib: u32,
    /// How fast the disks of a machine that is in sync are read and compared with their targets, in MiB/s, all together. What was found
    /// equal and was not written to since is not read again in the outage. 0 = everything is compared in the outage.
    #[serde(default = "default_verify")]
    #[schemars(range(max = 100_000))]
    pub verify_mib_per_second: u32,
}

impl Default for CopyLimits {
    fn default() -> Self {
        Self {
            max_guest_stall_millis: default_stall(),
            relay_memory_mib: default_memory(),
            verify_mib_per_second: default_verify(),
        }
    }
}

fn default_uri() -> String {
    "qemu:///system".into()
}

fn default_run_directory() -> String {
    "/run/drover".into()
}

fn default_libvirt_directory() -> String {
    "/run/libvirt".into()
}

fn default_disk_directories() -> Vec<String> {
    vec!["/var/lib/libvirt/images".into()]
}

fn default_stall() -> u32 {
    3000
}

fn default_memory() -> u32 {
    128
}

fn default_verify() -> u32 {
    64
}
