//! `drover host` moves a guest's disks to NFS-Ganesha and loses nothing, whatever dies on the way: libvirt, QEMU, the guest and the storage
//! are real, relay and driver run as processes, orders and reports are files. No Kubernetes, no Prism.

#![cfg(feature = "host")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on is to panic, in its helpers too")]

mod canary;
mod clock;
mod deaths;
mod faults;
mod host;
mod interference;
mod migration;
mod moving;
mod network;
mod refusals;
mod storage;
mod verified;
