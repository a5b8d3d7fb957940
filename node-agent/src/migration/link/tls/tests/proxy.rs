//! A link between two agents that breaks when told to.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::Mutex,
    task::JoinSet,
};
use tokio_util::task::AbortOnDropHandle;

/// Forwards connections to one address; everything ends when this is dropped.
pub(super) struct Proxy {
    address: SocketAddr,
    connections: Arc<Mutex<JoinSet<()>>>,
    _listening: AbortOnDropHandle<()>,
}

impl Proxy {
    pub(super) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(Mutex::new(JoinSet::new()));
        let forwarded = Arc::clone(&connections);
        let listening = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut far = TcpStream::connect(target).await.unwrap();
                forwarded.lock().await.spawn(async move {
                    // How a connection ends is for its ends to say.
                    let _ = copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        Self { address, connections, _listening: AbortOnDropHandle::new(listening) }
    }

    pub(super) fn address(&self) -> String {
        self.address.to_string()
    }

    pub(super) async fn break_connections(&self) {
        self.connections.lock().await.shutdown().await;
    }
}
