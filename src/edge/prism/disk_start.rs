//! The start of a disk as AHV itself reads it: API v3, on Prism Central and on Prism Element.
//!
//! `GET /vms/{vm}/vm_disk/{device uuid}/data` is marked as internal in the API's description: it may be missing, and it reads no further
//! than the first 32 MiB. It is a second way to the same bytes, and so a check of the first; it is no way to copy.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::http::{Call, Server};
use super::{PrismCentral, PrismElement, PrismError};

/// The first bytes of each of a VM's disks, by the disk's identifier.
type Starts = Vec<(String, Vec<u8>)>;

async fn read_all(server: &Server, vm_uuid: &str, disks: &[&str], bytes: usize) -> Result<Starts, PrismError> {
    let mut starts = Vec::new();
    for disk in disks {
        starts.push(((*disk).to_owned(), read(server, vm_uuid, disk, bytes).await?));
    }
    Ok(starts)
}

async fn read(server: &Server, vm_uuid: &str, device_uuid: &str, bytes: usize) -> Result<Vec<u8>, PrismError> {
    let path = format!("/api/nutanix/v3/vms/{vm_uuid}/vm_disk/{device_uuid}/data");
    let malformed = |why: String| PrismError::Malformed { tried: format!("GET {path}"), why };
    let length = bytes.to_string();
    let query = [("offset", "0"), ("length", length.as_str())];
    let answer = server.call(&Call { is_text: true, ..Call::get(&path, &query) }).await?;
    let text = answer.body.as_str().unwrap_or_default().trim().trim_matches('"');
    let data = STANDARD.decode(text).map_err(|error| malformed(format!("not base64: {error}")))?;
    if data.len() == bytes { Ok(data) } else { Err(malformed(format!("{} bytes, asked were {bytes}", data.len()))) }
}

impl PrismCentral {
    /// The first bytes of each of a VM's disks.
    pub async fn disk_starts(&self, vm_uuid: &str, disks: &[&str], bytes: usize) -> Result<Starts, PrismError> {
        read_all(&self.server, vm_uuid, disks, bytes).await
    }
}

impl PrismElement {
    /// The first bytes of each of a VM's disks.
    pub async fn disk_starts(&self, vm_uuid: &str, disks: &[&str], bytes: usize) -> Result<Starts, PrismError> {
        read_all(&self.server, vm_uuid, disks, bytes).await
    }
}
