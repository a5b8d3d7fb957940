//! Whether the pool's store outlives the death of any one host: else no guest can be protected, since nobody could give it to
//! another host.

use std::collections::{BTreeMap, BTreeSet};

use kubexen_crds::{
    Host,
    condition::{State, Wanted},
};
use kubexen_ownership::liveness::{Voter, lone_host};
use kubexen_runtime::Key;

/// Why no guest can be protected with these members of the store, if none can.
pub(crate) fn refusal<'a>(voters: &[Voter], hosts: impl IntoIterator<Item = &'a Host>) -> Result<(), String> {
    let addresses: BTreeMap<String, BTreeSet<String>> = hosts.into_iter().map(addresses).collect();
    let Some((host, members)) = lone_host(voters, &addresses) else { return Ok(()) };
    let (all, there) = (voters.len(), members.len());
    let left = all - there;
    Err(format!(
        "{there} of {all} members of the pool's store ({}) run on host {host}: when it dies the {left} that are left are no \
         majority, and nobody can give its guests to another host; add members until no host has half of them, as one on a machine \
         that is no host of this pool",
        members.join(", ")
    ))
}

/// What a member of the store that runs on the host may be known by.
fn addresses(host: &Host) -> (String, BTreeSet<String>) {
    let name = Key::of(host).name;
    let said = host.status.as_ref().map(|status| status.addresses.clone()).unwrap_or_default();
    (name.clone(), said.into_iter().chain([name]).collect())
}

/// The condition StoreRedundant.
pub(crate) fn condition(redundant: &Result<(), String>) -> Wanted {
    const STORE_REDUNDANT: &str = "StoreRedundant";
    match redundant {
        Ok(()) => {
            let message =
                "no host is known to hold so many members of the pool's store that the rest is no majority";
            Wanted::new(STORE_REDUNDANT, State::True, "NoHostHoldsMajority", message)
        }
        Err(why) => {
            let message = format!("no guest is protected: {why}");
            Wanted::new(STORE_REDUNDANT, State::False, "HostHoldsMajority", message)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kubexen_crds::{HostSpec, HostStatus};

    #[test]
    fn a_pool_of_two_hosts_without_a_third_vote_protects_nobody_and_says_what_to_do() {
        let host = |name: &str, address: &str| {
            let mut host = Host::new(name, HostSpec::default());
            host.status = Some(HostStatus { addresses: vec![address.to_owned()], ..HostStatus::default() });
            host
        };
        let hosts = [host("a", "10.0.0.1"), host("b", "10.0.0.2")];
        let voter = |name: &str, url: &str| Voter::new(name, [url]);
        let mut voters = vec![voter("m-1", "https://10.0.0.1:2380"), voter("m-2", "https://b:2380")];
        let why = refusal(&voters, &hosts).expect_err("a refusal");
        assert!(
            why.starts_with(
                "1 of 2 members of the pool's store (m-1) run on host a: when it dies the 1 that"
            ),
            "{why}"
        );
        assert!(condition(&Err(why)).message.contains("a machine that is no host of this pool"));
        voters.push(voter("witness", "https://10.0.0.9:2380"));
        assert_eq!(refusal(&voters, &hosts), Ok(()));
        let elsewhere = [voter("m-1", "https://10.0.0.9:2380")];
        assert_eq!(refusal(&elsewhere, &hosts), Ok(()), "one member is enough where no host is");
    }
}
