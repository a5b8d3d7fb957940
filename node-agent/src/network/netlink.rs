//! The few requests to the kernel's routing netlink that bridges need.

use super::NetworkError;
use futures::TryStreamExt;
use rtnetlink::{
    Error, Handle, LinkBridge, LinkUnspec, new_connection,
    packet_route::{
        address::{AddressAttribute, AddressFlags, AddressScope},
        link::{BridgeStpState, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    },
};
use std::{collections::BTreeSet, io, net::IpAddr};
use tokio_util::task::AbortOnDropHandle;

/// A connection to the kernel, closed when it is dropped.
#[derive(Debug)]
pub(super) struct Netlink {
    handle: Handle,
    _connection: AbortOnDropHandle<()>,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) up: bool,
    pub(super) is_bridge: bool,
    pub(super) alias: Option<String>,
    /// Index of the bridge or bond that it is a port of.
    pub(super) controller: Option<u32>,
}

impl Netlink {
    pub(super) fn open() -> Result<Self, NetworkError> {
        let (connection, handle, _) =
            new_connection().map_err(|source| NetworkError::Io { call: "open a netlink socket", source })?;
        Ok(Self { handle, _connection: AbortOnDropHandle::new(tokio::spawn(connection)) })
    }

    /// The device with this name.
    pub(super) async fn find(&self, name: &str) -> Result<Option<Link>, NetworkError> {
        let found = self.handle.link().get().match_name(name.to_owned()).execute();
        match std::pin::pin!(found).try_next().await {
            Ok(message) => Ok(message.as_ref().map(Link::from)),
            Err(Error::NetlinkError(error)) if is(&error.to_io(), io::ErrorKind::NotFound, NO_DEVICE) => {
                Ok(None)
            }
            Err(error) => Err(failed("look for a network device")(error)),
        }
    }

    /// Makes a bridge that is down. Ports forward from the first moment: without spanning tree there is nothing to learn.
    pub(super) async fn add_bridge(&self, name: &str) -> Result<(), NetworkError> {
        let bridge = LinkBridge::new(name).down().stp_state(BridgeStpState::Disabled).forward_delay(0);
        self.handle.link().add(bridge.build()).execute().await.map_err(failed("make a bridge"))
    }

    pub(super) async fn set_alias(&self, index: u32, alias: &str) -> Result<(), NetworkError> {
        let link = LinkUnspec::new_with_index(index).alias(alias);
        self.set(link.build(), "mark a bridge").await
    }

    pub(super) async fn rename(&self, index: u32, name: &str) -> Result<(), NetworkError> {
        self.set(LinkUnspec::new_with_index(index).name(name).build(), "name a bridge").await
    }

    pub(super) async fn set_up(&self, index: u32) -> Result<(), NetworkError> {
        self.set(LinkUnspec::new_with_index(index).up().build(), "bring a network device up").await
    }

    pub(super) async fn set_controller(&self, port: u32, bridge: u32) -> Result<(), NetworkError> {
        let link = LinkUnspec::new_with_index(port).controller(bridge);
        self.set(link.build(), "plug an interface into a bridge").await
    }

    /// Whether a device carries addresses that somebody gave it: neither link-local ones nor those that the kernel makes
    /// up from router advertisements.
    pub(super) async fn has_addresses(&self, index: u32) -> Result<bool, NetworkError> {
        let found = self.handle.address().get().set_link_index_filter(index).execute();
        let messages: Vec<_> = found.try_collect().await.map_err(failed("read addresses"))?;
        Ok(messages.iter().any(|message| {
            let flags = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Flags(flags) => Some(*flags),
                _ => None,
            });
            let permanent = flags.is_some_and(|flags| flags.contains(AddressFlags::Permanent));
            message.header.index == index && message.header.scope == AddressScope::Universe && permanent
        }))
    }

    /// All addresses of this host but those that only it reaches, or its neighbours on one network.
    pub(super) async fn addresses(&self) -> Result<BTreeSet<IpAddr>, NetworkError> {
        let found = self.handle.address().get().execute();
        let messages: Vec<_> = found.try_collect().await.map_err(failed("read addresses"))?;
        let wide = messages.iter().filter(|message| message.header.scope == AddressScope::Universe);
        let address = |attribute: &AddressAttribute| match attribute {
            AddressAttribute::Address(address) | AddressAttribute::Local(address) => Some(*address),
            _ => None,
        };
        Ok(wide.flat_map(|message| message.attributes.iter().filter_map(address)).collect())
    }

    async fn set(&self, link: LinkMessage, call: &'static str) -> Result<(), NetworkError> {
        self.handle.link().set(link).execute().await.map_err(failed(call))
    }
}

impl From<&LinkMessage> for Link {
    fn from(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            up: message.header.flags.contains(LinkFlags::Up),
            is_bridge: false,
            alias: None,
            controller: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
                LinkAttribute::Controller(index) => link.controller = Some(*index),
                LinkAttribute::LinkInfo(infos) => {
                    link.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
                }
                _ => {}
            }
        }
        link
    }
}

/// `ENODEV`, for which the standard library has no kind.
const NO_DEVICE: i32 = rustix::io::Errno::NODEV.raw_os_error();

fn is(error: &io::Error, kind: io::ErrorKind, code: i32) -> bool {
    error.kind() == kind || error.raw_os_error() == Some(code)
}

fn failed(call: &'static str) -> impl Fn(Error) -> NetworkError {
    move |error| {
        let source = match error {
            Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other),
        };
        NetworkError::Io { call, source }
    }
}
