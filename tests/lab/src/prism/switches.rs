//! What a test can make the simulator do wrong, slowly or differently. All are off at the start and may be thrown at any time.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;

/// Highest v4 minor that is served unless a test says otherwise: the newest that the Terraform provider 2.4.2 speaks.
const DEFAULT_MAX_MINOR: u32 = 3;

/// What v3 answers to whoever reads a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskData {
    OfTheDisk,
    /// Zeroes, as another disk would hold.
    OfAnother,
    /// This status, on both ports.
    Refused(u16),
}

/// Faults and variants of one simulator.
pub struct Switches {
    refuse_calls: AtomicU32,
    refusal: AtomicU16,
    retry_after_s: AtomicU64,
    calls_now: AtomicU32,
    most_calls_at_once: AtomicU32,
    answer_delay_ms: AtomicU64,
    lose_answers: AtomicU32,
    fail_tasks: AtomicU32,
    task_delay_ms: AtomicU64,
    hold_tasks: AtomicBool,
    element_gone: AtomicBool,
    v4_gone: AtomicBool,
    disk_data: Mutex<DiskData>,
    reverse_disks: AtomicBool,
    max_minor: AtomicU32,
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            refuse_calls: AtomicU32::new(0),
            refusal: AtomicU16::new(503),
            retry_after_s: AtomicU64::new(0),
            calls_now: AtomicU32::new(0),
            most_calls_at_once: AtomicU32::new(0),
            answer_delay_ms: AtomicU64::new(0),
            lose_answers: AtomicU32::new(0),
            fail_tasks: AtomicU32::new(0),
            task_delay_ms: AtomicU64::new(0),
            hold_tasks: AtomicBool::new(false),
            element_gone: AtomicBool::new(false),
            v4_gone: AtomicBool::new(false),
            disk_data: Mutex::new(DiskData::OfTheDisk),
            reverse_disks: AtomicBool::new(false),
            max_minor: AtomicU32::new(DEFAULT_MAX_MINOR),
        }
    }
}

impl Switches {
    /// The next `count` calls, on either port, are answered 503 and have no effect.
    pub fn refuse_next_calls(&self, count: u32) {
        self.refuse_next_calls_with(count, 503);
    }

    /// The next `count` calls, on either port, are answered `status` and have no effect.
    pub fn refuse_next_calls_with(&self, count: u32, status: u16) {
        self.refusal.store(status, Ordering::SeqCst);
        self.refuse_calls.store(count, Ordering::SeqCst);
    }

    /// How long a refusal with 429 or 503 asks to be left alone, in `Retry-After`; 0 = it does not say.
    pub fn set_retry_after(&self, seconds: u64) {
        self.retry_after_s.store(seconds, Ordering::SeqCst);
    }

    /// The most calls that were being answered at one moment, on both ports together.
    pub fn most_calls_at_once(&self) -> u32 {
        self.most_calls_at_once.load(Ordering::SeqCst)
    }

    /// How long each call waits before it is looked at. Zero at the start; longer than its callers' patience is a Prism that hangs.
    pub fn set_answer_delay(&self, delay: Duration) {
        self.answer_delay_ms.store(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// The next `count` changes (POST, PUT, DELETE) take effect, but their callers get 503 instead of the answer.
    pub fn lose_next_answers(&self, count: u32) {
        self.lose_answers.store(count, Ordering::SeqCst);
    }

    /// The next `count` tasks end FAILED without having done anything.
    pub fn fail_next_tasks(&self, count: u32) {
        self.fail_tasks.store(count, Ordering::SeqCst);
    }

    /// How long each task runs before its effect. Zero at the start.
    pub fn set_task_delay(&self, delay: Duration) {
        self.task_delay_ms.store(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// While true, tasks stay QUEUED and nothing happens.
    pub fn hold_tasks(&self, hold: bool) {
        self.hold_tasks.store(hold, Ordering::SeqCst);
    }

    /// While true, Prism Element answers 404 to every v2 call, as a release without the v2 API would.
    pub fn remove_v2(&self, gone: bool) {
        self.element_gone.store(gone, Ordering::SeqCst);
    }

    /// While true, Prism Central answers 404 to every v4 call, as one that is older than the v4 API would, and not in v4's words.
    pub fn remove_v4(&self, gone: bool) {
        self.v4_gone.store(gone, Ordering::SeqCst);
    }

    /// What v3 answers to whoever reads a disk.
    pub fn show_disks(&self, how: DiskData) {
        *self.disk_data.lock().unwrap_or_else(PoisonError::into_inner) = how;
    }

    /// While true, v4 lists a VM's disks backwards. The order is not specified, so readers must sort by bus and index; but the
    /// Terraform provider compares the list as it comes, so this is off unless a test asks for it.
    pub fn reverse_v4_disks(&self, reverse: bool) {
        self.reverse_disks.store(reverse, Ordering::SeqCst);
    }

    /// The highest minor N of `v4.N` that is served; above it every call is 404.
    pub fn set_max_minor(&self, minor: u32) {
        self.max_minor.store(minor, Ordering::SeqCst);
    }

    /// Whether anything is still to go wrong.
    pub fn is_wrong(&self) -> bool {
        let counts = [&self.refuse_calls, &self.lose_answers, &self.fail_tasks];
        counts.iter().any(|count| count.load(Ordering::SeqCst) > 0)
            || self.tasks_are_held()
            || !self.answer_delay().is_zero()
    }

    pub(super) fn take_refusal(&self) -> Option<StatusCode> {
        let status = StatusCode::from_u16(self.refusal.load(Ordering::SeqCst)).ok();
        status.filter(|_| take_one(&self.refuse_calls))
    }

    pub(super) fn retry_after(&self) -> Option<u64> {
        Some(self.retry_after_s.load(Ordering::SeqCst)).filter(|seconds| *seconds > 0)
    }

    /// A call begins.
    pub(super) fn call_begins(&self) {
        let now = self.calls_now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_calls_at_once.fetch_max(now, Ordering::SeqCst);
    }

    /// A call ends.
    pub(super) fn call_ends(&self) {
        self.calls_now.fetch_sub(1, Ordering::SeqCst);
    }

    pub(super) fn disk_data(&self) -> DiskData {
        *self.disk_data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn answer_delay(&self) -> Duration {
        Duration::from_millis(self.answer_delay_ms.load(Ordering::SeqCst))
    }

    pub(super) fn take_loss(&self) -> bool {
        take_one(&self.lose_answers)
    }

    pub(super) fn take_task_failure(&self) -> bool {
        take_one(&self.fail_tasks)
    }

    pub(super) fn task_delay(&self) -> Duration {
        Duration::from_millis(self.task_delay_ms.load(Ordering::SeqCst))
    }

    pub(super) fn tasks_are_held(&self) -> bool {
        self.hold_tasks.load(Ordering::SeqCst)
    }

    pub(super) fn v2_is_gone(&self) -> bool {
        self.element_gone.load(Ordering::SeqCst)
    }

    pub(super) fn v4_is_gone(&self) -> bool {
        self.v4_gone.load(Ordering::SeqCst)
    }

    pub(super) fn v4_disks_are_reversed(&self) -> bool {
        self.reverse_disks.load(Ordering::SeqCst)
    }

    pub(super) fn max_minor(&self) -> u32 {
        self.max_minor.load(Ordering::SeqCst)
    }
}

fn take_one(counter: &AtomicU32) -> bool {
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}
