//! A queue of keys to reconcile: each key once however often it was added, never two workers on one key, waits
//! that grow while a key keeps failing.

use futures::{StreamExt, stream::FuturesUnordered};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::Debug,
    future::Future,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// First wait of a key that failed; it doubles with every failure in a row, up to [`LONGEST_BACKOFF`].
const SHORTEST_BACKOFF: Duration = Duration::from_millis(250);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// What a reconcile says of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing to do until something changes.
    Settled,
    /// Look again after this time, even if nothing changes.
    Again(Duration),
    /// It failed; look again after a back-off.
    Failed,
}

/// A queue of keys. Shared by reference between those who add and the one who runs it.
#[derive(Debug)]
pub struct WorkQueue<T> {
    state: Mutex<State<T>>,
    wake: Notify,
}

#[derive(Debug)]
struct State<T> {
    ready: VecDeque<T>,
    queued: BTreeSet<T>,
    working: BTreeSet<T>,
    delayed: BTreeMap<T, Instant>,
    failures: BTreeMap<T, u32>,
}

impl<T> Default for State<T> {
    fn default() -> Self {
        Self {
            ready: VecDeque::new(),
            queued: BTreeSet::new(),
            working: BTreeSet::new(),
            delayed: BTreeMap::new(),
            failures: BTreeMap::new(),
        }
    }
}

impl<T> Default for WorkQueue<T> {
    fn default() -> Self {
        Self { state: Mutex::default(), wake: Notify::new() }
    }
}

impl<T: Ord + Clone + Debug> WorkQueue<T> {
    /// Asks for a look at `key` now. While a worker is on it, the look follows when that worker is done.
    pub fn add(&self, key: T) {
        let mut state = self.lock();
        state.delayed.remove(&key);
        if state.queued.insert(key.clone()) {
            state.ready.push_back(key);
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Asks for a look at `key` after `delay`, or earlier if it is asked for earlier.
    pub fn add_after(&self, key: T, delay: Duration) {
        let due = Instant::now() + delay;
        let mut state = self.lock();
        if !state.queued.contains(&key) {
            let at = state.delayed.entry(key).or_insert(due);
            *at = due.min(*at);
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Number of keys that wait for a worker now.
    pub fn depth(&self) -> usize {
        self.lock().ready.len()
    }

    /// Forgets every key, and that keys failed.
    pub fn clear(&self) {
        *self.lock() = State::default();
    }

    /// Works the queue off for ever, at most `concurrency` keys at a time. Dropping the future stops all of them; what
    /// was being worked is then neither queued nor done, and a queue that is to run again is cleared first.
    pub async fn run<F, W>(&self, concurrency: usize, mut work: F)
    where
        F: FnMut(T) -> W,
        W: Future<Output = Outcome>,
    {
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < concurrency {
                let Some(key) = self.take() else { break };
                let reconcile = work(key.clone());
                running.push(async move { (key, reconcile.await) });
            }
            // With all workers busy, a key that is due waits for the first of them alone.
            let next_due = if running.len() < concurrency { self.next_due() } else { None };
            tokio::select! {
                biased;
                Some((key, outcome)) = running.next(), if !running.is_empty() => self.finish(key, outcome),
                () = self.wake.notified() => {}
                () = sleep_until(next_due) => {}
            }
        }
    }

    fn take(&self) -> Option<T> {
        let now = Instant::now();
        let mut state = self.lock();
        let due: Vec<T> =
            state.delayed.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
        for key in due {
            state.delayed.remove(&key);
            if state.queued.insert(key.clone()) {
                state.ready.push_back(key);
            }
        }
        let position = state.ready.iter().position(|key| !state.working.contains(key))?;
        let key = state.ready.remove(position)?;
        state.queued.remove(&key);
        state.working.insert(key.clone());
        Some(key)
    }

    fn finish(&self, key: T, outcome: Outcome) {
        let delay = {
            let mut state = self.lock();
            state.working.remove(&key);
            match outcome {
                Outcome::Settled => {
                    state.failures.remove(&key);
                    None
                }
                Outcome::Again(delay) => {
                    state.failures.remove(&key);
                    Some(delay)
                }
                Outcome::Failed => {
                    let failures = state.failures.entry(key.clone()).or_insert(0);
                    *failures = failures.saturating_add(1);
                    let doublings = (*failures - 1).min(16);
                    Some((SHORTEST_BACKOFF * 2_u32.pow(doublings)).min(LONGEST_BACKOFF))
                }
            }
        };
        if let Some(delay) = delay {
            self.add_after(key, delay);
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let state = self.lock();
        state.delayed.iter().filter(|(key, _)| !state.working.contains(*key)).map(|(_, at)| *at).min()
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::RefCell, future::poll_fn, pin::pin};

    async fn run_for<W: Future<Output = Outcome>>(
        queue: &WorkQueue<&'static str>,
        concurrency: usize,
        time: Duration,
        work: impl FnMut(&'static str) -> W,
    ) {
        let _ = tokio::time::timeout(time, queue.run(concurrency, work)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_added_many_times_is_worked_once() {
        let (queue, seen) = (WorkQueue::default(), RefCell::new(Vec::new()));
        queue.add("a");
        queue.add("a");
        queue.add("b");
        run_for(&queue, 4, Duration::from_secs(1), |key| {
            seen.borrow_mut().push(key);
            async { Outcome::Settled }
        })
        .await;
        assert_eq!(*seen.borrow(), ["a", "b"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_added_during_its_work_is_worked_again_afterwards_and_never_twice_at_once() {
        let (queue, log) = (WorkQueue::default(), RefCell::new(Vec::new()));
        queue.add("a");
        let (queue, log) = (&queue, &log);
        run_for(queue, 4, Duration::from_secs(60), |key| async move {
            let first = log.borrow().is_empty();
            log.borrow_mut().push("begin");
            if first {
                queue.add(key);
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
            log.borrow_mut().push("end");
            Outcome::Settled
        })
        .await;
        assert_eq!(*log.borrow(), ["begin", "end", "begin", "end"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_key_waits_longer_each_time_and_starts_over_after_a_success() {
        let (queue, times) = (WorkQueue::default(), RefCell::new(Vec::new()));
        let start = Instant::now();
        queue.add("a");
        run_for(&queue, 1, Duration::from_secs(300), |_| {
            times.borrow_mut().push(start.elapsed().as_millis());
            async { Outcome::Failed }
        })
        .await;
        let times = times.into_inner();
        let gaps: Vec<u128> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(&gaps[..4], [250, 500, 1000, 2000]);
        assert!(gaps.iter().all(|gap| *gap <= 60_001), "{gaps:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_is_due_while_all_workers_are_busy_waits_without_using_the_processor() {
        let (queue, times) = (WorkQueue::default(), RefCell::new(Vec::new()));
        let start = Instant::now();
        queue.add("a");
        queue.add_after("b", Duration::from_secs(1));
        let mut run = pin!(run_for(&queue, 1, Duration::from_secs(100), |_| {
            times.borrow_mut().push(start.elapsed().as_secs());
            async {
                tokio::time::sleep(Duration::from_secs(5)).await;
                Outcome::Settled
            }
        }));
        let mut polls = 0;
        poll_fn(|context| {
            polls += 1;
            assert!(polls < 100, "it does not wait");
            run.as_mut().poll(context)
        })
        .await;
        assert_eq!(*times.borrow(), [0, 5]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_delayed_key_is_worked_early_when_it_is_added() {
        let (queue, times) = (WorkQueue::default(), RefCell::new(Vec::new()));
        let start = Instant::now();
        queue.add_after("a", Duration::from_secs(30));
        queue.add("a");
        run_for(&queue, 1, Duration::from_secs(100), |_| {
            times.borrow_mut().push(start.elapsed().as_secs());
            async { Outcome::Settled }
        })
        .await;
        assert_eq!(times.into_inner(), [0]);
    }
}
