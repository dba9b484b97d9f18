//! The cluster's side: what bears Drover's kinds and labels, and belongs to no migration that lives.

use std::collections::BTreeSet;

use jiff::Timestamp;
use kube::ResourceExt;
use kube::api::ObjectMeta;

use super::Leftover;
use crate::api::block_copy::{BlockCopyStatus, Want};
use crate::api::common::Time;
use crate::api::{BlockCopy, MIGRATION_FINALIZER, MIGRATION_LABEL, VmMigration};

/// What was listed. The migrations were listed last: what one of them is still creating is not taken for nobody's.
#[derive(Clone, Debug, Default)]
pub struct ClusterSeen {
    pub migrations: Vec<VmMigration>,
    pub copies: Vec<BlockCopy>,
    /// Jobs and pods that bear [`MIGRATION_LABEL`].
    pub jobs: Vec<ObjectMeta>,
    pub pods: Vec<ObjectMeta>,
}

/// How long a host side may be silent: it reports every 3 s, and starting one takes a moment.
const SILENT_SECONDS: i64 = 120;
/// How long the deletion of a Job or a pod may take beyond its own grace period.
const ENDING_SECONDS: i64 = 120;
/// How long the deletion of a migration may take before it counts as stuck. A guest's shutdown that is called off is watched for 10 min.
const DELETING_SECONDS: i64 = 900;

/// The uids of the migrations that live.
pub fn living_uids(migrations: &[VmMigration]) -> BTreeSet<String> {
    migrations.iter().filter_map(ResourceExt::uid).collect()
}

/// Finds what was left behind.
pub fn cluster(seen: &ClusterSeen, now: Timestamp) -> Vec<Leftover> {
    let look = Look { seen, living: living_uids(&seen.migrations), now };
    let migrations = seen.migrations.iter().filter_map(|migration| look.migration(migration));
    let copies = seen.copies.iter().filter_map(|copy| look.copy(copy));
    let jobs = seen.jobs.iter().filter_map(|job| look.job(job));
    let pods = seen.pods.iter().filter_map(|pod| look.pod(pod));
    migrations.chain(copies).chain(jobs).chain(pods).collect()
}

struct Look<'a> {
    seen: &'a ClusterSeen,
    living: BTreeSet<String>,
    now: Timestamp,
}

/// `kubectl` names it so.
fn place(metadata: &ObjectMeta) -> (&str, &str) {
    (metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
}

fn found(kind: &str, metadata: &ObjectMeta, why: String, todo: String) -> Leftover {
    let (namespace, name) = place(metadata);
    Leftover { what: format!("{kind} {namespace}/{name}"), why, todo }
}

impl Look<'_> {
    fn seconds_since(&self, then: Option<&Time>) -> Option<i64> {
        then.map(|Time(then)| self.now.duration_since(*then).as_secs())
    }

    /// Since when an object is being deleted, if that takes longer than it should.
    fn stuck(&self, metadata: &ObjectMeta, limit: i64) -> Option<String> {
        let since = metadata.deletion_timestamp.as_ref();
        let Time(then) = since.filter(|_| self.seconds_since(since).is_some_and(|age| age > limit))?;
        Some(format!("it is being deleted since {then:.0}"))
    }

    fn migration(&self, migration: &VmMigration) -> Option<Leftover> {
        let stuck = self.stuck(&migration.metadata, DELETING_SECONDS)?;
        let ours = migration.finalizers().iter().any(|finalizer| finalizer == MIGRATION_FINALIZER);
        let waiting = migration.status.as_ref().and_then(|status| status.waiting_for.as_ref());
        let (why, todo) = match waiting.filter(|_| ours) {
            Some(waiting) => (format!("{stuck}; it waits for {}", waiting.reason), waiting.message.clone()),
            None if ours => (stuck, "see whether Drover's operator runs, and what it logs".into()),
            None => (
                format!("{stuck}; finalizers of others hold it: {}", migration.finalizers().join(", ")),
                "see what these wait for; Drover is done with it".into(),
            ),
        };
        Some(found("VmMigration", &migration.metadata, why, todo))
    }

    fn copy(&self, copy: &BlockCopy) -> Option<Leftover> {
        let claim = &copy.spec.claim;
        let (why, todo) = if self.living.contains(&claim.uid) {
            (self.silent(copy)?, "see its pod, its node and that node's clock".into())
        } else {
            let why = format!("its VmMigration {}/{} (uid {}) is gone", claim.namespace, claim.name, claim.uid);
            (why, give_the_machine_back(copy))
        };
        Some(found("BlockCopy", &copy.metadata, why, todo))
    }

    /// Since when nobody carries its orders out.
    fn silent(&self, copy: &BlockCopy) -> Option<String> {
        let reported = copy.status.as_ref().and_then(|status| status.seen_at.as_ref());
        let since = reported.or(copy.metadata.creation_timestamp.as_ref())?;
        let silent = self.seconds_since(Some(since))? > SILENT_SECONDS;
        silent.then(|| format!("its host side is silent since {:.0}", since.0))
    }

    /// A Job without a BlockCopy has no orders; its deletion comes first, so that there never is one for long.
    fn job(&self, job: &ObjectMeta) -> Option<Leftover> {
        let stuck = self.stuck(job, ENDING_SECONDS);
        let why = self.nobodys(job).or_else(|| stuck.clone())?;
        Some(found("Job", job, why, self.end(job, "job", stuck)))
    }

    fn pod(&self, pod: &ObjectMeta) -> Option<Leftover> {
        let stuck = self.stuck(pod, ENDING_SECONDS);
        let owners = pod.owner_references.iter().flatten();
        let has_job =
            owners.map(|owner| &owner.uid).any(|uid| self.seen.jobs.iter().any(|job| job.uid.as_ref() == Some(uid)));
        let orphan = || (!has_job && pod.deletion_timestamp.is_none()).then(|| "its Job is gone".to_owned());
        let why = self.nobodys(pod).or_else(orphan).or_else(|| stuck.clone())?;
        Some(found("pod", pod, why, self.end(pod, "pod", stuck)))
    }

    /// How a Job or a pod is ended.
    fn end(&self, metadata: &ObjectMeta, kind: &str, stuck: Option<String>) -> String {
        let (namespace, name) = place(metadata);
        let orphaned = |copy: &BlockCopy| !self.living.contains(&copy.spec.claim.uid);
        match (stuck, metadata.deletion_timestamp.is_some()) {
            (Some(_), _) => "see its node: Kubernetes waits for the end of its processes there".into(),
            (None, true) => "it is ending: look again in a moment".into(),
            (None, false) if self.copy_of(label(metadata)).is_some_and(orphaned) => {
                format!("when its BlockCopy is released: kubectl -n {namespace} delete {kind} {name}")
            }
            (None, false) => format!("kubectl -n {namespace} delete {kind} {name}"),
        }
    }

    /// Why an object with our label serves nobody.
    fn nobodys(&self, metadata: &ObjectMeta) -> Option<String> {
        let uid = label(metadata);
        if !self.living.contains(uid) {
            return Some(format!("the migration that it served (uid {uid}) is gone"));
        }
        self.copy_of(uid).is_none().then(|| "there is no BlockCopy with orders for it".into())
    }

    fn copy_of(&self, uid: &str) -> Option<&BlockCopy> {
        self.seen.copies.iter().find(|copy| copy.spec.claim.uid == uid)
    }
}

fn label(metadata: &ObjectMeta) -> &str {
    metadata.labels.as_ref().and_then(|labels| labels.get(MIGRATION_LABEL)).map_or("", String::as_str)
}

/// The orders that a person gives in place of a migration that is gone.
fn give_the_machine_back(copy: &BlockCopy) -> String {
    let (namespace, name) = place(&copy.metadata);
    let report = copy.status.clone().unwrap_or_default();
    let patch = |patch: &str| format!("kubectl -n {namespace} patch blockcopy {name} --type merge -p '{patch}'");
    let migrated = report.domain.as_ref().is_some_and(|domain| domain.migrated);
    let end = match copy.spec.want {
        Want::Undo => Want::Undo,
        Want::KeepOff | Want::Retire => Want::Retire,
        Want::Inspect | Want::Canary | Want::Mirror | Want::Quiesce | Want::Release if migrated => Want::Retire,
        Want::Inspect | Want::Canary | Want::Mirror | Want::Quiesce | Want::Release => Want::Release,
    };
    let remove =
        format!("{}, and kubectl -n {namespace} delete blockcopy {name}", patch(r#"{"metadata":{"finalizers":null}}"#));
    if ended(copy, &report) {
        return format!("it is released: {remove}");
    }
    let first = match (copy.spec.want, end) {
        (Want::Quiesce, Want::Release) => "see in Prism whether its target runs; only if it does not: ",
        (_, _) => "",
    };
    let order = patch(&format!(r#"{{"spec":{{"want":"{end:?}","epoch":{}}}}}"#, copy.spec.epoch + 1));
    format!("{first}{order}; when status.reached says {end:?}: {remove}")
}

fn ended(copy: &BlockCopy, report: &BlockCopyStatus) -> bool {
    let end = matches!(report.reached, Some(Want::Release | Want::Undo | Want::Retire));
    end && report.epoch == Some(copy.spec.epoch) && report.reached == Some(copy.spec.want)
}
