//! Streams that must not stand still.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::AsyncWrite,
    time::{Instant, Sleep, sleep},
};

/// Measures how long something has been pending.
#[derive(Debug)]
pub(super) struct StallTimer {
    limit: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
    pending: bool,
}

impl StallTimer {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, deadline: None, pending: false }
    }

    /// Passes `poll` on; once it has been pending for the limit, without an answer in between, fails with `error`.
    pub(super) fn watch<T, E>(
        &mut self,
        cx: &mut Context<'_>,
        poll: Poll<Result<T, E>>,
        error: impl FnOnce() -> E,
    ) -> Poll<Result<T, E>> {
        if poll.is_ready() {
            self.pending = false;
            return poll;
        }
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(self.limit)));
        if !self.pending {
            deadline.as_mut().reset(Instant::now() + self.limit);
            self.pending = true;
        }
        deadline.as_mut().poll(cx).map(|()| Err(error()))
    }
}

/// A writer that fails when nothing could be written for the limit.
#[derive(Debug)]
pub(super) struct StallGuard<W> {
    inner: W,
    timer: StallTimer,
}

impl<W> StallGuard<W> {
    pub(super) fn new(inner: W, limit: Duration) -> Self {
        Self { inner, timer: StallTimer::new(limit) }
    }
}

fn stalled() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the peer takes no more")
}

impl<W: AsyncWrite + Unpin> AsyncWrite for StallGuard<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.timer.watch(cx, poll, stalled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.inner).poll_flush(cx);
        self.timer.watch(cx, poll, stalled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.timer.watch(cx, poll, stalled)
    }
}
