//! The host side: the driver's turn in steps around the real `decide`, and what its effects do to the world.

use std::collections::BTreeMap;
use std::rc::Rc;

use drover::api::block_copy::{BlockCopySpec, Claim, Want};
use drover::api::machine::{Board, Cpu, Disk as MachineDisk, DiskBus, DiskFormat, DiskSource, Firmware, Machine, Nic};
use drover::flow::copy::{
    BlockSeen, CanaryProgress, CanarySeen, ComparisonProgress, ComparisonSeen, DomainSeen, Effect, ExportSeen, Fact,
    Found, Holder, JobSeen, MIN_LIBVIRT, Mark, Memory, MemoryChange, MirrorSeen, Power, ProcessId, ProcessesSeen,
    Proviso, RelaySeen, Seen, ShutdownBy, Version, decide as decide_copy,
};

use crate::faults;
use crate::intern::now;
use crate::planted;
use crate::prism::On;
use crate::world::{BlockCopyStored, Export, MarkStored, Mirror, Model, Relay, Source, State, Stop, broken, only_if};

pub const GIB: u64 = 1 << 30;
const UUID: &str = "5d2d1c1a-0000-4000-8000-000000000001";
const DEVICE: &str = "vda";

/// The driver's process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Driver {
    pub up: bool,
    /// It was there when libvirt told that the guest powered itself off.
    pub saw_event: bool,
    /// What it has seen when it compared, or that it is at it.
    pub compared: Option<Compared>,
    /// Version of the target that this is about.
    pub compared_version: Option<u8>,
    /// Under what it found the disks equal, all but what the write counters will tell.
    pub verified: Option<Counted>,
    /// It has written the marker.
    pub marked: bool,
    /// How often something may have passed the mirror by.
    pub interruptions: u8,
    pub held: Option<Held>,
}

/// A comparison of source and target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compared {
    Equal,
    Different,
    /// What differs is being written anew.
    Repairing,
    Repaired,
}

/// Under what write counters may be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Counted {
    relay_run: u8,
    interruptions: u8,
    target: Option<u8>,
}

/// A decision in its hands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Held {
    /// To be reported before anything is done.
    pub report: Option<u32>,
    pub effects: Vec<Errand>,
    /// Too long ago: it is not carried out any more.
    pub old: bool,
}

/// An effect, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Errand {
    Mark(Option<MarkStored>),
    Autostart(bool),
    WriteCanary,
    OpenExport,
    CloseExport { discard: bool },
    StartMirror,
    AbortMirror,
    EndRelay { run: u8 },
    Verify(Counted),
    Compare { believe: Option<Counted>, repair: bool },
    Shutdown,
    PowerOff,
    Start,
    DeleteClaim,
}

/// What the driver cannot see this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Glance {
    Clear,
    LibvirtSilent,
    MonitorSilent,
    RelaySilent,
    ProcessesHidden,
}

impl Glance {
    pub const ALL: [Self; 5] =
        [Self::Clear, Self::LibvirtSilent, Self::MonitorSilent, Self::RelaySilent, Self::ProcessesHidden];
}

/// All that a decision is made from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    copy: BlockCopyStored,
    claim: Option<u32>,
    source: Source,
    relay: Relay,
    late: bool,
    saw_event: bool,
    compared: Option<Compared>,
    marked: bool,
    interruptions: u8,
    glance: Glance,
}

/// What was decided.
#[derive(Debug)]
pub struct Answer {
    pub report: u32,
    /// The claim file after it was written.
    pub claim: Option<u32>,
    pub effects: Vec<Errand>,
    keeps_comparison: bool,
}

pub fn machine() -> Machine {
    Machine {
        name: "web01".into(),
        uuid: UUID.into(),
        title: None,
        cpu: Cpu { sockets: 1, cores_per_socket: 1, threads_per_core: 1 },
        memory_bytes: GIB,
        firmware: Firmware::Bios,
        board: Board::Pc,
        disks: vec![MachineDisk {
            device: DEVICE.into(),
            bus: DiskBus::Virtio,
            source: DiskSource::File,
            path: "/images/vda".into(),
            format: DiskFormat::Raw,
            size_bytes: GIB,
        }],
        left_out: vec![],
        nics: vec![Nic { mac: "52:54:00:00:00:01".into(), vlan: Some(10), network: None }],
        on_poweroff: "destroy".into(),
        persistent: true,
    }
}

fn qemu(run: u8) -> ProcessId {
    ProcessId { pid: 100 + u32::from(run), start_ticks: 1, boot_id: "b".into() }
}

fn relay_process(run: u8) -> ProcessId {
    ProcessId { pid: 500 + u32::from(run), start_ticks: 1, boot_id: "b".into() }
}

fn claim() -> Claim {
    Claim {
        namespace: "team".into(),
        name: "web01".into(),
        uid: crate::controller::UID.into(),
        installation: "installation-1".into(),
    }
}

fn domain(question: &Question) -> DomainSeen {
    let source = &question.source;
    let mirror = (source.mirror != Mirror::None).then(|| {
        let mirror = MirrorSeen { ours: true, ready: source.mirror == Mirror::Ready };
        (DEVICE.to_owned(), mirror)
    });
    let job = match source.mirror {
        Mirror::None => None,
        Mirror::Copying => Some(JobSeen { cur: 10, end: GIB, bandwidth_bytes_s: 1 << 40 }),
        Mirror::Ready => Some(JobSeen { cur: GIB, end: GIB, bandwidth_bytes_s: 1 << 40 }),
    };
    let blocks = BTreeMap::from([(DEVICE.to_owned(), BlockSeen { size_bytes: GIB, job })]);
    DomainSeen {
        uuid: UUID.into(),
        power: if source.on { Power::Running } else { Power::Off { orderly: source.orderly } },
        state_word: String::new(),
        id: source.on.then_some(1),
        managed_save: false,
        autostart: source.autostart,
        machine: Ok(machine()),
        mark: source.mark.map(|mark| Mark {
            claim: claim(),
            epoch: mark.epoch,
            state: mark.state,
            autostart_was: mark.autostart_was,
        }),
        mirrors: mirror.into_iter().collect(),
        blocks: match question.glance {
            Glance::MonitorSilent => Fact::Unknown("no answer".into()),
            _ => Fact::Known(blocks),
        },
        libvirt_version: MIN_LIBVIRT,
        qemu_version: Version(8, 0, 0),
        shutdown_by: question.saw_event.then_some(ShutdownBy::Guest),
        reboots: 0,
        interruptions: question.interruptions.into(),
    }
}

fn seen(question: &Question, order: &BlockCopySpec, memory: Option<Memory>) -> Seen {
    let unknown = || "no answer".to_owned();
    let (source, relay) = (&question.source, &question.relay);
    let export = relay.export.map(|export| ExportSeen {
        size_bytes: GIB,
        opening: format!("r{}", relay.run),
        connected: source.mirror != Mirror::None,
        broken: export.broken.then(|| "broken".into()),
        backlog_bytes: if relay.backlog { 4096 } else { 0 },
        drain_rate_bytes_s: 0,
        throttled: false,
    });
    let running = source.qemu.then(|| Holder { process: qemu(source.run), command: "qemu".into(), qemu: true });
    let alive = source.qemu.then(|| qemu(source.run)).into_iter().chain(relay.up.then(|| relay_process(relay.run)));
    let processes = ProcessesSeen {
        holders: BTreeMap::from([(DEVICE.to_owned(), running.into_iter().collect())]),
        alive: alive.collect(),
        relay: relay.up.then(|| relay_process(relay.run)),
        orphan_sockets: if question.late { vec!["a socket".into()] } else { vec![] },
    };
    let relay_seen = RelaySeen {
        instance: format!("r{}", relay.run),
        pid: relay_process(relay.run).pid,
        memory_bytes: 128 << 20,
        exports: export.map(|export| (DEVICE.to_owned(), export)).into_iter().collect(),
    };
    let comparison = question.compared.map(|compared| ComparisonSeen {
        repairs: matches!(compared, Compared::Repairing | Compared::Repaired),
        progress: match compared {
            Compared::Different => ComparisonProgress::Different { first_difference_offset: 0 },
            Compared::Repairing => ComparisonProgress::Running { done_bytes: 0, seconds: 0 },
            Compared::Equal | Compared::Repaired => ComparisonProgress::Equal {
                blake3: String::new(),
                compared_extents: 1,
                verified_extents: 1,
                repaired_extents: 1,
            },
        },
    });
    Seen {
        found: match question.glance {
            Glance::LibvirtSilent => Fact::Unknown(unknown()),
            _ => Fact::Known(Found::One(Box::new(domain(question)))),
        },
        memory: Fact::Known(memory),
        relay: match question.glance {
            Glance::RelaySilent => Fact::Unknown(unknown()),
            _ if relay.up => Fact::Known(relay_seen),
            _ => Fact::Unknown(unknown()),
        },
        processes: match question.glance {
            Glance::ProcessesHidden => Fact::Unknown(unknown()),
            _ => Fact::Known(processes),
        },
        command: None,
        verifications: BTreeMap::new(),
        canaries: order
            .canary
            .iter()
            .filter(|_| question.marked)
            .map(|nonce| (DEVICE.to_owned(), CanarySeen { nonce: nonce.clone(), progress: CanaryProgress::Written }))
            .collect(),
        comparisons: comparison.map(|comparison| (DEVICE.to_owned(), comparison)).into_iter().collect(),
        trouble: None,
    }
}

/// The number in a version of the target.
fn version(etag: Option<&str>) -> Option<u8> {
    etag.map(|etag| etag.trim_start_matches('v').parse().expect("etags of the model are numbers"))
}

fn counted(proviso: &Proviso) -> Counted {
    let run = proviso.relay_instance.trim_start_matches('r').parse().expect("instances of the model are numbers");
    Counted {
        relay_run: run,
        interruptions: u8::try_from(proviso.interruptions).expect("few interruptions"),
        target: version(proviso.target_version.as_deref()),
    }
}

fn errand(effect: Effect) -> Option<Errand> {
    Some(match effect {
        Effect::WriteMark(Mark { claim: _, epoch, state, autostart_was }) => {
            Errand::Mark(Some(MarkStored { epoch, state, autostart_was }))
        }
        Effect::RemoveMark => Errand::Mark(None),
        Effect::SetAutostart(autostart) => Errand::Autostart(autostart),
        Effect::WriteCanary { .. } => Errand::WriteCanary,
        Effect::OpenExport { .. } => Errand::OpenExport,
        Effect::CloseExport { discard, .. } => Errand::CloseExport { discard },
        Effect::StartMirror { .. } => Errand::StartMirror,
        Effect::AbortMirror { .. } => Errand::AbortMirror,
        Effect::EndRelay { process, .. } => {
            Errand::EndRelay { run: u8::try_from(process.pid - 500).expect("few runs") }
        }
        Effect::Verify { proviso, .. } => Errand::Verify(counted(&proviso)),
        Effect::Compare { believe, repair, .. } => Errand::Compare { believe: believe.as_ref().map(counted), repair },
        Effect::Shutdown(_) => Errand::Shutdown,
        Effect::PowerOff => Errand::PowerOff,
        Effect::Start => Errand::Start,
        Effect::DeleteClaim => Errand::DeleteClaim,
        // The policy of the model has no command, and speed is no matter of what is right.
        Effect::RunInGuest(_) | Effect::SetSpeed { .. } => return None,
    })
}

impl Model {
    fn answer(&mut self, question: Question) -> Rc<Answer> {
        if let Some(answer) = self.answers.get(&question) {
            return Rc::clone(answer);
        }
        let order = self.orders.get(question.copy.spec);
        let before = question.copy.status.map(|status| (*self.reports.get(status)).clone()).unwrap_or_default();
        let memory = question.claim.map(|number| (*self.memories.get(number)).clone());
        let mut asked = question.clone();
        if order.want != Want::Quiesce {
            asked.compared = None;
        }
        let mut seen = seen(&asked, &order, memory);
        let mut status = before;
        planted::spoil_host(self.bug, &order, &mut status, &mut seen);
        let decision = decide_copy(&order, &status, &seen, &now());
        let proven = decision.status.quiesce.as_ref().is_some_and(|quiesce| quiesce.writers_gone_at.is_some());
        let claim = match decision.memory {
            MemoryChange::Keep => question.claim,
            MemoryChange::Create(memory) | MemoryChange::Write(memory) => Some(self.memories.number(*memory)),
        };
        let answer = Rc::new(Answer {
            report: self.reports.number(decision.status),
            claim,
            effects: decision.effects.into_iter().filter_map(errand).collect(),
            keeps_comparison: proven && order.want == Want::Quiesce,
        });
        self.answers.insert(question, Rc::clone(&answer));
        answer
    }
}

/// The driver reads its order, looks, decides, and writes the claim file.
pub fn decide(model: &mut Model, state: &mut State, glance: Glance) -> Result<(), Stop> {
    only_if(state.driver.up && state.driver.held.is_none())?;
    let Some(copy) = state.copy else { return Err(Stop::NotPossible) };
    if glance != Glance::Clear {
        faults::spend(state)?;
    }
    let order = model.orders.get(copy.spec);
    // Afterwards nobody asks for it any more.
    state.driver.marked &= order.want == Want::Canary;
    let wanted = version(order.target_version.as_deref());
    if state.driver.compared_version != wanted {
        forget_comparison(state);
        state.driver.compared_version = wanted;
    }
    let answer = model.answer(Question {
        copy,
        claim: state.claim,
        source: state.source.clone(),
        relay: state.relay.clone(),
        late: state.disk.late,
        saw_event: state.driver.saw_event,
        compared: state.driver.compared,
        marked: state.driver.marked,
        interruptions: state.driver.interruptions,
        glance,
    });
    if !answer.keeps_comparison {
        forget_comparison(state);
    }
    state.claim = answer.claim;
    let changed = copy.status != Some(answer.report);
    if changed || !answer.effects.is_empty() {
        state.driver.held =
            Some(Held { report: changed.then_some(answer.report), effects: answer.effects.clone(), old: false });
    }
    Ok(())
}

/// It reports; if the order is another one by now, this report was discarded when that came.
pub fn report(model: &Model, state: &mut State) -> Result<(), Stop> {
    let Some(held) = &mut state.driver.held else { return Err(Stop::NotPossible) };
    let Some(report) = held.report.take() else { return Err(Stop::NotPossible) };
    if held.effects.is_empty() {
        state.driver.held = None;
    }
    let Some(copy) = &mut state.copy else { return Err(Stop::NotPossible) };
    copy.status = Some(report);
    let report = model.reports.get(report);
    if report.problem.is_some() || report.reached.is_none() {
        // Whatever somebody did by hand, it can be known from here on.
        state.ghost.hand_unreported = false;
    }
    Ok(())
}

/// It carries out its next effect. What needs all before it is left out when one has failed.
pub fn act(state: &mut State) -> Result<(), Stop> {
    let Some(held) = &mut state.driver.held else { return Err(Stop::NotPossible) };
    only_if(held.report.is_none() && !held.effects.is_empty())?;
    if held.old {
        state.driver.held = None;
        return Ok(());
    }
    let errand = held.effects.remove(0);
    let ended = held.effects.is_empty();
    let done = carry_out(state, errand)?;
    if ended {
        state.driver.held = None;
    } else if let (false, Some(held)) = (done, &mut state.driver.held) {
        held.effects.retain(|errand| {
            !matches!(errand, Errand::Shutdown | Errand::Start | Errand::Mark(None) | Errand::DeleteClaim)
        });
        if held.effects.is_empty() {
            state.driver.held = None;
        }
    }
    Ok(())
}

fn carry_out(state: &mut State, errand: Errand) -> Result<bool, Stop> {
    match errand {
        Errand::Mark(mark) => state.source.mark = mark,
        Errand::Autostart(autostart) => state.source.autostart = autostart,
        Errand::WriteCanary => {
            if state.source.mirror != Mirror::None || state.prism.vm.on == On::ByUs {
                return Err(broken("I2", "a marker was written to a disk that is copied to, or runs"));
            }
            state.driver.marked = true;
        }
        Errand::OpenExport => {
            if !state.relay.up {
                return Ok(false);
            }
            state.relay.export = Some(Export { broken: false });
        }
        Errand::CloseExport { discard } => {
            if !state.relay.up || (!discard && state.relay.backlog) {
                return Ok(false);
            }
            if state.relay.backlog {
                state.disk.equal = false;
            } else if state.source.mirror == Mirror::None && state.relay.export.is_some_and(|export| !export.broken) {
                // QEMU said goodbye and all is written: its counters are complete.
                state.relay.sealed = Some(state.relay.run);
            }
            (state.relay.export, state.relay.backlog) = (None, false);
            end_mirror(state);
        }
        Errand::StartMirror => {
            if state.relay.export.is_none() || !state.source.on || state.source.mirror != Mirror::None {
                return Ok(false);
            }
            if state.prism.vm.on == On::ByUs {
                return Err(broken("I1", "a mirror onto the disks of the running target was started"));
            }
            if state.prism.foreign {
                return Err(broken("I2", "a file that is not the target's disk is mirrored to"));
            }
            state.source.mirror = Mirror::Copying;
        }
        Errand::AbortMirror => end_mirror(state),
        Errand::EndRelay { run } => {
            if state.relay.up && state.relay.run == run {
                end_relay(state);
            }
        }
        Errand::Verify(counted) => {
            if state.disk.equal {
                state.driver.verified = Some(counted);
            }
        }
        Errand::Compare { repair: true, .. } => {
            if state.prism.vm.on == On::ByUs {
                return Err(broken("I1", "the disks of the running target were written anew"));
            }
            state.driver.compared = Some(Compared::Repairing);
        }
        Errand::Compare { believe, repair: false } => {
            let equal = state.disk.equal && !state.relay.backlog;
            let counted = believe.filter(|counted| {
                state.driver.verified == Some(*counted) && state.relay.sealed == Some(counted.relay_run)
            });
            // What the counters do not tell is not read again.
            let equal = equal || (counted.is_some() && state.disk.hidden);
            state.driver.compared = Some(if equal { Compared::Equal } else { Compared::Different });
        }
        Errand::Shutdown | Errand::PowerOff => return shut_down(state, errand),
        Errand::Start => return start(state),
        Errand::DeleteClaim => state.claim = None,
    }
    Ok(true)
}

/// Everything that differed was written anew, and was read once more.
pub fn repaired(state: &mut State) -> Result<(), Stop> {
    only_if(state.driver.compared == Some(Compared::Repairing))?;
    if state.prism.vm.on == On::ByUs {
        return Err(broken("I1", "the disks of the running target were written anew"));
    }
    state.driver.compared = Some(Compared::Repaired);
    (state.disk.equal, state.disk.hidden) = (true, false);
    Ok(())
}

/// What it was writing at that moment may be under way.
pub fn forget_comparison(state: &mut State) {
    state.disk.late |= state.driver.compared.take() == Some(Compared::Repairing);
}

fn shut_down(state: &mut State, errand: Errand) -> Result<bool, Stop> {
    if !state.source.on {
        return Ok(true);
    }
    if !state.ghost.approved {
        return Err(broken("I3", "the source was shut down without a cutover that was approved"));
    }
    match errand {
        Errand::PowerOff => power_off(state, false),
        _ => state.source.asked = true,
    }
    Ok(true)
}

fn start(state: &mut State) -> Result<bool, Stop> {
    if state.source.on {
        return Ok(true);
    }
    if state.source.qemu {
        // The disk is locked by the process that libvirt lost.
        return Ok(false);
    }
    let excused = state.prism.vm.on == On::ByHand && state.ghost.hand_after_release;
    if state.prism.vm.on != On::No && !excused {
        return Err(broken("I1", "the source was started while the target runs"));
    }
    if state.prism.power_on_is_queued() {
        return Err(broken("I1", "the source was started while a power-on of the target is queued"));
    }
    power_on(state);
    Ok(true)
}

/// The source's QEMU ends; `orderly`: its guest powered off.
pub fn power_off(state: &mut State, orderly: bool) {
    state.source.on = false;
    state.source.orderly = orderly;
    state.source.asked = false;
    state.driver.saw_event = orderly && state.driver.up;
    end_qemu(state);
}

/// The mirror ends under a machine that runs: libvirt tells whoever listens.
pub fn end_mirror(state: &mut State) {
    if state.source.on && state.source.mirror != Mirror::None && state.driver.up {
        state.driver.interruptions += 1;
    }
    state.source.mirror = Mirror::None;
}

pub fn end_qemu(state: &mut State) {
    state.source.qemu = false;
    state.source.mirror = Mirror::None;
}

pub fn power_on(state: &mut State) {
    let source = &mut state.source;
    (source.on, source.qemu, source.orderly, source.asked) = (true, true, false, false);
    source.run += 1;
    state.driver.saw_event = false;
    state.driver.interruptions += u8::from(state.driver.up);
    state.ghost.taken_over = false;
}

/// The relay's process ends, and with it what it held.
pub fn end_relay(state: &mut State) {
    if state.relay.backlog {
        state.disk.equal = false;
    }
    state.relay.up = false;
    (state.relay.export, state.relay.backlog) = (None, false);
    end_mirror(state);
}

/// Everything was copied once.
pub fn mirror_ready(state: &mut State) -> Result<(), Stop> {
    only_if(state.source.mirror == Mirror::Copying)?;
    state.source.mirror = Mirror::Ready;
    if !state.disk.spoilt {
        (state.disk.equal, state.disk.hidden) = (true, false);
    }
    Ok(())
}
