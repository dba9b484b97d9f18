//! Write counters, as the driver sees them; and a copy that starts again, which writes only what differs.

use std::process::Command;

use anyhow::Result;
use drover::host::relay::writes::{EXTENT_BYTES, WriteCountersView};
use drover_lab::process::Process;
use nix::sys::signal::Signal;

use crate::ganesha::Ganesha;
use crate::nbd::{Client, ENOSPC, WRITE};
use crate::relay::{MIB, Relay, noise, run, start_in};

const SIZE: u64 = 4 * EXTENT_BYTES;

async fn counters(relay: &Relay) -> Result<WriteCountersView> {
    let instance = relay.client.status().await?.instance.parse()?;
    Ok(WriteCountersView::open(relay.directory(), "vda", instance, SIZE)?)
}

/// Which counters moved since `before`, which is brought up to date.
fn moved(view: &WriteCountersView, before: &mut Vec<u64>) -> Vec<usize> {
    let now = view.all();
    let moved = (0..now.len()).filter(|extent| now[*extent] != before[*extent]).collect();
    *before = now;
    moved
}

#[tokio::test(flavor = "multi_thread")]
async fn a_counter_moves_before_the_answer_and_again_when_the_target_has_it() -> Result<()> {
    let ganesha = Ganesha::start()?;
    let spec = ganesha.disk("disk", SIZE)?;
    let relay = Relay::start(64, 30_000).await?;
    relay.client.open("vda", SIZE, &spec, false).await?;
    let view = counters(&relay).await?;
    let mut before = view.all();
    let mut client = Client::connect(&relay.socket(), "vda")?;
    assert_eq!(client.write(EXTENT_BYTES, &noise(1, 4096))?, 0);
    relay.wait_drained().await?;
    assert_eq!(moved(&view, &mut before), [1]);

    ganesha.signal(Signal::SIGSTOP)?;
    assert_eq!(client.write(2 * EXTENT_BYTES - 1, b"ab")?, 0);
    assert_eq!(moved(&view, &mut before), [1, 2], "acknowledged and not counted");
    assert_eq!(client.zero(0, 5)?, 0);
    assert_eq!(moved(&view, &mut before), [0]);
    assert_eq!(client.trim(3 * EXTENT_BYTES - 1, 5)?, 0);
    assert_eq!(moved(&view, &mut before), [2, 3]);
    // A request whose data never comes may be carried out on the source: it counts as well.
    client.send(WRITE, 0, 4096, b"only the beginning")?;
    relay.wait_for("a count", |_| view.get(0) != before[0]).await?;
    moved(&view, &mut before);
    ganesha.signal(Signal::SIGCONT)?;
    relay.wait_drained().await?;
    assert_eq!(moved(&view, &mut before), [0, 1, 2, 3], "what reaches the target later changes it later");
    Ok(())
}

/// Opens the disk anew, hands it to `client`, closes it and says whether the counters were sealed.
async fn sealed_after(relay: &Relay, client: impl FnOnce(Client) -> Result<()>) -> Result<bool> {
    relay.open_file(SIZE, SIZE, false).await?;
    let view = counters(relay).await?;
    client(Client::connect(&relay.socket(), "vda")?)?;
    relay.wait_for("end of the client", |status| !status.exports[0].connected).await?;
    relay.wait_drained().await?;
    assert!(!view.is_sealed());
    relay.client.close("vda", false).await?;
    Ok(view.is_sealed())
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_are_sealed_only_if_nothing_can_have_been_missed() -> Result<()> {
    let relay = Relay::start(64, 3000).await?;
    let write = |client: &mut Client| -> Result<()> {
        assert_eq!(client.write(0, b"x")?, 0);
        Ok(())
    };
    assert!(
        sealed_after(&relay, |mut client| {
            write(&mut client)?;
            Ok(client.say_goodbye()?)
        })
        .await?
    );
    assert!(!sealed_after(&relay, |mut client| write(&mut client)).await?, "its client was cut off");
    assert!(
        !sealed_after(&relay, |mut client| {
            assert_eq!(client.write(SIZE - 1, b"xy")?, ENOSPC);
            Ok(client.say_goodbye()?)
        })
        .await?,
        "it refused a write"
    );
    // Given up on purpose.
    relay.open_file(SIZE, SIZE, false).await?;
    let view = counters(&relay).await?;
    relay.client.close("vda", true).await?;
    assert!(!view.is_sealed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_starts_again_writes_only_what_differs() -> Result<()> {
    let ganesha = Ganesha::start()?;
    let size = 64 * MIB;
    let spec = ganesha.disk("disk", size)?;
    let mut relay = Relay::start(64, 30_000).await?;
    let source = relay.directory().join("source.img");
    let mut content = noise(1, 40 << 20);
    content.resize(size as usize, 0);
    std::fs::write(&source, &content)?;
    let copy = |relay: &Relay| run(Command::new("nbdcopy").arg("--flush").arg(&source).arg(relay.uri("vda+durable")));
    relay.client.open("vda", size, &spec, true).await?;
    copy(&relay)?;
    let first = relay.export().await?;
    assert_eq!((first.drained_bytes, first.skipped_bytes), (40 * MIB, 0));

    let again = |directory: &std::path::Path| -> Result<Process> { start_in(directory, 64, 30_000) };
    for (changed, most) in [(vec![], 0), (vec![3 * MIB as usize, 50 * MIB as usize, 51 * MIB as usize + 7], 3 * MIB)] {
        relay.process.kill();
        relay.process = again(relay.directory())?;
        relay.wait_for("its first answer", |_| true).await?;
        relay.client.open("vda", size, &spec, false).await?;
        for at in &changed {
            content[*at] ^= 0xFF;
        }
        std::fs::write(&source, &content)?;
        copy(&relay)?;
        let export = relay.export().await?;
        println!("{} bytes changed: {} written, {} skipped", changed.len(), export.drained_bytes, export.skipped_bytes);
        assert!(export.drained_bytes <= most, "{export:?}");
        assert_eq!(export.drained_bytes + export.skipped_bytes, size);
        assert!(std::fs::read(ganesha.path("disk"))? == content);
    }
    // What was looked at once is not looked at again: it is the guest's turn.
    let mut client = Client::connect(&relay.socket(), "vda")?;
    let skipped = relay.export().await?.skipped_bytes;
    assert_eq!(client.write(0, &content[..MIB as usize])?, 0);
    relay.wait_drained().await?;
    assert_eq!(relay.export().await?.skipped_bytes, skipped);
    Ok(())
}
