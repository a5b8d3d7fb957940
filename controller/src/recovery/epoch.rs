//! Whether the pool's store is still the one that the pool works with, and when one that was restored may be.

use std::collections::BTreeSet;

use kubexen_crds::{Host, Pool};
use kubexen_ownership::{
    HostBoot, StoreError,
    liveness::{Epoch, Roll, Standing},
};
use kubexen_runtime::{Key, events::Severity};
use tracing::{info, warn};

use super::{PoolStore, words::boot_named};
use crate::context::Context;

/// The pool's store was restored from a backup, and waits for an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Freeze {
    /// The epoch that it would begin.
    pub(crate) epoch: String,
    /// Hosts that have not put their guests on record in it, sorted.
    pub(crate) waiting: Vec<String>,
}

/// What is to be done about the epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// The records count.
    Keep(Epoch),
    /// The pool is new: its first epoch begins.
    Begin(Epoch),
    /// The store is not what it was, and does not say so itself: it has to, for all who look at it.
    Annul(Epoch),
    /// Nothing, before an operator says so and all hosts have done their part.
    Freeze(Freeze),
    /// An operator has said so: the next epoch begins.
    Confirm(Epoch),
}

/// What is to be done about the epoch of a store that stands like this. `remembered` is what the Pool has written down of it,
/// `confirmed` what an operator says, and `waiting` are the hosts that have not put their guests on record.
pub(crate) fn decide(
    seen: &Standing,
    remembered: Option<Epoch>,
    confirmed: Option<&str>,
    waiting: Vec<String>,
) -> Plan {
    let known = remembered.map_or(0, |epoch| epoch.number);
    let nowhere = seen.nowhere();
    let nowhere = Epoch { number: nowhere.number.max(known), ..nowhere };
    match seen.epoch {
        None if !seen.broken && remembered.is_none() => Plan::Begin(seen.seen_as().next()),
        None => Plan::Annul(nowhere),
        Some(_) if seen.broken => Plan::Annul(nowhere),
        Some(epoch) if seen.is_current() && epoch.number < known => Plan::Annul(nowhere),
        Some(epoch) if seen.is_current() => Plan::Keep(epoch),
        Some(_) => {
            let next = Epoch { number: nowhere.number, cluster: Some(seen.cluster) }.next();
            if waiting.is_empty() && confirmed == Some(next.to_string().as_str()) {
                Plan::Confirm(next)
            } else {
                Plan::Freeze(Freeze { epoch: next.to_string(), waiting })
            }
        }
    }
}

/// Hosts that have run guests and have not put them on record in a store that is `seen_as` this, but for those at boots that
/// somebody has seen to be `off`.
pub(crate) fn waiting<'a>(
    hosts: impl IntoIterator<Item = &'a Host>,
    roll: &Roll,
    off: &BTreeSet<HostBoot>,
    seen_as: Epoch,
) -> Vec<String> {
    let seen_as = seen_as.to_string();
    let waits = |host: &&Host| {
        let Some(status) = &host.status else { return false };
        let Some(boot_id) = &status.boot_id else { return false };
        let done = status.protection.as_ref().is_some_and(|said| said.epoch.as_ref() == Some(&seen_as));
        let boot = boot_named(&Key::of(*host).name, boot_id);
        let off = boot.is_some_and(|boot| off.contains(&boot) && !roll.live.contains_key(&boot));
        !done && !off
    };
    let mut waiting: Vec<String> = hosts.into_iter().filter(waits).map(|host| Key::of(host).name).collect();
    waiting.sort();
    waiting
}

/// What the Pool has written down of the store, and what an operator says of it.
fn words(pool: Option<&Pool>) -> (Option<Epoch>, Option<String>) {
    let status = pool.and_then(|pool| pool.status.as_ref()?.availability.as_ref());
    let remembered = status.and_then(|status| Epoch::parse(status.epoch.as_deref()?));
    (remembered, pool.and_then(|pool| pool.spec.availability.confirmed_epoch.clone()))
}

/// Does what follows from how the store was `seen`; the epoch in which its records count, or why they do not.
pub(super) async fn look(
    context: &Context,
    store: &PoolStore,
    seen: &Standing,
    roll: &Roll,
    off: &BTreeSet<HostBoot>,
) -> Result<Result<String, Freeze>, StoreError> {
    let hosts = context.view.hosts.list();
    let pool = context.view.pools.list().into_iter().next();
    let (remembered, confirmed) = words(pool.as_deref());
    let seen_as = match decide(seen, remembered, None, Vec::new()) {
        // What hosts will report of it once it says what it is.
        Plan::Annul(nowhere) => Epoch { cluster: Some(seen.cluster), ..nowhere },
        Plan::Keep(_) | Plan::Begin(_) | Plan::Freeze(_) | Plan::Confirm(_) => seen.seen_as(),
    };
    let waiting = waiting(hosts.iter().map(|host| &**host), roll, off, seen_as);
    let freeze = Freeze { epoch: seen_as.next().to_string(), waiting };
    let plan = decide(seen, remembered, confirmed.as_deref(), freeze.waiting.clone());
    let next = match plan {
        Plan::Keep(epoch) => return Ok(Ok(epoch.to_string())),
        Plan::Freeze(freeze) => return Ok(Err(freeze)),
        Plan::Begin(epoch) | Plan::Annul(epoch) | Plan::Confirm(epoch) => epoch,
    };
    // What was read of the Pool may be old, and this cannot be taken back.
    let latest = match &pool {
        Some(pool) => context.get::<Pool>(&Key::of(&**pool)).await.ok().flatten(),
        None => None,
    };
    let (remembered, confirmed) = words(latest.as_ref());
    let unchanged = decide(seen, remembered, confirmed.as_deref(), Vec::new()) == plan;
    if latest.is_some() != pool.is_some() || !unchanged || !context.leadership.holds() {
        return Ok(Err(freeze));
    }
    let begun = store.liveness.begin_epoch(next, seen).await?;
    match (&plan, begun) {
        (Plan::Begin(_), true) => info!(epoch = %next, "the first epoch of the pool's store begins"),
        (Plan::Confirm(_), true) => {
            info!(epoch = %next, "the restored store is confirmed");
            if let Some(pool) = &pool {
                let note = format!("the pool's store is confirmed: epoch {next} begins");
                context.events.record::<Pool>(pool, Severity::Normal, "EpochConfirmed", "Recover", note);
            }
        }
        (Plan::Annul(_), true) => warn!(?seen, "the pool's store is not what it was: it is frozen"),
        (Plan::Keep(_) | Plan::Freeze(_), _) | (_, false) => return Ok(Err(freeze)),
    }
    match plan {
        Plan::Begin(epoch) | Plan::Confirm(epoch) => Ok(Ok(epoch.to_string())),
        Plan::Keep(_) | Plan::Annul(_) | Plan::Freeze(_) => Ok(Err(freeze)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use kubexen_crds::{HostProtection, HostSpec, HostStatus, ProtectionState};
    use kubexen_ownership::liveness::Liveness;

    /// How a store stands whose record says this and that is in cluster 7.
    async fn seen(record: Option<Epoch>) -> Standing {
        let store = kubexen_ownership::MemoryStore::new();
        if let Some(epoch) = record {
            let fresh = store.standing().await.expect("a standing");
            store.begin_epoch(epoch, &fresh).await.expect("an epoch");
        }
        store.client().standing().await.expect("a standing")
    }

    fn epoch(number: u64, cluster: u64) -> Epoch {
        Epoch { number, cluster: Some(cluster) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_pool_begins_and_goes_on_as_long_as_its_record_names_the_store() {
        let fresh = seen(None).await;
        let here = fresh.cluster;
        assert_eq!(decide(&fresh, None, None, Vec::new()), Plan::Begin(epoch(1, here)));
        let running = seen(Some(epoch(1, here))).await;
        for remembered in [None, Some(epoch(1, here))] {
            assert_eq!(decide(&running, remembered, None, Vec::new()), Plan::Keep(epoch(1, here)));
        }
        let confirmed = seen(Some(epoch(2, here))).await;
        let behind = Some(epoch(1, here));
        assert_eq!(
            decide(&confirmed, behind, None, Vec::new()),
            Plan::Keep(epoch(2, here)),
            "the Pool follows"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_without_what_the_pool_remembers_is_made_to_say_that_it_is_frozen() {
        let fresh = seen(None).await;
        let here = fresh.cluster;
        let nowhere = |number| Plan::Annul(Epoch { number, cluster: None });
        assert_eq!(decide(&fresh, Some(epoch(3, 9)), None, Vec::new()), nowhere(3), "it is empty");
        let old = seen(Some(epoch(1, here))).await;
        assert_eq!(decide(&old, Some(epoch(2, 9)), None, Vec::new()), nowhere(2), "it went back");
        for mut broken in [old, fresh] {
            broken.broken = true;
            assert_eq!(decide(&broken, None, None, Vec::new()), nowhere(1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_restored_store_waits_for_the_hosts_and_for_an_operator_who_names_the_very_epoch() {
        let restored = seen(Some(epoch(1, 99))).await;
        let next = epoch(2, restored.cluster);
        let text = next.to_string();
        let frozen = |waiting: &[&str]| {
            let waiting = waiting.iter().map(|name| (*name).to_owned()).collect();
            Plan::Freeze(Freeze { epoch: text.clone(), waiting })
        };
        let remembered = Some(epoch(1, 99));
        assert_eq!(decide(&restored, remembered, None, Vec::new()), frozen(&[]));
        assert_eq!(decide(&restored, remembered, Some("1-63"), Vec::new()), frozen(&[]), "an earlier one");
        assert_eq!(decide(&restored, remembered, Some(&text), vec!["a".to_owned()]), frozen(&["a"]));
        assert_eq!(decide(&restored, remembered, Some(&text), Vec::new()), Plan::Confirm(next));
        // What was confirmed once confirms no second restore.
        let again = decide(&restored, Some(next), Some(&text), Vec::new());
        let third = epoch(3, restored.cluster).to_string();
        assert_eq!(again, Plan::Freeze(Freeze { epoch: third, waiting: Vec::new() }));
    }

    #[test]
    fn hosts_are_waited_for_until_their_guests_are_on_record_or_they_are_known_to_be_off() {
        let seen_as = epoch(1, 7);
        let host = |boot: Option<&str>, said: Option<&str>| {
            let mut host = Host::new("a", HostSpec::default());
            let protection = HostProtection {
                state: ProtectionState::Unavailable,
                message: String::new(),
                epoch: said.map(str::to_owned),
            };
            let boot_id = boot.map(str::to_owned);
            host.status = Some(HostStatus { boot_id, protection: Some(protection), ..HostStatus::default() });
            host
        };
        let boot = boot_named("a", "b-1").unwrap();
        let live = Roll { live: BTreeMap::from([(boot, String::new())]), ..Roll::default() };
        for (host, dead, roll, waits) in [
            (host(None, None), None, &Roll::default(), false),
            (host(Some("b-1"), None), None, &Roll::default(), true),
            (host(Some("b-1"), Some("1-6")), None, &Roll::default(), true),
            (host(Some("b-1"), Some("1-7")), None, &Roll::default(), false),
            (host(Some("b-1"), None), Some("b-0"), &Roll::default(), true),
            (host(Some("b-1"), None), Some("b-1"), &Roll::default(), false),
            (host(Some("b-1"), None), Some("b-1"), &live, true),
        ] {
            let off = dead.and_then(|boot| boot_named("a", boot)).into_iter().collect();
            assert_eq!(!waiting([&host], roll, &off, seen_as).is_empty(), waits, "{:?}", host.status);
        }
    }
}
