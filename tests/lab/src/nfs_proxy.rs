//! A TCP proxy in front of an NFSv3 server that understands one procedure, WRITE, and answers it as a storage does that nobody can trust.
//!
//! The formats are those of RFC 5531 (calls, replies, record marks) and RFC 1813 (WRITE). All else passes through.

use std::collections::HashSet;
use std::io::{Read, Result, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Statuses of RFC 1813 that a WRITE may be refused with.
pub const NFS3ERR_IO: u32 = 5;
pub const NFS3ERR_ACCES: u32 = 13;
pub const NFS3ERR_NOSPC: u32 = 28;

/// What becomes of WRITE calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// The server carries them out and answers.
    Honest,
    /// Answered with this status, and not carried out.
    Refused(u32),
    /// Carried out; the answer says that they are in memory only (`UNSTABLE`), whatever was asked.
    Unstable,
    /// Those that are to be on stable storage (`FILE_SYNC`) are carried out. Others are answered as `UNSTABLE`, and never arrive: the
    /// power fails before anybody commits them.
    ForgottenUnlessStable,
}

/// A running proxy. Dropping it stops accepting; connections end with their ends.
pub struct NfsProxy {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    writes: Mutex<Writes>,
    /// How many WRITE calls were answered otherwise than the server would have.
    spoilt: Mutex<u64>,
    stop: AtomicBool,
}

impl NfsProxy {
    /// Listens on a free port and forwards to `upstream_port`, at first honestly.
    pub fn start(upstream_port: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            writes: Mutex::new(Writes::Honest),
            spoilt: Mutex::new(0),
            stop: AtomicBool::new(false),
        });
        let for_thread = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if for_thread.stop.load(Ordering::Relaxed) {
                    break;
                }
                // A server that is away refuses the client by hanging up.
                if let (Ok(client), Ok(server)) = (client, TcpStream::connect(("127.0.0.1", upstream_port))) {
                    let _ = connect(&for_thread, client, server);
                }
            }
        });
        Ok(Self { port, shared })
    }

    /// Where clients connect.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What becomes of WRITE calls from now on.
    pub fn set(&self, writes: Writes) {
        *lock(&self.shared.writes) = writes;
    }

    /// How many WRITE calls were answered otherwise than the server would have.
    pub fn spoilt(&self) -> u64 {
        *lock(&self.shared.spoilt)
    }
}

impl Drop for NfsProxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn connect(shared: &Arc<Shared>, client: TcpStream, server: TcpStream) -> Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let answers = Arc::new(Mutex::new(client.try_clone()?));
    // Calls whose answers are to be changed.
    let marked = Arc::new(Mutex::new(HashSet::new()));
    let (calls, replies) = (server.try_clone()?, server);
    let (shared, to_client, to_mark) = (Arc::clone(shared), Arc::clone(&answers), Arc::clone(&marked));
    std::thread::spawn(move || pass_calls(&shared, client, calls, &to_client, &to_mark));
    std::thread::spawn(move || pass_replies(replies, &answers, &marked));
    Ok(())
}

type Marked = Mutex<HashSet<u32>>;

fn pass_calls(
    shared: &Shared,
    mut client: TcpStream,
    mut server: TcpStream,
    answers: &Mutex<TcpStream>,
    marked: &Marked,
) {
    while let Ok(call) = read_record(&mut client) {
        let passed = match Write3::parse(&call) {
            Some(write) => pass_write(shared, &write, &call, &mut server, answers, marked),
            None => write_record(&mut server, &call),
        };
        if passed.is_err() {
            break;
        }
    }
    let _ = server.shutdown(Shutdown::Write);
}

fn pass_write(
    shared: &Shared,
    write: &Write3,
    call: &[u8],
    server: &mut TcpStream,
    answers: &Mutex<TcpStream>,
    marked: &Marked,
) -> Result<()> {
    let writes = *lock(&shared.writes);
    let answer = match writes {
        Writes::Honest => return write_record(server, call),
        Writes::ForgottenUnlessStable if write.stable == FILE_SYNC => return write_record(server, call),
        Writes::Unstable => {
            *lock(&shared.spoilt) += 1;
            lock(marked).insert(write.xid);
            return write_record(server, call);
        }
        Writes::Refused(status) => refusal(write.xid, status),
        Writes::ForgottenUnlessStable => taken(write.xid, write.count),
    };
    *lock(&shared.spoilt) += 1;
    write_record(&mut lock(answers), &answer)
}

fn pass_replies(mut server: TcpStream, answers: &Mutex<TcpStream>, marked: &Marked) {
    while let Ok(mut reply) = read_record(&mut server) {
        if word(&reply, 0).is_some_and(|xid| lock(marked).remove(&xid)) {
            say_unstable(&mut reply);
        }
        if write_record(&mut lock(answers), &reply).is_err() {
            break;
        }
    }
    let _ = lock(answers).shutdown(Shutdown::Both);
}

const FILE_SYNC: u32 = 2;
const UNSTABLE: u32 = 0;

/// What matters of a WRITE call.
struct Write3 {
    xid: u32,
    count: u32,
    stable: u32,
}

impl Write3 {
    fn parse(call: &[u8]) -> Option<Self> {
        const CALL: u32 = 0;
        const NFS: u32 = 100_003;
        const WRITE: u32 = 7;
        let head: Vec<u32> = (0..6).map(|index| word(call, 4 * index)).collect::<Option<_>>()?;
        let [xid, CALL, 2, NFS, 3, WRITE] = head[..] else { return None };
        // Credential and verifier (a flavour and opaque bytes each), then the file's handle and its offset.
        let handle = after_opaque(call, after_opaque(call, 24 + 4)? + 4)?;
        let count_at = after_opaque(call, handle)? + 8;
        Some(Self { xid, count: word(call, count_at)?, stable: word(call, count_at + 4)? })
    }
}

/// Where the bytes end whose length stands at `at`.
fn after_opaque(message: &[u8], at: usize) -> Option<usize> {
    Some(at + 4 + (word(message, at)? as usize).next_multiple_of(4))
}

fn word(message: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(message.get(at..at + 4)?.try_into().ok()?))
}

/// An accepted reply without a verifier, and what the procedure answers.
fn reply(xid: u32, results: &[u32]) -> Vec<u8> {
    const REPLY: u32 = 1;
    [xid, REPLY, 0, 0, 0, 0].iter().chain(results).flat_map(|word| word.to_be_bytes()).collect()
}

/// Neither the attributes before nor those after are told.
fn refusal(xid: u32, status: u32) -> Vec<u8> {
    reply(xid, &[status, 0, 0])
}

fn taken(xid: u32, count: u32) -> Vec<u8> {
    reply(xid, &[0, 0, 0, count, UNSTABLE, 0, 0])
}

/// The answer to a WRITE that went well ends with count, stability, and the server's verifier of 8 bytes.
fn say_unstable(reply: &mut [u8]) {
    let at = reply.len().saturating_sub(12);
    if let Some(committed) = reply.get_mut(at..at + 4) {
        committed.copy_from_slice(&UNSTABLE.to_be_bytes());
    }
}

const LAST_FRAGMENT: u32 = 1 << 31;

fn read_record(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut record = Vec::new();
    loop {
        let mut mark = [0; 4];
        stream.read_exact(&mut mark)?;
        let mark = u32::from_be_bytes(mark);
        let from = record.len();
        record.resize(from + (mark & !LAST_FRAGMENT) as usize, 0);
        stream.read_exact(&mut record[from..])?;
        if mark & LAST_FRAGMENT != 0 {
            return Ok(record);
        }
    }
}

fn write_record(stream: &mut TcpStream, record: &[u8]) -> Result<()> {
    let length = u32::try_from(record.len()).map_err(std::io::Error::other)?;
    stream.write_all(&(length | LAST_FRAGMENT).to_be_bytes())?;
    stream.write_all(record)
}
