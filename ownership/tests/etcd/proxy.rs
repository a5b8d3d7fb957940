//! A link between client and etcd that loses answers when told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// Forwards connections, each of its endpoints to one address; everything ends when this is dropped.
pub struct Proxy {
    endpoints: Vec<String>,
    answers_to_lose: Arc<AtomicU32>,
    tasks: Vec<AbortHandle>,
}

impl Proxy {
    pub async fn start(targets: impl IntoIterator<Item = String>) -> Self {
        let answers_to_lose = Arc::new(AtomicU32::new(0));
        let (mut endpoints, mut tasks) = (Vec::new(), Vec::new());
        for target in targets {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
            endpoints.push(format!("http://{}", listener.local_addr().unwrap()));
            tasks.push(tokio::spawn(serve(listener, target, Arc::clone(&answers_to_lose))).abort_handle());
        }
        Self { endpoints, answers_to_lose, tasks }
    }

    /// One for each address.
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// Forwards each of the next `transactions`, and nothing more that comes back on its connection.
    pub fn lose_answers(&self, transactions: u32) {
        self.answers_to_lose.store(transactions, Ordering::SeqCst);
    }

    pub fn answers_left_to_lose(&self) -> u32 {
        self.answers_to_lose.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

async fn serve(listener: TcpListener, target: String, answers_to_lose: Arc<AtomicU32>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        if let Ok(server) = TcpStream::connect(&target).await {
            connections.spawn(forward(client, server, Arc::clone(&answers_to_lose)));
        }
    }
}

async fn forward(mut client: TcpStream, mut server: TcpStream, answers_to_lose: Arc<AtomicU32>) {
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let (deaf, is_deaf) = watch::channel(false);
    let requests = pump(from_client, to_server, |bytes| {
        if is_transaction(bytes) {
            let lose = |left: u32| left.checked_sub(1);
            let lost = answers_to_lose.fetch_update(Ordering::SeqCst, Ordering::SeqCst, lose).is_ok();
            // Before the request goes on, so that its answer cannot overtake this.
            deaf.send_if_modified(|deaf| lost && !std::mem::replace(deaf, true));
        }
        true
    });
    let answers = pump(from_server, to_client, |_| !*is_deaf.borrow());
    tokio::select! {
        biased;
        () = requests => {}
        () = answers => {}
    }
}

/// Copies until either end closes; `pass` sees each piece first, and says whether it goes on.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut pass: impl FnMut(&[u8]) -> bool,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let piece = &buffer[..length];
        if pass(piece) && to.write_all(piece).await.is_err() {
            return;
        }
    }
}

/// A read names its key once; a transaction names it in its condition, its write, and what it reads if refused.
fn is_transaction(bytes: &[u8]) -> bool {
    let folder = b"/kubexen/";
    bytes.windows(folder.len()).filter(|window| window == folder).count() > 1
}
