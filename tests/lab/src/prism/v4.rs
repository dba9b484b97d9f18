//! The words of the v4 API: the envelope around every answer, and its error bodies.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde_json::{Value, json};

/// The revision of the v4 format that answers bear.
const FORMAT: &str = "v4.r2";

/// Why a call was not accepted.
#[derive(Debug)]
pub enum Refusal {
    /// 401: neither good basic credentials nor the API key.
    Unauthorized,
    /// 404: no such entity.
    NotFound(String),
    /// 400: the body breaks the schema; pairs of attribute path and message.
    Schema(Vec<(String, String)>),
    /// 400: the request makes no sense here.
    Invalid(String),
    /// 412: If-Match is missing or names an older state of this entity.
    EtagMismatch { what: String, given: Option<String> },
    /// 501: the real one has this, the simulator has not.
    NotSimulated(String),
    /// A switch was thrown; what the server in front of the API says, with `Retry-After` in seconds.
    Switched(StatusCode, Option<u64>),
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Schema(_) | Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::EtagMismatch { .. } => StatusCode::PRECONDITION_FAILED,
            Self::NotSimulated(_) => StatusCode::NOT_IMPLEMENTED,
            Self::Switched(status, _) => *status,
        }
    }

    fn errors(&self) -> Value {
        match self {
            Self::Schema(found) => schema_error(found),
            Self::Unauthorized => {
                app_messages("SIM-401", "AUTHENTICATION_REQUIRED", "Authentication required or access denied")
            }
            Self::NotFound(what) => app_messages("SIM-404", "ENTITY_NOT_FOUND", &format!("{what} was not found")),
            Self::Invalid(why) => app_messages("SIM-400", "INVALID_ARGUMENT", why),
            Self::EtagMismatch { what, given } => {
                let given = given.as_deref().unwrap_or("(none)");
                let message = format!(
                    "If-Match header value passed, {given}, is not the current ETag of {what}: read it again and retry"
                );
                app_messages("VMM-30303", "VM_ETAG_MISMATCH", &message)
            }
            Self::NotSimulated(what) => app_messages("SIM-501", "NOT_IMPLEMENTED", &format!("{what} is not simulated")),
            Self::Switched(status, _) => {
                let reason = status.canonical_reason().unwrap_or_default();
                app_messages(&format!("SIM-{}", status.as_u16()), "SWITCHED", reason)
            }
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        if let Self::Switched(StatusCode::NOT_FOUND, _) = self {
            // A gateway has never heard of the API's error format.
            return (StatusCode::NOT_FOUND, "<html><body>404 Not Found</body></html>").into_response();
        }
        let errors = self.errors();
        let variant =
            if errors.is_array() { "List<prism.v4.error.AppMessage>" } else { "prism.v4.error.SchemaValidationError" };
        let body = json!({
            "$dataItemDiscriminator": "prism.v4.error.ErrorResponse",
            "data": {
                "$reserved": { "$fv": FORMAT },
                "$objectType": "prism.v4.error.ErrorResponse",
                "$errorItemDiscriminator": variant,
                "error": errors,
            },
        });
        let mut response = (self.status(), Json(body)).into_response();
        if let Self::Switched(_, Some(seconds)) = self {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// A message as errors and failed tasks carry it. Codes that begin with SIM are the simulator's: the real ones are not known.
pub fn app_messages(code: &str, group: &str, message: &str) -> Value {
    json!([{
        "$objectType": "prism.v4.error.AppMessage",
        "message": message,
        "code": code,
        "locale": "en_US",
        "errorGroup": group,
        "severity": "ERROR",
    }])
}

fn schema_error(found: &[(String, String)]) -> Value {
    let messages: Vec<Value> = found
        .iter()
        .map(|(path, message)| {
            json!({
                "$objectType": "prism.v4.error.SchemaValidationErrorMessage",
                "location": "BODY", "attributePath": path, "message": message,
            })
        })
        .collect();
    json!({
        "$objectType": "prism.v4.error.SchemaValidationError",
        "timestamp": Timestamp::now().to_string(),
        "statusCode": 400,
        "error": "Request validation failed",
        "validationErrorMessages": messages,
    })
}

/// One entity. `kind` is its full v4 name; `answer` that of the envelope. The SDK for Go takes an ETag over only if both the
/// envelope and the entity have `$reserved`.
pub fn one(answer: &str, kind: &str, entity: Value, etag: Option<&str>) -> Response {
    let mut response = Json(envelope(answer, Some(typed(kind, entity)), None)).into_response();
    if let Some(etag) = etag.and_then(|text| HeaderValue::from_str(text).ok()) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
}

/// A page of entities. An empty list has no `data` at all.
pub fn many(answer: &str, kind: &str, entities: Vec<Value>, total: usize) -> Response {
    let list: Vec<Value> = entities.into_iter().map(|entity| typed(kind, entity)).collect();
    Json(envelope(answer, (!list.is_empty()).then_some(Value::Array(list)), Some(total))).into_response()
}

/// 202 with a reference to the task that does what was asked.
pub fn accepted(answer: &str, task: &str) -> Response {
    let reference = typed("prism.v4.config.TaskReference", json!({ "extId": task }));
    (StatusCode::ACCEPTED, Json(envelope(answer, Some(reference), None))).into_response()
}

fn envelope(answer: &str, data: Option<Value>, total: Option<usize>) -> Value {
    let mut metadata = json!({
        "$reserved": { "$fv": FORMAT },
        "$objectType": "common.v1.response.ApiResponseMetadata",
        "flags": [
            { "$objectType": "common.v1.config.Flag", "name": "hasError", "value": false },
            { "$objectType": "common.v1.config.Flag", "name": "isPaginated", "value": total.is_some() },
        ],
    });
    if let Some(total) = total {
        metadata["totalAvailableResults"] = json!(total);
    }
    let mut whole = json!({ "$reserved": { "$fv": FORMAT }, "$objectType": answer, "metadata": metadata });
    if let Some(data) = data {
        whole["data"] = data;
    }
    whole
}

/// Puts `$reserved` and `$objectType` on an entity.
pub fn typed(kind: &str, mut entity: Value) -> Value {
    entity["$reserved"] = json!({ "$fv": FORMAT });
    entity["$objectType"] = json!(kind);
    entity
}
