//! What the driver asks of a domain: looking first, then acting.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use virt::connect::Connect;
use virt::domain::{Domain, DomainShutoffReason, DomainState, DomainStateReason};
use virt::enumutil::Enum;
use virt::error::ErrorNumber;
use virt::sys;

use super::{Error, Libvirt, ffi, xml};
use crate::api::METADATA_URI;
use crate::api::shutdown::ShutdownMethod;
use crate::flow::copy::{BlockSeen, DomainSeen, Fact, Found, Mark, Power, Version};
use crate::flow::doctor::DomainTraces;
use crate::machine;

/// Questions that libvirt answers by itself.
const LOOK: Duration = Duration::from_secs(5);
/// The same for every domain of a host.
const LOOK_AT_ALL: Duration = Duration::from_secs(60);
/// Questions that only QEMU's monitor answers.
const MONITOR: Duration = Duration::from_secs(5);
/// Orders.
const ACT: Duration = Duration::from_secs(10);
/// Starting a copy connects QEMU to the relay; starting a domain starts QEMU.
const START: Duration = Duration::from_secs(60);
/// Questions that the guest's agent answers.
const AGENT: Duration = Duration::from_secs(10);
/// Names listed when none fits.
const NAMES_LISTED: usize = 20;

fn tried(what: impl Into<String>) -> impl FnOnce(virt::error::Error) -> Error {
    let what = what.into();
    move |source| Error::Libvirt { what, source }
}

fn in_xml(what: &str) -> impl FnOnce(xml::Error) -> Error + use<> {
    let what = what.to_owned();
    move |source| Error::Xml { what, source }
}

impl Libvirt {
    /// Finds the domain: by uuid once that is known, else by hostname. `socket` is the relay's, to know our mirrors by.
    pub async fn find(
        self: &Arc<Self>,
        uuid: Option<String>,
        hostname: String,
        socket: String,
    ) -> Result<Found, Error> {
        let this = Arc::clone(self);
        self.call(format!("looking for {hostname}"), LOOK, move |connect| {
            let domain = match uuid {
                Some(uuid) => match lookup(connect, &uuid) {
                    Err(err) if is_no_domain(&err) => return Ok(Found::None { seen_names: Vec::new() }),
                    found => found?,
                },
                None => match by_hostname(connect, &hostname)? {
                    Ok(domain) => domain,
                    Err(found) => return Ok(found),
                },
            };
            // Taken before the look, so that what interrupts the mirrors that it sees comes on top of it.
            let uuid = domain.uuid_string().map_err(tried("reading the domain's uuid"))?;
            let interruptions = this.events(&uuid).interruptions;
            let mut seen = look(connect, &domain, &socket)?;
            let events = this.events(&seen.uuid);
            (seen.shutdown_by, seen.reboots, seen.interruptions) = (events.shutdown_by, events.reboots, interruptions);
            Ok(Found::One(Box::new(seen)))
        })
        .await
    }

    /// What Drover may have left on any domain.
    pub async fn traces(self: &Arc<Self>) -> Result<Vec<DomainTraces>, Error> {
        self.call("looking at every domain", LOOK_AT_ALL, |connect| {
            let domains = connect.list_all_domains(0).map_err(tried("listing domains"))?;
            // A domain that was undefined since the list was made is none.
            let there = |found: &Result<DomainTraces, Error>| !found.as_ref().is_err_and(is_no_domain);
            domains.iter().map(traces).filter(there).collect()
        })
        .await
    }

    /// Sizes and block jobs of a domain's disks.
    pub async fn blocks(
        self: &Arc<Self>,
        uuid: String,
        devices: Vec<String>,
    ) -> Result<BTreeMap<String, BlockSeen>, Error> {
        self.call("asking for sizes and block jobs", MONITOR, move |connect| {
            let domain = lookup(connect, &uuid)?;
            let running = domain.is_active().map_err(tried("asking whether it runs"))?;
            let look = |device: String| {
                let failed = |source| Error::Libvirt { what: format!("asking for disk {device}"), source };
                let size_bytes = ffi::size_bytes(&domain, &device).map_err(failed)?;
                let job = if running { ffi::block_job(&domain, &device).map_err(failed)? } else { None };
                Ok((device, BlockSeen { size_bytes, job }))
            };
            devices.into_iter().map(look).collect()
        })
        .await
    }

    /// Starts the mirror of a disk. `xml` describes the target.
    pub async fn start_mirror(
        self: &Arc<Self>,
        uuid: &str,
        device: &str,
        xml: String,
        bandwidth_bytes_s: u64,
    ) -> Result<(), Error> {
        let device = device.to_owned();
        self.act(format!("starting the mirror of disk {device}"), START, uuid, move |domain| {
            ffi::block_copy(domain, &device, &xml, bandwidth_bytes_s)
        })
        .await
    }

    /// Limits the mirror of a disk.
    pub async fn set_speed(self: &Arc<Self>, uuid: &str, device: &str, bandwidth_bytes_s: u64) -> Result<(), Error> {
        let device = device.to_owned();
        self.act(format!("limiting the mirror of disk {device}"), ACT, uuid, move |domain| {
            ffi::block_job_set_speed(domain, &device, bandwidth_bytes_s)
        })
        .await
    }

    /// Ends the mirror of a disk; the source stays as it is.
    pub async fn abort_mirror(self: &Arc<Self>, uuid: &str, device: &str) -> Result<(), Error> {
        let device = device.to_owned();
        self.act(format!("ending the mirror of disk {device}"), ACT, uuid, move |domain| {
            ffi::block_job_abort(domain, &device)
        })
        .await
    }

    /// Asks the guest to power off; no error if it is off.
    pub async fn shutdown(self: &Arc<Self>, uuid: &str, method: ShutdownMethod) -> Result<(), Error> {
        let how = match method {
            ShutdownMethod::Acpi => sys::VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN,
            ShutdownMethod::Agent => sys::VIR_DOMAIN_SHUTDOWN_GUEST_AGENT,
        };
        self.act("asking the guest to power off", ACT, uuid, move |domain| {
            if domain.is_active()? { domain.shutdown_flags(how).map(drop) } else { Ok(()) }
        })
        .await
    }

    /// Powers the domain off; no error if it is off. QEMU is asked to end, and ends what it has begun to write.
    pub async fn power_off(self: &Arc<Self>, uuid: &str) -> Result<(), Error> {
        self.act("powering the domain off", START, uuid, |domain| {
            if domain.is_active()? { domain.destroy_flags(sys::VIR_DOMAIN_DESTROY_GRACEFUL).map(drop) } else { Ok(()) }
        })
        .await
    }

    /// Gives the guest's agent a command of its protocol; its answer.
    pub async fn ask_agent(self: &Arc<Self>, uuid: &str, command: String) -> Result<String, Error> {
        let uuid = uuid.to_owned();
        self.call("asking the guest's agent", AGENT, move |connect| {
            let seconds = i32::try_from(AGENT.as_secs()).unwrap_or(i32::MAX);
            let answer = lookup(connect, &uuid)?.qemu_agent_command(&command, seconds, 0);
            answer.map_err(tried("asking the guest's agent"))
        })
        .await
    }

    /// Starts the domain; no error if it runs.
    pub async fn start(self: &Arc<Self>, uuid: &str) -> Result<(), Error> {
        self.act(
            "starting the domain",
            START,
            uuid,
            |domain| if domain.is_active()? { Ok(()) } else { domain.create() },
        )
        .await
    }

    /// Whether the domain starts with its host.
    pub async fn set_autostart(self: &Arc<Self>, uuid: &str, autostart: bool) -> Result<(), Error> {
        self.act("setting autostart", ACT, uuid, move |domain| domain.set_autostart(autostart)).await
    }

    /// Sets or removes Drover's mark, in the persistent configuration and, if the domain runs, in the live one.
    pub async fn set_mark(self: &Arc<Self>, uuid: &str, mark: Option<&Mark>) -> Result<(), Error> {
        let element = mark.map(xml::render_mark);
        self.act("writing the mark into the domain's metadata", ACT, uuid, move |domain| {
            let mut flags = sys::VIR_DOMAIN_AFFECT_CONFIG;
            if domain.is_active()? {
                flags |= sys::VIR_DOMAIN_AFFECT_LIVE;
            }
            let kind = sys::VIR_DOMAIN_METADATA_ELEMENT as i32;
            let prefix = element.is_some().then_some(xml::METADATA_PREFIX);
            domain.set_metadata(kind, element.as_deref(), prefix, Some(METADATA_URI), flags).map(drop)
        })
        .await
    }

    async fn act(
        self: &Arc<Self>,
        what: impl Into<String>,
        deadline: Duration,
        uuid: &str,
        order: impl FnOnce(&Domain) -> Result<(), virt::error::Error> + Send + 'static,
    ) -> Result<(), Error> {
        let (what, uuid) = (what.into(), uuid.to_owned());
        let tried_what = what.clone();
        self.call(what, deadline, move |connect| order(&lookup(connect, &uuid)?).map_err(tried(tried_what))).await
    }
}

fn lookup(connect: &Connect, uuid: &str) -> Result<Domain, Error> {
    connect.lookup_domain_by_uuid_string(uuid).map_err(tried(format!("looking for domain {uuid}")))
}

fn is_no_domain(err: &Error) -> bool {
    matches!(err, Error::Libvirt { source, .. } if source.code().is(ErrorNumber::NoDomain))
}

/// The one domain that bears the hostname, or the answer that there is none or several.
fn by_hostname(connect: &Connect, hostname: &str) -> Result<Result<Domain, Found>, Error> {
    let mut names = Vec::new();
    let mut bearers = Vec::new();
    for domain in connect.list_all_domains(0).map_err(tried("listing domains"))? {
        let name = domain.name().map_err(tried("reading a domain's name"))?;
        // A domain that was undefined since the list was made is none.
        let text = match domain.xml_desc(sys::VIR_DOMAIN_XML_INACTIVE) {
            Err(err) if err.code().is(ErrorNumber::NoDomain) => continue,
            text => text.map_err(tried(format!("reading the XML of domain {name}")))?,
        };
        if xml::bears(&text, hostname).map_err(in_xml(&name))? {
            bearers.push((name.clone(), domain));
        }
        names.push(name);
    }
    // libvirt lists in no order; a message that changes from turn to turn would look like news.
    names.sort();
    bearers.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(match bearers.len() {
        1 => Ok(bearers.remove(0).1),
        0 => Err(Found::None { seen_names: names.into_iter().take(NAMES_LISTED).collect() }),
        _ => Err(Found::Several { names: bearers.into_iter().map(|(name, _)| name).collect() }),
    })
}

fn traces(domain: &Domain) -> Result<DomainTraces, Error> {
    let name = domain.name().map_err(tried("reading a domain's name"))?;
    let text = |flags| domain.xml_desc(flags).map_err(tried(format!("reading the XML of domain {name}")));
    let (live, defined) = (text(0)?, text(sys::VIR_DOMAIN_XML_INACTIVE)?);
    let mark = |text: &str| xml::mark(text).map_err(in_xml(&name));
    let persistent = domain.is_persistent().map_err(tried("asking whether the domain is defined"))?;
    Ok(DomainTraces {
        uuid: domain.uuid_string().map_err(tried("reading the domain's uuid"))?,
        running: domain.is_active().map_err(tried("asking whether the domain runs"))?,
        autostart: persistent && domain.autostart().map_err(tried("reading autostart"))?,
        mark: mark(&defined)?.or(mark(&live)?),
        mirrors: xml::mirror_traces(&live).map_err(in_xml(&name))?,
        name,
    })
}

/// Everything that needs no monitor.
fn look(connect: &Connect, domain: &Domain, socket: &str) -> Result<DomainSeen, Error> {
    let uuid = domain.uuid_string().map_err(tried("reading the domain's uuid"))?;
    let (state, reason) = domain.state().map_err(tried("reading the domain's state"))?;
    let (Enum::Known(state), Enum::Known(reason)) = (state, reason) else {
        // virt answers so when the call has failed.
        return Err(Error::Host {
            what: "reading the domain's state".into(),
            message: "libvirt told none that is known".into(),
        });
    };
    let (power, state_word) = power(state, &reason);
    let text = |what: &'static str, flags| domain.xml_desc(flags).map_err(tried(what));
    let live = text("reading the domain's XML", 0)?;
    let persistent = domain.is_persistent().map_err(tried("asking whether the domain is defined"))?;
    let defined =
        if persistent { text("reading the domain's definition", sys::VIR_DOMAIN_XML_INACTIVE)? } else { live.clone() };
    Ok(DomainSeen {
        power,
        state_word,
        id: domain.id(),
        managed_save: domain.has_managed_save(0).map_err(tried("looking for a saved memory image"))?,
        autostart: persistent && domain.autostart().map_err(tried("reading autostart"))?,
        machine: machine::parse(&live, persistent).map_err(|err| err.to_string()),
        mark: xml::mark(&defined).map_err(in_xml("reading the domain's metadata"))?,
        mirrors: xml::mirrors(&live, socket).map_err(in_xml("reading the domain's mirrors"))?,
        blocks: Fact::Unknown("not asked yet".into()),
        libvirt_version: Version::from_number(connect.lib_version().map_err(tried("reading libvirt's version"))?),
        qemu_version: Version::from_number(connect.hyp_version().map_err(tried("reading QEMU's version"))?),
        shutdown_by: None,
        reboots: 0,
        interruptions: 0,
        uuid,
    })
}

/// The state in our words and in libvirt's (as `virsh domstate --reason` prints it).
fn power(state: DomainState, reason: &DomainStateReason) -> (Power, String) {
    let (power, word) = match state {
        DomainState::Running => (Power::Running, "running"),
        DomainState::Blocked => (Power::Running, "idle"),
        DomainState::Paused => (Power::Paused, "paused"),
        DomainState::PMSuspended => (Power::Paused, "pmsuspended"),
        DomainState::NoState => (Power::Paused, "no state"),
        DomainState::Shutdown => (Power::ShuttingDown, "in shutdown"),
        // QEMU lives on in a crashed domain that is to be preserved.
        DomainState::Crashed => (Power::Paused, "crashed"),
        DomainState::Shutoff => {
            let orderly =
                matches!(reason, DomainStateReason::Shutoff(reason) if reason.is(DomainShutoffReason::Shutdown));
            (Power::Off { orderly }, "shut off")
        }
    };
    (power, word.into())
}
