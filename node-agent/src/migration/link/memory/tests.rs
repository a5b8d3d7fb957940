use super::{
    super::{
        DEAD_LINK_LIMIT,
        conformance::{self, name},
        frames::framed,
    },
    *,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Hosts {
    network: MemoryNetwork,
    first: AgentNetwork,
    second: AgentNetwork,
}

impl Hosts {
    fn new() -> Self {
        let network = MemoryNetwork::new();
        let (first, second) = (network.agent(&name("xen-1")), network.agent(&name("xen-2")));
        Self { network, first, second }
    }

    async fn connected(&self) -> (Connection, Connection) {
        let (host, address) = (name("xen-2"), self.second.address().unwrap());
        let (mine, theirs) = tokio::join!(self.first.connect(&host, &address), self.second.accept());
        (mine.unwrap(), theirs.unwrap().1)
    }

    async fn connect(&self) -> Result<Connection, LinkError> {
        self.first.connect(&name("xen-2"), &self.second.address().unwrap()).await
    }
}

#[async_trait]
impl conformance::Subject for Hosts {
    fn first(&self) -> &dyn MigrationNetwork {
        &self.first
    }

    fn second(&self) -> &dyn MigrationNetwork {
        &self.second
    }

    async fn break_connections(&self) {
        self.network.cut(&name("xen-1"), &name("xen-2"), 0);
        self.network.cut(&name("xen-2"), &name("xen-1"), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn the_memory_network_keeps_every_promise() {
    conformance::every_promise_holds(&Hosts::new()).await;
    let slow = Hosts::new();
    slow.network.set_latency(Duration::from_millis(3));
    slow.network.set_rate(NonZeroU64::new(10_000_000));
    conformance::every_promise_holds(&slow).await;
}

#[tokio::test(start_paused = true)]
async fn bytes_take_the_time_that_latency_and_rate_say() {
    let hosts = Hosts::new();
    hosts.network.set_latency(Duration::from_millis(20));
    hosts.network.set_rate(NonZeroU64::new(1_000_000));
    let (mut near, mut far) = hosts.connected().await;
    let began = Instant::now();
    let sending = async {
        near.write_all(&vec![0; 2_000_000]).await.unwrap();
        near.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let (_, length) = tokio::join!(sending, far.read_to_end(&mut received));
    assert_eq!(length.unwrap(), 2_000_000);
    let took = began.elapsed();
    assert!((Duration::from_millis(2_020)..Duration::from_millis(2_200)).contains(&took), "took {took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_cut_of_one_direction_lets_so_many_bytes_through_and_fails_both_ends_in_time() {
    let hosts = Hosts::new();
    let (mut near, mut far) = hosts.connected().await;
    hosts.network.cut(&name("xen-1"), &name("xen-2"), 1_000);
    near.write_all(&[1; 3_000]).await.unwrap();
    far.write_all(b"still heard").await.unwrap();
    let began = Instant::now();

    let mut received = Vec::new();
    assert_eq!(far.read_to_end(&mut received).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert_eq!(received.len(), 1_000);
    assert_eq!(began.elapsed(), DEAD_LINK_LIMIT);
    for end in [&mut near, &mut far] {
        assert_eq!(end.write(b"x").await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
    let refused = hosts.connect().await;
    assert!(matches!(refused, Err(LinkError::TimedOut { limit: CONNECT_LIMIT, .. })), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn what_goes_the_other_way_of_a_cut_arrives() {
    let hosts = Hosts::new();
    let (near, far) = hosts.connected().await;
    hosts.network.cut(&name("xen-1"), &name("xen-2"), 0);
    let (_to_far, mut from_far) = framed(near);
    let (mut to_near, _from_near) = framed(far);
    to_near.send(&"heard").await.unwrap();
    assert_eq!(from_far.receive::<String>(Duration::from_secs(1)).await.unwrap(), "heard");
}

#[tokio::test(start_paused = true)]
async fn a_cut_that_is_mended_in_time_loses_nothing_and_a_later_one_is_too_late() {
    for (after, survives) in [(DEAD_LINK_LIMIT / 2, true), (DEAD_LINK_LIMIT * 2, false)] {
        let hosts = Hosts::new();
        let (mut near, mut far) = hosts.connected().await;
        hosts.network.cut(&name("xen-2"), &name("xen-1"), 2);
        far.write_all(b"hello").await.unwrap();
        sleep(Duration::from_secs(1)).await;
        let mut start = [0; 2];
        near.read_exact(&mut start).await.unwrap();
        sleep(after).await;
        hosts.network.mend(&name("xen-2"), &name("xen-1"));
        let mut rest = [0; 3];
        let read = near.read_exact(&mut rest).await;
        assert_eq!(read.is_ok(), survives, "{read:?}");
        assert_eq!(&rest, if survives { b"llo" } else { &[0; 3] });
        assert_eq!(far.write(b"x").await.is_ok(), survives);
        assert!(hosts.connect().await.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_refuses_hangs_or_is_gone() {
    let hosts = Hosts::new();
    let began = Instant::now();
    hosts.network.set_reception(&name("xen-2"), Reception::Refuses);
    assert!(matches!(hosts.connect().await, Err(LinkError::Unreachable { .. })));
    assert_eq!(began.elapsed(), Duration::ZERO);
    hosts.network.set_reception(&name("xen-2"), Reception::Hangs);
    assert!(matches!(hosts.connect().await, Err(LinkError::TimedOut { .. })));
    assert_eq!(began.elapsed(), CONNECT_LIMIT);
    hosts.network.set_reception(&name("xen-2"), Reception::Welcomes);
    assert!(hosts.connect().await.is_ok());

    let Hosts { network, first, second } = hosts;
    let address = second.address().unwrap();
    drop(second);
    let gone = first.connect(&name("xen-2"), &address).await;
    assert!(matches!(gone, Err(LinkError::Unreachable { .. })), "{gone:?}");
    let _next = network.agent(&name("xen-2"));
    assert!(first.connect(&name("xen-2"), &address).await.is_ok(), "the next agent of that host is there");
}
