//! One end of a connection.

use super::{
    MemoryNetwork,
    wires::{Attempt, Side, Wires},
};
use kubexen_ownership::HostName;
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// One end of a connection; dropping it ends the connection.
#[derive(Debug)]
pub(super) struct MemoryStream {
    network: MemoryNetwork,
    wire: u64,
    side: Side,
    reading: Pin<Box<Sleep>>,
    writing: Pin<Box<Sleep>>,
}

impl MemoryStream {
    /// A connection between two hosts: the ends of both.
    pub(super) fn pair(network: &MemoryNetwork, hosts: [&HostName; 2]) -> [Self; 2] {
        let wire = network.lock().wires.add(hosts);
        let pause = || Box::pin(sleep(Duration::ZERO));
        [Side::Caller, Side::Callee].map(|side| Self {
            network: network.clone(),
            wire,
            side,
            reading: pause(),
            writing: pause(),
        })
    }
}

/// Makes an attempt until it has a result, waiting for the moment that each one names.
fn poll_attempts<T>(
    network: &MemoryNetwork,
    pause: &mut Pin<Box<Sleep>>,
    cx: &mut Context<'_>,
    mut attempt: impl FnMut(&mut Wires, &Context<'_>, Instant) -> Attempt<T>,
) -> Poll<io::Result<T>> {
    loop {
        let attempt = attempt(&mut network.lock().wires, cx, Instant::now());
        match attempt {
            Attempt::Done(result) => return Poll::Ready(result),
            Attempt::Wait(None) => return Poll::Pending,
            Attempt::Wait(Some(until)) => {
                pause.as_mut().reset(until);
                ready!(pause.as_mut().poll(cx));
            }
        }
    }
}

impl AsyncRead for MemoryStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { network, wire, side, reading, .. } = &mut *self;
        poll_attempts(network, reading, cx, |wires, cx, now| wires.read(*wire, *side, buffer, cx, now))
    }
}

impl AsyncWrite for MemoryStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { network, wire, side, writing, .. } = &mut *self;
        poll_attempts(network, writing, cx, |wires, cx, now| wires.write(*wire, *side, bytes, cx, now))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.network.lock().wires.end(self.wire, self.side, Instant::now());
        Poll::Ready(Ok(()))
    }
}

impl Drop for MemoryStream {
    fn drop(&mut self) {
        self.network.lock().wires.drop_end(self.wire, self.side, Instant::now());
    }
}
