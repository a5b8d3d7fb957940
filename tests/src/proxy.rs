//! A wire between a client and servers that a test can cut, one way or both.
//!
//! It is cut as a network is: what is under way when it is cut, or sent afterwards, arrives when it is mended, however late
//! and whoever has given up by then; and no connection is made while either way is cut, because that needs both.

use anyhow::Result;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// Which ways of a wire let nothing through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// From the client to the servers.
    pub requests: bool,
    /// From the servers to the client.
    pub answers: bool,
}

impl Cut {
    /// Neither way.
    pub const NONE: Self = Self { requests: false, answers: false };
    /// Both ways.
    pub const BOTH: Self = Self { requests: true, answers: true };
    /// What the client asks is heard, and it never learns that.
    pub const ANSWERS: Self = Self { requests: false, answers: true };
    /// What the client asks is not heard.
    pub const REQUESTS: Self = Self { requests: true, answers: false };
}

/// Forwards TCP connections on this machine, each of its ports to one of the servers' ports. Dropping it closes all.
#[derive(Debug)]
pub struct Proxy {
    ports: Vec<u16>,
    cut: watch::Sender<Cut>,
    tasks: Vec<AbortHandle>,
}

impl Proxy {
    /// Starts one for servers that listen on these ports of 127.0.0.1.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(servers: impl IntoIterator<Item = u16>) -> Result<Self> {
        let (cut, is_cut) = watch::channel(Cut::NONE);
        let (mut ports, mut tasks) = (Vec::new(), Vec::new());
        for server in servers {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            ports.push(listener.local_addr()?.port());
            let server = SocketAddr::from((Ipv4Addr::LOCALHOST, server));
            tasks.push(tokio::spawn(serve(listener, server, is_cut.clone())).abort_handle());
        }
        Ok(Self { ports, cut, tasks })
    }

    /// Where clients connect, in the order of the servers.
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// Cuts the wire like this from now on, or mends it.
    pub fn set(&self, cut: Cut) {
        self.cut.send_replace(cut);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

async fn serve(listener: TcpListener, server: SocketAddr, cut: watch::Receiver<Cut>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(forward(client, server, cut.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn forward(mut client: TcpStream, server: SocketAddr, mut cut: watch::Receiver<Cut>) {
    if cut.wait_for(|cut| *cut == Cut::NONE).await.is_err() {
        return;
    }
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::select! {
        () = pump(from_client, to_server, cut.clone(), |cut| cut.requests) => {}
        () = pump(from_server, to_client, cut, |cut| cut.answers) => {}
    }
}

/// Copies until either end closes, and stands still while its way is cut.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut cut: watch::Receiver<Cut>,
    is_cut: fn(&Cut) -> bool,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if cut.wait_for(|cut| !is_cut(cut)).await.is_err() || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
    // The end of a connection is heard of no sooner than what was said before it.
    let _ = cut.wait_for(|cut| !is_cut(cut)).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    /// A server that sends back what it hears.
    async fn echo() -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        port
    }

    async fn hear(stream: &mut TcpStream) -> Option<u8> {
        timeout(Duration::from_millis(200), stream.read_u8()).await.ok()?.ok()
    }

    #[tokio::test]
    async fn what_was_sent_into_a_cut_arrives_when_it_is_mended() {
        let proxy = Proxy::start([echo().await]).await.unwrap();
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.ports()[0])).await.unwrap();
        for (byte, cut) in (1..).zip([Cut::NONE, Cut::REQUESTS, Cut::ANSWERS, Cut::BOTH]) {
            proxy.set(cut);
            stream.write_u8(byte).await.unwrap();
            assert_eq!(hear(&mut stream).await, (cut == Cut::NONE).then_some(byte), "{cut:?}");
            proxy.set(Cut::NONE);
            if cut != Cut::NONE {
                assert_eq!(hear(&mut stream).await, Some(byte), "{cut:?}");
            }
        }
    }

    #[tokio::test]
    async fn no_connection_is_made_through_a_cut() {
        let proxy = Proxy::start([echo().await]).await.unwrap();
        proxy.set(Cut::ANSWERS);
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.ports()[0])).await.unwrap();
        stream.write_u8(1).await.unwrap();
        assert_eq!(hear(&mut stream).await, None);
        proxy.set(Cut::NONE);
        assert_eq!(hear(&mut stream).await, Some(1));
    }
}
