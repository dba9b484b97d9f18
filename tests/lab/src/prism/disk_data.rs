//! The one call of the v3 API that is simulated, on both ports: the first bytes of a disk, in base64. The real one is marked as internal.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::json;

use super::store::Store;
use super::switches::DiskData;

/// Neither offset nor length may be larger.
const LIMIT: u64 = 16 << 20;

/// The route.
pub fn router(store: Arc<Store>) -> Router {
    Router::new().route("/api/nutanix/v3/vms/{vm}/vm_disk/{disk}/data", get(read)).with_state(store)
}

fn refusal(status: StatusCode, reason: &str, message: &str) -> Response {
    let body = json!({
        "api_version": "3.1", "code": status.as_u16(), "kind": "vm", "state": "ERROR",
        "message_list": [{ "message": message, "reason": reason, "details": {} }],
    });
    (status, Json(body)).into_response()
}

async fn read(
    State(store): State<Arc<Store>>,
    Path((vm, disk)): Path<(String, String)>,
    Query(params): Query<HashMap<String, String>>,
) -> Response {
    let served = store.switches.disk_data();
    if let DiskData::Refused(status) = served {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::NOT_FOUND);
        return refusal(status, "SWITCHED", "the simulator was told not to offer this");
    }
    let number = |key: &str| params.get(key).and_then(|text| text.parse::<u64>().ok());
    let (Some(offset), Some(length)) = (number("offset"), number("length")) else {
        return refusal(StatusCode::UNPROCESSABLE_ENTITY, "INVALID_REQUEST", "offset and length are required");
    };
    if offset > LIMIT || length > LIMIT {
        let message = format!("offset and length may be {LIMIT} at most");
        return refusal(StatusCode::UNPROCESSABLE_ENTITY, "INVALID_REQUEST", &message);
    }
    let path = {
        let state = store.state();
        let found = state.vms.get(&vm).and_then(|vm| vm.disks.iter().find(|found| found.device_uuid == disk));
        found.map(|disk| store.disk_path(disk))
    };
    let Some(path) = path else {
        return refusal(StatusCode::NOT_FOUND, "ENTITY_NOT_FOUND", &format!("VM {vm} has no disk {disk}"));
    };
    let mut data = vec![0; usize::try_from(length).unwrap_or_default()];
    if served == DiskData::OfTheDisk {
        let whole = File::open(&path).and_then(|file| file.read_exact_at(&mut data, offset));
        if let Err(error) = whole {
            return refusal(StatusCode::UNPROCESSABLE_ENTITY, "INVALID_REQUEST", &error.to_string());
        }
    }
    BASE64.encode(data).into_response()
}
