//! Streams that are kept to a rate.

use std::{
    io,
    num::NonZeroU64,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::AsyncWrite,
    time::{Instant, Sleep, sleep},
};

/// Time whose worth of bytes may be written at once.
const BURST: Duration = Duration::from_millis(50);
/// What may be written at once at least, in bytes: a slow stream is not to consist of crumbs.
const LEAST_BURST: usize = 4096;
const NANOS: u128 = 1_000_000_000;

/// A writer through which bytes pass at a rate: a token bucket.
///
/// Within any time `t` at most `rate · t` bytes pass, and a burst: what the rate yields in 50 ms, and 4 KiB at least.
/// Time is tokio's.
#[derive(Debug)]
pub struct RateLimited<W> {
    inner: W,
    /// In bytes per second.
    rate: NonZeroU64,
    /// In bytes.
    burst: usize,
    /// When the bucket is full again, if nothing more is written.
    full_at: Instant,
    pause: Pin<Box<Sleep>>,
}

impl<W> RateLimited<W> {
    /// Lets at most `rate` bytes per second through to `inner`.
    #[must_use]
    pub fn new(inner: W, rate: NonZeroU64) -> Self {
        let burst = u128::from(rate.get()) * BURST.as_nanos() / NANOS;
        let burst = usize::try_from(burst).unwrap_or(usize::MAX).max(LEAST_BURST);
        Self { inner, rate, burst, full_at: Instant::now(), pause: Box::pin(sleep(Duration::ZERO)) }
    }

    /// The writer beneath.
    pub fn into_inner(self) -> W {
        self.inner
    }

    /// How long the rate takes for `bytes`.
    fn time_for(&self, bytes: usize) -> Duration {
        // A usize has at most 64 bits.
        let nanos = (bytes as u128 * NANOS).div_ceil(u128::from(self.rate.get()));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for RateLimited<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let length = bytes.len().min(this.burst);
        let spare = this.time_for(this.burst).saturating_sub(this.time_for(length));
        let now = Instant::now();
        if let Some(wait) = this.full_at.checked_duration_since(now + spare).filter(|wait| !wait.is_zero()) {
            this.pause.as_mut().reset(now + wait);
            ready!(this.pause.as_mut().poll(cx));
        }
        let written = ready!(Pin::new(&mut this.inner).poll_write(cx, &bytes[..length]))?;
        this.full_at = this.full_at.max(now) + this.time_for(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::{AsyncWriteExt, sink};

    fn limited(rate: u64) -> RateLimited<tokio::io::Sink> {
        RateLimited::new(sink(), NonZeroU64::new(rate).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn ten_seconds_worth_takes_ten_seconds() {
        for rate in [1_000, 1_000_000, 10_000_000_000] {
            let mut writer = limited(rate);
            let began = Instant::now();
            let mut left = usize::try_from(10 * rate).unwrap();
            let chunk = vec![0; 1 << 20];
            while left > 0 {
                let length = left.min(chunk.len()).min(writer.burst * 3);
                writer.write_all(&chunk[..length]).await.unwrap();
                left -= length;
            }
            let least = Duration::from_secs(10).saturating_sub(writer.time_for(writer.burst));
            let took = began.elapsed();
            assert!((least..Duration::from_millis(10_100)).contains(&took), "{rate} bytes/s took {took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_saves_up_no_more_than_a_burst() {
        let mut writer = limited(1_000_000);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let began = Instant::now();
        writer.write_all(&vec![0; 1_000_000]).await.unwrap();
        assert!(began.elapsed() >= Duration::from_millis(940), "took {:?}", began.elapsed());
    }

    proptest! {
        #[test]
        fn no_pattern_of_writes_is_faster_than_the_rate(
            rate in 1..100_000_000_u64,
            writes in prop::collection::vec((0..100_u64, 1..100_000_usize), 1..20),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            runtime.block_on(async {
                let mut writer = limited(rate);
                let (began, mut sent) = (Instant::now(), 0);
                for (pause, length) in writes {
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                    writer.write_all(&vec![0; length]).await.unwrap();
                    sent += length;
                    let least = writer.time_for(sent.saturating_sub(writer.burst));
                    assert!(began.elapsed() >= least, "{sent} bytes after {:?}", began.elapsed());
                }
            });
        }
    }
}
