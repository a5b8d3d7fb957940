//! What a connection's socket is told, so that a dead link is noticed.

use super::super::DEAD_LINK_LIMIT;
use rustix::net::sockopt::{
    set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl, set_tcp_user_timeout,
};
use std::io;
use tokio::net::TcpStream;

/// Probes that go unanswered before an idle link is dead.
const PROBES: u32 = 2;

/// Makes `stream` fail after [`DEAD_LINK_LIMIT`] without a sign of life, and send without delay.
///
/// An idle link is probed; one with data on its way has that acknowledged in time, or else fails. The kernel counts a
/// peer that reads nothing for so long as dead, too (tcp(7), `TCP_USER_TIMEOUT`).
pub(super) fn prepare(stream: &TcpStream) -> io::Result<()> {
    let interval = DEAD_LINK_LIMIT / (PROBES + 1);
    stream.set_nodelay(true)?;
    set_socket_keepalive(stream, true)?;
    set_tcp_keepidle(stream, interval)?;
    set_tcp_keepintvl(stream, interval)?;
    set_tcp_keepcnt(stream, PROBES)?;
    let limit = u32::try_from(DEAD_LINK_LIMIT.as_millis()).map_err(io::Error::other)?;
    Ok(set_tcp_user_timeout(stream, limit)?)
}
