//! How many hosts of a pool the store outlives.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A member of the store that has a vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voter {
    /// Its name.
    pub name: String,
    /// The hosts of its URLs: addresses or names, as they stand there.
    pub addresses: BTreeSet<String>,
}

/// A member of the store whose version has a fault that breaks what the pool relies on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldMember {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it has to be at least.
    pub least: String,
}

impl Voter {
    /// A member with these URLs. What is no URL tells nothing.
    pub fn new<'a>(name: impl Into<String>, urls: impl IntoIterator<Item = &'a str>) -> Self {
        let addresses = urls.into_iter().filter_map(host_in).map(str::to_owned).collect();
        Self { name: name.into(), addresses }
    }
}

/// The host in `http://host:port`, without the brackets of an IPv6 address.
fn host_in(url: &str) -> Option<&str> {
    let authority = url.split_once("://")?.1.split('/').next()?;
    match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next(),
        None => authority.rsplit_once(':').map_or(Some(authority), |(host, _)| Some(host)),
    }
    .filter(|host| !host.is_empty())
}

/// What a store can take of the deaths of a pool's hosts, as far as it is known where its members run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survival<'a> {
    /// So many of the hosts may die at once, whichever they are, and a majority is left; none if all of them may.
    pub deaths: Option<usize>,
    /// One host more than that, with whose loss the majority is gone, each with the names of its members; empty if all may die.
    pub worst: Vec<(&'a str, Vec<&'a str>)>,
    /// Members of which nobody knows where they run, and by what they are known: names that no host has, or addresses that mean
    /// another machine to each who reads them. They count as if they outlived all hosts.
    pub unplaced: Vec<(&'a str, Vec<&'a str>)>,
}

/// What the store can take; `hosts` are the addresses and names of each host. A member is on a host that has an address or name
/// of it, and on none of them if it has an address that no host has.
#[must_use]
pub fn survival<'a>(voters: &'a [Voter], hosts: &'a BTreeMap<String, BTreeSet<String>>) -> Survival<'a> {
    let mut known: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for (host, addresses) in hosts {
        for address in addresses {
            known.entry(canonical(address)).or_default().insert(host);
        }
    }
    let mut on: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut unplaced = Vec::new();
    for voter in voters {
        let addresses: BTreeSet<String> = voter.addresses.iter().map(|address| canonical(address)).collect();
        let there: BTreeSet<&str> =
            addresses.iter().filter_map(|address| known.get(address)).flatten().copied().collect();
        if there.is_empty() && !addresses.iter().any(|address| names_a_machine(address)) {
            unplaced.push((voter.name.as_str(), voter.addresses.iter().map(String::as_str).collect()));
        }
        for host in there {
            on.entry(host).or_default().push(&voter.name);
        }
    }
    let mut worst: Vec<(&str, Vec<&str>)> = on.into_iter().collect();
    worst.sort_by_key(|(_, members)| std::cmp::Reverse(members.len()));
    let mut left = voters.len();
    let fatal = worst.iter().position(|(_, members)| {
        // One that is known by addresses of two hosts counts for both.
        left = left.saturating_sub(members.len());
        left * 2 <= voters.len()
    });
    worst.truncate(fatal.map_or(0, |fatal| fatal + 1));
    Survival { deaths: fatal, worst, unplaced }
}

/// One text for all ways to write an address or a name.
fn canonical(address: &str) -> String {
    match address.parse::<IpAddr>() {
        Ok(address) => address.to_string(),
        Err(_) => address.trim_end_matches('.').to_ascii_lowercase(),
    }
}

/// Whether this is an address of one machine, whoever reads it.
fn names_a_machine(address: &str) -> bool {
    address.parse::<IpAddr>().is_ok_and(|address| !address.is_loopback() && !address.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voters(addresses: &[&str]) -> Vec<Voter> {
        let voter = |(number, address): (usize, &&str)| {
            Voter::new(format!("m{number}"), [format!("https://{address}:2380").as_str()])
        };
        addresses.iter().enumerate().map(voter).collect()
    }

    fn hosts(hosts: &[(&str, &str)]) -> BTreeMap<String, BTreeSet<String>> {
        hosts
            .iter()
            .map(|(name, address)| ((*name).to_owned(), BTreeSet::from([(*address).to_owned()])))
            .collect()
    }

    #[test]
    fn a_store_needs_a_majority_that_no_host_can_take_with_it() {
        let two = hosts(&[("a", "10.0.0.1"), ("b", "10.0.0.2")]);
        for (members, lone) in [
            (vec!["10.0.0.1", "10.0.0.2"], Some(("a", vec!["m0"]))),
            (vec!["10.0.0.1"], Some(("a", vec!["m0"]))),
            (vec!["10.0.0.9", "10.0.0.2", "10.0.0.2"], Some(("b", vec!["m1", "m2"]))),
            (vec!["10.0.0.1", "10.0.0.2", "10.0.0.9"], None),
            // It is no host of the pool whose loss this would be.
            (vec!["10.0.0.9"], None),
            (vec![], None),
        ] {
            let members = voters(&members);
            let survival = survival(&members, &two);
            let said = survival.worst.into_iter().next().filter(|_| survival.deaths == Some(0));
            assert_eq!((said, survival.unplaced), (lone, vec![]), "{members:?}");
        }
        let members = voters(&["10.0.0.1", "10.0.0.2"]);
        assert_eq!(survival(&members, &BTreeMap::new()).deaths, None, "no host of the pool is near");
    }

    #[test]
    fn of_so_many_hosts_that_die_the_worst_take_the_majority() {
        let names = ["a", "b", "c", "d", "e"];
        let addresses: Vec<String> = (1..=5).map(|number| format!("10.0.0.{number}")).collect();
        let pairs: Vec<(&str, &str)> = names.into_iter().zip(addresses.iter().map(String::as_str)).collect();
        let five = hosts(&pairs);
        for (members, deaths, worst) in [
            // Three hosts have one each: two may not die together.
            (vec![1, 2, 3], Some(1), vec!["a", "b"]),
            (vec![1, 2, 9], Some(1), vec!["a", "b"]),
            (vec![1, 9, 9], None, vec![]),
            (vec![1, 2, 3, 4, 5], Some(2), vec!["a", "b", "c"]),
            // Whichever they are: `c` has two.
            (vec![1, 2, 3, 3, 9], Some(1), vec!["c", "a"]),
            (vec![1, 2, 9, 9, 9], None, vec![]),
        ] {
            let members: Vec<String> = members.iter().map(|number| format!("10.0.0.{number}")).collect();
            let members = voters(&members.iter().map(String::as_str).collect::<Vec<_>>());
            let survival = survival(&members, &five);
            let hosts: Vec<&str> = survival.worst.iter().map(|(host, _)| *host).collect();
            assert_eq!((survival.deaths, hosts), (deaths, worst), "{members:?}");
        }
    }

    #[test]
    fn a_member_that_is_known_by_a_name_that_no_host_has_is_nowhere() {
        let two = hosts(&[("a", "10.0.0.1"), ("b.example", "b.example")]);
        let members = voters(&["etcd-1.example", "B.example.", "127.0.0.1"]);
        let survival = survival(&members, &two);
        assert_eq!(survival.unplaced, [("m0", vec!["etcd-1.example"]), ("m2", vec!["127.0.0.1"])]);
        assert_eq!(survival.deaths, None, "it counts as if it were elsewhere");
        let six = hosts(&[("a", "fd00::0001")]);
        let members = [Voter::new("m", ["http://[fd00:0::1]:2380"])];
        assert_eq!(super::survival(&members, &six).deaths, Some(0));
    }

    #[test]
    fn the_host_of_a_url_is_what_stands_between_scheme_and_port() {
        for (url, host) in [
            ("https://10.0.0.1:2380", Some("10.0.0.1")),
            ("http://[fd00::1]:2379/", Some("fd00::1")),
            ("https://etcd-1.example", Some("etcd-1.example")),
            ("10.0.0.1:2380", None),
            ("http://", None),
        ] {
            assert_eq!(host_in(url), host, "{url}");
        }
    }
}
