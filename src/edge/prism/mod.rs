//! Nutanix Prism: the v4 API of Prism Central, and the one call of the v2 API of Prism Element that tells a disk's path on the storage.
//!
//! Thin: a method is a call. Shapes follow Nutanix's v4 SDKs (vmm 4.2, prism, clustermgmt, networking) and were checked with them.

mod central;
mod element;
mod http;

pub use central::{PowerState, PrismCentral, TaskState, Vm, VmDisk, VmNic};
pub use element::{ElementDisk, PrismElement};

/// Why a call to Prism did not succeed. Each names the server and what was tried.
#[derive(Debug, thiserror::Error)]
pub enum PrismError {
    #[error("{tried}: the client could not be set up: {why}")]
    Setup { tried: String, why: String },
    #[error("{tried}: no answer: {why}. Check the URL, the network and ca.crt in the Secret")]
    Unreachable { tried: String, why: String },
    #[error(
        "{tried}: user name or password is refused: check the Secret that the NutanixCluster names (spec.prismCentral.credentials, spec.prismElement.credentials)"
    )]
    Unauthorized { tried: String },
    #[error("{tried}: not found")]
    NotFound { tried: String },
    #[error(
        "{tried}: {found}, but Drover and the Terraform provider (nutanix/nutanix 2.4) need {needed} of Prism's API: update Prism Central to 7.5 or newer"
    )]
    TooOld { tried: String, found: String, needed: String },
    #[error("Prism Central has the {what} {count} times: rename all but one, or name another")]
    Ambiguous { what: String, count: usize },
    #[error("{tried}: the object changed since it was read (ETag)")]
    PreconditionFailed { tried: String },
    #[error("{tried}: refused with status {status}: {message}")]
    Refused { tried: String, status: u16, message: String },
    #[error("{tried}: the answer is not what Prism's API describes: {why}")]
    Malformed { tried: String, why: String },
}

impl PrismError {
    /// One CamelCase word for a condition.
    pub fn reason(&self) -> &'static str {
        match self {
            PrismError::Setup { .. } => "PrismMisconfigured",
            PrismError::Unreachable { .. } => "PrismUnreachable",
            PrismError::Unauthorized { .. } => "PrismUnauthorized",
            PrismError::NotFound { .. } => "PrismNotFound",
            PrismError::TooOld { .. } => "PrismTooOld",
            PrismError::Ambiguous { .. } => "PlacementAmbiguous",
            PrismError::PreconditionFailed { .. } => "PrismChanged",
            PrismError::Refused { .. } => "PrismRefused",
            PrismError::Malformed { .. } => "PrismMalformed",
        }
    }
}
