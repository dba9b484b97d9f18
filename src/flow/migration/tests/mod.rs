//! The decision core against a small world in memory: the whole way, and what must never happen on it.

mod preparing;
mod provision;

use jiff::{Timestamp, ToSpan};

use super::seen::{
    Application, CanarySeen, Fact, GuestToolsSeen, Needs, OtherUse, Refusal, Seen, Setup, TargetVm, TargetVmDisk,
    Whitelist, needs,
};
use super::{Decision, Effect, Input, decide};
use crate::api::block_copy::{
    BlockCopyStatus, DiskCopyStatus, DomainStatus, HowOff, MarkState, MirrorState, QuiesceStatus, RepairStatus, Want,
};
use crate::api::common::{MicroTime, Problem, Time, Tri};
use crate::api::machine::{Board, Cpu, Disk, DiskBus, DiskFormat, DiskSource, Firmware, Machine, Nic};
use crate::api::terraform_repository::Delivery;
use crate::api::vm_migration::{
    End, OnDifference, OnVerifyFailure, RollbackStatus, SideEffect, SideEffectKind, TargetDisk, TargetOrder,
};
use crate::api::{BlockCopy, VmMigrationSpec, VmMigrationStatus};
use crate::flow::canary::marker;
use crate::plan::{Named, Placement};

const GIB: u64 = 1 << 30;

fn machine() -> Machine {
    let disk = |device: &str, size_bytes| Disk {
        device: device.into(),
        bus: DiskBus::Virtio,
        source: DiskSource::File,
        path: format!("/var/lib/libvirt/images/{device}.img"),
        format: DiskFormat::Raw,
        size_bytes,
    };
    Machine {
        name: "web01".into(),
        uuid: "5d2d1c1a-0000-4000-8000-000000000001".into(),
        title: None,
        cpu: Cpu { sockets: 1, cores_per_socket: 2, threads_per_core: 1 },
        memory_bytes: GIB,
        firmware: Firmware::Bios,
        board: Board::Pc,
        disks: vec![disk("vda", GIB), disk("vdb", 3 * GIB)],
        left_out: vec![],
        nics: vec![Nic { mac: "52:54:00:00:00:01".into(), vlan: Some(10), network: None }],
        on_poweroff: "destroy".into(),
        persistent: true,
    }
}

fn setup() -> Setup {
    let parse = |json: serde_json::Value| json;
    Setup {
        host_name: "kvm1".into(),
        host: serde_json::from_value(parse(serde_json::json!({"nodeName": "node1", "allowedNamespaces": ["team"]})))
            .expect("valid"),
        cluster_name: "ahv1".into(),
        cluster: serde_json::from_value(serde_json::json!({
            "prismCentral": {"url": "https://pc:9440", "credentials": {"name": "pc"}},
            "prismElement": {"url": "https://pe:9440", "credentials": {"name": "pe"}},
            "clusterName": "c1", "storageContainer": "ctr", "nfs": {"address": "10.0.0.1"},
            "subnets": [{"vlan": 10, "subnet": "vlan10"}], "allowedNamespaces": ["team"],
        }))
        .expect("valid"),
        repository: serde_json::from_value(serde_json::json!({"url": "https://git/x.git"})).expect("valid"),
        installation: "installation-1".into(),
    }
}

/// Everything outside the core, as simple as it can be: the host side reaches what it is told to at once.
struct World {
    spec: VmMigrationSpec,
    status: VmMigrationStatus,
    held: bool,
    deleting: bool,
    copy: Option<BlockCopy>,
    delivery: Delivery,
    published: Option<String>,
    /// What the repository's pipeline does; `None` = nobody can follow it.
    application: Option<Application>,
    /// What was ordered to be applied.
    applied: Vec<String>,
    target: Option<TargetVm>,
    source_runs: bool,
    host_answers: bool,
    prism_answers: bool,
    prism_is_old: bool,
    now: Timestamp,
    power_ons: Vec<(String, String)>,
    /// By how many seconds the controller's clock is wrong.
    clock_error: i64,
    /// The target's guest does not obey the power button.
    deaf: bool,
    /// The last request that a deaf guest did not hear.
    missed: Option<String>,
    task_is_open: bool,
    setup: Setup,
    /// What Prism shows of the markers, if not what was written.
    canary: Option<CanarySeen>,
    /// The storage container's own list, if it has one, and the cluster's.
    whitelist: Result<Vec<String>, Option<Vec<String>>>,
    whitelist_version: u32,
    others: Vec<OtherUse>,
    guest_tools: GuestToolsSeen,
    /// Guest tools come when they are ordered.
    tools_obey: bool,
    tool_orders: Vec<String>,
}

impl World {
    fn new() -> Self {
        Self {
            spec: serde_json::from_value(serde_json::json!({"hostname": "web01"})).expect("valid"),
            status: VmMigrationStatus::default(),
            held: false,
            deleting: false,
            copy: None,
            delivery: Delivery::Commit,
            published: None,
            application: None,
            applied: vec![],
            target: None,
            source_runs: true,
            host_answers: true,
            prism_answers: true,
            prism_is_old: false,
            now: Timestamp::from_second(1_700_000_000).expect("in range"),
            power_ons: vec![],
            clock_error: 0,
            deaf: false,
            missed: None,
            task_is_open: false,
            setup: setup(),
            canary: None,
            whitelist: Err(None),
            whitelist_version: 1,
            others: vec![],
            guest_tools: GuestToolsSeen { is_installed: false, is_iso_inserted: false, etag: "g1".into() },
            tools_obey: true,
            tool_orders: vec![],
        }
    }

    fn whitelist_seen(&self) -> Fact<Whitelist> {
        let ending = self.deleting || self.spec.finalize == Some(true);
        if !super::whitelist_is_needed(&self.status, ending) {
            return Fact::NotAsked;
        }
        Fact::Known(Whitelist {
            container_ext_id: "s".into(),
            name: "ctr".into(),
            inherited: self.whitelist.is_err(),
            entries: self.whitelist.clone().map_or_else(|inherited| inherited, Some),
            etag: format!("c{}", self.whitelist_version),
            others: self.others.clone(),
        })
    }

    /// The markers as the host side has written them.
    fn shown(&self) -> CanarySeen {
        let target = self.status.target.as_ref().expect("pinned");
        let nonce = target.canary.as_ref().expect("ordered").nonce.as_str();
        let block = |disk: &TargetDisk| (disk.ext_id.clone(), marker("uid-1", &disk.device, nonce).to_vec());
        CanarySeen::Blocks(target.disks.iter().map(block).collect())
    }

    fn seen(&self) -> Seen {
        let needs = needs(&self.spec, &self.status);
        let Needs { placement, published, application: application_asked, target, tasks, .. } = needs;
        let named = |name: &str| Named { name: name.into(), ext_id: name.into() };
        let placed = Placement {
            cluster: named("c"),
            container: named("s"),
            subnets: vec![(10, named("n"))],
            categories: vec![],
        };
        let prism = |asked: bool, known: Fact<Vec<TargetVm>>| match (asked, self.prism_answers) {
            (false, _) => Fact::NotAsked,
            (true, false) => Fact::Unknown(Refusal::new("PrismUnreachable", "no answer")),
            (true, true) => known,
        };
        let mut setup = self.setup.clone();
        setup.repository.delivery = self.delivery;
        Seen {
            setup: Ok(setup),
            copy: Fact::Known(self.copy.clone()),
            placement: match (placement, self.prism_is_old) {
                (false, _) => Fact::NotAsked,
                (true, true) => Fact::Unknown(Refusal::new("PrismTooOld", "update Prism Central")),
                (true, false) => Fact::Known(placed),
            },
            published: if published { Fact::Known(self.published.clone()) } else { Fact::NotAsked },
            review_url: None,
            application: match &self.application {
                Some(application) if application_asked => Fact::Known(application.clone()),
                Some(_) | None => Fact::NotAsked,
            },
            target: prism(target, Fact::Known(self.target.iter().map(|vm| self.look(vm, tasks)).collect())),
            whitelist: self.whitelist_seen(),
            canary: match super::canary_to_be_read(&self.status) {
                Some(_) => self.canary.clone().map_or_else(|| Fact::Known(self.shown()), Fact::Known),
                None => Fact::NotAsked,
            },
            guest_tools: match super::guest_tools_are_needed(&self.spec, &self.status) {
                true => Fact::Known(self.guest_tools.clone()),
                false => Fact::NotAsked,
            },
        }
    }

    /// As `observe` shows it: open tasks only when they were asked for.
    fn look(&self, vm: &TargetVm, tasks: bool) -> TargetVm {
        TargetVm { busy: if tasks { Tri::from(self.task_is_open) } else { Tri::Unknown }, ..vm.clone() }
    }

    fn decide(&self, seen: &Seen) -> Decision {
        decide(&Input {
            namespace: "team",
            name: "web01",
            uid: "uid-1",
            generation: 1,
            deleting: self.deleting,
            held: self.held,
            approved_by: None,
            last_failure: None,
            spec: &self.spec,
            status: &self.status,
            seen,
            now: self.now.checked_add(self.clock_error.seconds()).expect("in range"),
        })
    }

    /// One turn: decide, record, act; then the host side and the pipeline do their part.
    fn turn(&mut self) {
        let seen = self.seen();
        let decision = self.decide(&seen);
        self.status = decision.status;
        for effect in decision.effects {
            self.act(effect);
        }
        self.host_side();
        if self.published.is_some() && self.target.is_none() && self.application.is_none() {
            self.target = Some(new_target());
        }
        self.now = self.now.checked_add(1.second()).expect("in range");
        assert!(!(self.source_runs && self.target_runs()), "I1: source and target run at the same time");
    }

    fn turns(&mut self, count: usize) {
        for _ in 0..count {
            self.turn();
        }
    }

    fn act(&mut self, effect: Effect) {
        assert!(Effect::NAMES.contains(&effect.name()));
        match effect {
            Effect::AddFinalizer => self.held = true,
            Effect::RemoveFinalizer => self.held = false,
            Effect::OrderCopy(spec) => {
                let status = self.copy.take().and_then(|copy| copy.status);
                assert!(spec.epoch == self.status.epoch.unwrap_or(0), "the epoch is recorded before it is sent");
                self.copy = Some(BlockCopy { status, ..BlockCopy::new("web01", *spec) });
            }
            Effect::EnsureJob => {}
            Effect::DeleteCopy => self.copy = None,
            Effect::Publish(plan) if self.delivery == Delivery::Commit => {
                self.published = Some(format!("commit of {}", plan.digest));
            }
            // Nobody has merged it.
            Effect::Publish(_) => {}
            Effect::Plan { round } => self.applied.push(format!("plan {round}")),
            Effect::Apply { handle } => self.applied.push(handle),
            Effect::PowerOn { permit: _, ext_id, order } => {
                assert!(!self.source_runs, "I1: the target was powered on while the source ran");
                self.power_ons.push((ext_id, order.request_id.clone()));
                self.change(&order, |target| {
                    target.on = Tri::Yes;
                    target.learned_ips = vec!["10.0.0.7".into()];
                });
            }
            Effect::ShutDownTarget { order, .. } => {
                // Prism carries a request out once.
                if self.deaf {
                    self.missed = Some(order.request_id);
                } else if self.missed.as_ref() != Some(&order.request_id) {
                    self.change(&order, |target| target.on = Tri::No);
                }
            }
            Effect::PowerOffTarget { order, .. } => self.change(&order, |target| target.on = Tri::No),
            Effect::DescribeTarget { order, description, .. } => {
                self.change(&order, |target| target.description = description);
            }
            Effect::Whitelist { container_ext_id, address, wanted, order } => {
                assert_eq!(container_ext_id, "s");
                if order.etag == format!("c{}", self.whitelist_version) {
                    let list = self.whitelist.as_mut().expect("an inherited list is never changed");
                    let own = format!("{address}/32");
                    list.retain(|entry| *entry != own);
                    list.extend(wanted.then_some(own));
                    self.whitelist_version += 1;
                }
            }
            Effect::GuestTools { install, order, .. } => {
                if self.tools_obey && order.etag == self.guest_tools.etag {
                    (self.guest_tools.is_installed, self.guest_tools.is_iso_inserted) = (install, true);
                }
                self.tool_orders.push(order.request_id);
            }
        }
    }

    /// Prism refuses an order whose ETag is not that of the VM now.
    fn change(&mut self, order: &TargetOrder, change: impl FnOnce(&mut TargetVm)) {
        if let Some(target) = self.target.as_mut().filter(|target| target.etag == order.etag) {
            change(target);
            target.etag.push('+');
        }
    }

    fn host_side(&mut self) {
        let (now, answers) = (Time(self.now), self.host_answers);
        let Some(copy) = self.copy.as_mut().filter(|_| answers) else { return };
        let want = copy.spec.want;
        let disks = copy.spec.disks.iter().map(|disk| DiskCopyStatus {
            device: disk.device.clone(),
            state: if want == Want::Mirror { MirrorState::Ready } else { MirrorState::Drained },
            copied_bytes: disk.size_bytes,
            total_bytes: disk.size_bytes,
            rate_mib_s: 0,
            backlog_bytes: 0,
            verified_bytes: disk.size_bytes,
            dirtied: true,
        });
        match want {
            Want::Quiesce => self.source_runs = false,
            Want::Release | Want::Undo => self.source_runs = true,
            Want::Inspect | Want::Canary | Want::Mirror | Want::KeepOff | Want::Retire => {}
        }
        copy.status = Some(BlockCopyStatus {
            epoch: Some(copy.spec.epoch),
            reached: Some(want),
            seen_at: Some(now.clone()),
            machine: Some(machine()),
            domain: Some(DomainStatus {
                state: "running".into(),
                migrated: false,
                mark: match want {
                    Want::Release | Want::Undo => None,
                    Want::Inspect | Want::Canary | Want::Mirror => Some(MarkState::Claimed),
                    Want::Quiesce => Some(MarkState::Cutover),
                    Want::KeepOff | Want::Retire => Some(MarkState::Migrated),
                },
                autostart_was: matches!(want, Want::Quiesce | Want::KeepOff | Want::Retire).then_some(true),
                libvirt_version: "9.0.0".into(),
                qemu_version: "7.2.0".into(),
            }),
            disks: disks.collect(),
            in_sync: Tri::from(want == Want::Mirror),
            quiesce: (want == Want::Quiesce).then(|| proven(&now)),
            ..BlockCopyStatus::default()
        });
    }

    fn report(&mut self) -> &mut BlockCopyStatus {
        self.copy.as_mut().and_then(|copy| copy.status.as_mut()).expect("the host side has reported")
    }

    fn problem(&mut self, reason: &str) {
        let since = Time(self.now);
        let report = self.report();
        report.problem = Some(Problem { reason: reason.into(), message: "words".into(), since });
        report.reached = None;
    }

    fn target_runs(&self) -> bool {
        self.target.as_ref().is_some_and(|target| target.on.is_yes())
    }

    fn waits_for(&self) -> &str {
        self.status.waiting_for.as_ref().map_or("", |waiting| waiting.reason.as_str())
    }

    /// A migration that is in sync and waits for its approval.
    fn in_sync() -> Self {
        let mut world = Self::new();
        world.turns(20);
        assert_eq!(world.waits_for(), "Approval");
        world
    }

    /// A migration whose target runs.
    fn migrated() -> Self {
        let mut world = Self::in_sync();
        world.approve();
        world.turns(8);
        assert_eq!(world.status.phase.as_deref(), Some("Migrated"));
        world
    }

    fn approve(&mut self) {
        self.spec.approved = Some(true);
    }
}

fn proven(now: &Time) -> QuiesceStatus {
    QuiesceStatus {
        command: None,
        marked_at: Some(MicroTime(now.0)),
        shutdown_requested_at: Some(MicroTime(now.0)),
        off_by_libvirt_at: Some(MicroTime(now.0)),
        how: Some(HowOff::Clean),
        off_by_host_at: Some(MicroTime(now.0)),
        drained_at: Some(MicroTime(now.0)),
        repair: None,
        writers_gone_at: Some(MicroTime(now.0)),
        equal_at: Some(MicroTime(now.0)),
        blake3: vec![],
        compared_extents: None,
        verified_extents: None,
    }
}

fn new_target() -> TargetVm {
    let disk = |index: u32, size_bytes| TargetVmDisk {
        ext_id: format!("device-{index}"),
        index,
        size_bytes,
        backing: Some((format!("vmdisk-{index}"), format!("/ctr/.acropolis/vmdisk/vmdisk-{index}"))),
    };
    TargetVm {
        ext_id: "vm-1".into(),
        name: "web01".into(),
        description: "moved by VmMigration team/web01 uid uid-1".into(),
        on: Tri::No,
        busy: Tri::Unknown,
        etag: "v1".into(),
        disks: vec![disk(0, 2 * GIB), disk(1, 4 * GIB)],
        learned_ips: vec![],
    }
}

#[test]
fn goes_all_the_way_after_one_approval() {
    let mut world = World::in_sync();
    world.approve();
    world.turns(8);
    assert_eq!(world.status.phase.as_deref(), Some("Migrated"));
    assert_eq!(world.power_ons.len(), 1);
    assert!(world.target_runs() && !world.source_runs);
}

#[test]
fn never_moves_on_without_approval() {
    let mut world = World::in_sync();
    world.turns(50);
    assert_eq!(world.waits_for(), "Approval");
    assert!(world.source_runs && world.power_ons.is_empty());
}

#[test]
fn an_idle_wait_changes_nothing() {
    let mut world = World::in_sync();
    let before = world.status.clone();
    world.turns(20);
    assert_eq!(world.status, before);
}

#[test]
fn an_approval_before_the_copy_is_in_sync_is_latched() {
    let mut world = World::new();
    world.turns(4);
    assert!(world.status.plan.is_some() && world.status.target.is_none());
    world.approve();
    world.turns(20);
    assert_eq!(world.status.phase.as_deref(), Some("Migrated"));
}

#[test]
fn an_approval_before_any_plan_does_not_count_until_it_names_the_plan() {
    let mut world = World::new();
    world.approve();
    world.turns(20);
    assert_eq!(world.waits_for(), "ApprovalVoid");
    assert!(world.source_runs);
    world.spec.approved_digest = world.status.plan.as_ref().map(|plan| plan.digest.clone());
    world.turns(8);
    assert_eq!(world.status.phase.as_deref(), Some("Migrated"));
}

#[test]
fn an_approval_of_another_plan_does_not_count() {
    let mut world = World::in_sync();
    world.approve();
    world.spec.approved_digest = Some(format!("sha256:{}", "0".repeat(64)));
    world.turns(10);
    assert_eq!(world.waits_for(), "ApprovalVoid");
    assert!(world.source_runs);
}

#[test]
fn every_single_proof_is_needed() {
    let drop_proof: [fn(&mut QuiesceStatus); 8] = [
        |quiesce| quiesce.marked_at = None,
        |quiesce| quiesce.shutdown_requested_at = None,
        |quiesce| quiesce.off_by_libvirt_at = None,
        |quiesce| quiesce.off_by_host_at = None,
        |quiesce| quiesce.drained_at = None,
        |quiesce| quiesce.writers_gone_at = None,
        |quiesce| quiesce.equal_at = None,
        |quiesce| quiesce.how = None,
    ];
    for drop_proof in drop_proof {
        let mut world = World::in_sync();
        world.approve();
        world.turn();
        drop_proof(world.report().quiesce.as_mut().expect("proven"));
        world.host_answers = false;
        world.turns(10);
        assert!(world.power_ons.is_empty(), "powered on although a proof was missing");
        assert_eq!(world.waits_for(), "Proving");
    }
}

#[test]
fn what_was_written_anew_and_compared_proves_as_much_as_a_drained_relay_and_is_told() {
    let repair = |repaired_extents| RepairStatus {
        why: "the relay was started anew.".into(),
        begun_at: MicroTime(World::new().now),
        repaired_extents,
    };
    for (repaired_extents, boots) in [(None, false), (Some(3), true)] {
        let mut world = World::in_sync();
        world.approve();
        world.turn();
        let quiesce = world.report().quiesce.as_mut().expect("proven");
        (quiesce.drained_at, quiesce.repair) = (None, Some(repair(repaired_extents)));
        world.host_answers = false;
        world.turns(10);
        assert_eq!(!world.power_ons.is_empty(), boots);
        let equal = world.status.conditions.iter().find(|condition| condition.type_ == "Equal").unwrap();
        assert_eq!((equal.status.as_str(), equal.reason.as_str()), ("True", "Repaired"));
        assert!(!boots || equal.message.starts_with("3 extents"), "{}", equal.message);
    }
}

#[test]
fn how_long_may_be_repaired_is_told_to_the_host_side() {
    let mut world = World::in_sync();
    assert_eq!(world.copy.as_ref().unwrap().spec.repair_within_seconds, world.spec.cutover.max_downtime_seconds);
    world.spec.cutover.on_difference = OnDifference::GiveUp;
    world.turn();
    assert_eq!(world.copy.as_ref().unwrap().spec.repair_within_seconds, 0);
}

#[test]
fn an_answer_to_an_older_order_proves_nothing() {
    let mut world = World::in_sync();
    world.approve();
    world.turn();
    let report = world.report();
    report.epoch = report.epoch.map(|epoch| epoch - 1);
    world.host_answers = false;
    world.turns(10);
    assert!(world.power_ons.is_empty());
}

#[test]
fn an_unclear_shutdown_gives_the_source_back() {
    let mut world = World::in_sync();
    world.approve();
    world.turn();
    world.report().quiesce.as_mut().expect("proven").how = Some(HowOff::Unclear);
    world.turns(4);
    assert!(world.source_runs && world.power_ons.is_empty());
    assert_eq!(world.waits_for(), "UnclearShutdown");
}

#[test]
fn a_shutdown_that_times_out_gives_the_source_back_and_a_raised_attempt_tries_again() {
    let mut world = World::in_sync();
    world.approve();
    world.turn();
    world.report().quiesce = None;
    world.problem("ShutdownTimedOut");
    world.turns(4);
    assert_eq!(world.waits_for(), "ShutdownTimedOut");
    assert!(world.source_runs);
    world.spec.attempt = Some(1);
    world.turns(10);
    assert_eq!(world.status.phase.as_deref(), Some("Migrated"));
}

#[test]
fn too_long_an_outage_gives_the_source_back() {
    let mut world = World::in_sync();
    world.approve();
    world.turn();
    world.report().reached = None;
    world.host_answers = false;
    world.turn();
    world.now = world.now.checked_add(1000.seconds()).expect("in range");
    world.turn();
    world.host_answers = true;
    world.turns(3);
    assert_eq!(world.waits_for(), "MaxDowntimeExceeded");
    assert!(world.source_runs && world.power_ons.is_empty());
}

#[test]
fn a_withdrawn_approval_gives_the_source_back() {
    let mut world = World::in_sync();
    world.approve();
    world.turn();
    world.report().reached = None;
    world.host_answers = false;
    world.spec.approved = None;
    world.turn();
    world.host_answers = true;
    world.turns(3);
    assert!(world.source_runs && world.power_ons.is_empty());
}

#[test]
fn silence_from_prism_is_not_off() {
    let mut world = World::in_sync();
    world.approve();
    world.turn();
    world.prism_answers = false;
    world.turns(10);
    assert!(world.power_ons.is_empty());
    world.prism_answers = true;
    world.turns(5);
    assert_eq!(world.status.phase.as_deref(), Some("Migrated"));
}

#[test]
fn a_target_that_somebody_started_is_a_refusal() {
    let mut world = World::new();
    world.turns(5);
    world.target.as_mut().expect("created").on = Tri::Yes;
    world.source_runs = false; // so that the world's own check of I1 does not fire
    world.turn();
    assert_eq!(world.waits_for(), "TargetRunning");
    assert!(world.status.target.is_none());
}

#[test]
fn a_target_changed_behind_our_back_gets_a_new_order_with_its_new_version() {
    let mut world = World::in_sync();
    world.approve();
    while world.status.cutover.as_ref().is_none_or(|cutover| cutover.power_on.is_none()) {
        world.turn();
    }
    let first = world.status.cutover.as_ref().and_then(|cutover| cutover.power_on.clone()).expect("recorded");
    world.target.as_mut().expect("created").etag = "v2".into();
    world.turns(6);
    let second = world.status.cutover.as_ref().and_then(|cutover| cutover.power_on.clone()).expect("recorded");
    assert_eq!(second.etag, "v2");
    assert_ne!(first.request_id, second.request_id);
    assert_eq!(world.power_ons, vec![("vm-1".to_owned(), second.request_id)]);
}

#[test]
fn deletion_before_the_cutover_releases_the_source() {
    let mut world = World::in_sync();
    world.deleting = true;
    world.turns(4);
    assert!(!world.held && world.copy.is_none() && world.source_runs);
}

#[test]
fn deletion_after_the_cutover_leaves_the_target_running_and_the_source_off() {
    let mut world = World::in_sync();
    world.approve();
    world.turns(10);
    world.deleting = true;
    world.turns(4);
    assert!(!world.held && world.target_runs() && !world.source_runs);
}

#[test]
fn rollback_before_the_cutover_releases_the_source_and_its_removal_goes_on() {
    let mut world = World::in_sync();
    world.spec.rollback = Some(true);
    world.turns(3);
    assert_eq!(world.status.phase.as_deref(), Some("RolledBack"));
    world.spec.rollback = None;
    world.turns(3);
    assert_eq!(world.waits_for(), "Approval");
}

#[test]
fn a_machine_claimed_by_another_is_refused_by_name() {
    let mut world = World::new();
    world.turns(2);
    world.problem("AlreadyClaimed");
    world.host_answers = false;
    world.turn();
    assert_eq!(world.waits_for(), "AlreadyClaimed");
    assert!(world.published.is_none());
}

#[test]
fn a_source_that_bears_the_mark_of_a_cutover_is_adopted_and_nothing_is_touched() {
    let mut world = World::new();
    world.turns(2);
    world.report().domain.as_mut().expect("reported").migrated = true;
    world.host_answers = false;
    world.approve();
    world.turns(5);
    assert_eq!(world.status.phase.as_deref(), Some("Migrated"));
    assert!(world.published.is_none() && world.power_ons.is_empty());
}

#[test]
fn a_prism_too_old_is_told_before_anything_is_published_and_goes_on_once_it_is_updated() {
    let mut world = World { prism_is_old: true, ..World::new() };
    world.turns(10);
    assert_eq!(world.waits_for(), "PrismTooOld");
    let stalled = world.status.conditions.iter().find(|condition| condition.type_ == "Stalled").expect("it is set");
    assert_eq!((stalled.status.as_str(), stalled.message.as_str()), ("True", "update Prism Central"));
    assert!(world.status.plan.is_none() && world.published.is_none());
    world.prism_is_old = false;
    world.turns(10);
    assert!(world.published.is_some());
}

#[test]
fn a_file_in_review_waits_for_a_person_and_says_on_which_branch() {
    let mut world = World::new();
    world.delivery = Delivery::Branch;
    world.turns(5);
    assert_eq!(world.waits_for(), "AwaitingMerge");
    let message = world.status.waiting_for.clone().expect("it waits").message;
    assert!(message.contains("drover/web01 of https://git/x.git into main"), "{message}");
    let file = world.status.ledger.iter().find(|entry| entry.what == SideEffectKind::TerraformFile).expect("listed");
    assert_eq!(file.state, "on branch drover/web01, to be merged");
    world.published = Some("commit of the merge".into());
    world.turns(8);
    assert_eq!(world.status.terraform.as_ref().map(|file| file.commit.as_str()), Some("commit of the merge"));
    assert!(world.target.is_some());
}

#[test]
fn a_target_that_exists_before_we_publish_is_refused() {
    let mut world = World::new();
    world.target = Some(new_target());
    world.turns(5);
    assert_eq!(world.waits_for(), "TargetExists");
    assert!(world.published.is_none());
}

#[test]
fn finalize_retires_the_source_without_starting_it() {
    let mut world = World::in_sync();
    world.approve();
    world.turns(10);
    world.spec.finalize = Some(true);
    world.turns(4);
    assert!(world.copy.is_none() && !world.source_runs && world.target_runs());
    assert_eq!(world.status.phase.as_deref(), Some("Migrated"));
}

#[test]
fn a_vm_of_the_same_name_that_others_created_is_never_written_to() {
    let mut world = World::new();
    world.turns(4);
    world.target = Some(TargetVm { description: "uid of another migration".into(), ..new_target() });
    world.turns(6);
    assert_eq!(world.waits_for(), "TargetNotOurs");
    assert!(world.status.target.is_none());
}

#[test]
fn a_target_that_is_powered_on_while_it_is_copied_to_ends_the_copy() {
    let mut world = World::in_sync();
    world.approve();
    world.target.as_mut().expect("created").on = Tri::Yes;
    let decision = world.decide(&world.seen());
    assert_eq!(decision.status.waiting_for.map(|waiting| waiting.reason).as_deref(), Some("TargetRunning"));
    let releases = |effect: &Effect| matches!(effect, Effect::OrderCopy(spec) if spec.want == Want::Release);
    assert!(decision.effects.iter().any(releases), "{:?}", decision.effects);
}

#[test]
fn the_source_is_not_given_back_while_somebody_runs_the_target() {
    let undo: [fn(&mut World); 3] =
        [|world| world.spec.rollback = Some(true), |world| world.deleting = true, |world| world.spec.approved = None];
    for undo in undo {
        let mut world = World::in_sync();
        world.approve();
        world.turn();
        assert!(!world.source_runs);
        world.target.as_mut().expect("created").on = Tri::Yes;
        undo(&mut world);
        world.turns(5);
        assert_eq!(world.waits_for(), "TargetRunning");
        world.target.as_mut().expect("created").on = Tri::No;
        world.turns(5);
        assert!(world.source_runs && world.power_ons.is_empty());
    }
}

#[test]
fn an_old_report_proves_nothing_and_opens_no_gate() {
    let mut world = World::in_sync();
    world.host_answers = false;
    world.now = world.now.checked_add(3600.seconds()).expect("in range");
    world.approve();
    world.turns(5);
    assert_eq!(world.waits_for(), "HostSideSilent");
    assert!(world.source_runs && world.status.cutover.is_none());
}

#[test]
fn a_raised_attempt_does_not_forget_a_cutover_that_is_under_way() {
    let mut world = World::in_sync();
    world.approve();
    world.turn();
    world.spec.attempt = Some(1);
    world.turns(8);
    assert_eq!(world.status.phase.as_deref(), Some("Migrated"));
}

#[test]
fn a_deletion_after_the_order_to_boot_boots_first() {
    let mut world = World::in_sync();
    world.approve();
    while world.status.cutover.as_ref().is_none_or(|cutover| cutover.power_on.is_none()) {
        world.turn();
    }
    world.deleting = true;
    world.turns(10);
    assert!(!world.held && world.target_runs() && !world.source_runs);
}

#[test]
fn rollback_after_the_cutover_stops_the_target_for_good_and_starts_the_source() {
    let mut world = World::migrated();
    let boot = world.status.cutover.clone().and_then(|cutover| cutover.power_on).expect("it was ordered");
    world.spec.rollback = Some(true);
    world.turns(20);
    assert_eq!(world.waits_for(), "RolledBack");
    assert!(world.source_runs && !world.target_runs());
    // A controller that was paused since the cutover comes back: its order does nothing any more.
    world.change(&boot, |target| target.on = Tri::Yes);
    assert!(!world.target_runs());
    // The approval was carried out. It is not carried out again by itself.
    world.spec.rollback = None;
    world.turns(20);
    assert_eq!(world.status.phase.as_deref(), Some("RolledBack"));
    assert!(world.source_runs);
    world.spec.attempt = Some(1);
    world.turns(20);
    assert_eq!(world.status.phase.as_deref(), Some("Migrated"));
    // And back once more: the second change of the description is another one.
    let boot = world.status.cutover.clone().and_then(|cutover| cutover.power_on).expect("it was ordered");
    world.spec.rollback = Some(true);
    world.turns(20);
    assert!(world.source_runs);
    world.change(&boot, |target| target.on = Tri::Yes);
    assert!(!world.target_runs());
}

#[test]
fn a_guest_that_missed_its_power_button_while_it_booted_is_asked_again_soon() {
    let mut world = World::migrated();
    world.deaf = true;
    world.spec.rollback = Some(true);
    world.turns(5);
    assert!(world.missed.is_some() && world.target_runs());
    world.deaf = false;
    world.turns(20);
    assert!(world.source_runs && !world.target_runs());
}

#[test]
fn an_order_to_boot_that_a_paused_controller_sends_after_the_rollback_is_void() {
    let mut world = World::in_sync();
    world.approve();
    let recorded = |world: &World| world.status.cutover.as_ref().and_then(|cutover| cutover.power_on.clone());
    // Twice: the second rollback has to change the target once more.
    for attempt in [0, 1] {
        (world.spec.attempt, world.spec.rollback) = (Some(attempt), None);
        while recorded(&world).is_none() {
            world.turn();
        }
        let boot = recorded(&world).expect("it was recorded, and never sent");
        world.spec.rollback = Some(true);
        world.turns(20);
        assert!(world.source_runs);
        world.change(&boot, |target| target.on = Tri::Yes);
        assert!(!world.target_runs(), "attempt {attempt}");
    }
}

#[test]
fn a_rollback_that_was_begun_is_carried_out_even_if_its_field_or_its_object_goes() {
    for deleting in [false, true] {
        let mut world = World::migrated();
        world.spec.rollback = Some(true);
        world.turns(2);
        assert!(world.status.cutover.as_ref().is_some_and(|cutover| cutover.undo.is_some()));
        world.spec.rollback = None;
        world.deleting = deleting;
        world.turns(20);
        assert!(world.source_runs && !world.target_runs(), "deleting: {deleting}");
        assert_eq!(world.held, !deleting);
    }
}

#[test]
fn a_target_that_does_not_power_off_when_asked_is_powered_off_after_its_time() {
    let mut world = World::migrated();
    world.deaf = true;
    world.spec.rollback = Some(true);
    world.turns(200);
    assert!(world.target_runs() && !world.source_runs, "it has 300 s");
    world.turns(120);
    assert!(!world.target_runs() && world.source_runs);
}

#[test]
fn the_source_is_not_started_while_a_task_on_the_target_is_open_or_prism_is_silent() {
    let mut world = World::migrated();
    world.spec.rollback = Some(true);
    world.task_is_open = true;
    world.turns(30);
    assert_eq!(world.waits_for(), "TargetBusy");
    world.prism_answers = false;
    world.task_is_open = false;
    world.turns(30);
    assert!(!world.source_runs);
    world.prism_answers = true;
    world.turns(5);
    assert!(world.source_runs);
}

#[test]
fn a_queued_order_to_boot_that_comes_late_is_undone_too() {
    let mut world = World::in_sync();
    world.approve();
    while world.status.cutover.as_ref().is_none_or(|cutover| cutover.power_on.is_none()) {
        world.turn();
    }
    // Prism has accepted the order, and its task is in the queue.
    world.task_is_open = true;
    world.spec.rollback = Some(true);
    world.turns(20);
    assert!(!world.source_runs && !world.target_runs());
    let target = world.target.as_mut().expect("there is one");
    (target.on, world.task_is_open) = (Tri::Yes, false);
    target.etag.push('+');
    world.turns(20);
    assert!(world.source_runs && !world.target_runs());
}

#[test]
fn a_target_that_somebody_starts_after_the_rollback_is_told() {
    let mut world = World::migrated();
    world.spec.rollback = Some(true);
    world.host_answers = false;
    world.turns(20);
    assert!(world.status.cutover.as_ref().unwrap().undo.as_ref().unwrap().proven_off_at.is_some());
    world.target.as_mut().unwrap().on = Tri::Yes;
    world.turns(2);
    assert_eq!(world.waits_for(), "TargetRunning");
    assert!(!world.source_runs);
    world.target.as_mut().unwrap().on = Tri::No;
    world.host_answers = true;
    world.turns(4);
    assert!(world.source_runs);
}

#[test]
fn a_guest_that_is_not_heard_waits_for_a_person_or_is_rolled_back_as_the_policy_says() {
    for (policy, reason) in [(OnVerifyFailure::Wait, "GuestSilent"), (OnVerifyFailure::Rollback, "RolledBack")] {
        let mut world = World::in_sync();
        world.spec.cutover.on_verify_failure = policy;
        world.spec.cutover.verify_timeout_seconds = 60;
        world.approve();
        for _ in 0..100 {
            world.turn();
            if let Some(target) = &mut world.target {
                target.learned_ips.clear();
            }
        }
        assert_eq!(world.waits_for(), reason);
        assert_eq!(world.source_runs, policy == OnVerifyFailure::Rollback);
    }
}

#[test]
fn a_source_that_is_started_after_the_order_to_boot_was_recorded_is_told_and_can_be_rolled_back() {
    let mut world = World::in_sync();
    world.approve();
    while world.status.cutover.as_ref().is_none_or(|cutover| cutover.power_on.is_none()) {
        world.turn();
    }
    world.host_answers = false;
    world.problem("SourceStartedAgain");
    world.turns(3);
    assert_eq!(world.waits_for(), "SourceStartedAgain");
    assert_eq!(world.status.phase.as_deref(), Some("Stalled"));
    assert!(world.power_ons.is_empty());
    world.host_answers = true;
    world.spec.rollback = Some(true);
    world.turns(20);
    assert_eq!(world.waits_for(), "RolledBack");
    assert!(world.source_runs);
}

#[test]
fn a_target_that_was_changed_after_it_was_compared_is_compared_again_before_it_boots() {
    let mut world = World::in_sync();
    world.approve();
    while world.copy.as_ref().is_none_or(|copy| copy.status.as_ref().is_none_or(|s| s.reached != Some(Want::Quiesce))) {
        world.turn();
    }
    // Somebody ran it for a moment, and nobody saw it on.
    world.target.as_mut().unwrap().etag.push('!');
    let before = world.copy.as_ref().unwrap().spec.epoch;
    world.host_answers = false;
    world.turns(3);
    let order = world.copy.as_ref().unwrap().spec.clone();
    assert_eq!((order.epoch, order.target_version.as_deref()), (before + 1, Some("v1!")));
    assert!(world.status.cutover.as_ref().unwrap().power_on.is_none());
    world.host_answers = true;
    world.turns(6);
    assert_eq!(world.status.phase.as_deref(), Some("Migrated"));
}

#[test]
fn a_cutover_that_was_called_off_stays_so_although_the_field_is_removed_at_once() {
    let mut world = World::in_sync();
    world.approve();
    world.turns(2);
    assert!(world.status.cutover.as_ref().is_some_and(|cutover| cutover.ordered_at.is_some()));
    world.spec.rollback = Some(true);
    world.turn();
    world.spec.rollback = None;
    world.turns(20);
    assert_eq!(world.waits_for(), "RolledBack");
    assert!(world.source_runs && world.power_ons.is_empty());
}

fn entry(world: &World, what: SideEffectKind) -> Option<&SideEffect> {
    world.status.ledger.iter().find(|entry| entry.what == what)
}

fn ends(world: &World) -> Vec<(SideEffectKind, End)> {
    world.status.ledger.iter().map(|entry| (entry.what, entry.end)).collect()
}

#[test]
fn the_ledger_grows_with_what_was_changed_and_says_what_is_kept() {
    use SideEffectKind::*;
    let mut world = World::new();
    world.turn();
    assert_eq!(ends(&world), [], "nothing was changed when the first turn was recorded");
    world.turns(2);
    assert_eq!(entry(&world, Finalizer).unwrap().place, "VmMigration team/web01");
    world.turns(9);
    assert_eq!(world.waits_for(), "Approval");
    let in_sync = [
        (Finalizer, End::Undone),
        (BlockCopy, End::Undone),
        (Job, End::Undone),
        (Relay, End::Undone),
        (Claim, End::Undone),
        (Mark, End::Undone),
        (Mirror, End::Undone),
        (TerraformFile, End::Kept),
        (TargetVm, End::Kept),
    ];
    assert_eq!(ends(&world), in_sync);
    let file = entry(&world, TerraformFile).unwrap();
    assert_eq!(file.place, "vms/web01.tf in https://git/x.git");
    assert_eq!(file.state, format!("commit {}", world.status.terraform.as_ref().unwrap().commit));
    assert_eq!(
        entry(&world, Mirror).unwrap().place,
        "vda, vdb of domain web01 (5d2d1c1a-0000-4000-8000-000000000001) on kvm1"
    );
    assert_eq!(entry(&world, TargetVm).unwrap().state, "off");
    world.approve();
    world.turns(8);
    assert_eq!(entry(&world, TargetVm).unwrap().state, "on");
    // The source stays as it is from here on, whatever happens to the migration.
    for what in [Mark, Autostart, Shutdown] {
        assert_eq!(entry(&world, what).unwrap().end, End::Kept, "{what:?}");
    }
    assert!(entry(&world, Mirror).is_none());
    world.spec.finalize = Some(true);
    world.turns(4);
    let retired = [Finalizer, Mark, Autostart, Shutdown, TerraformFile, TargetVm]
        .map(|what| (what, if what == Finalizer { End::Undone } else { End::Kept }));
    assert_eq!(ends(&world), retired);
}

#[test]
fn the_ledger_of_a_rollback_has_nothing_of_the_source_and_the_changed_description() {
    use SideEffectKind::*;
    let mut world = World::migrated();
    world.spec.rollback = Some(true);
    world.turns(2);
    assert_eq!(entry(&world, Shutdown).unwrap().end, End::Undone);
    world.turns(20);
    assert_eq!(world.waits_for(), "RolledBack");
    let left: Vec<SideEffectKind> = world.status.ledger.iter().map(|entry| entry.what).collect();
    assert_eq!(left, [Finalizer, BlockCopy, Job, Relay, TerraformFile, TargetVm, TargetDescription]);
    let epoch = world.target.as_ref().unwrap().description.rsplit(' ').next().unwrap().trim_end_matches(')').to_owned();
    assert!(entry(&world, TargetDescription).unwrap().state.ends_with(&epoch));
}

#[test]
fn what_the_ledger_could_not_see_it_calls_so() {
    let mut world = World::in_sync();
    let mut seen = world.seen();
    seen.copy = Fact::Unknown(Refusal::new("BlockCopyUnreadable", "no answer"));
    world.status = world.decide(&seen).status;
    assert_eq!(entry(&world, SideEffectKind::BlockCopy).unwrap().state, "could not be read");
    assert!(entry(&world, SideEffectKind::Claim).unwrap().state.starts_with("not seen"));
}

#[test]
fn deletion_says_what_is_kept_while_it_is_under_way() {
    let mut world = World::in_sync();
    world.deleting = true;
    world.host_answers = false;
    world.turns(2);
    let message = &world.status.waiting_for.as_ref().unwrap().message;
    assert!(message.contains("Kept on purpose: TerraformFile: vms/web01.tf in https://git/x.git"), "{message}");
    assert!(message.contains("TargetVm: web01 (vm-1)"), "{message}");
    assert!(!message.contains("Claim"), "{message}");
}

#[test]
fn deletion_after_the_order_to_boot_says_that_it_waits() {
    let mut world = World::in_sync();
    world.approve();
    while world.status.cutover.as_ref().is_none_or(|cutover| cutover.power_on.is_none()) {
        world.turn();
    }
    world.deleting = true;
    world.prism_answers = false;
    world.turns(2);
    let message = &world.status.waiting_for.as_ref().unwrap().message;
    assert!(
        message.starts_with("deletion waits until the target, which was ordered to boot, is seen on: "),
        "{message}"
    );
    assert!(world.held);
}

#[test]
fn deletion_names_a_host_side_that_is_silent_and_references_that_are_gone() {
    let mut world = World::in_sync();
    world.deleting = true;
    world.host_answers = false;
    world.now = world.now.checked_add(60.seconds()).expect("in range");
    world.turn();
    assert_eq!(world.waits_for(), "HostSideSilent");
    assert!(
        world.status.waiting_for.as_ref().unwrap().message.contains("take the finalizer drover.dev/release-source off")
    );
    world.copy = None;
    let seen = Seen { setup: Err(Refusal::new("ReferenceNotFound", "there is no LibvirtHost")), ..world.seen() };
    let decision = world.decide(&seen);
    assert_eq!(decision.status.waiting_for.unwrap().reason, "ReferenceNotFound");
    assert_eq!(decision.status.phase.as_deref(), Some("Stalled"));
}

fn only_target_runs(world: &World) -> (&str, &str) {
    let found = world.status.conditions.iter().find(|condition| condition.type_ == "OnlyTargetRuns").unwrap();
    (&found.status, &found.reason)
}

#[test]
fn both_sides_are_watched_until_it_is_finalised_and_nothing_is_powered_on_for_it() {
    let mut world = World::in_sync();
    assert_eq!(only_target_runs(&world), ("False", "NotYet"));
    world.approve();
    world.turns(8);
    assert_eq!(only_target_runs(&world), ("True", "AsLeft"));
    // Somebody powers the target off.
    world.target.as_mut().unwrap().on = Tri::No;
    world.turns(5);
    assert_eq!((world.waits_for(), only_target_runs(&world)), ("TargetStopped", ("False", "TargetStopped")));
    assert_eq!(world.status.phase.as_deref(), Some("Stalled"));
    assert!(!world.source_runs && world.power_ons.len() == 1);
    world.target.as_mut().unwrap().on = Tri::Yes;
    world.turns(2);
    assert_eq!(world.status.phase.as_deref(), Some("Migrated"));
    // Somebody starts the source.
    world.host_answers = false;
    world.problem("SourceRunning");
    world.turns(2);
    assert_eq!((world.waits_for(), only_target_runs(&world)), ("SourceRunning", ("False", "SourceRunning")));
    world.host_answers = true;
    world.turns(2);
    // Somebody deletes the target, and a VM of the same name takes its place.
    world.target.as_mut().unwrap().ext_id = "vm-2".into();
    world.turns(2);
    assert_eq!((world.waits_for(), only_target_runs(&world)), ("TargetGone", ("False", "TargetGone")));
    world.target.as_mut().unwrap().ext_id = "vm-1".into();
    world.spec.finalize = Some(true);
    world.turns(4);
    assert_eq!(only_target_runs(&world), ("Unknown", "Finalised"));
    world.target.as_mut().unwrap().on = Tri::No;
    world.turns(4);
    assert_eq!(world.status.phase.as_deref(), Some("Migrated"), "its owner may do with it as he likes");
}

#[test]
fn a_source_that_is_started_before_the_targets_guest_is_heard_is_told() {
    let mut world = World::in_sync();
    world.approve();
    while !world.target_runs() {
        world.turn();
    }
    world.target.as_mut().unwrap().learned_ips.clear();
    world.turns(2);
    assert_eq!(world.waits_for(), "Verifying");
    world.host_answers = false;
    world.problem("SourceRunning");
    world.turns(2);
    assert_eq!((world.waits_for(), only_target_runs(&world)), ("SourceRunning", ("False", "SourceRunning")));
}

#[test]
fn what_the_watch_cannot_see_is_neither_an_alarm_nor_well() {
    let mut world = World::migrated();
    world.prism_answers = false;
    world.turns(3);
    assert_eq!(only_target_runs(&world), ("Unknown", "PrismUnreachable"));
    assert_eq!(world.status.phase.as_deref(), Some("Migrated"));
    let no_setup = Err(Refusal::new("ReferenceNotFound", "there is no NutanixCluster"));
    world.status = world.decide(&Seen { setup: no_setup, target: Fact::NotAsked, ..world.seen() }).status;
    assert_eq!(only_target_runs(&world), ("Unknown", "ReferenceNotFound"));
    world.prism_answers = true;
    world.turns(2);
    world.host_answers = false;
    world.now = world.now.checked_add(60.seconds()).expect("in range");
    world.turns(2);
    assert_eq!(only_target_runs(&world), ("Unknown", "HostSideSilent"));
}

#[test]
fn the_target_is_looked_at_calmly_after_the_cutover_and_not_at_all_when_it_is_finalised() {
    let mut world = World::migrated();
    let needs = |world: &World| needs(&world.spec, &world.status);
    assert!(needs(&world).target && needs(&world).target_may_be_seconds_old == 30 && !needs(&world).backing);
    world.spec.finalize = Some(true);
    assert!(!needs(&world).target);
    (world.spec.finalize, world.spec.rollback) = (None, Some(true));
    world.turns(2);
    assert_eq!((needs(&world).target, needs(&world).target_may_be_seconds_old), (true, 0));
}

#[test]
fn what_a_rollback_would_lose_is_told_before_anybody_sets_it() {
    let outlook = |world: &World| world.status.rollback.clone().unwrap();
    let mut world = World::in_sync();
    assert_eq!(outlook(&world).message, "possible; nothing would be lost");
    world.approve();
    world.turn();
    assert_eq!(outlook(&world).message, "possible; nothing would be lost", "the target was not ordered to boot");
    world.turns(8);
    let off = world.status.cutover.as_ref().and_then(|cutover| cutover.source_off_at.clone()).unwrap();
    assert_eq!((outlook(&world).possible, outlook(&world).loses_since.as_ref()), (true, Some(&off)));
    assert_eq!(
        outlook(&world).message,
        format!("possible; what was written on the target since {:.0} would be lost", off.0)
    );
    let mut undone = World::migrated();
    undone.spec.rollback = Some(true);
    undone.turns(2);
    assert!(outlook(&undone).message.starts_with("under way; "));
    undone.turns(20);
    assert_eq!(outlook(&undone).message, "possible; nothing would be lost");
    world.spec.finalize = Some(true);
    world.turns(4);
    let end = RollbackStatus { possible: false, loses_since: None, message: "not possible any more".into() };
    assert_eq!(outlook(&world), end);
}

/// Whose clock is set.
#[derive(Clone, Copy, Debug)]
enum Whose {
    Controllers,
    Both,
}

/// The whole way in so many turns: in sync, approved or not, rolled back. Before each turn clocks may be set by so many seconds.
fn whole_way(approved: bool, whose: Whose, jumps: &[(usize, i64)]) -> World {
    let mut world = World::new();
    for turn in 0..60 {
        let jump = jumps.iter().filter(|(at, _)| *at == turn).map(|(_, jump)| jump).sum::<i64>();
        match whose {
            Whose::Controllers => world.clock_error += jump,
            Whose::Both => world.now = world.now.checked_add(jump.seconds()).expect("in range"),
        }
        match turn {
            18 if approved => world.approve(),
            30 => world.spec.rollback = Some(true),
            _ => {}
        }
        world.turn();
        let untouched = world.source_runs && world.power_ons.is_empty();
        assert!(approved && turn >= 18 || untouched, "{whose:?} {jumps:?}: turn {turn}");
    }
    assert!(world.source_runs && !world.target_runs(), "{whose:?} {jumps:?}: {:?}", world.status.waiting_for);
    assert_eq!(world.waits_for(), "RolledBack", "{whose:?} {jumps:?}");
    world
}

#[test]
fn a_clock_that_jumps_starts_nothing_that_was_not_approved_and_there_is_always_a_way_back() {
    assert_eq!(whole_way(true, Whose::Both, &[]).power_ons.len(), 1);
    for approved in [false, true] {
        for whose in [Whose::Controllers, Whose::Both] {
            for first in 0..50 {
                for jump in [-86_400, -7200, -45, 45, 7200, 86_400] {
                    whole_way(approved, whose, &[(first, jump)]);
                }
                for second in (first + 1..50).step_by(12) {
                    whole_way(approved, whose, &[(first, -7200), (second, 7200)]);
                    whole_way(approved, whose, &[(first, 7200), (second, -7200)]);
                }
            }
        }
    }
}

#[test]
fn a_report_of_a_time_that_has_not_come_proves_nothing_and_opens_no_gate() {
    let mut world = World::in_sync();
    world.clock_error = -3600;
    world.approve();
    world.turns(5);
    assert_eq!(world.waits_for(), "HostSideSilent");
    assert!(world.source_runs && world.status.cutover.is_none());
    world.clock_error = 0;
    world.turn();
    assert!(!world.source_runs && world.power_ons.is_empty());
    world.clock_error = -3600;
    world.turns(5);
    assert_eq!((world.waits_for(), world.power_ons.len()), ("Proving", 0));
}

#[test]
fn a_target_is_not_rolled_back_because_somebody_sets_the_controllers_clock() {
    let mut world = World::in_sync();
    world.spec.cutover.on_verify_failure = OnVerifyFailure::Rollback;
    world.approve();
    while !world.target_runs() {
        world.turn();
    }
    let mut boots = |clock_error| {
        world.clock_error = clock_error;
        for _ in 0..5 {
            world.target.as_mut().expect("created").learned_ips.clear();
            world.turn();
        }
        assert!(world.target_runs() && !world.source_runs, "rolled back");
        world.waits_for().to_owned()
    };
    assert_eq!(boots(0), "Verifying");
    assert_eq!(boots(7200), "GuestSilent");
    assert_eq!(boots(0), "Verifying");
}
