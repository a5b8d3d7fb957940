use super::*;
use std::io;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::{Instant, sleep},
};

const SOON: Duration = Duration::from_secs(1);

/// Frames at one end, bytes at the other.
fn over_bytes() -> (FrameSender, FrameReceiver, DuplexStream) {
    let (framed_end, raw) = duplex(4096);
    let (sender, receiver) = framed(Connection::new(framed_end));
    (sender, receiver, raw)
}

#[tokio::test(start_paused = true)]
async fn hostile_headers_are_refused_before_anything_is_kept_for_them() {
    let over = |limit: usize| u32::try_from(limit + 1).unwrap();
    let headers = [
        (1, over(MESSAGE_LIMIT)),
        (1, u32::MAX),
        (2, 0),
        (2, over(CHUNK_LIMIT)),
        (2, u32::MAX),
        (3, 1),
        (0, 0),
        (4, 0),
        (255, u32::MAX),
    ];
    for (kind, length) in headers {
        let (_sender, mut receiver, mut raw) = over_bytes();
        raw.write_u8(kind).await.unwrap();
        raw.write_u32(length).await.unwrap();
        let refused = receiver.receive::<String>(SOON).await;
        assert!(matches!(refused, Err(LinkError::Protocol(_))), "{kind}, {length}: {refused:?}");
        assert!(receiver.frames.read_buffer().capacity() <= BUFFER, "{kind}, {length}");

        let (_sender, mut receiver, mut raw) = over_bytes();
        raw.write_u8(kind).await.unwrap();
        raw.write_u32(length).await.unwrap();
        let refused = receiver.data().read(&mut [0; 1]).await;
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::InvalidData, "{kind}, {length}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_due_is_refused() {
    let (_sender, mut receiver, mut raw) = over_bytes();
    raw.write_all(b"\x01\x00\x00\x00\x02{}").await.unwrap();
    let refused = receiver.receive::<String>(SOON).await;
    assert!(matches!(refused, Err(LinkError::Protocol(_))), "another message: {refused:?}");
    raw.write_all(b"\x01\x00\x00\x00\x02{}").await.unwrap();
    let refused = receiver.data().read(&mut [0; 1]).await;
    assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::InvalidData, "a message for data");
    raw.write_all(b"\x02\x00\x00\x00\x02ab").await.unwrap();
    assert_eq!(receiver.data().read(&mut [0; 1]).await.unwrap(), 1);
    let refused = receiver.receive::<String>(SOON).await;
    assert!(matches!(refused, Err(LinkError::Protocol(_))), "data for a message: {refused:?}");
    assert_eq!(receiver.data().read(&mut [0; 1]).await.unwrap(), 1, "data is read on");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_ends_is_closed_between_frames_and_broken_within_one() {
    for (bytes, closed) in [(&b""[..], true), (b"\x01", false), (b"\x01\x00\x00\x00\x03{}", false)] {
        let (_sender, mut receiver, mut raw) = over_bytes();
        raw.write_all(bytes).await.unwrap();
        drop(raw);
        let ended = receiver.receive::<()>(SOON).await;
        assert_eq!(matches!(ended, Err(LinkError::Closed)), closed, "{bytes:?}: {ended:?}");
        assert_eq!(matches!(ended, Err(LinkError::Broken(_))), !closed, "{bytes:?}: {ended:?}");
    }
    for bytes in [&b""[..], b"\x02", b"\x02\x00\x00\x00\x03ab", b"\x02\x00\x00\x00\x03abc"] {
        let (_sender, mut receiver, mut raw) = over_bytes();
        raw.write_all(bytes).await.unwrap();
        drop(raw);
        let ended = receiver.data().read_to_end(&mut Vec::new()).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{bytes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_comes_too_late_is_not_lost() {
    let (_sender, mut receiver, mut raw) = over_bytes();
    raw.write_all(b"\x01\x00\x00").await.unwrap();
    let began = Instant::now();
    let late = receiver.receive::<u32>(SOON).await;
    assert!(matches!(late, Err(LinkError::TimedOut { limit: SOON, .. })), "{late:?}");
    assert_eq!(began.elapsed(), SOON);
    raw.write_all(b"\x00\x02421").await.unwrap();
    assert_eq!(receiver.receive::<u32>(SOON).await.unwrap(), 42);
}

#[tokio::test(start_paused = true)]
async fn data_that_stands_still_fails_after_the_limit_and_slow_data_does_not() {
    let (_sender, mut receiver, mut raw) = over_bytes();
    raw.write_all(b"\x02\x00\x10\x00\x00").await.unwrap();
    let drip = async {
        for _ in 0..10 {
            sleep(STALL_LIMIT * 9 / 10).await;
            raw.write_all(b"x").await.unwrap();
        }
        Instant::now()
    };
    let mut received = Vec::new();
    let mut data = receiver.data();
    let (last, ended) = tokio::join!(drip, data.read_to_end(&mut received));
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert_eq!((received.len(), last.elapsed()), (10, STALL_LIMIT));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_is_borne_for_the_limit_and_a_slow_one_for_ever() {
    let (mut sender, _receiver, mut raw) = over_bytes();
    let sip = async {
        for _ in 0..10 {
            sleep(STALL_LIMIT * 9 / 10).await;
            raw.read_exact(&mut [0; 100]).await.unwrap();
        }
        Instant::now()
    };
    let mut data = sender.data();
    let sending = async {
        data.write_all(&vec![0; CHUNK_LIMIT]).await?;
        data.shutdown().await
    };
    let (last, ended) = tokio::join!(sip, sending);
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert_eq!(last.elapsed(), STALL_LIMIT);
}

#[tokio::test(start_paused = true)]
async fn data_can_be_read_on_by_another_reader() {
    let (_sender, mut receiver, mut raw) = over_bytes();
    raw.write_all(b"\x02\x00\x00\x00\x04abcd\x02\x00\x00\x00\x01e\x03\x00\x00\x00\x00").await.unwrap();
    let mut first = [0; 2];
    receiver.data().read_exact(&mut first).await.unwrap();
    let mut rest = Vec::new();
    receiver.data().read_to_end(&mut rest).await.unwrap();
    assert_eq!((&first[..], &rest[..]), (&b"ab"[..], &b"cde"[..]));
}
