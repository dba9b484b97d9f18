//! Doing: carries out effects in their order. What fails is told to the next turn, which sees whether it happened.

use std::time::Duration;

use uuid::Uuid;

use super::{Driver, chain};
use crate::api::block_copy::DiskCopy;
use crate::edge::{fail_point, host_processes};
use crate::flow::copy::Effect;
use crate::host::relay::{TargetSpec, clear_away};
use crate::host::verify::background::Job;
use crate::render::mirror::destination_xml;

/// Most time that the relay may take for an order: opening a target reaches over the network.
const RELAY_DEADLINE: Duration = Duration::from_secs(20);

/// Carries out `effects` for the domain `uuid`. Returns what went wrong first; what cannot be undone is then left out.
pub(super) async fn act(driver: &mut Driver, uuid: &str, effects: Vec<Effect>) -> Option<String> {
    let mut trouble = None;
    for effect in effects {
        let needs_all_before =
            matches!(effect, Effect::Shutdown(_) | Effect::Start | Effect::RemoveMark | Effect::DeleteClaim);
        if needs_all_before && trouble.is_some() {
            break;
        }
        if effect.needs_no_record() {
            tracing::debug!(?effect, "doing");
        } else {
            tracing::info!(?effect, "doing");
        }
        let name = effect.name();
        fail_point::before(name);
        if let Err(why) = carry_out(driver, uuid, effect).await {
            tracing::warn!(why, "failed");
            trouble.get_or_insert(why);
        }
        fail_point::after(name);
    }
    trouble
}

async fn carry_out(driver: &mut Driver, uuid: &str, effect: Effect) -> Result<(), String> {
    let libvirt = &driver.libvirt;
    let done = match effect {
        Effect::WriteMark(mark) => libvirt.set_mark(uuid, Some(&mark)).await,
        Effect::RemoveMark => libvirt.set_mark(uuid, None).await,
        Effect::SetAutostart(autostart) => libvirt.set_autostart(uuid, autostart).await,
        Effect::StartMirror { device, bandwidth_bytes_s } => {
            let xml = destination_xml(&device, &driver.nbd_socket());
            libvirt.start_mirror(uuid, &device, xml, bandwidth_bytes_s).await
        }
        Effect::SetSpeed { device, bandwidth_bytes_s } => libvirt.set_speed(uuid, &device, bandwidth_bytes_s).await,
        Effect::AbortMirror { device } => libvirt.abort_mirror(uuid, &device).await,
        Effect::Shutdown(method) => libvirt.shutdown(uuid, method).await,
        Effect::PowerOff => libvirt.power_off(uuid).await,
        Effect::RunInGuest(command) => {
            driver.command.start(libvirt, uuid, command);
            return Ok(());
        }
        Effect::Start => libvirt.start(uuid).await,
        Effect::WriteCanary { disk, migration_uid, nonce } => {
            driver.canaries.write(disk, migration_uid, nonce);
            return Ok(());
        }
        Effect::OpenExport { disk, fresh } => return open(driver, disk, fresh).await,
        Effect::CloseExport { device, discard } => return relay(driver.relay.close(&device, discard)).await,
        Effect::EndRelay { process, force } => return host_processes::end(&process, force).map_err(|err| chain(&err)),
        Effect::DeleteClaim => return give_up(driver, uuid),
        Effect::Verify { disk, source_path, opening, proviso, bytes_s } => {
            let opening = relay_id(&opening)?;
            let job = Job {
                device: disk.device.clone(),
                size_bytes: disk.size_bytes,
                source_path: source_path.into(),
                ledger_file: driver.claims.ledger(uuid, &disk.device).map_err(|err| chain(&err))?,
                target: TargetSpec::Nfs(disk.target),
                relay: driver.relay.clone(),
                relay_directory: driver.relay_directory.clone(),
                relay_instance: relay_id(&proviso.relay_instance)?,
                opening,
                subject: Uuid::new_v5(&opening, proviso.target_version.as_deref().unwrap_or_default().as_bytes()),
            };
            driver.verifications.go_on(job, proviso, bytes_s);
            return Ok(());
        }
        Effect::Compare { disk, source_path, believe, repair } => {
            let known = driver.verifications.known(&disk, believe.as_ref());
            driver.comparisons.start(disk, source_path.into(), known, repair);
            return Ok(());
        }
    };
    done.map_err(|err| chain(&err))
}

/// Gives the claim up, after all that only it needed.
fn give_up(driver: &Driver, uuid: &str) -> Result<(), String> {
    let directory = &driver.relay_directory;
    clear_away(directory).map_err(|err| format!("removing what relays left in {}: {err}", directory.display()))?;
    driver.claims.delete(uuid).map_err(|err| chain(&err))
}

async fn open(driver: &Driver, disk: DiskCopy, fresh: bool) -> Result<(), String> {
    let target = TargetSpec::Nfs(disk.target);
    relay(driver.relay.open(&disk.device, disk.size_bytes, &target, fresh)).await
}

fn relay_id(text: &str) -> Result<Uuid, String> {
    text.parse().map_err(|err| format!("the relay names itself {text:?}: {err}"))
}

async fn relay<T, E: std::error::Error>(order: impl Future<Output = Result<T, E>>) -> Result<(), String> {
    match tokio::time::timeout(RELAY_DEADLINE, order).await {
        Ok(done) => done.map(drop).map_err(|err| chain(&err)),
        Err(_) => Err(format!("the relay did not carry out an order within {} s", RELAY_DEADLINE.as_secs())),
    }
}
