//! What the test guest does: check the records on its disks, then write new ones for ever and say each that is durable on all of them.
//!
//! `writer RATE PAYLOAD_BYTES RING STRIDE DIRECTORY…`: RATE in records per second, 0 = as fast as it can; one directory per disk.
//! Console lines: `VERIFIED disk=0 upto=41 bad=0` once per disk, then `ACK 42 5310` (number, milliseconds of the guest's clock).

mod record;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |index: usize| arguments[index].parse::<u64>().expect("a number");
    let rate = number(1);
    let ring = record::Ring { payload_bytes: number(2) as usize, slots: number(3), stride: number(4) };
    // A cut between the disks leaves them one record apart: go on with the first that one of them lacks.
    let mut newest = u64::MAX;
    let mut files: Vec<File> = Vec::new();
    for (disk, directory) in arguments[5..].iter().enumerate() {
        let path = format!("{directory}/records");
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path).expect("open the records");
        let found = ring.check(|offset, slot| file.read_exact_at(slot, offset).is_ok());
        say(&format!("VERIFIED disk={disk} upto={} bad={}", found.upto, found.bad));
        newest = newest.min(found.upto);
        file.set_len(ring.slots * ring.slot_bytes() as u64).expect("size the records");
        file.sync_all().expect("sync the records");
        files.push(file);
    }
    let start = Instant::now();
    for turn in 0.. {
        newest += 1;
        let content = record::encode(newest, ring);
        for file in &files {
            file.write_all_at(&content, ring.offset(newest)).expect("write a record");
            file.sync_data().expect("sync a record");
        }
        say(&format!("ACK {newest} {}", uptime_millis()));
        if rate > 0 {
            let due = Duration::from_millis((turn + 1) * 1000 / rate);
            std::thread::sleep(due.saturating_sub(start.elapsed()).min(Duration::from_millis(1000 / rate)));
        }
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(format!("{line}\n").as_bytes());
    let _ = out.flush();
}

/// The guest's own clock: it shows how long a write was held up, whatever the host was doing.
fn uptime_millis() -> u64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds: f64 = text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
    (seconds * 1000.0) as u64
}
