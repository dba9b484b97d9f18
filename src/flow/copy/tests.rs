//! The decision against a small model of a host: one domain with two disks, libvirt, the relay, processes, clock.

#![allow(
    clippy::type_complexity,
    clippy::wildcard_enum_match_arm,
    reason = "tables of small functions; a test names the few that matter"
)]

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::api::block_copy::{DiskCopy, HowOff, MirrorState, NfsFile};
use crate::api::libvirt_host::CopyLimits;
use crate::api::machine::{Board, Cpu, Disk, DiskBus, DiskFormat, DiskSource, Firmware, Machine};
use crate::api::nutanix_cluster::NfsAddress;
use crate::api::shutdown::{CommandOutcome, GuestCommand, OnCommandFailure, OnShutdownTimeout, ShutdownPolicy};

const UUID: &str = "5d4ae1e7-0000-4000-8000-00000000beef";
const DEVICES: [&str; 2] = ["vda", "vdb"];
const SIZE: u64 = 64 << 20;

fn claim_of(uid: &str) -> Claim {
    Claim { namespace: "shop".into(), name: format!("web-{uid}"), uid: uid.into(), installation: "i".into() }
}

fn process(pid: u32) -> ProcessId {
    ProcessId { pid, start_ticks: 1, boot_id: "b".into() }
}

fn machine() -> Machine {
    let disk = |device: &&str| Disk {
        device: (*device).into(),
        bus: DiskBus::Virtio,
        source: DiskSource::File,
        path: format!("/images/{device}"),
        format: DiskFormat::Raw,
        size_bytes: SIZE,
    };
    Machine {
        name: "web".into(),
        uuid: UUID.into(),
        title: None,
        cpu: Cpu { sockets: 1, cores_per_socket: 1, threads_per_core: 1 },
        memory_bytes: 1 << 30,
        firmware: Firmware::Bios,
        board: Board::Pc,
        disks: DEVICES.iter().map(disk).collect(),
        left_out: vec![],
        nics: vec![],
        on_poweroff: "destroy".into(),
        persistent: true,
    }
}

fn equal(compared_extents: u64, verified_extents: u64, repaired_extents: u64) -> ComparisonProgress {
    ComparisonProgress::Equal { blake3: "h".into(), compared_extents, verified_extents, repaired_extents }
}

fn order(want: Want, epoch: u64) -> BlockCopySpec {
    let disk = |device: &&str| DiskCopy {
        device: (*device).into(),
        size_bytes: SIZE,
        target: NfsFile {
            server: NfsAddress { address: "192.0.2.1".into(), port: None, mount_port: None },
            export: "/container".into(),
            path: format!(".acropolis/vmdisk/{device}"),
            size_bytes: SIZE * 2,
        },
    };
    BlockCopySpec {
        claim: claim_of("a"),
        epoch,
        hostname: "web".into(),
        domain_uuid: None,
        libvirt_uri: "qemu:///system".into(),
        run_directory: "/run/drover".into(),
        want,
        disks: DEVICES.iter().map(disk).collect(),
        canary: (want == Want::Canary).then(|| "n1".into()),
        target_version: None,
        limits: CopyLimits::default(),
        shutdown: ShutdownPolicy { timeout_seconds: 120, ..ShutdownPolicy::default() },
        repair_within_seconds: 0,
        power_off_source: false,
    }
}

/// The model. What it does to itself in `apply` is what the real parts do.
struct Host {
    order: BlockCopySpec,
    status: BlockCopyStatus,
    memory: Option<Memory>,
    domain: DomainSeen,
    relay: Option<RelaySeen>,
    qemu: u32,
    alive: BTreeSet<u32>,
    stranger: Option<Holder>,
    orphans: Vec<String>,
    comparison: ComparisonProgress,
    /// What a comparison comes to that writes anew what differs.
    repair: ComparisonProgress,
    verifications: BTreeMap<String, VerificationSeen>,
    comparisons: BTreeMap<String, ComparisonSeen>,
    command: Option<CommandSeen>,
    canaries: BTreeMap<String, CanarySeen>,
    /// What becomes of a marker that is written.
    canary: CanaryProgress,
    seconds: i64,
    done: Vec<Effect>,
    /// The guest obeys the power button.
    obeys: bool,
    trouble: Option<String>,
}

impl Host {
    fn new(want: Want) -> Self {
        let domain = DomainSeen {
            uuid: UUID.into(),
            power: Power::Running,
            state_word: "running".into(),
            id: Some(1),
            managed_save: false,
            autostart: true,
            machine: Ok(machine()),
            mark: None,
            mirrors: BTreeMap::new(),
            blocks: Fact::Known(
                DEVICES.iter().map(|d| ((*d).to_owned(), BlockSeen { size_bytes: SIZE, job: None })).collect(),
            ),
            libvirt_version: MIN_LIBVIRT,
            qemu_version: Version(7, 2, 0),
            shutdown_by: None,
            reboots: 0,
            interruptions: 1,
        };
        let relay = RelaySeen { instance: "r1".into(), pid: 200, memory_bytes: 128 << 20, exports: BTreeMap::new() };
        Self {
            order: order(want, 1),
            status: BlockCopyStatus::default(),
            memory: None,
            domain,
            relay: Some(relay),
            qemu: 100,
            alive: BTreeSet::from([100, 200]),
            stranger: None,
            orphans: vec![],
            comparison: equal(1, 15, 0),
            repair: equal(16, 0, 3),
            verifications: BTreeMap::new(),
            comparisons: BTreeMap::new(),
            command: None,
            canaries: BTreeMap::new(),
            canary: CanaryProgress::Written,
            seconds: 1_000_000,
            done: vec![],
            obeys: true,
            trouble: None,
        }
    }

    fn now(&self) -> Time {
        Time(jiff::Timestamp::from_second(self.seconds).unwrap())
    }

    fn seen(&mut self) -> Seen {
        let running = matches!(self.domain.power, Power::Running | Power::Paused | Power::ShuttingDown);
        let mut holders: Vec<Holder> = self.stranger.iter().cloned().collect();
        if running {
            holders.push(Holder { process: process(self.qemu), command: "qemu-system-x86".into(), qemu: true });
        }
        let processes = ProcessesSeen {
            holders: DEVICES.iter().map(|d| ((*d).to_owned(), holders.clone())).collect(),
            alive: self.alive.iter().map(|pid| process(*pid)).collect(),
            relay: self.relay.as_ref().map(|relay| process(relay.pid)),
            orphan_sockets: self.orphans.clone(),
        };
        Seen {
            found: Fact::Known(Found::One(Box::new(self.domain.clone()))),
            memory: Fact::Known(self.memory.clone()),
            relay: self.relay.clone().map_or(Fact::Unknown("connection refused".into()), Fact::Known),
            processes: Fact::Known(processes),
            verifications: self.verifications.clone(),
            command: self.command.clone(),
            comparisons: self.comparisons.clone(),
            canaries: self.canaries.clone(),
            trouble: self.trouble.take(),
        }
    }

    fn decide(&mut self, spoil: impl FnOnce(&mut Seen)) -> Decision {
        let mut seen = self.seen();
        spoil(&mut seen);
        decide(&self.order, &self.status, &seen, &self.now())
    }

    fn record(&mut self, decision: &Decision) {
        self.status = decision.status.clone();
        match &decision.memory {
            MemoryChange::Keep => {}
            MemoryChange::Create(memory) | MemoryChange::Write(memory) => self.memory = Some((**memory).clone()),
        }
    }

    fn turn(&mut self) -> Decision {
        self.seconds += 1;
        let decision = self.decide(|_| {});
        self.record(&decision);
        for effect in decision.effects.clone() {
            self.apply(effect);
        }
        decision
    }

    fn turns(&mut self, count: usize) {
        for _ in 0..count {
            self.turn();
        }
    }

    fn reason(&self) -> &str {
        self.status.problem.as_ref().map_or("", |problem| problem.reason.as_str())
    }

    fn job(&mut self, device: &str, job: Option<JobSeen>) {
        if let Fact::Known(blocks) = &mut self.domain.blocks {
            blocks.get_mut(device).unwrap().job = job;
        }
    }

    fn end_mirrors(&mut self) {
        self.domain.mirrors.clear();
        for device in DEVICES {
            self.job(device, None);
        }
        for export in self.relay.iter_mut().flat_map(|relay| relay.exports.values_mut()) {
            export.connected = false;
        }
    }

    fn copied(&mut self) {
        for device in DEVICES {
            self.job(device, Some(JobSeen { cur: SIZE, end: SIZE, bandwidth_bytes_s: 1 << 30 }));
            self.domain.mirrors.get_mut(device).unwrap().ready = true;
        }
    }

    fn power_off(&mut self) {
        self.end_mirrors();
        self.domain.power = Power::Off { orderly: true };
        self.domain.state_word = "shut off".into();
        self.domain.id = None;
        self.alive.remove(&self.qemu);
    }

    fn power_on(&mut self) {
        self.domain.power = Power::Running;
        self.domain.state_word = "running".into();
        self.domain.id = Some(2);
        self.qemu += 1;
        self.alive.insert(self.qemu);
    }

    fn new_relay(&mut self) {
        self.end_mirrors();
        if let Some(old) = self.relay.take() {
            self.alive.remove(&old.pid);
        }
        let pid = 300;
        self.alive.insert(pid);
        self.relay = Some(RelaySeen { instance: "r2".into(), pid, memory_bytes: 128 << 20, exports: BTreeMap::new() });
    }

    fn apply(&mut self, effect: Effect) {
        assert!(Effect::NAMES.contains(&effect.name()));
        self.done.push(effect.clone());
        match effect {
            Effect::WriteMark(mark) => self.domain.mark = Some(mark),
            Effect::RemoveMark => self.domain.mark = None,
            Effect::SetAutostart(autostart) => self.domain.autostart = autostart,
            Effect::WriteCanary { disk, nonce, .. } => {
                assert!(self.domain.mirrors.is_empty(), "a marker was written beside a mirror");
                let progress = self.canary.clone();
                self.canaries.insert(disk.device, CanarySeen { nonce, progress });
            }
            Effect::OpenExport { disk, .. } => {
                let export = ExportSeen { size_bytes: disk.size_bytes, ..ExportSeen::default() };
                self.relay.as_mut().unwrap().exports.insert(disk.device, export);
            }
            Effect::CloseExport { device, .. } => {
                self.relay.as_mut().unwrap().exports.remove(&device);
                self.domain.mirrors.remove(&device);
                self.job(&device, None);
            }
            Effect::StartMirror { device, bandwidth_bytes_s } => {
                self.relay.as_mut().unwrap().exports.get_mut(&device).unwrap().connected = true;
                self.job(&device, Some(JobSeen { cur: 0, end: 1, bandwidth_bytes_s }));
                self.domain.mirrors.insert(device, MirrorSeen { ours: true, ready: false });
            }
            Effect::SetSpeed { .. } => {}
            Effect::AbortMirror { device } => {
                self.domain.mirrors.remove(&device);
                self.job(&device, None);
            }
            Effect::EndRelay { process, .. } => {
                assert_eq!(process.pid, self.relay.as_ref().unwrap().pid);
                self.new_relay();
            }
            Effect::Verify { disk, opening, .. } => {
                let seen = VerificationSeen { opening, verified_bytes: SIZE / 2, difference_offset: None };
                self.verifications.entry(disk.device).or_insert(seen);
            }
            Effect::Compare { disk, repair, .. } => {
                assert!(!matches!(self.domain.power, Power::Running), "compared while it runs");
                let progress = if repair { &self.repair } else { &self.comparison };
                self.comparisons.insert(disk.device, ComparisonSeen { repairs: repair, progress: progress.clone() });
            }
            Effect::RunInGuest(_) => self.command = Some(CommandSeen::Running),
            Effect::PowerOff => {
                self.domain.shutdown_by = Some(ShutdownBy::Host);
                self.power_off();
                self.domain.power = Power::Off { orderly: false };
            }
            Effect::Shutdown(_) => {
                assert!(!self.domain.autostart, "shut down with autostart on");
                if self.obeys {
                    self.domain.shutdown_by = Some(ShutdownBy::Guest);
                    self.power_off();
                }
            }
            Effect::Start => self.power_on(),
            Effect::DeleteClaim => self.memory = None,
        }
    }

    fn shutdowns(&self) -> usize {
        self.done.iter().filter(|effect| matches!(effect, Effect::Shutdown(_))).count()
    }

    /// A host whose mirror is in sync.
    fn in_sync() -> Self {
        let mut host = Self::new(Want::Mirror);
        host.turns(4);
        assert_eq!(host.status.reached, Some(Want::Mirror), "{:?}", host.status.problem);
        host.copied();
        host.turn();
        assert_eq!(host.status.in_sync, Tri::Yes, "{:?}", host.status);
        host
    }

    /// A host that was told to quiesce and has done so.
    fn quiesced() -> Self {
        let mut host = Self::in_sync();
        host.want(Want::Quiesce);
        host.turns(10);
        assert_eq!(host.status.reached, Some(Want::Quiesce), "{:?} {:?}", host.status.problem, host.status.quiesce);
        host
    }

    fn want(&mut self, want: Want) {
        self.order = order(want, self.order.epoch + 1);
    }
}

#[test]
fn inspect_claims_and_reports_and_changes_nothing_else() {
    let mut host = Host::new(Want::Inspect);
    host.turns(3);
    assert_eq!(host.status.reached, Some(Want::Inspect));
    assert_eq!(host.status.machine, Some(machine()));
    assert_eq!(host.memory.as_ref().unwrap().claim, claim_of("a"));
    assert!(
        host.done.iter().all(|effect| matches!(effect, Effect::WriteMark(mark) if mark.state == MarkState::Claimed))
    );
    assert_eq!(host.done.len(), 1, "the mark is written once");
}

#[test]
fn what_cannot_be_moved_is_a_named_problem_and_nothing_is_done() {
    type Spoil = fn(&mut Host, &mut Seen);
    let cases: [(&str, Want, Spoil); 14] = [
        ("HypervisorUnreachable", Want::Mirror, |_, seen| seen.found = Fact::Unknown("refused".into())),
        ("DomainNotFound", Want::Inspect, |_, seen| {
            seen.found = Fact::Known(Found::None { seen_names: vec!["db".into()] })
        }),
        ("AmbiguousHostname", Want::Inspect, |_, seen| {
            seen.found = Fact::Known(Found::Several { names: vec!["web".into(), "web-old".into()] });
        }),
        ("ClaimUnreadable", Want::Mirror, |_, seen| seen.memory = Fact::Unknown("spoilt".into())),
        ("AlreadyClaimed", Want::Mirror, |_, seen| seen.memory = Fact::Known(Some(Memory::new(claim_of("b"), 9)))),
        ("StaleOrder", Want::Mirror, |_, seen| seen.memory = Fact::Known(Some(Memory::new(claim_of("a"), 9)))),
        ("VersionTooOld", Want::Mirror, |_, seen| domain(seen).libvirt_version = Version(7, 9, 9)),
        ("SourceNotRunning", Want::Mirror, |_, seen| domain(seen).power = Power::Off { orderly: true }),
        ("SourceChanged", Want::Mirror, |_, seen| domain(seen).machine.as_mut().unwrap().disks[0].size_bytes += 512),
        ("UnsupportedMachine", Want::Mirror, |_, seen| {
            domain(seen).machine.as_mut().unwrap().disks[0].size_bytes += 100
        }),
        ("SourceChanged", Want::Mirror, |_, seen| drop(domain(seen).machine.as_mut().unwrap().disks.pop())),
        ("UnsupportedMachine", Want::Mirror, |_, seen| {
            domain(seen).machine.as_mut().unwrap().on_poweroff = "restart".into()
        }),
        ("UnsupportedMachine", Want::Mirror, |_, seen| domain(seen).machine.as_mut().unwrap().persistent = false),
        ("RelayUnreachable", Want::Mirror, |_, seen| seen.relay = Fact::Unknown("refused".into())),
    ];
    for (reason, want, spoil) in cases {
        let mut host = Host::new(Want::Inspect);
        host.turns(2);
        host.want(want);
        let mut seen = host.seen();
        spoil(&mut host, &mut seen);
        let decision = decide(&host.order, &host.status, &seen, &host.now());
        assert_eq!(decision.status.problem.unwrap().reason, reason);
        assert_eq!(decision.status.reached, None, "{reason}");
        let harmless = |effect: &Effect| matches!(effect, Effect::WriteMark(mark) if mark.state == MarkState::Claimed);
        assert!(decision.effects.iter().all(harmless), "{reason}: {:?}", decision.effects);
    }
}

/// libvirt refuses to write into a configuration that is not there: trying it in each turn would hide what matters.
#[test]
fn a_transient_domain_is_claimed_without_a_mark() {
    let mut host = Host::new(Want::Inspect);
    host.domain.machine.as_mut().unwrap().persistent = false;
    host.turns(3);
    assert_eq!((host.status.reached, host.reason()), (Some(Want::Inspect), ""));
    assert_eq!((host.memory.is_some(), host.done.as_slice()), (true, [].as_slice()));
}

fn domain(seen: &mut Seen) -> &mut DomainSeen {
    match &mut seen.found {
        Fact::Known(Found::One(domain)) => domain,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_machine_claimed_by_another_is_refused_by_its_name_even_after_the_host_lost_its_files() {
    let mut host = Host::new(Want::Inspect);
    host.domain.mark =
        Some(Mark { claim: claim_of("b"), epoch: 1, state: MarkState::Cutover, autostart_was: Some(true) });
    let decision = host.turn();
    assert_eq!(host.reason(), "AlreadyClaimed");
    assert!(host.status.problem.unwrap().message.contains("shop/web-b"));
    assert_eq!((decision.memory, decision.effects), (MemoryChange::Keep, vec![]));
}

#[test]
fn the_target_is_dirty_before_the_first_byte_and_fresh_only_once() {
    let mut host = Host::new(Want::Mirror);
    host.turn();
    let decision = host.turn();
    let fresh = |decision: &Decision| -> Vec<bool> {
        let opens = decision
            .effects
            .iter()
            .filter_map(|e| if let Effect::OpenExport { fresh, .. } = e { Some(*fresh) } else { None });
        opens.collect()
    };
    assert_eq!(fresh(&decision), [true, true]);
    assert!(decision.status.disks.iter().all(|disk| !disk.dirtied), "an export that was only opened is still fresh");
    // The driver dies between recording and doing.
    host.seconds += 1;
    let lost = host.decide(|_| {});
    assert!(lost.effects.iter().any(|effect| matches!(effect, Effect::StartMirror { .. })));
    assert!(lost.status.disks.iter().all(|disk| disk.dirtied), "recorded with the same turn, so before QEMU is told");
    host.record(&lost);
    host.done.clear();
    host.turns(8);
    // Claim file and report each remember it alone.
    host.memory.as_mut().unwrap().dirtied.clear();
    host.new_relay();
    host.turns(8);
    let opens = host.done.iter().filter(|effect| matches!(effect, Effect::OpenExport { .. }));
    assert_eq!(opens.count(), 4);
    assert!(host.done.iter().all(|effect| !matches!(effect, Effect::OpenExport { fresh: true, .. })));
}

#[test]
fn markers_are_written_once_to_each_target_and_leave_it_fresh() {
    let mut host = Host::new(Want::Canary);
    host.canary = CanaryProgress::Writing;
    host.turns(5);
    assert_eq!((host.status.reached, host.reason()), (None, ""));
    let writes = |host: &Host| host.done.iter().filter(|effect| matches!(effect, Effect::WriteCanary { .. })).count();
    assert_eq!(writes(&host), 2);
    for canary in host.canaries.values_mut() {
        canary.progress = CanaryProgress::Written;
    }
    host.turns(3);
    assert_eq!((host.status.reached, writes(&host)), (Some(Want::Canary), 2));
    // A new driver does not know what is written, and writes it again.
    host.canaries.clear();
    host.canary = CanaryProgress::Failed("ENOSPC".into());
    host.turns(2);
    assert_eq!((host.status.reached, host.reason()), (None, "TargetRefused"));
    host.canary = CanaryProgress::Written;
    host.turns(2);
    assert_eq!(host.status.reached, Some(Want::Canary));
    let other = BlockCopySpec { canary: Some("n2".into()), ..host.order.clone() };
    host.order = other;
    assert_eq!(host.decide(|_| {}).status.reached, None, "a marker of another time is none");
    host.want(Want::Mirror);
    host.turns(2);
    assert!(host.done.iter().any(|effect| matches!(effect, Effect::OpenExport { fresh: true, .. })));
}

#[test]
fn a_marker_is_never_written_over_a_copy() {
    let spoils: [fn(&mut Host); 4] = [
        |_| {},
        |host| host.memory.as_mut().unwrap().dirtied.clear(),
        |host| host.status.disks.iter_mut().for_each(|disk| disk.dirtied = false),
        |host| host.end_mirrors(),
    ];
    for spoil in spoils {
        let mut host = Host::in_sync();
        spoil(&mut host);
        host.want(Want::Canary);
        host.done.clear();
        host.turns(3);
        assert_eq!((host.status.reached, host.reason()), (None, "TargetInUse"));
        assert!(host.canaries.is_empty(), "{:?}", host.done);
    }
    let mut host = Host::quiesced();
    host.want(Want::Canary);
    host.turns(3);
    assert_eq!(host.reason(), "CutoverUnresolved");
    assert!(host.canaries.is_empty());
}

#[test]
fn in_sync_needs_every_part_of_it() {
    let spoils: [(&str, fn(&mut Seen), Tri); 9] = [
        ("ready", |seen| domain(seen).mirrors.get_mut("vdb").unwrap().ready = false, Tri::No),
        ("mirror", |seen| domain(seen).mirrors.retain(|device, _| device != "vdb"), Tri::No),
        ("export", |seen| relay(seen).exports.get_mut("vda").unwrap().broken = Some("EIO".into()), Tri::No),
        ("connection", |seen| relay(seen).exports.get_mut("vda").unwrap().connected = false, Tri::No),
        ("instance", |seen| relay(seen).instance = "r9".into(), Tri::No),
        ("backlog", |seen| relay(seen).exports.get_mut("vda").unwrap().backlog_bytes = 100 << 20, Tri::No),
        ("relay", |seen| seen.relay = Fact::Unknown("x".into()), Tri::Unknown),
        ("monitor", |seen| domain(seen).blocks = Fact::Unknown("x".into()), Tri::Unknown),
        ("libvirt", |seen| seen.found = Fact::Unknown("x".into()), Tri::Unknown),
    ];
    for (what, spoil, expected) in spoils {
        let mut host = Host::in_sync();
        let decision = host.decide(spoil);
        assert_eq!(decision.status.in_sync, expected, "{what}");
    }
    let mut host = Host::in_sync();
    host.relay.as_mut().unwrap().exports.get_mut("vda").unwrap().drain_rate_bytes_s = 8 << 20;
    let busy = host.decide(|seen| {
        relay(seen).exports.get_mut("vda").unwrap().backlog_bytes = 100 << 20;
        let Fact::Known(blocks) = &mut domain(seen).blocks else { panic!() };
        blocks.get_mut("vda").unwrap().job.as_mut().unwrap().end += 1 << 20;
    });
    assert_eq!(busy.status.in_sync, Tri::Yes, "a busy guest has writes in flight and a backlog that drains in time");
}

fn relay(seen: &mut Seen) -> &mut RelaySeen {
    match &mut seen.relay {
        Fact::Known(relay) => relay,
        Fact::Unknown(why) => panic!("{why}"),
    }
}

#[test]
fn ready_alone_is_not_in_sync() {
    let mut host = Host::new(Want::Mirror);
    host.turns(4);
    host.copied();
    host.job("vdb", Some(JobSeen { cur: SIZE - 1, end: SIZE, bandwidth_bytes_s: 1 << 30 }));
    host.turn();
    assert_eq!(host.status.in_sync, Tri::No);
    assert!(host.status.disks.iter().all(|disk| disk.state == MirrorState::Ready));
}

#[test]
fn a_broken_copy_is_void_as_a_whole_and_starts_again_after_a_pause() {
    let breaks: [(&str, fn(&mut Host)); 3] = [
        ("a new relay", Host::new_relay),
        ("one mirror gone", |host| {
            host.domain.mirrors.remove("vdb");
            host.job("vdb", None);
        }),
        ("an export broken", |host| {
            host.relay.as_mut().unwrap().exports.get_mut("vda").unwrap().broken = Some("stalled".into());
        }),
    ];
    for (what, break_it) in breaks {
        let mut host = Host::in_sync();
        break_it(&mut host);
        host.turn();
        assert_eq!((host.reason(), host.status.in_sync), ("CopyBroken", Tri::No), "{what}");
        assert_eq!(host.status.restarts, 1, "{what}");
        let why = host.status.problem.clone();
        for _ in 0..5 {
            host.turn();
            assert!(host.status.problem.is_none() || host.status.problem == why, "{what}: {:?}", host.status.problem);
        }
        host.turn();
        host.copied();
        host.turn();
        assert_eq!((host.reason(), host.status.in_sync, host.status.restarts), ("", Tri::Yes, 1), "{what}");
        assert_eq!(host.domain.power, Power::Running);
        assert_eq!(host.shutdowns(), 0);
    }
}

#[test]
fn a_new_driver_goes_on_with_the_mirror_that_it_finds() {
    let mut host = Host::in_sync();
    let starts = host.done.len();
    host.turns(5);
    let verifies = |effect: &Effect| matches!(effect, Effect::Verify { .. });
    assert!(host.done[starts..].iter().all(verifies), "nothing is started again: {:?}", host.done);
    assert_eq!(host.status.restarts, 0);
}

/// Devices that a turn orders to be verified, and how fast.
fn verified(decision: &Decision) -> Vec<(&str, u64)> {
    let ordered = decision.effects.iter().filter_map(|effect| match effect {
        Effect::Verify { disk, bytes_s, .. } => Some((disk.device.as_str(), *bytes_s)),
        _ => None,
    });
    ordered.collect()
}

#[test]
fn disks_are_verified_while_they_are_in_step_and_nobody_waits_for_it() {
    let mut host = Host::in_sync();
    let share = 32 << 20;
    assert_eq!(verified(&host.decide(|_| {})), [("vda", share), ("vdb", share)], "the limit is for all disks");
    let not_ready = host.decide(|seen| domain(seen).mirrors.get_mut("vda").unwrap().ready = false);
    assert_eq!(verified(&not_ready), [("vdb", share)]);
    let spoils: [(&str, fn(&mut Seen)); 5] = [
        ("throttled", |seen| relay(seen).exports.get_mut("vda").unwrap().throttled = true),
        ("broken", |seen| relay(seen).exports.get_mut("vda").unwrap().broken = Some("EIO".into())),
        ("another relay", |seen| relay(seen).instance = "r9".into()),
        ("relay unknown", |seen| seen.relay = Fact::Unknown("x".into())),
        ("processes unknown", |seen| seen.processes = Fact::Unknown("x".into())),
    ];
    for (what, spoil) in spoils {
        assert_eq!(verified(&host.decide(spoil)), [], "{what}");
    }
    // The guest is on its way down: it has the storage for itself.
    host.obeys = false;
    host.want(Want::Quiesce);
    host.turns(5);
    assert!(host.status.quiesce.as_ref().unwrap().shutdown_requested_at.is_some());
    assert_eq!(verified(&host.turn()), []);
    host.want(Want::Mirror);
    host.turn();
    host.order.limits.verify_mib_per_second = 0;
    assert_eq!(verified(&host.turn()), []);
}

#[test]
fn nothing_is_verified_while_an_earlier_relay_may_still_write() {
    let mut host = Host::in_sync();
    host.new_relay();
    host.turns(8);
    host.copied();
    assert_eq!(verified(&host.turn()).len(), 2);
    host.orphans = vec!["192.0.2.1 in state 04".into()];
    assert_eq!(verified(&host.turn()), []);
    host.orphans.clear();
    host.alive.insert(200);
    assert_eq!(verified(&host.turn()), []);
}

#[test]
fn what_is_verified_belongs_to_one_opening_of_the_export() {
    let mut host = Host::in_sync();
    host.turn();
    assert_eq!(host.status.disks[0].verified_bytes, SIZE / 2);
    let reopened = host.decide(|seen| relay(seen).exports.get_mut("vda").unwrap().opening = "another".into());
    assert_eq!((reopened.status.disks[0].verified_bytes, reopened.status.disks[1].verified_bytes), (0, SIZE / 2));
    let host = Host::quiesced();
    assert!(host.status.disks.iter().all(|disk| disk.verified_bytes == SIZE));
    let quiesce = host.status.quiesce.unwrap();
    assert_eq!((quiesce.compared_extents, quiesce.verified_extents), (Some(2), Some(30)));
}

#[test]
fn a_difference_that_stands_while_the_guest_runs_voids_the_copy_and_the_alarm_stays_until_it_is_in_sync_again() {
    let mut host = Host::in_sync();
    host.turn();
    let difference = host.verifications.get_mut("vdb").unwrap();
    difference.difference_offset = Some(4096);
    // One of an earlier opening means nothing.
    let old = host.decide(|seen| relay(seen).exports.get_mut("vdb").unwrap().opening = "another".into());
    assert_eq!((old.status.problem, old.status.in_sync), (None, Tri::Yes));
    host.turn();
    assert_eq!((host.reason(), host.status.restarts, host.status.in_sync), ("VerifyFailed", 1, Tri::No));
    assert!(host.status.problem.as_ref().unwrap().message.contains("vdb differs from its target at byte 4096"));
    assert_eq!(host.memory.as_ref().unwrap().attempt, None);
    host.verifications.clear();
    for _ in 0..8 {
        host.turn();
        assert_eq!(host.reason(), "VerifyFailed");
    }
    assert_eq!(host.status.reached, Some(Want::Mirror), "it copies again");
    host.copied();
    host.turn();
    assert_eq!((host.reason(), host.status.in_sync), ("", Tri::Yes));
    assert_eq!(host.shutdowns(), 0);
}

/// Which relay's counters a comparison may believe.
fn believed(host: &mut Host) -> Vec<Option<Proviso>> {
    host.want(Want::Quiesce);
    host.turns(12);
    let compares = host.done.iter().filter_map(|effect| match effect {
        Effect::Compare { believe, .. } => Some(believe.clone()),
        _ => None,
    });
    compares.collect()
}

#[test]
fn counters_are_believed_only_of_a_source_that_shut_itself_down_under_one_qemu() {
    let proviso = || Some(Proviso { relay_instance: "r1".into(), interruptions: 1, target_version: None });
    assert_eq!(believed(&mut Host::in_sync()), [proviso(), proviso()]);

    let mut off_by_limit = Host::in_sync();
    off_by_limit.want(Want::Quiesce);
    let order = |host: &mut Host| host.order.limits.verify_mib_per_second = 0;
    order(&mut off_by_limit);
    off_by_limit.turns(12);
    let compares = |effect: &Effect| matches!(effect, Effect::Compare { believe: None, .. });
    assert_eq!(off_by_limit.done.iter().filter(|effect| compares(effect)).count(), 2);

    // Killed, not shut down.
    let mut killed = Host::in_sync();
    killed.obeys = false;
    killed.want(Want::Quiesce);
    killed.turns(4);
    killed.power_off();
    killed.turns(12);
    assert_eq!(killed.status.quiesce.as_ref().unwrap().how, Some(HowOff::Unclear));
    assert_eq!(killed.done.iter().filter(|effect| compares(effect)).count(), 2);

    // The mirror was ended by hand while the guest was on its way down.
    let mut cut = Host::in_sync();
    cut.obeys = false;
    cut.want(Want::Quiesce);
    cut.turns(4);
    cut.end_mirrors();
    cut.turn();
    cut.domain.shutdown_by = Some(ShutdownBy::Guest);
    cut.power_off();
    cut.turns(12);
    assert_eq!(cut.status.quiesce.as_ref().unwrap().how, Some(HowOff::Clean));
    assert_eq!(cut.done.iter().filter(|effect| compares(effect)).count(), 2);

    // Somebody started it, and it was seen; then it went off as it was asked to.
    let mut twice = Host::in_sync();
    twice.memory.as_mut().unwrap().holders.get_mut("vdb").unwrap().insert(process(999));
    assert_eq!(believed(&mut twice), [None, None]);

    // An earlier QEMU that has long ended says nothing about this attempt.
    let mut earlier = Host::new(Want::Mirror);
    earlier.turn();
    earlier.memory.as_mut().unwrap().holders.entry("vdb".into()).or_default().insert(process(999));
    earlier.turns(4);
    earlier.copied();
    earlier.turn();
    assert_eq!(earlier.status.in_sync, Tri::Yes);
    assert_eq!(believed(&mut earlier), [proviso(), proviso()]);
}

#[test]
fn quiesce_proves_everything_in_order() {
    let host = Host::quiesced();
    let quiesce = host.status.quiesce.as_ref().unwrap();
    assert_eq!(quiesce.how, Some(HowOff::Clean));
    let times = [
        &quiesce.marked_at,
        &quiesce.shutdown_requested_at,
        &quiesce.off_by_libvirt_at,
        &quiesce.off_by_host_at,
        &quiesce.drained_at,
        &quiesce.writers_gone_at,
        &quiesce.equal_at,
    ];
    let times: Vec<_> = times.into_iter().map(|time| time.as_ref().unwrap().0).collect();
    assert!(times.is_sorted());
    assert_eq!(quiesce.blake3, ["h", "h"]);
    assert_eq!(host.shutdowns(), 1);
    assert!(!host.domain.autostart);
    assert_eq!(host.domain.mark.unwrap().state, MarkState::Cutover);
}

/// In any state on the way, no fact that is unknown leads to a shutdown, a start, a proof, or to giving anything up.
#[test]
fn unknown_never_moves_anything_forward() {
    let spoils: [fn(&mut Seen); 5] = [
        |seen| seen.found = Fact::Unknown("x".into()),
        |seen| seen.memory = Fact::Unknown("x".into()),
        |seen| seen.relay = Fact::Unknown("x".into()),
        |seen| seen.processes = Fact::Unknown("x".into()),
        |seen| {
            if let Fact::Known(Found::One(domain)) = &mut seen.found {
                domain.blocks = Fact::Unknown("x".into());
            }
        },
    ];
    for last in [Want::Quiesce, Want::Release] {
        let mut host = Host::in_sync();
        for step in 0..24 {
            for (index, spoil) in spoils.iter().enumerate() {
                let before = host.status.clone();
                let decision = host.decide(spoil);
                let what = format!("{last:?}, step {step}, spoil {index}");
                let gone_too_far = |effect: &Effect| match effect {
                    Effect::Shutdown(_) => before.quiesce.as_ref().is_none_or(|q| q.shutdown_requested_at.is_none()),
                    Effect::StartMirror { .. } => true,
                    // Starting the source again needs libvirt and the claim alone.
                    Effect::Start | Effect::DeleteClaim => index < 2,
                    _ => false,
                };
                assert!(!decision.effects.iter().any(gone_too_far), "{what}: {:?}", decision.effects);
                let times =
                    |status: &BlockCopyStatus| status.quiesce.clone().map(|q| (q.off_by_host_at, q.writers_gone_at));
                if index == 3 && times(&before).is_some_and(|(off, _)| off.is_none()) {
                    assert!(
                        times(&decision.status).is_none_or(|(off, gone)| off.is_none() && gone.is_none()),
                        "{what}"
                    );
                }
                if index != 2 && index != 4 && host.status.reached != Some(Want::Release) {
                    assert_ne!(decision.status.reached, Some(Want::Quiesce), "{what}");
                }
            }
            if step == 0 {
                host.want(Want::Quiesce);
            }
            if step == 12 {
                host.want(last);
            }
            host.turn();
        }
    }
}

#[test]
fn a_guest_that_ignores_the_power_button_runs_on_as_before() {
    let mut host = Host::in_sync();
    host.obeys = false;
    host.want(Want::Quiesce);
    host.turns(60);
    assert!((4..=7).contains(&host.shutdowns()), "repeated every ten seconds: {}", host.shutdowns());
    host.turns(80);
    assert_eq!(host.reason(), "ShutdownTimedOut");
    let shutdowns = host.shutdowns();
    host.turns(200);
    assert_eq!(host.shutdowns(), shutdowns, "not tried again under this order");
    assert_eq!(host.reason(), "ShutdownTimedOut");
    assert!(host.domain.autostart, "restored");
    assert_eq!(host.domain.mark.as_ref().unwrap().state, MarkState::Claimed);
    assert_eq!(host.status.in_sync, Tri::Yes, "the mirror goes on");
    host.obeys = true;
    host.want(Want::Quiesce);
    host.turns(10);
    assert_eq!(host.status.reached, Some(Want::Quiesce));
}

#[test]
fn a_mirror_that_breaks_before_the_guest_is_off_calls_the_shutdown_off() {
    let mut host = Host::in_sync();
    host.obeys = false;
    host.want(Want::Quiesce);
    host.turns(4);
    assert_eq!(host.shutdowns(), 1);
    host.new_relay();
    host.turns(4);
    assert_eq!(host.reason(), "NotInSync");
    assert!(host.domain.autostart);
    assert_eq!(host.status.reached, None);
}

#[test]
fn an_order_that_comes_while_not_in_sync_waits_a_little_and_then_lapses() {
    let mut host = Host::new(Want::Mirror);
    host.turns(4);
    host.want(Want::Quiesce);
    host.turns(40);
    assert_eq!(host.reason(), "NotInSync");
    host.copied();
    host.turns(20);
    assert_eq!(host.shutdowns(), 0, "the hour of that order is over");
    host.want(Want::Quiesce);
    host.turns(10);
    assert_eq!(host.status.reached, Some(Want::Quiesce));
}

#[test]
fn off_is_not_proven_while_anything_holds_a_disk_or_could_bring_the_guest_back() {
    let spoils: [(&str, fn(&mut Host), fn(&mut Host)); 4] = [
        (
            "a stranger",
            |host| host.stranger = Some(Holder { process: process(7), command: "backup".into(), qemu: false }),
            |host| host.stranger = None,
        ),
        ("a saved image", |host| host.domain.managed_save = true, |host| host.domain.managed_save = false),
        (
            "a QEMU that lingers",
            |host| assert!(host.alive.insert(host.qemu)),
            |host| assert!(host.alive.remove(&host.qemu)),
        ),
        (
            "holders never seen",
            |host| host.memory.as_mut().unwrap().holders.clear(),
            |host| {
                let qemu = BTreeSet::from([process(host.qemu)]);
                host.memory.as_mut().unwrap().holders =
                    DEVICES.iter().map(|d| ((*d).to_owned(), qemu.clone())).collect();
            },
        ),
    ];
    for (what, spoil, mend) in spoils {
        let mut host = Host::in_sync();
        host.want(Want::Quiesce);
        while host.shutdowns() == 0 {
            host.turn();
        }
        spoil(&mut host);
        host.turns(20);
        assert_eq!((host.reason(), host.status.reached), ("OffNotProven", None), "{what}");
        assert!(
            !host.done.iter().any(|effect| matches!(effect, Effect::EndRelay { .. } | Effect::Compare { .. })),
            "{what}"
        );
        mend(&mut host);
        host.turns(10);
        assert_eq!(host.status.reached, Some(Want::Quiesce), "{what}");
    }
}

#[test]
fn a_disk_that_is_added_in_the_shutdown_is_not_left_behind() {
    for off in [false, true] {
        let mut host = Host::in_sync();
        host.obeys = false;
        host.want(Want::Quiesce);
        while host.shutdowns() == 0 {
            host.turn();
        }
        let added = Disk { device: "vdc".into(), ..machine().disks[0].clone() };
        host.domain.machine.as_mut().unwrap().disks.push(added);
        if off {
            host.domain.shutdown_by = Some(ShutdownBy::Guest);
            host.power_off();
        }
        host.turns(5);
        assert_eq!((host.reason(), host.status.reached), ("SourceChanged", None), "{off}");
        host.want(Want::Release);
        host.turns(60);
        host.seconds += 700;
        host.turns(5);
        assert_eq!((host.domain.power, host.status.reached), (Power::Running, Some(Want::Release)), "{off}");
    }
}

#[test]
fn a_backlog_lost_after_power_off_is_never_equal() {
    let mut host = Host::in_sync();
    host.want(Want::Quiesce);
    while host.shutdowns() == 0 {
        host.turn();
    }
    for export in host.relay.as_mut().unwrap().exports.values_mut() {
        export.backlog_bytes = 1 << 20;
    }
    host.turns(10);
    assert_eq!(host.status.disks[0].state, MirrorState::Draining);
    host.new_relay();
    host.turns(10);
    assert_eq!((host.reason(), host.status.reached), ("NotInSync", None));
    host.want(Want::Release);
    host.turns(10);
    assert_eq!((host.domain.power, host.status.reached), (Power::Running, Some(Want::Release)));
}

#[test]
fn writers_are_gone_only_with_their_last_socket_and_difference_is_an_alarm() {
    let mut host = Host::in_sync();
    host.orphans = vec!["192.0.2.1 in state 04".into()];
    host.comparison = ComparisonProgress::Different { first_difference_offset: 4096 };
    host.want(Want::Quiesce);
    host.turns(10);
    assert_eq!((host.reason(), host.comparisons.len()), ("WritersNotGone", 0));
    host.orphans.clear();
    host.turns(3);
    assert_eq!((host.reason(), host.status.reached), ("NotEqual", None));
    assert!(host.status.problem.unwrap().message.contains("4096"));
}

#[test]
fn a_shutdown_that_the_guest_did_not_do_is_unclear() {
    for by in [Some(ShutdownBy::Host), None] {
        let mut host = Host::in_sync();
        host.obeys = false;
        host.want(Want::Quiesce);
        host.turns(4);
        host.domain.shutdown_by = by;
        host.power_off();
        host.turns(12);
        assert_eq!(host.status.reached, Some(Want::Quiesce));
        assert_eq!(host.status.quiesce.unwrap().how, Some(HowOff::Unclear), "{by:?}");
    }
}

#[test]
fn a_source_started_by_somebody_voids_every_proof() {
    let mut host = Host::quiesced();
    host.power_on();
    host.turns(3);
    assert_eq!((host.reason(), host.status.reached), ("SourceStartedAgain", None));
    let quiesce = host.status.quiesce.clone().unwrap();
    assert_eq!((quiesce.off_by_libvirt_at, quiesce.off_by_host_at, quiesce.equal_at), (None, None, None));
    // The target may run by now: nothing is written to it, whatever else happens to claim and mark.
    host.domain.mark = None;
    host.new_relay();
    host.done.clear();
    host.turns(200);
    assert_eq!(host.reason(), "SourceStartedAgain");
    let writes = |effect: &Effect| {
        matches!(effect, Effect::OpenExport { .. } | Effect::StartMirror { .. } | Effect::Shutdown(_))
    };
    assert!(!host.done.iter().any(writes), "{:?}", host.done);
}

#[test]
fn a_release_during_a_shutdown_starts_what_goes_off_later() {
    let mut host = Host::in_sync();
    host.obeys = false;
    host.want(Want::Quiesce);
    host.turns(6);
    assert_eq!(host.shutdowns(), 1);
    host.want(Want::Release);
    host.turns(10);
    assert_eq!((host.reason(), host.status.reached), ("SourceStopping", None));
    host.power_off();
    host.turns(10);
    assert_eq!((host.domain.power, host.status.reached), (Power::Running, Some(Want::Release)));
}

#[test]
fn release_gives_everything_back_wherever_it_finds_it() {
    for turns in 0..16 {
        let mut host = Host::in_sync();
        host.want(Want::Quiesce);
        host.turns(turns);
        host.want(Want::Release);
        host.turns(12);
        assert_eq!(host.status.reached, Some(Want::Release), "after {turns}: {:?}", host.status.problem);
        assert_eq!((host.domain.power, host.domain.autostart), (Power::Running, true), "after {turns}");
        assert_eq!((&host.domain.mark, &host.memory), (&None, &None), "after {turns}");
        assert!(host.domain.mirrors.is_empty());
        // Somebody shuts it down a moment later: that is theirs.
        host.power_off();
        host.turns(5);
        assert!(matches!(host.domain.power, Power::Off { .. }));
    }
}

#[test]
fn release_of_what_was_never_ours_touches_nothing() {
    for (memory, mark) in [(None, None), (Some(Memory::new(claim_of("b"), 1)), None), (None, Some(MarkState::Migrated))]
    {
        let mut host = Host::new(Want::Release);
        host.memory = memory;
        host.domain.mark = mark.map(|state| Mark { claim: claim_of("b"), epoch: 1, state, autostart_was: None });
        host.turns(3);
        assert_eq!((host.status.reached, host.done.len()), (Some(Want::Release), 0));
    }
}

#[test]
fn after_the_host_lost_its_files_release_still_restores_from_the_mark() {
    let mut host = Host::quiesced();
    host.memory = None;
    host.want(Want::Release);
    host.turns(10);
    assert_eq!((host.status.reached, host.domain.autostart), (Some(Want::Release), true));
    assert_eq!(host.domain.power, Power::Running);
}

#[test]
fn a_retired_machine_is_never_copied_or_started_again() {
    let mut host = Host::quiesced();
    host.want(Want::Retire);
    host.turns(6);
    assert_eq!(host.status.reached, Some(Want::Retire), "{:?}", host.status.problem);
    assert_eq!((host.domain.autostart, host.memory.is_none()), (false, true));
    let done = host.done.len();
    // The migration is deleted and made again, by others.
    host.status = BlockCopyStatus::default();
    for (want, reached, reason) in [
        (Want::Inspect, Some(Want::Inspect), ""),
        (Want::Mirror, None, "AlreadyMigrated"),
        (Want::Quiesce, None, "AlreadyMigrated"),
        (Want::Release, Some(Want::Release), ""),
    ] {
        host.want(want);
        host.order.claim = claim_of("c");
        host.turns(3);
        assert_eq!((host.status.reached, host.reason()), (reached, reason), "{want:?}");
        assert!(host.status.domain.as_ref().unwrap().migrated);
    }
    assert_eq!(host.done.len(), done);
}

#[test]
fn retire_never_shuts_a_running_source_down() {
    let mut host = Host::quiesced();
    host.power_on();
    host.want(Want::Retire);
    host.turns(3);
    assert_eq!((host.reason(), host.status.reached, host.shutdowns()), ("SourceRunning", None, 1));
}

/// The driver dies between recording and doing, at every turn; the next one comes to the same end.
#[test]
fn a_driver_may_die_between_recording_and_doing() {
    for lost in 0..12 {
        let mut host = Host::in_sync();
        host.want(Want::Quiesce);
        for step in 0..60 {
            if step == lost {
                host.seconds += 1;
                let decision = host.decide(|_| {});
                host.record(&decision);
                host.comparisons.clear();
            } else {
                host.turn();
            }
        }
        assert_eq!(host.status.reached, Some(Want::Quiesce), "lost {lost}: {:?}", host.status.problem);
    }
}

#[test]
fn equal_is_believed_only_of_the_driver_that_compared() {
    let mut host = Host::quiesced();
    let first = host.status.quiesce.clone().unwrap().equal_at.unwrap();
    host.turn();
    assert_eq!(host.status.quiesce.as_ref().unwrap().equal_at, Some(first.clone()), "as long as it remembers");
    // A new driver: what it has not compared, it does not report.
    host.comparisons.clear();
    host.comparison = ComparisonProgress::Running { done_bytes: 0, seconds: 0 };
    host.turns(2);
    assert_eq!(host.status.quiesce.as_ref().unwrap().equal_at, None);
    assert_eq!(host.status.reached, None);
    for comparison in host.comparisons.values_mut() {
        comparison.progress = equal(16, 0, 0);
    }
    host.turn();
    assert!(host.status.quiesce.as_ref().unwrap().equal_at.clone().unwrap() > first);
    assert_eq!(host.status.reached, Some(Want::Quiesce));
}

#[test]
fn a_begun_cutover_whose_files_are_lost_is_neither_copied_nor_forgotten() {
    let mut host = Host::quiesced();
    // The hypervisor was rebooted: no claim file, and somebody started the source.
    host.memory = None;
    host.power_on();
    host.done.clear();
    for want in [Want::Inspect, Want::Mirror] {
        host.want(want);
        host.turns(3);
        assert_eq!(host.reason(), "CutoverUnresolved", "{want:?}");
    }
    let touched = host.done.iter().any(|effect| !matches!(effect, Effect::WriteMark(_)));
    assert!(!touched && !host.domain.autostart, "{:?}", host.done);
    host.want(Want::Release);
    host.turns(6);
    assert_eq!(host.status.reached, Some(Want::Release));
    assert!(host.domain.autostart && host.domain.mark.is_none());
}

#[test]
fn a_source_that_was_shut_down_and_has_vanished_is_not_given_back_in_silence() {
    let mut host = Host::quiesced();
    host.want(Want::Release);
    let gone = |seen: &mut Seen| seen.found = Fact::Known(Found::None { seen_names: vec![] });
    let decision = host.decide(gone);
    assert_eq!(decision.status.problem.unwrap().reason, "SourceGone");
    assert_eq!((decision.effects, decision.status.reached), (vec![], None));
}

#[test]
fn a_machine_whose_cutover_is_undone_is_given_back_even_after_the_host_lost_its_files() {
    for files_lost in [false, true] {
        let mut host = Host::quiesced();
        host.want(Want::KeepOff);
        host.turns(3);
        assert_eq!(host.status.reached, Some(Want::KeepOff));
        if files_lost {
            (host.memory, host.status) = (None, BlockCopyStatus::default());
        }
        host.want(Want::Release);
        host.turns(3);
        assert!(matches!(host.domain.power, Power::Off { .. }), "a release is not enough");
        host.want(Want::Undo);
        host.turns(8);
        assert_eq!(host.status.reached, Some(Want::Undo), "{:?}", host.status.problem);
        assert_eq!(host.domain.power, Power::Running);
        assert!(host.domain.autostart && host.domain.mark.is_none() && host.memory.is_none());
    }
}

/// A host in sync whose guest has a command to run before it is shut down.
fn with_command(on_failure: OnCommandFailure) -> Host {
    let mut host = Host::in_sync();
    host.want(Want::Quiesce);
    let command = vec!["/bin/stop-database".into()];
    host.order.shutdown.before = Some(GuestCommand { command, timeout_seconds: 60, on_failure });
    host.turns(4);
    assert_eq!((host.reason(), host.shutdowns()), ("GuestCommandRunning", 0));
    assert_eq!(host.done.iter().filter(|effect| matches!(effect, Effect::RunInGuest(_))).count(), 1);
    host
}

fn ended(exit_code: Option<i32>) -> Option<CommandSeen> {
    Some(CommandSeen::Ended(CommandOutcome { exit_code, output: "words".into() }))
}

#[test]
fn the_guest_is_shut_down_after_its_command_and_not_before() {
    let mut host = with_command(OnCommandFailure::GiveUp);
    host.command = ended(Some(0));
    host.turns(10);
    assert_eq!(host.status.reached, Some(Want::Quiesce), "{:?}", host.status.problem);
    assert_eq!(host.status.quiesce.as_ref().unwrap().command.as_ref().unwrap().exit_code, Some(0));
}

#[test]
fn a_command_that_fails_ends_the_cutover_or_not_as_its_policy_says() {
    for exit_code in [Some(1), None] {
        let mut host = with_command(OnCommandFailure::GiveUp);
        host.command = ended(exit_code);
        host.turns(5);
        assert_eq!((host.reason(), host.shutdowns()), ("GuestCommandFailed", 0));
        assert!(host.domain.autostart && host.domain.power == Power::Running, "all is put back");
        let mut host = with_command(OnCommandFailure::GoOn);
        host.command = ended(exit_code);
        host.turns(10);
        assert_eq!(host.status.reached, Some(Want::Quiesce));
        assert_eq!(host.status.quiesce.as_ref().unwrap().command.as_ref().unwrap().exit_code, exit_code);
    }
}

#[test]
fn a_guest_that_ignores_the_power_button_is_powered_off_only_if_its_policy_says_so() {
    let mut host = Host::in_sync();
    host.obeys = false;
    host.want(Want::Quiesce);
    host.order.shutdown.on_timeout = OnShutdownTimeout::ForceOff;
    host.turns(100);
    assert_eq!(host.domain.power, Power::Running, "it has 120 s");
    host.turns(40);
    assert_eq!(host.status.reached, Some(Want::Quiesce), "{:?}", host.status.problem);
    assert_eq!(host.status.quiesce.as_ref().unwrap().how, Some(HowOff::Forced));
}

#[test]
fn a_guest_that_reboots_instead_of_powering_off_is_noticed() {
    let mut host = Host::in_sync();
    host.domain.reboots = 3;
    host.obeys = false;
    host.want(Want::Quiesce);
    host.turns(5);
    assert_eq!((host.reason(), host.shutdowns()), ("", 1));
    host.domain.reboots = 4;
    host.turns(3);
    assert_eq!(host.reason(), "GuestRebooted");
    assert!(host.domain.autostart && host.domain.power == Power::Running);
}

#[test]
fn a_source_that_is_started_after_the_cutover_is_powered_off_if_the_policy_says_so() {
    for power_off_source in [false, true] {
        let mut host = Host::quiesced();
        host.want(Want::KeepOff);
        host.order.power_off_source = power_off_source;
        host.turns(3);
        host.power_on();
        host.turn();
        assert_eq!(host.reason(), "SourceRunning");
        assert_eq!(matches!(host.domain.power, Power::Off { .. }), power_off_source);
    }
}

#[test]
fn an_order_that_failed_tells_why_also_after_a_turn_that_could_not_look() {
    let mut host = Host::in_sync();
    host.obeys = false;
    host.want(Want::Quiesce);
    host.turns(140);
    assert_eq!(host.reason(), "ShutdownTimedOut");
    let blind = host.decide(|seen| seen.found = Fact::Unknown("no answer".into()));
    host.record(&blind);
    assert_eq!(host.reason(), "HypervisorUnreachable");
    host.turn();
    assert_eq!(host.reason(), "ShutdownTimedOut", "or the cutover would wait for ever");
}

/// A host in sync that may repair, with its guest asked to power off and a storage that takes nothing any more.
fn asked_with_backlog() -> Host {
    let mut host = Host::in_sync();
    host.obeys = false;
    host.want(Want::Quiesce);
    host.order.repair_within_seconds = 600;
    while host.shutdowns() == 0 {
        host.turn();
    }
    for export in host.relay.as_mut().unwrap().exports.values_mut() {
        export.backlog_bytes = 1 << 20;
    }
    host
}

fn goes_off(host: &mut Host) {
    host.domain.shutdown_by = Some(ShutdownBy::Guest);
    host.power_off();
}

fn repaired(host: &Host) -> u64 {
    let quiesce = host.status.quiesce.clone().unwrap();
    assert_eq!((host.status.reached, quiesce.verified_extents), (Some(Want::Quiesce), Some(0)), "{:?}", host.status);
    let repair = quiesce.repair.unwrap();
    assert!(!repair.why.is_empty());
    repair.repaired_extents.unwrap()
}

#[test]
fn a_backlog_lost_in_the_shutdown_is_written_anew_from_the_sources_disks() {
    for before_off in [true, false] {
        let mut host = asked_with_backlog();
        if before_off {
            host.new_relay();
            host.turn();
            assert_eq!((host.reason(), host.memory.as_ref().unwrap().repair.clone()), ("CopyBroken", None));
            goes_off(&mut host);
        } else {
            goes_off(&mut host);
            host.turns(3);
            assert_eq!(host.status.disks[0].state, MirrorState::Draining);
            host.new_relay();
        }
        host.turns(5);
        assert_eq!(repaired(&host), 6, "of both disks");
        assert_eq!(host.status.quiesce.as_ref().unwrap().drained_at, None);
        let compared: Vec<_> = host
            .done
            .iter()
            .filter_map(|effect| match effect {
                Effect::Compare { believe, repair, .. } => Some((believe.clone(), *repair)),
                _ => None,
            })
            .collect();
        assert_eq!(compared, [(None, true), (None, true)], "nothing that was copied is believed");
    }
}

#[test]
fn a_relay_that_is_broken_and_lives_is_ended_with_all_it_holds_before_anything_is_written_anew() {
    let mut host = asked_with_backlog();
    goes_off(&mut host);
    for export in host.relay.as_mut().unwrap().exports.values_mut() {
        export.broken = Some("no answer within 3000 ms".into());
    }
    host.orphans = vec!["192.0.2.1 in state 04".into()];
    host.turns(10);
    assert!(host.done.contains(&Effect::CloseExport { device: "vda".into(), discard: true }), "{:?}", host.done);
    assert_eq!((host.reason(), host.comparisons.len()), ("WritersNotGone", 0));
    host.orphans.clear();
    host.turns(3);
    repaired(&host);
}

#[test]
fn a_relay_that_has_ended_and_is_not_started_again_is_not_waited_for() {
    let mut host = asked_with_backlog();
    goes_off(&mut host);
    host.alive.remove(&200);
    host.relay = None;
    host.turns(4);
    repaired(&host);
}

#[test]
fn a_difference_makes_that_all_is_compared_and_written_anew_once() {
    let mut host = asked_with_backlog();
    for export in host.relay.as_mut().unwrap().exports.values_mut() {
        export.backlog_bytes = 0;
    }
    goes_off(&mut host);
    host.comparison = ComparisonProgress::Different { first_difference_offset: 4096 };
    host.turns(8);
    assert_eq!(repaired(&host), 6);
    assert!(host.status.quiesce.as_ref().unwrap().repair.as_ref().unwrap().why.contains("byte 4096"));
    assert!(host.status.quiesce.as_ref().unwrap().drained_at.is_some());

    let mut host = asked_with_backlog();
    goes_off(&mut host);
    host.new_relay();
    host.repair = ComparisonProgress::Different { first_difference_offset: 4096 };
    host.turns(8);
    assert_eq!((host.reason(), host.status.reached), ("NotEqual", None));
}

#[test]
fn a_new_driver_waits_for_the_sockets_of_one_that_died_while_it_wrote_anew() {
    let mut host = asked_with_backlog();
    goes_off(&mut host);
    host.new_relay();
    host.repair = ComparisonProgress::Running { done_bytes: 1 << 20, seconds: 1 };
    host.turns(5);
    assert_eq!(host.comparisons.len(), 2);
    host.comparisons.clear();
    host.orphans = vec!["192.0.2.1 in state 04".into()];
    host.repair = equal(16, 0, 1);
    host.turns(5);
    assert_eq!((host.reason(), host.comparisons.len()), ("WritersNotGone", 0));
    host.orphans.clear();
    host.turns(3);
    assert_eq!(repaired(&host), 2);
}

#[test]
fn nothing_is_written_anew_once_equality_was_reported_for_the_target_may_run() {
    for files_lost in [false, true] {
        let mut host = asked_with_backlog();
        goes_off(&mut host);
        host.new_relay();
        host.turns(5);
        repaired(&host);
        // A new driver finds a target that has written to its disks.
        host.comparisons.clear();
        host.comparison = ComparisonProgress::Different { first_difference_offset: 4096 };
        if files_lost {
            host.memory = None;
        }
        host.done.clear();
        host.turns(5);
        assert!(!host.done.iter().any(|effect| matches!(effect, Effect::Compare { repair: true, .. })), "{files_lost}");
        assert_eq!(host.status.reached, None);
    }
}

#[test]
fn nothing_is_written_anew_that_would_take_longer_than_it_may_or_after_a_crash() {
    let mut host = asked_with_backlog();
    goes_off(&mut host);
    host.new_relay();
    host.repair = ComparisonProgress::Running { done_bytes: SIZE / 100, seconds: 20 };
    host.turns(5);
    assert_eq!((host.reason(), host.status.reached), ("RepairTooSlow", None), "1980 s left");

    let mut host = asked_with_backlog();
    goes_off(&mut host);
    host.turns(3);
    host.seconds += 600;
    host.new_relay();
    host.turns(2);
    assert_eq!(host.reason(), "NotInSync", "it is off for too long already");

    let mut host = asked_with_backlog();
    host.power_off();
    host.domain.power = Power::Off { orderly: false };
    host.new_relay();
    host.turns(5);
    assert_eq!((host.reason(), host.memory.as_ref().unwrap().repair.clone()), ("NotInSync", None));
}

/// How far a clock is set back or forward between two turns, in seconds.
const JUMPS: [i64; 6] = [-86_400, -7200, -45, 45, 7200, 86_400];
const TURNS: usize = 70;

/// The whole way in so many turns: copied, ordered to shut down, ordered to be given back. The guest goes off so many turns after it was
/// asked, or never. Returns how often it was proven to have moved.
fn whole_way(obeys_after: Option<usize>, jumps: &[(usize, i64)]) -> usize {
    let mut host = Host::new(Want::Mirror);
    host.obeys = false;
    let (mut asked, mut proven) = (None, 0);
    for turn in 0..TURNS {
        host.seconds += jumps.iter().filter(|(at, _)| *at == turn).map(|(_, jump)| jump).sum::<i64>();
        match turn {
            6 => host.want(Want::Quiesce),
            20 => host.want(Want::Release),
            _ => {}
        }
        host.order.shutdown.timeout_seconds = 5;
        // A mirror that was begun is copied a turn later, whenever that is.
        if host.domain.mirrors.len() == DEVICES.len() {
            host.copied();
        }
        if asked.zip(obeys_after).is_some_and(|(asked, after)| turn == asked + after) && host.domain.id == Some(1) {
            host.domain.shutdown_by = Some(ShutdownBy::Guest);
            host.power_off();
        }
        let ready = host.domain.mirrors.values().filter(|mirror| mirror.ready).count() == DEVICES.len();
        let decision = host.turn();
        for effect in &decision.effects {
            match effect {
                Effect::Shutdown(_) => assert!(host.order.want == Want::Quiesce && ready, "{jumps:?}: shut down"),
                Effect::Start => assert_eq!(host.order.want, Want::Release, "{jumps:?}: started"),
                Effect::PowerOff => panic!("{jumps:?}: powered off against its policy"),
                _ => {}
            }
        }
        asked = asked.or((host.shutdowns() > 0).then_some(turn));
        if host.status.reached == Some(Want::Quiesce) {
            proven += 1;
            assert!(matches!(host.domain.power, Power::Off { .. }), "{jumps:?}: proven off while it ran");
            let quiesce = host.status.quiesce.clone().unwrap();
            assert!(quiesce.equal_at.is_some() && quiesce.writers_gone_at.is_some(), "{jumps:?}: {quiesce:?}");
        }
    }
    assert_eq!(host.status.reached, Some(Want::Release), "{obeys_after:?} {jumps:?}: {:?}", host.status.problem);
    assert_eq!((host.domain.power, host.domain.autostart), (Power::Running, true), "{jumps:?}");
    assert_eq!((&host.domain.mark, &host.memory), (&None, &None), "{jumps:?}");
    proven
}

#[test]
fn a_clock_that_jumps_shuts_down_starts_and_proves_nothing_and_nobody_waits_for_it_to_come_back() {
    assert!(whole_way(Some(1), &[]) > 0 && whole_way(None, &[]) == 0);
    for obeys_after in [Some(1), Some(4), None] {
        for first in 0..30 {
            for jump in JUMPS {
                whole_way(obeys_after, &[(first, jump)]);
                for second in (first + 1..30).step_by(4) {
                    whole_way(obeys_after, &[(first, jump), (second, -jump)]);
                }
            }
        }
    }
}

#[test]
fn a_copy_that_broke_before_its_clock_was_set_back_does_not_wait_for_it() {
    let mut host = Host::in_sync();
    host.new_relay();
    host.turn();
    assert_eq!(host.reason(), "CopyBroken");
    host.seconds -= 7200;
    host.turns(80);
    host.copied();
    host.turn();
    assert_eq!(host.status.in_sync, Tri::Yes, "{:?}", host.status.problem);
}
