//! Connections over TCP with mutual TLS 1.3.
//!
//! A host proves itself by a certificate of the pool's authority for the DNS name `<host>.hosts.kubexen.internal`. Both
//! sides check that name. The server says by one byte that it has taken the client in: TLS itself would let a client
//! believe so before its certificate was looked at.

mod credentials;
mod socket;

use self::credentials::{Credentials, host_of, server_name};
use super::{CONNECT_LIMIT, Connection, LinkError, MigrationNetwork, WAITING_LIMIT};
use crate::config::MigrationConfig;
use async_trait::async_trait;
use kubexen_ownership::HostName;
use std::{collections::BTreeMap, io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::{Mutex, mpsc},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, rustls};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

/// Bytes that are read from the socket at once, and that wait to be written to it. rustls itself asks for 4 KiB, and holds
/// 64 KiB; a system call costs more than copying that.
const SOCKET_BUFFER: usize = 256 * 1024;
/// What the server sends once the client has proven who it is.
const WELCOME: u8 = 1;
/// How many peers may be about to prove themselves; others wait to be taken up.
const UNFINISHED_LIMIT: usize = 16;
/// Wait after the system could not take up a connection, as when there are too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Migration connections over TCP and TLS. Dropping it stops listening.
#[derive(Debug)]
pub struct TlsNetwork {
    config: Arc<MigrationConfig>,
    accepted: Mutex<mpsc::Receiver<(HostName, Connection)>>,
    _listening: Vec<AbortOnDropHandle<()>>,
}

impl TlsNetwork {
    /// Listens as `config` says. Its files are read anew for each connection, so certificates can be replaced at any
    /// time; they are read once here, so that a mistake shows at once.
    ///
    /// # Errors
    /// [`LinkError::Credentials`], [`LinkError::Listen`].
    pub async fn listen(config: MigrationConfig) -> Result<Self, LinkError> {
        let of_networks = config.networks.values().filter_map(|network| network.listen);
        let mut listeners = Vec::new();
        for listen in std::iter::once(config.listen).chain(of_networks) {
            let listener = TcpListener::bind(listen).await;
            let refused = |source| LinkError::Listen { address: listen.to_string(), source };
            listeners.push(listener.map_err(refused)?);
        }
        Self::serve(listeners, config).await
    }

    /// As [`TlsNetwork::listen`], on listeners that are there already.
    async fn serve(listeners: Vec<TcpListener>, config: MigrationConfig) -> Result<Self, LinkError> {
        let credentials = Credentials::read(&config).await?;
        credentials.server()?;
        let config = Arc::new(config);
        let (queue, accepted) = mpsc::channel(WAITING_LIMIT);
        let listening = listeners
            .into_iter()
            .map(|listener| tokio::spawn(take_up(listener, Arc::clone(&config), queue.clone())))
            .map(AbortOnDropHandle::new)
            .collect();
        Ok(Self { config, accepted: Mutex::new(accepted), _listening: listening })
    }

    async fn connect_unlimited(&self, host: &HostName, address: &str) -> Result<Connection, LinkError> {
        let client = Credentials::read(&self.config).await?.client()?;
        let unreachable = |source| LinkError::Unreachable { address: address.to_owned(), source };
        let stream = TcpStream::connect(address).await.map_err(unreachable)?;
        socket::prepare(&stream).map_err(unreachable)?;
        let not_proven =
            |reason| LinkError::NotProven { address: address.to_owned(), host: host.clone(), reason };
        let stream = BufReader::with_capacity(SOCKET_BUFFER, stream);
        let mut stream =
            TlsConnector::from(client).connect(server_name(host), stream).await.map_err(|error| {
                if is_distrust(&error) { not_proven(error.to_string()) } else { unreachable(error) }
            })?;
        stream.get_mut().1.set_buffer_limit(Some(SOCKET_BUFFER));
        let peer = host_of(stream.get_ref().1.peer_certificates()).map_err(not_proven)?;
        if peer != *host {
            return Err(not_proven(format!("it is {peer}")));
        }
        let turned_away = |source| LinkError::TurnedAway { address: address.to_owned(), source };
        match stream.read_u8().await.map_err(turned_away)? {
            WELCOME => Ok(Connection::new(stream)),
            other => Err(LinkError::Protocol(format!("{other} for a welcome"))),
        }
    }
}

/// Whether it was this side that did not believe the peer.
fn is_distrust(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    matches!(cause, Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented))
}

#[async_trait]
impl MigrationNetwork for TlsNetwork {
    async fn connect(&self, host: &HostName, address: &str) -> Result<Connection, LinkError> {
        timeout(CONNECT_LIMIT, self.connect_unlimited(host, address))
            .await
            .unwrap_or(Err(LinkError::TimedOut { what: "connection", limit: CONNECT_LIMIT }))
    }

    async fn accept(&self) -> Result<(HostName, Connection), LinkError> {
        self.accepted.lock().await.recv().await.ok_or(LinkError::Closed)
    }

    fn address(&self) -> Option<String> {
        Some(self.config.address.clone())
    }

    fn networks(&self) -> BTreeMap<String, String> {
        let networks = self.config.networks.iter();
        networks.map(|(name, network)| (name.clone(), network.address.clone())).collect()
    }
}

/// Takes up connections, and lets each prove itself beside the others.
async fn take_up(
    listener: TcpListener,
    config: Arc<MigrationConfig>,
    queue: mpsc::Sender<(HostName, Connection)>,
) {
    let mut unfinished = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = unfinished.join_next(), if !unfinished.is_empty() => {}
            taken = listener.accept(), if unfinished.len() < UNFINISHED_LIMIT => match taken {
                Ok((stream, peer)) => {
                    let (config, queue) = (Arc::clone(&config), queue.clone());
                    unfinished.spawn(async move {
                        match timeout(CONNECT_LIMIT, welcome(stream, &config, &queue)).await {
                            Ok(Ok(host)) => debug!(%peer, %host, "connected for a migration"),
                            Ok(Err(error)) => warn!(%peer, %error, "turned a peer away"),
                            Err(_elapsed) => warn!(%peer, "turned a peer away that was too slow"),
                        }
                    });
                }
                Err(error) => {
                    warn!(%error, "cannot take up a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Lets the peer prove who it is, and queues the connection.
async fn welcome(
    stream: TcpStream,
    config: &MigrationConfig,
    queue: &mpsc::Sender<(HostName, Connection)>,
) -> Result<HostName, LinkError> {
    socket::prepare(&stream)?;
    let server = Credentials::read(config).await?.server()?;
    let stream = BufReader::with_capacity(SOCKET_BUFFER, stream);
    let mut stream = TlsAcceptor::from(server).accept(stream).await?;
    let host = host_of(stream.get_ref().1.peer_certificates()).map_err(LinkError::Protocol)?;
    let slot = queue.reserve().await.map_err(|_| LinkError::Closed)?;
    stream.write_u8(WELCOME).await?;
    stream.flush().await?;
    slot.send((host.clone(), Connection::new(stream)));
    Ok(host)
}

#[cfg(test)]
mod tests;
