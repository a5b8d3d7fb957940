//! A small client of xenstore's wire protocol, as `xen/io/xs_wire.h` and `docs/misc/xenstore.txt` of Xen define it.
//!
//! Requests go one at a time over one connection, each within a time limit. A connection on which anything went
//! wrong is given up and the next request opens another. Watches have a connection of their own and are registered
//! again whenever it breaks; an event carries no data here, it only says that it is time to look.
//!
//! Guests write parts of xenstore. Whatever is read is at most 4 KiB, and [`sanitize`] makes text of it that can be
//! shown.

use std::{io, path::PathBuf, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::{Mutex, watch},
    time::{sleep, timeout},
};

/// Where dom0's xenstored listens.
pub const SOCKET: &str = "/run/xenstored/socket";

/// Largest payload of one message (`XENSTORE_PAYLOAD_MAX`).
const PAYLOAD_LIMIT: usize = 4096;
/// Time between two attempts to reach xenstored for watches.
const RECONNECT: Duration = Duration::from_secs(1);

/// `enum xsd_sockmsg_type`, as far as it is used.
mod kind {
    pub const DIRECTORY: u32 = 1;
    pub const READ: u32 = 2;
    pub const WATCH: u32 = 4;
    pub const WRITE: u32 = 11;
    pub const REMOVE: u32 = 13;
    pub const WATCH_EVENT: u32 = 15;
    pub const ERROR: u32 = 16;
}

/// Why xenstore did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The daemon cannot be reached, or broke the protocol.
    #[error("xenstored cannot be reached")]
    Connection(#[from] io::Error),
    /// The daemon did not answer in time.
    #[error("xenstored did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The daemon refused, with the name of an errno.
    #[error("xenstore refused: {0}")]
    Refused(String),
}

/// A client for requests.
#[derive(Debug)]
pub struct XenStore {
    socket: PathBuf,
    limit: Duration,
    connection: Mutex<Option<Connection>>,
}

impl XenStore {
    /// A client that connects when it is first used and gives each request this much time.
    #[must_use]
    pub fn new(socket: PathBuf, limit: Duration) -> Self {
        Self { socket, limit, connection: Mutex::new(None) }
    }

    /// The value of a node, or nothing if there is no such node. A guest may have written it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn read(&self, path: &str) -> Result<Option<Vec<u8>>, StoreError> {
        absent_is_none(self.request(kind::READ, &[path.as_bytes(), b"\0"]).await)
    }

    /// The value of a node as text of at most 255 bytes that is safe to show.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn read_text(&self, path: &str) -> Result<Option<String>, StoreError> {
        Ok(self.read(path).await?.map(|value| sanitize(&value, 255)))
    }

    /// The names below a node, or nothing if there is no such node.
    ///
    /// # Errors
    /// [`StoreError`]; `E2BIG` for a node with more names than one message holds.
    pub async fn directory(&self, path: &str) -> Result<Option<Vec<String>>, StoreError> {
        let names = absent_is_none(self.request(kind::DIRECTORY, &[path.as_bytes(), b"\0"]).await)?;
        let split = |names: Vec<u8>| {
            let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
            names.map(|name| sanitize(name, 255)).collect()
        };
        Ok(names.map(split))
    }

    /// Sets the value of a node, which is made with its parents if need be.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn write(&self, path: &str, value: &[u8]) -> Result<(), StoreError> {
        self.request(kind::WRITE, &[path.as_bytes(), b"\0", value]).await.map(|_| ())
    }

    /// Removes a node and everything below it, and succeeds when there is none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn remove(&self, path: &str) -> Result<(), StoreError> {
        absent_is_none(self.request(kind::REMOVE, &[path.as_bytes(), b"\0"]).await).map(|_| ())
    }

    async fn request(&self, kind: u32, parts: &[&[u8]]) -> Result<Vec<u8>, StoreError> {
        timeout(self.limit, self.exchange(kind, parts)).await.map_err(|_| StoreError::TimedOut(self.limit))?
    }

    /// One request and its answer. The connection is put back only when both went well, so that one on which a
    /// request was given up halfway is never used again.
    async fn exchange(&self, kind: u32, parts: &[&[u8]]) -> Result<Vec<u8>, StoreError> {
        let mut slot = self.connection.lock().await;
        let mut connection = match slot.take() {
            Some(connection) => connection,
            None => Connection::open(&self.socket).await?,
        };
        let id = connection.send(kind, parts).await?;
        let answer = connection.receive().await?;
        if answer.id != id {
            return Err(io::Error::other("an answer to another request").into());
        }
        *slot = Some(connection);
        answer.accepted(kind)
    }
}

/// A node that is not there is no error for those who ask whether it is.
fn absent_is_none(result: Result<Vec<u8>, StoreError>) -> Result<Option<Vec<u8>>, StoreError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(StoreError::Refused(name)) if name == "ENOENT" => Ok(None),
        Err(error) => Err(error),
    }
}

/// Watches paths for ever and counts events in `counter`. Reconnecting counts as one, since events may have been
/// missed.
pub async fn watch_for_ever(socket: PathBuf, paths: &[&str], counter: watch::Sender<u64>) {
    loop {
        if let Err(error) = watch_until_it_breaks(&socket, paths, &counter).await {
            tracing::warn!("watching xenstore: {error}");
        }
        sleep(RECONNECT).await;
    }
}

async fn watch_until_it_breaks(
    socket: &PathBuf,
    paths: &[&str],
    counter: &watch::Sender<u64>,
) -> Result<(), StoreError> {
    let mut connection = Connection::open(socket).await?;
    for path in paths {
        // The token, which comes back with each event, is of no use here.
        connection.send(kind::WATCH, &[path.as_bytes(), b"\0", b"kubexen", b"\0"]).await?;
    }
    loop {
        // Each watch fires once when it is set, which counts the connection itself.
        let message = connection.receive().await?;
        if message.kind == kind::WATCH_EVENT {
            counter.send_modify(|count| *count = count.wrapping_add(1));
        } else {
            message.accepted(kind::WATCH)?;
        }
    }
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    next_id: u32,
}

#[derive(Debug)]
struct Received {
    kind: u32,
    id: u32,
    payload: Vec<u8>,
}

impl Received {
    /// The payload of the answer to a request of this kind.
    fn accepted(self, kind: u32) -> Result<Vec<u8>, StoreError> {
        if self.kind == kind {
            Ok(self.payload)
        } else if self.kind == kind::ERROR {
            Err(StoreError::Refused(sanitize(&self.payload, 32)))
        } else {
            Err(io::Error::other(format!("an answer of kind {} to a request of kind {kind}", self.kind))
                .into())
        }
    }
}

impl Connection {
    async fn open(socket: &PathBuf) -> io::Result<Self> {
        Ok(Self { stream: UnixStream::connect(socket).await?, next_id: 1 })
    }

    /// Sends a request outside any transaction and returns its number.
    async fn send(&mut self, kind: u32, parts: &[&[u8]]) -> io::Result<u32> {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let length = u32::try_from(length).map_err(io::Error::other)?;
        if length as usize > PAYLOAD_LIMIT {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "longer than xenstore takes"));
        }
        let mut message = Vec::with_capacity(16 + length as usize);
        for word in [kind, id, 0, length] {
            message.extend_from_slice(&word.to_ne_bytes());
        }
        message.extend(parts.iter().copied().flatten());
        self.stream.write_all(&message).await?;
        Ok(id)
    }

    async fn receive(&mut self) -> io::Result<Received> {
        let mut words = [0; 4];
        for word in &mut words {
            let mut bytes = [0; 4];
            self.stream.read_exact(&mut bytes).await?;
            *word = u32::from_ne_bytes(bytes);
        }
        let [kind, id, _transaction, length] = words;
        let length = length as usize;
        if length > PAYLOAD_LIMIT {
            return Err(io::Error::other(format!("a message of {length} bytes")));
        }
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).await?;
        Ok(Received { kind, id, payload })
    }
}

/// Characters by which text can look like other text: control characters, line separators, marks of direction and
/// such as are not seen.
fn is_trick(character: char) -> bool {
    let unseen = matches!(character, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}');
    character.is_control() || unseen || matches!(character, '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Text that is safe to log and to show: at most `limit` bytes; control characters, those that turn the direction of
/// writing or cannot be seen, and what is not UTF-8 are left out.
#[must_use]
pub fn sanitize(bytes: &[u8], limit: usize) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars().filter(|character| !is_trick(*character)) {
            if text.len() + character.len_utf8() > limit {
                return text;
            }
            text.push(character);
        }
    }
    text
}

#[cfg(test)]
pub(super) mod tests;
