//! A model of a network inside one process, under tokio's clock and with faults to inject, for simulation and tests.

mod stream;
mod wires;

use self::{stream::MemoryStream, wires::Wires};
use super::{CONNECT_LIMIT, Connection, LinkError, MigrationNetwork, WAITING_LIMIT};
use async_trait::async_trait;
use kubexen_ownership::HostName;
use std::{
    collections::BTreeMap,
    io,
    num::NonZeroU64,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

/// How an agent takes new connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reception {
    /// It takes them.
    #[default]
    Welcomes,
    /// It refuses them at once, as a host without an agent does.
    Refuses,
    /// It never answers, as a host that is stopped does.
    Hangs,
}

/// The network between all hosts. A clone is the same network. At first it is as fast as memory, without latency.
#[derive(Clone, Debug, Default)]
pub struct MemoryNetwork {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// By address.
    agents: BTreeMap<String, Agent>,
    receptions: BTreeMap<HostName, Reception>,
    wires: Wires,
}

#[derive(Debug)]
struct Agent {
    host: HostName,
    queue: mpsc::Sender<(HostName, Connection)>,
}

impl MemoryNetwork {
    /// A network without hosts and faults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The network as the agent of `host` sees it. It takes the place of the one of the agent that was there before.
    #[must_use]
    pub fn agent(&self, host: &HostName) -> AgentNetwork {
        let (queue, accepted) = mpsc::channel(WAITING_LIMIT);
        let address = format!("{host}:9444");
        self.lock().agents.insert(address.clone(), Agent { host: host.clone(), queue });
        AgentNetwork {
            network: self.clone(),
            host: host.clone(),
            address,
            accepted: tokio::sync::Mutex::new(accepted),
        }
    }

    /// How long every byte is on its way from now on.
    pub fn set_latency(&self, latency: Duration) {
        self.lock().wires.latency = latency;
    }

    /// How many bytes per second each direction of each connection carries from now on. Default: any number.
    pub fn set_rate(&self, rate: Option<NonZeroU64>) {
        self.lock().wires.rate = rate;
    }

    /// How the agent of `host` takes new connections from now on.
    pub fn set_reception(&self, host: &HostName, reception: Reception) {
        self.lock().receptions.insert(host.clone(), reception);
    }

    /// Lets `bytes` more arrive at `to` from `from`, over all their connections, and then nothing; what goes the other
    /// way still arrives. The connections fail at both ends once that has lasted for [`super::DEAD_LINK_LIMIT`],
    /// because whatever arrives is acknowledged no more. New ones cannot be made meanwhile.
    pub fn cut(&self, from: &HostName, to: &HostName, bytes: u64) {
        self.lock().wires.cut(from, to, bytes, Instant::now());
    }

    /// Ends a cut. Connections that did not fail yet go on, and nothing of what was sent is lost.
    pub fn mend(&self, from: &HostName, to: &HostName) {
        self.lock().wires.mend(from, to, Instant::now());
    }

    /// How many cuts kept something from its receiver so far.
    #[must_use]
    pub fn cuts_felt(&self) -> u64 {
        self.lock().wires.cuts_felt
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No section under this lock can panic half-way through a change, so a poisoned state is a whole one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The network as one agent sees it; the agent is gone when this is dropped.
#[derive(Debug)]
pub struct AgentNetwork {
    network: MemoryNetwork,
    host: HostName,
    address: String,
    accepted: tokio::sync::Mutex<mpsc::Receiver<(HostName, Connection)>>,
}

impl AgentNetwork {
    async fn connect_unlimited(&self, host: &HostName, address: &str) -> Result<Connection, LinkError> {
        let refused = || LinkError::Unreachable {
            address: address.to_owned(),
            source: io::ErrorKind::ConnectionRefused.into(),
        };
        let (peer, latency) = {
            let state = self.network.lock();
            let agent = state.agents.get(address).ok_or_else(refused)?;
            let reception = match state.wires.are_cut(&self.host, &agent.host) {
                true => Reception::Hangs,
                false => state.receptions.get(&agent.host).copied().unwrap_or_default(),
            };
            let peer = match reception {
                Reception::Welcomes => Some((agent.host.clone(), agent.queue.clone())),
                Reception::Refuses => return Err(refused()),
                Reception::Hangs => None,
            };
            (peer, state.wires.latency)
        };
        let Some((peer, queue)) = peer else { return std::future::pending().await };
        // To the peer and back: the connection, then the proofs.
        sleep(latency * 4).await;
        if peer != *host {
            let reason = format!("it is {peer}");
            return Err(LinkError::NotProven { address: address.to_owned(), host: host.clone(), reason });
        }
        let slot = queue.reserve().await.map_err(|_| refused())?;
        let [mine, theirs] = MemoryStream::pair(&self.network, [&self.host, &peer]);
        slot.send((self.host.clone(), Connection::new(theirs)));
        Ok(Connection::new(mine))
    }
}

#[async_trait]
impl MigrationNetwork for AgentNetwork {
    async fn connect(&self, host: &HostName, address: &str) -> Result<Connection, LinkError> {
        timeout(CONNECT_LIMIT, self.connect_unlimited(host, address))
            .await
            .unwrap_or(Err(LinkError::TimedOut { what: "connection", limit: CONNECT_LIMIT }))
    }

    async fn accept(&self) -> Result<(HostName, Connection), LinkError> {
        self.accepted.lock().await.recv().await.ok_or(LinkError::Closed)
    }

    fn address(&self) -> Option<String> {
        Some(self.address.clone())
    }
}

#[cfg(test)]
mod tests;
