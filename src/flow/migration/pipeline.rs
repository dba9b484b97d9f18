//! What the jobs of a pipeline, or of Kubernetes, say about the application of our commit.
//!
//! The jobs are judged, not the pipeline: with a manual job a pipeline is called a success before anything was applied, or blocked after it,
//! as that job's `allow_failure` has it (GitLab's documentation of manual jobs).

use super::seen::Stage;

/// A job of a pipeline: the newest of its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineJob {
    pub id: u64,
    pub name: String,
    pub state: JobState,
    /// Where a person looks at it.
    pub url: String,
    /// Why it failed, in the server's words.
    pub failure: Option<String>,
}

/// State of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobState {
    /// It is not its turn yet.
    Created,
    /// It begins as soon as there is room.
    Queued,
    Running,
    Succeeded,
    Failed,
    Canceled,
    Skipped,
    /// It waits for a person to start it.
    Manual,
    /// A word that is not known here.
    Unknown(String),
}

/// How far the application is, by the job that plans and the job that applies.
pub fn stage(jobs: &[PipelineJob], plan_job: &str, apply_job: &str) -> Stage {
    let job = |name: &str| jobs.iter().find(|job| job.name == name);
    let Some(plan) = job(plan_job) else { return missing(plan_job, "planJob") };
    match &plan.state {
        JobState::Created | JobState::Queued | JobState::Running | JobState::Manual => return Stage::Planning,
        JobState::Succeeded => {}
        JobState::Failed | JobState::Canceled | JobState::Skipped | JobState::Unknown(_) => return ended(plan),
    }
    let Some(apply) = job(apply_job) else { return missing(apply_job, "applyJob") };
    match &apply.state {
        JobState::Created => Stage::Planning,
        JobState::Manual => Stage::Planned { handle: apply.id.to_string() },
        JobState::Queued | JobState::Running => Stage::Applying,
        JobState::Succeeded => Stage::Applied,
        JobState::Failed | JobState::Canceled | JobState::Skipped | JobState::Unknown(_) => ended(apply),
    }
}

fn missing(name: &str, field: &str) -> Stage {
    Stage::Failed {
        why: format!("the pipeline has no job named {name}: correct apply.gitlab.{field} of the TerraformRepository"),
    }
}

fn ended(job: &PipelineJob) -> Stage {
    let (name, url) = (&job.name, &job.url);
    let because = job.failure.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    let why = match &job.state {
        JobState::Canceled => format!("job {name} was cancelled: retry it at {url}"),
        JobState::Skipped => format!("job {name} was skipped, because one before it did not succeed: see {url}"),
        JobState::Unknown(state) => format!("job {name} is in state {state}, which Drover does not know: see {url}"),
        JobState::Created
        | JobState::Queued
        | JobState::Running
        | JobState::Succeeded
        | JobState::Manual
        | JobState::Failed => format!("job {name} failed{because}: see {url}, mend what it says and retry it there"),
    };
    Stage::Failed { why }
}

/// How often a plan is made anew by itself after one could not be applied.
pub const TERRAFORM_ROUNDS: u32 = 5;

/// What a Job of Kubernetes came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobEnd {
    Active,
    Complete,
    Failed,
}

/// The newest round's Jobs, where there is no CI: one that plans, and one that applies that plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TerraformJobs {
    pub round: u32,
    /// Namespace and name of each, for the person who reads its log.
    pub plan_job: String,
    pub apply_job: String,
    /// `None` = there is no such Job (any more).
    pub planned: Option<JobEnd>,
    pub applied: Option<JobEnd>,
}

impl TerraformJobs {
    /// How far the application is; `digest` is that of the plan that was left, if there is one.
    pub fn stage(&self, digest: Option<&str>) -> Stage {
        match (self.applied, self.planned, digest) {
            (Some(JobEnd::Active), _, _) => Stage::Applying,
            (Some(JobEnd::Complete), _, _) => Stage::Applied,
            (Some(JobEnd::Failed), _, _) => self.anew(&self.apply_job, "could not apply the plan"),
            (None, Some(JobEnd::Active), _) => Stage::Planning,
            (None, Some(JobEnd::Failed), _) => self.ended(&self.plan_job, "could not make a plan"),
            (None, _, Some(digest)) => Stage::Planned { handle: format!("{} {digest}", self.round) },
            (None, None, None) => Stage::Unplanned { round: self.round },
            (None, Some(JobEnd::Complete), None) => self.anew(&self.plan_job, "made a plan that somebody deleted"),
        }
    }

    /// The next round, as long as there is one.
    fn anew(&self, job: &str, what: &str) -> Stage {
        if self.round < TERRAFORM_ROUNDS { Stage::Unplanned { round: self.round + 1 } } else { self.ended(job, what) }
    }

    fn ended(&self, job: &str, what: &str) -> Stage {
        let (namespace, name) = job.split_once('/').unwrap_or(("", job));
        let rounds = self.round + 1;
        let why = format!(
            "Job {name} {what} (round {rounds}): see kubectl -n {namespace} logs job/{name}; mend what it says, then delete that Job"
        );
        Stage::Failed { why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs(round: u32, planned: Option<JobEnd>, applied: Option<JobEnd>) -> TerraformJobs {
        TerraformJobs { round, plan_job: "team-a/p".into(), apply_job: "team-a/a".into(), planned, applied }
    }

    #[test]
    fn jobs_plan_once_a_round_and_apply_what_was_left() {
        let complete = Some(JobEnd::Complete);
        assert_eq!(jobs(0, None, None).stage(None), Stage::Unplanned { round: 0 });
        assert_eq!(jobs(0, Some(JobEnd::Active), None).stage(None), Stage::Planning);
        let planned = Stage::Planned { handle: "2 sha256:1".into() };
        assert_eq!(jobs(2, complete, None).stage(Some("sha256:1")), planned);
        assert_eq!(jobs(2, None, None).stage(Some("sha256:1")), planned, "its Job has expired");
        assert_eq!(jobs(2, complete, Some(JobEnd::Active)).stage(Some("sha256:1")), Stage::Applying);
        assert_eq!(jobs(2, complete, complete).stage(Some("sha256:1")), Stage::Applied);
    }

    #[test]
    fn a_plan_that_was_not_applied_or_is_gone_is_made_anew_but_not_for_ever() {
        let (complete, failed) = (Some(JobEnd::Complete), Some(JobEnd::Failed));
        for (planned, applied, digest) in [(complete, failed, Some("sha256:1")), (complete, None, None)] {
            assert_eq!(jobs(1, planned, applied).stage(digest), Stage::Unplanned { round: 2 });
            let last = jobs(TERRAFORM_ROUNDS, planned, applied).stage(digest);
            assert!(matches!(&last, Stage::Failed { why } if why.contains("kubectl -n team-a logs job/")), "{last:?}");
        }
        let unplanned = jobs(0, failed, None).stage(None);
        assert!(matches!(&unplanned, Stage::Failed { why } if why.contains("could not make a plan")), "{unplanned:?}");
    }

    fn job(name: &str, state: JobState) -> PipelineJob {
        PipelineJob { id: 7, name: name.into(), state, url: format!("https://gitlab/{name}"), failure: None }
    }

    fn of(plan: JobState, apply: JobState) -> Stage {
        stage(&[job("plan", plan), job("deploy", apply)], "plan", "deploy")
    }

    #[test]
    fn the_jobs_are_judged() {
        assert_eq!(of(JobState::Running, JobState::Created), Stage::Planning);
        assert_eq!(of(JobState::Succeeded, JobState::Created), Stage::Planning);
        assert_eq!(of(JobState::Succeeded, JobState::Manual), Stage::Planned { handle: "7".into() });
        assert_eq!(of(JobState::Succeeded, JobState::Queued), Stage::Applying);
        assert_eq!(of(JobState::Succeeded, JobState::Succeeded), Stage::Applied);
    }

    #[test]
    fn what_has_ended_badly_says_who_does_what() {
        let table = [
            (of(JobState::Failed, JobState::Skipped), "job plan failed: see https://gitlab/plan"),
            (of(JobState::Canceled, JobState::Skipped), "job plan was cancelled: retry it"),
            (of(JobState::Succeeded, JobState::Failed), "job deploy failed"),
            (of(JobState::Succeeded, JobState::Canceled), "job deploy was cancelled"),
            (of(JobState::Succeeded, JobState::Skipped), "job deploy was skipped"),
            (of(JobState::Succeeded, JobState::Unknown("asleep".into())), "state asleep"),
            (stage(&[job("plan", JobState::Succeeded)], "plan", "deploy"), "apply.gitlab.applyJob"),
            (stage(&[], "plan", "deploy"), "apply.gitlab.planJob"),
        ];
        for (stage, words) in table {
            assert!(matches!(&stage, Stage::Failed { why } if why.contains(words)), "{words}: {stage:?}");
        }
    }
}
