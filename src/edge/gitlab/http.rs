//! One HTTP call to GitLab: the token, pages, statuses, errors.

use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, LINK, RETRY_AFTER};
use reqwest::{Client, Method, Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{GitLabError, MAX_ANSWER_BYTES};
use crate::edge::http;

const TIMEOUT: Duration = Duration::from_secs(30);
/// Tries of a read that is answered with "later".
const READ_TRIES: u32 = 4;
/// The longest a read waits because the server said how long; who is to wait longer is told so.
const LONGEST_WAIT: Duration = Duration::from_secs(20);
/// The most that GitLab gives in one page.
const PER_PAGE: usize = 100;
const MAX_PAGES: usize = 100;

/// One project of a GitLab, with a token.
#[derive(Clone)]
pub struct Server {
    client: Client,
    /// `…/api/v4/projects/<project>`
    base: Url,
    token: String,
}

/// A call to be made.
struct Call<'a> {
    method: Method,
    /// Segments of the path below the project; each is encoded.
    path: &'a [&'a str],
    query: &'a [(&'a str, &'a str)],
    body: Option<&'a Value>,
}

/// An answer: its body, and the query of the next page.
struct Answer {
    body: Vec<u8>,
    next: Option<String>,
}

impl Server {
    /// The token goes as `Authorization: Bearer`, which GitLab takes for all its access tokens: it is not sent on when an artifact's
    /// download is redirected to another host. A `PRIVATE-TOKEN` header would be.
    pub fn new(url: &str, project: &str, token: &str, ca_pem: Option<&str>) -> Result<Self, GitLabError> {
        let failed = |why: String| GitLabError::Setup { tried: format!("connect to {url}"), why };
        let mut base = Url::parse(url).map_err(|error| failed(error.to_string()))?;
        base.path_segments_mut().map_err(|()| failed("this is no URL of a server".into()))?.pop_if_empty().extend([
            "api",
            "v4",
            "projects",
            project.trim_matches('/'),
        ]);
        // Secrets often end with a line feed.
        let token = token.trim();
        if token.is_empty() || token.contains(|letter: char| !letter.is_ascii_graphic()) {
            return Err(failed("the token is empty or has characters that no token has: check the Secret".into()));
        }
        let client = http::client(TIMEOUT, ca_pem).map_err(failed)?;
        let client = client.https_only(base.scheme() == "https").build().map_err(|error| failed(error.to_string()))?;
        Ok(Self { client, base, token: token.into() })
    }

    /// Reads one object.
    pub async fn get<T: DeserializeOwned>(&self, path: &[&str], query: &[(&str, &str)]) -> Result<T, GitLabError> {
        let call = Call { method: Method::GET, path, query, body: None };
        let answer = self.call(&call, self.url(&call)).await?;
        self.parse(&call, &answer.body)
    }

    /// Reads a file.
    pub async fn file(&self, path: &[&str]) -> Result<Vec<u8>, GitLabError> {
        let call = Call { method: Method::GET, path, query: &[], body: None };
        Ok(self.call(&call, self.url(&call)).await?.body)
    }

    /// Reads a list, page after page, until it has `at_most` items.
    pub async fn list<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        at_most: usize,
    ) -> Result<Vec<T>, GitLabError> {
        let per_page = at_most.clamp(1, PER_PAGE).to_string();
        let query: Vec<(&str, &str)> = query.iter().copied().chain([("per_page", per_page.as_str())]).collect();
        let call = Call { method: Method::GET, path, query: &query, body: None };
        let mut url = self.url(&call);
        let mut items = Vec::new();
        for _ in 0..MAX_PAGES {
            let answer = self.call(&call, url.clone()).await?;
            items.extend(self.parse::<Vec<T>>(&call, &answer.body)?);
            let Some(next) = answer.next.filter(|_| items.len() < at_most) else {
                items.truncate(at_most);
                return Ok(items);
            };
            url.set_query(Some(&next));
        }
        Err(self.malformed(&call, format!("it has more than {MAX_PAGES} pages")))
    }

    /// Changes something.
    pub async fn post(&self, path: &[&str], body: &Value) -> Result<Value, GitLabError> {
        let call = Call { method: Method::POST, path, query: &[], body: Some(body) };
        let answer = self.call(&call, self.url(&call)).await?;
        self.parse(&call, &answer.body)
    }

    fn url(&self, call: &Call<'_>) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.extend(call.path);
        }
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(call.query);
        }
        url
    }

    /// Makes the call. Reads are repeated when the server says "later"; changes never: only the caller knows whether that is safe.
    async fn call(&self, call: &Call<'_>, url: Url) -> Result<Answer, GitLabError> {
        let tries = if call.method == Method::GET { READ_TRIES } else { 1 };
        let mut wait = Duration::from_millis(250);
        for _ in 1..tries {
            let pause = match self.call_once(call, url.clone()).await {
                Err(GitLabError::TooManyRequests { after: Some(after), .. }) if after <= LONGEST_WAIT => after,
                Err(
                    GitLabError::TooManyRequests { after: None, .. } | GitLabError::Refused { status: 502..=504, .. },
                ) => wait,
                other => return other,
            };
            tokio::time::sleep(pause).await;
            wait *= 2;
        }
        self.call_once(call, url).await
    }

    async fn call_once(&self, call: &Call<'_>, url: Url) -> Result<Answer, GitLabError> {
        // The address a download was redirected to lets anybody in for a while, so no error shows it.
        let unreachable = |error: reqwest::Error| GitLabError::Unreachable {
            tried: self.tried(call),
            why: http::causes(&error.without_url()),
        };
        let mut request = self.client.request(call.method.clone(), url).bearer_auth(&self.token);
        if let Some(body) = call.body {
            request = request.json(body);
        }
        let mut response = request.send().await.map_err(unreachable)?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER_BYTES {
                return Err(GitLabError::TooLarge { tried: self.tried(call) });
            }
        }
        if response.status().is_success() {
            return Ok(Answer { body, next: next_page(&response) });
        }
        Err(self.refusal(call, response.status(), response.headers(), &String::from_utf8_lossy(&body)))
    }

    fn refusal(&self, call: &Call<'_>, status: StatusCode, headers: &HeaderMap, text: &str) -> GitLabError {
        let tried = self.tried(call);
        let message = message(text);
        match status {
            StatusCode::UNAUTHORIZED => GitLabError::Unauthorized { tried, message },
            StatusCode::FORBIDDEN => GitLabError::Forbidden { tried, message },
            StatusCode::NOT_FOUND => GitLabError::NotFound { tried, message },
            StatusCode::TOO_MANY_REQUESTS => {
                let seconds = text_of(headers, RETRY_AFTER).and_then(|value| value.trim().parse().ok());
                GitLabError::TooManyRequests { tried, after: seconds.map(Duration::from_secs) }
            }
            status => GitLabError::Refused { tried, status: status.as_u16(), message },
        }
    }

    fn parse<T: DeserializeOwned>(&self, call: &Call<'_>, body: &[u8]) -> Result<T, GitLabError> {
        serde_json::from_slice(body).map_err(|error| self.malformed(call, error.to_string()))
    }

    fn malformed(&self, call: &Call<'_>, why: String) -> GitLabError {
        GitLabError::Malformed { tried: self.tried(call), why }
    }

    fn tried(&self, call: &Call<'_>) -> String {
        format!("{} {}/{}", call.method, self.base, call.path.join("/"))
    }
}

fn text_of(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The query of the next page: what `Link` says, for it knows every kind of pages, else the page's number.
///
/// Only the query: the host in `Link` is the one in GitLab's own settings, which need not be the one we may send a token to.
fn next_page(response: &Response) -> Option<String> {
    let link = text_of(response.headers(), LINK).unwrap_or_default();
    let next = link.split(',').find(|link| link.contains("rel=\"next\""));
    let address = next.and_then(|link| link.split_once('<')?.1.split_once('>')).map(|(address, _)| address);
    if let Some(query) = address.and_then(|address| Some(Url::parse(address).ok()?.query()?.to_owned())) {
        return Some(query);
    }
    let page = text_of(response.headers(), HeaderName::from_static("x-next-page")).filter(|page| !page.is_empty())?;
    let mut url = response.url().clone();
    let others: Vec<(String, String)> =
        url.query_pairs().filter(|(name, _)| name != "page").map(|(name, value)| (name.into(), value.into())).collect();
    url.query_pairs_mut().clear().extend_pairs(others).append_pair("page", page);
    url.query().map(str::to_owned)
}

/// The words in an error body, which GitLab's parts write in three ways, or the start of whatever came.
fn message(text: &str) -> String {
    let body: Value = serde_json::from_str(text).unwrap_or(Value::Null);
    let words = match &body["message"] {
        Value::Null => body["error_description"].as_str().or(body["error"].as_str()).map(str::to_owned),
        Value::String(words) => Some(words.clone()),
        structured => Some(structured.to_string()),
    };
    words.unwrap_or_else(|| text.to_owned()).chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(url: &str, project: &str) -> Server {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Server::new(url, project, "glpat-1", None).expect("a server")
    }

    #[test]
    fn the_project_is_one_segment_below_whatever_path_the_server_has() {
        assert_eq!(
            server("https://example.com/gitlab/", "/vms/sub group/machines").base.as_str(),
            "https://example.com/gitlab/api/v4/projects/vms%2Fsub%20group%2Fmachines"
        );
        assert_eq!(server("https://example.com", "42").base.as_str(), "https://example.com/api/v4/projects/42");
    }

    #[test]
    fn a_token_that_no_header_can_carry_is_refused_without_being_shown() {
        let error = Server::new("https://example.com", "a/b", "glpat\n-secret", None).err().expect("an error");
        assert!(!error.to_string().contains("secret"), "{error}");
        assert!(Server::new("https://example.com", "a/b", "\n", None).is_err());
        let _ = rustls::crypto::ring::default_provider().install_default();
        assert_eq!(Server::new("https://example.com", "a/b", "glpat-1\n", None).expect("a server").token, "glpat-1");
    }

    #[test]
    fn errors_bodies_are_read_in_all_their_shapes() {
        assert_eq!(message(r#"{"message":"404 Project Not Found"}"#), "404 Project Not Found");
        assert_eq!(message(r#"{"message":["Another one exists: !5"]}"#), r#"["Another one exists: !5"]"#);
        assert_eq!(message(r#"{"error":"insufficient_scope","error_description":"More is needed"}"#), "More is needed");
        assert_eq!(message(r#"{"error":"scope is invalid"}"#), "scope is invalid");
        assert_eq!(message("<html>502</html>"), "<html>502</html>");
    }
}
