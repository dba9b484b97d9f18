//! WORDS: every shape that leaves the process. Serde, schemars and CEL rules; no behaviour beyond accessors.
//!
//! People write [`VmMigration`], [`LibvirtHost`], [`NutanixCluster`] and [`TerraformRepository`];
//! [`BlockCopy`] is the contract between the controller and the host-side job, written by Drover alone.

pub mod block_copy;
pub mod common;
pub mod libvirt_host;
pub mod machine;
pub mod nutanix_cluster;
pub mod terraform_repository;
pub mod vm_migration;

pub use block_copy::{BlockCopy, BlockCopySpec, BlockCopyStatus};
pub use libvirt_host::{LibvirtHost, LibvirtHostSpec};
pub use nutanix_cluster::{NutanixCluster, NutanixClusterSpec};
pub use terraform_repository::{TerraformRepository, TerraformRepositorySpec};
pub use vm_migration::{VmMigration, VmMigrationSpec, VmMigrationStatus};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// The API group of every Drover resource.
pub const GROUP: &str = "drover.dev";

/// Label on a `BlockCopy` and its Job: the uid of the `VmMigration` they serve.
pub const MIGRATION_LABEL: &str = "drover.dev/migration-uid";

/// Finalizer on a `VmMigration`: keeps the object until its `BlockCopy` has been released.
pub const MIGRATION_FINALIZER: &str = "drover.dev/release-source";

/// Every custom resource definition, in the order they are applied.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![VmMigration::crd(), LibvirtHost::crd(), NutanixCluster::crd(), TerraformRepository::crd(), BlockCopy::crd()]
}
