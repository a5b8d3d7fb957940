//! Whether the store outlives the loss of any one host.

use std::collections::{BTreeMap, BTreeSet};

/// A member of the store that has a vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voter {
    /// Its name.
    pub name: String,
    /// The hosts of its URLs: addresses or names, as they stand there.
    pub addresses: BTreeSet<String>,
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

/// A host with whose loss the store would lose its majority, with the names of its members there; `hosts` are the addresses of
/// each host. None if there is no such host.
#[must_use]
pub fn lone_host<'a>(
    voters: &'a [Voter],
    hosts: &'a BTreeMap<String, BTreeSet<String>>,
) -> Option<(&'a str, Vec<&'a str>)> {
    hosts.iter().find_map(|(host, addresses)| {
        let on_it = voters.iter().filter(|voter| !voter.addresses.is_disjoint(addresses));
        let on_it: Vec<&str> = on_it.map(|voter| voter.name.as_str()).collect();
        let left = voters.len() - on_it.len();
        (!on_it.is_empty() && left * 2 <= voters.len()).then_some((host.as_str(), on_it))
    })
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
            assert_eq!(lone_host(&voters(&members), &two), lone, "{members:?}");
        }
        assert_eq!(lone_host(&voters(&["10.0.0.1", "10.0.0.2"]), &BTreeMap::new()), None, "nothing is known");
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
