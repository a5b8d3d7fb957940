//! `bench failover`: hosts of a pool lose their power, one after the other, and their protected guests run elsewhere.
//!
//! Real processes: an API server, a pool etcd of three members, two controllers, an agent for each simulated host. The time of
//! a round is from the moment at which the host's power went to the moment at which the guest ran on another host, as the
//! hosts' own logs have it. What stands behind every figure is the watchdog and the grace: no storage confirms anything.

use super::{
    measure::{kinds_are_served, this_profile},
    report::{FailoverReport, Profiles, Round, Rounds, rounded},
    workload::{create_namespace, name},
};
use crate::{
    control_plane::{ControlPlane, Options, Part},
    pool::{Pool, PoolOptions, SYSTEM_NAMESPACE, runs},
    process::wait_until,
    progress::Step,
};
use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, PostParams},
};
use kubexen_controller::LEASE;
use kubexen_crds::{Host, Profile, ProtectionState, VirtualMachine, condition};
use kubexen_ownership::liveness::Timing;
use serde_json::json;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Namespace of the machines.
const NAMESPACE: &str = "failover";
/// Simulated hosts, each with an agent process of its own.
const HOSTS: usize = 4;
/// Protected machines; the first is the one whose times count.
const MACHINES: usize = 8;
/// Longest time for a guest to be back, and for a host.
const LIMIT: Duration = Duration::from_secs(240);
/// How long the pool's etcd stands still.
const OUTAGE: Duration = Duration::from_secs(10);
/// How long it is watched whether somebody is fenced for it: longer than any lease and grace.
const WATCHED: Duration = Duration::from_secs(60);
/// How often a controller is killed.
const TAKEOVERS: usize = 3;

/// Measures this many rounds with each profile, both at a time.
///
/// # Errors
/// When something does not start, or a guest is not back in time.
pub async fn run(rounds: u32) -> Result<FailoverReport> {
    let step =
        Step::begin("Starting two pools of four simulated hosts, each with a pool etcd of three members");
    let (mut default, mut fast) = tokio::try_join!(Bed::start(Profile::Default), Bed::start(Profile::Fast))?;
    step.done();
    let step = Step::begin(format!("Cutting the power of a host, {rounds} times in each pool"));
    let (default_rounds, fast_rounds) = tokio::try_join!(default.rounds(rounds), fast.rounds(rounds))?;
    step.done();
    let step = Step::begin(format!("Killing the leading controller, {TAKEOVERS} times"));
    let takeover = fast.takeover().await?;
    step.done();
    let step = Step::begin("Stopping the pools' etcd for 10 s, and killing the member that leads");
    let (default_harm, fast_harm) = tokio::try_join!(default.outages(), fast.outages())?;
    step.done();
    Ok(FailoverReport {
        default: Rounds::of(&default_rounds, runs::overlaps(&default.pool)?),
        fast: Rounds::of(&fast_rounds, runs::overlaps(&fast.pool)?),
        controller_takeover_seconds: rounded(takeover.as_secs_f64()),
        false_fences: default_harm.fences + fast_harm.fences,
        guests_stopped_by_outage: Profiles { default: default_harm.stopped, fast: fast_harm.stopped },
    })
}

/// A pool with machines to lose.
struct Bed {
    // The programs of the pool stop before what they talk to.
    pool: Pool,
    control_plane: ControlPlane,
    client: Client,
    profile: Profile,
}

impl Bed {
    async fn start(profile: Profile) -> Result<Self> {
        let control_plane =
            ControlPlane::start(&Options { pool_etcd_members: 3, durable: true, ..Options::default() })
                .await?;
        let options = PoolOptions {
            hosts: HOSTS,
            hosts_per_process: 1,
            controllers: 2,
            profile: this_profile(),
            ..PoolOptions::default()
        };
        let pool = Pool::start(&control_plane, options).await?;
        let client = control_plane.client().await?;
        kinds_are_served(&client).await?;
        create_namespace(&client, NAMESPACE).await?;
        let policy = json!({
            "metadata": {"name": "default"},
            "spec": {"availability": {"profile": profile, "maxSilentPercent": 50}},
        });
        let pools = Api::<kubexen_crds::Pool>::all(client.clone());
        pools.create(&PostParams::default(), &serde_json::from_value(policy)?).await?;
        let bed = Self { pool, control_plane, client, profile };
        for number in 0..HOSTS {
            bed.until_protects(number).await?;
        }
        for number in 0..MACHINES {
            bed.create_machine(&name(number)).await?;
        }
        for number in 0..MACHINES {
            bed.until_guarded(&name(number)).await?;
        }
        Ok(bed)
    }

    fn machines(&self) -> Api<VirtualMachine> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    async fn create_machine(&self, name: &str) -> Result<()> {
        let machine = json!({
            "metadata": {"name": name},
            "spec": {
                "memory": {"size": "64Mi"},
                "boot": {"type": "PVH", "kernel": {"name": "linux", "commandLine": "console=hvc0"}},
                "availability": {"restartPriority": "Protected"},
            },
        });
        self.machines().create(&PostParams::default(), &serde_json::from_value(machine)?).await?;
        Ok(())
    }

    /// Waits until a host can protect guests, on a lease of the profile that is asked for: an agent that starts has the longer
    /// one until it has read which.
    async fn until_protects(&self, number: usize) -> Result<()> {
        let hosts = Api::<Host>::all(self.client.clone());
        let name = &self.pool.host_names()[number];
        let timing = self.timing();
        wait_until("the host protects guests", LIMIT, async || {
            let status = hosts.get(name).await?.status.unwrap_or_default();
            ensure!(condition::is_true(&status.conditions, "Ready"), "{name} is not Ready");
            let protects =
                status.protection.as_ref().is_some_and(|said| said.state == ProtectionState::Ready);
            ensure!(protects, "{name} says {:?}", status.protection);
            let boot = status.boot_id.context("it has no boot")?;
            let lease = self.control_plane.pool_lease(&format!("/kubexen/hosts/{name}/live/{boot}")).await?;
            ensure!(lease == Some(timing.lease), "{name} has a lease of {lease:?}");
            Ok(())
        })
        .await
    }

    /// Waits until a machine runs, and its host has promised to stop it in time; with its host.
    async fn until_guarded(&self, name: &str) -> Result<String> {
        let machines = self.machines();
        wait_until("the machine runs and is guarded", LIMIT, async || {
            let machine = machines.get(name).await?;
            let status = machine.status.unwrap_or_default();
            ensure!(condition::is_true(&status.conditions, "Ready"), "{name} is not Ready");
            let host = status.host.context("it has no host")?;
            let uid = machine.metadata.uid.context("no uid")?;
            let record = self.control_plane.pool_value(&format!("/kubexen/owners/{uid}")).await?;
            ensure!(record.contains(r#""guarded":true"#), "{name} is not guarded on {host}: {record}");
            Ok(host)
        })
        .await
    }

    fn timing(&self) -> Timing {
        match self.profile {
            Profile::Default => Timing::DEFAULT,
            Profile::Fast => Timing::FAST,
        }
    }

    /// What is waited for before a cut ends in step with the host's renewals, so that each cut is put off by another part of the
    /// time between two of them.
    async fn rounds(&mut self, count: u32) -> Result<Vec<Round>> {
        let mut rounds = Vec::new();
        for number in 0..count {
            let round = self.round(self.timing().renewal * number / count).await?;
            eprintln!("{:?}, round {}: {round}", self.profile, number + 1);
            rounds.push(round);
        }
        Ok(rounds)
    }

    /// Cuts the power of the first machine's host, once this time is over; how long it took until that machine ran elsewhere.
    async fn round(&mut self, after: Duration) -> Result<Round> {
        let name = name(0);
        let host = self.until_guarded(&name).await?;
        sleep(after).await;
        let number = self.pool.host_names().iter().position(|other| *other == host);
        let number = number.with_context(|| format!("there is no host {host}"))?;
        let machine = self.machines().get(&name).await?;
        let uid = machine.uid().context("no uid")?;
        let cut = Timestamp::now();
        self.pool.cut_power(number)?;
        let back = wait_until("the machine runs elsewhere", LIMIT, async || {
            let runs = runs::runs_of(&self.pool, &uid)?;
            let last = runs.last().filter(|run| run.host != host && run.from > cut);
            last.map(|run| run.from).with_context(|| format!("it ran {runs:?}"))
        })
        .await?;
        for machine in 0..MACHINES {
            self.until_guarded(&super::workload::name(machine)).await?;
        }
        let hosts = Api::<Host>::all(self.client.clone());
        let recovery = hosts.get(&host).await?.status.and_then(|status| status.recovery);
        let recovery = recovery.context("the host has no timeline")?;
        let fenced = recovery.fenced.context("the host was not fenced")?;
        self.pool.start_agent(number)?;
        self.until_protects(number).await?;
        let since_cut = |then: Timestamp| then.duration_since(cut).as_secs_f64();
        Ok(Round {
            lease_gone: since_cut(recovery.lease_gone.0),
            fenced: since_cut(fenced.0),
            back: since_cut(back),
        })
    }

    /// The longest time from the death of the leading controller until a machine that is made then runs.
    async fn takeover(&mut self) -> Result<Duration> {
        let leases = Api::<Lease>::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        let mut longest = Duration::ZERO;
        for number in 0..TAKEOVERS {
            let holder = leases.get(LEASE).await?.spec.and_then(|spec| spec.holder_identity);
            let holder = holder.context("nobody leads")?;
            let leader = usize::from(holder.starts_with("controller-1"));
            let began = Instant::now();
            self.pool.kill_controller(leader)?;
            let made = format!("after-takeover-{number}");
            self.create_machine(&made).await?;
            let machines = self.machines();
            wait_until("another controller works", LIMIT, async || {
                let status = machines.get(&made).await?.status.unwrap_or_default();
                ensure!(condition::is_true(&status.conditions, "Ready"), "{made} is not Ready");
                Ok(())
            })
            .await?;
            longest = longest.max(began.elapsed());
            self.pool.start_controller(leader)?;
            machines.delete(&made, &DeleteParams::default()).await?;
        }
        Ok(longest)
    }

    /// What an outage of the pool's etcd does, and the loss of the member that leads.
    async fn outages(&mut self) -> Result<Harm> {
        for machine in 0..MACHINES {
            self.until_guarded(&name(machine)).await?;
        }
        let (fenced, ended) = (self.fenced().await?, self.ended()?);
        self.control_plane.pause(Part::PoolEtcd)?;
        sleep(OUTAGE).await;
        self.control_plane.resume(Part::PoolEtcd)?;
        sleep(WATCHED).await;
        let stopped = self.ended()?.saturating_sub(ended);
        let leader = Part::PoolEtcdMember(self.control_plane.pool_etcd_leader().await?);
        self.control_plane.crash(leader)?;
        sleep(WATCHED).await;
        self.control_plane.restart(leader).await?;
        Ok(Harm { fences: self.fenced().await?.saturating_sub(fenced), stopped })
    }

    /// How many runs of guests have ended.
    fn ended(&self) -> Result<usize> {
        Ok(runs::runs(&self.pool)?.values().flatten().filter(|run| run.to.is_some()).count())
    }

    async fn fenced(&self) -> Result<usize> {
        let keys = self.control_plane.pool_keys("/kubexen/hosts/").await?;
        Ok(keys.iter().filter(|key| key.contains("/fenced/")).count())
    }
}

/// What outages of the pool's etcd did.
struct Harm {
    /// Boots that were fenced.
    fences: usize,
    /// Guests that were stopped while all members stood still.
    stopped: usize,
}
