//! Real NBD clients against a plain-file target.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Command;

use anyhow::Result;
use drover::host::relay::TargetSpec;

use crate::nbd::{Client, EINVAL, ENOSPC};
use crate::relay::{MIB, Relay, allocated_bytes, noise, run, start_in};

#[tokio::test(flavor = "multi_thread")]
async fn nbdinfo_sees_the_exact_size_and_both_names() -> Result<()> {
    let relay = Relay::start(64, 3000).await?;
    relay.open_file(10 * MIB + 512, 11 * MIB, true).await?;
    let info = run(Command::new("nbdinfo").arg(relay.uri("vda")))?;
    for line in
        ["export-size: 10486272", "can_flush: true", "can_zero: true", "can_trim: true", "block_size_maximum: 4194304"]
    {
        assert!(info.contains(line), "no {line:?} in\n{info}");
    }
    let list = run(Command::new("nbdinfo").arg("--list").arg(relay.uri("")))?;
    assert!(list.contains("export=\"vda\"") && list.contains("export=\"vda+durable\""), "{list}");
    let unknown = run(Command::new("nbdinfo").arg(relay.uri("vdb"))).unwrap_err().to_string();
    assert!(unknown.contains("No such file or directory for export: vdb"), "{unknown}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nbdcopy_there_and_back_is_the_same_and_holes_cost_nothing() -> Result<()> {
    let relay = Relay::start(64, 30_000).await?;
    let target = relay.open_file(100 * MIB, 101 * MIB, true).await?;
    let (source, back) = (relay.directory().join("source.img"), relay.directory().join("back.img"));
    let file = File::create(&source)?;
    file.set_len(100 * MIB)?;
    file.write_all_at(&noise(1, 30 * MIB as usize + 777), 12345)?;
    run(Command::new("nbdcopy").arg("--flush").arg(&source).arg(relay.uri("vda+durable")))?;
    // The flush was honest: no waiting for the drain here.
    assert_eq!(relay.export().await?.backlog_bytes, 0);
    let mut written = std::fs::read(&target)?;
    assert_eq!(written.split_off(100 * MIB as usize), vec![0; MIB as usize], "bytes past the source's end");
    assert!(written == std::fs::read(&source)?);
    assert!(allocated_bytes(&target)? < 32 * MIB);
    run(Command::new("nbdcopy").arg(relay.uri("vda")).arg(&back))?;
    assert!(written == std::fs::read(&back)?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_img_and_qemu_io_find_what_they_wrote() -> Result<()> {
    let relay = Relay::start(64, 30_000).await?;
    let target = relay.open_file(64 * MIB, 64 * MIB, true).await?;
    let source = relay.directory().join("source.img");
    let file = File::create(&source)?;
    file.set_len(64 * MIB)?;
    file.write_all_at(&noise(2, 20 * MIB as usize), 3 * MIB)?;
    run(Command::new("qemu-img").args(["convert", "-n", "-f", "raw", "-O", "raw"]).arg(&source).arg(relay.uri("vda")))?;
    run(Command::new("qemu-img").args(["compare", "-f", "raw", "-F", "raw"]).arg(&source).arg(relay.uri("vda")))?;
    let mut io = Command::new("qemu-io");
    io.args(["-f", "raw"]).arg(relay.uri("vda"));
    // Overlapping writes, and reads of what is not flushed.
    for step in [
        "write -P 1 0 1M",
        "write -P 2 500k 1M",
        "write -P 3 600k 4k",
        "read -P 1 0 500k",
        "read -P 2 500k 100k",
        "read -P 3 600k 4k",
        "read -P 2 604k 900k",
        "write -z 512k 1M",
        "read -P 0 512k 1M",
        "discard 8M 8M",
        "read -P 0 8M 8M",
        "write -f -P 4 9M 64k",
        "read -P 4 9M 64k",
        "flush",
    ] {
        io.args(["-c", step]);
    }
    let output = run(&mut io)?;
    assert!(!output.contains("failed"), "{output}");
    relay.wait_drained().await?;
    let mut expected = std::fs::read(&source)?;
    expected[..MIB as usize].fill(1);
    expected[500 << 10..1524 << 10].fill(2);
    expected[512 << 10..1536 << 10].fill(0);
    expected[8 << 20..16 << 20].fill(0);
    expected[9 << 20..(9 << 20) + (64 << 10)].fill(4);
    assert!(std::fs::read(&target)? == expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_past_the_sources_size() -> Result<()> {
    let relay = Relay::start(64, 30_000).await?;
    let target = relay.open_file(8 * MIB, 9 * MIB, true).await?;
    let mut client = Client::connect(&relay.socket(), "vda")?;
    assert_eq!(client.size_bytes, 8 * MIB);
    assert_eq!(client.write(8 * MIB, b"x")?, ENOSPC);
    assert_eq!(client.write(8 * MIB - 1, b"xy")?, ENOSPC);
    assert_eq!(client.zero(8 * MIB - 1, 2)?, ENOSPC);
    assert_eq!(client.read(8 * MIB - 1, 2)?, Err(EINVAL));
    assert_eq!(client.write(8 * MIB - 1, b"z")?, 0, "the connection goes on after a refusal");
    relay.wait_drained().await?;
    let written = std::fs::read(&target)?;
    assert_eq!((written.len() as u64, written[8 * MIB as usize - 1]), (9 * MIB, b'z'));
    assert!(written[8 * MIB as usize..].iter().all(|byte| *byte == 0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_on_a_fresh_target_is_gone_although_zeroes_are_free() -> Result<()> {
    let relay = Relay::start(64, 30_000).await?;
    let target = relay.open_file(8 * MIB, 8 * MIB, true).await?;
    std::fs::File::options().write(true).open(&target)?.write_all(&[7; 512])?;
    let mut client = Client::connect(&relay.socket(), "vda")?;
    assert_eq!(client.zero(0, 8 << 20)?, 0);
    relay.wait_drained().await?;
    assert_eq!(relay.export().await?.drained_bytes, 64 << 10, "one block was written, and no more");
    assert!(std::fs::read(&target)?.iter().all(|byte| *byte == 0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn zeroes_are_free_on_a_fresh_target_and_written_on_any_other() -> Result<()> {
    let relay = Relay::start(64, 30_000).await?;
    let target = relay.open_file(8 * MIB, 8 * MIB, true).await?;
    let mut client = Client::connect(&relay.socket(), "vda")?;
    assert_eq!(client.zero(0, 8 << 20)?, 0);
    assert_eq!(client.write(MIB, &vec![0; MIB as usize])?, 0);
    relay.wait_drained().await?;
    assert_eq!((relay.export().await?.drained_bytes, allocated_bytes(&target)?), (0, 0));
    // Once written, zeroes must arrive.
    assert_eq!(client.write(2 * MIB, &noise(3, 256 << 10))?, 0);
    assert_eq!(client.zero(2 * MIB + 4096, 8192)?, 0);
    assert_eq!(client.write(2 * MIB + (128 << 10), &vec![0; 64 << 10])?, 0);
    relay.wait_drained().await?;
    let mut expected = noise(3, 256 << 10);
    expected[4096..4096 + 8192].fill(0);
    expected[128 << 10..192 << 10].fill(0);
    assert!(std::fs::read(&target)?[2 << 20..][..256 << 10] == expected);
    drop(client);
    // The same target, no longer fresh and full of old bytes.
    relay.client.close("vda", false).await?;
    std::fs::write(&target, vec![7; 8 << 20])?;
    relay.open_file(8 * MIB, 8 * MIB, false).await?;
    let mut client = Client::connect(&relay.socket(), "vda")?;
    assert_eq!(client.zero(0, 4 << 20)?, 0);
    assert_eq!(client.write(6 * MIB, &vec![0; MIB as usize])?, 0);
    relay.wait_drained().await?;
    let mut expected = vec![7; 8 << 20];
    expected[..4 << 20].fill(0);
    expected[6 << 20..7 << 20].fill(0);
    assert!(std::fs::read(&target)? == expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_opens_once_on_what_exists_and_fits() -> Result<()> {
    let relay = Relay::start(64, 3000).await?;
    let missing = TargetSpec::File(relay.directory().join("missing.img"));
    let error = relay.client.open("vda", MIB, &missing, true).await.unwrap_err().to_string();
    assert!(error.contains("missing.img") && error.contains("No such file"), "{error}");
    assert!(!relay.directory().join("missing.img").exists(), "it was created");

    let path = relay.open_file(8 * MIB, 8 * MIB, true).await?;
    relay.open_file(8 * MIB, 8 * MIB, true).await?; // the same again
    let refused = relay.open_file(8 * MIB, 8 * MIB, false).await.unwrap_err().to_string();
    assert!(refused.contains("open with other arguments"), "{refused}");
    let spec = TargetSpec::File(path);
    let twice = relay.client.open("vdb", 8 * MIB, &spec, true).await.unwrap_err().to_string();
    assert!(twice.contains("target of export vda already"), "{twice}");
    relay.client.close("vda", false).await?;
    relay.client.close("vda", false).await?;
    let small = relay.client.open("vda", 9 * MIB, &spec, true).await.unwrap_err().to_string();
    assert!(small.contains("too small"), "{small}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_has_one_relay_and_a_dead_ones_sockets_are_replaced() -> Result<()> {
    let mut relay = Relay::start(64, 3000).await?;
    let first = relay.client.status().await?.instance;
    let mut second = start_in(relay.directory(), 64, 3000)?;
    second.wait_until("its refusal", std::time::Duration::from_secs(30), || false).unwrap_err();
    assert!(second.tail().contains("another relay serves"), "{}", second.tail());
    assert_eq!(relay.client.status().await?.instance, first, "the first one goes on");
    relay.process.kill();
    relay.process = start_in(relay.directory(), 64, 3000)?;
    let status = relay.wait_for("an answer of the new relay", |_| true).await?;
    assert_ne!(status.instance, first);
    Ok(())
}
