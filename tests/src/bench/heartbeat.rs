//! A guest's own count against this machine's clock: how long the guest stood still.
//!
//! The guest sends a numbered packet (an ICMP echo request, to everybody) each time [`INTERVAL`] has passed by its own clock,
//! which stands still while the guest does. A tap on the wire between the hosts notes when each came by. Between two that
//! follow each other the guest stood still for as long as this machine's clock went further than the guest counted;
//! packets that were lost on their way are so no downtime.

use crate::{lab::Tap, process::wait_until};
use anyhow::{Result, ensure};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Time between two packets, by the guest's clock; `files/guest-init.sh` has the same.
const INTERVAL: Duration = Duration::from_millis(100);
/// Packets that a guest has sent when it is up.
const ENOUGH: usize = 20;

/// A packet that came by.
#[derive(Clone, Copy, Debug)]
struct Beat {
    number: u16,
    at: Instant,
}

/// The packets of one guest that came by.
#[derive(Clone, Debug, Default)]
pub(super) struct Heartbeat(Arc<Mutex<Vec<Beat>>>);

impl Heartbeat {
    /// Notes the packets of any guest.
    pub(super) fn tap(&self) -> Tap {
        let heartbeat = self.clone();
        Tap::new(move |frame| {
            if let Some(number) = number(frame) {
                heartbeat.beats().push(Beat { number, at: Instant::now() });
            }
        })
    }

    /// Forgets all, and waits until a guest is up.
    pub(super) async fn wait(&self, limit: Duration) -> Result<()> {
        self.beats().clear();
        wait_until("the guest's packets come by", limit, async || {
            let came = self.beats().len();
            ensure!(came >= ENOUGH, "{came} came by");
            Ok(())
        })
        .await
    }

    /// The longest time for which the guest stood still since `begin`.
    pub(super) fn downtime(&self, begin: Instant) -> Duration {
        let beats = self.beats();
        let since: Vec<Beat> = beats.iter().copied().filter(|beat| beat.at >= begin).collect();
        since.windows(2).map(|pair| stood_still(pair[0], pair[1])).max().unwrap_or_default()
    }

    fn beats(&self) -> MutexGuard<'_, Vec<Beat>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How much further the clock went than the count.
fn stood_still(before: Beat, after: Beat) -> Duration {
    let counted = INTERVAL * u32::from(after.number.wrapping_sub(before.number));
    after.at.duration_since(before.at).saturating_sub(counted)
}

/// The number in an ICMP echo request inside an Ethernet frame, if it is one and its IPv4 header has no options.
fn number(frame: &[u8]) -> Option<u16> {
    let is_echo_request =
        frame.get(12..15)? == [0x08, 0x00, 0x45] && frame.get(23)? == &1 && frame.get(34)? == &8;
    let number = frame.get(40..42)?.try_into().ok()?;
    is_echo_request.then_some(u16::from_be_bytes(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(number: u16) -> Vec<u8> {
        let mut frame = vec![0; 58];
        frame[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
        (frame[23], frame[34]) = (1, 8);
        frame[40..42].copy_from_slice(&number.to_be_bytes());
        frame
    }

    #[test]
    fn only_echo_requests_have_a_number() {
        assert_eq!(number(&frame(513)), Some(513));
        let mut reply = frame(513);
        reply[34] = 0;
        assert_eq!(number(&reply), None);
        assert_eq!(number(&frame(513)[..41]), None);
        assert_eq!(number(&[]), None);
    }

    #[test]
    fn lost_packets_are_no_downtime_and_a_count_that_stood_still_is() {
        let begin = Instant::now();
        let beat = |number, millis| Beat { number, at: begin + Duration::from_millis(millis) };
        assert_eq!(stood_still(beat(1, 0), beat(2, 100)), Duration::ZERO);
        assert_eq!(stood_still(beat(1, 0), beat(11, 1000)), Duration::ZERO, "nine were lost");
        assert_eq!(stood_still(beat(1, 0), beat(2, 600)), Duration::from_millis(500));
        assert_eq!(stood_still(beat(1, 0), beat(11, 1500)), Duration::from_millis(500));
        assert_eq!(stood_still(beat(u16::MAX, 0), beat(0, 100)), Duration::ZERO);
    }
}
