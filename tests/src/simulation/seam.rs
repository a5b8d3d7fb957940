//! Where the calls of a process leave it: to the pool's store, to its hypervisor and to other hosts.
//!
//! The gate keeps a process from running that stands still, but not what it has under way beside itself, which the executor runs as
//! tasks of their own: the sessions of moves. Those stop here, before and after each of their calls.
//!
//! While faults happen a call takes time before it acts and after, now and then so much that others act in between; and one call can
//! be the last: it has acted, and the process ends before it has the answer.

use super::{dice::Dice, effects::Effects, gate::Gate, judge::Judge, wire::Weather};
use async_trait::async_trait;
use kubexen_node_agent::migration::link::{Connection, LinkError, MigrationNetwork};
use kubexen_ownership::{HostName, Way};
use std::{
    collections::BTreeMap,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::sleep,
};

/// What every call of a process passes on its way out and back. Clones are the same seam.
#[derive(Clone, Debug)]
pub(super) struct Seam {
    gate: Gate,
    dice: Dice,
    weather: Weather,
    effects: Effects,
    /// Woken when a call was the last.
    judge: Arc<Judge>,
    /// How many calls are left until the process ends, if it is to.
    left: Arc<Mutex<Option<usize>>>,
}

impl Seam {
    pub(super) fn new(gate: Gate, dice: Dice, weather: Weather, effects: Effects, judge: Arc<Judge>) -> Self {
        Self { gate, dice, weather, effects, judge, left: Arc::default() }
    }

    /// Makes a call.
    pub(super) async fn call<T>(&self, call: impl Future<Output = T>) -> T {
        self.there().await;
        let answer = call.await;
        self.back().await;
        answer
    }

    /// Lets the process end after so many more calls; or not, if none is named.
    pub(super) fn end_at_call(&self, call: Option<usize>) {
        *self.left() = call;
    }

    /// Whether the last call was made, which is so for the first time only: the process is to end.
    pub(super) fn take_end(&self) -> bool {
        let mut left = self.left();
        let is_due = *left == Some(0);
        if is_due {
            *left = None;
        }
        is_due
    }

    /// Counts a call that has acted, and says whether the process does not learn of it any more.
    fn is_last(&self) -> bool {
        let mut left = self.left();
        if let Some(left) = &mut *left {
            *left = left.saturating_sub(1);
        }
        *left == Some(0)
    }

    async fn open(&self) {
        if self.gate.is_shut() {
            self.effects.had("pause-in-a-call");
            self.gate.opened().await;
        }
    }

    /// Most calls take no time that would matter, some take as long as a network or a disk does, and a few so long that everybody else
    /// has acted meanwhile.
    async fn take_time(&self) {
        let takes = match self.dice.below(100) {
            _ if !self.weather.is_worse() => return,
            0..85 => return,
            85..97 => self.dice.millis(1..50),
            _ => self.dice.millis(50..1_500),
        };
        sleep(takes).await;
    }

    fn left(&self) -> MutexGuard<'_, Option<usize>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Way for Seam {
    async fn there(&self) {
        self.open().await;
        self.take_time().await;
    }

    async fn back(&self) {
        if self.is_last() {
            self.judge.wake.notify_one();
            std::future::pending::<()>().await;
        }
        self.take_time().await;
        self.open().await;
    }
}

/// The network between agents as one of them uses it, who may stand still.
#[derive(Debug)]
pub(super) struct Stopping<N> {
    pub(super) inner: N,
    pub(super) gate: Gate,
}

#[async_trait]
impl<N: MigrationNetwork> MigrationNetwork for Stopping<N> {
    async fn connect(&self, host: &HostName, address: &str) -> Result<Connection, LinkError> {
        self.gate.opened().await;
        let connection = self.inner.connect(host, address).await?;
        self.gate.opened().await;
        Ok(Connection::new(Stream { connection, gate: self.gate.clone() }))
    }

    async fn accept(&self) -> Result<(HostName, Connection), LinkError> {
        let (host, connection) = self.inner.accept().await?;
        Ok((host, Connection::new(Stream { connection, gate: self.gate.clone() })))
    }

    fn address(&self) -> Option<String> {
        self.inner.address()
    }

    fn networks(&self) -> BTreeMap<String, String> {
        self.inner.networks()
    }
}

/// One end of a connection, of a process that may stand still.
struct Stream {
    connection: Connection,
    gate: Gate,
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.gate.poll_opened(context));
        Pin::new(&mut self.connection).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.gate.poll_opened(context));
        Pin::new(&mut self.connection).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.gate.poll_opened(context));
        Pin::new(&mut self.connection).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.gate.poll_opened(context));
        Pin::new(&mut self.connection).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kubexen_node_agent::migration::link::MemoryNetwork;
    use kubexen_ownership::{BootId, HostBoot, MemoryStore, OwnershipStore, VmUid};
    use kubexen_runtime::clock::SystemClock;
    use std::time::Duration;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        time::timeout,
    };
    use uuid::Uuid;

    /// How long nothing happens in a process that stands still.
    const STILL: Duration = Duration::from_secs(60);

    fn seam(gate: &Gate) -> Seam {
        let (judge, weather) = (Arc::new(Judge::new(Arc::new(SystemClock))), Weather::worse());
        weather.calm_down();
        Seam::new(gate.clone(), Dice::new(1, "seam"), weather, Effects::default(), judge)
    }

    fn name(host: &str) -> HostName {
        HostName::new(host).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_of_a_process_that_stands_still_neither_writes_to_the_store_nor_learns_from_it() {
        let (pool, gate) = (MemoryStore::new(), Gate::default());
        let store = pool.client();
        store.set_way(Arc::new(seam(&gate)));
        let (vm, boot_id) = (VmUid(Uuid::from_u128(1)), BootId::new("boot").unwrap());
        let me = HostBoot { host: name("host-a"), boot_id };
        gate.set_shut(true);
        let mut start = Box::pin(store.start(vm, &me));
        assert!(timeout(STILL, &mut start).await.is_err());
        assert_eq!(pool.owner_on_record(vm), None);
        gate.set_shut(false);
        start.await.unwrap();
        assert!(pool.owner_on_record(vm).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_call_has_acted_and_its_answer_never_comes() {
        let (pool, gate) = (MemoryStore::new(), Gate::default());
        let (store, seam) = (pool.client(), seam(&gate));
        store.set_way(Arc::new(seam.clone()));
        let (vm, boot_id) = (VmUid(Uuid::from_u128(1)), BootId::new("boot").unwrap());
        let me = HostBoot { host: name("host-a"), boot_id };
        // To start is to read and to write.
        seam.end_at_call(Some(2));
        let woken = seam.judge.wake.notified();
        assert!(timeout(STILL, store.start(vm, &me)).await.is_err());
        timeout(STILL, woken).await.unwrap();
        assert!(pool.owner_on_record(vm).is_some());
        assert!(seam.take_end() && !seam.take_end());
        assert!(store.owner(vm).await.unwrap().is_some(), "the next process calls as ever");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_of_a_process_that_stands_still_neither_sends_nor_hears() {
        let (network, gate) = (MemoryNetwork::new(), Gate::default());
        let mine = Stopping { inner: network.agent(&name("host-a")), gate: gate.clone() };
        let peer = network.agent(&name("host-b"));
        let (host, address) = (name("host-b"), peer.address().unwrap());
        let (near, far) = tokio::join!(mine.connect(&host, &address), peer.accept());
        let (mut near, (_, mut far)) = (near.unwrap(), far.unwrap());
        far.write_all(b"a").await.unwrap();
        gate.set_shut(true);
        let mut byte = [0];
        assert!(timeout(STILL, near.read_exact(&mut byte)).await.is_err());
        assert!(timeout(STILL, near.write_all(b"b")).await.is_err());
        gate.set_shut(false);
        near.read_exact(&mut byte).await.unwrap();
        near.write_all(b"c").await.unwrap();
        far.read_exact(&mut byte).await.unwrap();
        assert_eq!(byte, *b"c");
    }
}
