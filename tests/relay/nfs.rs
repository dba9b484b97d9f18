//! A real NFS server as the target, and the comparison of source and target.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;

use anyhow::Result;
use drover::host::relay::TargetSpec;
use drover::host::relay::writes::{EXTENT_BYTES, extent_count};
use drover::host::verify::compare::compare;

use crate::ganesha::Ganesha;
use crate::relay::{MIB, Relay, allocated_bytes, noise, run};

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_copied_over_nfs_is_proven_equal() -> Result<()> {
    let ganesha = Ganesha::start()?;
    let spec = ganesha.disk("disk", 51 * MIB)?;
    let relay = Relay::start(64, 30_000).await?;
    let source = relay.directory().join("source.img");
    let file = File::create(&source)?;
    file.set_len(50 * MIB)?;
    file.write_all_at(&noise(1, 20 * MIB as usize), 7 * MIB + 512)?;
    relay.client.open("vda", 50 * MIB, &spec, true).await?;
    run(Command::new("nbdcopy").arg(&source).arg(relay.uri("vda")))?;
    relay.wait_drained().await?;
    assert!(allocated_bytes(&ganesha.path("disk"))? < 22 * MIB, "holes were written");

    let seen = std::sync::atomic::AtomicU64::new(0);
    let progress = |done| seen.store(done, std::sync::atomic::Ordering::Relaxed);
    let nothing = || vec![None; extent_count(50 * MIB)];
    let equal = compare(&source, 50 * MIB, &spec, nothing(), false, &progress).await?;
    let hashes = std::fs::read(&source)?;
    let hashes: Vec<[u8; 32]> = hashes.chunks(EXTENT_BYTES as usize).map(|e| *blake3::hash(e).as_bytes()).collect();
    assert_eq!((equal.first_difference_offset, equal.compared_extents), (None, 13));
    assert_eq!(equal.blake3, blake3::hash(&hashes.concat()).to_hex().to_string());
    assert_eq!(seen.into_inner(), 50 * MIB);

    let disk = File::options().write(true).open(ganesha.path("disk"))?;
    disk.write_all_at(b"!", 33 * MIB + 5)?;
    let different = compare(&source, 50 * MIB, &spec, nothing(), false, &|_| ()).await?;
    assert_eq!((different.first_difference_offset, different.blake3.as_str()), (Some(33 * MIB + 5), ""));
    // What is known is not read, and makes the same evidence.
    let mut known: Vec<_> = hashes.into_iter().map(Some).collect();
    known[2] = None;
    let rest = compare(&source, 50 * MIB, &spec, known, false, &|_| ()).await?;
    assert_eq!((rest.blake3, rest.compared_extents), (equal.blake3, 1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn zeroes_over_old_bytes_are_written_over_nfs() -> Result<()> {
    let ganesha = Ganesha::start()?;
    let spec = ganesha.disk("disk", 8 * MIB)?;
    std::fs::write(ganesha.path("disk"), vec![7; 8 << 20])?;
    let relay = Relay::start(64, 30_000).await?;
    let source = relay.directory().join("source.img");
    let file = File::create(&source)?;
    file.set_len(8 * MIB)?;
    file.write_all_at(&noise(2, MIB as usize), 2 * MIB)?;
    relay.client.open("vda", 8 * MIB, &spec, false).await?;
    run(Command::new("nbdcopy").arg("--flush").arg(&source).arg(relay.uri("vda+durable")))?;
    assert_eq!(compare(&source, 8 * MIB, &spec, vec![None; 2], false, &|_| ()).await?.first_difference_offset, None);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_not_as_expected_is_refused_by_name() -> Result<()> {
    let ganesha = Ganesha::start()?;
    let TargetSpec::Nfs(file) = ganesha.disk("disk", 8 * MIB)? else { panic!("not on NFS") };
    let relay = Relay::start(64, 3000).await?;
    let refusal = async |change: &dyn Fn(&mut drover::api::block_copy::NfsFile)| {
        let mut file = file.clone();
        change(&mut file);
        relay.client.open("vda", 8 * MIB, &TargetSpec::Nfs(file), true).await.unwrap_err().to_string()
    };
    let missing = refusal(&|file| file.path = ".acropolis/vmdisk/other".into()).await;
    assert!(
        missing.contains("vmdisk/other on NFS export 127.0.0.1:") && missing.contains("NFS3ERR_NOENT"),
        "{missing}"
    );
    assert!(!ganesha.path("other").exists(), "it was created");
    let size = refusal(&|file| file.size_bytes = 9 * MIB).await;
    assert!(size.contains("its size is 8388608 bytes, expected 9437184"), "{size}");
    let directory = refusal(&|file| file.path = ".acropolis/vmdisk".into()).await;
    assert!(directory.contains("not a regular file"), "{directory}");
    let export = refusal(&|file| file.export = "/nowhere".into()).await;
    assert!(export.contains("/nowhere"), "{export}");
    let port = refusal(&|file| file.server.mount_port = Some(1)).await;
    assert!(port.contains("Connection refused"), "{port}");
    Ok(())
}
