//! One migration: a relay, a driver, the order and the report between them and the test, and the targets.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use drover::api::block_copy::{BlockCopySpec, BlockCopyStatus, Claim, DiskCopy, HowOff, MirrorState, NfsFile, Want};
use drover::api::libvirt_host::CopyLimits;
use drover::api::shutdown::ShutdownPolicy;
use drover::host::relay::{ExportStatus, RelayClient, RelayStatus};
use drover_lab::guest::read_records;
use drover_lab::libvirt::Domain;
use drover_lab::network::Network;
use drover_lab::process::Process;

use crate::host::{Host, LIMIT, MIB, run};

/// What a target has more than its source.
const MORE: u64 = 1 << 30;
/// The stated bound on how long a guest's write may be held up.
const MAX_GUEST_STALL_MILLIS: u32 = 3000;

pub struct Migration {
    pub order: BlockCopySpec,
    pub relay: Process,
    pub driver: Process,
    pub targets: Vec<PathBuf>,
    /// More variables for the drivers that are started from now on.
    pub environment: Vec<(&'static str, String)>,
    dir: PathBuf,
    network: Option<Arc<Network>>,
}

impl Migration {
    /// Relay and driver for the machine `hostname`, with an empty target for each disk. The first order is to inspect it.
    pub fn start(host: &Host, uid: &str, hostname: &str, disks: &[u64]) -> Self {
        let dir = host.dir().join("run").join(uid);
        std::fs::create_dir_all(dir.join("fail-points")).unwrap();
        let mut targets = Vec::new();
        let copies = disks.iter().zip('a'..).map(|(size_bytes, letter)| {
            let (file, path) = host.target(&format!("{uid}-{letter}"));
            File::create(&file).unwrap().set_len(size_bytes + MORE).unwrap();
            targets.push(file);
            let target = NfsFile {
                server: host.nfs_address(),
                export: format!("/{}", host.storage.container()),
                path,
                size_bytes: size_bytes + MORE,
            };
            DiskCopy { device: format!("vd{letter}"), size_bytes: *size_bytes, target }
        });
        let order = BlockCopySpec {
            claim: Claim {
                namespace: "shop".into(),
                name: format!("migration-{uid}"),
                uid: uid.into(),
                installation: "lab".into(),
            },
            epoch: 1,
            hostname: hostname.into(),
            domain_uuid: None,
            libvirt_uri: host.libvirt.uri(),
            run_directory: host.dir().join("run").display().to_string(),
            want: Want::Inspect,
            disks: copies.collect(),
            canary: None,
            target_version: None,
            limits: CopyLimits {
                max_guest_stall_millis: MAX_GUEST_STALL_MILLIS,
                relay_memory_mib: 64,
                ..CopyLimits::default()
            },
            shutdown: ShutdownPolicy { timeout_seconds: 60, ..ShutdownPolicy::default() },
            repair_within_seconds: 0,
            power_off_source: false,
        };
        let network = host.network.clone();
        let (relay, driver) = (start_relay(&dir, network.as_deref()), start_driver(&dir, network.as_deref(), &[]));
        let migration = Self { order, relay, driver, targets, environment: vec![], dir, network };
        migration.write_order();
        migration
    }

    /// The same for a guest that is there, after it was inspected.
    pub fn of(host: &Host, guest: &Domain) -> Self {
        let sizes: Vec<u64> = guest.disk_paths().iter().map(|path| std::fs::metadata(path).unwrap().len()).collect();
        let mut migration = Self::start(host, &format!("uid-{}", guest.name), &guest.name, &sizes);
        let status = migration.wait("inspected", |status| status.reached == Some(Want::Inspect));
        let machine = status.machine.clone().unwrap();
        assert_eq!(machine.uuid, host.uuid(guest));
        let seen: Vec<u64> = machine.disks.iter().map(|disk| disk.size_bytes).collect();
        assert_eq!(seen, sizes);
        assert_eq!(status.problem, None);
        migration.order.domain_uuid = Some(machine.uuid);
        migration
    }

    fn write_order(&self) {
        let draft = self.dir.join("order.draft");
        std::fs::write(&draft, serde_json::to_vec(&self.order).unwrap()).unwrap();
        std::fs::rename(draft, self.dir.join("order.json")).unwrap();
    }

    /// Gives the next order.
    pub fn want(&mut self, want: Want) {
        self.order.epoch += 1;
        self.order_again(want);
    }

    /// Gives an order without a new number.
    pub fn order_again(&mut self, want: Want) {
        self.order.want = want;
        self.write_order();
    }

    pub fn status(&self) -> BlockCopyStatus {
        let bytes = std::fs::read(self.dir.join("status.json")).unwrap_or_else(|_| b"{}".into());
        serde_json::from_slice(&bytes).unwrap()
    }

    /// Waits until the report to the newest order is as wanted.
    pub fn wait(&self, what: &str, holds: impl Fn(&BlockCopyStatus) -> bool) -> BlockCopyStatus {
        self.wait_any(what, |status| status.epoch == Some(self.order.epoch) && holds(status))
    }

    /// Waits until the report, to whatever order, is as wanted.
    pub fn wait_any(&self, what: &str, holds: impl Fn(&BlockCopyStatus) -> bool) -> BlockCopyStatus {
        let start = Instant::now();
        loop {
            let status = self.status();
            if holds(&status) {
                return status;
            }
            assert!(
                start.elapsed() < LIMIT,
                "not {what} after {LIMIT:?}: {status:#?}\ndriver:\n{}\nrelay:\n{}",
                self.driver.tail(),
                self.relay.tail()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the newest order meets the problem `reason`; returns its message.
    pub fn problem(&self, reason: &str) -> String {
        let is = |status: &BlockCopyStatus| status.problem.as_ref().is_some_and(|problem| problem.reason == reason);
        // An older order's refusal stands in the report to the newer one.
        self.wait_any(reason, |status| status.epoch >= Some(self.order.epoch) && is(status)).problem.unwrap().message
    }

    pub fn wait_in_sync(&self) -> BlockCopyStatus {
        self.wait("in sync", |status| status.in_sync.is_yes() && status.reached == Some(Want::Mirror))
    }

    /// Waits until the first pass is seen under way, with something of it done and most of it not.
    pub fn wait_mid_copy(&self) {
        self.wait("copying", |status| {
            status.disks.first().is_some_and(|disk| {
                disk.state == MirrorState::Copying
                    && disk.copied_bytes > 2 * MIB
                    && disk.copied_bytes < disk.total_bytes / 2
            })
        });
    }

    /// Gives an order and waits until it is carried out.
    pub fn reach(&mut self, want: Want) -> BlockCopyStatus {
        self.want(want);
        self.wait("reached", |status| status.reached == Some(want))
    }

    /// Waits until the last order is carried out. After `Retire` the driver ends by itself; after `Release` another order may follow.
    pub fn finish(&mut self) {
        let want = self.order.want;
        if want != Want::Retire {
            self.wait("carried out", |status| status.reached == Some(want));
            return;
        }
        self.driver.wait_until("the end", LIMIT, || false).unwrap_err();
        let status = self.driver.ended().unwrap_or_else(|| panic!("the driver runs on:\n{}", self.driver.tail()));
        assert!(status.success(), "{status}: {}", self.driver.tail());
    }

    pub fn restart_driver(&mut self) {
        self.driver.kill();
        self.driver = start_driver(&self.dir, self.network.as_deref(), &self.environment);
    }

    pub fn restart_relay(&mut self) {
        self.relay.kill();
        self.relay = start_relay(&self.dir, self.network.as_deref());
    }

    /// Where it is said at which points the driver is to die.
    pub fn fail_points(&self) -> PathBuf {
        self.dir.join("fail-points")
    }

    /// What the claim file of `domain` holds.
    pub fn claim(&self, host: &Host, domain: &Domain) -> Option<serde_json::Value> {
        let path = host.dir().join("run/claims").join(format!("{}.json", host.uuid(domain)));
        path.exists().then(|| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
    }

    /// What the relay says of itself.
    pub fn relay_status(&self) -> RelayStatus {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(RelayClient::new(&self.dir).status()).unwrap()
    }

    /// What the relay says of the first disk.
    pub fn export(&self) -> ExportStatus {
        self.relay_status().exports.into_iter().next().unwrap()
    }

    /// Waits until at least `bytes` of the first disk are verified.
    pub fn wait_verified(&self, bytes: u64) -> BlockCopyStatus {
        self.wait("verified", |status| status.disks.first().is_some_and(|disk| disk.verified_bytes >= bytes))
    }

    /// Sets the pace of verifying without a new order.
    pub fn verify_at(&mut self, mib_per_second: u32) {
        self.order.limits.verify_mib_per_second = mib_per_second;
        self.write_order();
    }

    /// The unbroken run of the mirror, as the driver remembers it.
    pub fn attempt(&self, host: &Host, domain: &Domain) -> serde_json::Value {
        self.claim(host, domain).unwrap()["attempt"].clone()
    }

    /// Shuts the guest down and sees every proof, and that each is true.
    pub fn quiesce(&mut self, host: &Host, guest: &Domain) -> BlockCopyStatus {
        let status = self.reach(Want::Quiesce);
        self.assert_moved(host, guest, &status);
        status
    }

    pub fn assert_moved(&mut self, host: &Host, guest: &Domain, status: &BlockCopyStatus) {
        assert_eq!(status.quiesce.as_ref().unwrap().how, Some(HowOff::Clean));
        self.assert_equal(host, guest, status);
    }

    /// A cutover whose mirror was spoilt: either every byte is proven to be on the target, and still is after `later`, or the order has
    /// failed and the source is given back. In no case is anything lost.
    pub fn proven_or_given_back(&mut self, host: &Host, guest: &Domain, later: impl FnOnce()) {
        let last = guest.console().last_ack().unwrap();
        let status = self.wait("proven, or given up", |status| {
            let failed = status.problem.as_ref().is_some_and(|problem| problem.reason == "NotInSync");
            status.reached == Some(Want::Quiesce) || failed
        });
        if status.reached == Some(Want::Quiesce) {
            later();
            return self.assert_equal(host, guest, &status);
        }
        later();
        assert_eq!(self.status().reached, None);
        self.want(Want::Release);
        self.finish();
        assert_eq!((host.mark(guest), self.claim(host, guest)), (None, None));
        assert!(guest.autostart().unwrap());
        guest.wait_for_ack(last + 5, LIMIT).unwrap();
        let verified = guest.console().verified()[&0];
        assert!(verified.upto >= last && verified.bad == 0, "{verified:?}, {last} were acknowledged");
    }

    /// However it went off: proven off, and every byte is on the target.
    pub fn assert_equal(&mut self, host: &Host, guest: &Domain, status: &BlockCopyStatus) {
        let proofs = status.quiesce.clone().unwrap();
        let times = [
            proofs.marked_at,
            proofs.shutdown_requested_at,
            proofs.off_by_libvirt_at,
            proofs.off_by_host_at,
            proofs.drained_at.or(proofs.repair.as_ref().map(|repair| repair.begun_at.clone())),
            proofs.writers_gone_at,
            proofs.equal_at,
        ];
        let times = times.map(|time| time.unwrap().0);
        assert!(times.is_sorted(), "{times:?}");
        assert_eq!(status.problem, None);
        assert_eq!(guest.state().unwrap(), "shut off");
        assert!(!guest.autostart().unwrap());
        assert_eq!(host.mark(guest), Some(("cutover".into(), self.order.epoch)));
        // One that was started anew after the power-off has nothing to write.
        assert!(self.relay.ended().is_some() || self.relay_status().exports.is_empty(), "a writer lives");
        let last = guest.console().last_ack().unwrap();
        for (index, (source, target)) in guest.disk_paths().iter().zip(&self.targets).enumerate() {
            let size_bytes = self.order.disks[index].size_bytes;
            run(Command::new("cmp").args(["-n", &size_bytes.to_string()]).arg(source).arg(target));
            // Nothing was written past the source's size.
            let beyond = format!("{size_bytes}:0");
            run(Command::new("cmp").args(["-i", &beyond, "-n", "16MiB"]).arg(target).arg("/dev/zero"));
            assert_eq!(proofs.blake3[index], evidence(source));
            let records = read_records(target, guest.load).unwrap();
            assert!(records.upto >= last && records.bad == 0, "{records:?}, {last} were acknowledged");
        }
    }
}

/// blake3 over the blake3 hashes of the extents of 4 MiB, as the report has it.
fn evidence(source: &std::path::Path) -> String {
    let content = std::fs::read(source).unwrap();
    let hashes: Vec<[u8; 32]> = content.chunks(4 << 20).map(|extent| *blake3::hash(extent).as_bytes()).collect();
    blake3::hash(&hashes.concat()).to_hex().to_string()
}

/// The longest that the guest was held up is within the stated bound.
pub fn assert_not_held_up(guest: &Domain, since: u64) {
    let gap = guest.console().max_gap_millis_since(since);
    assert!(gap < u64::from(MAX_GUEST_STALL_MILLIS), "a write was held up for {gap} ms");
}

fn start_relay(dir: &std::path::Path, network: Option<&Network>) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_drover"));
    command.args(["host", "relay", "--memory-mib=64", "--run-directory"]).arg(dir);
    command.arg(format!("--max-guest-stall-millis={MAX_GUEST_STALL_MILLIS}"));
    spawn("relay", command, dir, network)
}

fn start_driver(dir: &std::path::Path, network: Option<&Network>, more: &[(&str, String)]) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_drover"));
    command.args(["host", "driver", "--order"]).arg(dir.join("order.json"));
    command.arg("--status").arg(dir.join("status.json")).arg("--relay-directory").arg(dir);
    command.env("DROVER_FAIL_POINTS", dir.join("fail-points")).envs(more.iter().map(|(name, value)| (name, value)));
    spawn("driver", command, dir, network)
}

fn spawn(name: &str, mut command: Command, dir: &std::path::Path, network: Option<&Network>) -> Process {
    if let Some(network) = network {
        command = network.on_hypervisor(command);
    }
    Process::spawn(name, command, &dir.join(format!("{name}.log"))).unwrap()
}
