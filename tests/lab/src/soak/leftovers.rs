//! What must be gone once the migrations are deleted.

use anyhow::Result;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use crate::lab::{Lab, SYSTEM};
use crate::libvirt::Domain;

/// Everything of Drover's that is still there, by name; the controller itself stays.
pub async fn leftovers(lab: &Lab, sources: &[Domain]) -> Result<Vec<String>> {
    let all = ListParams::default();
    let mut left = Vec::new();
    left.extend(lab.migrations().list(&all).await?.iter().map(|found| format!("VmMigration {}", found.name_any())));
    left.extend(lab.copies().list(&all).await?.iter().map(|found| format!("BlockCopy {}", found.name_any())));
    let jobs = Api::<Job>::namespaced(lab.client.clone(), SYSTEM).list(&all).await?;
    left.extend(jobs.iter().map(|found| format!("Job {}", found.name_any())));
    let pods = Api::<Pod>::namespaced(lab.client.clone(), SYSTEM).list(&all).await?;
    let host_side = pods.iter().filter(|pod| !pod.name_any().starts_with("drover-operator"));
    left.extend(host_side.map(|found| format!("Pod {}", found.name_any())));
    left.extend(relays(lab));
    left.extend(files(lab, |name| name.ends_with(".json") || name.ends_with(".draft")));
    for source in sources {
        let xml = source.xml()?;
        for trace in ["https://drover.dev/migration", "<mirror"] {
            if xml.contains(trace) {
                left.push(format!("{trace} in the definition of {}", source.name));
            }
        }
    }
    Ok(left)
}

/// Processes that look after one of this lab's guests from inside a host-side pod.
fn relays(lab: &Lab) -> Vec<String> {
    let dir = lab.dir().display().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let read = |name: &str| {
            let bytes = std::fs::read(entry.path().join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\0', " ")
        };
        let command_line = read("cmdline");
        let is_host_side = ["relay", "driver"].iter().any(|word| command_line.split(' ').any(|part| part == *word));
        if is_host_side && (command_line.contains(&dir) || read("environ").contains(&dir)) {
            found.push(format!("process {pid}: {command_line}"));
        }
    }
    found
}

/// What does nothing, but is still in the run directory until the host boots: a lock that nobody holds and the relay's dead sockets.
pub fn inert(lab: &Lab) -> usize {
    let entries = std::fs::read_dir(lab.dir().join("run")).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name() != "claims").count() + files(lab, |name| name.ends_with(".lock")).len()
}

fn files(lab: &Lab, is_meant: impl Fn(&str) -> bool) -> Vec<String> {
    let entries = std::fs::read_dir(lab.dir().join("run/claims")).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| is_meant(name)).map(|name| format!("claim file {name}")).collect()
}
