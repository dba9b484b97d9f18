//! NBD: requests and simple replies, once a client has chosen its export.
//!
//! Requests are read as soon as they arrive, so that their age is known, and answered in any order.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};

use super::export::{Answer, Life, RequestError, Ticket};
use super::exports::{Exports, Opened};
use super::handshake::{Chosen, negotiate};
use super::memory::{Buffer, MAX_REQUEST_BYTES};

const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const FLAG_FUA: u16 = 1;
const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
const CMD_FLUSH: u16 = 3;
const CMD_TRIM: u16 = 4;
const CMD_WRITE_ZEROES: u16 = 6;

const NEGOTIATION_LIMIT: Duration = Duration::from_secs(10);
const CONNECTIONS_MAX: usize = 64;
const REQUESTS_MAX: usize = 1024;

#[derive(Debug)]
struct Request {
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    len: u64,
}

/// Serves NBD clients until the listener fails.
pub async fn serve_nbd(listener: UnixListener, exports: Arc<Exports>) -> io::Result<()> {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = Arc::clone(&connections).acquire_owned().await.expect("the semaphore is never closed");
        let (stream, _) = listener.accept().await?;
        let exports = Arc::clone(&exports);
        tokio::spawn(async move {
            if let Err(error) = serve_client(stream, &exports).await {
                tracing::warn!(%error, "NBD connection ended");
            }
            drop(permit);
        });
    }
}

async fn serve_client(mut stream: UnixStream, exports: &Exports) -> io::Result<()> {
    let chosen = tokio::time::timeout(NEGOTIATION_LIMIT, negotiate(&mut stream, exports)).await;
    let Some(Chosen { opened, durable }) = chosen.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? else {
        return Ok(());
    };
    let (reader, writer) = stream.into_split();
    let (replies, outbox) = mpsc::unbounded_channel();
    let client = Client::new(Arc::clone(&opened), durable, replies);
    let mut sender = tokio::spawn(send_replies(outbox, BufWriter::with_capacity(64 << 10, writer)));
    opened.export.attach(durable);
    let result = client.read_requests(BufReader::with_capacity(64 << 10, reader)).await;
    let connection = client.connection;
    drop(client); // the outbox closes when the last ticket has its answer
    if matches!(result, Ok(End::Disconnect)) {
        let mut life = opened.export.watch_life();
        tokio::select! {
            _ = &mut sender => {}
            _ = life.wait_for(|life| *life == Life::Closed) => {}
        }
    }
    sender.abort();
    opened.export.detach(connection, durable, matches!(result, Ok(End::Disconnect)));
    result.map(|_| ())
}

/// Sends answers; several that are ready go out together.
async fn send_replies(
    mut outbox: mpsc::UnboundedReceiver<(u64, Answer)>,
    mut writer: BufWriter<OwnedWriteHalf>,
) -> io::Result<()> {
    while let Some((cookie, answer)) = outbox.recv().await {
        writer.write_u32(REPLY_MAGIC).await?;
        writer.write_u32(answer.as_ref().err().map_or(0, |error| *error as u32)).await?;
        writer.write_u64(cookie).await?;
        if let Ok(Some(data)) = answer {
            writer.write_all(&data).await?;
        }
        if outbox.is_empty() {
            writer.flush().await?;
        }
    }
    writer.shutdown().await
}

/// How a client left.
enum End {
    /// It said goodbye and gets the answers that are still due.
    Disconnect,
    /// It is gone.
    Gone,
}

struct Client {
    opened: Arc<Opened>,
    durable: bool,
    connection: u64,
    replies: mpsc::UnboundedSender<(u64, Answer)>,
    requests: Arc<Semaphore>,
}

impl Client {
    fn new(opened: Arc<Opened>, durable: bool, replies: mpsc::UnboundedSender<(u64, Answer)>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let connection = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { opened, durable, connection, replies, requests: Arc::new(Semaphore::new(REQUESTS_MAX)) }
    }

    async fn read_requests(&self, mut reader: BufReader<OwnedReadHalf>) -> io::Result<End> {
        let mut life = self.opened.export.watch_life();
        loop {
            let request = tokio::select! {
                request = read_request(&mut reader) => request?,
                _ = life.wait_for(|life| *life == Life::Closed) => return Ok(End::Gone),
            };
            let Some(request) = request else { return Ok(End::Gone) };
            if request.command == CMD_DISC {
                return Ok(End::Disconnect);
            }
            self.take(request, &mut reader, &mut life).await?;
        }
    }

    async fn take<R: AsyncRead + Unpin>(
        &self,
        request: Request,
        reader: &mut R,
        life: &mut watch::Receiver<Life>,
    ) -> io::Result<()> {
        let permit = Arc::clone(&self.requests).acquire_owned().await.expect("the semaphore is never closed");
        let mut ticket = Ticket {
            cookie: request.cookie,
            replies: self.replies.clone(),
            connection: self.connection,
            durable: self.durable,
            arrival: Instant::now(),
            permit,
        };
        let export = &self.opened.export;
        let fua = request.flags & FLAG_FUA != 0;
        let changes = matches!(request.command, CMD_WRITE | CMD_TRIM | CMD_WRITE_ZEROES);
        if let Err(error) = check(&request, export.size_bytes) {
            if changes {
                export.refuse(self.durable);
            }
            if request.command == CMD_WRITE {
                skip(reader, request.len).await?;
            }
            ticket.answer(Err(error));
            return Ok(());
        }
        if changes {
            export.announce(request.offset, request.len);
        }
        match request.command {
            CMD_WRITE => match self.buffer(&ticket, request.len, life).await {
                Some(mut buffer) => {
                    // How long it waited for memory is part of its age; how slowly the client sends its data is not.
                    let waited = ticket.arrival.elapsed();
                    reader.read_exact(&mut buffer.data).await?;
                    let now = Instant::now();
                    ticket.arrival = now.checked_sub(waited).unwrap_or(now);
                    export.write(ticket, request.offset, buffer.freeze(), fua);
                }
                None => {
                    skip(reader, request.len).await?;
                    ticket.answer(Err(RequestError::Io));
                }
            },
            CMD_READ => match self.buffer(&ticket, request.len, life).await {
                Some(buffer) => self.read(ticket, request.offset, buffer),
                None => ticket.answer(Err(RequestError::Io)),
            },
            CMD_TRIM | CMD_WRITE_ZEROES => export.zero(ticket, request.offset, request.len, fua),
            _ => export.flush(ticket),
        }
        Ok(())
    }

    /// Memory for a request's data; `None` when the export ended first.
    async fn buffer(&self, ticket: &Ticket, len: u64, life: &mut watch::Receiver<Life>) -> Option<Buffer> {
        let export = &self.opened.export;
        if let Some(buffer) = export.share.try_buffer(len) {
            return Some(buffer);
        }
        export.note_wait();
        let _watched = export.watch(self.durable, ticket.arrival);
        tokio::select! {
            buffer = export.share.buffer(len) => Some(buffer),
            _ = life.wait_for(|life| *life != Life::Running) => None,
        }
    }

    fn read(&self, ticket: Ticket, offset: u64, mut buffer: Buffer) {
        let opened = Arc::clone(&self.opened);
        tokio::spawn(async move {
            let export = &opened.export;
            let watched = export.watch(ticket.durable, ticket.arrival);
            let mut life = export.watch_life();
            let result = tokio::select! {
                result = opened.readers.read(export, offset, &mut buffer) => result,
                _ = life.wait_for(|life| *life != Life::Running) => Err(RequestError::Io),
                () = ticket.replies.closed() => return, // nobody waits any more
            };
            ticket.answer(result.map(|()| Some(buffer.freeze())));
            drop(watched);
        });
    }
}

/// The next request; `None` when the client hung up between requests.
async fn read_request<R: AsyncRead + Unpin>(reader: &mut R) -> io::Result<Option<Request>> {
    let mut header = [0; 28];
    match reader.read_exact(&mut header).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    };
    let (magic, flags) = (be_u32(&header[0..4]), be_u16(&header[4..6]));
    if magic != REQUEST_MAGIC {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the client sent no request magic"));
    }
    Ok(Some(Request {
        flags,
        command: be_u16(&header[6..8]),
        cookie: be_u64(&header[8..16]),
        offset: be_u64(&header[16..24]),
        len: u64::from(be_u32(&header[24..28])),
    }))
}

/// Refuses what cannot be carried out, above all anything past the end of the disk.
fn check(request: &Request, size_bytes: u64) -> Result<(), RequestError> {
    let past_end = request.offset.checked_add(request.len).is_none_or(|end| end > size_bytes);
    match request.command {
        CMD_FLUSH => Ok(()),
        CMD_READ if past_end || request.len > MAX_REQUEST_BYTES => Err(RequestError::Invalid),
        CMD_WRITE if request.len > MAX_REQUEST_BYTES => Err(RequestError::Invalid),
        CMD_WRITE | CMD_WRITE_ZEROES if past_end => Err(RequestError::NoSpace),
        CMD_TRIM if past_end => Err(RequestError::Invalid),
        CMD_READ | CMD_WRITE | CMD_WRITE_ZEROES | CMD_TRIM => Ok(()),
        _ => Err(RequestError::Invalid),
    }
}

/// Reads a refused write's data away: the next request begins after it.
async fn skip<R: AsyncRead + Unpin>(reader: &mut R, len: u64) -> io::Result<()> {
    let copied = tokio::io::copy(&mut reader.take(len), &mut tokio::io::sink()).await?;
    if copied == len { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn be_u16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes(bytes.try_into().expect("two bytes"))
}

fn be_u32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().expect("four bytes"))
}

fn be_u64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(command: u16, offset: u64, len: u64) -> Request {
        Request { flags: 0, command, cookie: 0, offset, len }
    }

    #[test]
    fn nothing_past_the_end_gets_through() {
        let size = 10 << 20;
        assert_eq!(check(&request(CMD_WRITE, size - 512, 512), size), Ok(()));
        assert_eq!(check(&request(CMD_WRITE, size - 512, 513), size), Err(RequestError::NoSpace));
        assert_eq!(check(&request(CMD_WRITE_ZEROES, size, 1), size), Err(RequestError::NoSpace));
        assert_eq!(check(&request(CMD_TRIM, u64::MAX, 2), size), Err(RequestError::Invalid));
        assert_eq!(check(&request(CMD_READ, size, 1), size), Err(RequestError::Invalid));
        assert_eq!(check(&request(CMD_WRITE, 0, MAX_REQUEST_BYTES + 1), size), Err(RequestError::Invalid));
        assert_eq!(check(&request(99, 0, 0), size), Err(RequestError::Invalid));
    }
}
