//! What the jobs of a pipeline say about the application of our commit.
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

#[cfg(test)]
mod tests {
    use super::*;

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
