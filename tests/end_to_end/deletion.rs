//! Deletion at any moment and with any propagation, as people and Argo CD do it: the source comes to no harm, it ends, and nothing is left.
//!
//! The garbage collector is the real one. With `Foreground` it collects what an object owns while the object's finalizers are pending.

use drover::api::TerraformRepository;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::{PostParams, PropagationPolicy};

use super::*;

/// Deletes an object with a propagation of the caller's choice.
async fn delete<K>(api: &Api<K>, name: &str, policy: PropagationPolicy)
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let parameters = DeleteParams { propagation_policy: Some(policy), ..DeleteParams::default() };
    api.delete(name, &parameters).await.unwrap();
}

/// Waits until the object of the migration is gone.
async fn gone(lab: &Lab, name: &str) {
    let start = Instant::now();
    while lab.migrations().get_opt(name).await.unwrap().is_some() {
        assert!(start.elapsed() < PATIENCE, "{name} does not go\n{}", lab.describe(name).await);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn jobs(lab: &Lab) -> Api<Job> {
    Api::namespaced(lab.client.clone(), SYSTEM)
}

/// Waits until the Job of a migration is another one than `before`, and its pod runs.
async fn another_job(lab: &Lab, name: &str, before: &str) {
    let start = Instant::now();
    loop {
        let job = jobs(lab).get_opt(name).await.unwrap();
        let uid = job.and_then(|job| job.metadata.uid);
        if uid.is_some_and(|uid| uid != before) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "the Job {name} is not made again");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn uid_of_job(lab: &Lab, name: &str) -> String {
    jobs(lab).get(name).await.unwrap().metadata.uid.unwrap()
}

/// Sees that the source runs, writes and is what it was before, that nothing is left, and what was kept.
async fn given_back(lab: &Lab, uid: &str, source: &Domain) {
    assert_eq!(source.state().unwrap(), "running");
    let had = source.console().last_ack().unwrap();
    source.wait_for_ack(had + 10, PATIENCE).unwrap();
    assert_eq!(source.console().lost_at_boots(), 0);
    nothing_is_left(lab, uid, source, false).await;
}

/// Waits until nothing of the migration is left but what is kept on purpose.
async fn nothing_is_left(lab: &Lab, uid: &str, source: &Domain, moved_away: bool) {
    let start = Instant::now();
    loop {
        let mut left = lab.leftovers_of(uid).await.unwrap();
        left.extend(lab.leftovers_on_host(source, moved_away).unwrap());
        if left.is_empty() {
            // Drover's own look agrees.
            return doctor::finds_nothing(lab);
        }
        assert!(start.elapsed() < PATIENCE, "left behind: {left:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Waits until the garbage collector knows BlockCopies: it looks for new kinds now and then. Without it a deletion in the foreground
/// does not end.
async fn collector_knows_block_copies(lab: &Lab, like: &BlockCopy) {
    let mut canary = BlockCopy::new("canary", like.spec.clone());
    canary.spec.claim.name = "canary".into();
    lab.copies().create(&PostParams::default(), &canary).await.unwrap();
    delete(&lab.copies(), "canary", PropagationPolicy::Foreground).await;
    let start = Instant::now();
    while lab.copies().get_opt("canary").await.unwrap().is_some() {
        assert!(start.elapsed() < PATIENCE, "the garbage collector does not know BlockCopies");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn uid(lab: &Lab, name: &str) -> String {
    lab.migrations().get(name).await.unwrap().metadata.uid.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreground_deletion_in_the_copy_and_in_sync_gives_the_source_back() {
    let (_dir, lab) = lab(slow_storage()).await;
    let source = guest(&lab, GuestSpec { disks: vec![64 * MIB], ..GuestSpec::default() });
    lab.migrate("web01").await.unwrap();
    copying(&lab, "web01").await;
    let first = uid(&lab, "web01").await;
    delete(&lab.migrations(), "web01", PropagationPolicy::Foreground).await;
    gone(&lab, "web01").await;
    given_back(&lab, &first, &source).await;
    // Created again, as git would: the target of the first one is in its way, and is kept.
    lab.migrate("web01").await.unwrap();
    lab.wait_reason("web01", "TargetExists", PATIENCE).await.unwrap();
    let second = uid(&lab, "web01").await;
    delete(&lab.migrations(), "web01", PropagationPolicy::Foreground).await;
    gone(&lab, "web01").await;
    given_back(&lab, &second, &source).await;
    never_stalled(&source, &slow_storage());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreground_deletion_in_the_cutover_gives_the_source_back() {
    let (_dir, lab) = lab(LabOptions::default()).await;
    let source = guest(&lab, GuestSpec { disks: vec![64 * MIB], ..GuestSpec::default() });
    lab.libvirt.virsh(&["autostart", "web01"]).unwrap();
    lab.migrate("web01").await.unwrap();
    in_sync(&lab, "web01").await;
    let uid = uid(&lab, "web01").await;
    // No answer of Prism, so no order to boot.
    lab.approve("web01").await.unwrap();
    shutting_down(&lab, "web01").await;
    lab.prism.switches().refuse_next_calls(u32::MAX);
    delete(&lab.migrations(), "web01", PropagationPolicy::Foreground).await;
    gone(&lab, "web01").await;
    lab.prism.switches().refuse_next_calls(0);
    source.wait_state("running", PATIENCE).unwrap();
    given_back(&lab, &uid, &source).await;
    assert!(source.autostart().unwrap());
    assert_eq!(power_on_orders(&lab), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletion_after_the_order_to_boot_waits_for_it_and_says_so() {
    let (_dir, lab) = lab(LabOptions::default()).await;
    let source = guest(&lab, GuestSpec { disks: vec![64 * MIB], ..GuestSpec::default() });
    lab.migrate("web01").await.unwrap();
    in_sync(&lab, "web01").await;
    let uid = uid(&lab, "web01").await;
    lab.prism.switches().hold_tasks(true);
    lab.approve("web01").await.unwrap();
    lab.wait("web01", "ordered to boot", PATIENCE, |migration| {
        let cutover = migration.status.as_ref().and_then(|status| status.cutover.as_ref());
        cutover.is_some_and(|cutover| cutover.power_on.is_some())
    })
    .await
    .unwrap();
    delete(&lab.migrations(), "web01", PropagationPolicy::Foreground).await;
    let told = |migration: &VmMigration| {
        let waiting = migration.status.as_ref().and_then(|status| status.waiting_for.as_ref());
        waiting.is_some_and(|waiting| waiting.message.contains("deletion waits"))
    };
    lab.wait("web01", "telling that its deletion waits", PATIENCE, told).await.unwrap();
    assert_eq!(source.state().unwrap(), "shut off");
    lab.prism.switches().hold_tasks(false);
    gone(&lab, "web01").await;
    let target = lab.prism.vm_by_name("web01").unwrap();
    assert!(lab.hypervisor.is_on(&target.uuid));
    assert_eq!(source.state().unwrap(), "shut off");
    assert!(!source.autostart().unwrap());
    nothing_is_left(&lab, &uid, &source, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_deleted_with_any_propagation_is_made_again_and_the_copy_goes_on() {
    let (_dir, lab) = lab(slow_storage()).await;
    let source = guest(&lab, GuestSpec { disks: vec![64 * MIB], ..GuestSpec::default() });
    lab.migrate("web01").await.unwrap();
    let name = copying(&lab, "web01").await.name_any();
    for policy in [PropagationPolicy::Background, PropagationPolicy::Foreground] {
        let before = uid_of_job(&lab, &name).await;
        delete(&jobs(&lab), &name, policy).await;
        another_job(&lab, &name, &before).await;
        in_sync(&lab, "web01").await;
    }
    assert!(restarts(&lab, "web01").await >= 1);
    lab.approve("web01").await.unwrap();
    migrated(&lab, "web01", &source).await;
    never_stalled(&source, &slow_storage());
    let uid = uid(&lab, "web01").await;
    delete(&lab.migrations(), "web01", PropagationPolicy::Background).await;
    gone(&lab, "web01").await;
    nothing_is_left(&lab, &uid, &source, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_copy_deleted_with_any_propagation_keeps_its_job_and_works_on() {
    let (_dir, lab) = lab(LabOptions::default()).await;
    let source = guest(&lab, GuestSpec { disks: vec![64 * MIB], ..GuestSpec::default() });
    lab.migrate("web01").await.unwrap();
    in_sync(&lab, "web01").await;
    let copy = lab.copy_of("web01").await.unwrap();
    let name = copy.name_any();
    collector_knows_block_copies(&lab, &copy).await;
    let before = uid_of_job(&lab, &name).await;
    delete(&lab.copies(), &name, PropagationPolicy::Background).await;
    delete(&lab.copies(), &name, PropagationPolicy::Foreground).await;
    lab.wait("web01", "told of the deletion", PATIENCE, |migration| {
        let ledger = migration.status.as_ref().map(|status| status.ledger.as_slice()).unwrap_or_default();
        ledger.iter().any(|entry| entry.state.contains("deleted by hand"))
    })
    .await
    .unwrap();
    lab.approve("web01").await.unwrap();
    migrated(&lab, "web01", &source).await;
    assert_eq!(restarts(&lab, "web01").await, 0, "the copy was left alone");
    assert_eq!(uid_of_job(&lab, &name).await, before, "the garbage collector took the Job");
    let uid = uid(&lab, "web01").await;
    delete(&lab.migrations(), "web01", PropagationPolicy::Foreground).await;
    gone(&lab, "web01").await;
    nothing_is_left(&lab, &uid, &source, true).await;
    assert!(lab.copies().get_opt(&name).await.unwrap().is_none());
}

/// `kubectl delete namespace` takes the repository's object away at once; a pod that is lost then has to come back all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_is_given_back_though_its_whole_namespace_is_deleted() {
    let (_dir, lab) = lab(slow_storage()).await;
    let source = guest(&lab, GuestSpec { disks: vec![64 * MIB], ..GuestSpec::default() });
    lab.migrate("web01").await.unwrap();
    let name = copying(&lab, "web01").await.name_any();
    let uid = uid(&lab, "web01").await;
    let repositories: Api<TerraformRepository> = Api::namespaced(lab.client.clone(), TEAM);
    delete(&repositories, "machines", PropagationPolicy::Background).await;
    let before = uid_of_job(&lab, &name).await;
    delete(&jobs(&lab), &name, PropagationPolicy::Foreground).await;
    another_job(&lab, &name, &before).await;
    let namespaces: Api<Namespace> = Api::all(lab.client.clone());
    delete(&namespaces, TEAM, PropagationPolicy::Foreground).await;
    gone(&lab, "web01").await;
    given_back(&lab, &uid, &source).await;
    let start = Instant::now();
    while namespaces.get_opt(TEAM).await.unwrap().is_some() {
        assert!(start.elapsed() < PATIENCE, "the namespace does not go");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
