//! `make bench-naive`: the same guest is moved by a plain block copy and a shutdown, and by Drover. What does each lose?
//!
//! The same for both, and as it is in practice: a guest with two disks that writes pages of 16 kB with fsync here and there, as a database
//! does; a storage that takes 64 MiB/s while the disks are copied and 4 MiB/s later, when it has others to serve as well; a person whose yes
//! comes 20 s after that; defaults of QEMU, libvirt and Drover. Both write through one throttle to the same disk of this computer.
//!
//! Not the same: Drover writes by NFS. QEMU cannot do that here (a mount needs the kernel's client, and libvirt lets QEMU's own name no port),
//! so the block copy writes by NBD, which costs it less. The outage holds a second or two in which the bench sets the target's disks aside, to compare them with the source's.
//!
//! Why the block copy loses: libvirt says `ready` once and never takes it back; QEMU copies 64 KiB for every page that the guest writes, and
//! keeps only a list of what is still to be copied; when the guest powers off it copies some 64 MiB more of each disk and forgets the rest.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use drover_lab::guest::{Load, Records};
use drover_lab::hypervisor::{Hypervisor, VmShape};
use drover_lab::lab::{Lab, LabOptions};
use drover_lab::libvirt::{Domain, GuestSpec};
use drover_lab::process::{self, Process, free_port};
use drover_lab::throttle::Throttle;

const MIB: u64 = 1 << 20;
const DISKS: [&str; 2] = ["vda", "vdb"];
const DISK: u64 = 320 * MIB;
const RATE: u32 = 200;
const FAST: u64 = 64 * MIB;
const YES_AFTER: Duration = Duration::from_secs(20);
const LIMIT: Duration = Duration::from_secs(600);
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../benches/naive/naive.sh");

/// Moves one guest by a plain block copy and another by Drover, and counts what is lost.
#[derive(Parser)]
struct Args {
    /// What the storage takes from the moment when the copy is in sync, in MiB/s.
    #[arg(long, default_value_t = 4)]
    slow_mib_s: u64,
    /// How often each is done.
    #[arg(long, default_value_t = 2)]
    runs: u32,
}

/// What came of one move.
struct Moved {
    /// The newest record that the guest was told is durable on both disks.
    acknowledged: u64,
    /// From the request to shut down until the target's guest has looked at its disks: some are too broken to be written to.
    outage: Duration,
    disks: Vec<MovedDisk>,
}

struct MovedDisk {
    /// What had still to be copied at the request.
    behind: u64,
    found: Records,
    differing_bytes: u64,
    whole: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = bench(&Args::parse()).await;
    process::end_all();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-naive: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn bench(args: &Args) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("bench").tempdir()?;
    let drover = std::env::current_exe()?.with_file_name("drover");
    let options = LabOptions { storage_bytes_per_s: Some(FAST), ..LabOptions::default() };
    let lab = Lab::start(dir.path(), &drover, options).await?;
    let slow = args.slow_mib_s * MIB;
    println!(
        "A guest writes {RATE} pages of 16 kB a second with fsync to each of two disks, which are copied at up to {} MiB/s; in sync,\n\
         the storage slows to {} MiB/s; {} s later the guest is shut down and its target booted.\n",
        FAST / MIB,
        args.slow_mib_s,
        YES_AFTER.as_secs()
    );
    println!(
        "  {:<12}{:<6}{:>12}{:>14}{:>8}{:>10}{:>8}{:>16}{:>13}{:>9}",
        "procedure",
        "disk",
        "behind",
        "acknowledged",
        "found",
        "damaged",
        "lost",
        "bytes differing",
        "file system",
        "outage"
    );
    let (mut naive_losses, mut drover_losses) = (0, 0);
    for run in 1..=args.runs {
        let moved = by_block_copy(&lab, &format!("naive{run:02}"), slow).await?;
        moved.print("block copy");
        naive_losses += u32::from(moved.lost_anything());
        let moved = by_drover(&lab, &format!("drover{run:02}"), slow).await?;
        moved.print("Drover");
        drover_losses += u32::from(moved.lost_anything());
    }
    println!("\nThe block copy lost data in {naive_losses} of {} runs, Drover in {drover_losses}.", args.runs);
    if naive_losses < args.runs {
        println!(
            "A run in which the block copy lost nothing shows nothing: its guest did not write faster than the storage took it."
        );
    }
    ensure!(drover_losses == 0, "Drover lost data");
    Ok(())
}

impl Moved {
    fn lost(&self, disk: &MovedDisk) -> u64 {
        self.acknowledged.saturating_sub(disk.found.upto) + disk.found.bad
    }

    fn lost_anything(&self) -> bool {
        self.disks.iter().any(|disk| self.lost(disk) > 0 || disk.differing_bytes > 0 || !disk.whole)
    }

    fn print(&self, procedure: &str) {
        for (disk, name) in self.disks.iter().zip(DISKS) {
            let MovedDisk { behind, found, differing_bytes, whole } = disk;
            let (behind, outage) = (format!("{} MiB", behind / MIB), format!("{:.1} s", self.outage.as_secs_f64()));
            println!(
                "  {procedure:<12}{name:<6}{behind:>12}{:>14}{:>8}{:>10}{:>8}{differing_bytes:>16}{:>13}{outage:>9}",
                self.acknowledged,
                found.upto,
                found.bad,
                self.lost(disk),
                if *whole { "clean" } else { "errors" }
            );
        }
    }
}

fn guest(lab: &Lab, name: &str) -> Result<Domain> {
    let load = Load { rate: RATE, payload_bytes: 16_000, ring: 12_288, stride: 7 };
    lab.hypervisor.set_load(name, load);
    lab.hypervisor.set_aside(name, &aside(lab, name));
    let spec = GuestSpec { name: name.into(), disks: vec![DISK; DISKS.len()], load, ..GuestSpec::default() };
    let domain = lab.libvirt.define(&spec)?;
    domain.start_and_write(50)?;
    Ok(domain)
}

/// Where the target's disks are put as they were before it booted.
fn aside(lab: &Lab, name: &str) -> PathBuf {
    lab.dir().join(format!("{name}-aside"))
}

async fn by_block_copy(lab: &Lab, name: &str, slow: u64) -> Result<Moved> {
    let source = guest(lab, name)?;
    let targets: Vec<PathBuf> = DISKS.iter().map(|disk| lab.nfs.root().join(format!("{name}-{disk}"))).collect();
    for target in &targets {
        File::create(target)?.set_len(DISK)?;
    }
    let port = free_port()?;
    let mut server = export(lab, &targets, port)?;
    let line = Throttle::start(port, FAST)?;
    let destinations = lab.dir().join(name);
    std::fs::create_dir(&destinations)?;
    for disk in DISKS {
        std::fs::write(destinations.join(format!("{disk}.xml")), destination_xml(disk, line.port()))?;
    }
    script(&["mirror", &lab.libvirt.uri(), name, &destinations.display().to_string()])?;
    line.set_rate(slow);
    tokio::time::sleep(YES_AFTER).await;
    let (behind, asked) = (behind(lab, name)?, Instant::now());
    script(&["cutover", &lab.libvirt.uri(), name])?;
    server.kill();
    let shape = VmShape {
        uuid: name.into(),
        name: name.into(),
        vcpus: 1,
        memory_bytes: 160 * MIB,
        disks: targets,
        macs: Vec::new(),
    };
    lab.hypervisor.power_on(&shape)?;
    booted(lab, name, &source, behind, asked).await
}

/// An NBD server with these files, each under the name of its disk.
fn export(lab: &Lab, targets: &[PathBuf], port: u16) -> Result<Process> {
    let mut server = Command::new("qemu-storage-daemon");
    server.args(["--nbd-server", &format!("addr.type=inet,addr.host=127.0.0.1,addr.port={port}")]);
    for (target, disk) in targets.iter().zip(DISKS) {
        server
            .args([
                "--blockdev",
                &format!("file,node-name={disk},cache.direct=on,discard=unmap,filename={}", target.display()),
            ])
            .args(["--export", &format!("nbd,id={disk},node-name={disk},name={disk},writable=on")]);
    }
    let mut server = Process::spawn("qemu-storage-daemon", server, &lab.dir().join("qemu-storage-daemon.log"))?;
    let opens = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
    server.wait_until("an open port", Duration::from_secs(10), opens)?;
    Ok(server)
}

fn destination_xml(disk: &str, port: u16) -> String {
    format!(
        "<disk type='network' device='disk'><driver name='qemu' type='raw' cache='none'/>\
         <source protocol='nbd' name='{disk}'><host name='127.0.0.1' port='{port}'/></source><target dev='{disk}' bus='virtio'/></disk>"
    )
}

/// What QEMU has still to copy of each disk.
fn behind(lab: &Lab, name: &str) -> Result<Vec<u64>> {
    let answer = lab.libvirt.virsh(&["qemu-monitor-command", name, r#"{"execute":"query-block-jobs"}"#])?;
    let answer: serde_json::Value = serde_json::from_str(&answer).context("read QEMU's list of jobs")?;
    let jobs = answer["return"].as_array().context("QEMU lists no jobs")?;
    let number = |job: &serde_json::Value, field: &str| job[field].as_u64().unwrap_or(0);
    let mut by_disk: BTreeMap<&str, u64> = BTreeMap::new();
    for job in jobs {
        by_disk.insert(job["device"].as_str().unwrap_or_default(), number(job, "len") - number(job, "offset"));
    }
    ensure!(by_disk.len() == DISKS.len(), "QEMU copies {} disks: {answer}", by_disk.len());
    Ok(by_disk.into_values().collect())
}

async fn by_drover(lab: &Lab, name: &str, slow: u64) -> Result<Moved> {
    let source = guest(lab, name)?;
    lab.migrate(name).await?;
    lab.wait_reason(name, "Approval", LIMIT).await?;
    let line = lab.throttle.as_ref().context("the lab has no throttle")?;
    line.set_rate(slow);
    tokio::time::sleep(YES_AFTER).await;
    lab.approve(name).await?;
    let migration = lab
        .wait(name, "shutting down", LIMIT, |migration| {
            let cutover = migration.status.as_ref().and_then(|status| status.cutover.as_ref());
            cutover.is_some_and(|cutover| cutover.shutdown_requested_at.is_some())
        })
        .await?;
    let (behind, asked) = (migration.status.context("no status")?.disks, Instant::now());
    lab.wait_phase(name, "Migrated", LIMIT).await?;
    let uuid = lab.prism.vm_by_name(name).context("Prism has no such VM")?.uuid;
    let behind = behind.iter().map(|disk| disk.backlog_bytes).collect();
    let moved = booted(lab, &uuid, &source, behind, asked).await?;
    line.set_rate(FAST);
    lab.delete(name).await?;
    Ok(moved)
}

/// What the target's guest found when it booted, and what its disks were before that; then it is powered off.
async fn booted(lab: &Lab, uuid: &str, source: &Domain, behind: Vec<u64>, asked: Instant) -> Result<Moved> {
    let (console, start) = (lab.hypervisor.console(uuid), Instant::now());
    while console.verified().len() < DISKS.len() {
        ensure!(start.elapsed() < Duration::from_secs(120), "the target's guest does not come up:\n{}", console.text());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let outage = asked.elapsed();
    lab.hypervisor.power_off(uuid)?;
    let mut disks = Vec::new();
    for (index, (behind, from)) in behind.into_iter().zip(source.disk_paths()).enumerate() {
        let found =
            *console.verified().get(&u32::try_from(index)?).context("the target's guest did not look at its disk")?;
        let to = aside(lab, &source.name).join(format!("{index}.img"));
        disks.push(MovedDisk { behind, found, differing_bytes: differing_bytes(from, &to)?, whole: is_whole(&to)? });
        std::fs::remove_file(&to)?;
    }
    let acknowledged = source.console().last_ack().context("the source acknowledged nothing")?;
    Ok(Moved { acknowledged, outage, disks })
}

/// How many bytes of the source's disk are others on the target's, which may be larger.
fn differing_bytes(source: &Path, target: &Path) -> Result<u64> {
    let open = |path: &Path| File::open(path).with_context(|| format!("open {}", path.display()));
    let (mut source, mut target) = (open(source)?, open(target)?);
    let (mut ours, mut theirs, mut differing) = (vec![0; 1 << 20], vec![0; 1 << 20], 0);
    loop {
        let length = source.read(&mut ours)?;
        if length == 0 {
            return Ok(differing);
        }
        target.read_exact(&mut theirs[..length]).context("the target's disk is smaller")?;
        differing += ours[..length].iter().zip(&theirs[..length]).filter(|(a, b)| a != b).count() as u64;
    }
}

/// Whether the file system is sound once its journal is replayed, as a guest's own check at boot says.
fn is_whole(disk: &Path) -> Result<bool> {
    let check = Command::new("e2fsck").arg("-p").arg(disk).output().context("run e2fsck")?;
    Ok(matches!(check.status.code(), Some(0 | 1)))
}

fn script(arguments: &[&str]) -> Result<()> {
    ensure!(Path::new(SCRIPT).is_file(), "{SCRIPT} is not there");
    let output = Command::new(SCRIPT).args(arguments).output().context("run the naive procedure")?;
    ensure!(output.status.success(), "naive.sh {}: {}", arguments[0], String::from_utf8_lossy(&output.stderr));
    Ok(())
}
