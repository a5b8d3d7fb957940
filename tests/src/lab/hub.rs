//! The layer-2 segment of a lab with more than two hosts: each frame of one host goes to all others.
//!
//! Two hosts need no hub: their QEMU processes send frames to each other. Ports are Unix datagram sockets: the hub
//! receives a host's frames on `segment/port-N` and sends to `segment/host-N`, which QEMU owns.

use std::io::ErrorKind;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketAddrUnix};

/// Larger than any frame that virtio-net sends here.
const FRAME: usize = 65_536 + 128;

/// How long a frame waits for room in a host's queue before it is lost. Losing none keeps TCP fast between busy hosts; a host
/// that is stopped must not stop the others.
const PATIENCE: Duration = Duration::from_millis(50);

/// How often the ports look whether they are to end.
const LOOK: Duration = Duration::from_millis(200);

/// A running hub; dropping it ends it.
#[derive(Debug)]
pub struct Hub {
    stop: Arc<AtomicBool>,
    ports: Vec<JoinHandle<()>>,
}

/// Path of the socket on which the hub receives what host `number` sends, from the lab's folder on.
pub fn port_path(number: usize) -> String {
    format!("segment/port-{number}")
}

/// Path of the socket on which host `number` receives, from the lab's folder on.
pub fn host_path(number: usize) -> String {
    format!("segment/host-{number}")
}

impl Hub {
    /// Opens the ports of hosts 1 to `hosts` in the lab's `folder` and begins to forward.
    ///
    /// # Errors
    /// When a socket cannot be made there, which is also so when the folder's path is longer than about 90 bytes.
    pub fn start(folder: &Path, hosts: usize) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut sockets = Vec::new();
        for number in 1..=hosts {
            let path = folder.join(port_path(number));
            let address = SocketAddr::from_pathname(&path);
            let socket = address.and_then(|address| UnixDatagram::bind_addr(&address));
            let socket = socket.with_context(|| format!("cannot make the socket {}", path.display()))?;
            socket.set_read_timeout(Some(LOOK))?;
            socket.set_write_timeout(Some(PATIENCE))?;
            sockets.push((number, Arc::new(socket)));
        }
        let mut ports = Vec::new();
        for (number, socket) in &sockets {
            let others = sockets.iter().filter(|(other, _)| other != number);
            let others = others.map(|(other, port)| Destination {
                host: folder.join(host_path(*other)),
                port: Arc::clone(port),
                stalled: false,
            });
            let (others, socket, stop) = (others.collect(), Arc::clone(socket), Arc::clone(&stop));
            ports.push(std::thread::spawn(move || forward(&socket, others, &stop)));
        }
        Ok(Self { stop, ports })
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for port in self.ports.drain(..) {
            // A port that panicked has said so on standard error.
            let _ = port.join();
        }
    }
}

/// A host as another host's port sees it.
struct Destination {
    host: PathBuf,
    /// The host's own port: what it receives comes from there.
    port: Arc<UnixDatagram>,
    /// Its queue was full for longer than [`PATIENCE`]; frames are lost without waiting until there is room again.
    stalled: bool,
}

impl Destination {
    fn send(&mut self, frame: &[u8]) {
        let Ok(address) = SocketAddrUnix::new(&self.host) else { return };
        match rustix::net::sendto(&self.port, frame, SendFlags::DONTWAIT, &address) {
            Ok(_) => self.stalled = false,
            Err(Errno::AGAIN) if !self.stalled => {
                self.stalled = rustix::net::sendto(&self.port, frame, SendFlags::empty(), &address).is_err();
            }
            // A host that is off loses its frames, as one without power does.
            Err(_) => {}
        }
    }
}

fn forward(socket: &UnixDatagram, mut others: Vec<Destination>, stop: &AtomicBool) {
    let mut frame = vec![0; FRAME];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv(&mut frame) {
            Ok(length) => others.iter_mut().for_each(|other| other.send(&frame[..length])),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => {
                eprintln!("the lab's hub lost a port: {error}");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(folder: &Path, number: usize) -> UnixDatagram {
        let socket = UnixDatagram::bind(folder.join(host_path(number))).unwrap();
        socket.connect(folder.join(port_path(number))).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    }

    fn received(socket: &UnixDatagram) -> Vec<u8> {
        let mut frame = [0; 64];
        let length = socket.recv(&mut frame).unwrap();
        frame[..length].to_vec()
    }

    #[test]
    fn a_frame_reaches_all_hosts_but_its_sender() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("segment")).unwrap();
        let _hub = Hub::start(folder.path(), 3).unwrap();
        let hosts: Vec<_> = (1..=3).map(|number| host(folder.path(), number)).collect();
        hosts[0].send(b"from 1").unwrap();
        assert_eq!(received(&hosts[1]), b"from 1");
        assert_eq!(received(&hosts[2]), b"from 1");
        // What host 1 receives first is host 2's frame, not its own.
        hosts[1].send(b"from 2").unwrap();
        assert_eq!(received(&hosts[0]), b"from 2");
    }

    #[test]
    fn a_host_that_does_not_read_does_not_stop_the_others() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("segment")).unwrap();
        let _hub = Hub::start(folder.path(), 3).unwrap();
        let hosts: Vec<_> = (1..=3).map(|number| host(folder.path(), number)).collect();
        for count in 0..2000_u32 {
            hosts[0].send(&count.to_be_bytes()).unwrap();
            assert_eq!(
                received(&hosts[1]),
                count.to_be_bytes(),
                "host 3 reads nothing, host 2 misses nothing"
            );
        }
    }
}
