//! One stream to or from another host, without a guest, as a subcommand that is run inside dom0.

use super::{Connection, LinkError, MigrationNetwork, TlsNetwork, frames::framed};
use crate::config::{AgentConfig, MigrationConfig};
use anyhow::{Context, Result};
use clap::Subcommand;
use kubexen_ownership::HostName;
use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncWriteExt, copy_buf, sink},
    time::sleep,
};

/// Bytes that are written at once, as in a migration.
const BUFFER: usize = 1 << 20;
/// How often the sender tries to connect, and the wait between two attempts.
const ATTEMPTS: u32 = 200;
const PAUSE: Duration = Duration::from_millis(50);
/// How long the receiver may take, after the last byte, to say that it has all.
const ANSWER: Duration = Duration::from_secs(60);

/// Which end this is.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// The agent's configuration file; its section `migration` says who this host is and whom it trusts.
    #[arg(long)]
    config: PathBuf,
    #[command(subcommand)]
    end: End,
}

#[derive(Clone, Debug, Subcommand)]
enum End {
    /// Take one stream on this port.
    Receive { port: u16 },
    /// Send so many bytes, and print the seconds until the receiver has all of them.
    Send { host: String, address: String, bytes: usize },
}

/// Does it.
///
/// # Errors
/// The link's own.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        // As in the agent, where a session is a task.
        tokio::spawn(run(arguments.clone())).await?
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn run(arguments: Arguments) -> Result<()> {
    let config = AgentConfig::read(&arguments.config)?.migration.context("it has no section `migration`")?;
    let listen = |port| {
        let mut config: MigrationConfig = config.clone();
        config.listen.set_port(port);
        config.networks.clear();
        TlsNetwork::listen(config)
    };
    match &arguments.end {
        End::Receive { port } => {
            let (_, connection) = listen(*port).await?.accept().await?;
            let (mut sender, mut receiver) = framed(connection);
            copy_buf(&mut receiver.data(), &mut sink()).await?;
            Ok(sender.send(&true).await?)
        }
        End::Send { host, address, bytes } => {
            let network = listen(0).await?;
            let (mut sender, mut receiver) = framed(connect(&network, &HostName::new(host)?, address).await?);
            let began = Instant::now();
            let mut data = sender.data();
            let (piece, mut left) = (vec![0; BUFFER], *bytes);
            while left > 0 {
                let length = left.min(BUFFER);
                data.write_all(&piece[..length]).await?;
                left -= length;
            }
            data.shutdown().await?;
            receiver.receive::<bool>(ANSWER).await?;
            println!("{}", began.elapsed().as_secs_f64());
            Ok(())
        }
    }
}

/// Connects as soon as the receiver listens.
async fn connect(network: &TlsNetwork, host: &HostName, address: &str) -> Result<Connection, LinkError> {
    let mut attempt = 1;
    loop {
        match network.connect(host, address).await {
            Err(LinkError::Unreachable { .. }) if attempt < ATTEMPTS => sleep(PAUSE).await,
            result => return result,
        }
        attempt += 1;
    }
}
