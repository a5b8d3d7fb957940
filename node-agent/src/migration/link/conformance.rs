//! What must hold of every migration network, so that what is proven on the model holds on real connections.

use super::{
    Connection, DEAD_LINK_LIMIT, FrameReceiver, FrameSender, LinkError, MigrationNetwork,
    frames::{MESSAGE_LIMIT, framed},
};
use async_trait::async_trait;
use kubexen_ownership::HostName;
use std::{io, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout},
};

/// Leave for a machine that is busy with other tests.
const LEAVE: Duration = Duration::from_secs(20);
const MIB: usize = 1024 * 1024;

/// Two agents on one network.
#[async_trait]
pub(super) trait Subject: Sync {
    /// The agent of host `xen-1`.
    fn first(&self) -> &dyn MigrationNetwork;

    /// The agent of host `xen-2`.
    fn second(&self) -> &dyn MigrationNetwork;

    /// Breaks the connections that there are, so that nothing is carried any more, in neither direction.
    async fn break_connections(&self);
}

/// Puts a network through everything that is promised. Afterwards its connections are broken.
pub(super) async fn every_promise_holds(subject: &dyn Subject) {
    agents_know_each_others_host(subject).await;
    whoever_is_another_host_is_not_proven(subject).await;
    messages_arrive_in_order_and_whole(subject).await;
    data_arrives_whole_and_messages_follow_it(subject).await;
    what_is_too_long_is_neither_sent_nor_taken(subject).await;
    a_peer_that_goes_is_noticed(subject).await;
    a_break_in_the_middle_of_data_is_an_error_at_both_ends(subject).await;
}

pub(super) fn name(host: &str) -> HostName {
    HostName::new(host).unwrap()
}

/// A connection that `first` makes to `second`: both ends.
async fn connected(subject: &dyn Subject) -> (Connection, Connection) {
    let address = subject.second().address().unwrap();
    let second = name("xen-2");
    let (called, taken) = tokio::join!(subject.first().connect(&second, &address), subject.second().accept());
    let (caller, theirs) = taken.unwrap();
    assert_eq!(caller, name("xen-1"));
    (called.unwrap(), theirs)
}

async fn agents_know_each_others_host(subject: &dyn Subject) {
    let (mut called, mut taken) = connected(subject).await;
    called.write_all(b"to xen-2").await.unwrap();
    called.flush().await.unwrap();
    taken.write_all(b"to xen-1").await.unwrap();
    taken.flush().await.unwrap();
    for (end, expected) in [(&mut taken, b"to xen-2"), (&mut called, b"to xen-1")] {
        let mut found = [0; 8];
        end.read_exact(&mut found).await.unwrap();
        assert_eq!(&found, expected);
    }
}

async fn whoever_is_another_host_is_not_proven(subject: &dyn Subject) {
    let address = subject.second().address().unwrap();
    let refused = subject.first().connect(&name("xen-3"), &address).await;
    assert!(
        matches!(&refused, Err(LinkError::NotProven { host, .. }) if *host == name("xen-3")),
        "{refused:?}"
    );
}

async fn messages_arrive_in_order_and_whole(subject: &dyn Subject) {
    let (called, taken) = connected(subject).await;
    // The quotes are part of the message.
    let messages = || (0..200).map(|number| number.to_string().repeat(number)).chain([longest()]);
    let there_and_back = |connection| async move {
        let (mut sender, mut receiver) = framed(connection);
        let sending = async {
            for message in messages() {
                sender.send(&message).await.unwrap();
            }
        };
        let receiving = async {
            for message in messages() {
                assert_eq!(receiver.receive::<String>(LEAVE).await.unwrap(), message);
            }
        };
        tokio::join!(sending, receiving);
    };
    tokio::join!(there_and_back(called), there_and_back(taken));
}

/// The longest text that a message can be: the quotes count.
fn longest() -> String {
    "x".repeat(MESSAGE_LIMIT - 2)
}

async fn data_arrives_whole_and_messages_follow_it(subject: &dyn Subject) {
    let (called, taken) = connected(subject).await;
    let (mut source, mut from_destination) = framed(called);
    let (mut to_source, mut destination) = framed(taken);
    let sending = async {
        source.send(&"memory follows").await.unwrap();
        send_data(&mut source, 64 * MIB).await;
        source.send(&"that was all").await.unwrap();
        send_data(&mut source, 1).await;
        assert_eq!(from_destination.receive::<u32>(LEAVE).await.unwrap(), 1, "while data goes the other way");
        assert_eq!(from_destination.receive::<u32>(LEAVE).await.unwrap(), 2);
    };
    let receiving = async {
        assert_eq!(destination.receive::<String>(LEAVE).await.unwrap(), "memory follows");
        to_source.send(&1).await.unwrap();
        receive_data(&mut destination, 64 * MIB).await;
        assert_eq!(destination.receive::<String>(LEAVE).await.unwrap(), "that was all");
        receive_data(&mut destination, 1).await;
        to_source.send(&2).await.unwrap();
    };
    tokio::join!(sending, receiving);
}

/// Bytes that tell when some are missing, double or in another order, in pieces of many lengths.
fn pattern(length: usize) -> impl Iterator<Item = Vec<u8>> {
    let mut left = length;
    (0_usize..).map_while(move |number| {
        // Some are longer than a frame.
        let piece = left.min(1 + number * 7919 % (3 * MIB));
        left -= piece;
        let mut bytes: Vec<u8> = number.to_le_bytes().repeat(piece.div_ceil(8));
        bytes.truncate(piece);
        (piece > 0).then_some(bytes)
    })
}

async fn send_data(sender: &mut FrameSender, length: usize) {
    let mut data = sender.data();
    for piece in pattern(length) {
        data.write_all(&piece).await.unwrap();
    }
    data.shutdown().await.unwrap();
    assert_eq!(data.write(b"more").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

async fn receive_data(receiver: &mut FrameReceiver, length: usize) {
    let mut data = receiver.data();
    for piece in pattern(length) {
        let mut found = vec![0; piece.len()];
        data.read_exact(&mut found).await.unwrap();
        assert!(found == piece, "the data differ");
    }
    assert_eq!(data.read(&mut [0]).await.unwrap(), 0, "there is more data");
}

async fn what_is_too_long_is_neither_sent_nor_taken(subject: &dyn Subject) {
    let (called, mut taken) = connected(subject).await;
    let (mut sender, mut receiver) = framed(called);
    let refused = sender.send(&(longest() + "x")).await;
    assert!(matches!(refused, Err(LinkError::TooLong { size }) if size == MESSAGE_LIMIT + 1), "{refused:?}");

    taken.write_all(&[1, 0, 1, 0, 1]).await.unwrap();
    taken.flush().await.unwrap();
    let refused = receiver.receive::<String>(LEAVE).await;
    assert!(matches!(refused, Err(LinkError::Protocol(_))), "{refused:?}");
}

async fn a_peer_that_goes_is_noticed(subject: &dyn Subject) {
    let (called, taken) = connected(subject).await;
    let (_to_peer, mut from_peer) = framed(called);
    drop(taken);
    let gone = from_peer.receive::<String>(LEAVE).await;
    assert!(matches!(gone, Err(LinkError::Closed | LinkError::Broken(_))), "{gone:?}");

    let (called, taken) = connected(subject).await;
    let (mut to_peer, from_peer) = framed(called);
    let (_to_source, mut receiver) = framed(taken);
    let mut data = to_peer.data();
    data.write_all(b"half of it").await.unwrap();
    data.flush().await.unwrap();
    drop((to_peer, from_peer));
    let broken = receiver.data().read_to_end(&mut Vec::new()).await;
    assert!(broken.is_err(), "data without an end looked whole: {broken:?}");
}

async fn a_break_in_the_middle_of_data_is_an_error_at_both_ends(subject: &dyn Subject) {
    let (called, taken) = connected(subject).await;
    let (mut source, _from_destination) = framed(called);
    let (_to_source, mut destination) = framed(taken);
    let sending = async {
        let mut data = source.data();
        let piece = vec![7; MIB];
        loop {
            if let Err(error) = data.write_all(&piece).await {
                return error;
            }
        }
    };
    let receiving = async {
        let mut data = destination.data();
        let mut buffer = vec![0; MIB];
        data.read_exact(&mut buffer).await.unwrap();
        subject.break_connections().await;
        let broken = Instant::now();
        loop {
            match data.read(&mut buffer).await {
                Ok(0) => panic!("data that was cut off looked whole"),
                Ok(_) => {}
                Err(error) => return (error, broken),
            }
        }
    };
    let (sent, (received, broken)) =
        timeout(LEAVE * 4, async { tokio::join!(sending, receiving) }).await.unwrap();
    let took = broken.elapsed();
    assert!(took <= DEAD_LINK_LIMIT + LEAVE, "{sent} and {received} took {took:?}");
}
