//! What a test can make the simulator do wrong, slowly or differently. All are off at the start and may be thrown at any time.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The most that the real one gives in a page.
const LARGEST_PAGE: usize = 100;

/// Which headers tell where the next page is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageHeaders {
    /// As the real one does.
    #[default]
    All,
    /// Only `Link`, as with pages by key.
    LinkOnly,
    /// Only `X-Next-Page` and its like.
    NumbersOnly,
}

/// An answer instead of what was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refusal {
    pub status: u16,
    pub retry_after: Option<u32>,
}

/// Faults and variants of one simulator.
#[derive(Default)]
pub struct Switches(Mutex<Settings>);

#[derive(Clone, Debug)]
pub(super) struct Settings {
    refusals: VecDeque<Refusal>,
    lose_answers: u32,
    pub answer_delay: Duration,
    pub largest_page: usize,
    pub page_headers: PageHeaders,
    pub external_url: Option<String>,
    pub redirects_downloads: bool,
    pub pipeline_delay: Duration,
    pub holds_jobs: bool,
    pub leaves_no_artifacts: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            refusals: VecDeque::new(),
            lose_answers: 0,
            answer_delay: Duration::ZERO,
            largest_page: LARGEST_PAGE,
            page_headers: PageHeaders::All,
            external_url: None,
            redirects_downloads: false,
            pipeline_delay: Duration::ZERO,
            holds_jobs: false,
            leaves_no_artifacts: false,
        }
    }
}

impl Switches {
    fn settings(&self) -> MutexGuard<'_, Settings> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The settings as they are now.
    pub(super) fn now(&self) -> Settings {
        self.settings().clone()
    }

    /// The next `count` calls are answered `status`, with `Retry-After` if given, and have no effect.
    pub fn refuse_next_calls(&self, count: u32, status: u16, retry_after: Option<u32>) {
        self.settings().refusals = (0..count).map(|_| Refusal { status, retry_after }).collect();
    }

    /// The next `count` changes (POST, PUT) take effect, but their callers get 502 instead of the answer.
    pub fn lose_next_answers(&self, count: u32) {
        self.settings().lose_answers = count;
    }

    /// How long each call waits before it is looked at.
    pub fn set_answer_delay(&self, delay: Duration) {
        self.settings().answer_delay = delay;
    }

    /// The most that is given in a page, whatever is asked for.
    pub fn set_largest_page(&self, items: usize) {
        self.settings().largest_page = items;
    }

    /// Which headers tell where the next page is.
    pub fn set_page_headers(&self, headers: PageHeaders) {
        self.settings().page_headers = headers;
    }

    /// The address that `Link` names instead of the one that was called, as a GitLab behind a proxy has one in its settings.
    pub fn set_external_url(&self, url: &str) {
        self.settings().external_url = Some(url.to_owned());
    }

    /// While true, artifacts are redirected to another host, which refuses whoever brings a token, as object storages do.
    pub fn redirect_downloads(&self, redirect: bool) {
        self.settings().redirects_downloads = redirect;
    }

    /// How long after a push its pipeline appears.
    pub fn set_pipeline_delay(&self, delay: Duration) {
        self.settings().pipeline_delay = delay;
    }

    /// While true, no runner is free: jobs stay `pending`.
    pub fn hold_jobs(&self, hold: bool) {
        self.settings().holds_jobs = hold;
    }

    /// While true, jobs that end leave no artifacts, as if `artifacts:paths` named none of their files.
    pub fn leave_no_artifacts(&self, none: bool) {
        self.settings().leaves_no_artifacts = none;
    }

    pub(super) fn take_refusal(&self) -> Option<Refusal> {
        self.settings().refusals.pop_front()
    }

    pub(super) fn take_loss(&self) -> bool {
        let mut settings = self.settings();
        let lost = settings.lose_answers > 0;
        settings.lose_answers = settings.lose_answers.saturating_sub(1);
        lost
    }
}
