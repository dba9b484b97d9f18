//! What simulated Prism needs of whatever runs its VMs.

use std::path::PathBuf;

use anyhow::Result;

/// A VM to be run.
#[derive(Clone, Debug)]
pub struct VmShape {
    pub uuid: String,
    pub name: String,
    pub vcpus: u32,
    pub memory_bytes: u64,
    /// Raw disk files in the order of (bus, index).
    pub disks: Vec<PathBuf>,
    pub macs: Vec<String>,
}

/// Runs VMs from disk files. [`crate::guest::QemuHypervisor`] boots real guests; [`NoHypervisor`] only remembers.
pub trait Hypervisor: Send + Sync {
    /// Starts the VM; an error if it runs already.
    fn power_on(&self, vm: &VmShape) -> Result<()>;
    /// Presses its power button: the guest may power itself off, or not.
    fn shut_down(&self, uuid: &str) -> Result<()>;
    /// Stops it hard; no error if it is off.
    fn power_off(&self, uuid: &str) -> Result<()>;
    /// Whether it runs right now (a guest may have powered itself off).
    fn is_on(&self, uuid: &str) -> bool;
    /// IPv4 addresses seen in the VM's own traffic, as AHV learns them.
    fn learned_ips(&self, uuid: &str) -> Vec<String>;
}

/// Remembers which VMs are on and runs nothing: for tests of the API alone.
#[derive(Default)]
pub struct NoHypervisor(std::sync::Mutex<std::collections::BTreeSet<String>>);

impl Hypervisor for NoHypervisor {
    fn power_on(&self, vm: &VmShape) -> Result<()> {
        anyhow::ensure!(self.0.lock().expect("no panic holds it").insert(vm.uuid.clone()), "VM {} is on", vm.name);
        Ok(())
    }

    fn shut_down(&self, uuid: &str) -> Result<()> {
        self.power_off(uuid)
    }

    fn power_off(&self, uuid: &str) -> Result<()> {
        self.0.lock().expect("no panic holds it").remove(uuid);
        Ok(())
    }

    fn is_on(&self, uuid: &str) -> bool {
        self.0.lock().expect("no panic holds it").contains(uuid)
    }

    fn learned_ips(&self, _uuid: &str) -> Vec<String> {
        Vec::new()
    }
}
