//! What guests write of themselves into xenstore.
//!
//! The nodes are those that XenServer's guest utilities made customary and that Linux and Windows agents write today
//! (xe-guest-utilities, xen-guest-agent, XCP-ng's and XenServer's Windows tools), below `/local/domain/<domid>`:
//!
//! | node | content |
//! |---|---|
//! | `data/os_name` | name of the system; Windows appends folders after `\|` |
//! | `data/os_majorver`, `data/os_minorver` | its version |
//! | `data/os_uname` | kernel release |
//! | `data/meminfo_total`, `data/meminfo_free` | KiB |
//! | `attr/PVAddons/{Major,Minor,Micro,Build}Version` | version of the agent; `-1` stands for nothing |
//! | `attr/vif/<n>/ipv4/<k>`, `attr/vif/<n>/ipv6/<k>` | addresses |
//! | `attr/eth<n>/ip`, `attr/eth<n>/ipv6/<k>/addr` | addresses, as older agents write them |
//!
//! A guest may fill these folders with whatever its quota allows: only so many names are looked at, a list that is
//! longer than a message of xenstore counts as none, and all of it has one time limit.

use super::{
    STORE_LIMIT,
    xenstore::{StoreError, XenStore, sanitize},
};
use crate::hypervisor::guest::{GuestFacts, LONGEST_TEXT, MOST_ADDRESSES, MOST_INTERFACES, MemoryUse};
use tokio::time::timeout;

/// Names of a folder that are looked at. Agents number what they write from 0 on.
const MOST_NAMES: usize = 2 * MOST_ADDRESSES;

/// Reads what the guest whose nodes are below `home` says.
///
/// # Errors
/// [`StoreError`], when xenstore does not answer as it should; nothing that a guest wrote is an error.
pub(super) async fn read(store: &XenStore, home: &str) -> Result<GuestFacts, StoreError> {
    let nodes = Nodes { store, home };
    timeout(STORE_LIMIT, nodes.facts()).await.map_err(|_| StoreError::TimedOut(STORE_LIMIT))?
}

struct Nodes<'a> {
    store: &'a XenStore,
    home: &'a str,
}

impl Nodes<'_> {
    async fn facts(&self) -> Result<GuestFacts, StoreError> {
        let name = self.text("data/os_name").await?;
        let mut facts = GuestFacts {
            os_name: name.and_then(|name| filled(name.split('|').next().unwrap_or_default())),
            os_version: self.version(&["data/os_majorver", "data/os_minorver"]).await?,
            kernel_version: self.text("data/os_uname").await?,
            agent_version: self
                .version(&[
                    "attr/PVAddons/MajorVersion",
                    "attr/PVAddons/MinorVersion",
                    "attr/PVAddons/MicroVersion",
                    "attr/PVAddons/BuildVersion",
                ])
                .await?,
            ..GuestFacts::default()
        };
        let total = self.text("data/meminfo_total").await?;
        if let (Some(total), Some(free)) = (total, self.text("data/meminfo_free").await?) {
            facts.memory = MemoryUse::parse(&total, &free);
        }
        for interface in self.interfaces("attr/vif", "").await? {
            for family in ["ipv4", "ipv6"] {
                let folder = format!("attr/vif/{interface}/{family}");
                for slot in self.names(&folder).await? {
                    self.address(&mut facts, interface, &format!("{folder}/{slot}")).await?;
                }
            }
        }
        if facts.addresses.is_empty() {
            self.older_addresses(&mut facts).await?;
        }
        Ok(facts)
    }

    async fn older_addresses(&self, facts: &mut GuestFacts) -> Result<(), StoreError> {
        for interface in self.interfaces("attr", "eth").await? {
            self.address(facts, interface, &format!("attr/eth{interface}/ip")).await?;
            let folder = format!("attr/eth{interface}/ipv6");
            for slot in self.names(&folder).await? {
                self.address(facts, interface, &format!("{folder}/{slot}/addr")).await?;
            }
        }
        Ok(())
    }

    /// The parts that there are, joined by dots.
    async fn version(&self, nodes: &[&str]) -> Result<Option<String>, StoreError> {
        let mut parts = Vec::new();
        for node in nodes {
            match self.text(node).await? {
                Some(part) if part != "-1" => parts.push(part),
                Some(_) | None => break,
            }
        }
        Ok(filled(&sanitize(parts.join(".").as_bytes(), LONGEST_TEXT)))
    }

    async fn address(&self, facts: &mut GuestFacts, interface: u8, node: &str) -> Result<(), StoreError> {
        if let Some(text) = self.text(node).await? {
            facts.add_address(interface, &text);
        }
        Ok(())
    }

    /// Numbers of interfaces that a folder has names for.
    async fn interfaces(&self, folder: &str, prefix: &str) -> Result<Vec<u8>, StoreError> {
        let names = self.names(folder).await?;
        let number = |name: &String| name.strip_prefix(prefix)?.parse().ok();
        let mut numbers: Vec<u8> = names.iter().filter_map(number).collect();
        numbers.retain(|number| *number < MOST_INTERFACES);
        numbers.sort_unstable();
        numbers.dedup();
        Ok(numbers)
    }

    async fn text(&self, node: &str) -> Result<Option<String>, StoreError> {
        let Some(value) = lenient(self.store.read(&self.path(node)).await)? else { return Ok(None) };
        Ok(filled(&sanitize(&value, LONGEST_TEXT)))
    }

    async fn names(&self, node: &str) -> Result<Vec<String>, StoreError> {
        let mut names = lenient(self.store.directory(&self.path(node)).await)?.unwrap_or_default();
        names.truncate(MOST_NAMES);
        Ok(names)
    }

    fn path(&self, node: &str) -> String {
        format!("{}/{node}", self.home)
    }
}

/// What xenstore refuses to tell is not told: a list that is too long, a node that the guest hid.
fn lenient<T>(answer: Result<Option<T>, StoreError>) -> Result<Option<T>, StoreError> {
    match answer {
        Err(StoreError::Refused(_)) => Ok(None),
        other => other,
    }
}

fn filled(text: &str) -> Option<String> {
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::xen::xenstore::tests::Daemon;
    use std::{collections::BTreeMap, time::Duration};

    async fn told(nodes: &[(&str, &str)]) -> GuestFacts {
        let daemon = Daemon::start();
        let store = daemon.client(Duration::from_secs(5));
        for (node, value) in nodes {
            store.write(&format!("/local/domain/7/{node}"), value.as_bytes()).await.unwrap();
        }
        read(&store, "/local/domain/7").await.unwrap()
    }

    fn addresses(facts: &GuestFacts, interface: u8) -> Vec<String> {
        facts.addresses.get(&interface).into_iter().flatten().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn a_linux_agent_is_understood() {
        let facts = told(&[
            ("data/os_name", "Debian GNU/Linux 12 (bookworm)"),
            ("data/os_majorver", "12"),
            ("data/os_minorver", "4"),
            ("data/os_uname", "6.1.0-18-amd64"),
            ("data/meminfo_total", "2000000"),
            ("data/meminfo_free", "1500000"),
            ("attr/PVAddons/MajorVersion", "1"),
            ("attr/PVAddons/MinorVersion", "0"),
            ("attr/PVAddons/MicroVersion", "0"),
            ("attr/PVAddons/BuildVersion", "proto-0.4.0"),
            ("attr/vif/0/ipv4/0", "10.88.0.7"),
            ("attr/vif/0/ipv6/0", "fe80::216:3eff:fe00:5"),
            ("attr/vif/1/ipv4/3", "10.89.0.7"),
        ])
        .await;
        assert_eq!(facts.os_name.as_deref(), Some("Debian GNU/Linux 12 (bookworm)"));
        assert_eq!(facts.os_version.as_deref(), Some("12.4"));
        assert_eq!(facts.kernel_version.as_deref(), Some("6.1.0-18-amd64"));
        assert_eq!(facts.agent_version.as_deref(), Some("1.0.0.proto-0.4.0"));
        assert_eq!(facts.memory, Some(MemoryUse { total_kib: 2_000_000, free_kib: 1_500_000 }));
        assert_eq!(addresses(&facts, 0), ["10.88.0.7", "fe80::216:3eff:fe00:5"]);
        assert_eq!(addresses(&facts, 1), ["10.89.0.7"]);
    }

    #[tokio::test]
    async fn a_windows_agent_and_an_older_one_are_understood() {
        let facts = told(&[
            ("data/os_name", r"Microsoft Windows Server 2019|C:\Windows|\Device\Harddisk0\Partition2"),
            ("data/os_majorver", "10"),
            ("data/os_minorver", "-1"),
            ("attr/eth0/ip", "10.88.0.9"),
            ("attr/eth1/ipv6/0/addr", "2001:db8::9"),
        ])
        .await;
        assert_eq!(facts.os_name.as_deref(), Some("Microsoft Windows Server 2019"));
        assert_eq!(facts.os_version.as_deref(), Some("10"));
        assert_eq!(
            (addresses(&facts, 0), addresses(&facts, 1)),
            (vec!["10.88.0.9".into()], vec!["2001:db8::9".into()])
        );
    }

    #[tokio::test]
    async fn a_guest_without_an_agent_says_nothing() {
        assert!(told(&[("name", "vm-7"), ("control/shutdown", "")]).await.is_empty());
    }

    #[tokio::test]
    async fn a_hostile_guest_is_bounded_and_harmless() {
        let long = "x".repeat(3000);
        let slots: Vec<String> = (0..500).map(|slot| format!("attr/vif/0/ipv4/{slot}")).collect();
        let mut nodes = vec![
            ("data/os_name", "\x1b[31m\u{202e}evil\0\r\n"),
            ("data/os_uname", long.as_str()),
            ("data/meminfo_total", "many"),
            ("data/meminfo_free", "18446744073709551615"),
            ("attr/vif/255/ipv4/0", "10.0.0.1"),
            ("attr/vif/../ipv4/0", "10.0.0.1"),
        ];
        nodes.extend(slots.iter().map(|slot| (slot.as_str(), "10.0.0.1; rm -rf /")));
        let endless: Vec<String> = (0..1500).map(|slot| format!("attr/vif/1/ipv4/{slot}")).collect();
        nodes.extend(endless.iter().map(|slot| (slot.as_str(), "10.0.0.1")));
        let facts = told(&nodes).await;
        assert_eq!(facts.os_name.as_deref(), Some("[31mevil"));
        assert_eq!(facts.kernel_version.map(|text| text.len()), Some(LONGEST_TEXT));
        assert_eq!((facts.memory, facts.addresses), (None, BTreeMap::new()));
    }
}
