//! Learns a guest's IPv4 addresses from its own ARP packets, as AHV does.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

/// The host's end of a virtual cable: QEMU's `dgram` network backend sends each Ethernet frame as one datagram.
pub struct Cable {
    ours: PathBuf,
    learned: Arc<Mutex<BTreeSet<Ipv4Addr>>>,
    stop: Arc<AtomicBool>,
}

impl Cable {
    /// Listens on the socket `ours`.
    pub fn plug(ours: &Path) -> Result<Self> {
        let _ = std::fs::remove_file(ours);
        let socket = UnixDatagram::bind(ours).with_context(|| format!("listen on {}", ours.display()))?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        let (learned, stop) = (Arc::new(Mutex::new(BTreeSet::new())), Arc::new(AtomicBool::new(false)));
        let (known, stopped) = (learned.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut frame = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
                let Ok(length) = socket.recv(&mut frame) else { continue };
                if let Some(ip) = arp_sender(&frame[..length]) {
                    known.lock().unwrap_or_else(PoisonError::into_inner).insert(ip);
                }
            }
        });
        Ok(Self { ours: ours.to_owned(), learned, stop })
    }

    /// QEMU's end, the socket `theirs`.
    pub fn netdev(&self, id: &str, theirs: &Path) -> String {
        let _ = std::fs::remove_file(theirs);
        let (theirs, ours) = (theirs.display(), self.ours.display());
        format!("dgram,id={id},local.type=unix,local.path={theirs},remote.type=unix,remote.path={ours}")
    }

    /// Addresses seen so far.
    pub fn learned(&self) -> Vec<String> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner).iter().map(Ipv4Addr::to_string).collect()
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The sender's address of an ARP packet over Ethernet (RFC 826).
fn arp_sender(frame: &[u8]) -> Option<Ipv4Addr> {
    let is_arp = frame.get(12..14)? == [0x08, 0x06];
    let sender: [u8; 4] = frame.get(28..32)?.try_into().ok()?;
    let ip = Ipv4Addr::from(sender);
    (is_arp && !ip.is_unspecified()).then_some(ip)
}
