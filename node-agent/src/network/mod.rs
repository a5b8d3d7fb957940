//! The network boundary: which bridge of this host leads to which uplink.
//!
//! An uplink is a way out of the host that the agent's configuration names. The API knows it by that name alone.
//!
//! - [`bridge`] speaks netlink to the kernel: bridges that are there, and bridges that the agent makes and owns.
//! - [`simulated`] knows names only.

use async_trait::async_trait;
use serde::Deserialize;
use std::{collections::BTreeSet, fmt, io, net::IpAddr, time::Duration};

mod announcement;
pub mod bridge;
mod netlink;
pub mod simulated;

pub use bridge::BridgeNetwork;
pub use simulated::SimulatedNetwork;

/// How one uplink is reached, from the agent's configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UplinkConfig {
    /// Name of the bridge device in dom0, as in `xenbr0`. Without `create` it must exist and is used as it is.
    pub bridge: String,
    /// If given, the agent makes the bridge, owns it and keeps it as described here.
    #[serde(default)]
    pub create: Option<CreateBridge>,
}

/// A bridge that the agent makes and owns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateBridge {
    /// Network interface that becomes a port of the bridge, as in `eth1`. It must carry no addresses of its own.
    /// Without it the bridge leads nowhere but to the guests of this host.
    #[serde(default)]
    pub interface: Option<String>,
}

/// Why a call to the host's network failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The agent's configuration names no such uplink.
    #[error("This host has no uplink {0}")]
    UnknownUplink(String),
    /// The configuration cannot be followed whatever the host looks like.
    #[error("The uplink {uplink} cannot be used: {reason}")]
    BadConfig {
        /// The uplink.
        uplink: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A device that must be there is not.
    #[error("There is no network device {0}")]
    NoSuchDevice(String),
    /// The device is there and is no bridge.
    #[error("The network device {0} is no bridge")]
    NotABridge(String),
    /// The bridge is not up.
    #[error("The bridge {0} is down")]
    Down(String),
    /// The agent is to make this bridge, but somebody else has.
    #[error("The bridge {0} exists and was not made by KubeXen: it is left as it is")]
    NotOurs(String),
    /// The interface cannot become a port of the bridge without taking it from somebody.
    #[error("The interface {interface} is left as it is: {reason}")]
    InterfaceInUse {
        /// The interface.
        interface: String,
        /// What it is used for.
        reason: &'static str,
    },
    /// The call did not end in time. What it did is unknown: observe.
    #[error("{call} did not end within {} s; what it did is not known", limit.as_secs())]
    TimedOut {
        /// The call.
        call: &'static str,
        /// The time limit.
        limit: Duration,
    },
    /// The kernel refused, or could not be asked. The text tells the reason too, because people read it in conditions.
    #[error("Cannot {call}: {source}")]
    Io {
        /// What was done.
        call: &'static str,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
}

impl NetworkError {
    /// A label from a fixed set, for metrics and conditions.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::UnknownUplink(_) => "UnknownUplink",
            Self::BadConfig { .. } => "BadConfig",
            Self::NoSuchDevice(_) => "NoSuchDevice",
            Self::NotABridge(_) => "NotABridge",
            Self::Down(_) => "Down",
            Self::NotOurs(_) => "NotOurs",
            Self::InterfaceInUse { .. } => "InterfaceInUse",
            Self::TimedOut { .. } => "TimedOut",
            Self::Io { .. } => "Io",
        }
    }
}

/// The network of one host.
#[async_trait]
pub trait HostNetwork: Send + Sync + fmt::Debug {
    /// The uplinks that are configured and up at this moment, sorted.
    async fn uplinks(&self) -> Vec<String>;

    /// Addresses of this host that others may reach, sorted; none if they cannot be told.
    async fn addresses(&self) -> BTreeSet<IpAddr>;

    /// Name of the bridge device that leads to an uplink.
    ///
    /// # Errors
    /// When no such uplink is configured, or its bridge cannot be used at this moment.
    async fn bridge(&self, uplink: &str) -> Result<String, NetworkError>;

    /// Tells everybody whom a bridge reaches that the guest with this hardware address is on it now, so that switches send
    /// its frames there. To be called when a guest has come here while it runs; it says so itself too, a little later.
    ///
    /// # Errors
    /// When it could not be said.
    async fn announce(&self, bridge: &str, address: &str) -> Result<(), NetworkError>;

    /// Makes the bridges that the agent owns and repairs them; never touches a device of somebody else. Every uplink is
    /// tried; the first error is told.
    async fn prepare(&self) -> Result<(), NetworkError>;
}
