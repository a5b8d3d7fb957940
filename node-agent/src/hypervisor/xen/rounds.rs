//! How often libxl goes through a guest's memory while it suspends it, and how fast the guest writes meanwhile.
//!
//! libxl tells that only as progress for people: at the end of each round the words `Frames iteration <number>` with the
//! pages that the round had, and `Domain now suspended` between the last live round and the one that the guest stands still
//! for (`xg_sr_save.c` of Xen 4.17). A worker repeats these on its log, by [`progress_line`].

use std::time::Duration;
use tokio::time::Instant;

const MARK: &str = "progress:";
const ROUND: &str = "Frames iteration ";
const SUSPENDED: &str = "Domain now suspended";

/// The line of a worker's log for one of libxl's words of progress; nothing for words that tell nothing of rounds.
pub(super) fn progress_line(doing: &str, done: u64, total: u64) -> Option<String> {
    let is_told = doing.starts_with(ROUND) || doing == SUSPENDED;
    (is_told && done == total).then(|| format!("{MARK}{total} {doing}"))
}

/// The rounds of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rounds {
    count: u32,
    /// Pages of the round that ended last.
    pages: u64,
    /// When it ended, and when the guest was suspended.
    ended: Option<Instant>,
    suspended: Option<Instant>,
    /// For how long the guest wrote to the pages of the round that ended last.
    written_for: Option<Duration>,
}

impl Rounds {
    /// Takes a line of a worker's log that came at this moment; says whether it was one of these.
    pub(super) fn take(&mut self, line: &[u8], now: Instant) -> bool {
        let Some(words) = std::str::from_utf8(line).ok().and_then(|line| line.strip_prefix(MARK)) else {
            return false;
        };
        match words.split_once(' ') {
            Some((_, SUSPENDED)) => self.suspended = Some(now),
            Some((pages, _)) => {
                let until = self.suspended.unwrap_or(now);
                self.written_for = self.ended.map(|ended| until.duration_since(ended));
                self.count += 1;
                self.pages = pages.parse().unwrap_or(0);
                self.ended = Some(now);
            }
            None => {}
        }
        true
    }

    /// How many there were, if libxl told of any.
    #[must_use]
    pub fn count(&self) -> Option<u32> {
        (self.count > 0).then_some(self.count)
    }

    /// Pages of 4 KiB that the guest wrote to each second before the last round; none if there was but one.
    #[must_use]
    pub fn dirty_pages_per_second(&self) -> Option<u64> {
        let milliseconds = self.written_for?.as_millis().max(1);
        u64::try_from(u128::from(self.pages) * 1000 / milliseconds).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_counted_and_the_rate_is_that_before_the_last_one() {
        let start = Instant::now();
        let mut rounds = Rounds::default();
        let mut hear = |at_ms: u64, doing: &str, done, total| {
            let Some(line) = progress_line(doing, done, total) else { return false };
            assert!(rounds.take(line.as_bytes(), start + Duration::from_millis(at_ms)));
            true
        };
        assert!(!hear(0, "Start of stream", 0, 0));
        assert!(!hear(100, "Frames iteration 0", 1024, 26_000));
        assert!(hear(1_000, "Frames iteration 0", 26_000, 26_000));
        assert!(hear(1_500, "Frames iteration 1", 900, 900));
        assert!(hear(2_000, "Domain now suspended", 0, 0));
        assert!(hear(2_100, "Frames iteration 2", 50, 50));
        assert_eq!(rounds.count(), Some(3));
        assert_eq!(rounds.dirty_pages_per_second(), Some(100), "50 pages in half a second");
    }

    #[test]
    fn what_libxl_did_not_tell_is_not_made_up() {
        let mut rounds = Rounds::default();
        assert!(!rounds.take(b"libxl: error: Frames iteration 1", Instant::now()));
        assert_eq!((rounds.count(), rounds.dirty_pages_per_second()), (None, None));
        let line = progress_line("Frames iteration 0", 7, 7).unwrap();
        assert!(rounds.take(line.as_bytes(), Instant::now()));
        assert_eq!((rounds.count(), rounds.dirty_pages_per_second()), (Some(1), None));
    }
}
