//! The runner against the real API server, Job controller and garbage collector.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use drover_lab::cluster::Cluster;
use drover_lab::runner::{LONGEST_BACKOFF, Runner, RunnerConfig};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::api::{Api, DeleteParams, ListParams, PropagationPolicy};
use kube::{Client, ResourceExt};
use nix::sys::signal::Signal;

use common::{TestCluster, eventually, start_cluster};

/// A cluster with one node, `kvm1`.
struct Lab {
    runner: Runner,
    client: Client,
    lab: TestCluster,
    files: tempfile::TempDir,
}

impl Lab {
    async fn start() -> Result<Self> {
        let lab = start_cluster()?;
        let files = tempfile::tempdir()?;
        let runner = start_runner(&lab.cluster, files.path())?;
        Ok(Self { runner, client: lab.cluster.client().await?, lab, files })
    }

    fn pods(&self) -> Api<Pod> {
        Api::default_namespaced(self.client.clone())
    }

    /// Creates a pod or Job on the node. `spec` is the pod's, in YAML's flow style, without its node.
    async fn create(&self, kind: &str, name: &str, spec: &str) -> Result<()> {
        let spec = spec.trim().strip_prefix('{').context("a flow mapping")?;
        let spec =
            format!("{{nodeSelector: {{kubernetes.io/hostname: kvm1}}, terminationGracePeriodSeconds: 2, {spec}");
        let yaml = match kind {
            "Pod" => format!("{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {spec}}}"),
            _ => format!(
                "{{apiVersion: batch/v1, kind: Job, metadata: {{name: {name}}}, spec: {{backoffLimit: 3, template: {{spec: {spec}}}}}}}"
            ),
        };
        self.lab.cluster.apply_yaml(&yaml).await.with_context(|| yaml.clone())?;
        Ok(())
    }

    /// Waits for a pod, the newest whose name begins with `prefix`, that `holds`.
    async fn pod(&self, prefix: &str, what: &str, holds: impl Fn(&Pod) -> bool) -> Result<Pod> {
        let mut last = String::new();
        let found = eventually(&format!("pod {prefix}* {what}"), async || {
            let mut pods = self.pods().list(&ListParams::default()).await?.items;
            pods.sort_by_key(ResourceExt::creation_timestamp);
            let pod = pods.into_iter().rev().find(|pod| pod.name_any().starts_with(prefix));
            last = serde_json::to_string_pretty(&pod.as_ref().map(|pod| &pod.status))?;
            Ok(pod.filter(&holds))
        })
        .await;
        found.with_context(|| format!("its status is {last}"))
    }

    /// Waits for a line in a container's log.
    async fn said(&self, pod: &str, container: &str, line: &str) -> Result<()> {
        eventually(&format!("{line} in the log of {pod}/{container}"), async || {
            let log = self.runner.logs("default", pod, container).unwrap_or_default();
            Ok(log.lines().any(|said| said == line).then_some(()))
        })
        .await
    }

    async fn job(&self, name: &str, condition: &str) -> Result<Job> {
        let jobs: Api<Job> = Api::default_namespaced(self.client.clone());
        eventually(&format!("job {name} {condition}"), async || {
            let job = jobs.get(name).await?;
            let conditions = job.status.iter().flat_map(|status| status.conditions.iter().flatten());
            let holds = conditions.into_iter().any(|c| c.type_ == condition && c.status == "True");
            Ok(holds.then_some(job))
        })
        .await
    }
}

fn start_runner(cluster: &Cluster, dir: &Path) -> Result<Runner> {
    let programs = [("sh", "/bin/sh"), ("curl", "/usr/bin/curl"), ("idle", "/bin/sleep")];
    Runner::start(
        cluster,
        RunnerConfig {
            node_name: "kvm1".into(),
            dir: dir.into(),
            programs: programs.map(|(name, path)| (name.to_owned(), PathBuf::from(path))).into(),
            host_aliases: BTreeMap::from([("prism.lab".to_owned(), "127.0.0.1".to_owned())]),
            environment: BTreeMap::new(),
            longest_backoff: LONGEST_BACKOFF,
        },
    )
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn container<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    pod.status.as_ref()?.container_statuses.as_ref()?.iter().find(|container| container.name == name)
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn waiting_reason(pod: &Pod) -> String {
    let waiting = container(pod, "c").and_then(|c| c.state.as_ref()?.waiting.as_ref()?.reason.clone());
    waiting.unwrap_or_default()
}

fn is_alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}/exe")).exists()
}

#[tokio::test]
async fn jobs_restart_complete_fail_and_are_killed() -> Result<()> {
    let lab = Lab::start().await?;
    tokio::try_join!(
        killing_one_container_restarts_only_that_one(&lab),
        a_failing_job_gives_up_after_its_backoff_limit(&lab),
        a_killed_pod_is_failed_and_replaced(&lab),
        an_evicted_pod_is_failed_and_says_so(&lab),
    )?;
    Ok(())
}

/// Both containers end once the file appears: one of them is killed before.
async fn killing_one_container_restarts_only_that_one(lab: &Lab) -> Result<()> {
    let done = lab.files.path().join("done");
    let wait = format!("echo started; while [ ! -e {} ]; do sleep 0.1; done; echo done", done.display());
    let spec = format!(
        r#"{{restartPolicy: OnFailure, containers: [
            {{name: relay, image: lab, command: [sh, -c, "{wait}"]}},
            {{name: driver, image: lab, command: [sh, -c, "{wait}"]}}]}}"#
    );
    lab.create("Job", "copy", &spec).await?;
    let pod = lab.pod("copy-", "ready", is_ready).await?;
    assert_eq!(pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()), Some("127.0.0.1"));
    lab.said("copy-", "driver", "started").await?;
    let before = lab.runner.pids("default", "copy-")?;

    lab.runner.kill_container("default", "copy-", "driver", Signal::SIGKILL)?;
    let restarted =
        |pod: &Pod| container(pod, "driver").is_some_and(|c| c.restart_count == 1 && c.ready) && is_ready(pod);
    let pod = lab.pod("copy-", "with its driver restarted", restarted).await?;
    let ended =
        container(&pod, "driver").and_then(|c| c.last_state.as_ref()?.terminated.clone()).context("last state")?;
    assert_eq!((ended.exit_code, ended.signal, ended.reason.as_deref()), (137, Some(9), Some("Error")));
    assert!(ended.started_at.is_some() && ended.finished_at.is_some());
    let after = lab.runner.pids("default", "copy-")?;
    assert_eq!(before["relay"], after["relay"], "the other container goes on");
    assert_ne!(before["driver"], after["driver"]);
    assert_eq!(container(&pod, "relay").map(|c| c.restart_count), Some(0));

    std::fs::write(done, "")?;
    let job = lab.job("copy", "Complete").await?;
    assert_eq!(job.status.and_then(|status| status.succeeded), Some(1));
    assert_eq!(lab.runner.logs("default", "copy-", "driver")?, "started\nstarted\ndone\n");
    assert_eq!(lab.runner.logs("default", "copy-", "relay")?, "started\ndone\n");
    Ok(())
}

async fn a_failing_job_gives_up_after_its_backoff_limit(lab: &Lab) -> Result<()> {
    let spec = r#"{restartPolicy: OnFailure, containers: [{name: c, image: lab, command: [sh, -c, "echo no; exit 3"],
                  terminationMessagePolicy: FallbackToLogsOnError}]}"#;
    lab.create("Job", "failing", spec).await?;
    let looping = |pod: &Pod| waiting_reason(pod) == "CrashLoopBackOff";
    let pod = lab.pod("failing-", "in its back-off", looping).await?;
    let ended = container(&pod, "c").and_then(|c| c.last_state.as_ref()?.terminated.clone()).context("last state")?;
    assert_eq!((ended.exit_code, ended.message.as_deref()), (3, Some("no")));
    let job = lab.job("failing", "Failed").await?;
    let conditions = job.status.and_then(|status| status.conditions).unwrap_or_default();
    assert!(conditions.iter().any(|c| c.reason.as_deref() == Some("BackoffLimitExceeded")), "{conditions:?}");

    let spec = r#"{restartPolicy: Never, containers: [{name: c, image: lab, command: [sh, -c, "exit 3"]}]}"#;
    lab.create("Pod", "once", spec).await?;
    let pod = lab.pod("once", "failed", |pod| phase(pod) == "Failed").await?;
    assert_eq!(container(&pod, "c").map(|c| c.restart_count), Some(0));
    Ok(())
}

async fn a_killed_pod_is_failed_and_replaced(lab: &Lab) -> Result<()> {
    let spec = r#"{restartPolicy: OnFailure, containers: [
        {name: a, image: lab, command: [idle, "600"]}, {name: b, image: lab, command: [idle, "600"]}]}"#;
    lab.create("Job", "lost", spec).await?;
    let first = lab.pod("lost-", "ready", is_ready).await?.name_any();
    let pids = lab.runner.pids("default", &first)?;
    lab.runner.kill_pod("default", &first)?;
    let failed = lab.pod(&first, "failed", |pod| phase(pod) == "Failed").await?;
    assert_eq!(failed.status.as_ref().and_then(|status| status.reason.as_deref()), Some("NodeLost"));
    assert!(pids.values().all(|pid| !is_alive(*pid)));
    let second = lab.pod("lost-", "replaced", |pod| is_ready(pod) && pod.name_any() != first).await?;

    // Deleting the Job collects the pod, and the pod's end kills its processes.
    let pids = lab.runner.pids("default", &second.name_any())?;
    let jobs: Api<Job> = Api::default_namespaced(lab.client.clone());
    jobs.delete(
        "lost",
        &DeleteParams { propagation_policy: Some(PropagationPolicy::Foreground), ..Default::default() },
    )
    .await?;
    eventually("the job and its pods gone", async || {
        let left = lab.pods().list(&ListParams::default()).await?.items;
        Ok((jobs.get_opt("lost").await?.is_none() && !left.iter().any(|pod| pod.name_any().starts_with("lost-")))
            .then_some(()))
    })
    .await?;
    assert_eq!(pids.len(), 2);
    assert!(pids.values().all(|pid| !is_alive(*pid)));
    Ok(())
}

async fn an_evicted_pod_is_failed_and_says_so(lab: &Lab) -> Result<()> {
    let spec = r#"{restartPolicy: Always, containers: [
        {name: c, image: lab, command: [sh, -c, "trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 0.1; done"]}]}"#;
    lab.create("Pod", "evicted", spec).await?;
    lab.said("evicted", "c", "up").await?;
    lab.runner.evict_pod("default", "evicted")?;
    let pod = lab.pod("evicted", "failed", |pod| phase(pod) == "Failed").await?;
    let status = pod.status.context("status")?;
    assert_eq!(status.reason.as_deref(), Some("Evicted"));
    assert!(status.conditions.iter().flatten().any(|condition| condition.type_ == "DisruptionTarget"));
    assert_eq!(lab.runner.logs("default", "evicted", "c")?, "up\nasked\n");
    Ok(())
}

#[tokio::test]
async fn containers_get_their_environment_volumes_and_token() -> Result<()> {
    let lab = Lab::start().await?;
    lab.lab
        .cluster
        .apply_yaml(
            r"
apiVersion: v1
kind: Secret
metadata: {name: login}
stringData: {password: s3cret, user: anna}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {mode: fast, level: '7'}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: default}
rules: [{apiGroups: [''], resources: [configmaps], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: default, namespace: default}]
",
        )
        .await?;
    let secrets_before = Path::new("/run/secrets").exists();
    tokio::try_join!(
        variables_are_resolved(&lab),
        volumes_are_mounted(&lab),
        the_token_works(&lab),
        what_cannot_start_says_why(&lab),
    )?;
    let made: Vec<_> = std::fs::read_dir("/run")?.filter_map(Result::ok).map(|entry| entry.file_name()).collect();
    assert!(
        !made.iter().any(|name| name.to_string_lossy().starts_with("drover-lab-")),
        "left behind in /run: {made:?}"
    );
    assert_eq!(Path::new("/run/secrets").exists(), secrets_before);
    Ok(())
}

async fn variables_are_resolved(lab: &Lab) -> Result<()> {
    let spec = r#"{restartPolicy: Never, containers: [{name: c, image: lab, command: [sh, -c],
        args: ["echo $(GREETING); echo $NAME/$NS/$NODE/$IP; echo $PASSWORD $LEVEL $CFG_mode $user $MEMORY ${ABSENT-absent}"],
        resources: {limits: {memory: 512Mi}},
        envFrom: [{prefix: CFG_, configMapRef: {name: settings}}, {secretRef: {name: login}}, {secretRef: {name: none, optional: true}}],
        env: [
          {name: WHO, value: world}, {name: GREETING, value: "hello $(WHO)"},
          {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}},
          {name: NS, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}},
          {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}},
          {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}},
          {name: PASSWORD, valueFrom: {secretKeyRef: {name: login, key: password}}},
          {name: LEVEL, valueFrom: {configMapKeyRef: {name: settings, key: level}}},
          {name: ABSENT, valueFrom: {secretKeyRef: {name: login, key: none, optional: true}}},
          {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}]}]}"#;
    lab.create("Pod", "variables", spec).await?;
    lab.pod("variables", "succeeded", |pod| phase(pod) == "Succeeded").await?;
    let said = lab.runner.logs("default", "variables", "c")?;
    assert_eq!(said, "hello world\nvariables/default/kvm1/127.0.0.1\ns3cret 7 fast anna 512 absent\n");
    Ok(())
}

async fn volumes_are_mounted(lab: &Lab) -> Result<()> {
    let host = lab.files.path().join("host");
    std::fs::create_dir(&host)?;
    let host = host.display();
    // The first container writes what the second one waits for.
    let script = format!(
        "cat /run/drover-lab-test/login/password /run/drover-lab-test/settings/how; echo; getent hosts prism.lab; echo kept > {host}/file; \
         echo shared > /run/drover-lab-test/scratch/file; touch /run/drover-lab-test/login/x || echo read-only"
    );
    let spec = format!(
        r#"{{restartPolicy: Never, automountServiceAccountToken: false,
        containers: [
          {{name: writer, image: lab, command: [sh, -c, "{script}"], volumeMounts: [
            {{name: login, mountPath: /run/drover-lab-test/login, readOnly: true}},
            {{name: settings, mountPath: /run/drover-lab-test/settings}},
            {{name: scratch, mountPath: /run/drover-lab-test/scratch}},
            {{name: host, mountPath: "{host}"}}]}},
          {{name: c, image: lab, workingDir: /var/run/drover-lab-other,
            command: [sh, -c, "while [ ! -e file ]; do sleep 0.1; done; cat file; ls /run/drover-lab-test 2>&1 || true"], volumeMounts: [
            {{name: scratch, mountPath: /var/run/drover-lab-other}}]}}],
        volumes: [
          {{name: login, secret: {{secretName: login}}}},
          {{name: settings, configMap: {{name: settings, items: [{{key: mode, path: how}}]}}}},
          {{name: scratch, emptyDir: {{}}}},
          {{name: host, hostPath: {{path: "{host}", type: Directory}}}}]}}"#
    );
    lab.create("Pod", "volumes", &spec).await?;
    lab.pod("volumes", "succeeded", |pod| phase(pod) == "Succeeded").await?;
    let said = lab.runner.logs("default", "volumes", "writer")?;
    for part in ["s3cretfast\n", "127.0.0.1", "read-only\n"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let said = lab.runner.logs("default", "volumes", "c")?;
    assert!(
        said.starts_with("shared\n") && said.contains("No such file"),
        "each container sees its own mounts: {said}"
    );
    assert_eq!(std::fs::read_to_string(lab.files.path().join("host/file"))?, "kept\n");
    Ok(())
}

/// A real client with the mounted token and CA, as a controller in a pod would use them.
async fn the_token_works(lab: &Lab) -> Result<()> {
    let ask = "d=/var/run/secrets/kubernetes.io/serviceaccount; cat $d/namespace; echo; for what in configmaps/settings secrets/login; do \
        curl -sS --cacert $d/ca.crt -H \\\"Authorization: Bearer $(cat $d/token)\\\" -o /dev/null -w '%{http_code}\\\\n' \
        https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT/api/v1/namespaces/default/$what; done";
    let spec =
        format!(r#"{{restartPolicy: Never, containers: [{{name: c, image: lab, command: [sh, -c, "{ask}"]}}]}}"#);
    lab.create("Pod", "token", &spec).await?;
    lab.pod("token", "succeeded", |pod| phase(pod) == "Succeeded").await?;
    assert_eq!(lab.runner.logs("default", "token", "c")?, "default\n200\n403\n");
    Ok(())
}

async fn what_cannot_start_says_why(lab: &Lab) -> Result<()> {
    let nowhere = r#"{containers: [{name: c, image: lab, command: [idle, "600"], volumeMounts: [{name: v, mountPath: /no/such/place}]}],
        volumes: [{name: v, emptyDir: {}}]}"#;
    for (name, spec, reason, message) in [
        ("unknown", "{containers: [{name: c, image: example.com/unknown:v1}]}", "ErrImagePull", "no program for"),
        ("nowhere", nowhere, "CreateContainerConfigError", "mountPath /no/such/place cannot be made"),
        (
            "no-secret",
            "{containers: [{name: c, image: idle, args: ['600'], envFrom: [{secretRef: {name: late}}]}]}",
            "CreateContainerConfigError",
            "Secret late not found",
        ),
    ] {
        lab.create("Pod", name, spec).await?;
        let pod = lab.pod(name, reason, |pod| waiting_reason(pod) == reason).await?;
        assert_eq!(phase(&pod), "Pending");
        let said = serde_json::to_string(&pod.status)?;
        assert!(said.contains(message), "{said}");
    }
    lab.lab.cluster.apply_yaml("{apiVersion: v1, kind: Secret, metadata: {name: late}}").await?;
    lab.pod("no-secret", "ready once the secret is there", is_ready).await?;
    Ok(())
}

#[tokio::test]
async fn pods_end_as_asked_and_outlive_a_broken_watch() -> Result<()> {
    let lab = Lab::start().await?;
    let leases: Api<Lease> = Api::namespaced(lab.client.clone(), "kube-node-lease");
    eventually("the node's lease", async || Ok(leases.get_opt("kvm1").await?)).await?;
    deletion_asks_first_and_kills_after_the_grace_period(&lab).await?;
    pods_outlive_the_api_server(&lab).await?;
    a_new_runner_takes_over(lab).await
}

async fn deletion_asks_first_and_kills_after_the_grace_period(lab: &Lab) -> Result<()> {
    let spec = r#"{containers: [
        {name: polite, image: lab, command: [sh, -c, "trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 0.1; done"]},
        {name: stubborn, image: lab, command: [sh, -c, "trap '' TERM; echo up; while :; do sleep 0.1; done"]}]}"#;
    lab.create("Pod", "ending", spec).await?;
    lab.said("ending", "polite", "up").await?;
    lab.said("ending", "stubborn", "up").await?;
    lab.pod("ending", "ready", is_ready).await?;
    let pids = lab.runner.pids("default", "ending")?;
    lab.pods().delete("ending", &DeleteParams::default()).await?;
    let half = |pod: &Pod| {
        container(pod, "polite").is_some_and(|c| !c.ready) && container(pod, "stubborn").is_some_and(|c| c.ready)
    };
    lab.pod("ending", "with its polite container ended", half).await?;
    assert!(is_alive(pids["stubborn"]));
    eventually("the pod gone", async || Ok(lab.pods().get_opt("ending").await?.is_none().then_some(()))).await?;
    assert!(pids.values().all(|pid| !is_alive(*pid)));
    assert_eq!(lab.runner.logs("default", "ending", "polite")?, "up\nasked\n");
    Ok(())
}

async fn pods_outlive_the_api_server(lab: &Lab) -> Result<()> {
    lab.create("Pod", "lasting", r#"{containers: [{name: c, image: lab, command: [idle, "600"]}]}"#).await?;
    lab.pod("lasting", "ready", is_ready).await?;
    let before = lab.runner.pids("default", "lasting")?;
    lab.lab.cluster.restart_api_server()?;
    assert_eq!(lab.runner.pids("default", "lasting")?, before);

    // A container that dies while nothing answers is started again all the same, and the status follows later.
    lab.lab.cluster.pause_api_server()?;
    lab.runner.kill_container("default", "lasting", "c", Signal::SIGKILL)?;
    let restarted = eventually("the container restarted", async || {
        let now = lab.runner.pids("default", "lasting")?;
        Ok((now.len() == 1 && now != before).then_some(()))
    })
    .await;
    lab.lab.cluster.resume_api_server()?;
    restarted?;
    lab.pod("lasting", "restarted", |pod| container(pod, "c").is_some_and(|c| c.restart_count == 1 && c.ready)).await?;

    // The watch works again, too.
    lab.create("Pod", "later", r#"{containers: [{name: c, image: lab, command: [idle, "600"]}]}"#).await?;
    lab.pod("later", "ready", is_ready).await?;
    Ok(())
}

/// Dropping the runner is a power cut; the next one finds the pods in the API and starts their containers again.
async fn a_new_runner_takes_over(lab: Lab) -> Result<()> {
    let pids = lab.runner.pids("default", "lasting")?;
    let Lab { runner, client, lab, files } = lab;
    drop(runner);
    assert!(pids.values().all(|pid| !is_alive(*pid)));
    let runner = start_runner(&lab.cluster, files.path())?;
    let lab = Lab { runner, client, lab, files };
    lab.pod("lasting", "restarted", |pod| container(pod, "c").is_some_and(|c| c.restart_count == 2 && c.ready)).await?;
    Ok(())
}
