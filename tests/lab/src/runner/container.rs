//! One container: waiting, running or ended, and when it starts again.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container as Spec, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::process::Process;

/// The first wait before a container is started again; each further one doubles up to the longest. A kubelet waits 10 s to 5 min.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// How much of a failed container's output its status shows when `terminationMessagePolicy` is `FallbackToLogsOnError`, in bytes.
const MESSAGE_BYTES: usize = 2048;

enum State {
    Waiting {
        reason: &'static str,
        message: Option<String>,
        until: Instant,
    },
    /// `set_up` is the directory that vanishes when the mounts are made and the program takes over; `None` once it has.
    Running {
        process: Process,
        since: Timestamp,
        started: Instant,
        set_up: Option<PathBuf>,
    },
    Ended(ContainerStateTerminated),
}

/// A container of a pod.
pub(super) struct Container {
    pub(super) spec: Spec,
    id: String,
    state: State,
    last: Option<ContainerStateTerminated>,
    restarts: i32,
    started_before: bool,
    backoff: Duration,
    longest_backoff: Duration,
}

impl Container {
    /// A container that has not been started by this runner. `before` is what an earlier runner wrote of it.
    pub(super) fn new(spec: Spec, pod_uid: &str, before: Option<&ContainerStatus>, longest_backoff: Duration) -> Self {
        let ended = before.and_then(|status| status.state.as_ref()?.terminated.clone());
        let running = before.is_some_and(|status| status.state.as_ref().is_some_and(|state| state.running.is_some()));
        let last = ended.or_else(|| running.then(unknown_end));
        Self {
            id: format!("{pod_uid}-{}", spec.name),
            spec,
            state: State::Waiting { reason: "ContainerCreating", message: None, until: Instant::now() },
            started_before: last.is_some(),
            last,
            restarts: before.map_or(0, |status| status.restart_count),
            backoff: FIRST_BACKOFF,
            longest_backoff,
        }
    }

    /// Whether it is time to start it.
    pub(super) fn is_due(&self) -> bool {
        matches!(self.state, State::Waiting { until, .. } if until <= Instant::now())
    }

    /// Number of the start to come, counted from 0: what its log is named by.
    pub(super) fn next_start(&self) -> i32 {
        if self.started_before { self.restarts + 1 } else { self.restarts }
    }

    /// Its process was started, and removes the directory `set_up` when the mounts are made and the program takes over.
    pub(super) fn started(&mut self, process: Process, set_up: PathBuf) {
        self.restarts = self.next_start();
        self.started_before = true;
        self.state = State::Running { process, since: Timestamp::now(), started: Instant::now(), set_up: Some(set_up) };
    }

    /// It cannot be started now; try again in a second.
    pub(super) fn cannot_start(&mut self, reason: &'static str, message: String) {
        self.state = State::Waiting { reason, message: Some(message), until: Instant::now() + FIRST_BACKOFF };
    }

    /// Whether its program runs.
    pub(super) fn is_running(&self) -> bool {
        matches!(self.state, State::Running { set_up: None, .. })
    }

    /// The id of its process, while there is one: the program's, or that of its set-up.
    pub(super) fn pid(&self) -> Option<u32> {
        match &self.state {
            State::Running { process, .. } => Some(process.pid()),
            State::Waiting { .. } | State::Ended(_) => None,
        }
    }

    /// Whether it has ended for good.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended(_))
    }

    /// Sees whether the process has ended. With a restart policy that wants it running, it then waits for its next start.
    pub(super) fn poll(&mut self, policy: &str) {
        let State::Running { process, since, started, set_up } = &mut self.state else { return };
        set_up.take_if(|directory| !directory.exists());
        let Some(status) = process.ended() else { return };
        // Whatever the leader left behind goes with it, as with a container's first process.
        process.kill();
        let fallback = self.spec.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
        let message = (fallback && !status.success()).then(|| last_bytes(&process.tail()));
        let ended = terminated(status, *since, message, &self.id);
        if started.elapsed() > 2 * self.longest_backoff {
            self.backoff = FIRST_BACKOFF;
        }
        if policy == "Always" || (policy == "OnFailure" && ended.exit_code != 0) {
            let message = format!("back-off {:?} restarting failed container {}", self.backoff, self.spec.name);
            let until = Instant::now() + self.backoff;
            self.state = State::Waiting { reason: "CrashLoopBackOff", message: Some(message), until };
            self.last = Some(ended);
            self.backoff = (2 * self.backoff).min(self.longest_backoff);
        } else {
            self.state = State::Ended(ended);
        }
    }

    /// It is not to be started again: a container that waits ends here.
    pub(super) fn give_up(&mut self) {
        if let State::Waiting { .. } = self.state {
            self.state = State::Ended(self.last.take().unwrap_or_else(unknown_end));
        }
    }

    /// Kills the process with all it has started.
    pub(super) fn kill(&mut self) {
        if let State::Running { process, .. } = &mut self.state {
            let _ = process.signal(nix::sys::signal::Signal::SIGKILL);
        }
    }

    /// What the pod's status says of it.
    pub(super) fn status(&self) -> ContainerStatus {
        let running = self.is_running();
        let state = match &self.state {
            State::Running { set_up: Some(_), .. } => waiting("ContainerCreating", None),
            State::Waiting { reason, message, .. } => waiting(reason, message.clone()),
            State::Running { since, .. } => ContainerState {
                running: Some(ContainerStateRunning { started_at: Some(Time(*since)) }),
                ..ContainerState::default()
            },
            State::Ended(ended) => ContainerState { terminated: Some(ended.clone()), ..ContainerState::default() },
        };
        ContainerStatus {
            name: self.spec.name.clone(),
            image: self.spec.image.clone().unwrap_or_default(),
            container_id: self.started_before.then(|| format!("lab://{}-{}", self.id, self.restarts)),
            ready: running,
            started: Some(running),
            restart_count: self.restarts,
            last_state: self
                .last
                .clone()
                .map(|ended| ContainerState { terminated: Some(ended), ..ContainerState::default() }),
            state: Some(state),
            ..ContainerStatus::default()
        }
    }
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    let waiting = ContainerStateWaiting { reason: Some(reason.into()), message };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

fn terminated(status: ExitStatus, since: Timestamp, message: Option<String>, id: &str) -> ContainerStateTerminated {
    ContainerStateTerminated {
        exit_code: status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255),
        signal: status.signal(),
        reason: Some(if status.success() { "Completed" } else { "Error" }.into()),
        message,
        started_at: Some(Time(since)),
        finished_at: Some(Time(Timestamp::now())),
        container_id: Some(format!("lab://{id}")),
    }
}

/// The end of a container that nobody saw end, in the words a kubelet uses.
fn unknown_end() -> ContainerStateTerminated {
    ContainerStateTerminated {
        exit_code: 137,
        reason: Some("ContainerStatusUnknown".into()),
        message: Some("The container could not be located when the pod was terminated".into()),
        ..ContainerStateTerminated::default()
    }
}

fn last_bytes(text: &str) -> String {
    let mut from = text.len().saturating_sub(MESSAGE_BYTES);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    text[from..].into()
}
