//! `make bench-naive`: the same kind of guest is moved by a plain block copy and a shutdown, and by Drover. What is lost?
//!
//! Both write to the same disk of this computer through the same throttle. It is fast while the disk is copied, and slow from the moment when
//! the copy is in sync: what happens to a storage that others migrate to as well. Drover writes by NFS. The plain copy cannot do that here
//! (there is no NFS mount without a kernel's client, and libvirt lets QEMU's own client name no port), so it writes to an NBD server over
//! that file, which costs it less than NFS would.

use std::path::Path;
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
const DISK: u64 = 128 * MIB;
const FAST: u64 = 64 * MIB;
const LIMIT: Duration = Duration::from_secs(600);
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../benches/naive/naive.sh");

/// Moves one guest by a plain block copy and another by Drover, and counts what is lost.
#[derive(Parser)]
struct Args {
    /// What the storage takes from the moment when the copy is in sync, in MiB/s.
    #[arg(long, default_value_t = 1)]
    slow_mib_s: u64,
    /// How often each is done.
    #[arg(long, default_value_t = 2)]
    runs: u32,
}

/// What came of one move.
struct Moved {
    acknowledged: u64,
    found: Records,
    /// From the request to shut down until the target's guest writes.
    outage: Duration,
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
        "A guest writes records of 60 kB with fsync as fast as it can. Its disk of 128 MiB is copied at up to {} MiB/s;",
        FAST / MIB
    );
    println!(
        "in sync, the storage slows to {} MiB/s; 10 s later the guest is shut down and its target booted.\n",
        args.slow_mib_s
    );
    println!(
        "  {:<12}{:>14}{:>10}{:>10}{:>10}{:>10}",
        "procedure", "acknowledged", "found", "damaged", "lost", "outage"
    );
    let mut lost_by_drover = 0;
    for run in 1..=args.runs {
        row("block copy", &by_block_copy(&lab, &format!("naive{run:02}"), slow).await?);
        let moved = by_drover(&lab, &format!("drover{run:02}"), slow).await?;
        row("Drover", &moved);
        lost_by_drover += moved.lost();
    }
    ensure!(lost_by_drover == 0, "Drover lost {lost_by_drover} records");
    Ok(())
}

fn row(procedure: &str, moved: &Moved) {
    let Moved { acknowledged, found, outage } = moved;
    let (outage, lost) = (format!("{:.1} s", outage.as_secs_f64()), moved.lost());
    println!("  {procedure:<12}{acknowledged:>14}{:>10}{:>10}{lost:>10}{outage:>10}", found.upto, found.bad);
}

impl Moved {
    fn lost(&self) -> u64 {
        self.acknowledged.saturating_sub(self.found.upto) + self.found.bad
    }
}

fn guest(lab: &Lab, name: &str) -> Result<Domain> {
    let load = Load { rate: 0, payload_bytes: 60_000, ring: 1024 };
    lab.hypervisor.set_load(name, load);
    let spec = GuestSpec { name: name.into(), disks: vec![DISK], load, ..GuestSpec::default() };
    let domain = lab.libvirt.define(&spec)?;
    domain.start_and_write(50)?;
    Ok(domain)
}

async fn by_block_copy(lab: &Lab, name: &str, slow: u64) -> Result<Moved> {
    let source = guest(lab, name)?;
    let target = lab.nfs.root().join(name);
    std::fs::File::create(&target)?.set_len(DISK)?;
    let port = free_port()?;
    let mut server = Command::new("qemu-nbd");
    server
        .args(["-f", "raw", "-b", "127.0.0.1", "--cache=none", "--discard=unmap", "-p", &port.to_string()])
        .arg(&target);
    let mut server = Process::spawn("qemu-nbd", server, &lab.dir().join("qemu-nbd.log"))?;
    let log = format!("/proc/{}/net/tcp", server.pid());
    let listens = format!("0100007F:{port:04X} 00000000:0000 0A");
    server.wait_until("a port", Duration::from_secs(10), || {
        std::fs::read_to_string(&log).is_ok_and(|t| t.contains(&listens))
    })?;
    let line = Throttle::start(port, FAST)?;
    let destination = lab.dir().join(format!("{name}.xml"));
    std::fs::write(&destination, destination_xml(line.port()))?;
    script(&["mirror", &lab.libvirt.uri(), name, &destination.display().to_string()])?;
    line.set_rate(slow);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let asked = Instant::now();
    script(&["cutover", &lab.libvirt.uri(), name])?;
    server.kill();
    let shape = VmShape {
        uuid: name.into(),
        name: name.into(),
        vcpus: 1,
        memory_bytes: 160 * MIB,
        disks: vec![target],
        macs: Vec::new(),
    };
    lab.hypervisor.power_on(&shape)?;
    let found = booted(lab, name).await?;
    let moved = Moved { acknowledged: acknowledged(&source)?, found, outage: asked.elapsed() };
    lab.hypervisor.power_off(name)?;
    Ok(moved)
}

async fn by_drover(lab: &Lab, name: &str, slow: u64) -> Result<Moved> {
    let source = guest(lab, name)?;
    lab.migrate(name).await?;
    lab.wait_reason(name, "Approval", LIMIT).await?;
    let line = lab.throttle.as_ref().context("the lab has no throttle")?;
    line.set_rate(slow);
    tokio::time::sleep(Duration::from_secs(10)).await;
    lab.approve(name).await?;
    lab.wait(name, "shutting down", LIMIT, |migration| {
        let cutover = migration.status.as_ref().and_then(|status| status.cutover.as_ref());
        cutover.is_some_and(|cutover| cutover.shutdown_requested_at.is_some())
    })
    .await?;
    let asked = Instant::now();
    lab.wait_phase(name, "Migrated", LIMIT).await?;
    let uuid = lab.prism.vm_by_name(name).context("Prism has no such VM")?.uuid;
    let found = booted(lab, &uuid).await?;
    line.set_rate(FAST);
    let moved = Moved { acknowledged: acknowledged(&source)?, found, outage: asked.elapsed() };
    lab.delete(name).await?;
    lab.hypervisor.power_off(&uuid)?;
    Ok(moved)
}

fn acknowledged(source: &Domain) -> Result<u64> {
    source.console().last_ack().context("the source acknowledged nothing")
}

/// What the target's guest found when it booted.
async fn booted(lab: &Lab, uuid: &str) -> Result<Records> {
    let (console, start) = (lab.hypervisor.console(uuid), Instant::now());
    while console.last_ack().is_none() {
        ensure!(start.elapsed() < Duration::from_secs(120), "the target's guest does not come up:\n{}", console.text());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    console.verified().remove(&0).context("the target's guest did not look at its disk")
}

fn script(arguments: &[&str]) -> Result<()> {
    ensure!(Path::new(SCRIPT).is_file(), "{SCRIPT} is not there");
    let output = Command::new(SCRIPT).args(arguments).output().context("run the naive procedure")?;
    ensure!(output.status.success(), "naive.sh {}: {}", arguments[0], String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn destination_xml(port: u16) -> String {
    format!(
        "<disk type='network' device='disk'><driver name='qemu' type='raw' cache='none'/>\
         <source protocol='nbd' name=''><host name='127.0.0.1' port='{port}'/></source><target dev='vda' bus='virtio'/></disk>"
    )
}
