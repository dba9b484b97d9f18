//! One exported disk: takes requests, acknowledges writes from memory, and hands runs to the drain.
//!
//! Everything that changes is behind one short lock; nobody waits while holding it. A write that finds no room waits in line and is
//! acknowledged when the drain has made room. Whoever ends the export (deadline, target's error, close) answers all that wait.
//!
//! Two faces of the same disk: a *guest's* flush and FUA are answered from memory, because durability is proven by the drain, and its
//! requests are held to the deadline; a *durable* client's are answered when everything before them is on the target, and may wait.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, watch};
use uuid::Uuid;

use super::block_set::{BLOCK_BYTES, BlockSet, blocks, is_zero};
use super::memory::Share;
use super::queue::{Content, Piece, Prefer, Queue, Run};
use super::target::{Target, TargetSpec};
use super::writes::WriteCounters;

/// How long an export counts as throttled after a request had to wait for room.
const THROTTLED_FOR: Duration = Duration::from_secs(1);

/// Why a request failed, as NBD names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RequestError {
    Io = 5,
    Invalid = 22,
    NoSpace = 28,
}

/// What a client is told.
pub type Answer = Result<Option<Bytes>, RequestError>;

/// A request's claim to an answer.
#[derive(Debug)]
pub struct Ticket {
    pub cookie: u64,
    pub replies: mpsc::UnboundedSender<(u64, Answer)>,
    /// Which connection it came over.
    pub connection: u64,
    /// Whether the client wants honest flushes; if not, it is a guest's mirror, held to the deadline.
    pub durable: bool,
    pub arrival: Instant,
    /// Bounds the requests of one connection; returns with the answer.
    pub permit: OwnedSemaphorePermit,
}

impl Ticket {
    /// Sends the answer. A client that is gone needs none.
    pub fn answer(self, answer: Answer) {
        let _ = self.replies.send((self.cookie, answer));
    }
}

/// Where an export is in its life. It only moves forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Life {
    Running,
    /// Every request is answered with EIO, for this reason.
    Broken(String),
    Closed,
}

/// See the module's text.
pub struct Export {
    pub name: String,
    pub size_bytes: u64,
    pub spec: TargetSpec,
    pub fresh: bool,
    pub target: Arc<dyn Target>,
    pub share: Arc<Share>,
    state: Mutex<State>,
    counters: WriteCounters,
    work: Notify,
    life: watch::Sender<Life>,
}

struct State {
    queue: Queue,
    written: BlockSet,
    unknown: BlockSet,
    /// Writes that wait for room, in order.
    waiting: VecDeque<WaitingWrite>,
    /// Durable requests, and the write that must be on the target before each is answered.
    flushes: Vec<(u64, Ticket)>,
    /// Guest requests that wait elsewhere (for memory, for the target's answer to a read), by id.
    watched: BTreeMap<u64, Instant>,
    next_watch: u64,
    guests: usize,
    received_bytes: u64,
    drained_bytes: u64,
    skipped_bytes: u64,
    /// A guest's client went without goodbye, or was refused a change: what it meant to write may be missing.
    spoilt: bool,
    /// What was acknowledged and thrown away when the export broke.
    lost_bytes: u64,
    samples: VecDeque<(Instant, u64)>,
    last_wait: Option<Instant>,
}

struct WaitingWrite {
    ticket: Ticket,
    offset: u64,
    data: Bytes,
    fua: bool,
}

/// Numbers of one export at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    pub guests: usize,
    pub received_bytes: u64,
    pub backlog_bytes: u64,
    pub drained_bytes: u64,
    pub skipped_bytes: u64,
    pub drain_rate_bytes_s: u64,
    pub oldest_unanswered: Option<Duration>,
    pub throttled: bool,
}

/// Keeps a request in the account of what is unanswered, until it is dropped.
pub struct Watched<'a> {
    export: &'a Export,
    id: Option<u64>,
}

impl Export {
    pub fn new(
        name: &str,
        size_bytes: u64,
        spec: TargetSpec,
        fresh: bool,
        target: Arc<dyn Target>,
        share: Arc<Share>,
        counters: WriteCounters,
    ) -> Self {
        let mut may_hold_anything = BlockSet::new(size_bytes, !fresh);
        may_hold_anything.insert(0);
        let state = State {
            queue: Queue::default(),
            written: may_hold_anything.clone(),
            unknown: may_hold_anything,
            waiting: VecDeque::new(),
            flushes: Vec::new(),
            watched: BTreeMap::new(),
            next_watch: 0,
            guests: 0,
            received_bytes: 0,
            drained_bytes: 0,
            skipped_bytes: 0,
            spoilt: false,
            lost_bytes: 0,
            samples: VecDeque::new(),
            last_wait: None,
        };
        Self {
            name: name.into(),
            size_bytes,
            spec,
            fresh,
            target,
            share,
            state: Mutex::new(state),
            counters,
            work: Notify::new(),
            life: watch::Sender::new(Life::Running),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn life(&self) -> Life {
        self.life.borrow().clone()
    }

    /// For waiting until the export broke or closed.
    pub fn watch_life(&self) -> watch::Receiver<Life> {
        self.life.subscribe()
    }

    /// Identity of this opening.
    pub fn opening(&self) -> Uuid {
        self.counters.opening()
    }

    /// A client asks for a change. To be called before anything is done for it, and above all before it is answered.
    pub fn announce(&self, offset: u64, len: u64) {
        self.counters.touch(offset, len);
    }

    /// A client was refused a change that it may have made elsewhere.
    pub fn refuse(&self, durable: bool) {
        self.state().spoilt |= !durable;
    }

    /// Takes a write; answered as soon as there is room for it (and, if durable with FUA, when it is on the target).
    pub fn write(&self, ticket: Ticket, offset: u64, data: Bytes, fua: bool) {
        let mut state = self.state();
        if self.life() != Life::Running {
            return ticket.answer(Err(RequestError::Io));
        }
        state.received_bytes += data.len() as u64;
        state.waiting.push_back(WaitingWrite { ticket, offset, data, fua });
        self.admit(&mut state);
        if !state.waiting.is_empty() {
            state.last_wait = Some(Instant::now());
        }
    }

    /// Takes zeroes (or a trim). They hold no memory and never wait for room.
    pub fn zero(&self, ticket: Ticket, offset: u64, len: u64, fua: bool) {
        let mut state = self.state();
        if self.life() != Life::Running {
            return ticket.answer(Err(RequestError::Io));
        }
        state.received_bytes += len;
        state.put_zeroes(offset, len);
        self.work.notify_one();
        state.acknowledge(ticket, fua);
    }

    /// Takes a flush.
    pub fn flush(&self, ticket: Ticket) {
        let mut state = self.state();
        if self.life() != Life::Running {
            return ticket.answer(Err(RequestError::Io));
        }
        state.acknowledge(ticket, true);
        self.work.notify_one();
    }

    /// What is newer here than on the target; `None` when the export ended.
    pub fn overlay(&self, offset: u64, len: u64) -> Option<Vec<Piece>> {
        let state = self.state();
        (self.life() == Life::Running).then(|| state.queue.overlay(offset, len))
    }

    /// Counts a guest's request as unanswered while it waits somewhere else.
    pub fn watch(&self, durable: bool, arrival: Instant) -> Watched<'_> {
        let mut state = self.state();
        let id = (!durable).then(|| {
            state.next_watch += 1;
            let id = state.next_watch;
            state.watched.insert(id, arrival);
            id
        });
        Watched { export: self, id }
    }

    /// Remembers that a request had to wait for room.
    pub fn note_wait(&self) {
        self.state().last_wait = Some(Instant::now());
    }

    /// A client arrived.
    pub fn attach(&self, durable: bool) {
        self.state().guests += usize::from(!durable);
    }

    /// A client is gone; what it still waits for was never acknowledged and is dropped. `goodbye`: it said that nothing follows.
    pub fn detach(&self, connection: u64, durable: bool, goodbye: bool) {
        let mut state = self.state();
        state.guests -= usize::from(!durable);
        state.spoilt |= !durable && !goodbye;
        state.waiting.retain(|write| write.ticket.connection != connection);
        state.flushes.retain(|(_, ticket)| ticket.connection != connection);
        self.admit(&mut state);
    }

    /// The next run for the target; `None` when the export ended.
    pub async fn next_run(&self) -> Option<Run> {
        let mut life = self.life.subscribe();
        loop {
            if let Some(run) = self.take_run() {
                return Some(run);
            }
            tokio::select! {
                () = self.work.notified() => {}
                _ = life.wait_for(|life| *life != Life::Running) => return None,
            }
        }
    }

    fn take_run(&self) -> Option<Run> {
        let mut state = self.state();
        if self.life() != Life::Running {
            return None;
        }
        let prefer = if state.flushes.is_empty() { Prefer::Data } else { Prefer::Oldest };
        let run = state.queue.take(self.target.max_write_bytes(), prefer);
        if run.is_some() {
            self.work.notify_one(); // there may be more for another writer
        }
        run
    }

    /// Whether the target may hold already what `run` writes: part of it was never looked at since the export was opened.
    ///
    /// So a copy that starts again reads each block once and writes only what differs, and a guest that writes to the same place again is
    /// not made to wait for a read that would find a difference.
    pub fn may_be_there(&self, run: &Run) -> bool {
        let state = self.state();
        blocks(run.offset, run.len).any(|(at, _)| state.unknown.contains(at))
    }

    /// A run is on the target's stable storage, `skipped` = it was there before: frees its memory, admits who waited for it, answers flushes.
    pub fn complete(&self, run: &Run, skipped: bool) {
        let mut state = self.state();
        self.counters.touch(run.offset, run.len);
        state.queue.complete(run);
        for (at, len) in blocks(run.offset, run.len) {
            // A part of a block says nothing of the rest.
            if len == BLOCK_BYTES {
                state.unknown.remove(at);
            }
        }
        if skipped {
            state.skipped_bytes += run.len;
        } else {
            state.drained_bytes += run.len;
        }
        if self.life() != Life::Running {
            return;
        }
        self.admit(&mut state);
        let oldest = state.queue.oldest_number().unwrap_or(u64::MAX);
        for (_, ticket) in state.flushes.extract_if(.., |(number, _)| *number < oldest) {
            ticket.answer(Ok(None));
        }
    }

    /// Ends the export for `reason`: everybody who waits gets EIO, now and later. What was acknowledged and not written is given up.
    pub fn break_off(&self, reason: &str) {
        let mut state = self.state();
        if self.life() != Life::Running {
            return;
        }
        tracing::error!(export = self.name, reason, "export broken");
        self.end(&mut state, Life::Broken(reason.into()));
    }

    /// Ends the export for good: clients are cut off. With `seal` its write counters are sealed, if nothing can have been missed; true if so.
    pub fn close(&self, seal: bool) -> bool {
        let mut state = self.state();
        let complete = seal
            && self.life() == Life::Running
            && !state.spoilt
            && state.guests == 0
            && state.waiting.is_empty()
            && state.queue.backlog_bytes() == 0;
        self.end(&mut state, Life::Closed);
        let sealed = complete && self.counters.seal().is_ok();
        if seal && !sealed {
            tracing::warn!(
                export = self.name,
                state.spoilt,
                "the write counters are not sealed: everything will be compared"
            );
        }
        sealed
    }

    fn end(&self, state: &mut State, life: Life) {
        self.life.send_replace(life);
        state.lost_bytes += state.queue.drop_pending();
        for write in state.waiting.drain(..) {
            write.ticket.answer(Err(RequestError::Io));
        }
        for (_, ticket) in state.flushes.drain(..) {
            ticket.answer(Err(RequestError::Io));
        }
    }

    /// Breaks the export if a guest's request is older than `deadline`.
    pub fn check_deadline(&self, now: Instant, deadline: Duration) {
        let age = self.state().oldest_unanswered(now);
        if let Some(age) = age.filter(|age| *age >= deadline) {
            let millis = age.as_millis();
            self.break_off(&format!(
                "a request of the guest was not answered for {millis} ms: {} does not take writes. Check that server, then start the copy again",
                self.spec
            ));
        }
    }

    /// How long the oldest unanswered request of the guest has waited.
    pub fn oldest_unanswered(&self, now: Instant) -> Option<Duration> {
        self.state().oldest_unanswered(now)
    }

    /// Takes a sample for the drain rate; to be called several times a second.
    pub fn sample(&self, now: Instant) {
        self.state().sample(now);
    }

    pub fn counts(&self, now: Instant) -> Counts {
        let state = self.state();
        let recently = state.last_wait.is_some_and(|at| now.duration_since(at) < THROTTLED_FOR);
        Counts {
            guests: state.guests,
            received_bytes: state.received_bytes,
            backlog_bytes: state.queue.backlog_bytes() + state.lost_bytes,
            drained_bytes: state.drained_bytes,
            skipped_bytes: state.skipped_bytes,
            drain_rate_bytes_s: state.drain_rate_bytes_s(now),
            oldest_unanswered: state.oldest_unanswered(now),
            throttled: recently || !state.waiting.is_empty(),
        }
    }

    /// Acknowledges waiting writes, in order, while there is room.
    fn admit(&self, state: &mut State) {
        let limit = self.share.acknowledged_limit_bytes();
        while let Some(write) = state.waiting.front() {
            let held = state.queue.data_bytes();
            if held > 0 && held + write.data.len() as u64 > limit {
                break;
            }
            let write = state.waiting.pop_front().expect("looked at a moment ago");
            state.put_data(write.offset, &write.data);
            state.acknowledge(write.ticket, write.fua);
            self.work.notify_one();
        }
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.export.state().watched.remove(&id);
        }
    }
}

impl State {
    /// Answers a request whose bytes are in the queue: a durable one that asks for stability waits for the drain.
    fn acknowledge(&mut self, ticket: Ticket, stable: bool) {
        if ticket.durable && stable && self.queue.oldest_number().is_some() {
            self.flushes.push((self.queue.last_number(), ticket));
        } else {
            ticket.answer(Ok(None));
        }
    }

    /// Puts data into the queue; blocks of zeroes in it are treated as zeroes.
    fn put_data(&mut self, offset: u64, data: &Bytes) {
        let part = |from: u64, len: u64| data.slice((from - offset) as usize..(from - offset + len) as usize);
        let mut run: Option<(u64, u64)> = None;
        for (at, len) in blocks(offset, data.len() as u64) {
            if is_zero(&part(at, len)) {
                if let Some((from, len)) = run.take() {
                    self.queue.put(from, len, Content::Data(part(from, len)));
                }
                self.put_zeroes(at, len);
            } else {
                self.written.insert(at);
                run = Some(run.map_or((at, len), |(from, before)| (from, before + len)));
            }
        }
        if let Some((from, len)) = run {
            self.queue.put(from, len, Content::Data(part(from, len)));
        }
    }

    /// Puts zeroes into the queue, but for blocks that were never written.
    fn put_zeroes(&mut self, offset: u64, len: u64) {
        let mut run: Option<(u64, u64)> = None;
        for (at, len) in blocks(offset, len) {
            if self.written.contains(at) {
                run = Some(run.map_or((at, len), |(from, before)| (from, before + len)));
            } else if let Some((from, len)) = run.take() {
                self.queue.put(from, len, Content::Zero);
            }
        }
        if let Some((from, len)) = run {
            self.queue.put(from, len, Content::Zero);
        }
    }

    fn oldest_unanswered(&self, now: Instant) -> Option<Duration> {
        let waiting = self.waiting.iter().filter(|write| !write.ticket.durable).map(|write| write.ticket.arrival);
        let oldest = waiting.chain(self.watched.values().copied()).min()?;
        Some(now.duration_since(oldest))
    }

    /// What the target was brought to hold, or held already.
    fn settled_bytes(&self) -> u64 {
        self.drained_bytes + self.skipped_bytes
    }

    fn sample(&mut self, now: Instant) {
        const WINDOW: Duration = Duration::from_secs(3);
        const STEP: Duration = Duration::from_millis(250);
        if self.samples.back().is_none_or(|(at, _)| now.duration_since(*at) >= STEP) {
            self.samples.push_back((now, self.settled_bytes()));
        }
        while self.samples.front().is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
            self.samples.pop_front();
        }
    }

    fn drain_rate_bytes_s(&self, now: Instant) -> u64 {
        let Some((at, before)) = self.samples.front() else { return 0 };
        let millis = u64::try_from(now.duration_since(*at).as_millis()).unwrap_or(u64::MAX);
        ((self.settled_bytes() - before) * 1000).checked_div(millis).unwrap_or(0)
    }
}
