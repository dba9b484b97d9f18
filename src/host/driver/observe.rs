//! Looking: relay, then libvirt, then the host's processes. Reads only; what does not answer in time is unknown.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::Driver;
use super::order::Order;
use crate::api::block_copy::Want;
use crate::edge::host_processes;
use crate::flow::copy::{
    DomainSeen, ExportSeen, Fact, Found, Holder, Memory, Power, ProcessId, ProcessesSeen, RelaySeen, Seen,
};
use crate::host::relay::RelayStatus;

/// Most time that the relay may take to answer on its local socket.
const RELAY_DEADLINE: Duration = Duration::from_secs(2);
/// How old the list of a running domain's disk holders may be: making it reads every process of the host.
const HOLDERS_AGE: Duration = Duration::from_secs(5);

/// Gathers everything that one turn knows.
pub(super) async fn observe(driver: &mut Driver, order: &Order) -> Seen {
    let relay = relay(driver).await;
    let found = domain(driver, order).await;
    let uuid = match &found {
        Fact::Known(Found::One(domain)) => Some(domain.uuid.clone()),
        Fact::Known(_) | Fact::Unknown(_) => pinned(order),
    };
    let memory = match &uuid {
        None => Fact::Known(None),
        Some(uuid) => known(driver.claims.read(uuid)),
    };
    let processes = match &found {
        Fact::Known(Found::One(domain)) => processes(driver, order, domain, &memory, &relay).await,
        Fact::Known(_) | Fact::Unknown(_) => Fact::Unknown("which disks to look for is not known".into()),
    };
    Seen {
        found,
        memory,
        relay,
        processes,
        command: driver.command.seen(),
        verifications: driver.verifications.seen(),
        comparisons: driver.comparisons.seen(),
        canaries: driver.canaries.seen(),
        trouble: driver.trouble.take(),
    }
}

/// A result as a fact; the whole chain of an error as the reason why it is unknown.
fn known<T, E: std::error::Error>(result: Result<T, E>) -> Fact<T> {
    match result {
        Ok(value) => Fact::Known(value),
        Err(err) => Fact::Unknown(super::chain(&err)),
    }
}

/// The domain's uuid, once it was found: from then on the hostname means nothing.
fn pinned(order: &Order) -> Option<String> {
    order.spec.domain_uuid.clone().or_else(|| order.status.machine.as_ref().map(|machine| machine.uuid.clone()))
}

async fn relay(driver: &Driver) -> Fact<RelaySeen> {
    match tokio::time::timeout(RELAY_DEADLINE, driver.relay.status()).await {
        Ok(status) => known(status.map(relay_seen)),
        Err(_) => Fact::Unknown(format!("no answer within {} s", RELAY_DEADLINE.as_secs())),
    }
}

fn relay_seen(status: RelayStatus) -> RelaySeen {
    let exports = status.exports.into_iter().map(|export| {
        let seen = ExportSeen {
            size_bytes: export.size_bytes,
            opening: export.opening.to_string(),
            connected: export.connected,
            broken: export.broken,
            backlog_bytes: export.backlog_bytes,
            drain_rate_bytes_s: export.drain_rate_bytes_s,
            throttled: export.throttled,
        };
        (export.name, seen)
    });
    let exports = exports.collect();
    RelaySeen { instance: status.instance, pid: status.pid, memory_bytes: status.memory_bytes, exports }
}

async fn domain(driver: &Driver, order: &Order) -> Fact<Found> {
    let socket = driver.nbd_socket().display().to_string();
    let mut found = match driver.libvirt.find(pinned(order), order.spec.hostname.clone(), socket).await {
        Ok(found) => found,
        Err(err) => return Fact::Unknown(super::chain(&err)),
    };
    if let Found::One(domain) = &mut found {
        ask_monitor(driver, domain).await;
    }
    Fact::Known(found)
}

/// Adds what only QEMU's monitor tells. While it does not answer, sizes stay 0 and jobs unknown.
async fn ask_monitor(driver: &Driver, domain: &mut DomainSeen) {
    let Ok(machine) = &mut domain.machine else { return };
    let devices = machine.disks.iter().map(|disk| disk.device.clone()).collect();
    domain.blocks = known(driver.libvirt.blocks(domain.uuid.clone(), devices).await);
    if let Fact::Known(blocks) = &domain.blocks {
        for disk in &mut machine.disks {
            disk.size_bytes = blocks.get(&disk.device).map_or(0, |block| block.size_bytes);
        }
    }
}

async fn processes(
    driver: &mut Driver,
    order: &Order,
    domain: &DomainSeen,
    memory: &Fact<Option<Memory>>,
    relay: &Fact<RelaySeen>,
) -> Fact<ProcessesSeen> {
    let machine = match &domain.machine {
        Ok(machine) => machine,
        Err(why) => return Fact::Unknown(why.clone()),
    };
    // While it runs, who holds the disks changes rarely; a proof of "off" is always made from a list of this very turn. A domain that was
    // started again, however shortly, has another id.
    let off = matches!(domain.power, Power::Off { .. });
    let recent = driver
        .holders
        .as_ref()
        .filter(|then| !off && then.domain_id == domain.id && then.at.elapsed() < HOLDERS_AGE)
        .map(|then| then.holders.clone());
    let look = Look {
        disks: machine.disks.iter().map(|disk| (disk.device.clone(), disk.path.clone())).collect(),
        domain_uuid: domain.uuid.clone(),
        remembered: match memory {
            Fact::Known(Some(memory)) => memory.processes(),
            Fact::Known(None) | Fact::Unknown(_) => BTreeSet::new(),
        },
        relay_pid: match relay {
            Fact::Known(relay) => Some(relay.pid),
            Fact::Unknown(_) => None,
        },
        servers: order.spec.disks.iter().filter_map(|disk| disk.target.server.address.parse().ok()).collect(),
        look_for_sockets: matches!(order.spec.want, Want::Mirror | Want::Quiesce),
    };
    let result = tokio::task::spawn_blocking(move || look.run(recent)).await;
    let seen = match result {
        Ok(result) => known(result),
        Err(err) => Fact::Unknown(format!("looking at the host's processes has failed: {err}")),
    };
    if let Fact::Known((processes, true)) = &seen {
        let holders = processes.holders.clone();
        driver.holders = Some(HoldersThen { at: Instant::now(), domain_id: domain.id, holders });
    }
    match seen {
        Fact::Known((processes, _)) => Fact::Known(processes),
        Fact::Unknown(why) => Fact::Unknown(why),
    }
}

/// What to look for in /proc.
struct Look {
    disks: Vec<(String, String)>,
    domain_uuid: String,
    remembered: BTreeSet<ProcessId>,
    relay_pid: Option<u32>,
    servers: BTreeSet<IpAddr>,
    look_for_sockets: bool,
}

type Holders = BTreeMap<String, Vec<Holder>>;

/// Who held the disks, when, and under which id the domain ran then.
pub(super) struct HoldersThen {
    at: Instant,
    domain_id: Option<u32>,
    holders: Holders,
}

impl Look {
    /// Looks; true = the holders were looked at now.
    fn run(self, recent: Option<Holders>) -> Result<(ProcessesSeen, bool), host_processes::Error> {
        let mut seen = ProcessesSeen::default();
        let looked = recent.is_none();
        seen.holders = match recent {
            Some(holders) => holders,
            None => host_processes::holders(&self.disks, &self.domain_uuid)?,
        };
        // Who holds a disk now is about to be remembered: whether it lives belongs to this turn's knowledge, too.
        let holders: BTreeSet<ProcessId> =
            seen.holders.values().flatten().map(|holder| holder.process.clone()).collect();
        for process in self.remembered.union(&holders) {
            if host_processes::is_alive(process)? {
                seen.alive.push(process.clone());
            }
        }
        seen.relay = self.relay_pid.map(host_processes::identify).transpose()?.flatten();
        if self.look_for_sockets {
            seen.orphan_sockets = host_processes::orphan_sockets(&self.servers)?;
        }
        Ok((seen, looked))
    }
}
