//! `kubexen-controller`: see [`kubexen_controller`].

use clap::Parser;
use kubexen_controller::program::Arguments;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    Arguments::parse().run().await
}
