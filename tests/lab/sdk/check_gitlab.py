"""Takes a simulated GitLab through what python-gitlab can do with it. Exit 0 = everything was as that client expects it.

Environment: GITLAB_URL, GITLAB_CA (file), GITLAB_PROJECT (path), GITLAB_COMMIT, GITLAB_PIPELINES (how many there are), GITLAB_BRANCH (one that can
be merged to main), GITLAB_TOKEN (a maintainer's), GITLAB_READ_TOKEN (of scope read_api), GITLAB_STRANGER_TOKEN.
"""

import os
import time

import gitlab
from gitlab.exceptions import (
    GitlabAuthenticationError,
    GitlabCreateError,
    GitlabGetError,
    GitlabJobPlayError,
    GitlabJobRetryError,
    GitlabListError,
)


def client(token):
    return gitlab.Gitlab(os.environ["GITLAB_URL"], private_token=token, ssl_verify=os.environ["GITLAB_CA"])


def check(good, what):
    if not good:
        raise SystemExit(f"FAILED: {what}")
    print(f"ok: {what}")


def refused(kind, code, act, what):
    try:
        act()
    except kind as error:
        check(error.response_code == code, f"{what}: {error}")
    else:
        raise SystemExit(f"FAILED: {what}: it was not refused")


def until(ask, what):
    for _ in range(600):
        if ask():
            print(f"ok: {what}")
            return
        time.sleep(0.1)
    raise SystemExit(f"FAILED: {what}: not within a minute")


gl = client(os.environ["GITLAB_TOKEN"])
gl.auth()
check(gl.user.username == "bot", "the token tells who we are")
check(gl.version()[0].startswith("18."), "the version")
project = gl.projects.get(os.environ["GITLAB_PROJECT"])
check(project.path_with_namespace == os.environ["GITLAB_PROJECT"], "the project by its path")
check(gl.projects.get(project.id).id == project.id, "the project by its id")

count = int(os.environ["GITLAB_PIPELINES"])
everything = project.pipelines.list(get_all=True, ref="main")
ids = [pipeline.id for pipeline in everything]
check(len(ids) == count and ids == sorted(ids, reverse=True), "every pipeline, the newest first")
lazily = project.pipelines.list(iterator=True, per_page=2, ref="main")
check(lazily.total == count and lazily.per_page == 2, "the headers count")
check([pipeline.id for pipeline in lazily] == ids, "the links lead through all pages")
check([found.id for found in project.pipelines.list(page=2, per_page=1, ref="main")] == ids[1:2], "a page by its number")
of_commit = project.pipelines.list(sha=os.environ["GITLAB_COMMIT"], ref="main", get_all=True)
check([found.sha for found in of_commit] == [os.environ["GITLAB_COMMIT"]], "the pipeline of a commit")
pipeline = project.pipelines.get(of_commit[0].id)
check(pipeline.status == "manual", "it waits for a person")
refused(GitlabListError, 400, lambda: project.pipelines.list(status="great", get_all=True), "a status that there is not")

jobs = {job.name: project.jobs.get(job.id) for job in pipeline.jobs.list(get_all=True)}
check(sorted(jobs) == ["deploy", "plan"], "its jobs")
check([job.name for job in pipeline.jobs.list(scope=["manual"], get_all=True)] == ["deploy"], "its manual job")
plan, deploy = jobs["plan"], jobs["deploy"]
check(plan.status == "success" and plan.artifacts_file["filename"] == "artifacts.zip", "the plan has artifacts")
check(plan.pipeline["sha"] == os.environ["GITLAB_COMMIT"], "of our commit")
check(b"resource_changes" in plan.artifact("plan.json"), "an artifact")
check(b"Job succeeded" in plan.trace(), "a trace")
refused(GitlabGetError, 404, lambda: plan.artifact("none.json"), "an artifact that there is not")
refused(GitlabGetError, 404, lambda: deploy.artifact("plan.json"), "artifacts of a job that did not run")

refused(GitlabAuthenticationError, 401, client("glpat-wrong").auth, "a wrong token")
stranger = client(os.environ["GITLAB_STRANGER_TOKEN"])
refused(GitlabGetError, 404, lambda: stranger.projects.get(project.id), "a project of others")
reader = client(os.environ["GITLAB_READ_TOKEN"]).projects.get(project.id)
refused(GitlabJobPlayError, 403, lambda: reader.jobs.get(deploy.id).play(), "a token that may only read")

deploy.play()
check(deploy.status in ("pending", "running", "success") and deploy.user["username"] == "bot", "played")
until(lambda: project.jobs.get(deploy.id).status == "success", "it was deployed")
check(project.pipelines.get(pipeline.id).status == "success", "the pipeline follows")
check("failure_reason" not in project.jobs.get(deploy.id).attributes, "no reason for a failure that there was not")

again = project.jobs.get(plan.retry()["id"])
check(again.id != plan.id, "a retry is a new job")
until(lambda: project.jobs.get(again.id).status == "success", "which runs")
refused(GitlabJobRetryError, 403, plan.retry, "the old one is past")
named = sorted(job.id for job in pipeline.jobs.list(get_all=True))
check(named == sorted([again.id, deploy.id]), "the old one is left out")
named = sorted(job.id for job in pipeline.jobs.list(include_retried=True, get_all=True))
check(named == sorted([plan.id, again.id, deploy.id]), "unless it is asked for")
twice = project.jobs.get(deploy.id)
twice.play()
check(twice.id != deploy.id, "playing a job that has ended runs it again, as a new job")
until(lambda: project.jobs.get(twice.id).status == "success", "which runs, too")

base = project.repository_merge_base([os.environ["GITLAB_BRANCH"], "main"])
check(len(base["id"]) == 40, "a common ancestor")
refused(GitlabGetError, 400, lambda: project.repository_merge_base(["main", "1" * 40]), "a commit that there is not")
request = {"source_branch": os.environ["GITLAB_BRANCH"], "target_branch": "main", "title": "Add web01"}
made = project.mergerequests.create(request)
check(made.state == "opened" and made.merge_commit_sha is None, "a merge request")
refused(GitlabCreateError, 409, lambda: project.mergerequests.create(request), "a second one")
found = project.mergerequests.list(source_branch=os.environ["GITLAB_BRANCH"], state="opened", get_all=True)
check([one.iid for one in found] == [made.iid], "it is found")
made.merge()
merged = project.mergerequests.get(made.iid)
check(merged.state == "merged" and len(merged.merge_commit_sha) == 40, "it is merged")
until(lambda: project.pipelines.list(sha=merged.merge_commit_sha, get_all=True), "the merge has a pipeline")
