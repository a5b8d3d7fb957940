//! What is said of the failures that the pool tolerates.

use crate::scheduler::Standing;
use kubexen_crds::{
    PoolAvailabilityStatus,
    condition::{State, Wanted},
};
use kubexen_runtime::Key;

const FAILURES_TOLERATED: &str = "FailuresTolerated";

/// The condition FailuresTolerated; none if no failure is to be tolerated.
pub(super) fn condition(standing: &Standing) -> Option<Wanted> {
    let promise = standing.promise.as_ref()?;
    let count = format!("{} of {} host failures are tolerated", promise.tolerates, promise.wanted);
    let excepted = excepted(&standing.unprotectable);
    Some(match &promise.breach {
        None => Wanted::new(
            FAILURES_TOLERATED,
            State::True,
            "Tolerated",
            format!("{count}: there is room for all {} protected machines{excepted}", promise.protected),
        ),
        Some(breach) if breach.rejections.is_none() && breach.left == 0 => Wanted::new(
            FAILURES_TOLERATED,
            State::False,
            "NotCertain",
            format!("for certain {count}: {breach}{excepted}"),
        ),
        Some(breach) => Wanted::new(
            FAILURES_TOLERATED,
            State::False,
            "NotEnoughRoom",
            format!("{count}: {breach}{excepted}"),
        ),
    })
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

/// The status, of which the rest is as it was; none if there is nothing to tell.
pub(super) fn status(
    before: Option<PoolAvailabilityStatus>,
    standing: &Standing,
) -> Option<PoolAvailabilityStatus> {
    let count = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    let tolerates = standing.promise.as_ref().map(|promise| promise.tolerates);
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
            let said = condition(&standing).expect("a condition");
            assert_eq!((said.reason, said.message), (reason, message));
            assert_eq!(said.state == State::True, reason == "Tolerated");
        }
    }

    #[test]
    fn machines_that_cannot_be_protected_are_named() {
        let keys: Vec<Key> = ["a", "b", "c", "d", "e"].map(|name| Key::new("shop", name)).into();
        let with = |unprotectable: &[Key]| {
            let standing = Standing { unprotectable: unprotectable.to_vec(), ..standing(1, 1, None) };
            condition(&standing).expect("a condition").message
        };
        let why = "; not counted, as their condition Protected says why: ";
        assert!(with(&keys[..2]).ends_with(&format!("{why}shop/a, shop/b")));
        assert!(with(&keys).ends_with(&format!("{why}shop/a, shop/b, shop/c and 2 others")));
    }

    #[test]
    fn nothing_is_told_of_a_pool_in_which_nothing_is_asked_for() {
        let nothing = Standing { promise: None, protected: 0, unprotectable: Vec::new() };
        assert_eq!((condition(&nothing), status(None, &nothing)), (None, None));
        let some = Standing { protected: 2, ..nothing };
        let told = status(None, &some).expect("a status");
        assert_eq!((told.tolerates, told.protected), (None, Some(2)));
    }

    #[test]
    fn what_others_tell_of_availability_stays() {
        let before = PoolAvailabilityStatus {
            tolerates: Some(0),
            silent_hosts: vec!["c".to_owned()],
            ..PoolAvailabilityStatus::default()
        };
        let after = status(Some(before), &standing(2, 1, None)).expect("a status");
        assert_eq!((after.tolerates, after.protected), (Some(1), Some(5)));
        assert_eq!(after.silent_hosts, ["c"]);
    }
}
