//! One HTTP call to Prism: headers, statuses, errors, and patience with a server that says "later".

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, Method, StatusCode, Url};
use serde_json::Value;
use tokio::sync::Semaphore;

use super::PrismError;
use crate::edge::http;

/// The SDKs' own default.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection that nobody uses is kept: an order over one that the server has closed would be lost.
const KEPT_OPEN: Duration = Duration::from_secs(15);
/// Tries of a call that is answered with "later".
const TRIES: u32 = 4;
/// The first pause between tries; each is about twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// A caller that would have to wait longer is told so instead, and comes again by itself.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Whatever a server asks for, it is asked again after this time: it may have meant something else.
const LONGEST_SILENCE: Duration = Duration::from_secs(60);
/// Calls to one server at once. Nutanix publishes no limits; hundreds of machines in step ask for little.
const CALLS_AT_ONCE: usize = 8;

/// How a server lets one in.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    Password {
        username: String,
        password: String,
    },
    /// Sent as `X-ntnx-api-key`.
    ApiKey(String),
}

/// A server's address, and all that is needed to be let in.
#[derive(Clone, PartialEq, Eq)]
pub struct Access {
    /// Base URL.
    pub url: String,
    pub credentials: Credentials,
    /// The authorities to trust, PEM. Absent = the public ones.
    pub ca_pem: Option<String>,
}

/// A Prism API server with credentials. Clones share its limits.
#[derive(Clone)]
pub struct Server {
    client: Client,
    base: Url,
    credentials: Credentials,
    calls: Arc<Semaphore>,
    /// Until then it asked not to be called.
    silent_until: Arc<Mutex<Option<Instant>>>,
}

/// A call to be made.
#[derive(Clone)]
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
    /// The answer is plain text, not JSON.
    pub is_text: bool,
}

impl<'a> Call<'a> {
    /// A plain read.
    pub fn get(path: &'a str, query: &'a [(&'a str, &'a str)]) -> Self {
        Self { method: Method::GET, path, query, request_id: None, etag: None, body: None, is_text: false }
    }

    fn is_read(&self) -> bool {
        self.method == Method::GET || self.method == Method::OPTIONS
    }
}

/// An answer: its body, and the version of what it shows.
pub struct Answer {
    pub body: Value,
    pub etag: Option<String>,
}

impl Server {
    /// Certificates are always checked: against `ca_pem` if given, else against the public authorities.
    pub fn new(access: &Access) -> Result<Self, PrismError> {
        let failed = |why: String| PrismError::Setup { tried: format!("connect to {}", access.url), why };
        let base = Url::parse(&access.url).map_err(|error| failed(error.to_string()))?;
        let client = http::client(TIMEOUT, access.ca_pem.as_deref()).map_err(failed)?;
        let client = client.pool_idle_timeout(KEPT_OPEN).build().map_err(|error| failed(error.to_string()))?;
        Ok(Self {
            client,
            base,
            credentials: access.credentials.clone(),
            calls: Arc::new(Semaphore::new(CALLS_AT_ONCE)),
            silent_until: Arc::default(),
        })
    }

    /// Makes the call, and again when the server says "later" and that is safe.
    ///
    /// A change may be sent again because it bears the same request id: 429 was not looked at, and if one that was answered 503 or 504 was
    /// carried out after all, Prism answers the second with the task of the first. The vendor's SDKs send changes again on just these. After
    /// a 502 they do not, and one whose connection broke is left to the next turn: it is sent then if it is still wanted.
    pub async fn call(&self, call: &Call<'_>) -> Result<Answer, PrismError> {
        let mut pause = FIRST_PAUSE;
        for _ in 1..TRIES {
            match self.call_once(call).await {
                Err(PrismError::Refused { status: 429 | 503 | 504, .. })
                    if call.is_read() || call.request_id.is_some() => {}
                Err(PrismError::Refused { status: 502, .. }) if call.is_read() => {}
                other => return other,
            }
            tokio::time::sleep(jittered(pause)).await;
            pause *= 2;
        }
        self.call_once(call).await
    }

    async fn call_once(&self, call: &Call<'_>) -> Result<Answer, PrismError> {
        let tried = || self.tried(call);
        self.keep_silence(call).await?;
        let _permit = match tokio::time::timeout(TIMEOUT, self.calls.acquire()).await {
            Ok(permit) => permit.expect("the semaphore is never closed"),
            Err(_) => return Err(PrismError::Busy { tried: tried(), seconds: TIMEOUT.as_secs() }),
        };
        let mut url = self.base.clone();
        url.set_path(call.path);
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(call.query);
        }
        let random_id = uuid::Uuid::new_v4().to_string();
        let request = self.client.request(call.method.clone(), url);
        let mut request = match &self.credentials {
            Credentials::Password { username, password } => request.basic_auth(username, Some(password)),
            Credentials::ApiKey(key) => request.header("X-ntnx-api-key", key),
        };
        request = request
            .header("Accept", if call.is_text { "*/*" } else { "application/json" })
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
        let later = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        self.ask_for_silence(retry_after(response.headers()).filter(|_| later));
        let text = response.text().await.map_err(unreachable)?;
        match status {
            status if status.is_success() => {
                let body = match text.as_str() {
                    "" => Ok(Value::Null),
                    _ if call.is_text => Ok(Value::String(text)),
                    json => serde_json::from_str(json),
                };
                let body = body.map_err(|error| PrismError::Malformed { tried: tried(), why: error.to_string() })?;
                Ok(Answer { body, etag })
            }
            StatusCode::UNAUTHORIZED => Err(PrismError::Unauthorized { tried: tried() }),
            StatusCode::FORBIDDEN => Err(PrismError::Forbidden { tried: tried(), message: message(&text) }),
            StatusCode::NOT_FOUND => Err(PrismError::NotFound { tried: tried(), by_api: is_api_error(&text) }),
            StatusCode::PRECONDITION_FAILED => Err(PrismError::PreconditionFailed { tried: tried() }),
            status => Err(PrismError::Refused { tried: tried(), status: status.as_u16(), message: message(&text) }),
        }
    }

    fn tried(&self, call: &Call<'_>) -> String {
        format!("{} {}{}", call.method, self.base.as_str().trim_end_matches('/'), call.path)
    }

    /// Waits as long as the server asked for, if that is not long.
    async fn keep_silence(&self, call: &Call<'_>) -> Result<(), PrismError> {
        let until = *self.silent_until.lock().unwrap_or_else(PoisonError::into_inner);
        let left = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
        if left > LONGEST_WAIT {
            return Err(PrismError::Busy { tried: self.tried(call), seconds: left.as_secs() });
        }
        tokio::time::sleep(left).await;
        Ok(())
    }

    fn ask_for_silence(&self, asked: Option<Duration>) {
        if let Some(asked) = asked {
            let until = Instant::now() + asked.min(LONGEST_SILENCE);
            *self.silent_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
        }
    }
}

/// Between half of a pause and all of it: many callers that were refused together do not come again together.
fn jittered(pause: Duration) -> Duration {
    let share = u32::from(uuid::Uuid::new_v4().as_bytes()[0]);
    pause / 2 + pause / 2 * share / 255
}

/// How long a server asks to be left alone: seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    at.duration_since(Timestamp::now()).try_into().ok()
}

/// Whether the v4 API itself has answered, and not something in front of it.
fn is_api_error(text: &str) -> bool {
    let body: Value = serde_json::from_str(text).unwrap_or(Value::Null);
    !body["data"]["error"].is_null()
}

/// The words in an error body of v4, v3 or v2, or the start of whatever came.
fn message(text: &str) -> String {
    let body: Value = serde_json::from_str(text).unwrap_or(Value::Null);
    let error = &body["data"]["error"];
    let words = error[0]["message"]
        .as_str()
        .or(error["validationErrorMessages"][0]["message"].as_str())
        .or(error["error"].as_str())
        .or(body["message_list"][0]["message"].as_str())
        .or(body["message"].as_str());
    words.map_or_else(|| text.chars().take(300).collect(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_told_in_seconds_or_as_a_date() {
        let told = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().expect("a header"));
            retry_after(&headers)
        };
        assert_eq!(told("7"), Some(Duration::from_secs(7)));
        let hour = Timestamp::now() + jiff::SignedDuration::from_hours(1);
        let date = jiff::fmt::rfc2822::to_string(&hour.to_zoned(jiff::tz::TimeZone::UTC)).expect("a date");
        assert!(told(&date).is_some_and(|wait| wait > Duration::from_secs(3500)), "{date}");
        assert_eq!(told("Wed, 21 Oct 2015 07:28:00 GMT"), None, "that is over");
        assert_eq!(told("soon"), None);
    }

    #[test]
    fn pauses_differ_and_stay_within_their_bounds() {
        let pauses: std::collections::BTreeSet<Duration> = (0..50).map(|_| jittered(FIRST_PAUSE)).collect();
        assert!(pauses.len() > 1);
        assert!(pauses.iter().all(|pause| *pause >= FIRST_PAUSE / 2 && *pause <= FIRST_PAUSE), "{pauses:?}");
    }
}
