//! A server that keeps what it was asked to keep and no more, or does not even say that it does: the relay counts nothing else as drained.

use anyhow::{Context, Result};
use drover::host::relay::TargetSpec;
use drover_lab::nfs_proxy::{NfsProxy, Writes};

use crate::ganesha::Ganesha;
use crate::nbd::{Client, EIO};
use crate::relay::{MIB, Relay, noise};

/// A disk of this size, reached through a proxy that stands before the server.
fn behind_proxy(ganesha: &Ganesha, size_bytes: u64) -> Result<(TargetSpec, NfsProxy)> {
    let TargetSpec::Nfs(mut file) = ganesha.disk("disk", size_bytes)? else { panic!("not on NFS") };
    let proxy = NfsProxy::start(file.server.port.context("the server's port")?)?;
    file.server.port = Some(proxy.port());
    Ok((TargetSpec::Nfs(file), proxy))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_promises_less_than_stable_storage_is_refused_by_name() -> Result<()> {
    let ganesha = Ganesha::start()?;
    let (spec, proxy) = behind_proxy(&ganesha, 8 * MIB)?;
    let relay = Relay::start(64, 30_000).await?;
    relay.client.open("vda", 8 * MIB, &spec, true).await?;
    let mut client = Client::connect(&relay.socket(), "vda")?;
    assert_eq!(client.write(0, &noise(1, MIB as usize))?, 0);
    relay.wait_drained().await?;
    proxy.set(Writes::Unstable);
    assert_eq!(client.write(MIB, &noise(2, MIB as usize))?, 0, "the guest is answered from memory");
    let status = relay.wait_for("a broken export", |status| status.exports[0].broken.is_some()).await?;
    let export = &status.exports[0];
    let reason = export.broken.clone().unwrap();
    assert!(reason.contains("with stability UNSTABLE, asked was FILE_SYNC"), "{reason}");
    assert!(export.backlog_bytes > 0, "what may be lost must not look drained");
    assert_eq!(client.write(0, b"x")?, EIO);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_relay_calls_drained_outlives_a_server_that_forgets_all_that_is_not_stable() -> Result<()> {
    const SIZE: u64 = 64 * MIB;
    let mut ganesha = Ganesha::start()?;
    let (spec, proxy) = behind_proxy(&ganesha, SIZE)?;
    proxy.set(Writes::ForgottenUnlessStable);
    let relay = Relay::start(64, 30_000).await?;
    relay.client.open("vda", SIZE, &spec, true).await?;
    let mut client = Client::connect(&relay.socket(), "vda")?;
    let mut expected = vec![0; SIZE as usize];
    for round in 0..4 {
        for write in 0..8 {
            let (offset, data) = ((8 * round + write) * 2 * MIB, noise(8 * round + write, MIB as usize + 512));
            assert_eq!(client.write(offset, &data)?, 0);
            expected[offset as usize..][..data.len()].copy_from_slice(&data);
        }
        // In the middle of it, most of the time.
        ganesha.kill();
        ganesha.start_again()?;
        relay.wait_drained().await?;
        ganesha.kill();
        assert!(std::fs::read(ganesha.path("disk"))? == expected, "round {round}: the relay called it drained");
        ganesha.start_again()?;
    }
    assert_eq!(proxy.spoilt(), 0, "nothing was asked for that is not stable");
    Ok(())
}
