//! What the simulated hosts' logs tell of when every domain could run.

use super::Pool;
use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use kubexen_node_agent::hypervisor::simulated::{StartEvent, StartRecord};
use std::collections::BTreeMap;
use uuid::Uuid;

/// A domain from its beginning to its end, if it has ended; one that was suspended begins again when it runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The host that it was on.
    pub host: String,
    /// Whether it was built, and not restored or resumed.
    pub booted: bool,
    /// The ownership token that it ran under, the last one.
    pub token: u64,
    /// When it could run first.
    pub from: Timestamp,
    /// When it could run no more; none while it can.
    pub to: Option<Timestamp>,
}

/// All runs of every domain on all hosts, by UUID, each list in order of time.
///
/// # Errors
/// Where a host began a domain a second time before the first had ended, and when a log cannot be read.
pub fn runs(pool: &Pool) -> Result<BTreeMap<Uuid, Vec<Run>>> {
    let mut runs: BTreeMap<Uuid, Vec<Run>> = BTreeMap::new();
    for host in pool.host_names() {
        for StartRecord { event, uuid, token, at } in records(pool, host)? {
            let of_domain = runs.entry(uuid).or_default();
            let known = of_domain.iter().any(|run| run.host == *host);
            let open = of_domain.iter_mut().rev().find(|run| run.host == *host && run.to.is_none());
            match (event, open) {
                (StartEvent::Start | StartEvent::Arrive | StartEvent::Resume, None) => {
                    let booted = event == StartEvent::Start;
                    of_domain.push(Run { host: host.clone(), booted, token, from: at, to: None });
                }
                (StartEvent::Stop | StartEvent::Suspend, Some(run)) if run.token == token => {
                    run.to = Some(at);
                }
                (StartEvent::Claim, Some(run)) => run.token = token,
                // It was suspended.
                (StartEvent::Stop | StartEvent::Claim, None) if known => {}
                (event, open) => {
                    anyhow::bail!(
                        "{host} tells {event:?} of {uuid} with token {token} at {at} after {open:?}"
                    );
                }
            }
        }
    }
    for of_domain in runs.values_mut() {
        of_domain.sort_by_key(|run| run.from);
    }
    Ok(runs)
}

/// The runs of one domain.
///
/// # Errors
/// As [`runs`].
pub fn runs_of(pool: &Pool, uid: &str) -> Result<Vec<Run>> {
    Ok(runs(pool)?.remove(&Uuid::parse_str(uid)?).unwrap_or_default())
}

/// Makes sure that no domain ever was on two hosts at one instant, and that tokens never went back.
///
/// # Errors
/// When one was, or one did; and as [`runs`].
pub fn nothing_ran_twice(pool: &Pool) -> Result<BTreeMap<Uuid, Vec<Run>>> {
    let runs = runs(pool)?;
    for (uuid, of_domain) in &runs {
        for pair in of_domain.windows(2) {
            let [earlier, later] = pair else { continue };
            ensure!(
                earlier.to.is_some_and(|end| end <= later.from),
                "{uuid} was in two places at once: {earlier:?} and {later:?}"
            );
            ensure!(earlier.token <= later.token, "{uuid}: the token went back: {earlier:?}, {later:?}");
        }
    }
    Ok(runs)
}

/// How many times a domain began on a host before it had ended on another.
///
/// # Errors
/// As [`runs`].
pub fn overlaps(pool: &Pool) -> Result<usize> {
    let overlap = |pair: &[Run]| match pair {
        [earlier, later] => earlier.to.is_none_or(|end| end > later.from),
        _ => false,
    };
    Ok(runs(pool)?.values().map(|of_domain| of_domain.windows(2).filter(|pair| overlap(pair)).count()).sum())
}

fn records(pool: &Pool, host: &str) -> Result<Vec<StartRecord>> {
    let path = pool.host_folder(host).join("state/simulated/starts.log");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned()));
    lines.collect()
}
