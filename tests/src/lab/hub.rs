//! The layer-2 segment of a lab with more than two hosts, or with a tap: a switch that learns where addresses are.
//!
//! Two hosts need no hub: their QEMU processes send frames to each other. Ports are Unix datagram sockets: the hub
//! receives a host's frames on `segment/port-N` and sends to `segment/host-N`, which QEMU owns.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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

/// Sees every frame that a host sends, before it is passed on. It holds its port up, so it should be quick.
#[derive(Clone)]
pub struct Tap(Arc<See>);

type See = dyn Fn(&[u8]) + Send + Sync;

impl Tap {
    /// A tap that shows each frame to `see`.
    pub fn new(see: impl Fn(&[u8]) + Send + Sync + 'static) -> Self {
        Self(Arc::new(see))
    }
}

impl std::fmt::Debug for Tap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tap").finish_non_exhaustive()
    }
}

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
    pub fn start(folder: &Path, hosts: usize, tap: Option<&Tap>) -> Result<Self> {
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
        let learned = Arc::new(Learned::default());
        let mut ports = Vec::new();
        for (number, socket) in &sockets {
            let others = sockets.iter().filter(|(other, _)| other != number);
            let others = others.map(|(other, port)| Destination {
                number: *other,
                host: folder.join(host_path(*other)),
                port: Arc::clone(port),
                stalled: false,
            });
            let others = others.collect();
            let (number, socket) = (*number, Arc::clone(socket));
            let (learned, stop, tap) = (Arc::clone(&learned), Arc::clone(&stop), tap.cloned());
            let port = move || forward(number, &socket, others, &learned, tap.as_ref(), &stop);
            ports.push(std::thread::spawn(port));
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

/// Where each source address was seen last. Guests move between hosts: a later frame corrects an earlier one.
#[derive(Default)]
struct Learned(Mutex<BTreeMap<[u8; 6], usize>>);

impl Learned {
    /// Notes the sender of a frame that came from `number`, and returns the host to which alone the frame is to go, if that
    /// is known. Nobody sends from a group address, so frames to groups go everywhere.
    fn route(&self, frame: &[u8], number: usize) -> Option<usize> {
        let destination: [u8; 6] = frame.get(0..6)?.try_into().ok()?;
        let source: [u8; 6] = frame.get(6..12)?.try_into().ok()?;
        let mut hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.insert(source, number);
        hosts.get(&destination).copied()
    }
}

/// A host as another host's port sees it.
struct Destination {
    number: usize,
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

fn forward(
    number: usize,
    socket: &UnixDatagram,
    mut others: Vec<Destination>,
    learned: &Learned,
    tap: Option<&Tap>,
    stop: &AtomicBool,
) {
    let mut buffer = vec![0; FRAME];
    while !stop.load(Ordering::Relaxed) {
        let frame = match socket.recv(&mut buffer) {
            Ok(length) => &buffer[..length],
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => continue,
            Err(error) => {
                eprintln!("the lab's hub lost a port: {error}");
                return;
            }
        };
        if let Some(Tap(see)) = tap {
            see(frame);
        }
        let only = learned.route(frame, number);
        for other in others.iter_mut().filter(|other| only.is_none_or(|only| only == other.number)) {
            other.send(frame);
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

    fn frame(to: u8, from: u8, text: &[u8]) -> Vec<u8> {
        [&[0x52, 0, 0, 0, 0, to], &[0x52, 0, 0, 0, 0, from], text].concat()
    }

    fn hub() -> (tempfile::TempDir, Hub, Vec<UnixDatagram>) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("segment")).unwrap();
        let hub = Hub::start(folder.path(), 3, None).unwrap();
        let hosts = (1..=3).map(|number| host(folder.path(), number)).collect();
        (folder, hub, hosts)
    }

    #[test]
    fn a_frame_to_an_unknown_address_reaches_all_hosts_but_its_sender() {
        let (_folder, _hub, hosts) = hub();
        let sent = frame(9, 1, b"from 1");
        hosts[0].send(&sent).unwrap();
        assert_eq!(received(&hosts[1]), sent);
        assert_eq!(received(&hosts[2]), sent);
        // What host 1 receives first is host 2's frame, not its own.
        let other = frame(9, 2, b"from 2");
        hosts[1].send(&other).unwrap();
        assert_eq!(received(&hosts[0]), other);
    }

    #[test]
    fn a_frame_to_a_known_address_reaches_its_host_alone_also_after_a_move() {
        let (_folder, _hub, hosts) = hub();
        for home in [1, 2] {
            let hello = frame(0xff, 7, b"I am here");
            hosts[home].send(&hello).unwrap();
            assert_eq!(received(&hosts[0]), hello);
            assert_eq!(received(&hosts[3 - home]), hello);
            hosts[0].send(&frame(7, 1, b"to 7")).unwrap();
            assert_eq!(received(&hosts[home]), frame(7, 1, b"to 7"));
            // The next frame that the third host sees is one for everybody.
            hosts[0].send(&frame(0xff, 1, b"to all")).unwrap();
            assert_eq!(received(&hosts[3 - home]), frame(0xff, 1, b"to all"));
            assert_eq!(received(&hosts[home]), frame(0xff, 1, b"to all"));
        }
    }

    #[test]
    fn a_host_that_does_not_read_does_not_stop_the_others() {
        let (_folder, _hub, hosts) = hub();
        for count in 0..2000_u32 {
            let sent = frame(0xff, 1, &count.to_be_bytes());
            hosts[0].send(&sent).unwrap();
            assert_eq!(received(&hosts[1]), sent, "host 3 reads nothing, host 2 misses nothing");
        }
    }
}
