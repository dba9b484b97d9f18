//! A git server over http or https: `git http-backend`, git's own, behind a small web server that checks the password.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use axum_server::tls_rustls::RustlsConfig;
use base64::Engine;
use tokio::io::AsyncWriteExt;

use crate::https::Authority;

/// How a server is set up.
#[derive(Clone, Debug)]
pub struct GitConfig {
    /// Path and text of the files in the first commit.
    pub seed_files: Vec<(String, String)>,
    pub username: String,
    pub password: String,
}

/// A running server with one repository. Dropping it stops it.
pub struct GitServer {
    repository: PathBuf,
    url: String,
    ca_pem: Option<String>,
    access: Arc<Access>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for GitServer {
    fn drop(&mut self) {
        // A runtime that is dropped waits for its threads, which panics inside of another runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Access {
    root: PathBuf,
    authorization: String,
    /// What happens before the next push is looked at.
    before_push: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl GitServer {
    /// Makes a bare repository with a first commit on `main` and serves it over http.
    pub fn start(dir: &Path, config: GitConfig) -> Result<Self> {
        Self::start_with(dir, config, None)
    }

    /// The same over https, with a certificate of an authority of its own.
    pub fn start_tls(dir: &Path, config: GitConfig) -> Result<Self> {
        Self::start_with(dir, config, Some(Authority::new("Lab git CA")?))
    }

    fn start_with(dir: &Path, config: GitConfig, authority: Option<Authority>) -> Result<Self> {
        let repository = dir.join("machines.git");
        git(dir, &["init", "--quiet", "--bare", "--initial-branch=main", "machines.git"])?;
        git(&repository, &["config", "http.receivepack", "true"])?;
        seed(dir, &config.seed_files)?;
        let token =
            base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", config.username, config.password));
        let authorization = format!("Basic {token}");
        let access = Arc::new(Access { root: dir.to_owned(), authorization, before_push: Mutex::default() });
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let app = axum::Router::new().fallback(serve).with_state(access.clone());
        let scheme = if authority.is_some() { "https" } else { "http" };
        let ca_pem = authority.as_ref().map(Authority::pem);
        match authority {
            None => drop(runtime.spawn(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("it is a non-blocking listener");
                let _ = axum::serve(listener, app).await;
            })),
            Some(authority) => {
                let _ = rustls::crypto::ring::default_provider().install_default();
                let certificate = authority.server("git")?;
                std::fs::write(dir.join("ca.pem"), authority.pem())?;
                runtime.spawn(async move {
                    let (pem, key) = (certificate.certificate_pem.into(), certificate.key_pem.into());
                    let tls = RustlsConfig::from_pem(pem, key).await.expect("the lab's own certificate is valid");
                    let server = axum_server::from_tcp_rustls(listener, tls).expect("it is a non-blocking listener");
                    let _ = server.serve(app.into_make_service()).await;
                });
            }
        }
        let url = format!("{scheme}://{address}/machines.git");
        Ok(Self { repository, url, ca_pem, access, runtime: Some(runtime) })
    }

    /// URL of the repository, without credentials.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// The authority that signed its certificate, PEM; `None` = it serves http.
    pub fn ca_pem(&self) -> Option<&str> {
        self.ca_pem.as_deref()
    }

    /// Where that is.
    pub fn ca_path(&self) -> PathBuf {
        self.repository.with_file_name("ca.pem")
    }

    /// The bare repository.
    pub fn repository(&self) -> &Path {
        &self.repository
    }

    /// The newest commit of `main`.
    pub fn head(&self) -> Result<String> {
        Ok(git(&self.repository, &["rev-parse", "main"])?.trim().to_owned())
    }

    /// A file's text on `main`.
    pub fn file(&self, path: &str) -> Result<String> {
        git(&self.repository, &["show", &format!("main:{path}")])
    }

    /// Number of commits on `main`.
    pub fn commit_count(&self) -> Result<usize> {
        Ok(git(&self.repository, &["rev-list", "--count", "main"])?.trim().parse()?)
    }

    /// From now on pushes are refused with this message; `None` = accepted again.
    pub fn refuse_pushes(&self, message: Option<&str>) -> Result<()> {
        match message {
            None => Ok(std::fs::remove_file(self.repository.join("hooks/pre-receive"))?),
            Some(message) => self.set_hook("pre-receive", &format!("echo '{message}' >&2\nexit 1\n")),
        }
    }

    /// Has the server run a script of the shell at one of git's hooks.
    pub fn set_hook(&self, name: &str, script: &str) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let hook = self.repository.join("hooks").join(name);
        std::fs::write(&hook, format!("#!/bin/sh\n{script}"))?;
        Ok(std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755))?)
    }

    /// Has something happen when the next one who pushes has fetched, and before the server tells where its branches are.
    pub fn before_next_push(&self, what: impl FnOnce() + Send + 'static) {
        *self.access.before_push.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(what));
    }

    /// Commits a file as somebody else would.
    pub fn commit_by_hand(&self, path: &str, text: &str) -> Result<()> {
        let dir = tempfile::tempdir()?;
        git(dir.path(), &["clone", "--quiet", &self.repository.display().to_string(), "work"])?;
        commit(&dir.path().join("work"), &[(path.to_owned(), text.to_owned())])
    }
}

/// Runs git and returns what it prints.
pub fn git(dir: &Path, arguments: &[&str]) -> Result<String> {
    let output = std::process::Command::new("git")
        .current_dir(dir)
        .args(["-c", "user.name=Lab", "-c", "user.email=lab@localhost.invalid"])
        .args(arguments)
        .output()
        .context("run git")?;
    ensure!(output.status.success(), "git {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn seed(dir: &Path, files: &[(String, String)]) -> Result<()> {
    git(dir, &["clone", "--quiet", "machines.git", "seed"])?;
    let work = dir.join("seed");
    git(&work, &["checkout", "--quiet", "-B", "main"])?;
    commit(&work, files)
}

fn commit(work: &Path, files: &[(String, String)]) -> Result<()> {
    for (path, text) in files {
        let file = work.join(path);
        std::fs::create_dir_all(file.parent().context("a path in a repository has a parent")?)?;
        std::fs::write(file, text)?;
    }
    git(work, &["add", "--all"])?;
    git(work, &["commit", "--quiet", "--message", "By hand"])?;
    git(work, &["push", "--quiet", "origin", "main"])?;
    Ok(())
}

async fn serve(State(access): State<Arc<Access>>, request: Request) -> Response {
    let given = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    if given != Some(access.authorization.as_str()) {
        return (StatusCode::UNAUTHORIZED, [("www-authenticate", "Basic realm=\"git\"")], "who are you?")
            .into_response();
    }
    // As GitLab does for a URL without its ending.
    let uri = request.uri();
    if let (Some(rest), query) = (uri.path().strip_prefix("/machines/"), uri.query().unwrap_or_default()) {
        return Redirect::permanent(&format!("/machines.git/{rest}?{query}")).into_response();
    }
    if uri.query() == Some("service=git-receive-pack") {
        let before = access.before_push.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(before) = before {
            let _ = tokio::task::spawn_blocking(before).await;
        }
    }
    match backend(&access.root, request).await {
        Ok(response) => response,
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")).into_response(),
    }
}

/// One request through `git http-backend`, by the rules of CGI.
async fn backend(root: &Path, request: Request) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let body: Bytes = axum::body::to_bytes(body, 64 << 20).await?;
    let header =
        |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let mut child = tokio::process::Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REMOTE_USER", "lab")
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("PATH_INFO", parts.uri.path())
        .env("QUERY_STRING", parts.uri.query().unwrap_or_default())
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("start git http-backend")?;
    let mut stdin = child.stdin.take().context("stdin is piped")?;
    let writes = tokio::spawn(async move {
        // A backend that has read enough closes its end.
        let _ = stdin.write_all(&body).await;
    });
    let output = child.wait_with_output().await?;
    writes.await?;
    cgi_response(&output.stdout)
}

fn cgi_response(output: &[u8]) -> Result<Response> {
    let end = output.windows(4).position(|window| window == b"\r\n\r\n").context("git http-backend sent no headers")?;
    let mut status = StatusCode::OK;
    let mut headers = HeaderMap::new();
    for line in std::str::from_utf8(&output[..end])?.split("\r\n") {
        let (name, value) = line.split_once(": ").with_context(|| format!("header {line:?}"))?;
        if name.eq_ignore_ascii_case("status") {
            status = StatusCode::from_bytes(&value.as_bytes()[..3])?;
        } else {
            headers.append(HeaderName::from_bytes(name.as_bytes())?, HeaderValue::from_str(value)?);
        }
    }
    let mut response = Response::new(Body::from(output[end + 4..].to_vec()));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}
