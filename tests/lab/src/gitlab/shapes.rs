//! What GitLab keeps, as its REST API v4 writes it.

use serde_json::{Value, json};

use super::model::{Commit, Job, MergeRequest, Pipeline};
use super::store::{State, Store};

/// The number that the project also goes by.
pub const PROJECT_ID: u64 = 42;

impl Store {
    /// An address for people.
    fn web(&self, place: &str) -> String {
        format!("{}/{}{place}", self.url.get().map_or("", String::as_str), self.project.path)
    }

    pub fn project_shape(&self) -> Value {
        let path = &self.project.path;
        json!({
            "id": PROJECT_ID,
            "name": path.rsplit('/').next(),
            "path": path.rsplit('/').next(),
            "path_with_namespace": path,
            "default_branch": self.project.default_branch,
            "visibility": "private",
            "web_url": self.web(""),
        })
    }

    pub fn user_shape(&self, username: &str) -> Value {
        let id = self.project.users.iter().position(|user| user.username == username);
        json!({
            "id": id.map(|index| index + 1),
            "username": username,
            "name": username,
            "state": "active",
            "web_url": format!("{}/{username}", self.url.get().map_or("", String::as_str)),
        })
    }

    pub fn pipeline_shape(&self, state: &State, pipeline: &Pipeline) -> Value {
        json!({
            "id": pipeline.id,
            "iid": state.pipelines.iter().position(|known| known.id == pipeline.id).map(|index| index + 1),
            "project_id": PROJECT_ID,
            "sha": pipeline.commit.id,
            "ref": pipeline.branch,
            "status": state.status_of(pipeline.id).name(),
            "source": "push",
            "name": null,
            "created_at": pipeline.created_at.to_string(),
            "updated_at": pipeline.updated_at.to_string(),
            "web_url": self.web(&format!("/-/pipelines/{}", pipeline.id)),
        })
    }

    /// A pipeline that was asked for alone, with more of it.
    pub fn whole_pipeline_shape(&self, state: &State, pipeline: &Pipeline) -> Value {
        let mut shape = self.pipeline_shape(state, pipeline);
        shape["user"] = self.user_shape(&pipeline.user);
        shape["tag"] = json!(false);
        shape["yaml_errors"] = Value::Null;
        shape
    }

    pub fn job_shape(&self, state: &State, job: &Job) -> Value {
        let pipeline = state.pipeline(job.pipeline);
        let mut shape = json!({
            "id": job.id,
            "status": job.status.name(),
            "stage": job.name,
            "name": job.name,
            "ref": pipeline.map(|pipeline| pipeline.branch.clone()),
            "tag": false,
            "coverage": null,
            "allow_failure": job.allow_failure,
            "created_at": job.created_at.to_string(),
            "started_at": job.started_at.map(|at| at.to_string()),
            "finished_at": job.finished_at.map(|at| at.to_string()),
            "erased_at": null,
            "user": self.user_shape(&job.user),
            "commit": pipeline.map(|pipeline| commit_shape(&pipeline.commit)),
            "pipeline": pipeline.map(|pipeline| self.pipeline_shape(state, pipeline)),
            "web_url": self.web(&format!("/-/jobs/{}", job.id)),
            "project": { "ci_job_token_scope_enabled": false },
            "artifacts": [],
            "runner": null,
            "artifacts_expire_at": job.artifacts.as_ref().map(|artifacts| artifacts.expire_at.to_string()),
            "archived": false,
            "tag_list": [],
        });
        if let Some(reason) = job.failure_reason {
            shape["failure_reason"] = json!(reason);
        }
        if let Some(artifacts) = job.available_artifacts() {
            let size = artifacts.size();
            shape["artifacts_file"] = json!({ "filename": "artifacts.zip", "size": size });
            shape["artifacts"] =
                json!([{ "file_type": "archive", "size": size, "filename": "artifacts.zip", "file_format": "zip" }]);
        }
        shape
    }

    pub fn merge_request_shape(&self, request: &MergeRequest) -> Value {
        json!({
            "id": 9000 + request.iid,
            "iid": request.iid,
            "project_id": PROJECT_ID,
            "source_project_id": PROJECT_ID,
            "target_project_id": PROJECT_ID,
            "title": request.title,
            "description": request.description,
            "state": request.state,
            "source_branch": request.source,
            "target_branch": request.target,
            "author": self.user_shape(&request.author),
            "sha": request.commit,
            "merge_commit_sha": request.merge_commit,
            "squash_commit_sha": null,
            "created_at": request.created_at.to_string(),
            "web_url": self.web(&format!("/-/merge_requests/{}", request.iid)),
        })
    }
}

pub fn commit_shape(commit: &Commit) -> Value {
    json!({
        "id": commit.id,
        "short_id": commit.id.get(..8),
        "title": commit.message.lines().next(),
        "message": commit.message,
        "author_name": commit.author_name,
        "author_email": commit.author_email,
    })
}
