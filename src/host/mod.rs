//! LOOP: the host-side job. Two processes: the relay, which holds the writes, and the driver, which talks to libvirt.

pub mod driver;
pub mod relay;
pub mod verify;
