//! What a migration leaves behind: nothing, but for what is kept on purpose.
//!
//! Kept: the Terraform file and the target VM, the mark on a source that was moved away, and two lock files: of the relay, in its own
//! directory, and of the driver, beside the claims. They are empty, and a lock whose file is removed no longer locks whoever opens it next.

use std::path::Path;

use anyhow::Result;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;

use super::{Lab, SYSTEM};
use crate::libvirt::Domain;

impl Lab {
    /// What should not be on the hypervisor once the machine was given back or the migration is gone.
    pub fn leftovers_on_host(&self, domain: &Domain, moved_away: bool) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let (live, inactive) = (domain.xml()?, self.libvirt.virsh(&["dumpxml", "--inactive", &domain.name])?);
        if live.contains("<mirror") {
            found.push("a mirror on the domain".to_owned());
        }
        if (live.contains("drover.dev") || inactive.contains("drover.dev")) && !moved_away {
            found.push("a mark in the domain's metadata".to_owned());
        }
        let uuid = self.libvirt.virsh(&["domuuid", &domain.name])?.trim().to_owned();
        found.extend(names_with(&self.run_directory().join("claims"), &uuid, "claim"));
        Ok(found)
    }

    /// What should not be anywhere once the migration with this uid is gone.
    pub async fn leftovers_of(&self, uid: &str) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for copy in self.copies().list(&ListParams::default()).await? {
            if copy.spec.claim.uid == uid {
                found.push(format!("BlockCopy {}", kube::ResourceExt::name_any(&copy)));
            }
        }
        let labelled = ListParams::default().labels(&format!("{}={uid}", drover::api::MIGRATION_LABEL));
        let jobs = Api::<Job>::namespaced(self.client.clone(), SYSTEM).list(&labelled).await?;
        found.extend(jobs.iter().map(|job| format!("Job {}", kube::ResourceExt::name_any(job))));
        let pods = Api::<Pod>::namespaced(self.client.clone(), SYSTEM).list(&labelled).await?;
        found.extend(pods.iter().map(|pod| format!("pod {}", kube::ResourceExt::name_any(pod))));
        let run_directory = self.run_directory();
        found.extend(processes_with(&run_directory.join(uid).display().to_string()));
        let files = names_with(&run_directory.join(uid), "", "file");
        let claims = names_with(&run_directory.join("claims"), uid, "claim");
        found.extend(files.into_iter().chain(claims).filter(|name| !name.ends_with(".lock")));
        Ok(found)
    }
}

/// Entries of a directory whose names contain `part`.
fn names_with(directory: &Path, part: &str, what: &str) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.contains(part)).map(|name| format!("{what} {name}")).collect()
}

/// Processes of this machine with `part` on their command line.
fn processes_with(part: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let commands = entries.filter_map(|entry| {
        let command = std::fs::read(entry.path().join("cmdline")).ok()?;
        Some((entry.file_name(), String::from_utf8_lossy(&command).replace('\0', " ")))
    });
    commands
        .filter(|(_, command)| command.contains(part))
        .map(|(pid, command)| format!("process {} {}", pid.to_string_lossy(), command.trim()))
        .collect()
}
