//! Source and target proven equal: most of it while the guest runs, the rest when it is off.
//!
//! [`background`] verifies extents of a disk that is in step, one after the other, and keeps in its [`ledger`] at which value of the
//! extent's [write counter](super::relay::writes) it found both sides equal. When the guest is off and every writer is gone, [`compare`]
//! reads only the extents whose counter stands elsewhere, through fresh connections. [`pair`] is how an extent is read from both sides.
//!
//! # Why an extent whose counter has not moved needs no second reading
//!
//! An extent counts as verified at `c` if the counter was `c`, then both sides were read and were the same, then the counter was `c` still.
//! Let it be `c` also at the end, when QEMU has said goodbye and the relay has drained and sealed its counters.
//!
//! - QEMU writes to the source before, or while, it asks the relay, and tells the guest afterwards. So a reading of the source may see a
//!   write that the relay has not received yet; but it is received later, and moves the counter. It did not move: there was no such
//!   write. So the source was read as it is in the end.
//! - The counter moves again when the target has taken a change. It did not move: nothing that was received before lay in the relay's
//!   memory, to change the target after it was read. So the target was read as it is in the end, as far as this relay wrote it.
//!
//! What that rests on, and what is done about it:
//!
//! - *Every write of the source passes the relay, from the reading on.* True of one unbroken mirror with synchronous writes, and nothing
//!   else: counters belong to one opening of an export, which belongs to one attempt; a broken one is closed without a seal. A QEMU that is
//!   killed between its two writes says no goodbye: no seal. A source that was not shut down cleanly, that another QEMU was seen to hold,
//!   or of which libvirt told a start or the end of a block job before the power-off, is compared whole; so is one whose driver did not see
//!   it in step, for nobody watched it meanwhile (`flow/copy/quiesce`).
//! - *Nobody writes to the source once it is off.* The proof of "off" says that no process holds it.
//! - *Nobody else writes to the target.* An earlier relay of this migration must be gone, with its sockets, before verifying begins.
//! - *The storage keeps what it has.* A byte that changes there by itself after its extent was verified is found only if the extent is
//!   read again: [`background`] begins anew with the oldest when all are verified, but what it has not reached by power-off is believed.
//!   Who does not want to believe the storage sets `verifyMibPerSecond: 0`: then everything is compared when the guest is off.

pub mod background;
pub mod compare;
pub mod ledger;
pub mod pair;

use std::io;
use std::path::PathBuf;

use super::relay::target::TargetError;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("cannot {operation} the source {path}")]
    Source {
        operation: &'static str,
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("the file system of the source {path} has no O_DIRECT, and what the page cache holds proves nothing")]
    NoDirectRead { path: PathBuf },
    #[error("the source {path} has {actual_bytes} bytes, expected {expected_bytes}")]
    SourceSize { path: PathBuf, expected_bytes: u64, actual_bytes: u64 },
    #[error("cannot read the target")]
    Target(#[from] TargetError),
}
