//! The relay with real NBD clients, real targets and real faults.

#![cfg(feature = "host")]

mod faults;
mod ganesha;
mod model;
mod nbd;
mod nfs;
mod relay;
mod tools;
mod untrusted;
mod writes;
