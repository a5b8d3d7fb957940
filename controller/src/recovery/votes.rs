//! How many hosts the pool's store outlives, and whether guests can be protected at all: nobody can give them to another host
//! without the store.

use std::collections::{BTreeMap, BTreeSet};

use kubexen_crds::{
    Host,
    condition::{State, Wanted},
};
use kubexen_ownership::liveness::{Survival, Voter, survival};
use kubexen_runtime::Key;

use super::decide::Halt;
use crate::context::Context;

/// The schema's bound for a reason.
const MOST_WORDS: usize = 512;
/// Names in a text, at most.
const MOST_NAMES: usize = 4;

/// What is known of the members of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Votes {
    /// They could not be read in this term yet, for this reason.
    Unread(String),
    /// They were read.
    Counted(Quorum),
}

/// How many hosts the store outlives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Quorum {
    /// Why no guest can be protected, if that is proven: a host has so many members that the rest is no majority.
    pub(crate) refusal: Option<String>,
    /// How many hosts may die at once, and what would happen with one more; none if all may.
    pub(crate) limit: Option<(u32, String)>,
    /// What is not known of the members, if anything.
    pub(crate) unknown: Option<String>,
}

/// Why nothing is started elsewhere, whatever room there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Obstacle {
    /// One word from a fixed set.
    pub(crate) reason: &'static str,
    /// What is so, and what helps.
    pub(crate) message: String,
}

/// Counts the members that each of these hosts has.
pub(super) fn count<'a>(voters: &[Voter], hosts: impl IntoIterator<Item = &'a Host>) -> Quorum {
    let addresses: BTreeMap<String, BTreeSet<String>> = hosts.into_iter().map(addresses).collect();
    let Survival { deaths, worst, unplaced } = survival(voters, &addresses);
    let all = voters.len();
    let there: usize = worst.iter().map(|(_, members)| members.len()).sum();
    let left = all.saturating_sub(there);
    let refusal = match worst.as_slice() {
        [(host, members)] => Some(format!(
            "{there} of {all} members of the pool's store ({}) run on host {host}: when it dies the {left} that are left are no \
             majority, and nobody can give its guests to another host; add members until no host has half of them, as one on a \
             machine that is no host of this pool",
            listed(members)
        )),
        [] | [_, _, ..] => None,
    };
    let limit = deaths.map(|deaths| {
        let on: Vec<String> =
            worst.iter().map(|(host, members)| format!("{} on {host}", listed(members))).collect();
        let on: Vec<&str> = on.iter().map(String::as_str).collect();
        let text = format!(
            "with {} hosts {there} of {all} members of the pool's store may die ({}), and the {left} that are left are no \
             majority, so that nothing could be started elsewhere; to restore it: run members of the pool's store on more hosts, or \
             on machines that are no hosts of this pool",
            worst.len(),
            listed(&on)
        );
        (u32::try_from(deaths).unwrap_or(u32::MAX), text)
    });
    let unknown = match (voters, unplaced.as_slice()) {
        ([], _) => Some("the pool's store names no members".to_owned()),
        (_, []) => None,
        (_, members) => {
            let known_as = |(member, addresses): &(&str, Vec<&str>)| match addresses.as_slice() {
                [] => format!("{member} (no address)"),
                addresses => format!("{member} ({})", listed(addresses)),
            };
            let members: Vec<String> = members.iter().map(known_as).collect();
            let members: Vec<&str> = members.iter().map(String::as_str).collect();
            Some(format!(
                "whether these members of the pool's store run on hosts of this pool is not known, as no Host has what they are \
                 known by: {}; to have it counted, give them peer URLs with IP addresses",
                listed(&members)
            ))
        }
    };
    Quorum { refusal: refusal.map(|why| why.chars().take(MOST_WORDS).collect()), limit, unknown }
}

/// What a member of the store that runs on the host may be known by.
fn addresses(host: &Host) -> (String, BTreeSet<String>) {
    let name = Key::of(host).name;
    let said = host.status.as_ref().map(|status| status.addresses.clone()).unwrap_or_default();
    (name.clone(), said.into_iter().chain([name]).collect())
}

fn listed(names: &[&str]) -> String {
    match names.get(MOST_NAMES..) {
        None | Some([]) => names.join(", "),
        Some(more) => format!("{} and {} more", names[..MOST_NAMES].join(", "), more.len()),
    }
}

/// Why no guest is protected in this pool, if that is proven. As long as nothing is known in this term, what an earlier leader
/// has told the hosts stands: they would guard their guests and let them go again otherwise.
pub(crate) fn refusal(context: &Context) -> Option<String> {
    let known = match &context.recovery.board().votes {
        Some(Votes::Counted(quorum)) => Some(quorum.refusal.clone()),
        Some(Votes::Unread(_)) | None => None,
    };
    let told = |host: &Host| host.status.as_ref()?.availability.as_ref()?.refused.clone();
    known.unwrap_or_else(|| context.view.hosts.list().iter().find_map(|host| told(host)))
}

/// Why no guest of the pool is protected, whatever its host can do; none if guests are.
pub(crate) fn obstacle(context: &Context) -> Option<Obstacle> {
    if context.recovery.store().is_none() {
        let message = "the controller is not told where the pool's store is, so it cannot know that a host is dead: nothing is \
                       started elsewhere; set `poolStore.endpoints`";
        return Some(Obstacle { reason: "NoPoolStore", message: message.to_owned() });
    }
    let pools = context.view.pools.list();
    if pools.first().is_some_and(|pool| pool.spec.availability.disarmed) {
        let message =
            "nothing is done about hosts that die, as `spec.availability.disarmed` of the Pool asks for";
        return Some(Obstacle { reason: "Disarmed", message: message.to_owned() });
    }
    refusal(context).map(|message| Obstacle { reason: "StoreNotRedundant", message })
}

/// What the pool's store lets the pool tolerate, or why nothing is tolerated; none as long as that is not known in this term.
pub(crate) fn bounds(context: &Context) -> Option<Result<Votes, Obstacle>> {
    if let Some(obstacle) = obstacle(context) {
        return Some(Err(obstacle));
    }
    let board = context.recovery.board();
    board.read?;
    match &board.halt {
        Some(Halt::Frozen(_)) => Some(Err(Obstacle {
            reason: "Frozen",
            message: "the pool's store was restored from a backup, as the condition Recovering says: nothing is started elsewhere"
                .to_owned(),
        })),
        Some(Halt::Disarmed) | None => board.votes.clone().map(Ok),
    }
}

/// What is known of the members of the store; none as long as nothing is in this term.
pub(super) fn votes(context: &Context) -> Option<Votes> {
    context.recovery.board().votes.clone()
}

/// The condition StoreRedundant.
pub(super) fn condition(votes: &Votes) -> Wanted {
    let said = |state, reason, message: String| Wanted::new("StoreRedundant", state, reason, message);
    match votes {
        Votes::Unread(why) => {
            let message = format!("the members of the pool's store cannot be read: {why}");
            said(State::Unknown, "MembersNotRead", message)
        }
        Votes::Counted(Quorum { refusal: Some(why), .. }) => {
            said(State::False, "HostHoldsMajority", format!("no guest is protected: {why}"))
        }
        Votes::Counted(Quorum { unknown: Some(what), .. }) => {
            said(State::Unknown, "MembersNotPlaced", what.clone())
        }
        Votes::Counted(Quorum { refusal: None, unknown: None, .. }) => {
            let message = "no host holds so many members of the pool's store that the rest is no majority";
            said(State::True, "NoHostHoldsMajority", message.to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kubexen_crds::{HostSpec, HostStatus};

    fn hosts() -> [Host; 2] {
        [("a", "10.0.0.1"), ("b", "10.0.0.2")].map(|(name, address)| {
            let mut host = Host::new(name, HostSpec::default());
            host.status = Some(HostStatus { addresses: vec![address.to_owned()], ..HostStatus::default() });
            host
        })
    }

    fn quorum(urls: &[&str]) -> Quorum {
        let voter = |(number, url): (usize, &&str)| Voter::new(format!("m-{}", number + 1), [*url]);
        count(&urls.iter().enumerate().map(voter).collect::<Vec<_>>(), &hosts())
    }

    fn said(quorum: Quorum) -> (State, &'static str, String) {
        let Wanted { state, reason, message, .. } = condition(&Votes::Counted(quorum));
        (state, reason, message)
    }

    #[test]
    fn a_pool_of_two_hosts_without_a_third_vote_protects_nobody_and_says_what_to_do() {
        let two = ["https://10.0.0.1:2380", "https://b:2380"];
        let why = quorum(&two).refusal.expect("a refusal");
        assert!(
            why.starts_with(
                "1 of 2 members of the pool's store (m-1) run on host a: when it dies the 1 that"
            ),
            "{why}"
        );
        let (state, _, message) = said(quorum(&two));
        assert_eq!(state, State::False);
        assert!(message.contains("a machine that is no host of this pool"), "{message}");
        let mended = quorum(&[two[0], two[1], "https://10.0.0.9:2380"]);
        assert_eq!((mended.refusal.clone(), said(mended.clone()).0), (None, State::True));
        let (most, text) = mended.limit.expect("two deaths are too many");
        assert_eq!(most, 1);
        assert!(
            text.starts_with(
                "with 2 hosts 2 of 3 members of the pool's store may die (m-1 on a, m-2 on b), and the 1 that"
            ),
            "{text}"
        );
        assert_eq!(
            quorum(&["https://10.0.0.9:2380"]),
            Quorum::default(),
            "one member is enough where no host is"
        );
    }

    #[test]
    fn what_cannot_be_placed_or_read_is_unknown_and_refuses_nothing() {
        for urls in [
            &["https://etcd-1:2380", "https://etcd-2:2380"][..],
            &["https://etcd-1:2380", "https://10.0.0.9:2380"],
            &["http://127.0.0.1:2380"],
            &[],
        ] {
            let quorum = quorum(urls);
            assert_eq!(quorum.refusal, None, "{urls:?}");
            let (state, reason, message) = said(quorum);
            assert_eq!((state, reason), (State::Unknown, "MembersNotPlaced"), "{urls:?}");
            assert_eq!(message.contains("m-1 ("), !urls.is_empty(), "{message}");
        }
        // Two of three are enough for a proof, wherever the third is.
        let proven = quorum(&["https://10.0.0.1:2380", "https://10.0.0.1:2381", "https://etcd-3:2380"]);
        assert_eq!(said(proven).0, State::False);
        let unread = condition(&Votes::Unread("permission denied".to_owned()));
        assert_eq!((unread.state, unread.reason), (State::Unknown, "MembersNotRead"));
        assert!(unread.message.ends_with("permission denied"));
    }
}
