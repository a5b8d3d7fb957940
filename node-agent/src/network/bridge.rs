//! Bridges of the kernel, by netlink.
//!
//! A bridge that the configuration only names is used as it is. One that the agent is to make carries the link alias
//! `kubexen`, which `ip link` shows; a bridge without it is somebody else's and is never changed.

use super::{
    CreateBridge, HostNetwork, NetworkError, UplinkConfig, announcement,
    netlink::{Link, Netlink},
};
use async_trait::async_trait;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    time::Duration,
};
use tokio::{sync::Mutex, task::spawn_blocking, time::timeout};
use tracing::{debug, info};
use uuid::Uuid;

/// Alias of the bridges that the agent owns.
const ALIAS: &str = "kubexen";

/// Longest name of a network device, in bytes (`IFNAMSIZ` without the end).
const NAME_MAX: usize = 15;

/// Time limit of each call.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// The uplinks of this machine, in the network namespace of the agent.
#[derive(Debug)]
pub struct BridgeNetwork {
    uplinks: BTreeMap<String, UplinkConfig>,
    /// One repair at a time.
    repair: Mutex<()>,
}

impl BridgeNetwork {
    /// A network with these uplinks. Nothing is made before [`HostNetwork::prepare`].
    ///
    /// # Errors
    /// `BadConfig` when the configuration cannot be followed whatever the host looks like.
    pub fn new(uplinks: BTreeMap<String, UplinkConfig>) -> Result<Self, NetworkError> {
        let (mut owned, mut used, mut interfaces) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for (uplink, config) in &uplinks {
            let bad = |reason: String| NetworkError::BadConfig { uplink: uplink.clone(), reason };
            let interface = config.create.as_ref().and_then(|create| create.interface.as_ref());
            for name in [Some(&config.bridge), interface].into_iter().flatten() {
                if !is_device_name(name) {
                    return Err(bad(format!("`{name}` is no name of a network device")));
                }
            }
            if interface == Some(&config.bridge) {
                return Err(bad("`bridge` and `interface` are the same".into()));
            }
            let shared = if config.create.is_some() { &used } else { &owned };
            if shared.contains(&config.bridge) || (config.create.is_some() && owned.contains(&config.bridge))
            {
                return Err(bad(format!(
                    "another uplink has the bridge `{}`, which the agent makes",
                    config.bridge
                )));
            }
            if interface.is_some_and(|interface| !interfaces.insert(interface)) {
                return Err(bad("another uplink has the same `interface`".into()));
            }
            if config.create.is_some() { &mut owned } else { &mut used }.insert(&config.bridge);
        }
        Ok(Self { uplinks, repair: Mutex::default() })
    }
}

#[async_trait]
impl HostNetwork for BridgeNetwork {
    async fn uplinks(&self) -> Vec<String> {
        let mut usable = Vec::new();
        for name in self.uplinks.keys() {
            match self.bridge(name).await {
                Ok(_) => usable.push(name.clone()),
                Err(error) => debug!(uplink = name, %error, "uplink cannot be used"),
            }
        }
        usable
    }

    async fn addresses(&self) -> BTreeSet<IpAddr> {
        let read = async { Netlink::open()?.addresses().await };
        match timeout(CALL_LIMIT, read).await {
            Ok(Ok(addresses)) => addresses,
            Ok(Err(error)) => {
                debug!(%error, "the host's addresses could not be read");
                BTreeSet::new()
            }
            Err(_elapsed) => BTreeSet::new(),
        }
    }

    async fn bridge(&self, uplink: &str) -> Result<String, NetworkError> {
        let config =
            self.uplinks.get(uplink).ok_or_else(|| NetworkError::UnknownUplink(uplink.to_owned()))?;
        limited("look at a bridge", check(config)).await?;
        Ok(config.bridge.clone())
    }

    async fn announce(&self, bridge: &str, address: &str) -> Result<(), NetworkError> {
        limited("announce a guest", async {
            let index = existing(&Netlink::open()?, bridge).await?.index;
            let (bridge, address) = (bridge.to_owned(), address.to_owned());
            let send = spawn_blocking(move || announcement::announce(&bridge, index, &address));
            send.await.map_err(|panic| NetworkError::Io {
                call: "announce a guest",
                source: io::Error::other(panic),
            })?
        })
        .await
    }

    async fn prepare(&self) -> Result<(), NetworkError> {
        let _turn = self.repair.lock().await;
        let mut first_error = None;
        for config in self.uplinks.values() {
            let done = match &config.create {
                Some(create) => limited("make a bridge", make(&config.bridge, create)).await,
                None => limited("look at a bridge", check(config)).await,
            };
            first_error = first_error.or(done.err());
        }
        first_error.map_or(Ok(()), Err)
    }
}

/// Makes a device a port of this bridge, and of no other.
///
/// # Errors
/// `NoSuchDevice`, `NotABridge`; after other errors it is a port of the one it was in, or of none.
pub async fn move_port(port: &str, bridge: &str) -> Result<(), NetworkError> {
    limited("move a port to another bridge", async {
        let netlink = Netlink::open()?;
        let port = existing(&netlink, port).await?;
        let to = existing(&netlink, bridge).await?;
        if !to.is_bridge {
            return Err(NetworkError::NotABridge(bridge.to_owned()));
        }
        if port.controller == Some(to.index) {
            Ok(())
        } else {
            netlink.set_controller(port.index, to.index).await
        }
    })
    .await
}

async fn limited<T>(
    call: &'static str,
    work: impl Future<Output = Result<T, NetworkError>>,
) -> Result<T, NetworkError> {
    timeout(CALL_LIMIT, work).await.map_err(|_| NetworkError::TimedOut { call, limit: CALL_LIMIT })?
}

/// Refuses unless guests can be plugged into the uplink's bridge now.
async fn check(config: &UplinkConfig) -> Result<(), NetworkError> {
    let netlink = Netlink::open()?;
    let bridge = existing(&netlink, &config.bridge).await?;
    if !bridge.is_bridge {
        return Err(NetworkError::NotABridge(config.bridge.clone()));
    }
    if !bridge.up {
        return Err(NetworkError::Down(config.bridge.clone()));
    }
    let Some(create) = &config.create else { return Ok(()) };
    if bridge.alias.as_deref() != Some(ALIAS) {
        return Err(NetworkError::NotOurs(config.bridge.clone()));
    }
    if let Some(interface) = &create.interface {
        let port = existing(&netlink, interface).await?;
        if port.controller != Some(bridge.index) || !port.up {
            return Err(NetworkError::Down(interface.clone()));
        }
    }
    Ok(())
}

/// Makes a bridge that the agent owns, or repairs it.
async fn make(name: &str, create: &CreateBridge) -> Result<(), NetworkError> {
    let netlink = Netlink::open()?;
    let bridge = match netlink.find(name).await? {
        Some(bridge) => bridge,
        None => make_marked(&netlink, name).await?,
    };
    if !bridge.is_bridge {
        return Err(NetworkError::NotABridge(name.to_owned()));
    }
    if bridge.alias.as_deref() != Some(ALIAS) {
        return Err(NetworkError::NotOurs(name.to_owned()));
    }
    if !bridge.up {
        netlink.set_up(bridge.index).await?;
    }
    match &create.interface {
        Some(interface) => plug(&netlink, interface, &bridge).await,
        None => Ok(()),
    }
}

/// Makes a bridge that carries the mark from the moment at which it has its name.
///
/// The kernel takes an alias only for a device that exists. So the bridge is made under a name that nobody else would
/// give, which a later call finds again if the agent is killed in between.
async fn make_marked(netlink: &Netlink, name: &str) -> Result<Link, NetworkError> {
    let temporary = temporary_name(name);
    if netlink.find(&temporary).await?.is_none() {
        netlink.add_bridge(&temporary).await?;
    }
    let index = existing(netlink, &temporary).await?.index;
    netlink.set_alias(index, ALIAS).await?;
    netlink.rename(index, name).await?;
    info!(bridge = name, "made a bridge");
    existing(netlink, name).await
}

/// Makes an interface a port of the agent's bridge and brings it up, unless somebody uses it otherwise.
async fn plug(netlink: &Netlink, name: &str, bridge: &Link) -> Result<(), NetworkError> {
    let interface = existing(netlink, name).await?;
    let in_use = |reason| NetworkError::InterfaceInUse { interface: name.to_owned(), reason };
    match interface.controller {
        Some(index) if index == bridge.index => {}
        Some(_) => return Err(in_use("it belongs to another bridge or bond")),
        // An interface loses what its addresses are good for when it becomes a port: this may be the host's only way out.
        None if netlink.has_addresses(interface.index).await? => {
            return Err(in_use("it carries addresses of the host"));
        }
        None => {
            netlink.set_controller(interface.index, bridge.index).await?;
            info!(interface = name, "plugged an interface into a bridge");
        }
    }
    if interface.up { Ok(()) } else { netlink.set_up(interface.index).await }
}

async fn existing(netlink: &Netlink, name: &str) -> Result<Link, NetworkError> {
    netlink.find(name).await?.ok_or_else(|| NetworkError::NoSuchDevice(name.to_owned()))
}

/// The name under which a bridge is made: derived from its own, 13 bytes.
fn temporary_name(bridge: &str) -> String {
    let digest = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("kubexen bridge {bridge}").as_bytes());
    format!("kx{:.11}", digest.simple().to_string())
}

/// What the kernel accepts as the name of a device.
fn is_device_name(name: &str) -> bool {
    let refused = |byte: u8| byte == b'/' || byte == b':' || !byte.is_ascii_graphic();
    (1..=NAME_MAX).contains(&name.len()) && name != "." && name != ".." && !name.bytes().any(refused)
}

#[cfg(test)]
mod tests;
