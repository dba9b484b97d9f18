//! The two ports, and what every call passes before it reaches a handler: the log, the credentials, the switches, the version.

use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::store::{Call, Intent, Store};
use super::v4::Refusal;
use super::{central, element};
use crate::https::{Server, ServerCertificate};

/// What the gate in front of the handlers needs.
pub struct Gate {
    pub store: Arc<Store>,
    /// The `Authorization` header that lets one in.
    pub basic: String,
    /// Accepted as `X-ntnx-api-key` by Prism Central.
    pub api_key: String,
    pub log: Mutex<File>,
}

/// The header value that belongs to a user and a password.
pub fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", BASE64.encode(format!("{username}:{password}")))
}

/// Prism Central on a port of its own.
pub fn central(gate: Arc<Gate>, certificate: ServerCertificate) -> Result<Server> {
    let inner = central::router(gate.store.clone()).layer(from_fn_with_state(gate.clone(), served_version));
    Server::start("prism-central", inner.layer(from_fn_with_state(gate, enter)), certificate)
}

/// Prism Element on a port of its own.
pub fn element(gate: Arc<Gate>, certificate: ServerCertificate) -> Result<Server> {
    let inner = element::router(gate.store.clone());
    Server::start("prism-element", inner.layer(from_fn_with_state(gate, enter)), certificate)
}

/// Notes the call, checks the credentials and throws the switches.
async fn enter(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    let intent = Intent {
        method: request.method().to_string(),
        path: request.uri().path_and_query().map_or_else(String::new, ToString::to_string),
        request_id: text(request.headers(), "ntnx-request-id"),
        if_match: text(request.headers(), "if-match"),
    };
    let switches = &gate.store.switches;
    switches.call_begins();
    tokio::time::sleep(switches.answer_delay()).await;
    let changes = matches!(*request.method(), Method::POST | Method::PUT | Method::DELETE);
    let response = if !gate.admits(request.headers()) {
        Refusal::Unauthorized.into_response()
    } else if let Some(status) = switches.take_refusal() {
        Refusal::Switched(status, switches.retry_after()).into_response()
    } else {
        request.extensions_mut().insert(intent.clone());
        let response = next.run(request).await;
        let lost = changes && response.status() == StatusCode::ACCEPTED && switches.take_loss();
        if lost { Refusal::Switched(StatusCode::SERVICE_UNAVAILABLE, None).into_response() } else { response }
    };
    switches.call_ends();
    gate.note(intent, response.status());
    response
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

impl Gate {
    fn admits(&self, headers: &HeaderMap) -> bool {
        text(headers, header::AUTHORIZATION.as_str()).is_some_and(|given| given == self.basic)
            || text(headers, "x-ntnx-api-key").is_some_and(|given| given == self.api_key)
    }

    fn note(&self, intent: Intent, status: StatusCode) {
        let Intent { method, path, request_id, if_match } = intent;
        let line = format!(
            "{} {method} {path} {} request-id={} if-match={}\n",
            jiff::Timestamp::now(),
            status.as_u16(),
            request_id.as_deref().unwrap_or("-"),
            if_match.as_deref().unwrap_or("-"),
        );
        let _ = self.log.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes());
        let call = Call { method, path, request_id, if_match, status: status.as_u16() };
        self.store.raw_state().calls.push(call);
    }
}

/// Lets through `v4.N` up to the newest minor that is served, and the paths that have no version.
async fn served_version(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    if request.uri().path().starts_with("/api/nutanix/v3/") {
        return next.run(request).await;
    }
    if gate.store.switches.v4_is_gone() {
        return Refusal::Switched(StatusCode::NOT_FOUND, None).into_response();
    }
    let path = request.uri().path();
    let version = path.split('/').nth(3).unwrap_or_default();
    let minor = version.strip_prefix("v4.").and_then(|minor| minor.parse::<u32>().ok());
    let switches = &gate.store.switches;
    let served = version == "unversioned" || minor.is_some_and(|minor| minor <= switches.max_minor());
    if served { next.run(request).await } else { Refusal::NotFound(request.uri().path().to_owned()).into_response() }
}
