//! What is said of the failures that the pool tolerates: as many as there is room for, at most as many as the pool's store
//! outlives, and none while nothing would be started elsewhere anyway.

use crate::{
    placement::reserve::{Breach, Promise},
    recovery::{Obstacle, Quorum, Votes},
    scheduler::Standing,
};
use kubexen_crds::{
    PoolAvailabilityStatus,
    condition::{State, Wanted},
};
use kubexen_runtime::Key;

pub(super) const FAILURES_TOLERATED: &str = "FailuresTolerated";

/// What the pool's store allows for, or why nothing is started elsewhere.
type Bounds = Result<Votes, Obstacle>;

/// How many failures are tolerated of those that are wanted.
fn tolerated(promise: &Promise, bounds: &Bounds) -> u32 {
    match bounds {
        Ok(votes) => promise.tolerates.min(limit(votes).map_or(u32::MAX, |(most, _)| *most)),
        Err(_) => 0,
    }
}

fn limit(votes: &Votes) -> Option<&(u32, String)> {
    match votes {
        Votes::Counted(Quorum { limit, .. }) => limit.as_ref(),
        Votes::Unread(_) => None,
    }
}

/// The condition FailuresTolerated; none if no failure is to be tolerated.
pub(super) fn condition(standing: &Standing, bounds: &Bounds) -> Option<Wanted> {
    let promise = standing.promise.as_ref()?;
    let tolerates = tolerated(promise, bounds);
    let count = format!("{tolerates} of {} host failures are tolerated", promise.wanted);
    let excepted = excepted(&standing.unprotectable);
    let not = |reason, message: String| Wanted::new(FAILURES_TOLERATED, State::False, reason, message);
    let votes = match bounds {
        Ok(votes) => votes,
        Err(Obstacle { reason, message }) => return Some(not(reason, format!("{count}: {message}"))),
    };
    let store = limit(votes).filter(|(most, _)| *most < promise.wanted && *most == tolerates);
    let store = store.map(|(_, why)| why.as_str());
    let breach = promise.breach.as_ref().filter(|_| promise.tolerates == tolerates);
    Some(match (breach, store) {
        (None, None) => Wanted::new(
            FAILURES_TOLERATED,
            State::True,
            "Tolerated",
            format!(
                "{count}: there is room for all {} protected machines{}{excepted}",
                promise.protected,
                unknown(votes)
            ),
        ),
        (None, Some(store)) => not("StoreNotRedundant", format!("{count}: {store}{excepted}")),
        (Some(breach), store) => {
            let store = store.map(|store| format!("; besides, {store}")).unwrap_or_default();
            match is_certain(breach) {
                true => not("NotEnoughRoom", format!("{count}: {breach}{store}{excepted}")),
                false => not("NotCertain", format!("for certain {count}: {breach}{store}{excepted}")),
            }
        }
    })
}

/// Whether a guest has no place, and not only an estimate says that there may be none.
fn is_certain(breach: &Breach) -> bool {
    breach.rejections.is_some() || breach.left > 0
}

/// What may still be wrong with a promise for which there is room.
fn unknown(votes: &Votes) -> &'static str {
    match votes {
        Votes::Unread(_) | Votes::Counted(Quorum { unknown: Some(_), .. }) => {
            "; whether the pool's store outlives them is not known, as the condition StoreRedundant says"
        }
        Votes::Counted(Quorum { unknown: None, .. }) => "",
    }
}

/// Machines that no room is kept for because they cannot be protected, at most three of them by name.
fn excepted(machines: &[Key]) -> String {
    let names = |machines: &[Key]| machines.iter().map(Key::to_string).collect::<Vec<_>>().join(", ");
    match machines {
        [] => String::new(),
        [first, second, third, more @ ..] if !more.is_empty() => format!(
            "; not counted, as their condition Protected says why: {} and {} others",
            names(&[first.clone(), second.clone(), third.clone()]),
            more.len()
        ),
        few => format!("; not counted, as their condition Protected says why: {}", names(few)),
    }
}

/// The status, of which the rest is as it was; none if there is nothing to tell. As long as nothing is known of the pool's store,
/// what was said stands.
pub(super) fn status(
    before: Option<PoolAvailabilityStatus>,
    standing: &Standing,
    bounds: Option<&Bounds>,
) -> Option<PoolAvailabilityStatus> {
    let count = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    let told = before.as_ref().and_then(|before| u32::try_from(before.tolerates?).ok());
    let tolerates = standing.promise.as_ref().and_then(|promise| match bounds {
        Some(bounds) => Some(tolerated(promise, bounds)),
        None => told,
    });
    let protected = (standing.protected > 0 || tolerates.is_some()).then(|| count(standing.protected));
    let after = PoolAvailabilityStatus {
        tolerates: tolerates.map(|tolerates| i32::try_from(tolerates).unwrap_or(i32::MAX)),
        protected,
        ..before.unwrap_or_default()
    };
    (after != PoolAvailabilityStatus::default()).then_some(after)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::{
        Reason, Rejections,
        reserve::{Breach, Promise, Remedy},
    };

    /// A store that no host takes with it.
    fn any_store() -> Bounds {
        Ok(Votes::Counted(Quorum::default()))
    }

    fn breach(rejections: Option<Rejections>, left: usize) -> Breach {
        let guest = Key::new("shop", "web");
        Breach {
            hosts: vec!["a".to_owned()],
            memory: 2 << 30,
            vcpus: 2,
            left,
            rejections,
            remedies: vec![Remedy::AnotherHost, Remedy::Unprotect(guest.clone())],
            guest,
        }
    }

    fn standing(wanted: u32, tolerates: u32, breach: Option<Breach>) -> Standing {
        let promise = Promise { wanted, tolerates, protected: 5, breach };
        Standing { promise: Some(promise), protected: 5, unprotectable: Vec::new() }
    }

    #[test]
    fn the_condition_says_how_many_failures_are_tolerated_and_what_keeps_from_more() {
        let mut full = Rejections::default();
        full.add(2, || Reason::Memory);
        let guest = "shop/web (2.0 GiB, 2 vCPUs)";
        let remedies = "to restore it: add a host, or no longer protect shop/web";
        let cases = [
            (
                standing(1, 1, None),
                "Tolerated",
                "1 of 1 host failures are tolerated: there is room for all 5 protected machines".to_owned(),
            ),
            (
                standing(2, 1, Some(breach(Some(full), 3))),
                "NotEnoughRoom",
                format!(
                    "1 of 2 host failures are tolerated: if a dies, {guest} and 2 others cannot start elsewhere: \
                     0/2 hosts fit: 2 memory; {remedies}"
                ),
            ),
            (
                standing(2, 1, Some(breach(None, 1))),
                "NotEnoughRoom",
                format!(
                    "1 of 2 host failures are tolerated: if a dies, no place was found for {guest}; {remedies}"
                ),
            ),
            (
                standing(3, 2, Some(breach(None, 0))),
                "NotCertain",
                format!(
                    "for certain 2 of 3 host failures are tolerated: it is not certain that all would find a place if \
                     a dies, the largest {guest}; {remedies}"
                ),
            ),
        ];
        for (standing, reason, message) in cases {
            let said = condition(&standing, &any_store()).expect("a condition");
            assert_eq!((said.reason, said.message), (reason, message));
            assert_eq!(said.state == State::True, reason == "Tolerated");
        }
    }

    #[test]
    fn no_more_failures_are_tolerated_than_the_pools_store_outlives() {
        let outlives = |most: u32| {
            let limit = Some((most, "no majority is left".to_owned()));
            Ok(Votes::Counted(Quorum { limit, ..Quorum::default() }))
        };
        let full = || {
            let mut full = Rejections::default();
            full.add(2, || Reason::Memory);
            Some(breach(Some(full), 1))
        };
        let obstacle = || Err(Obstacle { reason: "Disarmed", message: "as the Pool asks for".to_owned() });
        let cases = [
            (
                standing(2, 2, None),
                outlives(1),
                1,
                "StoreNotRedundant",
                "1 of 2 host failures are tolerated: no majority is left",
            ),
            (
                standing(1, 1, None),
                outlives(1),
                1,
                "Tolerated",
                "1 of 1 host failures are tolerated: there is room",
            ),
            (
                standing(3, 1, full()),
                outlives(2),
                1,
                "NotEnoughRoom",
                "1 of 3 host failures are tolerated: if a dies",
            ),
            (
                standing(3, 2, full()),
                outlives(1),
                1,
                "StoreNotRedundant",
                "1 of 3 host failures are tolerated: no majority",
            ),
            (
                standing(2, 2, None),
                obstacle(),
                0,
                "Disarmed",
                "0 of 2 host failures are tolerated: as the Pool asks for",
            ),
        ];
        for (standing, bounds, tolerates, reason, message) in cases {
            let said = condition(&standing, &bounds).expect("a condition");
            assert_eq!((said.reason, said.state == State::True), (reason, reason == "Tolerated"));
            assert!(said.message.starts_with(message), "{}", said.message);
            let told = status(None, &standing, Some(&bounds)).expect("a status");
            assert_eq!(told.tolerates, Some(tolerates), "{message}");
        }
        let both = condition(&standing(2, 1, full()), &outlives(1)).expect("a condition").message;
        assert!(
            both.contains("cannot start elsewhere") && both.ends_with("; besides, no majority is left"),
            "{both}"
        );
    }

    #[test]
    fn what_is_not_known_of_the_store_is_said_and_takes_nothing_away() {
        let unplaced = Quorum { unknown: Some("etcd-1 is nowhere".to_owned()), ..Quorum::default() };
        for votes in [Votes::Counted(unplaced), Votes::Unread("denied".to_owned())] {
            let said = condition(&standing(1, 1, None), &Ok(votes)).expect("a condition");
            assert_eq!((said.state, said.reason), (State::True, "Tolerated"));
            assert!(said.message.contains("as the condition StoreRedundant says"), "{}", said.message);
        }
        let before = PoolAvailabilityStatus { tolerates: Some(0), ..PoolAvailabilityStatus::default() };
        let after = status(Some(before), &standing(1, 1, None), None).expect("a status");
        assert_eq!(after.tolerates, Some(0), "another leader knew more");
    }

    #[test]
    fn machines_that_cannot_be_protected_are_named() {
        let keys: Vec<Key> = ["a", "b", "c", "d", "e"].map(|name| Key::new("shop", name)).into();
        let with = |unprotectable: &[Key]| {
            let standing = Standing { unprotectable: unprotectable.to_vec(), ..standing(1, 1, None) };
            condition(&standing, &any_store()).expect("a condition").message
        };
        let why = "; not counted, as their condition Protected says why: ";
        assert!(with(&keys[..2]).ends_with(&format!("{why}shop/a, shop/b")));
        assert!(with(&keys).ends_with(&format!("{why}shop/a, shop/b, shop/c and 2 others")));
    }

    #[test]
    fn nothing_is_told_of_a_pool_in_which_nothing_is_asked_for() {
        let nothing = Standing { promise: None, protected: 0, unprotectable: Vec::new() };
        assert_eq!((condition(&nothing, &any_store()), status(None, &nothing, None)), (None, None));
        let some = Standing { protected: 2, ..nothing };
        let told = status(None, &some, Some(&any_store())).expect("a status");
        assert_eq!((told.tolerates, told.protected), (None, Some(2)));
    }

    #[test]
    fn what_others_tell_of_availability_stays() {
        let before = PoolAvailabilityStatus {
            tolerates: Some(0),
            silent_hosts: vec!["c".to_owned()],
            ..PoolAvailabilityStatus::default()
        };
        let after = status(Some(before), &standing(2, 1, None), Some(&any_store())).expect("a status");
        assert_eq!((after.tolerates, after.protected), (Some(1), Some(5)));
        assert_eq!(after.silent_hosts, ["c"]);
    }
}
