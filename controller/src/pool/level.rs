//! The pool's CPU level: the features that machines are started with.
//!
//! Pure but for where it is looked up. A machine that runs keeps the level that stands in its Domain.

use crate::view::View;
use kubexen_crds::{FeatureSets, Host, pool::LevelPolicy};

/// The level that machines are started at now: the stored one, or what all hosts have while none is stored; none while no
/// host has published its features.
pub(crate) fn level(view: &View) -> Option<FeatureSets> {
    // The schema allows for one Pool, named default.
    let pool = view.pools.list().into_iter().next();
    let stored = pool.and_then(|pool| pool.status.as_ref()?.cpu.as_ref().map(|cpu| cpu.level.clone()));
    stored.or_else(|| common(view.hosts.list().iter().map(|host| &**host)))
}

/// The level after `before`, with these hosts.
pub(super) fn next<'a>(
    before: Option<&FeatureSets>,
    hosts: impl Iterator<Item = &'a Host>,
    policy: LevelPolicy,
) -> Option<FeatureSets> {
    match (before, common(hosts), policy) {
        (before, None, LevelPolicy::OnlyDown | LevelPolicy::Follow) => before.cloned(),
        (Some(before), Some(common), LevelPolicy::OnlyDown) => Some(before.intersection(&common)),
        (None, Some(common), LevelPolicy::OnlyDown) | (_, Some(common), LevelPolicy::Follow) => Some(common),
    }
}

/// What all hosts have that say what they have.
fn common<'a>(hosts: impl Iterator<Item = &'a Host>) -> Option<FeatureSets> {
    hosts
        .filter_map(|host| host.status.as_ref()?.cpu.as_ref()?.feature_sets.clone())
        .reduce(|one, other| one.intersection(&other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kubexen_crds::{FeatureSet, HostSpec, HostStatus, host::HostCpu};
    use proptest::prelude::*;

    fn sets(names: &[&str]) -> FeatureSets {
        FeatureSets { hvm: Some(FeatureSet::from_names(names.iter().copied())), pv: None }
    }

    fn host(sets: Option<FeatureSets>) -> Host {
        let mut host = Host::new("host", HostSpec { schedulable: true, ..HostSpec::default() });
        let cpu = HostCpu { feature_sets: sets, ..HostCpu::default() };
        host.status = Some(HostStatus { cpu: Some(cpu), ..HostStatus::default() });
        host
    }

    #[test]
    fn a_weaker_host_takes_the_level_down_and_only_the_policy_takes_it_up() {
        let (strong, weak) = (host(Some(sets(&["avx", "avx2"]))), host(Some(sets(&["avx"]))));
        let high = next(None, [&strong].into_iter(), LevelPolicy::OnlyDown);
        assert_eq!(high, Some(sets(&["avx", "avx2"])));
        let low = next(high.as_ref(), [&strong, &weak].into_iter(), LevelPolicy::OnlyDown);
        assert_eq!(low, Some(sets(&["avx"])));
        assert_eq!(next(low.as_ref(), [&strong].into_iter(), LevelPolicy::OnlyDown), low);
        assert_eq!(next(low.as_ref(), [&strong].into_iter(), LevelPolicy::Follow), high);
    }

    #[test]
    fn hosts_that_have_not_spoken_do_not_count_and_without_any_the_level_stays() {
        let (silent, strong) = (host(None), host(Some(sets(&["avx2"]))));
        assert_eq!(next(None, [&silent].into_iter(), LevelPolicy::Follow), None);
        assert_eq!(next(None, [&silent, &strong].into_iter(), LevelPolicy::OnlyDown), Some(sets(&["avx2"])));
        let before = sets(&["avx"]);
        assert_eq!(next(Some(&before), [].into_iter(), LevelPolicy::Follow), Some(before));
    }

    proptest! {
        #[test]
        fn every_host_has_the_level_and_it_never_gains_by_itself(
            before in any::<[u32; 3]>(),
            hosts in prop::collection::vec(any::<[u32; 3]>(), 1..5),
        ) {
            let set = |words: &[u32]| FeatureSets { hvm: Some(FeatureSet::from_words(words)), pv: None };
            let (before, all) = (set(&before), hosts.iter().map(|words| set(words)).collect::<Vec<_>>());
            let objects: Vec<Host> = all.iter().map(|sets| host(Some(sets.clone()))).collect();
            let after = next(Some(&before), objects.iter(), LevelPolicy::OnlyDown).unwrap();
            let lacks = |other: &FeatureSets| {
                !after.hvm.clone().unwrap_or_default().without(&other.hvm.clone().unwrap_or_default()).is_empty()
            };
            prop_assert!(!lacks(&before) && !all.iter().any(lacks));
            let again = next(Some(&after), objects.iter(), LevelPolicy::OnlyDown);
            prop_assert_eq!(again, Some(after));
        }
    }
}
