//! Write counters, as the driver sees them; and a copy that starts again, which writes only what differs.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use drover::host::relay::TargetSpec;
use drover::host::relay::writes::{EXTENT_BYTES, WriteCountersView};
use drover::host::verify::background::{Background, Job};
use drover_lab::process::Process;
use drover_lab::throttle::Throttle;
use nix::sys::signal::Signal;

use crate::ganesha::Ganesha;
use crate::nbd::{Client, ENOSPC, WRITE};
use crate::relay::{MIB, Relay, noise, run, start_in};

const SIZE: u64 = 4 * EXTENT_BYTES;
const FAST: u64 = 1 << 40;

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
    // A stop takes a moment to reach every thread.
    tokio::time::sleep(Duration::from_secs(1)).await;
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
    // A writer of the export before takes a moment to end; until then its target is not opened again.
    while let Err(error) = relay.open_file(SIZE, SIZE, false).await {
        anyhow::ensure!(error.to_string().contains("not answered yet"), error);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
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
    let second = Relay::start(64, 3000).await?;
    second.open_file(SIZE, SIZE, false).await?;
    let view = counters(&second).await?;
    second.client.close("vda", true).await?;
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

/// A disk that is verified while its "guest" writes to source and relay, as QEMU does.
struct Verified {
    relay: Relay,
    source: std::path::PathBuf,
    target: TargetSpec,
    background: Background,
    client: Client,
    /// What the relay writes through; what verifies has a way of its own.
    line: Throttle,
}

impl Verified {
    async fn start(ganesha: &Ganesha) -> Result<Self> {
        let relay = Relay::start(64, 30_000).await?;
        let source = relay.directory().join("source.img");
        std::fs::write(&source, noise(1, SIZE as usize))?;
        let target = ganesha.disk("disk", SIZE)?;
        std::fs::copy(&source, ganesha.path("disk"))?;
        let mut written = ganesha.file("disk", SIZE);
        let line = Throttle::start(written.server.port.context("it has a port")?, FAST)?;
        written.server.port = Some(line.port());
        relay.client.open("vda", SIZE, &TargetSpec::Nfs(written), false).await?;
        let client = Client::connect(&relay.socket(), "vda")?;
        let background = Background::start(job(&relay, &source, &target).await?)?;
        background.pace(1 << 30);
        Ok(Self { relay, source, target, background, client, line })
    }

    async fn wait_verified(&self, extents: u64) -> Result<()> {
        self.relay.wait_for("verified", |_| self.background.progress().0 == extents * EXTENT_BYTES).await.map(drop)
    }
}

async fn job(relay: &Relay, source: &std::path::Path, target: &TargetSpec) -> Result<Job> {
    let opening = relay.export().await?.opening;
    Ok(Job {
        device: "vda".into(),
        size_bytes: SIZE,
        source_path: source.into(),
        target: target.clone(),
        relay: relay.client.clone(),
        relay_directory: relay.directory().into(),
        relay_instance: relay.client.status().await?.instance.parse()?,
        opening,
        subject: opening,
        ledger_file: relay.directory().join("vda.verified"),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_verified_is_known_only_until_it_is_touched_and_only_under_a_seal() -> Result<()> {
    let ganesha = Ganesha::start()?;
    let mut disk = Verified::start(&ganesha).await?;
    disk.wait_verified(4).await?;
    assert_eq!(disk.background.known(), None, "the relay still counts");
    // Its file is there after 10 s; a second one goes on from it without having read anything.
    disk.relay.wait_for("a file", |_| disk.relay.directory().join("vda.verified").exists()).await?;
    let second = Background::start(job(&disk.relay, &disk.source, &disk.target).await?)?;
    assert_eq!(second.progress(), (4 * EXTENT_BYTES, None));
    disk.background.pace(0);
    tokio::time::sleep(Duration::from_secs(1)).await;
    // The same bytes again: nothing differs, and yet nobody knows.
    assert_eq!(
        disk.client.write(EXTENT_BYTES + 5, &std::fs::read(&disk.source)?[EXTENT_BYTES as usize + 5..][..9])?,
        0
    );
    disk.relay.wait_drained().await?;
    assert_eq!(disk.background.progress().0, 3 * EXTENT_BYTES);
    disk.client.say_goodbye()?;
    disk.relay.wait_for("end of the client", |status| !status.exports[0].connected).await?;
    disk.relay.client.close("vda", false).await?;
    let source = std::fs::read(&disk.source)?;
    let hash = |extent: usize| {
        Some(*blake3::hash(&source[extent * EXTENT_BYTES as usize..][..EXTENT_BYTES as usize]).as_bytes())
    };
    for known in [disk.background.known(), second.known()] {
        assert_eq!(known, Some(vec![hash(0), None, hash(2), hash(3)]));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_on_its_way_for_long_is_no_difference() -> Result<()> {
    let ganesha = Ganesha::start()?;
    let mut disk = Verified::start(&ganesha).await?;
    disk.wait_verified(4).await?;
    File::options().write(true).open(&disk.source)?.write_all_at(b"written", 2 * EXTENT_BYTES)?;
    disk.line.set_rate(1);
    assert_eq!(disk.client.write(2 * EXTENT_BYTES, b"written")?, 0);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(disk.background.progress(), (3 * EXTENT_BYTES, None));
    assert!(disk.relay.export().await?.backlog_bytes > 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_never_comes_is_a_difference() -> Result<()> {
    let ganesha = Ganesha::start()?;
    let mut disk = Verified::start(&ganesha).await?;
    disk.wait_verified(4).await?;
    File::options().write(true).open(&disk.source)?.write_all_at(b"lost", EXTENT_BYTES + 7)?;
    // Found because something else moved the counter: the extent is read again.
    let last = 2 * EXTENT_BYTES - 1;
    assert_eq!(disk.client.write(last, &std::fs::read(&disk.source)?[last as usize..][..1])?, 0);
    disk.relay.wait_for("a difference", |_| disk.background.progress().1.is_some()).await?;
    assert_eq!(disk.background.progress(), (3 * EXTENT_BYTES, Some(EXTENT_BYTES + 7)));
    Ok(())
}
