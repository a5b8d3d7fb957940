//! The boundary to other hosts' agents: connections that carry migrations.
//!
//! A [`Connection`] is a stream of bytes in both directions between two agents of which each has proven to the other
//! which host it is. [`frames`] puts messages and a guest's data on it.
//!
//! ```text
//!   MigrationNetwork ──▶ Connection ──▶ frames: FrameSender   ── send, data (AsyncWrite)
//!    tls · memory                               FrameReceiver ── receive, data (AsyncRead)
//! ```
//!
//! - [`tls`] is TCP with mutual TLS 1.3.
//! - [`memory`] is a model of a network inside one process, with faults to inject, for simulation.
//! - [`NoMigrations`] is what an agent has whose configuration names no migration network.

use async_trait::async_trait;
use kubexen_ownership::HostName;
use std::{
    collections::BTreeMap,
    fmt, io,
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

#[cfg(feature = "conformance")]
pub mod command;
#[cfg(test)]
mod conformance;
pub mod frames;
pub mod memory;
pub mod tls;

pub use frames::{FrameReceiver, FrameSender};
pub use memory::MemoryNetwork;
pub use tls::TlsNetwork;

/// How long it may take to connect, until both sides have proven who they are.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long a connection outlives the link beneath it: after that, both ends fail.
pub const DEAD_LINK_LIMIT: Duration = Duration::from_secs(15);
/// How many connections may wait for [`MigrationNetwork::accept`].
const WAITING_LIMIT: usize = 16;

/// What an agent reaches other agents through.
#[async_trait]
pub trait MigrationNetwork: Send + Sync + fmt::Debug {
    /// Connects to the agent of `host` at `address` (`host:port`), within [`CONNECT_LIMIT`].
    ///
    /// # Errors
    /// [`LinkError::NotProven`] unless the peer proves to be that host. Else as [`LinkError`] says.
    async fn connect(&self, host: &HostName, address: &str) -> Result<Connection, LinkError>;

    /// The next connection that an agent made to this one, with the proven host name of the peer.
    ///
    /// Peers that prove nothing are turned away and not reported. A call that is dropped loses no connection.
    ///
    /// # Errors
    /// [`LinkError::Closed`] when there will be no more.
    async fn accept(&self) -> Result<(HostName, Connection), LinkError>;

    /// Where peers reach this agent, if it takes part in migrations.
    fn address(&self) -> Option<String>;

    /// Where peers reach it on the networks for migrations that its configuration names, by their names.
    fn networks(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }
}

/// A stream of bytes in both directions, between two agents that know each other's host.
///
/// Its ends fail within [`DEAD_LINK_LIMIT`] when the link beneath it is dead. Bytes that were written and flushed may
/// still be lost then: only an answer proves that they arrived. Dropping it ends it for both; if it held something
/// unread, what it sent last may be lost, so the side that is to hear the last word drops it first.
pub struct Connection(Pin<Box<dyn Stream>>);

trait Stream: AsyncRead + AsyncWrite + Send {}

impl<S: AsyncRead + AsyncWrite + Send> Stream for S {}

impl Connection {
    /// The connection that this stream is. Whoever hands it out answers for who the peer is.
    pub fn new(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        Self(Box::pin(stream))
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.as_mut().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_shutdown(cx)
    }
}

/// Why there is no connection, or none any more.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// This agent's configuration names no migration network.
    #[error("This host takes no part in migrations")]
    NoMigrations,
    /// The agent's own certificate, key or authority cannot be used.
    #[error("{path} cannot be used: {reason}")]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The address to listen on cannot be had.
    #[error("Cannot listen on {address}")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// Nobody answers there.
    #[error("Cannot connect to {address}")]
    Unreachable {
        /// The address.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// Whoever answers did not prove to be that host.
    #[error("The peer at {address} has not proven to be host {host}: {reason}")]
    NotProven {
        /// Where.
        address: String,
        /// Who it should have been.
        host: HostName,
        /// What was wrong.
        reason: String,
    },
    /// The peer does not take this agent for a host of the pool.
    #[error("The peer at {address} turned this host away")]
    TurnedAway {
        /// The peer's address.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// Nothing came in time.
    #[error("No {what} within {} s", .limit.as_secs())]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// How long.
        limit: Duration,
    },
    /// The connection broke.
    #[error("The connection broke: {0}")]
    Broken(#[from] io::Error),
    /// The peer ended the connection, between messages.
    #[error("The peer ended the connection")]
    Closed,
    /// The peer sent what it must not.
    #[error("The peer sent {0}")]
    Protocol(String),
    /// A message of this side has no form in JSON.
    #[error("A message cannot be written as JSON")]
    NoJson(#[source] serde_json::Error),
    /// A message of this side is greater than the peer would take.
    #[error("A message of {size} bytes is too long: {} at most", frames::MESSAGE_LIMIT)]
    TooLong {
        /// Its size in bytes.
        size: usize,
    },
}

impl From<LinkError> for io::Error {
    fn from(error: LinkError) -> Self {
        let kind = match error {
            LinkError::Broken(source) => return source,
            LinkError::TimedOut { .. } => io::ErrorKind::TimedOut,
            LinkError::Closed => io::ErrorKind::UnexpectedEof,
            LinkError::Protocol(_) | LinkError::NoJson(_) | LinkError::TooLong { .. } => {
                io::ErrorKind::InvalidData
            }
            LinkError::NoMigrations
            | LinkError::Credentials { .. }
            | LinkError::Listen { .. }
            | LinkError::Unreachable { .. }
            | LinkError::NotProven { .. }
            | LinkError::TurnedAway { .. } => io::ErrorKind::NotConnected,
        };
        Self::new(kind, error)
    }
}

/// The migration network of an agent that takes no part in migrations.
#[derive(Clone, Copy, Debug)]
pub struct NoMigrations;

#[async_trait]
impl MigrationNetwork for NoMigrations {
    async fn connect(&self, _host: &HostName, _address: &str) -> Result<Connection, LinkError> {
        Err(LinkError::NoMigrations)
    }

    /// Waits for ever: nobody can connect.
    async fn accept(&self) -> Result<(HostName, Connection), LinkError> {
        std::future::pending().await
    }

    fn address(&self) -> Option<String> {
        None
    }
}
