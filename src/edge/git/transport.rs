//! Carries git's bytes over our own HTTP and ssh clients instead of libgit2's.
//!
//! libgit2 checks certificates against authorities that are global to the process, so that two repositories with an authority each would
//! trust each other's; its certificate callback is shown the leaf alone, from which no chain can be checked. Over ssh it asks for whatever
//! type of host key it likes best, steered by the `~/.ssh/known_hosts` of whoever runs it, not for the type that our `known_hosts` lists.
//! Its time limits are global, too. libgit2 offers this interface for such cases: it speaks git, and we bring the bytes there and back.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use git2::transport::{self, Transport};
use git2::{ErrorClass, ErrorCode, Remote, Repository};

use super::address::Address;
use super::http::Http;
use super::ssh::Ssh;
use super::{Access, GitError};

/// The longest a server may take for one answer, or part of one: one that accepts a connection and says nothing would be waited for without end.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// The longest that a fetch or a push may take in all: one that sends a byte now and then would hold up others' migrations.
const CALL_LIMIT: Duration = Duration::from_secs(600);
/// The longest it may take to accept a connection.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// As much of what a server writes for people is kept.
const WORDS_LIMIT: usize = 2000;
/// The scheme under which libgit2 finds this transport. The URL itself is not given to it.
const SCHEME: &str = "drover";

thread_local! {
    /// libgit2 makes a transport on the thread that fetches or pushes, and passes nothing but the URL.
    static SERVER: RefCell<Option<Arc<Server>>> = const { RefCell::new(None) };
}

/// A git server, how to enter it, and what it said.
pub struct Server {
    pub url: String,
    pub address: Address,
    pub access: Access,
    /// Why the call that runs has failed: libgit2 passes on a few words at most.
    failure: Mutex<Option<GitError>>,
    words: Mutex<Vec<u8>>,
    begun: Mutex<Instant>,
}

impl Server {
    pub fn new(url: &str, access: Access) -> Result<Arc<Self>, GitError> {
        let address = Address::parse(url).map_err(|why| GitError::BadUrl { why })?;
        let (failure, words, begun) = (Mutex::default(), Mutex::default(), Mutex::new(Instant::now()));
        Ok(Arc::new(Self { url: url.into(), address, access, failure, words, begun }))
    }

    /// Runs a call on a remote of this server. An error is ours if there is one, else libgit2's.
    pub fn call<T>(
        self: &Arc<Self>,
        repository: &Repository,
        tried: &'static str,
        call: impl FnOnce(&mut Remote<'_>) -> Result<T, git2::Error>,
    ) -> Result<T, CallError> {
        register();
        *lock(&self.failure) = None;
        lock(&self.words).clear();
        *lock(&self.begun) = Instant::now();
        SERVER.set(Some(self.clone()));
        let result = repository.remote_anonymous(&format!("{SCHEME}://")).and_then(|mut remote| call(&mut remote));
        SERVER.set(None);
        result.map_err(|error| match lock(&self.failure).take() {
            Some(ours) => CallError::Git(ours),
            None if error.code() == ErrorCode::NotFastForward => CallError::Moved,
            None => CallError::Git(self.failed(tried, &self.with_words(error.message()))),
        })
    }

    pub fn failed(&self, tried: &'static str, why: &str) -> GitError {
        GitError::Failed { url: self.url.clone(), tried, why: why.into() }
    }

    /// Keeps what the server writes for people.
    pub fn note_words(&self, bytes: &[u8]) {
        let mut words = lock(&self.words);
        let room = WORDS_LIMIT.saturating_sub(words.len());
        words.extend_from_slice(&bytes[..room.min(bytes.len())]);
    }

    /// `what`, and what the server wrote for people.
    pub fn with_words(&self, what: &str) -> String {
        let words = readable(&lock(&self.words));
        if words.is_empty() { what.into() } else { format!("{what}: {words}") }
    }

    /// An error of ours on its way through libgit2.
    pub fn note_failure(&self, error: GitError) -> git2::Error {
        *lock(&self.failure) = Some(error);
        git2::Error::new(ErrorCode::GenericError, ErrorClass::Net, "see the transport's own error")
    }
}

/// What came of a call.
pub enum CallError {
    /// The branch is not what it was when it was fetched.
    Moved,
    Git(GitError),
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lines without control characters (a terminal's colours), empty lines, and all but the last state of a progress line.
fn readable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.lines().map(|line| line.trim_end().rsplit('\r').next().unwrap_or_default());
    let lines = lines.map(|line| line.chars().filter(|c| !c.is_control()).collect::<String>().trim().to_owned());
    lines.filter(|line| !line.is_empty()).collect::<Vec<String>>().join("; ")
}

#[expect(unsafe_code, reason = "libgit2's list of transports is a C global")]
fn register() {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        // SAFETY: the list is read by calls on remotes. All of them are made by `Server::call`, which comes here first.
        let registered = unsafe { transport::register(SCHEME, make) };
        if let Err(error) = registered {
            tracing::error!(%error, "git repositories cannot be reached");
        }
    });
}

fn make(remote: &Remote<'_>) -> Result<Transport, git2::Error> {
    let server = SERVER.with_borrow(Clone::clone);
    let server = server.ok_or_else(|| git2::Error::from_str("no server was named for this thread"))?;
    match server.address.clone() {
        Address::Http(url) => {
            let http = Http::new(server.clone(), &url).map_err(|error| server.note_failure(error))?;
            Transport::smart(remote, true, http)
        }
        Address::Ssh(address) => Transport::smart(remote, false, Ssh::new(server, address)),
    }
}

/// A stream whose errors are told in our words.
pub struct Told<S> {
    pub server: Arc<Server>,
    pub stream: S,
}

impl<S> Told<S> {
    fn tell(&self, error: &io::Error) -> io::Error {
        let why = self.server.with_words(&error.to_string());
        let failed = self.server.failed("exchange data", &why);
        // What the stream has told itself is nearer to the cause.
        lock(&self.server.failure).get_or_insert(failed);
        io::ErrorKind::Other.into()
    }
}

impl<S: Read> Read for Told<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if lock(&self.server.begun).elapsed() > CALL_LIMIT {
            return Err(self.tell(&io::Error::other(format!("it has taken longer than {} s", CALL_LIMIT.as_secs()))));
        }
        self.stream.read(buffer).map_err(|error| self.tell(&error))
    }
}

impl<S: Write> Write for Told<S> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.write(buffer).map_err(|error| self.tell(&error))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush().map_err(|error| self.tell(&error))
    }
}
