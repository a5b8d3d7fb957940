//! How a frame is written.

use super::{CHUNK_LIMIT, LinkError, MESSAGE_LIMIT};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::io;
use tokio_util::codec::{Decoder, Encoder};

const MESSAGE: u8 = 1;
const DATA: u8 = 2;
const END_OF_DATA: u8 = 3;
/// A kind and a length.
const HEADER: usize = 5;

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outgoing<'a> {
    /// At most [`MESSAGE_LIMIT`] bytes.
    Message(&'a [u8]),
    /// From 1 byte to [`CHUNK_LIMIT`] bytes.
    Data(&'a [u8]),
    EndOfData,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct FrameEncoder;

impl Encoder<Outgoing<'_>> for FrameEncoder {
    type Error = io::Error;

    fn encode(&mut self, frame: Outgoing<'_>, to: &mut BytesMut) -> io::Result<()> {
        let (kind, content) = match frame {
            Outgoing::Message(json) => (MESSAGE, json),
            Outgoing::Data(chunk) => (DATA, chunk),
            Outgoing::EndOfData => (END_OF_DATA, &[][..]),
        };
        let length = u32::try_from(content.len()).map_err(io::Error::other)?;
        to.reserve(HEADER + content.len());
        to.put_u8(kind);
        to.put_u32(length);
        to.put_slice(content);
        Ok(())
    }
}

/// What is received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    Message(Bytes),
    /// Part of a frame of data: it is passed on as it comes. Never empty.
    Data(Bytes),
    EndOfData,
}

#[derive(Debug, Default)]
pub(super) struct FrameDecoder {
    /// How much of the present frame of data is still to come, in bytes.
    data_left: usize,
}

impl FrameDecoder {
    fn data(&mut self, from: &mut BytesMut) -> Option<Incoming> {
        let piece = from.split_to(self.data_left.min(from.len())).freeze();
        self.data_left -= piece.len();
        (!piece.is_empty()).then_some(Incoming::Data(piece))
    }
}

impl Decoder for FrameDecoder {
    type Item = Incoming;
    type Error = LinkError;

    fn decode(&mut self, from: &mut BytesMut) -> Result<Option<Incoming>, LinkError> {
        if self.data_left > 0 {
            return Ok(self.data(from));
        }
        let Some(mut header) = from.get(..HEADER) else { return Ok(None) };
        let (kind, length) = (header.get_u8(), header.get_u32());
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        match (kind, length) {
            (MESSAGE, 0..=MESSAGE_LIMIT) => {
                if from.len() < HEADER + length {
                    from.reserve(HEADER + length - from.len());
                    return Ok(None);
                }
                from.advance(HEADER);
                Ok(Some(Incoming::Message(from.split_to(length).freeze())))
            }
            (DATA, 1..=CHUNK_LIMIT) => {
                from.advance(HEADER);
                self.data_left = length;
                Ok(self.data(from))
            }
            (END_OF_DATA, 0) => {
                from.advance(HEADER);
                Ok(Some(Incoming::EndOfData))
            }
            _ => Err(LinkError::Protocol(format!("a frame of kind {kind} and {length} bytes"))),
        }
    }

    fn decode_eof(&mut self, from: &mut BytesMut) -> Result<Option<Incoming>, LinkError> {
        match self.decode(from)? {
            None if self.data_left > 0 || !from.is_empty() => {
                Err(LinkError::Broken(io::ErrorKind::UnexpectedEof.into()))
            }
            frame => Ok(frame),
        }
    }
}
