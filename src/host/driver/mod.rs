//! The driver: observe, decide, record, act, over and over, for one migration.
//!
//! What to do is decided by [`crate::flow::copy`], from what [`observe`] saw; it is recorded in report and claim file before [`act`] does
//! it. The driver may be killed at any line: the mirror lives in QEMU and the relay, and the next driver goes on from what it finds.

mod act;
mod canary;
pub(super) mod claim;
mod compare;
mod guest_command;
mod observe;
mod order;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::api::BlockCopyStatus;
use crate::api::block_copy::Want;
use crate::api::common::Time;
use crate::edge::fail_point;
use crate::edge::libvirt::Libvirt;
use crate::flow::copy::{Decision, Effect, Fact, Found, MAX_DECISION_AGE_SECONDS, MemoryChange, Seen, decide};
use crate::host::relay::{NBD_SOCKET, RelayClient};
use order::{Files, Kubernetes, Order, Orders};

/// Command line of the driver.
#[derive(Clone, Debug, clap::Args)]
pub struct DriverArgs {
    /// File with the order (a BlockCopySpec as JSON), read again in each turn.
    #[arg(long, requires = "status", conflicts_with_all = ["namespace", "block_copy"])]
    pub order: Option<PathBuf>,
    /// File for the report (a BlockCopyStatus as JSON).
    #[arg(long, requires = "order")]
    pub status: Option<PathBuf>,
    /// Namespace of the BlockCopy.
    #[arg(long, requires = "block_copy", required_unless_present = "order")]
    pub namespace: Option<String>,
    /// Name of the BlockCopy.
    #[arg(long, requires = "namespace")]
    pub block_copy: Option<String>,
    /// The relay's own directory, as given to `drover host relay`. Absent: the order's run directory.
    #[arg(long)]
    pub relay_directory: Option<PathBuf>,
}

/// Why the driver cannot even begin. Everything later is a problem in the report.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the driver's orders cannot be reached")]
    Orders(#[from] order::Error),
    #[error("neither order files nor a BlockCopy were named")]
    NoOrders,
}

/// The report is written at least this often while the driver runs (the contract allows 10 s).
const REPORT_EVERY: Duration = Duration::from_secs(3);
/// Most time that the source of orders may take.
const ORDERS_DEADLINE: Duration = Duration::from_secs(10);
const MAX_DECISION_AGE: Duration = Duration::from_secs(MAX_DECISION_AGE_SECONDS);
/// Pause while there is no order.
const WITHOUT_ORDER: Duration = Duration::from_secs(1);

/// Serves one migration until its order `Retire` is carried out, or its pod is removed.
pub async fn run(args: DriverArgs) -> Result<(), Error> {
    let mut orders: Box<dyn Orders> = match args.clone() {
        DriverArgs { order: Some(order), status: Some(status), .. } => Box::new(Files { order, status }),
        DriverArgs { namespace: Some(namespace), block_copy: Some(name), .. } => {
            Box::new(Kubernetes::connect(&namespace, &name).await?)
        }
        _ => return Err(Error::NoOrders),
    };
    let first = loop {
        match read(orders.as_mut()).await {
            Ok(order) => break order,
            Err(why) => tracing::warn!(why, "no order yet"),
        }
        tokio::time::sleep(WITHOUT_ORDER).await;
    };
    let mut driver = Driver::new(&args, &first);
    // Held until the process ends.
    let _only_driver = loop {
        match driver.claims.lock(&first.spec.claim.uid) {
            Ok(lock) => break lock,
            Err(err) => tracing::warn!(why = chain(&err), "waiting"),
        }
        tokio::time::sleep(WITHOUT_ORDER).await;
    };
    let mut order = first;
    loop {
        let fresh = match read(orders.as_mut()).await {
            Ok(read) => {
                order = read;
                true
            }
            Err(why) => {
                tracing::warn!(why, "the order could not be read; only the pace is kept");
                false
            }
        };
        let (wake, finished) = driver.turn(orders.as_mut(), &order, fresh).await;
        if finished {
            return Ok(());
        }
        tokio::time::sleep(wake).await;
    }
}

async fn read(orders: &mut dyn Orders) -> Result<Order, String> {
    match tokio::time::timeout(ORDERS_DEADLINE, orders.read()).await {
        Ok(order) => order.map_err(|err| chain(&err)),
        Err(_) => Err(format!("no answer within {} s", ORDERS_DEADLINE.as_secs())),
    }
}

/// What a driver keeps from turn to turn; all of it may be lost.
struct Driver {
    libvirt: Arc<Libvirt>,
    relay: RelayClient,
    relay_directory: PathBuf,
    claims: claim::Claims,
    verifications: compare::Verifications,
    comparisons: compare::Comparisons,
    canaries: canary::Canaries,
    /// Version of the target VM that the comparisons are about.
    compared_version: Option<String>,
    command: guest_command::Running,
    holders: Option<observe::HoldersThen>,
    /// What went wrong in the last turn's effects.
    trouble: Option<String>,
    reported_at: Option<Instant>,
    clock: Clock,
}

/// The time by which is decided: what the host's clock said when it was read, and what has passed since.
struct Clock {
    said: Timestamp,
    read: Instant,
}

impl Clock {
    fn read() -> Self {
        Self { said: Timestamp::now(), read: Instant::now() }
    }

    /// While a guest is being shut down, what counts is the time that it had, and not what somebody sets the clock to.
    fn now(&mut self, steady: bool) -> Time {
        if !steady {
            *self = Self::read();
        }
        let passed = jiff::SignedDuration::try_from(self.read.elapsed()).unwrap_or(jiff::SignedDuration::MAX);
        Time(self.said.saturating_add(passed).unwrap_or(Timestamp::MAX))
    }
}

impl Driver {
    fn new(args: &DriverArgs, order: &Order) -> Self {
        let run_directory = PathBuf::from(&order.spec.run_directory);
        let relay_directory = args.relay_directory.clone().unwrap_or_else(|| run_directory.clone());
        Self {
            libvirt: Libvirt::new(&order.spec.libvirt_uri),
            relay: RelayClient::new(&relay_directory),
            relay_directory,
            claims: claim::Claims::new(&run_directory),
            verifications: compare::Verifications::default(),
            comparisons: compare::Comparisons::default(),
            canaries: canary::Canaries::default(),
            compared_version: None,
            command: guest_command::Running::default(),
            holders: None,
            trouble: None,
            reported_at: None,
            clock: Clock::read(),
        }
    }

    fn nbd_socket(&self) -> PathBuf {
        self.relay_directory.join(NBD_SOCKET)
    }

    /// One turn. `fresh`: the order is as it is now; if not, nothing is done that would have to be recorded.
    /// Returns how long to wait, and whether the order was carried out to its end.
    async fn turn(&mut self, orders: &mut dyn Orders, order: &Order, fresh: bool) -> (Duration, bool) {
        if order.spec.want != Want::Quiesce {
            self.comparisons.clear();
            self.command.clear();
        }
        if self.compared_version != order.spec.target_version {
            self.comparisons.clear();
            self.compared_version.clone_from(&order.spec.target_version);
        }
        if !matches!(order.spec.want, Want::Mirror | Want::Quiesce) {
            self.verifications.clear();
        }
        let began = Instant::now();
        let seen = observe::observe(self, order).await;
        let now = self.clock.now(order.spec.want == Want::Quiesce);
        let mut decision = decide(&order.spec, &order.status, &seen, &now);
        decision.status.observed_generation = order.generation;
        let proven = decision.status.quiesce.as_ref().is_some_and(|quiesce| quiesce.writers_gone_at.is_some());
        if !proven {
            self.comparisons.clear();
        }
        let uuid = uuid(&seen, order);
        let recorded = fresh && self.record(orders, order, &decision, uuid.as_deref()).await;
        let Decision { status, mut effects, wake, .. } = decision;
        // A process that was stopped and goes on must not do what was right a long time ago.
        if !recorded || began.elapsed() > MAX_DECISION_AGE {
            effects.retain(Effect::needs_no_record);
        }
        self.verifications.pause_all_but(&effects);
        if let Some(uuid) = uuid {
            self.trouble = act::act(self, &uuid, effects).await;
        }
        // After `Release` another order may follow: a new attempt.
        let finished = recorded && order.spec.want == Want::Retire && status.reached == Some(Want::Retire);
        (wake, finished)
    }

    /// Writes down what is about to be done. False: it could not be, so it must not be done.
    async fn record(
        &mut self,
        orders: &mut dyn Orders,
        order: &Order,
        decision: &Decision,
        uuid: Option<&str>,
    ) -> bool {
        fail_point::before("claim");
        let kept = match (&decision.memory, uuid) {
            (MemoryChange::Keep, _) => Ok(()),
            (MemoryChange::Create(memory), Some(uuid)) => self.claims.create(uuid, memory),
            (MemoryChange::Write(memory), Some(uuid)) => self.claims.write(uuid, memory),
            (MemoryChange::Create(_) | MemoryChange::Write(_), None) => Ok(()),
        };
        fail_point::after("claim");
        if let Err(err) = kept {
            tracing::warn!(why = chain(&err), "the claim was not written");
            self.trouble = Some(chain(&err));
            return false;
        }
        let due = self.reported_at.is_none_or(|at| at.elapsed() >= REPORT_EVERY);
        let acts = decision.effects.iter().any(|effect| !effect.needs_no_record());
        if !due && !acts && without_progress(&order.status) == without_progress(&decision.status) {
            return true;
        }
        fail_point::before("report");
        match tokio::time::timeout(ORDERS_DEADLINE, orders.record(&decision.status)).await {
            Ok(Ok(())) => {
                fail_point::after("report");
                self.reported_at = Some(Instant::now());
                true
            }
            Ok(Err(err)) => {
                tracing::warn!(why = chain(&err), "the report was not written");
                false
            }
            Err(_) => {
                tracing::warn!("the report was not written in time");
                false
            }
        }
    }
}

/// The report without the figures that change all the time: they alone are no reason to write it at once.
fn without_progress(status: &BlockCopyStatus) -> BlockCopyStatus {
    let mut status = status.clone();
    status.seen_at = None;
    for disk in &mut status.disks {
        (disk.copied_bytes, disk.total_bytes, disk.rate_mib_s) = (0, 0, 0);
        (disk.backlog_bytes, disk.verified_bytes) = (0, 0);
    }
    status
}

/// The domain that effects are meant for: the one that was found, or that the order names by uuid.
fn uuid(seen: &Seen, order: &Order) -> Option<String> {
    match &seen.found {
        Fact::Known(Found::One(domain)) => Some(domain.uuid.clone()),
        Fact::Known(Found::None { .. } | Found::Several { .. }) | Fact::Unknown(_) => {
            order.spec.domain_uuid.clone().or_else(|| order.status.machine.as_ref().map(|machine| machine.uuid.clone()))
        }
    }
}

/// An error with everything that caused it, in one line.
pub(super) fn chain(err: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(err.source(), |cause| cause.source());
    causes.fold(err.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}
