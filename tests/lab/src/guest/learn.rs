//! Learns a guest's IPv4 addresses from its own ARP packets, as AHV does.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;

/// The host's end of a virtual cable: QEMU's `dgram` network backend sends each Ethernet frame as one datagram.
pub struct Cable {
    port: u16,
    learned: Arc<Mutex<BTreeSet<Ipv4Addr>>>,
    stop: Arc<AtomicBool>,
}

impl Cable {
    /// Listens on a free port.
    pub fn plug() -> Result<Self> {
        let socket = UdpSocket::bind(("127.0.0.1", 0))?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        let port = socket.local_addr()?.port();
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
        Ok(Self { port, learned, stop })
    }

    /// QEMU's end.
    pub fn netdev(&self, id: &str, qemu_port: u16) -> String {
        format!(
            "dgram,id={id},local.type=inet,local.host=127.0.0.1,local.port={qemu_port},remote.type=inet,remote.host=127.0.0.1,remote.port={}",
            self.port
        )
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
