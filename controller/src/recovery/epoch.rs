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
    /// The cluster that the pool worked with, if another one answers.
    pub(crate) instead_of: Option<u64>,
    /// Whether the store says that it follows that one, so that hosts write to it before an operator has said anything.
    pub(crate) follows: bool,
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
    /// An operator has said that the pool is to go on with a store that does not say that it follows the one that was: it is to say
    /// so, and that it is frozen, for the hosts to do their part.
    Adopt(Epoch),
    /// Nothing, before an operator says so and all hosts have done their part.
    Freeze(Freeze),
    /// An operator has said so: the next epoch begins.
    Confirm(Epoch),
}

/// What is to be done about the epoch of a store that stands like this. `remembered` is what the pool has written down of it,
/// `confirmed` what an operator says, and `waiting` are the hosts that have not put their guests on record.
///
/// A store of another cluster than the pool remembers may be that of another pool, and the endpoints wrong: without an operator who
/// names the very epoch it is neither followed nor written to.
pub(crate) fn decide(
    seen: &Standing,
    remembered: Option<Epoch>,
    confirmed: Option<&str>,
    waiting: Vec<String>,
) -> Plan {
    let known = remembered.map_or(0, |epoch| epoch.number);
    let other = remembered.and_then(|epoch| epoch.cluster).filter(|cluster| *cluster != seen.cluster);
    let nowhere = seen.nowhere();
    let follows = other.is_none_or(|other| seen.after == Some(other));
    let annul = Plan::Annul(Epoch { number: nowhere.number.max(known + 1), ..nowhere });
    let is_confirmed = |epoch: Epoch| confirmed == Some(epoch.to_string().as_str());
    // Hosts that have worked in it already have said what it was seen as then.
    let number = seen.number().max(known) + u64::from(!follows);
    let next = Epoch { number, cluster: Some(seen.cluster) }.next();
    let freeze =
        |waiting| Plan::Freeze(Freeze { epoch: next.to_string(), waiting, instead_of: other, follows });
    match (seen.epoch, other) {
        (None, None) if !seen.broken && remembered.is_none() => Plan::Begin(seen.seen_as().next()),
        // An operator has confirmed it, and nobody has come to write that down.
        (Some(epoch), Some(_)) if seen.is_current() && follows && is_confirmed(epoch) => Plan::Keep(epoch),
        (Some(epoch), None) if seen.is_current() && epoch.number >= known => Plan::Keep(epoch),
        // Hosts may have said so long ago that their guests are on record in it. One that cannot be read has no number, and is left.
        (Some(epoch), None) if seen.broken || seen.is_current() || (1..=known).contains(&epoch.number) => {
            annul
        }
        (None, None) => annul,
        (Some(_) | None, Some(_)) | (Some(_), None) => {
            if !is_confirmed(next) {
                freeze(waiting)
            } else if !follows {
                Plan::Adopt(Epoch { number, cluster: None })
            } else if waiting.is_empty() {
                Plan::Confirm(next)
            } else {
                freeze(waiting)
            }
        }
    }
}

/// What the pool has written down of the store: in the Pool, and where nothing is there, in its hosts. As long as none of them has
/// worked with this one or put its guests on record in it, they know of another one, so that this is not the first.
pub(crate) fn remembered(
    pool: Option<Epoch>,
    hosts: impl IntoIterator<Item = Epoch>,
    seen: &Standing,
) -> Option<Epoch> {
    let said: Vec<Epoch> = hosts.into_iter().collect();
    let is_here = |epoch: &&Epoch| epoch.cluster == Some(seen.cluster);
    pool.or_else(|| match seen.epoch {
        None => said.into_iter().filter(|epoch| *epoch != seen.seen_as()).max(),
        Some(_) if said.iter().any(|epoch| is_here(&epoch)) => None,
        Some(_) => said.into_iter().max(),
    })
}

/// The epochs that hosts say that they work in, or have put their guests on record in.
fn said<'a>(hosts: impl IntoIterator<Item = &'a Host>) -> Vec<Epoch> {
    let said = |host: &Host| Epoch::parse(host.status.as_ref()?.protection.as_ref()?.epoch.as_deref()?);
    hosts.into_iter().filter_map(said).collect()
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

/// What the Pool has written down of the store.
pub(super) fn written(pool: Option<&Pool>) -> Option<Epoch> {
    Epoch::parse(pool?.status.as_ref()?.availability.as_ref()?.epoch.as_deref()?)
}

/// What the pool has written down of the store, and what an operator says of it.
fn words(pool: Option<&Pool>, said: &[Epoch], seen: &Standing) -> (Option<Epoch>, Option<String>) {
    let remembered = remembered(written(pool), said.iter().copied(), seen);
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
    let said = said(hosts.iter().map(|host| &**host));
    let (remembered, confirmed) = words(pool.as_deref(), &said, seen);
    let seen_as = match decide(seen, remembered, None, Vec::new()) {
        // What hosts will report of it once it says what it is.
        Plan::Annul(nowhere) => Epoch { cluster: Some(seen.cluster), ..nowhere },
        Plan::Keep(_) | Plan::Begin(_) | Plan::Adopt(_) | Plan::Freeze(_) | Plan::Confirm(_) => {
            seen.seen_as()
        }
    };
    let waiting = waiting(hosts.iter().map(|host| &**host), roll, off, seen_as);
    let plan = decide(seen, remembered, confirmed.as_deref(), waiting.clone());
    let freeze = match decide(seen, remembered, None, waiting.clone()) {
        Plan::Freeze(freeze) => freeze,
        Plan::Keep(_) | Plan::Begin(_) | Plan::Annul(_) | Plan::Adopt(_) | Plan::Confirm(_) => {
            Freeze { epoch: seen_as.next().to_string(), waiting, instead_of: None, follows: true }
        }
    };
    let next = match plan {
        Plan::Keep(epoch) => return Ok(Ok(epoch.to_string())),
        Plan::Freeze(freeze) => return Ok(Err(freeze)),
        Plan::Begin(epoch) | Plan::Annul(epoch) | Plan::Adopt(epoch) | Plan::Confirm(epoch) => epoch,
    };
    // What was read of the Pool may be old, and this cannot be taken back.
    let latest = match &pool {
        Some(pool) => context.get::<Pool>(&Key::of(&**pool)).await.ok().flatten(),
        None => None,
    };
    let (remembered, confirmed) = words(latest.as_ref(), &said, seen);
    let unchanged = decide(seen, remembered, confirmed.as_deref(), Vec::new()) == plan;
    if latest.is_some() != pool.is_some() || !unchanged || !context.leadership.holds() {
        return Ok(Err(freeze));
    }
    let written = match (&plan, freeze.instead_of) {
        (Plan::Adopt(_), Some(cluster)) => seen.following(cluster),
        (_, Some(_) | None) => *seen,
    };
    let begun = store.liveness.begin_epoch(next, &written).await?;
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
        (Plan::Adopt(_), true) => info!(?seen, "this store is to follow the one that the pool worked with"),
        (Plan::Keep(_) | Plan::Freeze(_), _) | (_, false) => return Ok(Err(freeze)),
    }
    match plan {
        Plan::Begin(epoch) | Plan::Confirm(epoch) => Ok(Ok(epoch.to_string())),
        Plan::Keep(_) | Plan::Annul(_) | Plan::Adopt(_) | Plan::Freeze(_) => Ok(Err(freeze)),
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
    async fn a_store_that_lost_what_the_pool_remembers_is_made_to_say_that_it_is_frozen() {
        let fresh = seen(None).await;
        let here = fresh.cluster;
        let nowhere = |number| Plan::Annul(Epoch { number, cluster: None });
        assert_eq!(decide(&fresh, Some(epoch(3, here)), None, Vec::new()), nowhere(4), "it is empty");
        let old = seen(Some(epoch(1, here))).await;
        assert_eq!(decide(&old, Some(epoch(2, here)), None, Vec::new()), nowhere(3), "it went back");
        for mut broken in [old, fresh] {
            broken.broken = true;
            assert_eq!(decide(&broken, None, None, Vec::new()), nowhere(2), "a number that no host has said");
        }
        let frozen = seen(Some(Epoch { number: 2, cluster: None })).await;
        assert_eq!(decide(&frozen, Some(epoch(2, here)), None, Vec::new()), nowhere(3), "hosts have said 2");
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_of_another_cluster_is_neither_followed_nor_written_to_before_an_operator_names_its_epoch()
     {
        let remembered = Some(epoch(3, 99));
        let here = seen(None).await.cluster;
        let freeze = |number| {
            let epoch = epoch(number, here).to_string();
            Plan::Freeze(Freeze { epoch, waiting: Vec::new(), instead_of: Some(99), follows: false })
        };
        let mut others = vec![(5, seen(None).await)];
        for number in [1, 3, 7] {
            others.push((number.max(3) + 2, seen(Some(epoch(number, here))).await));
        }
        for (number, mut theirs) in others {
            for broken in [false, true] {
                theirs.broken = broken;
                assert_eq!(decide(&theirs, remembered, None, Vec::new()), freeze(number));
                assert_eq!(decide(&theirs, remembered, Some("3-63"), Vec::new()), freeze(number));
                let own = theirs.epoch.map(|epoch| epoch.to_string());
                assert_eq!(decide(&theirs, remembered, own.as_deref(), Vec::new()), freeze(number));
                let named = epoch(number, here).to_string();
                for waiting in [Vec::new(), vec!["a".to_owned()]] {
                    let adopted = Epoch { number: number - 1, cluster: None };
                    assert_eq!(decide(&theirs, remembered, Some(&named), waiting), Plan::Adopt(adopted));
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_of_another_cluster_that_an_operator_has_named_waits_for_the_hosts_under_that_name() {
        let store = kubexen_ownership::MemoryStore::new();
        let fresh = store.standing().await.unwrap();
        let (here, remembered) = (fresh.cluster, Some(epoch(3, 99)));
        let named = epoch(5, here).to_string();
        let plan = |seen: &Standing, waiting: &[&str]| {
            let waiting = waiting.iter().map(|name| (*name).to_owned()).collect();
            decide(seen, remembered, Some(&named), waiting)
        };
        let Plan::Adopt(adopted) = plan(&fresh, &["a"]) else { panic!("not adopted") };
        assert!(store.begin_epoch(adopted, &fresh.following(99)).await.unwrap());
        let adopted = store.client().standing().await.unwrap();
        assert!(!adopted.is_current() && adopted.after == Some(99), "{adopted:?}");
        let Plan::Freeze(freeze) = plan(&adopted, &["a"]) else { panic!("not frozen") };
        assert_eq!((freeze.epoch, freeze.follows), (named.clone(), true));
        assert_eq!(plan(&adopted, &[]), Plan::Confirm(epoch(5, here)));
        assert!(store.begin_epoch(epoch(5, here), &adopted).await.unwrap());
        let confirmed = store.client().standing().await.unwrap();
        assert_eq!(plan(&confirmed, &["a"]), Plan::Keep(epoch(5, here)), "the Pool does not say so yet");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pool_that_remembers_nothing_goes_by_what_its_hosts_have_said() {
        let (fresh, running) = (seen(None).await, seen(Some(epoch(1, 1))).await);
        let here = fresh.cluster;
        assert_eq!(here, 1);
        let plan = |seen: &Standing, said: &[Epoch]| {
            decide(seen, remembered(None, said.iter().copied(), seen), None, Vec::new())
        };
        let begins = Plan::Begin(epoch(1, here));
        assert_eq!(plan(&fresh, &[]), begins);
        assert_eq!(plan(&fresh, &[epoch(0, here)]), begins, "agents were there before the controller");
        let frozen = || {
            let epoch = epoch(3, here).to_string();
            Plan::Freeze(Freeze { epoch, waiting: Vec::new(), instead_of: Some(99), follows: false })
        };
        assert_eq!(plan(&fresh, &[epoch(0, here), epoch(0, 99)]), frozen(), "one knows another");
        assert_eq!(plan(&running, &[epoch(1, 99)]), frozen());
        assert_eq!(
            plan(&running, &[epoch(1, 99), epoch(1, here)]),
            Plan::Keep(epoch(1, here)),
            "one is behind"
        );
        let lost = Plan::Annul(Epoch { number: 2, cluster: None });
        assert_eq!(plan(&fresh, &[epoch(1, here)]), lost, "it had a record");
    }

    #[tokio::test(start_paused = true)]
    async fn a_restored_store_waits_for_the_hosts_and_for_an_operator_who_names_the_very_epoch() {
        let restored = seen(Some(epoch(1, 99))).await;
        let next = epoch(2, restored.cluster);
        let text = next.to_string();
        let frozen = |waiting: &[&str]| {
            let waiting = waiting.iter().map(|name| (*name).to_owned()).collect();
            Plan::Freeze(Freeze { epoch: text.clone(), waiting, instead_of: Some(99), follows: true })
        };
        let remembered = Some(epoch(1, 99));
        assert_eq!(decide(&restored, remembered, None, Vec::new()), frozen(&[]));
        assert_eq!(decide(&restored, remembered, Some("1-63"), Vec::new()), frozen(&[]), "an earlier one");
        assert_eq!(decide(&restored, remembered, Some(&text), vec!["a".to_owned()]), frozen(&["a"]));
        assert_eq!(decide(&restored, remembered, Some(&text), Vec::new()), Plan::Confirm(next));
        // What was confirmed once confirms no second restore, and what hosts said then is not true now.
        let again = decide(&restored, Some(next), Some(&text), Vec::new());
        assert_eq!(again, Plan::Annul(Epoch { number: 3, cluster: None }));
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
