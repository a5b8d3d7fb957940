//! Agents stand still, or are cut off from the pool's etcd or the API server: their guarded guests have stopped before they
//! run elsewhere, and nothing happens where nothing has to.

use crate::{
    recovery::{number_of, protected, protecting, until_back, until_guarded, until_protects},
    scene::Scene,
    world::World,
};
use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use kube::{Api, ResourceExt};
use kubexen_crds::{Host, VirtualMachine};
use kubexen_ownership::liveness::Timing;
use kubexen_testbed::{
    control_plane::Options,
    pool::{
        Far, PoolOptions,
        runs::{Run, nothing_ran_twice, runs_of},
    },
    process::wait_until,
    proxy::Cut,
};
use serde_json::json;
use std::time::Duration;
use tokio::time::sleep;

/// Longer than it takes to be given away, and to be started there, on a busy machine.
const HEALED: Duration = Duration::from_secs(120);
/// How late a step of the ladder may come on a busy machine.
const LATE: f64 = 2.0;

/// Three members, two controllers, and a wire to each agent that can be cut; all hosts may be silent at once.
async fn bed(hosts: usize) -> Result<(World, Scene)> {
    let three = Options { pool_etcd_members: 3, ..Options::default() };
    let options =
        PoolOptions { hosts, hosts_per_process: 1, controllers: 2, wires: true, ..PoolOptions::default() };
    let availability = json!({"profile": "Fast", "maxSilentPercent": 100});
    protecting(World::start_on(&three, options).await?, availability).await
}

/// A protected guest on a host that something happens to.
struct Case<'a> {
    world: &'a World,
    scene: &'a Scene,
    host: String,
    uid: String,
}

impl<'a> Case<'a> {
    async fn new(world: &'a World, scene: &'a Scene, host: &str) -> Result<Self> {
        protected(world, scene, host, Some(host)).await?;
        let uid = scene.api::<VirtualMachine>().get(host).await?.uid().context("no uid")?;
        Ok(Self { world, scene, host: host.to_owned(), uid })
    }

    fn runs(&self) -> Result<Vec<Run>> {
        runs_of(&self.world.pool, &self.uid)
    }

    /// Stops the agent for so long.
    async fn stand_still(&self, seconds: u64) -> Result<()> {
        let agent = number_of(self.world, &self.host)?;
        let agent = self.world.pool.agent(agent).context("it has no agent")?;
        agent.pause()?;
        sleep(Duration::from_secs(seconds)).await;
        agent.resume()
    }

    /// Waits until the guest runs elsewhere, and makes sure that it had ended here by the deadline.
    async fn is_given_away(&self, since: Timestamp) -> Result<()> {
        until_back(self.scene, &self.host, &self.host).await?;
        self.ended_by_the_deadline(since)
    }

    fn ended_by_the_deadline(&self, since: Timestamp) -> Result<()> {
        let first = self.runs()?.into_iter().next().context("it never ran")?;
        let end = first.to.context("it never ended")?;
        let late = end.duration_since(since).as_secs_f64() - Timing::FAST.deadline.as_secs_f64();
        ensure!(late <= LATE, "it ended {late:.1} s after the deadline: {:?}", self.runs()?);
        Ok(())
    }

    /// Makes sure that nobody has touched the guest, and nobody has fenced its host.
    async fn is_untouched(&self) -> Result<()> {
        ensure!(self.world.fenced(&self.host).await? == 0, "{} was fenced", self.host);
        let runs = self.runs()?;
        ensure!(matches!(runs.as_slice(), [Run { to: None, .. }]), "it ran {runs:?}");
        Ok(())
    }
}

/// The agent stands still for less than it takes to be missed: its last renewal may be one period old by then, so that 4 s are the
/// most for which the guest is certainly not stopped.
async fn hiccups(case: Case<'_>, seconds: &[u64]) -> Result<()> {
    for seconds in seconds {
        case.stand_still(*seconds).await?;
        // Until it has renewed, and let a guest run on that it may have paused.
        sleep(Timing::FAST.renewal).await;
        case.is_untouched().await.with_context(|| format!("after {seconds} s"))?;
    }
    Ok(())
}

/// The agent stands still beyond the deadline: the watchdog resets the host, and its next boot or another host has the guest.
async fn hangs(case: Case<'_>, seconds: u64) -> Result<()> {
    let since = Timestamp::now();
    case.stand_still(seconds).await?;
    // A simulated host tells of its reset when its agent looks at it.
    wait_until("it has ended here and runs again", HEALED, async || {
        let runs = case.runs()?;
        ensure!(
            matches!(runs.as_slice(), [Run { to: Some(_), .. }, Run { to: None, .. }]),
            "it ran {runs:?}"
        );
        Ok(())
    })
    .await?;
    case.ended_by_the_deadline(since)?;
    until_guarded(case.world, case.scene, &case.host).await?;
    until_protects(case.world, case.scene, &case.host).await.context("its next boot")
}

/// The wire to the pool's etcd is cut until the guest runs elsewhere. A guest that nobody guards runs on.
async fn loses_the_store(case: Case<'_>, cut: Cut) -> Result<()> {
    let other = format!("{}-other", case.host);
    let placement = json!({"hostSelector": {"matchLabels": {"first": case.host}}});
    case.scene.create_machine(&other, json!({"placement": placement})).await?;
    let machine = case.scene.until_ready_is(&other, "True", "Running").await?;
    let since = Timestamp::now();
    case.world.pool.cut(&case.host, Far::PoolEtcd, cut)?;
    case.is_given_away(since).await?;
    let runs = runs_of(&case.world.pool, &machine.uid().context("no uid")?)?;
    ensure!(matches!(runs.as_slice(), [Run { to: None, .. }]), "a guest that nobody guards ran {runs:?}");
    case.world.pool.cut(&case.host, Far::PoolEtcd, Cut::NONE)?;
    let hosts = Api::<Host>::all(case.scene.client.clone());
    wait_until("the host says that its boot is fenced", HEALED, async || {
        let said = hosts.get(&case.host).await?.status.and_then(|status| status.protection);
        ensure!(said.as_ref().is_some_and(|said| said.message.contains("was fenced")), "it says {said:?}");
        Ok(())
    })
    .await
}

/// The agent is killed and started again within the deadline: nobody notices, for longer than a lease and the grace last.
async fn restarted(world: &mut World, scene: &Scene, host: &str) -> Result<()> {
    let number = number_of(world, host)?;
    world.pool.kill_agent(number)?;
    world.pool.start_agent(number)?;
    sleep(Timing::FAST.lease + Timing::FAST.grace + Duration::from_secs(2)).await;
    until_protects(world, scene, host).await?;
    let uid = scene.api::<VirtualMachine>().get(host).await?.uid().context("no uid")?;
    Case { world, scene, host: host.to_owned(), uid }.is_untouched().await
}

/// The wire to the API server is cut for longer than a lease and the grace last.
async fn loses_the_api_server(case: Case<'_>) -> Result<()> {
    case.world.pool.cut(&case.host, Far::ApiServer, Cut::BOTH)?;
    sleep(Timing::FAST.lease + Timing::FAST.grace + Duration::from_secs(2)).await;
    case.is_untouched().await?;
    case.world.pool.cut(&case.host, Far::ApiServer, Cut::NONE)?;
    until_guarded(case.world, case.scene, &case.host).await?;
    case.is_untouched().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_that_stand_still_or_are_cut_off_lose_their_guests_in_time_and_only_if_they_must() -> Result<()>
{
    let (mut world, scene) = bed(7).await?;
    let case = |host| Case::new(&world, &scene, host);
    let cases = tokio::try_join!(
        case("host-1"),
        case("host-2"),
        case("host-3"),
        case("host-4"),
        case("host-5"),
        case("host-6"),
    )?;
    let outcomes = tokio::join!(
        async { hiccups(cases.0, &[1, 2, 3]).await.context("an agent that stands still for a moment") },
        async { hangs(cases.1, 25).await.context("an agent that stands still") },
        async { loses_the_store(cases.2, Cut::BOTH).await.context("cut off from the store") },
        async { loses_the_store(cases.3, Cut::ANSWERS).await.context("answers of the store are lost") },
        async { loses_the_store(cases.4, Cut::REQUESTS).await.context("requests to the store are lost") },
        async { loses_the_api_server(cases.5).await.context("cut off from the API server") },
    );
    let (one, two, three, four, five, six) = outcomes;
    one.and(two).and(three).and(four).and(five).and(six)?;
    nothing_ran_twice(&world.pool)?;
    restarted(&mut world, &scene, "host-1").await.context("an agent that is restarted")?;
    // A boot that was fenced never comes back to life; the next one does.
    for host in ["host-3", "host-4", "host-5"] {
        let number = number_of(&world, host)?;
        world.reboot(number)?;
    }
    for host in ["host-3", "host-4", "host-5"] {
        until_protects(&world, &scene, host).await?;
    }
    nothing_ran_twice(&world.pool).map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes four minutes: agents stand still for up to a minute, one length after the other"]
async fn agents_that_stand_still_for_1_to_60_seconds_never_run_a_guest_twice() -> Result<()> {
    let (world, scene) = bed(7).await?;
    let case = |host| Case::new(&world, &scene, host);
    let cases =
        tokio::try_join!(case("host-1"), case("host-2"), case("host-3"), case("host-4"), case("host-5"))?;
    let outcomes = tokio::join!(
        hiccups(cases.0, &[1, 2, 3]),
        hangs(cases.1, 10),
        hangs(cases.2, 16),
        hangs(cases.3, 30),
        hangs(cases.4, 60),
    );
    let (one, two, three, four, five) = outcomes;
    one.and(two).and(three).and(four).and(five)?;
    nothing_ran_twice(&world.pool).map(drop)
}
