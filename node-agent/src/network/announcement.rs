//! Tells the network where a guest is now, before the guest itself says anything.
//!
//! A switch sends a guest's frames to the port from which it last saw the guest's address as a sender. So a frame with that
//! address is sent on the guest's bridge, which repeats it on all ports. It is a request of RARP, as QEMU sends it after a
//! migration: it needs no IP address, and hosts that hear it do nothing.

use super::NetworkError;
use pnet_datalink::{Channel, Config, MacAddr, NetworkInterface, channel};
use std::io;

/// The shortest frame of Ethernet, without its checksum.
const FRAME: usize = 60;

/// The frame (RFC 903) that a guest with this address would send if it asked for its own IP address.
fn frame(address: MacAddr) -> [u8; FRAME] {
    let address = address.octets();
    let mut frame = [0; FRAME];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&address);
    // RARP; for Ethernet and IPv4; addresses of 6 and of 4 bytes; "request reverse".
    frame[12..22].copy_from_slice(&[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    frame[22..28].copy_from_slice(&address);
    frame[32..38].copy_from_slice(&address);
    frame
}

/// Sends the frame from the bridge device of this index.
pub(super) fn announce(bridge: &str, index: u32, address: &str) -> Result<(), NetworkError> {
    let io = |source| NetworkError::Io { call: "announce a guest", source };
    let address = address.parse().map_err(|error| io(io::Error::other(format!("{address}: {error}"))))?;
    let device = NetworkInterface {
        name: bridge.to_owned(),
        description: String::new(),
        index,
        mac: None,
        ips: Vec::new(),
        flags: 0,
    };
    match channel(&device, Config::default()).map_err(io)? {
        Channel::Ethernet(mut sender, _) => {
            let sent = sender.send_to(&frame(address), None);
            sent.unwrap_or_else(|| Err(io::Error::other("the frame is too long"))).map_err(io)
        }
        _ => Err(io(io::Error::other("the device takes no frames"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_is_a_broadcast_from_the_guests_address() {
        let frame = frame("00:16:3e:12:34:56".parse().unwrap());
        let address = [0x00, 0x16, 0x3e, 0x12, 0x34, 0x56];
        assert_eq!(frame[..6], [0xff; 6]);
        assert_eq!(frame[6..12], address);
        assert_eq!(frame[12..14], [0x80, 0x35]);
        assert_eq!((&frame[22..28], &frame[32..38]), (&address[..], &address[..]));
    }
}
