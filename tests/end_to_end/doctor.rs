//! `drover doctor` and `drover host doctor`: they find what the lab's own check finds, nothing else, and what they advise clears it away.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use drover::api::block_copy::Want;
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::Value;

use super::*;

/// Exit code, and the report as JSON or, if there is none, the text.
type Answer = (i32, Value);

fn answer(mut command: Command, input: &str) -> Answer {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

fn drover(lab: &Lab, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_drover"));
    command.args(arguments).env("KUBECONFIG", lab.cluster.kubeconfig());
    command
}

fn in_the_cluster(lab: &Lab) -> Answer {
    answer(drover(lab, &["doctor", "-o", "json"]), "")
}

/// As an operator pipes one into the other.
fn on_the_host(lab: &Lab) -> Answer {
    let (code, living) = answer(drover(lab, &["doctor", "--living"]), "");
    assert_eq!(code, 0, "{living}");
    on_the_host_with(lab, &lab.libvirt.uri(), &lab.run_directory(), living.as_str().unwrap())
}

fn on_the_host_with(lab: &Lab, uri: &str, run_directory: &Path, living: &str) -> Answer {
    let mut command = drover(lab, &["host", "doctor", "--living", "-", "-o", "json", "--uri", uri, "--run-directory"]);
    command.arg(run_directory);
    answer(command, living)
}

/// Both sides find nothing.
pub fn finds_nothing(lab: &Lab) {
    let nothing = json!({"leftovers": [], "unknown": []});
    assert_eq!(in_the_cluster(lab), (0, nothing.clone()));
    assert_eq!(on_the_host(lab), (0, nothing));
}

fn leftovers(answer: &Answer) -> Vec<(String, String)> {
    let text = |leftover: &Value, field: &str| leftover[field].as_str().unwrap().to_owned();
    let all = answer.1["leftovers"].as_array().unwrap_or_else(|| panic!("{answer:?}"));
    all.iter().map(|leftover| (text(leftover, "what"), text(leftover, "todo"))).collect()
}

/// What a finding is about, in the same words for the lab's check and for Drover's: an object's or file's name, a process's number.
fn subject(finding: &str) -> String {
    let words: Vec<&str> = finding.split_whitespace().collect();
    match words.as_slice() {
        ["a", what @ ("mirror" | "mark"), ..] | [what @ ("mirror" | "mark"), ..] => (*what).to_owned(),
        ["process", pid, ..] => format!("process {pid}"),
        [_, name, ..] => name.rsplit('/').next().unwrap().to_owned(),
        _ => panic!("{finding}"),
    }
}

fn subjects<'a>(findings: impl Iterator<Item = &'a String>) -> BTreeSet<String> {
    findings.map(|finding| subject(finding)).collect()
}

/// Carries out the commands of an advice.
fn follow(lab: &Lab, advice: &str) {
    for command in advice.split("kubectl ").skip(1) {
        let end = command.find(" when ").or_else(|| command.find(", and")).unwrap_or(command.len());
        let command = command[..end].trim_end_matches([';', ' ']);
        let shell = format!("{:?} {command}", lab.cluster.kubectl().get_program());
        let done =
            Command::new("sh").args(["-c", &shell]).env("KUBECONFIG", lab.cluster.kubeconfig()).output().unwrap();
        assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
    }
}

/// What to do about a leftover.
fn advice(answer: &Answer, what: &str) -> String {
    let all = leftovers(answer);
    all.iter().find(|(found, _)| found.starts_with(what)).unwrap_or_else(|| panic!("no {what}: {all:?}")).1.clone()
}

/// Takes the operator away, as somebody does who removes it before its migrations.
async fn remove_operator(lab: &Lab) {
    let deployments: Api<Deployment> = Api::namespaced(lab.client.clone(), SYSTEM);
    let none = Patch::Merge(json!({"spec": {"replicas": 0}}));
    deployments.patch("drover-operator", &PatchParams::default(), &none).await.unwrap();
    let start = Instant::now();
    while lab.runner.pids(SYSTEM, "drover-operator").is_ok_and(|pids| !pids.is_empty()) {
        assert!(start.elapsed() < PATIENCE, "the operator does not end");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_migration_leaves_that_was_forced_away_is_found_and_the_advice_clears_it() {
    let (_dir, lab) = lab(LabOptions::default()).await;
    let source = guest(&lab, GuestSpec { disks: vec![64 * MIB], ..GuestSpec::default() });
    finds_nothing_on_a_host_that_was_never_used(&lab);
    lab.migrate("web01").await.unwrap();
    in_sync(&lab, "web01").await;
    let uid = lab.migrations().get("web01").await.unwrap().metadata.uid.unwrap();
    finds_nothing(&lab);

    remove_operator(&lab).await;
    let no_finalizers = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    lab.migrations().patch("web01", &PatchParams::default(), &no_finalizers).await.unwrap();
    lab.migrations().delete("web01", &DeleteParams::default()).await.unwrap();
    let mut by_the_lab = lab.leftovers_of(&uid).await.unwrap();
    by_the_lab.extend(lab.leftovers_on_host(&source, false).unwrap());
    let (cluster, host) = (in_the_cluster(&lab), on_the_host(&lab));
    assert_eq!((cluster.0, host.0), (1, 1), "{cluster:?} {host:?}");
    let (in_cluster, on_host) = (leftovers(&cluster), leftovers(&host));
    assert_eq!(subjects(in_cluster.iter().chain(&on_host).map(|(what, _)| what)), subjects(by_the_lab.iter()));
    for kind in ["BlockCopy", "Job", "pod"] {
        assert!(in_cluster.iter().any(|(what, _)| what.starts_with(kind)), "no {kind}: {in_cluster:?}");
    }
    for kind in ["mirror", "mark", "process", "claim", "file"] {
        assert!(on_host.iter().any(|(what, _)| what.starts_with(kind)), "no {kind}: {on_host:?}");
    }

    // The order is given as it is advised, up to the release; then the rest.
    let give_back = advice(&cluster, "BlockCopy");
    follow(&lab, give_back.split("; when ").next().unwrap());
    let start = Instant::now();
    while lab.copy_of("web01").await.unwrap().status.unwrap_or_default().reached != Some(Want::Release) {
        assert!(start.elapsed() < PATIENCE, "the source is not released\n{}", lab.describe("web01").await);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let released = in_the_cluster(&lab);
    follow(&lab, &advice(&released, "Job"));
    follow(&lab, &advice(&released, "BlockCopy"));
    let start = Instant::now();
    while in_the_cluster(&lab).0 != 0 || on_the_host(&lab).0 != 0 {
        let found = (in_the_cluster(&lab), on_the_host(&lab));
        assert!(start.elapsed() < PATIENCE, "{found:?}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(lab.leftovers_of(&uid).await.unwrap(), [""; 0]);
    assert_eq!(lab.leftovers_on_host(&source, false).unwrap(), [""; 0]);
    let had = source.console().last_ack().unwrap();
    source.wait_for_ack(had + 10, PATIENCE).unwrap();
    what_cannot_be_looked_at_is_not_nothing(&lab);
}

/// Where no directory is, nobody can say that nothing is in it.
fn finds_nothing_on_a_host_that_was_never_used(lab: &Lab) {
    let (code, report) = on_the_host(lab);
    assert_eq!((code, &report["leftovers"]), (2, &json!([])), "{report}");
    std::fs::create_dir(lab.run_directory()).unwrap();
    finds_nothing(lab);
}

fn what_cannot_be_looked_at_is_not_nothing(lab: &Lab) {
    let nowhere = Path::new("/nonexistent");
    let unknown = |answer: Answer| {
        assert_eq!(answer.0, 2, "{answer:?}");
        assert_ne!(answer.1["unknown"], json!([]));
    };
    let (_, living) = answer(drover(lab, &["doctor", "--living"]), "");
    let living = living.as_str().unwrap();
    unknown(on_the_host_with(lab, "qemu:///system?socket=/nonexistent", &lab.run_directory(), living));
    unknown(on_the_host_with(lab, &lab.libvirt.uri(), nowhere, living));
    unknown(on_the_host_with(lab, &lab.libvirt.uri(), &lab.run_directory(), ""));
    for arguments in [["doctor", "-o", "json"].as_slice(), &["doctor", "--living"]] {
        let mut elsewhere = drover(lab, arguments);
        elsewhere.env("KUBECONFIG", nowhere);
        assert_eq!(answer(elsewhere, "").0, 2, "{arguments:?}");
    }
    let user = lab.cluster.kubeconfig_for("somebody", &[]).unwrap();
    let mut without_rights = drover(lab, &["doctor", "-o", "json"]);
    without_rights.env("KUBECONFIG", user);
    unknown(answer(without_rights, ""));
}
