//! libvirt: one connection that is made again when it breaks, every call with a deadline.
//!
//! A call can hang for as long as QEMU's monitor does, and nothing can cancel it. So each runs on a thread of its own; when its time is
//! up the caller goes on with [`Error::TimedOut`], the connection is given up, and the thread ends whenever the call returns.

mod domain;
mod ffi;
mod xml;

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use virt::connect::Connect;
use virt::error::{ErrorDomain, ErrorNumber};

/// Calls that may hang at one time before no further ones are made.
const MAX_HUNG_CALLS: usize = 16;

/// Why libvirt did not tell or do something. None of these says anything about the machine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what}: {source}")]
    Libvirt { what: String, source: virt::error::Error },
    #[error("{what}: no answer within {} s", deadline.as_secs_f32())]
    TimedOut { what: String, deadline: Duration },
    #[error("{what}: not tried, for {MAX_HUNG_CALLS} earlier calls still hang")]
    TooManyHung { what: String },
    #[error("{what}: {source}")]
    Xml { what: String, source: xml::Error },
    #[error("{what}: {message}")]
    Host { what: String, message: String },
}

/// A libvirt daemon.
pub struct Libvirt {
    uri: String,
    connection: Mutex<Option<Connect>>,
    events: ffi::Events,
    /// How often a connection was made.
    connections: AtomicU32,
    hung: AtomicUsize,
}

impl Libvirt {
    /// Names the daemon; the connection is made when it is needed.
    pub fn new(uri: &str) -> Arc<Self> {
        start_event_loop();
        let (connection, events, connections, hung) = Default::default();
        Arc::new(Self { uri: uri.into(), connection, events, connections, hung })
    }

    /// Runs `work` against the daemon within `deadline`. `what` says for people what was tried.
    async fn call<T: Send + 'static>(
        self: &Arc<Self>,
        what: impl Into<String>,
        deadline: Duration,
        work: impl FnOnce(&Connect) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let what = what.into();
        if self.hung.load(Ordering::SeqCst) >= MAX_HUNG_CALLS {
            return Err(Error::TooManyHung { what });
        }
        let (answer, answered) = tokio::sync::oneshot::channel();
        let this = Arc::clone(self);
        self.hung.fetch_add(1, Ordering::SeqCst);
        std::thread::spawn(move || {
            let result = this.connect().and_then(|connect| work(&connect));
            if result.as_ref().is_err_and(is_connection_lost) {
                this.give_up_connection();
            }
            this.hung.fetch_sub(1, Ordering::SeqCst);
            // Nobody listens any more if the deadline has passed.
            let _ = answer.send(result);
        });
        match tokio::time::timeout(deadline, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::Host { what, message: "the thread that made the call has panicked".into() }),
            Err(_) => {
                self.give_up_connection();
                Err(Error::TimedOut { what, deadline })
            }
        }
    }

    fn connect(&self) -> Result<Connect, Error> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connect) = connection.as_ref() {
            return Ok(connect.clone());
        }
        let failed = |source| Error::Libvirt { what: format!("connecting to {}", self.uri), source };
        let connect = Connect::open(Some(&self.uri)).map_err(failed)?;
        ffi::watch(&connect, &self.events).map_err(failed)?;
        self.connections.fetch_add(1, Ordering::SeqCst);
        *connection = Some(connect.clone());
        Ok(connect)
    }

    fn give_up_connection(&self) {
        // While the lock is held a connection is being made: there is none to give up.
        if let Ok(mut connection) = self.connection.try_lock() {
            *connection = None;
        }
    }

    /// What the events told of a domain since this program started.
    pub fn events(&self, uuid: &str) -> ffi::Seen {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = events.get(uuid).copied().unwrap_or_default();
        // Between two connections events are missed.
        let connections = self.connections.load(Ordering::SeqCst);
        ffi::Seen { interruptions: seen.interruptions.saturating_add(connections), ..seen }
    }
}

/// Whether an error comes from the connection and not from what was asked.
fn is_connection_lost(err: &Error) -> bool {
    let Error::Libvirt { source, .. } = err else { return false };
    source.domain().is(ErrorDomain::Rpc)
        || source.code().is_any(vec![ErrorNumber::NoConnect, ErrorNumber::InvalidConn, ErrorNumber::Rpc])
}

/// libvirt delivers events through a loop that must be registered before the first connection, once per process.
fn start_event_loop() {
    static LOOP: OnceLock<()> = OnceLock::new();
    LOOP.get_or_init(|| {
        virt::error::clear_error_callback();
        if let Err(err) = virt::event::event_register_default_impl() {
            // Without events a shutdown is only ever reported as Unclear.
            tracing::warn!(%err, "libvirt's event loop could not be registered");
            return;
        }
        std::thread::spawn(|| {
            while virt::event::event_run_default_impl().is_ok() {}
            tracing::warn!("libvirt's event loop has ended");
        });
    });
}
