//! What happens when the storage, the relay or its watchdog hangs or dies.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use drover::host::relay::RelayStatus;
use drover::host::verify::compare::compare;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::ganesha::Ganesha;
use crate::nbd::{Client, EIO, WRITE};
use crate::relay::{MIB, Relay, noise};

const STALL_MILLIS: u32 = 1500;

fn broken(status: &RelayStatus) -> bool {
    status.exports[0].broken.is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_server_costs_the_guest_an_error_and_not_its_time() -> Result<()> {
    let ganesha = Ganesha::start()?;
    let spec = ganesha.disk("disk", 256 * MIB)?;
    let relay = Relay::start(32, STALL_MILLIS).await?;
    relay.client.open("vda", 256 * MIB, &spec, true).await?;
    let mut client = Client::connect(&relay.socket(), "vda")?;
    ganesha.signal(Signal::SIGSTOP)?;
    // Fills the memory, and more: from the first that finds no room on, requests wait.
    let block = noise(1, MIB as usize);
    let mut waiting = BTreeSet::new();
    let mut acknowledged = 0;
    let mut errors = 0;
    for i in 0..40 {
        waiting.insert(client.send(WRITE, i * MIB, MIB as u32, &block)?);
    }
    while !waiting.is_empty() {
        let (cookie, error) = client.receive()?;
        assert!(waiting.remove(&cookie));
        assert!(error == 0 || error == EIO);
        if error == 0 { acknowledged += MIB } else { errors += 1 }
    }
    assert!(errors > 0 && acknowledged > 0);
    let status = relay.client.status().await?;
    assert!(acknowledged < status.memory_bytes, "{acknowledged} acknowledged from {status:?}");
    let export = &status.exports[0];
    let reason = export.broken.clone().unwrap();
    assert!(reason.contains("was not answered for"), "{reason}");
    assert!(export.backlog_bytes > 0, "what was given up must not look drained");
    // Broken is sticky, also for new clients.
    assert_eq!((client.write(0, b"x")?, client.flush()?, client.read(0, 1)?), (EIO, EIO, Err(EIO)));
    assert!(Client::connect(&relay.socket(), "vda").is_err());

    // A new life on the same target has to wait for the old one's calls, or they could overtake it.
    relay.client.close("vda", false).await?;
    let early = relay.client.open("vda", 256 * MIB, &spec, true).await.unwrap_err().to_string();
    assert!(early.contains("not answered yet"), "{early}");
    ganesha.signal(Signal::SIGCONT)?;
    for _ in 0..300 {
        if relay.client.open("vda", 256 * MIB, &spec, false).await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut client = Client::connect(&relay.socket(), "vda+durable")?;
    assert_eq!((client.write(0, &block)?, client.flush()?), (0, 0));
    assert!(std::fs::read(ganesha.path("disk"))?[..MIB as usize] == block);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_away_while_nobody_waits_only_delays_the_drain() -> Result<()> {
    let mut ganesha = Ganesha::start()?;
    let spec = ganesha.disk("disk", 64 * MIB)?;
    let relay = Relay::start(64, STALL_MILLIS).await?;
    relay.client.open("vda", 64 * MIB, &spec, true).await?;
    let data = noise(1, 3 * MIB as usize);
    let source = relay.directory().join("source.img");
    let mut expected = vec![0; 64 << 20];
    let mut client = Client::connect(&relay.socket(), "vda")?;
    let mut put = |offset: u64, what: &str| -> Result<()> {
        assert_eq!((client.write(offset, &data)?, client.flush()?), (0, 0), "{what}");
        expected[offset as usize..][..data.len()].copy_from_slice(&data);
        Ok(())
    };
    for (round, offset) in [(0, 0), (1, 10 * MIB), (2, 20 * MIB)] {
        match round {
            0 => {}
            1 => ganesha.signal(Signal::SIGSTOP)?,
            _ => ganesha.kill(),
        }
        put(offset, "the guest is served while the server is away")?;
        // Longer than any deadline.
        tokio::time::sleep(Duration::from_millis(u64::from(STALL_MILLIS) * 2)).await;
        let export = relay.export().await?;
        assert_eq!(export.broken, None);
        assert_eq!(export.backlog_bytes > 0, round > 0);
        match round {
            0 => {}
            1 => ganesha.signal(Signal::SIGCONT)?,
            _ => ganesha.start_again()?,
        }
        relay.wait_drained().await?;
    }
    std::fs::write(&source, &expected)?;
    assert_eq!(compare(&source, 64 * MIB, &spec, vec![None; 16], false, &|_| ()).await?.first_difference_offset, None);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_file_breaks_the_export_with_a_reason() -> Result<()> {
    let ganesha = Ganesha::start()?;
    let spec = ganesha.disk("disk", 8 * MIB)?;
    let relay = Relay::start(64, STALL_MILLIS).await?;
    relay.client.open("vda", 8 * MIB, &spec, true).await?;
    std::fs::remove_file(ganesha.path("disk"))?;
    let mut client = Client::connect(&relay.socket(), "vda")?;
    client.write(0, &noise(1, 4096))?;
    let status = relay.wait_for("a broken export", broken).await?;
    let reason = status.exports[0].broken.clone().unwrap();
    assert!(reason.contains("vmdisk/disk on NFS export 127.0.0.1") && reason.contains("NFS3ERR_STALE"), "{reason}");
    assert_eq!(client.write(0, b"x")?, EIO);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watchdog_kills_a_hung_worker_and_cuts_its_clients() -> Result<()> {
    let mut relay = Relay::start(64, STALL_MILLIS).await?;
    relay.open_file(8 * MIB, 8 * MIB, true).await?;
    let mut client = Client::connect(&relay.socket(), "vda")?;
    assert_eq!(client.write(0, b"x")?, 0);
    let worker = Pid::from_raw(relay.client.status().await?.pid.try_into()?);
    kill(worker, Signal::SIGSTOP)?;
    // A stop takes a moment to reach every thread: a request or two may still be answered.
    let error = (0..1000).find_map(|_| client.write(0, b"y").err()).expect("the worker was stopped");
    assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "the connection was not cut: {error}");
    relay.process.wait_until("its end", Duration::from_secs(30), || false).unwrap_err();
    assert!(!relay.process.ended().unwrap().success());
    assert!(relay.process.tail().contains("worker was killed"), "{}", relay.process.tail());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_process_outlives_the_other() -> Result<()> {
    let mut relay = Relay::start(64, STALL_MILLIS).await?;
    relay.open_file(8 * MIB, 8 * MIB, true).await?;
    let mut client = Client::connect(&relay.socket(), "vda")?;
    // Only the supervisor: its group would include the worker.
    kill(Pid::from_raw(relay.process.pid().try_into()?), Signal::SIGKILL)?;
    assert!(client.read(0, 1).is_err() || client.read(0, 1).is_err(), "the worker outlived its supervisor");

    relay = Relay::start(64, STALL_MILLIS).await?;
    kill(Pid::from_raw(relay.client.status().await?.pid.try_into()?), Signal::SIGKILL)?;
    relay.process.wait_until("its end", Duration::from_secs(30), || false).unwrap_err();
    assert!(!relay.process.ended().unwrap().success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_asked_to_end_takes_its_sockets_with_it() -> Result<()> {
    let mut relay = Relay::start(64, STALL_MILLIS).await?;
    let worker = relay.client.status().await?.pid;
    kill(Pid::from_raw(relay.process.pid().try_into()?), Signal::SIGTERM)?;
    relay.process.wait_until("its end", Duration::from_secs(30), || false).unwrap_err();
    let left: Vec<_> = std::fs::read_dir(relay.directory())?.flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().ends_with(".sock")), "{left:?}");
    wait_gone(worker);
    Ok(())
}

fn wait_gone(pid: u32) {
    let gone = || !std::path::Path::new(&format!("/proc/{pid}")).exists();
    let start = std::time::Instant::now();
    while !gone() {
        assert!(start.elapsed() < Duration::from_secs(30), "process {pid} lives");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// As the driver asks it, in the outage: without having to kill it.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_asked_to_end_ends() -> Result<()> {
    let mut relay = Relay::start(64, STALL_MILLIS).await?;
    let worker = relay.client.status().await?.pid;
    kill(Pid::from_raw(worker.try_into()?), Signal::SIGTERM)?;
    wait_gone(worker);
    relay.process.wait_until("its supervisor's end", Duration::from_secs(30), || false).unwrap_err();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_not_closed_over_acknowledged_bytes() -> Result<()> {
    let ganesha = Ganesha::start()?;
    let spec = ganesha.disk("disk", 8 * MIB)?;
    let relay = Relay::start(64, STALL_MILLIS).await?;
    relay.client.open("vda", 8 * MIB, &spec, true).await?;
    let mut client = Client::connect(&relay.socket(), "vda")?;
    ganesha.signal(Signal::SIGSTOP)?;
    assert_eq!(client.write(0, &noise(1, MIB as usize))?, 0);
    let refused = relay.client.close("vda", false).await.unwrap_err().to_string();
    assert!(refused.contains("1048576 bytes that were acknowledged"), "{refused}");
    relay.client.close("vda", true).await?;
    assert!(client.write(0, b"x").is_err(), "a closed export cuts its clients off");
    Ok(())
}
