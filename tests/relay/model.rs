//! Random requests over several connections, against a slow target with passing faults, compared with a plain array.
//!
//! The slow target keeps much pending, so that merging, cutting and overlapping really happen; it also checks that two writes to the
//! same place are never under way at once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use drover::edge::nfs::{NfsCause, NfsError};
use drover::host::relay::TargetSpec;
use drover::host::relay::exports::Exports;
use drover::host::relay::memory::Memory;
use drover::host::relay::target::{Target, TargetConnection, TargetError};
use drover::host::relay::transmission::serve_nbd;
use futures::future::{BoxFuture, FutureExt};
use tokio::net::UnixListener;

use crate::nbd::Client;
use crate::relay::{MIB, noise};

const SIZE: u64 = 3 * MIB + 513;

/// A target in memory that takes its time.
#[derive(Clone)]
struct Slow(Arc<Inner>);

struct Inner {
    disk: Mutex<Vec<u8>>,
    under_way: Mutex<Vec<(u64, u64)>>,
    calls: AtomicU64,
    delay: Duration,
}

impl Slow {
    fn new(fill: u8, delay: Duration) -> Self {
        let disk = Mutex::new(vec![fill; SIZE as usize]);
        Self(Arc::new(Inner { disk, under_way: Mutex::default(), calls: AtomicU64::new(0), delay }))
    }

    async fn change(&self, offset: u64, data: Vec<u8>) -> Result<(), TargetError> {
        let end = offset + data.len() as u64;
        {
            let mut under_way = self.0.under_way.lock().expect("no panic holds it");
            assert!(under_way.iter().all(|(from, to)| end <= *from || *to <= offset), "two writes at {offset} at once");
            under_way.push((offset, end));
        }
        tokio::time::sleep(self.0.delay).await;
        let faulty = self.0.calls.fetch_add(1, Ordering::Relaxed) % 7 == 6;
        if !faulty {
            self.0.disk.lock().expect("no panic holds it")[offset as usize..end as usize].copy_from_slice(&data);
        }
        self.0.under_way.lock().expect("no panic holds it").retain(|range| *range != (offset, end));
        if faulty { Err(away()) } else { Ok(()) }
    }
}

/// What a lost connection looks like.
fn away() -> TargetError {
    let cause = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
    let text = String::new;
    let error = NfsError {
        operation: "write",
        server: text(),
        export: text(),
        path: text(),
        cause: NfsCause::Call(cause.into()),
    };
    error.into()
}

impl Target for Slow {
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn TargetConnection>, TargetError>> {
        async { Ok(Box::new(self.clone()) as Box<dyn TargetConnection>) }.boxed()
    }

    fn max_write_bytes(&self) -> u64 {
        100_000
    }
}

impl TargetConnection for Slow {
    fn write<'a>(&'a mut self, offset: u64, pieces: &'a [Bytes]) -> BoxFuture<'a, Result<(), TargetError>> {
        self.change(offset, pieces.concat()).boxed()
    }

    fn zero(&mut self, offset: u64, len: u64) -> BoxFuture<'_, Result<(), TargetError>> {
        self.change(offset, vec![0; len as usize]).boxed()
    }

    fn read<'a>(&'a mut self, offset: u64, buffer: &'a mut [u8]) -> BoxFuture<'a, Result<(), TargetError>> {
        async move {
            buffer.copy_from_slice(&self.0.disk.lock().expect("no panic holds it")[offset as usize..][..buffer.len()]);
            Ok(())
        }
        .boxed()
    }

    fn size_bytes(&mut self) -> BoxFuture<'_, Result<u64, TargetError>> {
        async { Ok(SIZE) }.boxed()
    }
}

async fn random_requests(seed: u64, fresh: bool) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("nbd.sock");
    let exports = Exports::new(Memory::new(32 * MIB), directory.path(), uuid::Uuid::new_v4());
    // Old bytes on a target that is not fresh must all be covered.
    let slow = Slow::new(if fresh { 0 } else { 0xEE }, Duration::from_millis(2));
    let spec = TargetSpec::File("/slow".into());
    exports.insert("vda", SIZE, &spec, fresh, Arc::new(slow.clone())).map_err(anyhow::Error::msg)?;
    tokio::spawn(serve_nbd(UnixListener::bind(&socket)?, Arc::clone(&exports)));

    let reference = tokio::task::spawn_blocking(move || drive(seed, fresh, &socket)).await??;
    // The last request was an honest flush: everything must be there.
    assert!(
        *slow.0.disk.lock().expect("no panic holds it") == reference,
        "seed {seed}: the target is not what was written"
    );
    assert_eq!(exports.status()[0].backlog_bytes, 0);
    assert_eq!(exports.memory().used_bytes(), 0);
    Ok(())
}

/// Sends the requests and returns what the disk must hold.
fn drive(seed: u64, fresh: bool, socket: &std::path::Path) -> Result<Vec<u8>> {
    let mut clients: Vec<Client> = ["vda", "vda", "vda+durable"]
        .into_iter()
        .map(|name| Client::connect(socket, name))
        .collect::<Result<_, _>>()?;
    let mut random = noise(seed, 8 * 5000)
        .chunks(8)
        .map(|c| u64::from_le_bytes(c.try_into().expect("eight bytes")))
        .collect::<Vec<_>>();
    let mut below = |limit: u64| random.pop().expect("there is more noise than steps") % limit;
    let mut reference = vec![if fresh { 0 } else { 0xEE }; SIZE as usize];
    for step in 0..700 {
        let client = &mut clients[below(3) as usize];
        let offset = if below(3) == 0 { below(SIZE) } else { below(SIZE / 4096) * 4096 };
        let longest = [700, 5000, 90_000, 200_000][below(4) as usize];
        let len = (1 + below(longest)).min(SIZE - offset) as usize;
        let part = &mut reference[offset as usize..][..len];
        match below(10) {
            0..5 => {
                let data = noise(step + 1, len);
                assert_eq!(client.write(offset, &data)?, 0);
                part.copy_from_slice(&data);
            }
            5 => {
                assert_eq!(client.write(offset, &vec![0; len])?, 0);
                part.fill(0);
            }
            6 => {
                assert_eq!(client.zero(offset, len as u32)?, 0);
                part.fill(0);
            }
            7 if below(20) == 0 => assert_eq!(client.flush()?, 0),
            _ => assert!(
                client.read(offset, len)?.expect("no error") == part,
                "seed {seed}, step {step}: read at {offset}+{len}"
            ),
        }
    }
    assert_eq!(clients[2].flush()?, 0);
    Ok(reference)
}

#[tokio::test(flavor = "multi_thread")]
async fn random_requests_on_a_fresh_target() -> Result<()> {
    for seed in 1..4 {
        random_requests(seed, true).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn random_requests_on_a_used_target() -> Result<()> {
    for seed in 4..7 {
        random_requests(seed, false).await?;
    }
    Ok(())
}
