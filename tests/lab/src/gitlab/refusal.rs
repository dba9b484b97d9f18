//! Calls that are not carried out, in the several ways in which GitLab's parts say so.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::switches;

/// A status and a body.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    body: Value,
}

impl Refusal {
    fn message(status: StatusCode, message: impl Into<Value>) -> Self {
        Self { status, body: json!({ "message": message.into() }) }
    }

    /// No token, or none that is known.
    pub fn unauthorized() -> Self {
        Self::message(StatusCode::UNAUTHORIZED, "401 Unauthorized")
    }

    /// The token's scope does not reach so far.
    pub fn scope() -> Self {
        let body = json!({
            "error": "insufficient_scope",
            "error_description": "The request requires higher privileges than provided by the access token.",
            "scope": "api",
        });
        Self { status: StatusCode::FORBIDDEN, body }
    }

    /// The user's role does not reach so far.
    pub fn forbidden(why: Option<&str>) -> Self {
        let why = why.map_or_else(String::new, |why| format!(" - {why}"));
        Self::message(StatusCode::FORBIDDEN, format!("403 Forbidden{why}"))
    }

    /// There is none, or none for this user.
    pub fn not_found(what: &str) -> Self {
        let what = if what.is_empty() { String::new() } else { format!("{what} ") };
        Self::message(StatusCode::NOT_FOUND, format!("404 {what}Not Found"))
    }

    pub fn bad_request(why: &str) -> Self {
        Self::message(StatusCode::BAD_REQUEST, why)
    }

    /// A parameter is missing or wrong.
    pub fn parameter(why: &str) -> Self {
        Self { status: StatusCode::BAD_REQUEST, body: json!({ "error": why }) }
    }

    pub fn conflict(why: String) -> Self {
        Self::message(StatusCode::CONFLICT, json!([why]))
    }

    pub fn unprocessable(why: &str) -> Self {
        Self::message(StatusCode::UNPROCESSABLE_ENTITY, why)
    }

    /// The real one has this, the simulator has not.
    pub fn not_simulated(what: &str) -> Self {
        Self::message(StatusCode::NOT_IMPLEMENTED, format!("{what} is not simulated"))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}

/// What a switch makes of a call: as the proxy in front of GitLab answers, not in JSON.
pub fn switched(refusal: switches::Refusal) -> Response {
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let text = if status == StatusCode::TOO_MANY_REQUESTS { "Retry later\n" } else { "GitLab is not responding\n" };
    let mut response = (status, text).into_response();
    if let Some(seconds) = refusal.retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
