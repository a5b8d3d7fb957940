//! What a guest says of itself, what it uses, and what it sees of its CPU.

use super::{
    Bench, Case, POLL, Stop, Verdict,
    cases::{cases, check},
};
use crate::hypervisor::{HypervisorError, guest::LONGEST_TEXT};
use futures::FutureExt;
use kubexen_crds::{FeatureSet, cpu::WORDS};
use tokio::time::Instant;

cases![
    what_a_guest_says_of_itself_is_told_until_it_is_destroyed,
    a_guest_that_says_nonsense_is_bounded,
    the_cpu_time_of_a_running_guest_grows,
    a_guest_sees_no_cpu_feature_beyond_its_level,
    a_guest_whose_level_the_host_does_not_reach_is_refused,
];

async fn what_a_guest_says_of_itself_is_told_until_it_is_destroyed(bench: &Bench) -> Verdict {
    let (_, interfaces) = bench.guests.devices();
    if interfaces.is_empty() {
        return Err(Stop::Skip("no bridge to give to a guest"));
    }
    let mut config = bench.guest("kubexen.agent kubexen.address=10.88.0.201/24");
    config.interfaces = interfaces;
    bench.hypervisor.create(&config).await?;
    let before = bench.hypervisor.guest(config.uuid).await?;
    check!(before.is_empty(), "it said {before:?} before it ran");
    bench.hypervisor.unpause(config.uuid).await?;
    let deadline = Instant::now() + bench.patience;
    let address = "10.88.0.201".parse().ok();
    loop {
        let said = bench.hypervisor.guest(config.uuid).await?;
        let told = said.addresses.get(&0).and_then(|addresses| addresses.first()).copied();
        let whole = said.os_name.is_some() && said.kernel_version.is_some() && said.agent_version.is_some();
        if whole && said.memory.is_some() && told == address {
            break;
        }
        check!(Instant::now() < deadline, "it says {said:?}");
        tokio::time::sleep(POLL).await;
    }
    bench.hypervisor.destroy(config.uuid).await?;
    let gone = bench.hypervisor.guest(config.uuid).await;
    check!(matches!(gone, Err(HypervisorError::NoSuchDomain(_))), "after destroy: {gone:?}");
    Ok(())
}

async fn a_guest_that_says_nonsense_is_bounded(bench: &Bench) -> Verdict {
    let config = bench.guest("kubexen.babble");
    bench.start(&config).await?;
    let deadline = Instant::now() + bench.patience;
    loop {
        let said = bench.hypervisor.guest(config.uuid).await?;
        let texts = [&said.os_name, &said.os_version, &said.kernel_version, &said.agent_version];
        for text in texts.into_iter().flatten() {
            check!(text.len() <= LONGEST_TEXT && !text.chars().any(char::is_control), "it says {text:?}");
        }
        check!(said.addresses.is_empty() && said.memory.is_none(), "it says {said:?}");
        if said.kernel_version.is_some() {
            return Ok(());
        }
        check!(Instant::now() < deadline, "it says {said:?}");
        tokio::time::sleep(POLL).await;
    }
}

async fn the_cpu_time_of_a_running_guest_grows(bench: &Bench) -> Verdict {
    let config = bench.guest("kubexen.count");
    bench.hypervisor.create(&config).await?;
    let used = async || {
        let usage = bench.hypervisor.usage().await?;
        check!(usage.is_sorted_by_key(|domain| domain.uuid), "not sorted: {usage:?}");
        let ours = usage.into_iter().find(|domain| domain.uuid == config.uuid);
        ours.ok_or_else(|| Stop::Fail("it is not among those that use the host".to_owned()))
    };
    let paused = used().await?;
    check!(paused.cpu_time.is_zero(), "it used {:?} before it ran", paused.cpu_time);
    check!(paused.vcpus == config.vcpus && paused.memory_kib > 0, "{paused:?}");
    bench.hypervisor.unpause(config.uuid).await?;
    let deadline = Instant::now() + bench.patience;
    while used().await?.cpu_time.is_zero() {
        check!(Instant::now() < deadline, "it was given no CPU time");
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Features that a Linux guest shows and can do without.
const DISPENSABLE: [&str; 3] = ["lahf_lm", "popcnt", "cx16"];

/// What a guest with this level says of its CPU, as it says everything of it on one line.
async fn flags_seen(bench: &Bench, level: Option<FeatureSet>) -> Result<Vec<String>, Stop> {
    let mut config = bench.guest("");
    config.cpu_level = level;
    bench.start(&config).await?;
    let deadline = Instant::now() + bench.patience;
    loop {
        let text = bench.speaks(config.uuid).await?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let line = text.lines().find_map(|line| line.trim().strip_prefix("FLAGS ")?.strip_suffix(" ."));
        if let Some(line) = line {
            bench.hypervisor.destroy(config.uuid).await?;
            return Ok(line.split_whitespace().map(str::to_owned).collect());
        }
        check!(Instant::now() < deadline, "it says nothing of its CPU: {text}");
        tokio::time::sleep(POLL).await;
    }
}

async fn a_guest_sees_no_cpu_feature_beyond_its_level(bench: &Bench) -> Verdict {
    let facts = bench.hypervisor.facts().await?;
    let Some(given) = facts.cpu_feature_sets.hvm else {
        return Err(Stop::Fail("the host says nothing of the features that it gives".to_owned()));
    };
    let names = given.names();
    let Some(hidden) = DISPENSABLE.into_iter().find(|name| names.iter().any(|known| known == name)) else {
        return Err(Stop::Skip("the host has no feature that a guest can do without"));
    };
    let all = flags_seen(bench, None).await?;
    check!(all.iter().any(|flag| flag == hidden), "{hidden} is given and not seen: {all:?}");
    let level = given.without(&FeatureSet::from_names([hidden]));
    let some = flags_seen(bench, Some(level)).await?;
    let expected: Vec<&String> = all.iter().filter(|flag| *flag != hidden).collect();
    check!(some.iter().eq(expected.iter().copied()), "without {hidden} it sees {some:?} of {all:?}");
    Ok(())
}

async fn a_guest_whose_level_the_host_does_not_reach_is_refused(bench: &Bench) -> Verdict {
    // No CPU has all of them: some are of one maker, some of the other.
    let mut config = bench.guest("");
    config.cpu_level = Some(FeatureSet::from_words(&[u32::MAX; WORDS]));
    let result = bench.hypervisor.create(&config).await;
    let named = |detail: &str| detail.contains("CPU feature ");
    check!(matches!(&result, Err(HypervisorError::Refused { detail, .. }) if named(detail)), "{result:?}");
    check!(bench.hypervisor.find(config.uuid).await?.is_none(), "something of it is left");
    Ok(())
}
