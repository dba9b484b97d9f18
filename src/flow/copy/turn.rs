//! One turn in the making: the new status, the effects so far, and when to look again.

use std::time::Duration;

use jiff::Timestamp;

use super::effect::{Decision, Effect, MemoryChange};
use super::seen::{DomainSeen, Fact, RelaySeen, Seen};
use super::{Mark, MarkState, Memory, same};
use crate::api::block_copy::{BlockCopySpec, BlockCopyStatus, Want};
use crate::api::common::{MicroTime, Problem, Time, Tri};

/// How often to look while nothing is urgent.
const CALM: Duration = Duration::from_secs(1);
/// How often to look while a guest is being shut down and its outage counts.
const URGENT: Duration = Duration::from_millis(250);

pub(super) struct Turn<'a> {
    pub order: &'a BlockCopySpec,
    pub before: &'a BlockCopyStatus,
    pub seen: &'a Seen,
    pub now: &'a Time,
    pub status: BlockCopyStatus,
    pub effects: Vec<Effect>,
    wake: Duration,
}

impl<'a> Turn<'a> {
    /// Starts from what was recorded, without what has to be seen again: what is reached, in sync, and wrong.
    pub fn begin(order: &'a BlockCopySpec, before: &'a BlockCopyStatus, seen: &'a Seen, now: &'a Time) -> Self {
        let mut status = before.clone();
        status.seen_at = Some(now.clone());
        let mut turn = Self { order, before, seen, now, status, effects: Vec::new(), wake: CALM };
        if !turn.finished() {
            turn.status.epoch = Some(order.epoch);
            turn.status.reached = None;
            turn.status.problem = None;
            turn.status.in_sync = Tri::No;
            turn.status.guest_throttled = false;
        }
        turn
    }

    /// This very order was carried out to its end; nothing is done for it again.
    pub fn finished(&self) -> bool {
        self.before.epoch == Some(self.order.epoch)
            && self.before.reached == Some(self.order.want)
            && matches!(self.order.want, Want::Release | Want::Undo | Want::Retire)
    }

    /// Names what stands in the way; the first one named in a turn stays. One that stood there before keeps its time.
    pub fn problem(&mut self, reason: &str, message: String) {
        if self.status.problem.is_some() {
            return;
        }
        let since = match &self.before.problem {
            Some(before) if before.reason == reason => before.since.clone(),
            _ => self.now.clone(),
        };
        self.status.problem =
            Some(Problem { reason: reason.into(), message: message.chars().take(4096).collect(), since });
    }

    /// Repeats a problem of the turn before in its own words, or names it in these if it did not stand there.
    pub fn same_problem(&mut self, reason: &str, message: &str) {
        let before = self.before.problem.as_ref().filter(|problem| problem.reason == reason);
        self.problem(reason, before.map_or_else(|| message.into(), |before| before.message.clone()));
    }

    /// Look again at once: the next step needs nothing but to see this one done.
    pub fn soon(&mut self) {
        self.wake = URGENT;
    }

    /// Whether the report says that the source was asked to power off.
    pub fn shutdown_requested(&self) -> bool {
        self.status.quiesce.as_ref().is_some_and(|quiesce| quiesce.shutdown_requested_at.is_some())
    }

    /// Seconds since `then`, never negative.
    pub fn seconds_since(&self, then: Timestamp) -> u64 {
        u64::try_from(self.now.0.duration_since(then).as_secs()).unwrap_or(0)
    }

    /// Now, as the parts of an outage are noted.
    pub fn moment(&self) -> MicroTime {
        MicroTime(self.now.0)
    }

    /// Whether `then` is over.
    pub fn is_past(&self, then: Option<&Time>) -> bool {
        then.is_none_or(|then| self.now.0 >= then.0)
    }

    /// `seconds` from now.
    pub fn after(&self, seconds: u64) -> Time {
        let span = jiff::SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
        Time(self.now.0.saturating_add(span).unwrap_or(jiff::Timestamp::MAX))
    }

    /// The relay, or a problem.
    pub fn relay(&mut self) -> Option<&'a RelaySeen> {
        match &self.seen.relay {
            Fact::Known(relay) => Some(relay),
            Fact::Unknown(why) => {
                self.problem(
                    "RelayUnreachable",
                    format!("The relay does not answer: {why}. Waiting for it; the guest is not affected."),
                );
                None
            }
        }
    }

    /// Brings the domain's mark to `state` under this order's epoch. True when it is there already, or can be nowhere: a transient domain
    /// has no configuration to bear it, and is never shut down.
    pub fn mark(&mut self, domain: &DomainSeen, memory: &Memory, state: MarkState) -> bool {
        let wanted = Mark {
            claim: self.order.claim.clone(),
            epoch: self.order.epoch,
            state,
            autostart_was: memory.autostart_was,
        };
        let transient = domain.machine.as_ref().is_ok_and(|machine| !machine.persistent);
        if transient || domain.mark.as_ref() == Some(&wanted) {
            return true;
        }
        self.effects.push(Effect::WriteMark(wanted));
        false
    }

    /// The domain's mark, if it is this migration's.
    pub fn own_mark(&self, domain: &DomainSeen) -> Option<Mark> {
        domain.mark.clone().filter(|mark| same(&mark.claim, &self.order.claim))
    }

    /// Orders every export of the relay closed; `discard` gives up what it has not written yet. True when none was open.
    pub fn close_exports(&mut self, relay: &RelaySeen, discard: bool) -> bool {
        let close = |device: &String| Effect::CloseExport { device: device.clone(), discard };
        self.effects.extend(relay.exports.keys().map(close));
        relay.exports.is_empty()
    }

    pub fn end(mut self, memory: MemoryChange) -> Decision {
        if let Some(trouble) = &self.seen.trouble
            && !self.finished()
        {
            self.problem("EffectFailed", format!("{trouble}. It is tried again."));
        }
        Decision { status: self.status, memory, effects: self.effects, wake: self.wake }
    }
}
