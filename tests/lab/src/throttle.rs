//! A TCP proxy that lets through only so many bytes a second towards the server: a slow storage.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

/// A running proxy. Dropping it stops accepting; connections end with their ends.
pub struct Throttle {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    bytes_per_s: AtomicU64,
    stop: AtomicBool,
    /// When the next byte may pass, in nanoseconds since `start`: shared by all connections.
    next_nanos: AtomicU64,
    start: Instant,
}

impl Throttle {
    /// Listens on a free port and forwards to `upstream_port`, all connections together at `bytes_per_s`.
    pub fn start(upstream_port: u16, bytes_per_s: u64) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            bytes_per_s: AtomicU64::new(bytes_per_s.max(1)),
            stop: AtomicBool::new(false),
            next_nanos: AtomicU64::new(0),
            start: Instant::now(),
        });
        let for_thread = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if for_thread.stop.load(Ordering::Relaxed) {
                    break;
                }
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

    /// Changes the rate for all connections, from now on.
    pub fn set_rate(&self, bytes_per_s: u64) {
        self.shared.bytes_per_s.store(bytes_per_s.max(1), Ordering::Relaxed);
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    /// Waits until `bytes` may pass.
    fn pass(&self, bytes: usize) {
        let cost = (bytes as u64).saturating_mul(1_000_000_000) / self.bytes_per_s.load(Ordering::Relaxed);
        let now = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let take = |next: u64| Some(next.max(now) + cost);
        let begin = self.next_nanos.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).unwrap_or(now).max(now);
        std::thread::sleep(Duration::from_nanos(begin + cost - now));
    }
}

fn connect(shared: &Arc<Shared>, client: TcpStream, server: TcpStream) -> std::io::Result<()> {
    let (up_from, up_to) = (client.try_clone()?, server.try_clone()?);
    let shared = shared.clone();
    std::thread::spawn(move || forward(up_from, up_to, |bytes| shared.pass(bytes)));
    std::thread::spawn(move || forward(server, client, |_| {}));
    Ok(())
}

fn forward(mut from: TcpStream, mut to: TcpStream, pass: impl Fn(usize)) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        pass(length);
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
