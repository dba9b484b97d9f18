//! WORDS: every shape that leaves the process. Serde, schemars and CEL rules; no behaviour beyond accessors.
//!
//! People write [`VmMigration`], [`LibvirtHost`], [`NutanixCluster`] and [`TerraformRepository`];
//! [`BlockCopy`] is the contract between the controller and the host-side job, written by Drover alone.

pub mod block_copy;
pub mod common;
pub mod libvirt_host;
pub mod machine;
pub mod nutanix_cluster;
pub mod shutdown;
pub mod terraform_repository;
pub mod vm_migration;

pub use block_copy::{BlockCopy, BlockCopySpec, BlockCopyStatus};
pub use libvirt_host::{LibvirtHost, LibvirtHostSpec};
pub use nutanix_cluster::{NutanixCluster, NutanixClusterSpec};
pub use terraform_repository::{TerraformRepository, TerraformRepositorySpec};
pub use vm_migration::{VmMigration, VmMigrationSpec, VmMigrationStatus};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

/// The API group of every Drover resource.
pub const GROUP: &str = "drover.dev";

/// Label on a `BlockCopy` and its Job: the uid of the `VmMigration` they serve.
pub const MIGRATION_LABEL: &str = "drover.dev/migration-uid";

/// Namespace of Drover's mark in a domain's metadata.
pub const METADATA_URI: &str = "https://drover.dev/migration";

/// Finalizer on a `VmMigration`: keeps the object until its `BlockCopy` has been released.
pub const MIGRATION_FINALIZER: &str = "drover.dev/release-source";

/// Every custom resource definition, in the order they are applied.
pub fn crds() -> Vec<CustomResourceDefinition> {
    [VmMigration::crd(), LibvirtHost::crd(), NutanixCluster::crd(), TerraformRepository::crd(), BlockCopy::crd()]
        .into_iter()
        .map(without_unsigned_formats)
        .collect()
}

/// Removes `format: uint8` … `uint64`, which schemars writes and the API server warns of: it knows `int32` and `int64` only.
fn without_unsigned_formats(crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let mut value = serde_json::to_value(&crd).expect("a definition is plain data");
    remove_unsigned_formats(&mut value);
    serde_json::from_value(value).expect("removing an optional field keeps it a definition")
}

fn remove_unsigned_formats(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, field| name != "format" || !field.as_str().is_some_and(|f| f.starts_with("uint")));
            fields.values_mut().for_each(remove_unsigned_formats);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_unsigned_formats),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
