//! Nutanix Prism: the v4 API of Prism Central, the one call of the v2 API of Prism Element that tells a disk's path on the storage, and the
//! one call of the v3 API that reads a disk's first bytes.
//!
//! Thin: a method is a call. Shapes follow Nutanix's v4 SDKs (vmm 4.2, prism, clustermgmt, networking) and were checked with them.

mod central;
mod disk_start;
mod element;
mod http;

pub use central::{GuestTools, PowerState, PrismCentral, StorageContainer, TaskState, Vm, VmDisk, VmNic};
pub use element::{ElementDisk, PrismElement};
pub use http::{Access, Credentials};

/// Why a call to Prism did not succeed. Each names the server and what was tried.
#[derive(Debug, thiserror::Error)]
pub enum PrismError {
    #[error("{tried}: the client could not be set up: {why}")]
    Setup { tried: String, why: String },
    #[error("{tried}: no answer: {why}. Check the URL, the network and ca.crt in the Secret")]
    Unreachable { tried: String, why: String },
    #[error(
        "{tried}: user name, password or API key is refused: check the Secret that the NutanixCluster names (spec.prismCentral.credentials, spec.prismElement.credentials)"
    )]
    Unauthorized { tried: String },
    #[error("{tried}: forbidden: {message}. Give a role that may do this to the user in the NutanixCluster's Secret")]
    Forbidden { tried: String, message: String },
    /// `by_api`: the v4 API itself says so, in its own words.
    #[error("{tried}: not found")]
    NotFound { tried: String, by_api: bool },
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
    #[error("{tried}: not sent: Prism is busy, or asked not to be called for {seconds} s; it is tried again")]
    Busy { tried: String, seconds: u64 },
    #[error("{tried}: the answer is not what Prism's API describes: {why}")]
    Malformed { tried: String, why: String },
    #[error(
        "{tried}: this Prism Element does not have the v2 API (any more). Drover writes to the files behind a VM's disks over NFS, and no other API tells which files these are: without it nothing can be copied to this cluster"
    )]
    ElementV2Gone { tried: String },
}

impl PrismError {
    /// One CamelCase word for a condition.
    pub fn reason(&self) -> &'static str {
        match self {
            PrismError::Setup { .. } => "PrismMisconfigured",
            PrismError::Unreachable { .. } => "PrismUnreachable",
            PrismError::Unauthorized { .. } => "PrismUnauthorized",
            PrismError::Forbidden { .. } => "PrismForbidden",
            PrismError::NotFound { .. } => "PrismNotFound",
            PrismError::TooOld { .. } => "PrismTooOld",
            PrismError::Ambiguous { .. } => "PlacementAmbiguous",
            PrismError::PreconditionFailed { .. } => "PrismChanged",
            PrismError::Refused { .. } => "PrismRefused",
            PrismError::Busy { .. } => "PrismBusy",
            PrismError::Malformed { .. } => "PrismMalformed",
            PrismError::ElementV2Gone { .. } => "PrismElementV2Gone",
        }
    }

    /// The server is there, but does not offer this call, or not to this user: waiting does not help.
    pub fn is_not_offered(&self) -> bool {
        match self {
            PrismError::NotFound { .. } | PrismError::Forbidden { .. } => true,
            PrismError::Refused { status, .. } => matches!(status, 405 | 410 | 422 | 501),
            _ => false,
        }
    }
}
