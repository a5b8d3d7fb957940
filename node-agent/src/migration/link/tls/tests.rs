mod authority;
mod proxy;

use super::{
    super::conformance::{self, name},
    *,
};
use authority::Authority;
use proxy::Proxy;
use rustix::net::sockopt;
use rustls::{CipherSuite, ClientConfig};
use std::{io::Write, net::Ipv4Addr};

/// An agent that proves itself with the files of `config`, at a port of its own.
async fn agent(config: MigrationConfig) -> TlsNetwork {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    TlsNetwork::serve(vec![listener], MigrationConfig { address, ..config }).await.unwrap()
}

async fn connect(from: &TlsNetwork, to: &TlsNetwork, host: &str) -> Result<Connection, LinkError> {
    from.connect(&name(host), &to.address().unwrap()).await
}

/// Two agents; what the first sends to the second goes through a proxy.
struct Hosts {
    first: TlsNetwork,
    second: TlsNetwork,
    proxy: Proxy,
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
        self.proxy.break_connections().await;
    }
}

#[tokio::test]
async fn the_tls_network_keeps_every_promise() {
    let authority = Authority::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap()).await;
    let config = MigrationConfig { address: proxy.address(), ..authority.host("xen-2") };
    let hosts = Hosts {
        first: agent(authority.host("xen-1")).await,
        second: TlsNetwork::serve(vec![listener], config).await.unwrap(),
        proxy,
    };
    conformance::every_promise_holds(&hosts).await;
}

#[tokio::test]
async fn a_certificate_of_another_authority_convinces_neither_side() {
    let (authority, strangers) = (Authority::new(), Authority::new());
    let host = agent(authority.host("xen-1")).await;
    // It knows the right authority, and was signed by another one.
    let ca = authority.host("xen-1").ca;
    let stranger = agent(MigrationConfig { ca, ..strangers.host("xen-2") }).await;

    let refused = connect(&host, &stranger, "xen-2").await;
    assert!(matches!(refused, Err(LinkError::NotProven { .. })), "{refused:?}");
    let refused = connect(&stranger, &host, "xen-1").await;
    assert!(matches!(refused, Err(LinkError::TurnedAway { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_certificate_that_does_not_name_exactly_one_host_convinces_neither_side() {
    let authority = Authority::new();
    let host = agent(authority.host("xen-1")).await;
    let certificates: [&[&str]; 4] = [
        &["xen-2.example.org"],
        &["*.hosts.kubexen.internal"],
        &["xen-2.hosts.kubexen.internal", "xen-3.hosts.kubexen.internal"],
        &["a.xen-2.hosts.kubexen.internal"],
    ];
    for names in certificates {
        let other = agent(authority.sign("other", names)).await;
        let refused = connect(&host, &other, "xen-2").await;
        assert!(matches!(refused, Err(LinkError::NotProven { .. })), "{names:?}: {refused:?}");
        let refused = connect(&other, &host, "xen-1").await;
        assert!(matches!(refused, Err(LinkError::TurnedAway { .. })), "{names:?}: {refused:?}");
    }
}

#[tokio::test]
async fn whoever_shows_no_certificate_is_turned_away_and_disturbs_nobody() {
    let authority = Authority::new();
    let (first, second) = (agent(authority.host("xen-1")).await, agent(authority.host("xen-2")).await);
    let address = second.address().unwrap();

    let nameless = Arc::new(
        ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(authority.roots())
            .with_no_client_auth(),
    );
    let stream = TcpStream::connect(&address).await.unwrap();
    let mut stream = TlsConnector::from(nameless).connect(server_name(&name("xen-2")), stream).await.unwrap();
    let welcome = stream.read_u8().await;
    assert!(welcome.is_err(), "{welcome:?}");

    // No TLS at all, and one that says nothing.
    TcpStream::connect(&address).await.unwrap().write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let _silent = TcpStream::connect(&address).await.unwrap();
    let (called, taken) = tokio::join!(connect(&first, &second, "xen-2"), second.accept());
    assert!(called.is_ok(), "{called:?}");
    assert_eq!(taken.unwrap().0, name("xen-1"));
}

#[tokio::test]
async fn certificates_can_be_replaced_while_the_agent_runs() {
    let (authority, successor) = (Authority::new(), Authority::new());
    let config = authority.host("xen-1");
    let first = agent(config.clone()).await;
    let second = agent(authority.host("xen-2")).await;
    assert!(connect(&second, &first, "xen-1").await.is_ok());

    let new = successor.host("xen-1");
    for (from, to) in
        [(&new.certificate, &config.certificate), (&new.key, &config.key), (&new.ca, &config.ca)]
    {
        std::fs::copy(from, to).unwrap();
    }
    let refused = connect(&second, &first, "xen-1").await;
    // Both had read the authority from one file.
    assert!(
        matches!(refused, Err(LinkError::NotProven { .. } | LinkError::TurnedAway { .. })),
        "{refused:?}"
    );
    let renewed = agent(successor.host("xen-2")).await;
    assert!(connect(&renewed, &first, "xen-1").await.is_ok());
    assert!(connect(&first, &renewed, "xen-2").await.is_ok());
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    let authority = Authority::new();
    let good = authority.host("xen-1");
    let mut empty = tempfile::NamedTempFile::new().unwrap();
    empty.write_all(b"nothing").unwrap();
    let empty = empty.path().to_owned();
    let other_key = authority.host("xen-2").key;
    let bad = [
        (MigrationConfig { certificate: empty.clone(), ..good.clone() }, &empty),
        (MigrationConfig { key: empty.clone(), ..good.clone() }, &empty),
        (MigrationConfig { ca: empty.clone(), ..good.clone() }, &empty),
        (MigrationConfig { key: other_key, ..good.clone() }, &good.certificate),
    ];
    for (config, culprit) in bad {
        let error = TlsNetwork::listen(config).await.unwrap_err();
        assert!(matches!(&error, LinkError::Credentials { path, .. } if path == culprit), "{error}");
    }
    let nobody = agent(good).await.connect(&name("xen-2"), "127.0.0.1:1").await;
    assert!(matches!(nobody, Err(LinkError::Unreachable { .. })), "{nobody:?}");
}

#[tokio::test]
async fn the_kernel_is_told_to_give_a_dead_link_up() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    socket::prepare(&stream).unwrap();
    let second = Duration::from_secs(1);
    assert!(sockopt::socket_keepalive(&stream).unwrap());
    let (idle, interval) =
        (sockopt::tcp_keepidle(&stream).unwrap(), sockopt::tcp_keepintvl(&stream).unwrap());
    assert_eq!(idle + interval * sockopt::tcp_keepcnt(&stream).unwrap(), 15 * second);
    assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 15_000);
}

#[test]
fn the_first_cipher_is_the_one_that_suits_the_cpu() {
    let first = |has_aes| credentials::provider(has_aes).cipher_suites[0].suite();
    assert_eq!(first(false), CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
    assert_eq!(first(true), CipherSuite::TLS13_AES_256_GCM_SHA384);
}
