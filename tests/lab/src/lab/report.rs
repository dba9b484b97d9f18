//! What came of a migration: the records, and the outage by its parts.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use drover::api::VmMigration;
use drover::api::common::MicroTime;
use nix::sys::signal::Signal;

use super::Lab;
use crate::guest::Records;
use crate::libvirt::Domain;

/// Records and outage of a finished migration.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The newest record that the source's guest was told is durable.
    pub acknowledged: u64,
    /// What each disk held when the target booted.
    pub found: Vec<Records>,
    /// The outage's parts, in order.
    pub downtime: Vec<(&'static str, Duration)>,
}

impl Outcome {
    /// Acknowledged records that are not on the target, or damaged there; the worst disk counts.
    pub fn lost(&self) -> u64 {
        let lost = |records: &Records| self.acknowledged.saturating_sub(records.upto) + records.bad;
        self.found.iter().map(lost).max().unwrap_or(self.acknowledged)
    }

    /// All parts together.
    pub fn total(&self) -> Duration {
        self.downtime.iter().map(|(_, part)| *part).sum()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "  records acknowledged on the source  {}", self.acknowledged)?;
        for (disk, records) in self.found.iter().enumerate() {
            writeln!(out, "  found on the target's disk {disk}        {} (damaged: {})", records.upto, records.bad)?;
        }
        writeln!(out, "  lost                                {}", self.lost())?;
        writeln!(out, "  downtime                            {:.1} s", self.total().as_secs_f64())?;
        for (name, part) in &self.downtime {
            writeln!(out, "    {name:<34}{:.1} s", part.as_secs_f64())?;
        }
        Ok(())
    }
}

impl Lab {
    /// Waits until the target has checked its disks, and sums up.
    pub async fn outcome(&self, name: &str, source: &Domain) -> Result<Outcome> {
        let migration = self.migrations().get(name).await?;
        let uuid =
            migration.status.as_ref().and_then(|status| status.target.as_ref()).context("no target")?.ext_id.clone();
        let console = self.hypervisor.console(&uuid);
        let start = Instant::now();
        while console.verified().len() < source.disk_paths().len() || console.last_ack().is_none() {
            ensure!(
                start.elapsed() < Duration::from_secs(120),
                "the target's guest does not come up; its console:\n{}",
                console.text()
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let acknowledged = source.console().last_ack().context("the source acknowledged nothing")?;
        Ok(Outcome { acknowledged, found: console.verified().into_values().collect(), downtime: downtime(&migration) })
    }

    /// Stops the process of a host-side container without killing it.
    pub async fn stop_host_container(&self, name: &str, container: &str) -> Result<()> {
        let pod = kube::ResourceExt::name_any(&self.copy_of(name).await?);
        self.runner.kill_container(super::SYSTEM, &pod, container, Signal::SIGSTOP)
    }
}

fn downtime(migration: &VmMigration) -> Vec<(&'static str, Duration)> {
    let Some(cutover) = migration.status.as_ref().and_then(|status| status.cutover.clone()) else { return Vec::new() };
    let between = |from: &Option<MicroTime>, to: &Option<MicroTime>| match (from, to) {
        (Some(MicroTime(from)), Some(MicroTime(to))) => {
            Duration::try_from(to.duration_since(*from)).unwrap_or_default()
        }
        _ => Duration::ZERO,
    };
    let ordered_on = cutover.power_on.as_ref().map(|intent| intent.at.clone());
    vec![
        ("guest shutdown", between(&cutover.shutdown_requested_at, &cutover.source_off_at)),
        ("drain and proofs", between(&cutover.source_off_at, &ordered_on)),
        ("power-on call", between(&ordered_on, &cutover.target_on_at)),
        ("guest boot", between(&cutover.target_on_at, &cutover.reachable_at)),
    ]
}
