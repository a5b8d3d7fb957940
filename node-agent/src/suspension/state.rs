//! A saved guest as a volume holds it.
//!
//! The first 4 KiB say what the rest is: JSON, filled up with zeroes. They are cleared first and written last, so a volume
//! holds either a whole guest or none. The rest is the stream that the hypervisor wrote.

use crate::storage::Content;
use crc32fast::Hasher;
use serde::{Deserialize, Serialize};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf},
    sync::oneshot,
};
use uuid::Uuid;

/// Bytes before the stream.
const HEADER: usize = 4096;
/// Bytes that are copied at once.
const CHUNK: usize = 1 << 20;
const FORMAT: &str = "KubeXen saved guest";
const VERSION: u32 = 1;

/// What the first bytes say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Header {
    format: String,
    version: u32,
    /// UUID of the guest.
    guest: Uuid,
    /// Memory that the guest held, in KiB: more than it was to hold if it had not given it back yet. Zero in states that were
    /// written before this was.
    #[serde(default)]
    pub(super) memory_kib: u64,
    /// Length of the stream.
    pub(super) bytes: u64,
    /// CRC-32 of the stream, the one of IEEE 802.3: it shows damage, not malice.
    crc32: u32,
}

/// Says that the volume holds no guest.
pub(super) async fn clear(content: &dyn Content) -> io::Result<()> {
    content.write_at(0, vec![0; HEADER]).await?;
    content.sync().await
}

/// Writes a stream to its end; answers what to [`commit`] if nothing broke it off.
pub(super) async fn write(
    content: &dyn Content,
    guest: Uuid,
    memory_kib: u64,
    mut stream: DuplexStream,
) -> io::Result<Header> {
    let (mut bytes, mut hasher) = (0, Hasher::new());
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        (&mut stream).take(CHUNK as u64).read_to_end(&mut chunk).await?;
        if chunk.is_empty() {
            break;
        }
        hasher.update(&chunk);
        let length = chunk.len() as u64;
        content.write_at(HEADER as u64 + bytes, chunk).await?;
        bytes += length;
    }
    let (format, crc32) = (FORMAT.to_owned(), hasher.finalize());
    Ok(Header { format, version: VERSION, guest, memory_kib, bytes, crc32 })
}

/// Stores the stream for good, and then says that the volume holds the guest.
pub(super) async fn commit(content: &dyn Content, header: &Header) -> io::Result<()> {
    content.sync().await?;
    let mut text = serde_json::to_vec(header)?;
    text.resize(HEADER, 0);
    content.write_at(0, text).await?;
    content.sync().await
}

/// What the volume holds.
///
/// # Errors
/// `InvalidData`, in words, when it is not this guest, or no whole one.
pub(super) async fn read_header(content: &dyn Content, guest: Uuid) -> io::Result<Header> {
    let text = content.read_at(0, HEADER).await?;
    let end = text.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    if end == 0 {
        return Err(invalid("it holds no whole guest".to_owned()));
    }
    let header: Header = serde_json::from_slice(&text[..end])
        .map_err(|_| invalid("what it holds is no saved guest, or damaged".to_owned()))?;
    if header.format != FORMAT || header.version != VERSION {
        let Header { format, version, .. } = header;
        return Err(invalid(format!(
            "it holds {format:?} of version {version}, which this agent cannot read"
        )));
    }
    if header.guest != guest {
        return Err(invalid(format!("it holds another guest, {}", header.guest)));
    }
    Ok(header)
}

/// A stream that is read from a volume, and the work of reading it.
///
/// Its end is told only after all of it was found as it had been written; otherwise the stream breaks.
pub(super) fn read(
    content: &dyn Content,
    header: &Header,
    buffer: usize,
) -> (Verified, impl Future<Output = io::Result<()>>) {
    let (mut into, from) = tokio::io::duplex(buffer);
    let (verdict, judged) = oneshot::channel();
    let Header { bytes, crc32, .. } = *header;
    let work = async move {
        let (mut offset, mut hasher) = (0, Hasher::new());
        while offset < bytes {
            let left = usize::try_from(bytes - offset).unwrap_or(usize::MAX);
            let chunk = content.read_at(HEADER as u64 + offset, left.min(CHUNK)).await?;
            if chunk.is_empty() {
                return Err(invalid("the volume is shorter than what was saved to it".to_owned()));
            }
            hasher.update(&chunk);
            offset += chunk.len() as u64;
            into.write_all(&chunk).await?;
        }
        if hasher.finalize() != crc32 {
            return Err(invalid("what was saved is damaged: its checksum is another one".to_owned()));
        }
        // Whoever reads may have had enough already.
        let _ = verdict.send(());
        into.shutdown().await
    };
    (Verified { from, judged }, work)
}

/// A stream whose end is an error unless it was judged good.
#[derive(Debug)]
pub(super) struct Verified {
    from: DuplexStream,
    judged: oneshot::Receiver<()>,
}

impl AsyncRead for Verified {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.from).poll_read(context, buffer))?;
        if buffer.filled().len() > before || buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        match self.judged.try_recv() {
            Ok(()) => {
                // Every further read finds the end, too.
                let (good, judged) = oneshot::channel();
                let _ = good.send(());
                self.judged = judged;
                Poll::Ready(Ok(()))
            }
            Err(_) => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{MemoryStorage, Storage, VolumeId};
    use std::collections::BTreeMap;

    const GUEST: Uuid = Uuid::from_u128(7);

    async fn volume() -> Box<dyn Content> {
        let storage = MemoryStorage::new(BTreeMap::from([("local".to_owned(), 16 << 20)]));
        let volume = VolumeId { location: "local".into(), uuid: Uuid::from_u128(1) };
        storage.create(&volume, 8 << 20).await.unwrap();
        storage.open(&volume).await.unwrap()
    }

    fn stream() -> Vec<u8> {
        (0..(2 << 20) + 12345_u32).map(|number| u8::try_from(number % 251).unwrap()).collect()
    }

    async fn save(content: &dyn Content) -> Header {
        clear(content).await.unwrap();
        let (mut into, from) = tokio::io::duplex(1000);
        let send = async move { into.write_all(&stream()).await };
        let (written, sent) = tokio::join!(write(content, GUEST, 1024, from), send);
        sent.unwrap();
        written.unwrap()
    }

    async fn resume(content: &dyn Content) -> (io::Result<Vec<u8>>, io::Result<()>) {
        let header = read_header(content, GUEST).await.unwrap();
        let (mut from, work) = read(content, &header, 1000);
        let receive = async move {
            let mut all = Vec::new();
            from.read_to_end(&mut all).await.map(|_| all)
        };
        tokio::join!(receive, work)
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_saved_is_read_as_it_was() {
        let content = volume().await;
        let header = save(&*content).await;
        commit(&*content, &header).await.unwrap();
        let (received, read) = resume(&*content).await;
        read.unwrap();
        assert!(received.unwrap() == stream());
    }

    #[tokio::test(start_paused = true)]
    async fn a_volume_that_was_not_committed_holds_no_guest() {
        let content = volume().await;
        let told = |result: io::Result<Header>| result.unwrap_err().to_string();
        assert_eq!(told(read_header(&*content, GUEST).await), "it holds no whole guest");
        let header = save(&*content).await;
        assert_eq!(told(read_header(&*content, GUEST).await), "it holds no whole guest");
        commit(&*content, &header).await.unwrap();
        let other = told(read_header(&*content, Uuid::nil()).await);
        assert!(other.contains("another guest"), "{other}");
        clear(&*content).await.unwrap();
        assert_eq!(told(read_header(&*content, GUEST).await), "it holds no whole guest");
        content.write_at(0, b"something else".to_vec()).await.unwrap();
        let other = told(read_header(&*content, GUEST).await);
        assert!(other.contains("no saved guest"), "{other}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_damaged_stream_breaks_and_does_not_end() {
        let content = volume().await;
        let header = save(&*content).await;
        commit(&*content, &header).await.unwrap();
        content.write_at(HEADER as u64 + 1_234_567, vec![0xff]).await.unwrap();
        let (received, read) = resume(&*content).await;
        assert_eq!(received.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(read.unwrap_err().to_string().contains("damaged"));
    }
}
