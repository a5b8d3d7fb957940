//! Many futures in one task.

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};

/// Runs all of these until each has ended. One is polled only when it was woken itself: a `join!` of many polls all of them whenever
/// one is woken, which is most of what an idle process would do.
pub async fn run_all<'a>(parts: impl IntoIterator<Item = BoxFuture<'a, ()>>) {
    parts.into_iter().collect::<FuturesUnordered<_>>().collect::<()>().await;
}
