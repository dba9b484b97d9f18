//! git over http(s): one request for the branches, one for each exchange after that.

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use git2::transport::{Service, SmartSubtransport, SmartSubtransportStream};
use reqwest::blocking::{Client, RequestBuilder, Response};
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Certificate, StatusCode, Url, header};

use super::GitError;
use super::transport::{ANSWER_LIMIT, CONNECT_LIMIT, Server, Told};
use crate::edge::http::causes;

/// Below the repository's URL: its branches.
const BRANCHES: &str = "/info/refs";
/// Redirects that are followed in a row.
const REDIRECTS: usize = 5;

/// A connection to a repository's server.
pub struct Http {
    server: Arc<Server>,
    client: Client,
    /// The repository's URL without a slash at its end; where a redirect led to, if there was one.
    base: Mutex<String>,
}

impl Http {
    /// Certificates are always checked: against `ca.crt` if given, else against the public authorities.
    pub fn new(server: Arc<Server>, url: &Url) -> Result<Self, GitError> {
        let failed = |why: &str| server.failed("prepare to connect", why);
        let mut builder = Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            .timeout(ANSWER_LIMIT)
            .redirect(Policy::custom(stay_on_the_server));
        if let Some(pem) = &server.access.ca {
            let certificates = Certificate::from_pem_bundle(pem.as_bytes())
                .map_err(|error| failed(&format!("ca.crt of the Secret holds no certificates: {error}")))?;
            builder = builder.tls_certs_only(certificates);
        }
        let client = builder.build().map_err(|error| failed(&causes(&error)))?;
        let base = Mutex::new(url.as_str().trim_end_matches('/').to_owned());
        Ok(Self { server, client, base })
    }

    fn base(&self) -> std::sync::MutexGuard<'_, String> {
        self.base.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for the branches.
    fn branches(&self, service: &str) -> Result<Response, GitError> {
        let request = self.client.get(format!("{}{BRANCHES}?service={service}", self.base()));
        let response = send(&self.server, request, &format!("application/x-{service}-advertisement"))?;
        let mut reached = response.url().clone();
        reached.set_query(None);
        if let Some(base) = reached.as_str().strip_suffix(BRANCHES) {
            base.clone_into(&mut self.base());
        }
        Ok(response)
    }

    fn exchange(&self, service: &str) -> Exchange {
        let request = self
            .client
            .post(format!("{}/{service}", self.base()))
            .header(header::CONTENT_TYPE, format!("application/x-{service}-request"));
        let expected = format!("application/x-{service}-result");
        let state = State::Gathers { request: Some(request), body: Vec::new() };
        Exchange { server: self.server.clone(), expected, state }
    }
}

impl SmartSubtransport for Http {
    fn action(&self, _url: &str, service: Service) -> Result<Box<dyn SmartSubtransportStream>, git2::Error> {
        let server = self.server.clone();
        let branches = |service| match self.branches(service) {
            Ok(response) => {
                Ok(Exchange { server: server.clone(), expected: String::new(), state: State::Answers(response) })
            }
            Err(error) => Err(server.note_failure(error)),
        };
        let stream = match service {
            Service::UploadPackLs => branches("git-upload-pack")?,
            Service::ReceivePackLs => branches("git-receive-pack")?,
            Service::UploadPack => self.exchange("git-upload-pack"),
            Service::ReceivePack => self.exchange("git-receive-pack"),
        };
        Ok(Box::new(Told { server, stream }))
    }

    fn close(&self) -> Result<(), git2::Error> {
        Ok(())
    }
}

/// One request with its answer: what is written is sent when the answer is read.
struct Exchange {
    server: Arc<Server>,
    expected: String,
    state: State,
}

enum State {
    Gathers { request: Option<RequestBuilder>, body: Vec<u8> },
    Answers(Response),
}

impl Read for Exchange {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let State::Gathers { request, body } = &mut self.state {
            let request = request.take().ok_or(io::ErrorKind::NotConnected)?.body(std::mem::take(body));
            let response = send(&self.server, request, &self.expected);
            self.state = State::Answers(response.map_err(|error| {
                self.server.note_failure(error);
                io::Error::from(io::ErrorKind::Other)
            })?);
        }
        match &mut self.state {
            State::Answers(response) => response.read(buffer),
            State::Gathers { .. } => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl Write for Exchange {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match &mut self.state {
            State::Gathers { body, .. } => body.write(buffer),
            State::Answers(_) => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Credentials go to the server that they are for, and to no other.
fn stay_on_the_server(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let same = attempt.previous().first().is_some_and(|first| first.origin() == attempt.url().origin());
    if same && attempt.previous().len() <= REDIRECTS { attempt.follow() } else { attempt.stop() }
}

fn send(server: &Server, mut request: RequestBuilder, expected: &str) -> Result<Response, GitError> {
    let password = server.access.password.as_ref();
    if let Some((username, password)) = password {
        request = request.basic_auth(username, Some(password));
    }
    let failed = |why: &str| server.failed("ask the server", why);
    let response = request.send().map_err(|error| failed(&causes(&error.without_url())))?;
    let content_type = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    match response.status() {
        StatusCode::OK if content_type == Some(expected) => Ok(response),
        StatusCode::OK => Err(failed("it answers, but not as a git server does: is this the repository's URL?")),
        StatusCode::UNAUTHORIZED if password.is_none() => Err(unauthorized(
            server,
            "the server asks for a user name and a password: put username and password into the TerraformRepository's Secret",
        )),
        StatusCode::UNAUTHORIZED => {
            Err(unauthorized(server, "user name or password is refused: check the TerraformRepository's Secret"))
        }
        StatusCode::FORBIDDEN => Err(unauthorized(
            server,
            &said("the TerraformRepository's Secret does not allow it: give its user write access", response),
        )),
        StatusCode::NOT_FOUND => {
            Err(failed("there is no repository, or none that the Secret's user may see (HTTP 404)"))
        }
        status if status.is_redirection() => {
            Err(failed(&format!("it redirects to {}: if that is the repository, give that URL", location(&response))))
        }
        status => Err(failed(&said(&format!("HTTP {status}"), response))),
    }
}

fn unauthorized(server: &Server, why: &str) -> GitError {
    GitError::Unauthorized { url: server.url.clone(), why: why.into() }
}

/// `what`, and the server's own words if it answers in plain text.
fn said(what: &str, response: Response) -> String {
    let is_plain =
        response.headers().get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/plain"));
    let words = response.text().ok().filter(|_| is_plain).unwrap_or_default();
    let words: String = words.trim().chars().filter(|c| !c.is_control()).take(300).collect();
    if words.is_empty() { what.into() } else { format!("{what}: {words}") }
}

/// The repository that a redirect leads to, without what could be a secret.
fn location(response: &Response) -> String {
    let target = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
    let Some(mut target) = target.and_then(|target| response.url().join(target).ok()) else { return "nowhere".into() };
    target.set_query(None);
    // No URL of http(s) refuses this.
    let _ = (target.set_username(""), target.set_password(None));
    target.as_str().trim_end_matches(BRANCHES).to_owned()
}
