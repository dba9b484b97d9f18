//! The calls that the `virt` crate lacks or gets wrong, each wrapped safely: block jobs, block sizes, and two domain events.
//!
//! (`virt` 0.5 reads uninitialised memory when `virDomainGetBlockInfo` fails, so that call is here too.)
#![expect(unsafe_code, reason = "libvirt's C API, through the bindings of virt-sys")]

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int, c_void};
use std::mem::zeroed;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;
use virt::sys;

use crate::flow::copy::{JobSeen, ShutdownBy};

/// Makes a C string, or libvirt's own kind of error.
fn c_string(text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(Error::from)
}

/// Turns libvirt's return code into a result. Must be called on the thread that made the call: errors are kept per thread.
fn check(code: c_int) -> Result<c_int, Error> {
    if code < 0 { Err(Error::last_error()) } else { Ok(code) }
}

/// Starts a copy of `disk` to the target described by `xml`: the target exists already, and each write of the guest goes to both sides.
pub fn block_copy(domain: &Domain, disk: &str, xml: &str, bandwidth_bytes_s: u64) -> Result<(), Error> {
    let (disk, xml) = (c_string(disk)?, c_string(xml)?);
    let mut params: sys::virTypedParameterPtr = ptr::null_mut();
    let (mut count, mut room): (c_int, c_int) = (0, 0);
    let flags = sys::VIR_DOMAIN_BLOCK_COPY_REUSE_EXT
        | sys::VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
        | sys::VIR_DOMAIN_BLOCK_COPY_SYNCHRONOUS_WRITES;
    // SAFETY: `params`, `count` and `room` are an empty list as virTypedParamsAdd* expects it, the name is a constant C string.
    let added = unsafe {
        sys::virTypedParamsAddULLong(
            &raw mut params,
            &raw mut count,
            &raw mut room,
            sys::VIR_DOMAIN_BLOCK_COPY_BANDWIDTH.as_ptr(),
            bandwidth_bytes_s,
        )
    };
    let started = check(added).and_then(|_| {
        // SAFETY: the domain lives as long as its wrapper, the strings as long as the call; libvirt only reads `count` parameters.
        check(unsafe { sys::virDomainBlockCopy(domain.as_ptr(), disk.as_ptr(), xml.as_ptr(), params, count, flags) })
    });
    // SAFETY: the list was made by virTypedParamsAdd* (or is null, which is allowed) and is not used after this.
    unsafe { sys::virTypedParamsFree(params, count) };
    started.map(drop)
}

/// The block job on `disk`, if one runs.
pub fn block_job(domain: &Domain, disk: &str) -> Result<Option<JobSeen>, Error> {
    let disk = c_string(disk)?;
    // SAFETY: the struct is plain integers, for which zero is a value.
    let mut info: sys::virDomainBlockJobInfo = unsafe { zeroed() };
    let flags = sys::VIR_DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES;
    // SAFETY: the domain and the string live through the call, `info` is a valid place for the answer.
    let found = check(unsafe { sys::virDomainGetBlockJobInfo(domain.as_ptr(), disk.as_ptr(), &raw mut info, flags) })?;
    #[allow(clippy::useless_conversion, reason = "C's long has 32 bits on some machines")]
    let bandwidth_bytes_s = u64::from(info.bandwidth);
    Ok((found > 0).then_some(JobSeen { cur: info.cur, end: info.end, bandwidth_bytes_s }))
}

/// Ends the block job on `disk` without pivoting; returns before it has ended.
pub fn block_job_abort(domain: &Domain, disk: &str) -> Result<(), Error> {
    let disk = c_string(disk)?;
    // SAFETY: the domain and the string live through the call.
    check(unsafe { sys::virDomainBlockJobAbort(domain.as_ptr(), disk.as_ptr(), sys::VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC) })
        .map(drop)
}

/// Limits the block job on `disk`.
pub fn block_job_set_speed(domain: &Domain, disk: &str, bandwidth_bytes_s: u64) -> Result<(), Error> {
    let disk = c_string(disk)?;
    let flags = sys::VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES;
    #[allow(
        clippy::useless_conversion,
        reason = "C's long has 32 bits on some machines; a limit beyond that limits nothing"
    )]
    let bandwidth = bandwidth_bytes_s.try_into().unwrap_or(std::ffi::c_ulong::MAX);
    // SAFETY: the domain and the string live through the call.
    check(unsafe { sys::virDomainBlockJobSetSpeed(domain.as_ptr(), disk.as_ptr(), bandwidth, flags) }).map(drop)
}

/// What QEMU rounds sizes up to.
const SECTOR_BYTES: u64 = 512;

/// Size of `disk` in bytes. QEMU tells a guest of whole sectors only; a raw file that ends within one is told as it is.
pub fn size_bytes(domain: &Domain, disk: &str) -> Result<u64, Error> {
    let disk = c_string(disk)?;
    // SAFETY: the struct is plain integers, for which zero is a value.
    let mut info: sys::virDomainBlockInfo = unsafe { zeroed() };
    // SAFETY: the domain and the string live through the call, `info` is a valid place for the answer.
    check(unsafe { sys::virDomainGetBlockInfo(domain.as_ptr(), disk.as_ptr(), &raw mut info, 0) })?;
    let rounded = info.capacity == info.physical.next_multiple_of(SECTOR_BYTES);
    Ok(if rounded { info.physical } else { info.capacity })
}

/// What libvirt reported of each domain, by uuid.
pub type Events = Arc<Mutex<BTreeMap<String, Seen>>>;

/// What was reported of one domain.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Who asked for the last power-off. A start ends it.
    pub shutdown_by: Option<ShutdownBy>,
    /// How often the guest rebooted.
    pub reboots: u32,
    /// How often it was started, or a block job of it ended before its power-off.
    pub interruptions: u32,
}

/// Collects the events of all domains of `connect` into `into`. An event loop must run; the registrations end with the connection.
pub fn watch(connect: &Connect, into: &Events) -> Result<(), Error> {
    let lifecycle: unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void) -> c_int =
        on_lifecycle;
    // SAFETY: libvirt takes one generic type for all its event callbacks and calls a lifecycle callback with exactly the arguments of
    // `on_lifecycle` (virConnectDomainEventRegisterAny, VIR_DOMAIN_EVENT_ID_LIFECYCLE).
    let lifecycle: sys::virConnectDomainEventGenericCallback =
        unsafe { std::mem::transmute::<_, sys::virConnectDomainEventGenericCallback>(lifecycle) };
    register(connect, into, sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle)?;
    let block_job: unsafe extern "C" fn(
        sys::virConnectPtr,
        sys::virDomainPtr,
        *const c_char,
        c_int,
        c_int,
        *mut c_void,
    ) = on_block_job;
    // SAFETY: as above, for `on_block_job` (VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2).
    let block_job: sys::virConnectDomainEventGenericCallback =
        unsafe { std::mem::transmute::<_, sys::virConnectDomainEventGenericCallback>(block_job) };
    register(connect, into, sys::VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, block_job)?;
    // A reboot is told by the generic callback itself.
    register(connect, into, sys::VIR_DOMAIN_EVENT_ID_REBOOT, Some(on_reboot))
}

fn register(
    connect: &Connect,
    into: &Events,
    event: sys::virDomainEventID,
    callback: sys::virConnectDomainEventGenericCallback,
) -> Result<(), Error> {
    let opaque = Box::into_raw(Box::new(Events::clone(into))).cast::<c_void>();
    // SAFETY: the connection lives through the call; no domain means all; `opaque` is a leaked box that only `free_events` takes back.
    let registered = unsafe {
        sys::virConnectDomainEventRegisterAny(
            connect.as_ptr(),
            ptr::null_mut(),
            event as c_int,
            callback,
            opaque,
            Some(free_events),
        )
    };
    check(registered).map(drop).inspect_err(|_| {
        // SAFETY: a failed registration keeps nothing, so that the box is ours again.
        unsafe { free_events(opaque) };
    })
}

/// Called by libvirt's event loop.
///
/// # Safety
/// `domain` must be a live domain and `opaque` the pointer that [`register`] registered.
unsafe extern "C" fn on_lifecycle(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: c_int,
    detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    let by = match (u32::try_from(event), u32::try_from(detail)) {
        (Ok(sys::VIR_DOMAIN_EVENT_STARTED), _) => None,
        (Ok(sys::VIR_DOMAIN_EVENT_SHUTDOWN), Ok(sys::VIR_DOMAIN_EVENT_SHUTDOWN_GUEST)) => Some(ShutdownBy::Guest),
        (Ok(sys::VIR_DOMAIN_EVENT_SHUTDOWN), Ok(sys::VIR_DOMAIN_EVENT_SHUTDOWN_HOST)) => Some(ShutdownBy::Host),
        _ => return 0,
    };
    let change = |seen: &mut Seen| {
        seen.shutdown_by = by;
        seen.interruptions = seen.interruptions.saturating_add(u32::from(by.is_none()));
    };
    // SAFETY: what this callback demands is what `note` demands.
    unsafe { note(domain, opaque, change) };
    0
}

/// Called by libvirt's event loop. A power-off ends every job; its own event comes before theirs.
///
/// # Safety
/// As for [`on_lifecycle`].
unsafe extern "C" fn on_block_job(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _disk: *const c_char,
    _kind: c_int,
    status: c_int,
    opaque: *mut c_void,
) {
    if u32::try_from(status) == Ok(sys::VIR_DOMAIN_BLOCK_JOB_READY) {
        return;
    }
    let change = |seen: &mut Seen| {
        seen.interruptions = seen.interruptions.saturating_add(u32::from(seen.shutdown_by.is_none()));
    };
    // SAFETY: what this callback demands is what `note` demands.
    unsafe { note(domain, opaque, change) };
}

/// Called by libvirt's event loop.
///
/// # Safety
/// As for [`on_lifecycle`].
unsafe extern "C" fn on_reboot(_: sys::virConnectPtr, domain: sys::virDomainPtr, opaque: *mut c_void) {
    // SAFETY: what this callback demands is what `note` demands.
    unsafe { note(domain, opaque, |seen| seen.reboots = seen.reboots.saturating_add(1)) };
}

/// # Safety
/// `domain` must be a live domain and `opaque` the pointer that [`register`] registered.
unsafe fn note(domain: sys::virDomainPtr, opaque: *mut c_void, change: impl FnOnce(&mut Seen)) {
    let mut uuid = [0; sys::VIR_UUID_STRING_BUFLEN as usize];
    // SAFETY: the domain is alive during the callback and the buffer has the length that libvirt demands.
    if unsafe { sys::virDomainGetUUIDString(domain, uuid.as_mut_ptr()) } < 0 {
        return;
    }
    // SAFETY: libvirt has written a string with its end into the buffer.
    let uuid = unsafe { std::ffi::CStr::from_ptr(uuid.as_ptr()) }.to_string_lossy().into_owned();
    // SAFETY: `opaque` is the box made by `register`, alive until libvirt calls `free_events`.
    let events = unsafe { &*opaque.cast::<Events>() };
    change(events.lock().unwrap_or_else(PoisonError::into_inner).entry(uuid).or_default());
}

/// Called by libvirt when a registration ends.
///
/// # Safety
/// `opaque` must be the pointer that [`register`] registered, not freed before.
unsafe extern "C" fn free_events(opaque: *mut c_void) {
    // SAFETY: see above; the box was made by `Box::into_raw` of this type.
    drop(unsafe { Box::from_raw(opaque.cast::<Events>()) });
}
