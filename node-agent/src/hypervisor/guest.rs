//! What a guest says of itself, made harmless.
//!
//! A guest may write whatever it likes. What is kept is bounded, is text that can be shown anywhere, and addresses are
//! addresses; what is none of that is left out, not repaired.

use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr};

/// Most interfaces that are told of.
pub const MOST_INTERFACES: u8 = 8;
/// Most addresses of an interface that are told.
pub const MOST_ADDRESSES: usize = 8;
/// Longest text, in bytes.
pub const LONGEST_TEXT: usize = 128;
/// More memory than this no guest has, in KiB: 1 PiB.
const MOST_MEMORY_KIB: u64 = 1 << 40;

/// What a guest says of itself. Nothing of it need be true.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestFacts {
    /// Name of its operating system.
    pub os_name: Option<String>,
    /// Version of its operating system.
    pub os_version: Option<String>,
    /// Release of its kernel.
    pub kernel_version: Option<String>,
    /// Version of the agent inside it.
    pub agent_version: Option<String>,
    /// Its use of its memory.
    pub memory: Option<MemoryUse>,
    /// Addresses by the number of the interface, each list sorted and without repetitions.
    pub addresses: BTreeMap<u8, Vec<IpAddr>>,
}

/// A guest's use of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryUse {
    /// What its kernel manages, in KiB.
    pub total_kib: u64,
    /// What of that is free, in KiB; never more than all of it.
    pub free_kib: u64,
}

impl GuestFacts {
    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds an address that the guest gives one of its interfaces, if it is one, is not known, and there is room for it.
    pub fn add_address(&mut self, interface: u8, text: &str) {
        let Ok(address) = text.trim().parse::<IpAddr>() else { return };
        if interface >= MOST_INTERFACES || address.is_unspecified() {
            return;
        }
        let addresses = self.addresses.entry(interface).or_default();
        if let Err(place) = addresses.binary_search(&address)
            && addresses.len() < MOST_ADDRESSES
        {
            addresses.insert(place, address);
        }
    }
}

impl MemoryUse {
    /// What two numbers of KiB say; none if they make no sense.
    #[must_use]
    pub fn parse(total: &str, free: &str) -> Option<Self> {
        let (total_kib, free_kib) = (total.trim().parse().ok()?, free.trim().parse().ok()?);
        (free_kib <= total_kib && total_kib <= MOST_MEMORY_KIB).then_some(Self { total_kib, free_kib })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_are_parsed_sorted_and_bounded() {
        let mut facts = GuestFacts::default();
        for text in ["fe80::1", "10.0.0.2", " 10.0.0.1 ", "10.0.0.1", "0.0.0.0", "300.1.1.1", "x", ""] {
            facts.add_address(1, text);
        }
        facts.add_address(MOST_INTERFACES, "10.0.0.9");
        let told: Vec<String> = facts.addresses[&1].iter().map(ToString::to_string).collect();
        assert_eq!(told, ["10.0.0.1", "10.0.0.2", "fe80::1"]);
        assert_eq!(facts.addresses.len(), 1);
        (0..100).for_each(|last| facts.add_address(2, &format!("10.1.1.{last}")));
        assert_eq!(facts.addresses[&2].len(), MOST_ADDRESSES);
    }

    #[test]
    fn memory_that_makes_no_sense_is_left_out() {
        assert_eq!(MemoryUse::parse("1000", "400"), Some(MemoryUse { total_kib: 1000, free_kib: 400 }));
        for (total, free) in [("400", "1000"), ("-1", "0"), ("", ""), ("18446744073709551615", "1")] {
            assert_eq!(MemoryUse::parse(total, free), None, "{total} {free}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_given_for_an_address_the_lists_stay_bounded(given: Vec<(u8, String)>) {
            let mut facts = GuestFacts::default();
            given.iter().for_each(|(interface, text)| facts.add_address(*interface, text));
            prop_assert!(facts.addresses.len() <= usize::from(MOST_INTERFACES));
            prop_assert!(facts.addresses.values().all(|list| list.len() <= MOST_ADDRESSES && list.is_sorted()));
        }
    }
}
