//! The sessions of this agent: one at the most for each guest.

use super::{Failure, Report, arrival::Greeted, link::FrameSender, messages::Hello};
use futures::future::BoxFuture;
use kubexen_ownership::HostName;
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::{
    sync::{Notify, oneshot},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use uuid::Uuid;

/// The sessions of this agent. They run inside [`Sessions::run`] and end with it.
#[derive(Debug, Default)]
pub struct Sessions {
    entries: Mutex<BTreeMap<Uuid, Entry>>,
    begun: Mutex<Vec<Begun>>,
    wake: Notify,
}

struct Begun {
    guest: Uuid,
    migration: Uuid,
    work: BoxFuture<'static, Report>,
}

impl std::fmt::Debug for Begun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Begun").field("guest", &self.guest).field("migration", &self.migration).finish()
    }
}

#[derive(Debug)]
struct Entry {
    migration: Uuid,
    state: State,
}

#[derive(Debug)]
enum State {
    Alive { end: CancellationToken, awaits: Option<Awaits> },
    Over(Report),
}

/// A destination that waits for its source.
#[derive(Debug)]
struct Awaits {
    source: HostName,
    connection: oneshot::Sender<(Hello, Greeted)>,
}

/// How a session of a guest stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Standing {
    /// There is none for this migration.
    None,
    /// It goes on.
    Alive {
        /// Whether it was told to end.
        ending: bool,
    },
    /// It is over.
    Over(Report),
}

impl Sessions {
    /// How the session of this guest and migration stands.
    #[must_use]
    pub fn standing(&self, guest: Uuid, migration: Uuid) -> Standing {
        match self
            .entries()
            .get(&guest)
            .filter(|entry| entry.migration == migration)
            .map(|entry| &entry.state)
        {
            None => Standing::None,
            Some(State::Alive { end, .. }) => Standing::Alive { ending: end.is_cancelled() },
            Some(State::Over(report)) => Standing::Over(report.clone()),
        }
    }

    /// Begins a session that waits for no other host: one that sends a guest, saves it or resumes it. Nothing happens while another one of the guest is alive.
    pub(crate) fn depart(
        &self,
        guest: Uuid,
        migration: Uuid,
        work: impl FnOnce(CancellationToken) -> BoxFuture<'static, Report>,
    ) {
        self.begin(guest, migration, None, work);
    }

    /// Begins a session that waits for a guest from `source`. Nothing happens while another one of the guest is alive.
    pub(crate) fn arrive(
        &self,
        guest: Uuid,
        migration: Uuid,
        source: HostName,
        work: impl FnOnce(CancellationToken, oneshot::Receiver<(Hello, Greeted)>) -> BoxFuture<'static, Report>,
    ) {
        let (connection, arrives) = oneshot::channel();
        let awaits = Some(Awaits { source, connection });
        self.begin(guest, migration, awaits, |end| work(end, arrives));
    }

    fn begin(
        &self,
        guest: Uuid,
        migration: Uuid,
        awaits: Option<Awaits>,
        work: impl FnOnce(CancellationToken) -> BoxFuture<'static, Report>,
    ) {
        let mut entries = self.entries();
        if matches!(entries.get(&guest), Some(Entry { state: State::Alive { .. }, .. })) {
            return;
        }
        let end = CancellationToken::new();
        let work = work(end.clone());
        entries.insert(guest, Entry { migration, state: State::Alive { end, awaits } });
        drop(entries);
        self.begun().push(Begun { guest, migration, work });
        self.wake.notify_one();
    }

    /// Tells the session of a guest to end as soon as that is safe.
    pub fn end(&self, guest: Uuid) {
        if let Some(Entry { state: State::Alive { end, .. }, .. }) = self.entries().get(&guest) {
            end.cancel();
        }
    }

    /// Forgets a session that is over.
    pub fn forget(&self, guest: Uuid) {
        let mut entries = self.entries();
        if matches!(entries.get(&guest), Some(Entry { state: State::Over(_), .. })) {
            entries.remove(&guest);
        }
    }

    /// Hands a source's connection to the session that waits for it.
    ///
    /// # Errors
    /// Why there is none, in words for the source; with the way to tell it.
    pub(crate) fn deliver(
        &self,
        peer: &HostName,
        hello: Hello,
        connection: Greeted,
    ) -> Result<(), (FrameSender, String)> {
        let mut entries = self.entries();
        let entry = entries.get_mut(&hello.guest).filter(|entry| entry.migration == hello.migration);
        let awaits = match entry.map(|entry| &mut entry.state) {
            Some(State::Alive { awaits, .. }) => awaits,
            Some(State::Over(_)) | None => &mut None,
        };
        match awaits.take_if(|awaited| awaited.source == *peer) {
            Some(awaited) => awaited
                .connection
                .send((hello, connection))
                .map_err(|(_, (sender, _))| (sender, "the destination has given up".to_owned())),
            None => {
                let (sender, _) = connection;
                Err((sender, format!("this host does not await that guest from host {peer}")))
            }
        }
    }

    /// Carries the sessions, for ever. `over` is told the guest of each that ends. Dropping the future drops them all.
    pub async fn run(&self, over: impl Fn(Uuid)) {
        // Tasks of their own: what wakes one at each piece of a guest is not to wake the whole agent.
        let mut running = JoinSet::new();
        loop {
            for Begun { guest, migration, work } in std::mem::take(&mut *self.begun()) {
                running.spawn(async move { (guest, migration, work.await) }.in_current_span());
            }
            tokio::select! {
                biased;
                Some(ended) = running.join_next() => {
                    let (guest, migration, report) = ended.expect("sessions are not aborted while they are carried, and do not panic");
                    tracing::info!(%guest, %migration, ?report, "the session is over");
                    self.entries().insert(guest, Entry { migration, state: State::Over(report) });
                    over(guest);
                }
                () = self.wake.notified() => {}
            }
        }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<Uuid, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begun(&self) -> MutexGuard<'_, Vec<Begun>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs `work` until it is told to end.
pub(crate) async fn until_ended<T>(
    end: &CancellationToken,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        () = end.cancelled() => Err(Failure::cancelled()),
        done = work => done,
    }
}
