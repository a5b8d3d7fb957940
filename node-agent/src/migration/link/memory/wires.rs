//! What is on its way between hosts, as a function of time.

use super::super::DEAD_LINK_LIMIT;
use bytes::{Buf, Bytes};
use kubexen_ownership::HostName;
use std::{
    collections::{BTreeMap, VecDeque},
    io,
    num::NonZeroU64,
    task::{Context, Waker},
    time::Duration,
};
use tokio::{io::ReadBuf, time::Instant};

/// How many bytes of one direction can have been sent and not read, as the buffers of two sockets hold them.
const WINDOW: usize = 256 * 1024;

/// Whose end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Of the agent that connected.
    Caller,
    /// Of the agent that it connected to.
    Callee,
}

/// What became of an attempt to read or write.
#[derive(Debug)]
pub(super) enum Attempt<T> {
    Done(io::Result<T>),
    /// To be made again when woken, or at this moment.
    Wait(Option<Instant>),
}

/// All connections, and what ails them.
#[derive(Debug, Default)]
pub(super) struct Wires {
    pub(super) latency: Duration,
    /// In bytes per second and direction.
    pub(super) rate: Option<NonZeroU64>,
    wires: BTreeMap<u64, Wire>,
    last: u64,
    /// By sender and receiver.
    cuts: BTreeMap<(HostName, HostName), Cut>,
    /// How many cuts kept something from its receiver.
    pub(super) cuts_felt: u64,
}

#[derive(Debug)]
struct Cut {
    /// How many bytes still arrive.
    bytes_left: u64,
    /// Since none do.
    since: Option<Instant>,
    /// Whether it kept something from its receiver.
    felt: bool,
}

#[derive(Debug)]
struct Wire {
    caller: End,
    callee: End,
    failed: bool,
}

/// One end, with what it has sent.
#[derive(Debug)]
struct End {
    host: HostName,
    sent: VecDeque<(Instant, Bytes)>,
    /// Bytes in `sent`.
    unread: usize,
    /// When the last byte sent so far has left.
    free_at: Instant,
    /// When the peer learns that no more will be sent.
    ends_at: Option<Instant>,
    dropped: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl End {
    fn new(host: &HostName) -> Self {
        Self {
            host: host.clone(),
            sent: VecDeque::new(),
            unread: 0,
            free_at: Instant::now(),
            ends_at: None,
            dropped: false,
            reader: None,
            writer: None,
        }
    }

    fn end(&mut self, now: Instant, latency: Duration) {
        self.ends_at.get_or_insert(self.free_at.max(now) + latency);
    }

    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }
}

impl Wire {
    /// The end of `side`, and that of its peer.
    fn ends(&mut self, side: Side) -> (&mut End, &mut End) {
        match side {
            Side::Caller => (&mut self.caller, &mut self.callee),
            Side::Callee => (&mut self.callee, &mut self.caller),
        }
    }

    fn wake(&mut self) {
        self.caller.wake();
        self.callee.wake();
    }

    /// When the connection fails, if nothing is mended.
    fn fails_at(&self, cuts: &BTreeMap<(HostName, HostName), Cut>) -> Option<Instant> {
        let (one, other) = (&self.caller.host, &self.callee.host);
        let ways = [(one.clone(), other.clone()), (other.clone(), one.clone())];
        ways.iter().filter_map(|way| cuts.get(way)?.since).min().map(|since| since + DEAD_LINK_LIMIT)
    }

    /// When the connection fails, if it has not.
    fn check(
        &mut self,
        cuts: &BTreeMap<(HostName, HostName), Cut>,
        now: Instant,
    ) -> io::Result<Option<Instant>> {
        let fails_at = self.fails_at(cuts);
        self.failed |= fails_at.is_some_and(|moment| moment <= now);
        if self.failed { Err(io::ErrorKind::TimedOut.into()) } else { Ok(fails_at) }
    }
}

impl Wires {
    /// A new connection; with its number.
    pub(super) fn add(&mut self, [caller, callee]: [&HostName; 2]) -> u64 {
        self.last += 1;
        let wire = Wire { caller: End::new(caller), callee: End::new(callee), failed: false };
        self.wires.insert(self.last, wire);
        self.last
    }

    pub(super) fn read(
        &mut self,
        wire: u64,
        side: Side,
        buffer: &mut ReadBuf<'_>,
        cx: &Context<'_>,
        now: Instant,
    ) -> Attempt<()> {
        let Some(wire) = self.wires.get_mut(&wire) else { return gone() };
        let fails_at = match wire.check(&self.cuts, now) {
            Ok(fails_at) => fails_at,
            Err(error) => return Attempt::Done(Err(error)),
        };
        let (me, peer) = wire.ends(side);
        let mut cut = self.cuts.get_mut(&(peer.host.clone(), me.host.clone()));
        let passes = cut.as_ref().map_or(u64::MAX, |cut| cut.bytes_left);
        let due = peer.sent.front().map(|(arrives, _)| *arrives).or(peer.ends_at);
        if let Some(cut) = &mut cut
            && passes == 0
            && due.is_some()
            && !cut.felt
        {
            cut.felt = true;
            self.cuts_felt += 1;
        }
        match due {
            Some(due) if due <= now && passes > 0 => {}
            Some(due) if passes > 0 => {
                me.reader = Some(cx.waker().clone());
                return Attempt::Wait(Some(fails_at.map_or(due, |fails_at| fails_at.min(due))));
            }
            None | Some(_) => {
                me.reader = Some(cx.waker().clone());
                return Attempt::Wait(fails_at);
            }
        }
        let Some((_, bytes)) = peer.sent.front_mut() else { return Attempt::Done(Ok(())) };
        let passes = usize::try_from(passes).unwrap_or(usize::MAX);
        let length = bytes.len().min(buffer.remaining()).min(passes);
        buffer.put_slice(&bytes[..length]);
        bytes.advance(length);
        if bytes.is_empty() {
            peer.sent.pop_front();
        }
        peer.unread -= length;
        if let Some(writer) = peer.writer.take() {
            writer.wake();
        }
        if let Some(cut) = cut {
            cut.bytes_left = cut.bytes_left.saturating_sub(u64::try_from(length).unwrap_or(u64::MAX));
            if cut.bytes_left == 0 {
                cut.since.get_or_insert(now);
                self.wires.values_mut().for_each(Wire::wake);
            }
        }
        Attempt::Done(Ok(()))
    }

    pub(super) fn write(
        &mut self,
        wire: u64,
        side: Side,
        bytes: &[u8],
        cx: &Context<'_>,
        now: Instant,
    ) -> Attempt<usize> {
        let Some(wire) = self.wires.get_mut(&wire) else { return gone() };
        let fails_at = match wire.check(&self.cuts, now) {
            Ok(fails_at) => fails_at,
            Err(error) => return Attempt::Done(Err(error)),
        };
        let (me, peer) = wire.ends(side);
        // Over a cut link nobody learns that the peer is gone.
        if me.ends_at.is_some() || (peer.dropped && fails_at.is_none()) {
            return Attempt::Done(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let length = bytes.len().min(WINDOW - me.unread);
        if length == 0 && !bytes.is_empty() {
            me.writer = Some(cx.waker().clone());
            return Attempt::Wait(fails_at);
        }
        me.free_at = me.free_at.max(now) + self.rate.map_or(Duration::ZERO, |rate| time_for(length, rate));
        me.sent.push_back((me.free_at + self.latency, Bytes::copy_from_slice(&bytes[..length])));
        me.unread += length;
        if let Some(reader) = peer.reader.take() {
            reader.wake();
        }
        Attempt::Done(Ok(length))
    }

    /// `side` will send no more.
    pub(super) fn end(&mut self, wire: u64, side: Side, now: Instant) {
        if let Some(wire) = self.wires.get_mut(&wire) {
            wire.ends(side).0.end(now, self.latency);
            wire.wake();
        }
    }

    /// `side` is gone.
    pub(super) fn drop_end(&mut self, number: u64, side: Side, now: Instant) {
        self.end(number, side, now);
        let Some(wire) = self.wires.get_mut(&number) else { return };
        let (me, peer) = wire.ends(side);
        me.dropped = true;
        if peer.dropped {
            self.wires.remove(&number);
        }
    }

    pub(super) fn cut(&mut self, from: &HostName, to: &HostName, bytes: u64, now: Instant) {
        let since = (bytes == 0).then_some(now);
        self.cuts.insert((from.clone(), to.clone()), Cut { bytes_left: bytes, since, felt: false });
        self.wires.values_mut().for_each(Wire::wake);
    }

    pub(super) fn mend(&mut self, from: &HostName, to: &HostName, now: Instant) {
        for wire in self.wires.values_mut() {
            // What has lasted too long stays so.
            wire.failed |= wire.check(&self.cuts, now).is_err();
            wire.wake();
        }
        self.cuts.remove(&(from.clone(), to.clone()));
    }

    /// Whether nothing gets from one of them to the other, or back.
    pub(super) fn are_cut(&self, one: &HostName, other: &HostName) -> bool {
        let ways = [(one.clone(), other.clone()), (other.clone(), one.clone())];
        ways.iter().any(|way| self.cuts.get(way).is_some_and(|cut| cut.since.is_some()))
    }
}

fn gone<T>() -> Attempt<T> {
    Attempt::Done(Err(io::ErrorKind::NotConnected.into()))
}

/// How long `bytes` take at a rate in bytes per second.
fn time_for(bytes: usize, rate: NonZeroU64) -> Duration {
    let nanos = (bytes as u128 * 1_000_000_000).div_ceil(u128::from(rate.get()));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}
