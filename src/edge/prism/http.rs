//! One HTTP call to Prism: headers, statuses, errors.

use std::time::Duration;

use reqwest::{Client, Method, StatusCode, Url};
use serde_json::Value;

use super::PrismError;
use crate::edge::http;

/// The SDKs' own default.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Tries of a read that is answered with "later".
const READ_TRIES: u32 = 4;

/// A Prism API server with credentials.
#[derive(Clone)]
pub struct Server {
    client: Client,
    base: Url,
    username: String,
    password: String,
}

/// A call to be made.
pub struct Call<'a> {
    pub method: Method,
    /// Path with its leading slash.
    pub path: &'a str,
    pub query: &'a [(&'a str, &'a str)],
    /// `NTNX-Request-Id`: the same for every try of the same intent.
    pub request_id: Option<&'a str>,
    /// `If-Match`.
    pub etag: Option<&'a str>,
    pub body: Option<&'a Value>,
}

impl<'a> Call<'a> {
    /// A plain read.
    pub fn get(path: &'a str, query: &'a [(&'a str, &'a str)]) -> Self {
        Self { method: Method::GET, path, query, request_id: None, etag: None, body: None }
    }
}

/// An answer: its body, and the version of what it shows.
pub struct Answer {
    pub body: Value,
    pub etag: Option<String>,
}

impl Server {
    /// Certificates are always checked: against `ca_pem` if given, else against the public authorities.
    pub fn new(url: &str, username: &str, password: &str, ca_pem: Option<&str>) -> Result<Self, PrismError> {
        let failed = |why: String| PrismError::Setup { tried: format!("connect to {url}"), why };
        let base = Url::parse(url).map_err(|error| failed(error.to_string()))?;
        let client = http::client(TIMEOUT, ca_pem).map_err(failed)?;
        let client = client.build().map_err(|error| failed(error.to_string()))?;
        Ok(Self { client, base, username: username.into(), password: password.into() })
    }

    /// Makes the call. Reads are repeated when the server says "later"; changes never: only the caller knows whether that is safe.
    pub async fn call(&self, call: &Call<'_>) -> Result<Answer, PrismError> {
        let tries = if call.method == Method::GET || call.method == Method::OPTIONS { READ_TRIES } else { 1 };
        let mut wait = Duration::from_millis(250);
        for _ in 1..tries {
            match self.call_once(call).await {
                Err(PrismError::Refused { status: 429 | 503 | 504, .. }) => tokio::time::sleep(wait).await,
                other => return other,
            }
            wait *= 2;
        }
        self.call_once(call).await
    }

    async fn call_once(&self, call: &Call<'_>) -> Result<Answer, PrismError> {
        let tried = || format!("{} {}{}", call.method, self.base.as_str().trim_end_matches('/'), call.path);
        let mut url = self.base.clone();
        url.set_path(call.path);
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(call.query);
        }
        let random_id = uuid::Uuid::new_v4().to_string();
        let mut request = self
            .client
            .request(call.method.clone(), url)
            .basic_auth(&self.username, Some(&self.password))
            .header("Accept", "application/json")
            .header("NTNX-Request-Id", call.request_id.unwrap_or(&random_id));
        if let Some(etag) = call.etag {
            request = request.header("If-Match", etag);
        }
        if let Some(body) = call.body {
            request = request.json(body);
        }
        let unreachable = |error: reqwest::Error| PrismError::Unreachable { tried: tried(), why: http::causes(&error) };
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let etag = response.headers().get("ETag").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let text = response.text().await.map_err(unreachable)?;
        match status {
            status if status.is_success() => {
                let body = if text.is_empty() { Ok(Value::Null) } else { serde_json::from_str(&text) };
                let body = body.map_err(|error| PrismError::Malformed { tried: tried(), why: error.to_string() })?;
                Ok(Answer { body, etag })
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(PrismError::Unauthorized { tried: tried() }),
            StatusCode::NOT_FOUND => Err(PrismError::NotFound { tried: tried() }),
            StatusCode::PRECONDITION_FAILED => Err(PrismError::PreconditionFailed { tried: tried() }),
            status => Err(PrismError::Refused { tried: tried(), status: status.as_u16(), message: message(&text) }),
        }
    }
}

/// The words in a v4 error body, or the start of whatever came.
fn message(text: &str) -> String {
    let body: Value = serde_json::from_str(text).unwrap_or(Value::Null);
    let error = &body["data"]["error"];
    let words = error[0]["message"]
        .as_str()
        .or(error["validationErrorMessages"][0]["message"].as_str())
        .or(error["error"].as_str());
    words.map_or_else(|| text.chars().take(300).collect(), str::to_owned)
}
