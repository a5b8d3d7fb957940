//! Data as streams of bytes.

use super::{
    CHUNK_LIMIT, FrameReceiver, FrameSender, LinkError, STALL_LIMIT, codec::Outgoing, stall::StallTimer,
};
use bytes::Buf;
use futures::SinkExt;
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};

/// Data on its way to the peer. See [`FrameSender::data`].
#[derive(Debug)]
pub struct DataWriter<'a> {
    sender: &'a mut FrameSender,
    ended: bool,
}

impl<'a> DataWriter<'a> {
    pub(super) fn new(sender: &'a mut FrameSender) -> Self {
        Self { sender, ended: false }
    }
}

impl AsyncWrite for DataWriter<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let chunk = &bytes[..bytes.len().min(CHUNK_LIMIT)];
        if !chunk.is_empty() {
            ready!(self.sender.frames.poll_ready_unpin(cx))?;
            self.sender.frames.start_send_unpin(Outgoing::Data(chunk))?;
        }
        Poll::Ready(Ok(chunk.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        SinkExt::<Outgoing<'_>>::poll_flush_unpin(&mut self.sender.frames, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.ended {
            ready!(self.sender.frames.poll_ready_unpin(cx))?;
            self.sender.frames.start_send_unpin(Outgoing::EndOfData)?;
            self.ended = true;
        }
        self.poll_flush(cx)
    }
}

/// Data that comes from the peer. See [`FrameReceiver::data`].
#[derive(Debug)]
pub struct DataReader<'a> {
    receiver: &'a mut FrameReceiver,
    stall: StallTimer,
    ended: bool,
}

impl<'a> DataReader<'a> {
    pub(super) fn new(receiver: &'a mut FrameReceiver) -> Self {
        Self { receiver, stall: StallTimer::new(STALL_LIMIT), ended: false }
    }
}

impl AsyncBufRead for DataReader<'_> {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        if this.receiver.chunk.is_empty() && !this.ended {
            let chunk = this.receiver.poll_chunk(cx);
            match ready!(
                this.stall.watch(cx, chunk, || LinkError::TimedOut { what: "data", limit: STALL_LIMIT })
            )? {
                Some(chunk) => this.receiver.chunk = chunk,
                None => this.ended = true,
            }
        }
        Poll::Ready(Ok(&this.receiver.chunk))
    }

    fn consume(mut self: Pin<&mut Self>, length: usize) {
        self.receiver.chunk.advance(length);
    }
}

impl AsyncRead for DataReader<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let chunk = ready!(self.as_mut().poll_fill_buf(cx))?;
        let length = chunk.len().min(buffer.remaining());
        buffer.put_slice(&chunk[..length]);
        self.consume(length);
        Poll::Ready(Ok(()))
    }
}
