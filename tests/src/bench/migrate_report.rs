//! What moves of guests showed.

use super::report::{median, rounded};
use serde::Serialize;
use std::fmt;

/// What moves of an idle and of a busy guest showed. Each figure at the top is the worse one of the two guests'.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MigrateReport {
    /// Of the guest with the greater `downtime_ratio`, likewise `xl_downtime_ms`.
    pub downtime_ms: f64,
    /// The same by `xl migrate`.
    pub xl_downtime_ms: f64,
    /// The greater one.
    pub downtime_ratio: f64,
    /// The greater one.
    pub total_ratio: f64,
    /// The lesser one.
    pub throughput_ratio: f64,
    /// Of a guest that does nothing but count.
    pub idle: GuestMoves,
    /// Of a guest that writes to 32 MiB of its memory over and over.
    pub busy: GuestMoves,
}

/// What moves of one guest showed; medians.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct GuestMoves {
    /// Milliseconds for which the guest stood still: its count against a clock.
    pub downtime_ms: f64,
    /// The same by `xl migrate`.
    pub xl_downtime_ms: f64,
    /// The first by the second.
    pub downtime_ratio: f64,
    /// From the create of the VirtualMachineMigration until it is Succeeded.
    pub total_seconds: f64,
    /// From the start of `xl migrate` to its end.
    pub xl_total_seconds: f64,
    /// The first by the second.
    pub total_ratio: f64,
    /// Bytes of the guest that were sent, in megabytes of 10⁶.
    pub transferred_mb: f64,
    /// These by the time that their transfer took, in megabytes a second.
    pub mb_per_second: f64,
    /// What plain TCP carries between the same two hosts beside the same guest, in megabytes a second.
    pub tcp_mb_per_second: f64,
    /// What a stream of the agents carries likewise, with nothing but its own work at the ends.
    pub stream_mb_per_second: f64,
    /// The second of these two by the first.
    pub throughput_ratio: f64,
}

/// One move.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) downtime_ms: f64,
    pub(super) total_seconds: f64,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} s, downtime {:.0} ms", self.total_seconds, self.downtime_ms)
    }
}

/// What was sent in one move.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) megabytes: f64,
    pub(super) seconds: f64,
}

/// What a link carried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rates {
    pub(super) tcp_mb_per_second: f64,
    pub(super) stream_mb_per_second: f64,
}

impl fmt::Display for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tcp_mb_per_second, stream_mb_per_second } = self;
        write!(f, "plain TCP {tcp_mb_per_second:.1} MB/s, the agents' stream {stream_mb_per_second:.1} MB/s")
    }
}

impl GuestMoves {
    pub(super) fn of(ours: &[(Sample, Sent)], xl: &[Sample], links: &[Rates]) -> Self {
        let downtime_ms = median(ours.iter().map(|(sample, _)| sample.downtime_ms));
        let xl_downtime_ms = median(xl.iter().map(|sample| sample.downtime_ms));
        let total_seconds = median(ours.iter().map(|(sample, _)| sample.total_seconds));
        let xl_total_seconds = median(xl.iter().map(|sample| sample.total_seconds));
        let mb_per_second = median(ours.iter().map(|(_, sent)| sent.megabytes / sent.seconds));
        let tcp_mb_per_second = median(links.iter().map(|link| link.tcp_mb_per_second));
        let stream_mb_per_second = median(links.iter().map(|link| link.stream_mb_per_second));
        Self {
            downtime_ms: rounded(downtime_ms),
            xl_downtime_ms: rounded(xl_downtime_ms),
            downtime_ratio: rounded(downtime_ms / xl_downtime_ms),
            total_seconds: rounded(total_seconds),
            xl_total_seconds: rounded(xl_total_seconds),
            total_ratio: rounded(total_seconds / xl_total_seconds),
            transferred_mb: rounded(median(ours.iter().map(|(_, sent)| sent.megabytes))),
            mb_per_second: rounded(mb_per_second),
            tcp_mb_per_second: rounded(tcp_mb_per_second),
            stream_mb_per_second: rounded(stream_mb_per_second),
            throughput_ratio: rounded(stream_mb_per_second / tcp_mb_per_second),
        }
    }
}

impl MigrateReport {
    pub(super) fn of(idle: GuestMoves, busy: GuestMoves) -> Self {
        let worse = if busy.downtime_ratio > idle.downtime_ratio { busy } else { idle };
        Self {
            downtime_ms: worse.downtime_ms,
            xl_downtime_ms: worse.xl_downtime_ms,
            downtime_ratio: worse.downtime_ratio,
            total_ratio: idle.total_ratio.max(busy.total_ratio),
            throughput_ratio: idle.throughput_ratio.min(busy.throughput_ratio),
            idle,
            busy,
        }
    }
}

impl fmt::Display for MigrateReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "an idle guest\n{}", self.idle)?;
        writeln!(f, "a guest that writes to 32 MiB over and over\n{}", self.busy)
    }
}

impl fmt::Display for GuestMoves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  downtime                   {:.0} ms", self.downtime_ms)?;
        writeln!(f, "    by xl migrate            {:.0} ms", self.xl_downtime_ms)?;
        writeln!(f, "    ratio                    {:.2}", self.downtime_ratio)?;
        writeln!(f, "  total                      {:.2} s", self.total_seconds)?;
        writeln!(f, "    by xl migrate            {:.2} s", self.xl_total_seconds)?;
        writeln!(f, "    ratio                    {:.2}", self.total_ratio)?;
        writeln!(f, "  transferred                {:.1} MB", self.transferred_mb)?;
        writeln!(f, "    of these each second     {:.1} MB", self.mb_per_second)?;
        writeln!(f, "  the agents' stream         {:.1} MB/s", self.stream_mb_per_second)?;
        writeln!(f, "    plain TCP                {:.1} MB/s", self.tcp_mb_per_second)?;
        write!(f, "    ratio                    {:.2}", self.throughput_ratio)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moves(downtime_ms: f64, total_seconds: f64, stream_mb_per_second: f64) -> GuestMoves {
        let ours = [(Sample { downtime_ms, total_seconds }, Sent { megabytes: 100.0, seconds: 5.0 })];
        let xl = [Sample { downtime_ms: 100.0, total_seconds: 10.0 }];
        GuestMoves::of(&ours, &xl, &[Rates { tcp_mb_per_second: 20.0, stream_mb_per_second }])
    }

    #[test]
    fn what_stands_at_the_top_is_the_worse_guests() {
        let report = MigrateReport::of(moves(120.0, 13.0, 20.0), moves(140.0, 11.0, 10.0));
        assert_eq!((report.downtime_ms, report.xl_downtime_ms, report.downtime_ratio), (140.0, 100.0, 1.4));
        assert_eq!((report.total_ratio, report.throughput_ratio), (1.3, 0.5));
        assert_eq!(report.idle.throughput_ratio, 1.0);
    }
}
