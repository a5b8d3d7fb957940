//! The client against a daemon of a few lines that keeps its nodes in a map.

use super::*;
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex as StdMutex},
};
use tokio::{net::UnixListener, task::JoinSet};

const LIMIT: Duration = Duration::from_secs(5);

/// What the daemon does with a request for one of these paths, instead of answering.
const HANG: &str = "/hang";
const HANG_UP: &str = "/hang-up";
const BABBLE: &str = "/babble";

type Nodes = Arc<StdMutex<BTreeMap<String, Vec<u8>>>>;

pub(in super::super) struct Daemon {
    folder: tempfile::TempDir,
    nodes: Nodes,
    connections: JoinSet<()>,
}

impl Daemon {
    pub(in super::super) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut daemon = Self { folder, nodes: Nodes::default(), connections: JoinSet::new() };
        daemon.listen();
        daemon
    }

    fn listen(&mut self) {
        let listener = UnixListener::bind(self.socket()).unwrap();
        let nodes = Arc::clone(&self.nodes);
        self.connections.spawn(async move {
            let mut served = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                served.spawn(serve(Connection { stream, next_id: 0 }, Arc::clone(&nodes)));
            }
        });
    }

    async fn restart(&mut self) {
        self.connections.shutdown().await;
        std::fs::remove_file(self.socket()).unwrap();
        self.listen();
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    pub(in super::super) fn client(&self, limit: Duration) -> XenStore {
        XenStore::new(self.socket(), limit)
    }
}

async fn serve(mut connection: Connection, nodes: Nodes) {
    while let Ok(Received { kind, id, payload }) = connection.receive().await {
        let text = String::from_utf8(payload).unwrap();
        let (path, value) = text.split_once('\0').unwrap();
        if path == HANG {
            std::future::pending::<()>().await;
        }
        if path == HANG_UP {
            return;
        }
        let answer = if path == BABBLE {
            Ok(vec![b'x'; PAYLOAD_LIMIT + 1])
        } else {
            answer(kind, path, value, &nodes)
        };
        let (answered, payload) = answer
            .map_or_else(|name| (kind::ERROR, format!("{name}\0").into_bytes()), |payload| (kind, payload));
        reply(&mut connection, answered, id, &payload).await;
        if kind == kind::WATCH {
            reply(&mut connection, kind::WATCH_EVENT, 0, text.as_bytes()).await;
        }
    }
}

fn answer(kind: u32, path: &str, value: &str, nodes: &Nodes) -> Result<Vec<u8>, &'static str> {
    let mut nodes = nodes.lock().unwrap();
    let below = format!("{path}/");
    let not_there = Err("ENOENT");
    match kind {
        kind::READ => nodes.get(path).cloned().ok_or("ENOENT"),
        kind::WRITE => {
            nodes.insert(path.into(), value.into());
            Ok(b"OK\0".to_vec())
        }
        kind::REMOVE => {
            let before = nodes.len();
            nodes.retain(|node, _| node != path && !node.starts_with(&below));
            if nodes.len() < before { Ok(b"OK\0".to_vec()) } else { not_there }
        }
        kind::DIRECTORY => {
            let names = nodes.keys().filter_map(|node| node.strip_prefix(&below)?.split('/').next());
            let names: BTreeSet<&str> = names.collect();
            let names: Vec<u8> = names.iter().flat_map(|name| format!("{name}\0").into_bytes()).collect();
            match names.len() {
                0 => not_there,
                length if length > PAYLOAD_LIMIT => Err("E2BIG"),
                _ => Ok(names),
            }
        }
        kind::WATCH => Ok(b"OK\0".to_vec()),
        other => panic!("request {other}"),
    }
}

async fn reply(connection: &mut Connection, kind: u32, id: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap();
    let mut message = Vec::new();
    for word in [kind, id, 0, length] {
        message.extend_from_slice(&word.to_ne_bytes());
    }
    message.extend_from_slice(payload);
    // The client may be gone by now.
    let _ = connection.stream.write_all(&message).await;
}

#[tokio::test]
async fn what_is_written_is_read_listed_and_removed() {
    let daemon = Daemon::start();
    let store = daemon.client(LIMIT);
    assert_eq!(store.read("/a/b").await.unwrap(), None);
    assert_eq!(store.directory("/a").await.unwrap(), None);
    store.write("/a/b", b"1").await.unwrap();
    store.write("/a/c", b"").await.unwrap();
    assert_eq!(store.read("/a/b").await.unwrap(), Some(b"1".to_vec()));
    assert_eq!(store.read("/a/c").await.unwrap(), Some(Vec::new()));
    assert_eq!(store.directory("/a").await.unwrap(), Some(vec!["b".into(), "c".into()]));
    store.remove("/a").await.unwrap();
    store.remove("/a").await.unwrap();
    assert_eq!(store.read("/a/b").await.unwrap(), None);
}

#[tokio::test]
async fn a_daemon_that_hangs_costs_one_time_limit_and_no_more() {
    let daemon = Daemon::start();
    let store = daemon.client(Duration::from_millis(200));
    assert!(matches!(store.read(HANG).await, Err(StoreError::TimedOut(_))));
    store.write("/a", b"1").await.unwrap();
}

#[tokio::test]
async fn a_connection_that_breaks_is_replaced() {
    let mut daemon = Daemon::start();
    let store = daemon.client(LIMIT);
    store.write("/a", b"1").await.unwrap();
    assert!(matches!(store.read(HANG_UP).await, Err(StoreError::Connection(_))));
    assert_eq!(store.read("/a").await.unwrap(), Some(b"1".to_vec()));
    daemon.restart().await;
    assert!(matches!(store.read("/a").await, Err(StoreError::Connection(_))));
    assert_eq!(store.read("/a").await.unwrap(), Some(b"1".to_vec()));
}

#[tokio::test]
async fn a_message_that_is_too_long_is_refused_on_both_ways() {
    let daemon = Daemon::start();
    let store = daemon.client(LIMIT);
    assert!(matches!(store.read(BABBLE).await, Err(StoreError::Connection(_))));
    assert!(matches!(store.write("/a", &[0; PAYLOAD_LIMIT]).await, Err(StoreError::Connection(_))));
    store.write("/a", b"1").await.unwrap();
}

#[tokio::test]
async fn a_request_that_nobody_waits_for_does_not_confuse_the_next() {
    let daemon = Daemon::start();
    let store = daemon.client(LIMIT);
    store.write("/a", b"1").await.unwrap();
    let abandoned = timeout(Duration::from_millis(50), store.read(HANG)).await;
    assert!(abandoned.is_err());
    assert_eq!(store.read("/a").await.unwrap(), Some(b"1".to_vec()));
}

#[tokio::test]
async fn watches_count_and_are_set_again_when_the_daemon_comes_back() {
    let mut daemon = Daemon::start();
    let (counter, mut changes) = watch::channel(0);
    let socket = daemon.socket();
    let mut watching = JoinSet::new();
    watching.spawn(async move { watch_for_ever(socket, &["@releaseDomain"], counter).await });
    for _ in 0..2 {
        timeout(LIMIT, changes.changed()).await.unwrap().unwrap();
        daemon.restart().await;
    }
}

#[test]
fn a_guests_text_loses_what_could_trick_a_terminal() {
    assert_eq!(sanitize(b"a\x1b[31mb\0c\n", 99), "a[31mbc");
    assert_eq!(sanitize("gr\u{fc}\u{9b}n".as_bytes(), 99), "gr\u{fc}n");
    assert_eq!(sanitize(b"\xff\xfeok\xc3", 99), "ok");
    assert_eq!(sanitize("\u{e9}\u{e9}".as_bytes(), 3), "\u{e9}");
}

proptest! {
    #[test]
    fn whatever_a_guest_writes_is_bounded_and_printable(bytes: Vec<u8>, limit in 0_usize..64) {
        let text = sanitize(&bytes, limit);
        prop_assert!(text.len() <= limit);
        prop_assert!(!text.chars().any(char::is_control));
    }
}

#[tokio::test]
async fn no_daemon_is_an_error_at_once() {
    let store = XenStore::new(Path::new("/nonexistent/socket").into(), LIMIT);
    assert!(matches!(store.read("/a").await, Err(StoreError::Connection(_))));
}
