//! Stands between a process and the executor: can keep it from running, and sees whether it waits when it has nothing to do.

use super::judge::Judge;
use std::{
    fmt::Display,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};
use tokio::time::Instant;

/// How often a process may run at one moment: more often than any does that waits, in all schedules of the seeds 0..20000.
const MOST_RUNS: u32 = 10_000;

/// What a process passes whenever it is to run. Clones are the same gate.
#[derive(Clone, Debug, Default)]
pub(super) struct Gate(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    shut: bool,
    /// What waits: the process itself, and what it has under way beside itself.
    waiting: Vec<Waker>,
}

impl Gate {
    /// Stops what is behind it at whatever it waits for, or lets it go on. It cannot tell but by the time. Says whether something
    /// has waited for the gate to open.
    pub(super) fn set_shut(&self, shut: bool) -> bool {
        let mut state = self.lock();
        state.shut = shut;
        if shut {
            return false;
        }
        let waiting = std::mem::take(&mut state.waiting);
        let some = !waiting.is_empty();
        waiting.into_iter().for_each(Waker::wake);
        some
    }

    /// Whether it is shut.
    pub(super) fn is_shut(&self) -> bool {
        self.lock().shut
    }

    /// Waits until it is open. What a process has under way beside itself waits here before and after each of its calls, and does
    /// nothing that others could see while the process stands still.
    pub(super) async fn opened(&self) {
        std::future::poll_fn(|context| self.poll_opened(context)).await;
    }

    /// As [`Gate::opened`].
    pub(super) fn poll_opened(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if !state.shut {
            return Poll::Ready(());
        }
        if !state.waiting.iter().any(|waiting| waiting.will_wake(context.waker())) {
            state.waiting.push(context.waker().clone());
        }
        Poll::Pending
    }

    /// Runs `work` whenever the gate is open. One that turns round and round without waiting breaks a promise (L6), and runs no more:
    /// time would stand still for ever.
    pub(super) async fn pass<F: Future>(self, name: impl Display, judge: Arc<Judge>, work: F) -> F::Output {
        let mut work = Box::pin(work);
        let (mut moment, mut runs) = (Instant::now(), 0_u32);
        std::future::poll_fn(move |context| {
            if moment != Instant::now() {
                (moment, runs) = (Instant::now(), 0);
            }
            runs = runs.saturating_add(1);
            if runs == MOST_RUNS {
                judge.violated("L6", format_args!("{name} uses the processor without waiting for anything"));
            }
            if runs >= MOST_RUNS {
                return Poll::Pending;
            }
            self.poll(work.as_mut(), context)
        })
        .await
    }

    fn poll<F: Future>(&self, work: Pin<&mut F>, context: &mut Context<'_>) -> Poll<F::Output> {
        match self.poll_opened(context) {
            Poll::Ready(()) => work.poll(context),
            Poll::Pending => Poll::Pending,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kubexen_runtime::clock::SystemClock;
    use std::time::Duration;
    use tokio::time::{sleep, timeout};

    async fn broken_by(work: impl Future<Output = ()>) -> Vec<String> {
        let judge = Arc::new(Judge::new(Arc::new(SystemClock)));
        let run = Gate::default().pass("agent-host-a", Arc::clone(&judge), work);
        let _ = timeout(Duration::from_secs(60), run).await;
        judge.verdict().0
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_does_not_wait_breaks_a_promise_and_one_that_does_breaks_none() {
        let turns = async {
            loop {
                tokio::task::yield_now().await;
            }
        };
        assert_eq!(
            broken_by(turns).await,
            ["L6: agent-host-a uses the processor without waiting for anything"]
        );
        let waits = async {
            loop {
                sleep(Duration::from_millis(1)).await;
            }
        };
        assert_eq!(broken_by(waits).await, [""; 0]);
    }
}
