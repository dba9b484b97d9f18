//! How the driver talks to the relay: one JSON object per line on `control.sock`, each answered by one line.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use uuid::Uuid;

use super::exports::Exports;
use super::target::TargetSpec;

/// File name of the control socket in the run directory.
pub const CONTROL_SOCKET: &str = "control.sock";
/// File name of the NBD socket in the run directory.
pub const NBD_SOCKET: &str = "nbd.sock";
const LINE_MAX_BYTES: u64 = 1 << 20;
/// Above what opening a target may take in the relay.
const REPLY_LIMIT: Duration = Duration::from_secs(15);

/// What the driver can ask.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Request {
    Status,
    /// Opens an export on an existing target. Idempotent; refused if it is open with other arguments.
    Open {
        export: String,
        /// Exact size of the source: what is exported.
        size_bytes: u64,
        target: TargetSpec,
        /// The target reads as zeroes and nobody has ever written to it: zeroes need not be written.
        fresh: bool,
    },
    /// Ends an export and cuts its clients off. Refused while it holds acknowledged bytes, unless it is broken or `discard` gives them up.
    Close {
        export: String,
        #[serde(default)]
        discard: bool,
    },
}

/// What the relay answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Reply {
    Status(RelayStatus),
    Opened,
    Closed,
    /// It was not done; the message says why and what to do.
    Refused {
        message: String,
    },
}

/// The relay at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RelayStatus {
    /// Identity of this relay process: another one means that every mirror through it broke.
    pub instance: String,
    /// Process id of the one that writes.
    pub pid: u32,
    /// Bound on the memory for data.
    pub memory_bytes: u64,
    /// How much of it is in use.
    pub memory_used_bytes: u64,
    pub exports: Vec<ExportStatus>,
}

/// One export at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExportStatus {
    pub name: String,
    pub size_bytes: u64,
    /// Identity of this opening, under which its [write counters](super::writes) count.
    pub opening: Uuid,
    /// An NBD client is attached under this name (tools under `NAME+durable` do not count).
    pub connected: bool,
    /// Why every request is answered with an error, if so. It stays so until the export is closed and opened again.
    pub broken: Option<String>,
    /// What clients asked to be written, zeroes included.
    pub received_bytes: u64,
    /// Acknowledged and not on the target's stable storage. Of a broken export: what was given up. 0 on an unbroken one = drained.
    pub backlog_bytes: u64,
    /// Written to the target's stable storage. Less than was received where writes overlapped or zeroes needed no writing.
    pub drained_bytes: u64,
    /// Found on the target as it was to become, and so not written. Only a target that is not fresh is looked at.
    pub skipped_bytes: u64,
    /// Written or skipped: mean of the last 3 s.
    pub drain_rate_bytes_s: u64,
    /// Age of the oldest unanswered request of the guest; 0 = none.
    pub oldest_unanswered_millis: u64,
    /// Within the last second a write had to wait for room in memory.
    pub throttled: bool,
}

/// What can go wrong between driver and relay.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error("no relay answers on {socket}")]
    Unreachable {
        socket: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("the relay on {socket} gave no answer within {REPLY_LIMIT:?}")]
    Silent { socket: PathBuf },
    #[error("the relay on {socket} answered what this version does not understand: {line:?}")]
    Unexpected { socket: PathBuf, line: String },
    #[error("the relay refused: {message}")]
    Refused { message: String },
}

/// Asks a relay. Each request has its own connection: nothing is lost when the relay is started anew.
#[derive(Clone, Debug)]
pub struct RelayClient {
    socket: PathBuf,
}

impl RelayClient {
    /// For the relay of this run directory.
    pub fn new(run_directory: &Path) -> Self {
        Self { socket: run_directory.join(CONTROL_SOCKET) }
    }

    pub async fn status(&self) -> Result<RelayStatus, RelayError> {
        match self.ask(&Request::Status).await? {
            Reply::Status(status) => Ok(status),
            other => Err(self.unexpected(&other)),
        }
    }

    pub async fn open(
        &self,
        export: &str,
        size_bytes: u64,
        target: &TargetSpec,
        fresh: bool,
    ) -> Result<(), RelayError> {
        let request = Request::Open { export: export.into(), size_bytes, target: target.clone(), fresh };
        match self.ask(&request).await? {
            Reply::Opened => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }

    /// `discard`: give up what was acknowledged and is not on the target.
    pub async fn close(&self, export: &str, discard: bool) -> Result<(), RelayError> {
        match self.ask(&Request::Close { export: export.into(), discard }).await? {
            Reply::Closed => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }

    async fn ask(&self, request: &Request) -> Result<Reply, RelayError> {
        let answer = tokio::time::timeout(REPLY_LIMIT, self.exchange(request)).await;
        let line = answer
            .map_err(|_| RelayError::Silent { socket: self.socket.clone() })?
            .map_err(|cause| RelayError::Unreachable { socket: self.socket.clone(), cause })?;
        match serde_json::from_str(&line) {
            Ok(Reply::Refused { message }) => Err(RelayError::Refused { message }),
            Ok(reply) => Ok(reply),
            Err(_) => Err(RelayError::Unexpected { socket: self.socket.clone(), line }),
        }
    }

    async fn exchange(&self, request: &Request) -> io::Result<String> {
        let mut stream = UnixStream::connect(&self.socket).await?;
        stream.write_all(&line(request)).await?;
        let mut reply = String::new();
        BufReader::new(stream.take(LINE_MAX_BYTES)).read_line(&mut reply).await?;
        if reply.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the relay hung up"));
        }
        Ok(reply)
    }

    fn unexpected(&self, reply: &Reply) -> RelayError {
        RelayError::Unexpected { socket: self.socket.clone(), line: format!("{reply:?}") }
    }
}

fn line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("these types have no map with non-string keys");
    line.push(b'\n');
    line
}

/// Answers drivers until the listener fails.
pub async fn serve_control(listener: UnixListener, exports: Arc<Exports>) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let exports = Arc::clone(&exports);
        tokio::spawn(async move {
            if let Err(error) = serve_driver(stream, &exports).await {
                tracing::debug!(%error, "control connection ended");
            }
        });
    }
}

async fn serve_driver(stream: UnixStream, exports: &Exports) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut text = String::new();
        if (&mut reader).take(LINE_MAX_BYTES).read_line(&mut text).await? == 0 {
            return Ok(());
        }
        let reply = match serde_json::from_str(&text) {
            Ok(request) => answer(request, exports).await,
            Err(error) => Reply::Refused { message: format!("not a request of this version: {error}") },
        };
        writer.write_all(&line(&reply)).await?;
    }
}

async fn answer(request: Request, exports: &Exports) -> Reply {
    let done = match request {
        Request::Status => {
            return Reply::Status(RelayStatus {
                instance: exports.instance().to_string(),
                pid: std::process::id(),
                memory_bytes: exports.memory().total_bytes(),
                memory_used_bytes: exports.memory().used_bytes(),
                exports: exports.status(),
            });
        }
        Request::Open { export, size_bytes, target, fresh } => {
            exports.open(&export, size_bytes, &target, fresh).await.map(|()| Reply::Opened)
        }
        Request::Close { export, discard } => exports.close(&export, discard).map(|()| Reply::Closed),
    };
    done.unwrap_or_else(|message| Reply::Refused { message })
}
