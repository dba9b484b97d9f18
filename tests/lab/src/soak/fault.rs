//! What breaks in a round of the soak, and when.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use drover::api::VmMigration;
use drover::api::vm_migration::VmMigrationStatus;
use serde_json::json;

use super::random::Random;
use crate::lab::Lab;

/// One thing that goes wrong, or that a person decides otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    Nothing,
    KillDriver,
    KillRelay,
    KillPod,
    KillController,
    HangStorage { seconds: u64 },
    KillLibvirt { seconds: u64 },
    PrismRefusesCalls { count: u32 },
    PrismLosesAnswers { count: u32 },
    PrismFailsTasks { count: u32 },
    PrismDelaysTasks { seconds: u64 },
    RollBack,
    WithdrawApproval,
}

/// What is drawn for a round.
#[derive(Clone, Copy, Debug)]
pub struct Blow {
    pub fault: Fault,
    pub at: At,
    /// How long after the step was reached: the steps of a cutover have parts that a status shows too late to aim at.
    pub delay: Duration,
}

/// The step at which a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum At {
    Copying,
    InSync,
    Quiesce,
    Boot,
    RollingBack,
}

const STEPS: [At; 5] = [At::Copying, At::InSync, At::Quiesce, At::Boot, At::RollingBack];

impl Blow {
    /// Draws one.
    pub fn draw(random: &mut Random) -> Self {
        let fault = Fault::draw(random);
        // Whoever rolls back already can neither roll back nor withdraw the approval.
        let steps = if matches!(fault, Fault::RollBack | Fault::WithdrawApproval) { &STEPS[..4] } else { &STEPS[..] };
        let at = random.one_of(steps);
        let longest = if matches!(at, At::Copying | At::InSync) { 2000 } else { 6000 };
        let delay = if random.once_in(3) { 0 } else { random.between(0, longest) };
        Self { fault, at, delay: Duration::from_millis(delay) }
    }

    /// Lets it happen, `delay` from now. What takes a while goes on by itself. An error means that there was nothing to break, e.g. no
    /// pod any more.
    pub async fn strike(self, lab: &Arc<Lab>, name: &str) -> Result<()> {
        let withdraws = self.fault == Fault::WithdrawApproval;
        // Early in a round there is no approval yet that could be withdrawn.
        if withdraws && lab.migrations().get(name).await?.spec.approved != Some(true) {
            lab.approve(name).await?;
        }
        tokio::time::sleep(self.delay).await;
        self.fault.strike(lab, name).await
    }
}

impl Fault {
    fn draw(random: &mut Random) -> Self {
        match random.between(0, 12) {
            0 => Self::Nothing,
            1 => Self::KillDriver,
            2 => Self::KillRelay,
            3 => Self::KillPod,
            4 => Self::KillController,
            5 => Self::HangStorage { seconds: random.between(5, 10) },
            6 => Self::KillLibvirt { seconds: random.between(0, 3) },
            7 => Self::PrismRefusesCalls { count: random.between(1, 10) as u32 },
            8 => Self::PrismLosesAnswers { count: random.between(1, 3) as u32 },
            9 => Self::PrismFailsTasks { count: random.between(1, 2) as u32 },
            10 => Self::PrismDelaysTasks { seconds: random.between(2, 8) },
            11 => Self::RollBack,
            _ => Self::WithdrawApproval,
        }
    }

    /// Its kind, for the table.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Nothing => "none",
            Self::KillDriver => "driver killed",
            Self::KillRelay => "relay killed",
            Self::KillPod => "pod killed",
            Self::KillController => "controller killed",
            Self::HangStorage { .. } => "storage hangs",
            Self::KillLibvirt { .. } => "libvirtd killed",
            Self::PrismRefusesCalls { .. } => "Prism refuses calls",
            Self::PrismLosesAnswers { .. } => "Prism loses answers",
            Self::PrismFailsTasks { .. } => "Prism's tasks fail",
            Self::PrismDelaysTasks { .. } => "Prism's tasks are slow",
            Self::RollBack => "rollback instead",
            Self::WithdrawApproval => "approval withdrawn",
        }
    }

    async fn strike(self, lab: &Arc<Lab>, name: &str) -> Result<()> {
        let switches = lab.prism.switches();
        match self {
            Self::Nothing => {}
            Self::KillDriver => lab.kill_host_container(name, "driver").await?,
            Self::KillRelay => lab.kill_host_container(name, "relay").await?,
            Self::KillPod => lab.kill_host_pod(name).await?,
            Self::KillController => lab.kill_controller()?,
            Self::HangStorage { seconds } => {
                lab.nfs.pause()?;
                later(lab, seconds, |lab| lab.nfs.resume());
            }
            Self::KillLibvirt { seconds } => {
                lab.libvirt.kill_daemon();
                later(lab, seconds, |lab| lab.libvirt.restart_daemon());
            }
            Self::PrismRefusesCalls { count } => switches.refuse_next_calls(count),
            Self::PrismLosesAnswers { count } => switches.lose_next_answers(count),
            Self::PrismFailsTasks { count } => switches.fail_next_tasks(count),
            Self::PrismDelaysTasks { seconds } => {
                switches.set_task_delay(Duration::from_secs(seconds));
                later(lab, 2 * seconds, |lab| {
                    lab.prism.switches().set_task_delay(Duration::ZERO);
                    Ok(())
                });
            }
            Self::RollBack => lab.patch(name, json!({"rollback": true})).await?,
            Self::WithdrawApproval => lab.patch(name, json!({"approved": null, "approvedDigest": null})).await?,
        }
        Ok(())
    }
}

/// Repairs what was broken, after a while; what cannot be repaired shows as a migration that is stuck.
fn later(lab: &Arc<Lab>, seconds: u64, repair: fn(&Lab) -> Result<()>) {
    let lab = lab.clone();
    tokio::task::spawn_blocking(move || {
        std::thread::sleep(Duration::from_secs(seconds));
        if let Err(error) = repair(&lab) {
            eprintln!("soak: {error:#}");
        }
    });
}

impl At {
    /// Whether a migration is at this step.
    pub fn reached(self, migration: &VmMigration) -> bool {
        let Some(status) = &migration.status else { return false };
        let cutover = status.cutover.as_ref();
        match self {
            Self::Copying => status.disks.iter().any(|disk| disk.state == "Copying" && disk.copied_bytes > 0),
            Self::InSync => waits_for(status, "Approval"),
            Self::Quiesce => cutover.is_some_and(|cutover| {
                cutover.ordered_at.is_some() && cutover.power_on.is_none() && cutover.abandoned.is_none()
            }),
            Self::Boot => cutover.is_some_and(|cutover| {
                cutover.power_on.is_some() && cutover.reachable_at.is_none() && cutover.undo.is_none()
            }),
            Self::RollingBack => waits_for(status, "RollingBack"),
        }
    }
}

/// Whether a status waits for `reason`.
pub fn waits_for(status: &VmMigrationStatus, reason: &str) -> bool {
    status.waiting_for.as_ref().is_some_and(|waiting| waiting.reason == reason)
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.kind())?;
        match self {
            Self::HangStorage { seconds } | Self::KillLibvirt { seconds } | Self::PrismDelaysTasks { seconds } => {
                write!(out, " ({seconds} s)")
            }
            Self::PrismRefusesCalls { count } | Self::PrismLosesAnswers { count } | Self::PrismFailsTasks { count } => {
                write!(out, " ({count})")
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Blow {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}, after {:.1} s", self.fault, self.at, self.delay.as_secs_f64())
    }
}

impl fmt::Display for At {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Copying => "while it copies",
            Self::InSync => "in sync",
            Self::Quiesce => "in the cutover",
            Self::Boot => "while the target boots",
            Self::RollingBack => "while it rolls back",
        })
    }
}
