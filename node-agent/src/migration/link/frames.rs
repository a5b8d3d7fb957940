//! Messages and data on one connection.
//!
//! Each direction is a sequence of frames: messages, and between them data, which ends with a frame that says so.
//! So a stream of unknown length can be followed by messages, and data that was cut off never looks complete.
//!
//! ```text
//!   frame     kind: u8   length: u32, big-endian   that many bytes
//!   message   1          at most 64 KiB            JSON
//!   data      2          1 byte to 1 MiB           part of the data
//!   end       3          0                         the data is complete
//! ```

mod codec;
mod data;
mod stall;

use self::{
    codec::{FrameDecoder, FrameEncoder, Incoming, Outgoing},
    stall::StallGuard,
};
use super::{Connection, LinkError};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{ReadHalf, WriteHalf, split},
    time::timeout,
};
use tokio_util::codec::{FramedRead, FramedWrite};

pub use data::{DataReader, DataWriter};

/// How long a message may be, in bytes of JSON.
pub const MESSAGE_LIMIT: usize = 64 * 1024;
/// How much data one frame may hold, in bytes.
pub const CHUNK_LIMIT: usize = 1024 * 1024;
/// How long data may stand still while the link is alive.
///
/// A source has none to send while it waits for its guest to suspend, for which libxl gives it 60 s. A peer that takes
/// none ends a real connection earlier: the kernel gives a closed window [`super::DEAD_LINK_LIMIT`].
pub const STALL_LIMIT: Duration = Duration::from_secs(75);
/// How much is read at once, and collected before it is sent.
const BUFFER: usize = 256 * 1024;

/// The two directions of `connection`, as frames.
#[must_use]
pub fn framed(connection: Connection) -> (FrameSender, FrameReceiver) {
    let (from_peer, to_peer) = split(connection);
    let sender = FrameSender {
        frames: FramedWrite::with_capacity(StallGuard::new(to_peer, STALL_LIMIT), FrameEncoder, BUFFER),
    };
    let receiver = FrameReceiver {
        frames: FramedRead::with_capacity(from_peer, FrameDecoder::default(), BUFFER),
        chunk: Bytes::new(),
    };
    (sender, receiver)
}

/// What goes to the peer.
#[derive(Debug)]
pub struct FrameSender {
    frames: FramedWrite<StallGuard<WriteHalf<Connection>>, FrameEncoder>,
}

impl FrameSender {
    /// Sends a message.
    ///
    /// # Errors
    /// [`LinkError::NoJson`] and [`LinkError::TooLong`] when it cannot be sent, [`LinkError::Broken`].
    pub async fn send<T: Serialize>(&mut self, message: &T) -> Result<(), LinkError> {
        let json = serde_json::to_vec(message).map_err(LinkError::NoJson)?;
        if json.len() > MESSAGE_LIMIT {
            return Err(LinkError::TooLong { size: json.len() });
        }
        Ok(self.frames.send(Outgoing::Message(&json)).await?)
    }

    /// Sends data: all that is written, until it is shut down, which ends the data and not the connection.
    ///
    /// The peer takes data for broken off until its end was sent.
    #[must_use]
    pub fn data(&mut self) -> DataWriter<'_> {
        DataWriter::new(self)
    }
}

/// What comes from the peer.
#[derive(Debug)]
pub struct FrameReceiver {
    frames: FramedRead<ReadHalf<Connection>, FrameDecoder>,
    /// Data that was received and not read yet.
    chunk: Bytes,
}

impl FrameReceiver {
    /// The next message, if it comes within `limit`.
    ///
    /// A call that times out, or is dropped, loses nothing: the next one goes on where it stopped.
    ///
    /// # Errors
    /// [`LinkError::Closed`] when the peer has ended the connection, [`LinkError::Protocol`] when something else comes.
    /// [`LinkError::TimedOut`], [`LinkError::Broken`].
    pub async fn receive<T: DeserializeOwned>(&mut self, limit: Duration) -> Result<T, LinkError> {
        if !self.chunk.is_empty() {
            return Err(unexpected("data", "a message"));
        }
        match timeout(limit, self.frames.next()).await {
            Err(_elapsed) => Err(LinkError::TimedOut { what: "message", limit }),
            Ok(None) => Err(LinkError::Closed),
            Ok(Some(frame)) => match frame? {
                Incoming::Message(json) => serde_json::from_slice(&json).map_err(|error| {
                    LinkError::Protocol(format!("a message that is not understood: {error}"))
                }),
                Incoming::Data(_) | Incoming::EndOfData => Err(unexpected("data", "a message")),
            },
        }
    }

    /// Receives data, up to its end. Once that was read, messages can follow, and other data.
    ///
    /// A read fails when the connection ends first, and when nothing came for [`STALL_LIMIT`].
    #[must_use]
    pub fn data(&mut self) -> DataReader<'_> {
        DataReader::new(self)
    }

    /// More data; nothing at its end.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, LinkError>> {
        Poll::Ready(match ready!(self.frames.poll_next_unpin(cx)) {
            None => Err(LinkError::Closed),
            Some(Err(error)) => Err(error),
            Some(Ok(Incoming::Data(chunk))) => Ok(Some(chunk)),
            Some(Ok(Incoming::EndOfData)) => Ok(None),
            Some(Ok(Incoming::Message(_))) => Err(unexpected("a message", "data")),
        })
    }
}

fn unexpected(came: &str, due: &str) -> LinkError {
    LinkError::Protocol(format!("{came} where {due} was due"))
}

#[cfg(test)]
mod tests;
