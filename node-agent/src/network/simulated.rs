//! A network without devices: names only.

use super::{HostNetwork, NetworkError};
use async_trait::async_trait;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Uplinks by name, each with the name of a bridge. A clone is the same network again.
#[derive(Clone, Debug, Default)]
pub struct SimulatedNetwork {
    uplinks: Arc<Mutex<BTreeMap<String, Uplink>>>,
}

#[derive(Clone, Debug)]
struct Uplink {
    bridge: String,
    up: bool,
}

impl SimulatedNetwork {
    /// A network with these uplinks, all of them up. The bridge of `lan` is called `br-lan`.
    pub fn new(uplinks: impl IntoIterator<Item = String>) -> Self {
        let uplink = |name: String| (name.clone(), Uplink { bridge: format!("br-{name}"), up: true });
        let uplinks = uplinks.into_iter().map(uplink).collect();
        Self { uplinks: Arc::new(Mutex::new(uplinks)) }
    }

    /// Takes an uplink down, or brings it up again.
    pub fn set_up(&self, uplink: &str, up: bool) {
        if let Some(found) = self.lock().get_mut(uplink) {
            found.up = up;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Uplink>> {
        self.uplinks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl HostNetwork for SimulatedNetwork {
    async fn uplinks(&self) -> Vec<String> {
        self.lock().iter().filter(|(_, uplink)| uplink.up).map(|(name, _)| name.clone()).collect()
    }

    async fn addresses(&self) -> BTreeSet<IpAddr> {
        BTreeSet::new()
    }

    async fn bridge(&self, uplink: &str) -> Result<String, NetworkError> {
        match self.lock().get(uplink) {
            Some(Uplink { bridge, up: true }) => Ok(bridge.clone()),
            Some(Uplink { bridge, up: false }) => Err(NetworkError::Down(bridge.clone())),
            None => Err(NetworkError::UnknownUplink(uplink.to_owned())),
        }
    }

    async fn announce(&self, _bridge: &str, _address: &str) -> Result<(), NetworkError> {
        Ok(())
    }

    async fn prepare(&self) -> Result<(), NetworkError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_uplink_that_is_down_is_neither_listed_nor_answered() {
        let network = SimulatedNetwork::new(["wan", "lan"].map(str::to_owned));
        assert_eq!(network.uplinks().await, ["lan", "wan"]);
        assert_eq!(network.bridge("lan").await.unwrap(), "br-lan");
        network.set_up("lan", false);
        assert_eq!(network.uplinks().await, ["wan"]);
        assert!(matches!(network.bridge("lan").await, Err(NetworkError::Down(_))));
        assert!(matches!(network.bridge("dmz").await, Err(NetworkError::UnknownUplink(_))));
    }
}
