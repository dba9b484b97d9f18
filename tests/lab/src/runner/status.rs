//! What a kubelet would write about a pod, computed from what its containers do.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::POD_IP;

/// Why a pod is ended before its containers have ended by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The object is being deleted.
    Deleted,
    /// The node shut the pod down, as under memory pressure.
    Evicted,
    /// The node lost all of the pod's processes at once.
    Lost,
}

impl Ending {
    /// Reason and message in the pod's status, if the ending alone makes it `Failed`.
    fn failure(self) -> Option<(&'static str, &'static str)> {
        match self {
            Ending::Deleted => None,
            Ending::Evicted => Some(("Evicted", "The pod was evicted from its node.")),
            Ending::Lost => Some(("NodeLost", "The node lost all processes of the pod.")),
        }
    }
}

/// The status of the pod. `previous` is the status written before: times of conditions that did not change are kept.
pub(super) fn pod_status(
    pod: &Pod,
    previous: &PodStatus,
    start_time: &Time,
    containers: Vec<ContainerStatus>,
    ending: Option<Ending>,
) -> PodStatus {
    let policy = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always");
    let phase = phase(&containers, policy, ending);
    let (reason, message) = ending.filter(|_| phase == "Failed").and_then(Ending::failure).unzip();
    let ready = !containers.is_empty() && containers.iter().all(|container| container.ready);
    let not_ready = if phase == "Succeeded" { "PodCompleted" } else { "ContainersNotReady" };
    let mut conditions = vec![("PodScheduled", true, None), ("Initialized", true, None)];
    conditions.push(("ContainersReady", ready, (!ready).then_some(not_ready)));
    conditions.push(("Ready", ready, (!ready).then_some(not_ready)));
    if ending == Some(Ending::Evicted) {
        conditions.push(("DisruptionTarget", true, Some("TerminationByKubelet")));
    }
    PodStatus {
        phase: Some(phase.into()),
        reason: reason.map(Into::into),
        message: message.map(Into::into),
        conditions: Some(conditions.into_iter().map(|condition| pod_condition(previous, condition)).collect()),
        container_statuses: Some(containers),
        host_ip: Some(POD_IP.into()),
        host_ips: Some(vec![HostIP { ip: POD_IP.into() }]),
        pod_ip: Some(POD_IP.into()),
        pod_ips: Some(vec![PodIP { ip: POD_IP.into() }]),
        start_time: Some(start_time.clone()),
        ..PodStatus::default()
    }
}

fn pod_condition(previous: &PodStatus, (type_, holds, reason): (&str, bool, Option<&str>)) -> PodCondition {
    let status = if holds { "True" } else { "False" };
    let before = previous.conditions.iter().flatten().find(|old| old.type_ == type_ && old.status == status);
    PodCondition {
        type_: type_.into(),
        status: status.into(),
        reason: reason.map(Into::into),
        last_transition_time: before
            .and_then(|old| old.last_transition_time.clone())
            .or_else(|| Some(Time(Timestamp::now()))),
        ..PodCondition::default()
    }
}

/// The phase, by the kubelet's rules.
fn phase(containers: &[ContainerStatus], policy: &str, ending: Option<Ending>) -> &'static str {
    let exit_code = |state: &Option<ContainerState>| Some(state.as_ref()?.terminated.as_ref()?.exit_code);
    let codes: Vec<Option<i32>> = containers.iter().map(|container| exit_code(&container.state)).collect();
    let ended = codes.iter().all(Option::is_some);
    let succeeded = codes.iter().all(|code| *code == Some(0));
    let never_started = |container: &ContainerStatus| {
        container.state.as_ref().is_some_and(|state| state.waiting.is_some())
            && exit_code(&container.last_state).is_none()
    };
    if ended && ending.is_some_and(|ending| ending.failure().is_some()) {
        "Failed"
    } else if ended && ending.is_some() {
        if succeeded { "Succeeded" } else { "Failed" }
    } else if containers.iter().any(never_started) {
        "Pending"
    } else if ended && succeeded && policy != "Always" {
        "Succeeded"
    } else if ended && policy == "Never" {
        "Failed"
    } else {
        "Running"
    }
}

/// Containers by name, for looking up what an earlier runner wrote.
pub(super) fn by_name(status: Option<&PodStatus>) -> BTreeMap<String, ContainerStatus> {
    let statuses = status.into_iter().flat_map(|status| status.container_statuses.iter().flatten());
    statuses.map(|status| (status.name.clone(), status.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn containers(states: &[serde_json::Value]) -> Vec<ContainerStatus> {
        let status = |state| json!({"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state});
        states.iter().map(|state| serde_json::from_value(status(state)).expect("well-formed")).collect()
    }

    #[test]
    fn phases_follow_the_restart_policy() {
        let (running, done) = (json!({"running": {}}), json!({"terminated": {"exitCode": 0}}));
        let failed = json!({"terminated": {"exitCode": 1}});
        let waiting = json!({"waiting": {"reason": "ContainerCreating"}});
        for (states, policy, ending, expected) in [
            (vec![&waiting, &running], "Never", None, "Pending"),
            (vec![&running, &done], "OnFailure", None, "Running"),
            (vec![&done, &done], "OnFailure", None, "Succeeded"),
            (vec![&done, &done], "Always", None, "Running"),
            (vec![&failed, &done], "OnFailure", None, "Running"),
            (vec![&failed, &done], "Never", None, "Failed"),
            (vec![&failed, &running], "Never", None, "Running"),
            (vec![&failed, &done], "OnFailure", Some(Ending::Deleted), "Failed"),
            (vec![&done, &done], "Always", Some(Ending::Deleted), "Succeeded"),
            (vec![&done, &done], "OnFailure", Some(Ending::Lost), "Failed"),
        ] {
            let states: Vec<_> = states.into_iter().cloned().collect();
            assert_eq!(phase(&containers(&states), policy, ending), expected, "{states:?} {policy} {ending:?}");
        }
    }
}
