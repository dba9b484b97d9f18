//! The calls of the REST API v4 that the simulator knows.

use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Extension, Json, Router};
use serde_json::{Value, json};

use super::model::{Job, MergeRequest, Role, User};
use super::page::{Params, list, page, param};
use super::refusal::Refusal;
use super::store::{State as Kept, Store};
use super::{repository, work};

type Answer = Result<Response, Refusal>;
type Shared = State<Arc<Api>>;

const PROJECT: &str = "/api/v4/projects/{project}";

/// Every status that a filter may name.
const STATUSES: [&str; 12] = [
    "created",
    "waiting_for_resource",
    "preparing",
    "pending",
    "running",
    "success",
    "failed",
    "canceling",
    "canceled",
    "skipped",
    "manual",
    "scheduled",
];

/// What the handlers work on.
pub struct Api {
    pub store: Arc<Store>,
    /// Where the runner keeps the output of jobs.
    pub dir: PathBuf,
    /// In every address of the object storage: who has one may read.
    pub signature: String,
}

/// The routes of the API; who calls has been checked before a handler runs.
pub fn router(api: Arc<Api>) -> Router {
    let at = |path: &str| format!("{PROJECT}{path}");
    Router::new()
        .route("/api/v4/version", get(version))
        .route("/api/v4/user", get(who_am_i))
        .route(PROJECT, get(project))
        .route(&at("/pipelines"), get(pipelines))
        .route(&at("/pipelines/{pipeline}"), get(pipeline))
        .route(&at("/pipelines/{pipeline}/jobs"), get(pipeline_jobs))
        .route(&at("/pipelines/{pipeline}/cancel"), post(cancel_pipeline))
        .route(&at("/jobs/{job}"), get(job))
        .route(&at("/jobs/{job}/trace"), get(trace))
        .route(&at("/jobs/{job}/artifacts/{*path}"), get(artifact))
        .route(&at("/jobs/{job}/play"), post(play))
        .route(&at("/jobs/{job}/retry"), post(retry))
        .route(&at("/jobs/{job}/cancel"), post(cancel))
        .route(&at("/repository/merge_base"), get(merge_base))
        .route(&at("/merge_requests"), get(merge_requests).post(make_merge_request))
        .route(&at("/merge_requests/{iid}"), get(merge_request))
        .route(&at("/merge_requests/{iid}/merge"), put(merge))
        .fallback(unknown)
        .with_state(api)
}

/// The host that artifacts may be redirected to.
pub fn object_storage(api: Arc<Api>) -> Router {
    Router::new().route("/objects/{job}/{*path}", get(object)).with_state(api)
}

async fn unknown(method: Method, uri: Uri) -> Refusal {
    Refusal::not_simulated(&format!("{method} {}", uri.path()))
}

async fn version() -> Response {
    Json(json!({ "version": "18.4.0-ee", "revision": "simulated" })).into_response()
}

async fn who_am_i(State(api): Shared, Extension(user): Extension<User>) -> Response {
    Json(api.store.user_shape(&user.username)).into_response()
}

async fn project(State(api): Shared) -> Response {
    Json(api.store.project_shape()).into_response()
}

fn need(user: &User, role: Role) -> Result<(), Refusal> {
    if user.role >= role { Ok(()) } else { Err(Refusal::forbidden(None)) }
}

/// A filter whose value has to be one of these.
fn choice<'a>(params: &'a Params, name: &str, values: &[&str]) -> Result<Option<&'a str>, Refusal> {
    match param(params, name) {
        Some(value) if !values.contains(&value) => {
            Err(Refusal::parameter(&format!("{name} does not have a valid value")))
        }
        value => Ok(value),
    }
}

/// Clients write booleans in several ways.
fn is_true(text: &str) -> bool {
    ["true", "t", "yes", "y", "on", "1"].contains(&text.to_ascii_lowercase().as_str())
}

async fn pipelines(
    State(api): Shared,
    Extension(user): Extension<User>,
    uri: Uri,
    Query(params): Query<Params>,
) -> Answer {
    need(&user, Role::Reporter)?;
    let status = choice(&params, "status", &STATUSES)?;
    choice(&params, "order_by", &["id"])?;
    let sort = choice(&params, "sort", &["asc", "desc"])?;
    let state = api.store.state();
    let wanted = |name: &str, value: &str| param(&params, name).is_none_or(|wanted| wanted == value);
    let found = state.pipelines.iter().filter(|pipeline| {
        wanted("sha", &pipeline.commit.id)
            && wanted("ref", &pipeline.branch)
            && wanted("source", "push")
            && wanted("username", &pipeline.user)
            && status.is_none_or(|status| status == state.status_of(pipeline.id).name())
    });
    let mut shapes: Vec<Value> = found.map(|pipeline| api.store.pipeline_shape(&state, pipeline)).collect();
    if sort != Some("asc") {
        shapes.reverse();
    }
    drop(state);
    page(&api.store, &uri, &params, shapes)
}

async fn pipeline(State(api): Shared, Extension(user): Extension<User>, Path((_, id)): Path<(String, u64)>) -> Answer {
    need(&user, Role::Reporter)?;
    let state = api.store.state();
    let pipeline = state.pipeline(id).ok_or_else(|| Refusal::not_found(""))?;
    Ok(Json(api.store.whole_pipeline_shape(&state, pipeline)).into_response())
}

async fn pipeline_jobs(
    State(api): Shared,
    Extension(user): Extension<User>,
    Path((_, id)): Path<(String, u64)>,
    uri: Uri,
    Query(params): Query<Params>,
) -> Answer {
    need(&user, Role::Reporter)?;
    let scope = list(&params, "scope");
    if !scope.iter().all(|status| STATUSES.contains(status)) {
        return Err(Refusal::bad_request("Scope contains invalid value(s)"));
    }
    let with_retried = param(&params, "include_retried").is_some_and(is_true);
    let state = api.store.state();
    state.pipeline(id).ok_or_else(|| Refusal::not_found(""))?;
    let found = state.jobs.iter().rev().filter(|job| {
        job.pipeline == id
            && (with_retried || !job.is_retried)
            && (scope.is_empty() || scope.contains(&job.status.name()))
    });
    let shapes = found.map(|job| api.store.job_shape(&state, job)).collect();
    drop(state);
    page(&api.store, &uri, &params, shapes)
}

async fn cancel_pipeline(
    State(api): Shared,
    Extension(user): Extension<User>,
    Path((_, id)): Path<(String, u64)>,
) -> Answer {
    let branch = api.store.state().pipeline(id).map(|pipeline| pipeline.branch.clone());
    let branch = branch.ok_or_else(|| Refusal::not_found(""))?;
    api.need_to_run(&user, &branch)?;
    api.store.change(|state| state.cancel_pipeline(id));
    pipeline(State(api), Extension(user), Path((String::new(), id))).await
}

impl Api {
    fn need_to_run(&self, user: &User, branch: &str) -> Result<(), Refusal> {
        if self.store.may_run(user, branch) { Ok(()) } else { Err(Refusal::forbidden(None)) }
    }

    /// A job, and the branch it works on.
    fn find_job(&self, user: &User, id: u64) -> Result<(Job, String), Refusal> {
        need(user, Role::Reporter)?;
        let state = self.store.state();
        let job = state.job(id).ok_or_else(|| Refusal::not_found(""))?;
        let branch = state.pipeline(job.pipeline).map(|pipeline| pipeline.branch.clone()).unwrap_or_default();
        Ok((job.clone(), branch))
    }

    fn show_job(&self, status: StatusCode, id: u64) -> Answer {
        let state = self.store.state();
        let job = state.job(id).ok_or_else(|| Refusal::not_found(""))?;
        Ok((status, Json(self.store.job_shape(&state, job))).into_response())
    }
}

async fn job(State(api): Shared, Extension(user): Extension<User>, Path((_, id)): Path<(String, u64)>) -> Answer {
    api.find_job(&user, id)?;
    api.show_job(StatusCode::OK, id)
}

async fn trace(State(api): Shared, Extension(user): Extension<User>, Path((_, id)): Path<(String, u64)>) -> Answer {
    api.find_job(&user, id)?;
    let trace = std::fs::read_to_string(work::trace_of(&api.dir, id)).unwrap_or_default();
    Ok(([(header::CONTENT_TYPE, "text/plain")], trace).into_response())
}

async fn artifact(
    State(api): Shared,
    Extension(user): Extension<User>,
    Path((_, id, path)): Path<(String, u64, String)>,
) -> Answer {
    let (job, _) = api.find_job(&user, id)?;
    job.available_artifacts().ok_or_else(|| Refusal::not_found(""))?;
    if path.split('/').any(|part| part == "..") {
        return Err(Refusal::bad_request("400 Bad request"));
    }
    if !api.store.switches.now().redirects_downloads {
        return file(&job, &path);
    }
    let host = api.store.url.get().map_or_else(String::new, |url| url.replace("127.0.0.1", "localhost"));
    let place = format!("{host}/objects/{id}/{path}?signature={}", api.signature);
    Ok((StatusCode::FOUND, [(header::LOCATION, place)]).into_response())
}

fn file(job: &Job, path: &str) -> Answer {
    let artifacts = job.available_artifacts().ok_or_else(|| Refusal::not_found(""))?;
    let bytes = std::fs::read(artifacts.dir.join(path)).map_err(|_| Refusal::not_found(""))?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
}

async fn object(
    State(api): Shared,
    Path((id, path)): Path<(u64, String)>,
    Query(params): Query<Params>,
    headers: HeaderMap,
) -> Answer {
    if headers.contains_key(header::AUTHORIZATION) || headers.contains_key("private-token") {
        return Err(Refusal::bad_request("Only one auth mechanism allowed"));
    }
    if param(&params, "signature") != Some(&api.signature) {
        return Err(Refusal::forbidden(None));
    }
    let job = api.store.state().job(id).cloned().ok_or_else(|| Refusal::not_found(""))?;
    file(&job, &path)
}

async fn play(State(api): Shared, Extension(user): Extension<User>, Path((_, id)): Path<(String, u64)>) -> Answer {
    let (_, branch) = api.find_job(&user, id)?;
    api.need_to_run(&user, &branch)?;
    let played = api.store.change(|state| state.play(id, &user.username));
    let played = played.ok_or_else(|| Refusal::bad_request("400 Bad request - Unplayable Job"))?;
    api.show_job(StatusCode::OK, played)
}

async fn retry(State(api): Shared, Extension(user): Extension<User>, Path((_, id)): Path<(String, u64)>) -> Answer {
    let (_, branch) = api.find_job(&user, id)?;
    api.need_to_run(&user, &branch)?;
    let new = api.store.change(|state| state.retry(id, &user.username));
    let new = new.ok_or_else(|| Refusal::forbidden(Some("Job is not retryable")))?;
    api.show_job(StatusCode::CREATED, new)
}

async fn cancel(State(api): Shared, Extension(user): Extension<User>, Path((_, id)): Path<(String, u64)>) -> Answer {
    let (_, branch) = api.find_job(&user, id)?;
    api.need_to_run(&user, &branch)?;
    api.store.change(|state| state.cancel_job(id));
    api.show_job(StatusCode::CREATED, id)
}

async fn merge_base(State(api): Shared, Extension(user): Extension<User>, Query(params): Query<Params>) -> Answer {
    need(&user, Role::Reporter)?;
    let names = list(&params, "refs");
    if names.len() < 2 {
        return Err(Refusal::bad_request("Provide at least 2 refs"));
    }
    let repository = &api.store.project.repository;
    let found: Vec<Option<String>> = names.iter().map(|name| repository::resolve(repository, name)).collect();
    let unknown: Vec<&str> =
        names.iter().zip(&found).filter(|(_, found)| found.is_none()).map(|(name, _)| *name).collect();
    if !unknown.is_empty() {
        let noun = if unknown.len() == 1 { "ref" } else { "refs" };
        return Err(Refusal::bad_request(&format!("Could not find {noun}: {}", unknown.join(", "))));
    }
    let commits: Vec<String> = found.into_iter().flatten().collect();
    let base = repository::merge_base(repository, &commits).ok_or_else(|| Refusal::not_found("Merge Base"))?;
    let commit = repository::commit(repository, &base).map_err(|_| Refusal::not_found("Commit"))?;
    Ok(Json(super::shapes::commit_shape(&commit)).into_response())
}

/// The source branch's commit of an open merge request is the branch's newest.
fn follow_branches(store: &Store, state: &mut Kept) {
    for request in state.merge_requests.iter_mut().filter(|request| request.state == "opened") {
        if let Some(tip) = repository::tip(&store.project.repository, &request.source) {
            request.commit = tip;
        }
    }
}

async fn merge_requests(
    State(api): Shared,
    Extension(user): Extension<User>,
    uri: Uri,
    Query(params): Query<Params>,
) -> Answer {
    need(&user, Role::Reporter)?;
    let state_filter = choice(&params, "state", &["opened", "closed", "locked", "merged", "all"])?;
    let wanted = |name: &str, value: &str| param(&params, name).is_none_or(|wanted| wanted == value);
    let shapes = api.store.change(|state| {
        follow_branches(&api.store, state);
        let found = state.merge_requests.iter().rev().filter(|request| {
            state_filter.is_none_or(|state| state == "all" || state == request.state)
                && wanted("source_branch", &request.source)
                && wanted("target_branch", &request.target)
        });
        found.map(|request| api.store.merge_request_shape(request)).collect()
    });
    page(&api.store, &uri, &params, shapes)
}

async fn merge_request(
    State(api): Shared,
    Extension(user): Extension<User>,
    Path((_, iid)): Path<(String, u64)>,
) -> Answer {
    need(&user, Role::Reporter)?;
    api.show_merge_request(StatusCode::OK, iid)
}

impl Api {
    fn show_merge_request(&self, status: StatusCode, iid: u64) -> Answer {
        let shape = self.store.change(|state| {
            follow_branches(&self.store, state);
            let found = state.merge_requests.iter().find(|request| request.iid == iid);
            found.map(|request| self.store.merge_request_shape(request))
        });
        let shape = shape.ok_or_else(|| Refusal::not_found(""))?;
        Ok((status, Json(shape)).into_response())
    }
}

async fn make_merge_request(State(api): Shared, Extension(user): Extension<User>, body: Bytes) -> Answer {
    need(&user, Role::Developer)?;
    let body: Value = serde_json::from_slice(&body).map_err(|_| Refusal::parameter("the body is no JSON"))?;
    let text = |name: &str| body[name].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let required = |name: &str| text(name).ok_or_else(|| Refusal::parameter(&format!("{name} is missing")));
    let (title, source, target) = (required("title")?, required("source_branch")?, required("target_branch")?);
    let branch = |name: &str| {
        // The words are the simulator's own.
        repository::tip(&api.store.project.repository, name)
            .ok_or_else(|| Refusal::unprocessable(&format!("Branch \"{name}\" does not exist")))
    };
    let commit = branch(&source)?;
    branch(&target)?;
    let iid = api.store.change(|state| {
        let open =
            |request: &&MergeRequest| request.state == "opened" && request.source == source && request.target == target;
        if let Some(other) = state.merge_requests.iter().find(open) {
            return Err(Refusal::conflict(format!(
                "Another open merge request already exists for this source branch: !{}",
                other.iid
            )));
        }
        let iid = state.merge_requests.last().map_or(1, |last| last.iid + 1);
        state.merge_requests.push(MergeRequest {
            iid,
            title,
            description: text("description").unwrap_or_default(),
            source: source.clone(),
            target: target.clone(),
            author: user.username.clone(),
            state: "opened",
            commit,
            merge_commit: None,
            created_at: jiff::Timestamp::now(),
        });
        Ok(iid)
    })?;
    api.show_merge_request(StatusCode::CREATED, iid)
}

async fn merge(State(api): Shared, Extension(user): Extension<User>, Path((_, iid)): Path<(String, u64)>) -> Answer {
    let request = api.store.state().merge_requests.iter().find(|request| request.iid == iid).cloned();
    let request = request.ok_or_else(|| Refusal::not_found(""))?;
    if !api.store.may_run(&user, &request.target) {
        return Err(Refusal::unauthorized());
    }
    api.store.merge(iid, &user.username).map_err(|_| Refusal::unprocessable("Branch cannot be merged"))?;
    api.show_merge_request(StatusCode::OK, iid)
}
