//! What a simulated guest looks like in a stream.
//!
//! A stream begins with a line that names the format, and has frames: one byte for the kind, eight for a length (little
//! endian), and for all but memory that many bytes of JSON. Memory is only told by its length, and costs time where it
//! is written: gigabytes are copied without being there.

use super::guest::SavedGuest;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const FORMAT: &[u8] = b"KubeXen simulated guest 1\n";
/// Longest JSON of a frame, in bytes.
const LIMIT: u64 = 64 * 1024;

const MEMORY: u8 = 1;
const STATE: u8 = 2;

/// A part of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// So many bytes of memory.
    Memory(u64),
    /// All the rest, which ends the stream.
    State(SavedGuest),
}

/// Writes what comes before the first frame.
pub(super) async fn begin(stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    stream.write_all(FORMAT).await
}

/// Writes a frame.
pub(super) async fn write(stream: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> io::Result<()> {
    match frame {
        Frame::Memory(length) => {
            stream.write_u8(MEMORY).await?;
            stream.write_u64_le(*length).await
        }
        Frame::State(guest) => {
            let text = serde_json::to_vec(guest)?;
            stream.write_u8(STATE).await?;
            stream.write_u64_le(text.len() as u64).await?;
            stream.write_all(&text).await
        }
    }
}

/// Reads a whole stream, and returns the guest in it.
///
/// # Errors
/// `UnexpectedEof` and `InvalidData` for what is no whole stream, and whatever the stream itself says.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<SavedGuest> {
    let mut format = [0; FORMAT.len()];
    stream.read_exact(&mut format).await?;
    if format != FORMAT {
        return Err(invalid("the stream is none of a simulated guest"));
    }
    loop {
        let (kind, length) = (stream.read_u8().await?, stream.read_u64_le().await?);
        match kind {
            MEMORY => {}
            STATE if length <= LIMIT => {
                let mut text = Vec::new();
                (&mut *stream).take(length).read_to_end(&mut text).await?;
                if text.len() as u64 != length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                return serde_json::from_slice(&text)
                    .map_err(|_| invalid("the guest's state makes no sense"));
            }
            _ => return Err(invalid("the stream has a frame of an unknown kind")),
        }
    }
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
