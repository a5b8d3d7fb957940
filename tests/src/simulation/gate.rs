//! Stands between a process and the executor, and can keep it from running.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

/// What a process passes whenever it is to run. Clones are the same gate.
#[derive(Clone, Debug, Default)]
pub(super) struct Gate(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    shut: bool,
    waiting: Option<Waker>,
}

impl Gate {
    /// Stops what is behind it at whatever it waits for, or lets it go on. It cannot tell but by the time.
    pub(super) fn set_shut(&self, shut: bool) {
        let mut state = self.lock();
        state.shut = shut;
        if !shut && let Some(waker) = state.waiting.take() {
            waker.wake();
        }
    }

    /// Runs `work` whenever the gate is open.
    pub(super) async fn pass<F: Future>(self, work: F) -> F::Output {
        let mut work = Box::pin(work);
        std::future::poll_fn(move |context| self.poll(work.as_mut(), context)).await
    }

    fn poll<F: Future>(&self, work: Pin<&mut F>, context: &mut Context<'_>) -> Poll<F::Output> {
        {
            let mut state = self.lock();
            if state.shut {
                state.waiting = Some(context.waker().clone());
                return Poll::Pending;
            }
        }
        work.poll(context)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
