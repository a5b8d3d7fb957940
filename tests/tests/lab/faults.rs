//! Moves between two real hosts in which something breaks. Whatever it is, one guest runs on in the end, and the record says
//! what happened.

use crate::{
    bed::{Bed, Guest, PATIENCE, delete_disk, hosts, nothing_is_left, own_world},
    lvm::{DEVICES, make_group},
    migrations::{Move, counted_to, counting_guest, kill_agent},
};
use anyhow::{Result, ensure};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use kubexen_crds::{MigrationPhase, Pool, condition::find, virtual_machine::Phase};
use kubexen_testbed::{
    control_plane::Part,
    lab::{LabHost, Link},
    process::wait_until,
};
use serde_json::json;
use std::time::Duration;

/// What breaks while the guest's memory goes over.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The source's agent is killed.
    SourceAgent,
    /// The destination's agent is killed.
    DestinationAgent,
    /// The source's libxl workers are killed.
    SourceWorkers,
    /// The destination's libxl workers are killed.
    DestinationWorkers,
    /// The cable between the hosts is pulled until the move has failed.
    Cable,
    /// Another domain takes the destination's memory.
    Memory,
    /// The destination cannot reach the storage of the guest's disk any more.
    Repository,
    /// The pool's etcd is gone until the destination has tried to take the guest over.
    PoolStore,
    /// The controller is gone until the guest is at the destination.
    Controller,
    /// The API server is gone until the guest is at the destination.
    ApiServer,
}

/// How the move must end.
#[derive(Clone, Copy, Debug)]
enum End {
    /// The guest runs on where it was, and the record's words contain one of these.
    Stays(&'static [&'static str]),
    /// The guest runs at the destination.
    Moves,
}

const CASES: [(Fault, End); 10] = [
    (Fault::DestinationWorkers, End::Stays(&["(DestinationFailed)"])),
    (Fault::Cable, End::Stays(&["(ConnectionLost)"])),
    (Fault::Memory, End::Stays(&["(DestinationFailed)"])),
    (Fault::Repository, End::Stays(&["Cannot read from the volume"])),
    (Fault::PoolStore, End::Stays(&["(ConnectionLost)", "(DestinationFailed)"])),
    (Fault::Controller, End::Moves),
    (Fault::ApiServer, End::Moves),
    (Fault::SourceAgent, End::Stays(&["(Interrupted)", "(ConnectionLost)"])),
    (Fault::DestinationAgent, End::Stays(&["(ConnectionLost)"])),
    (Fault::SourceWorkers, End::Stays(&["the libxl worker ended during the call"])),
];

/// Slow enough that something can break meanwhile: the guest has 96 MiB.
const BANDWIDTH: &str = "3Mi";

/// How long a slow move may take.
const WHOLE_MOVE: Duration = Duration::from_secs(480);

/// Starts a domain that takes all but 24 MiB of the memory that Xen has left, and never runs.
const TAKE_MEMORY: &str = r#"
cat >/run/taker.cfg <<END
name="taker"
type="pvh"
kernel="/guest/vmlinux"
memory=$(($(xl info free_memory) - 24))
END
xl create -p -e /run/taker.cfg
"#;

const KILL_WORKERS: &str = r"
for process in /proc/[0-9]*; do
    tr '\0' ' ' <$process/cmdline 2>/dev/null | grep -q 'libxl-worker' && kill -9 ${process#/proc/}
done
true
";

#[tokio::test]
#[ignore = "a quarter of an hour on an emulated machine: cargo xtask test lab -- --ignored faults"]
async fn whatever_breaks_during_a_move_one_guest_runs_on_and_the_record_says_why() -> Result<()> {
    let (_turn, mut bed) = own_world().await?;
    let slowly = Patch::Merge(json!({"spec": {"migration": {"bandwidth": BANDWIDTH}}}));
    let pools: Api<Pool> = Api::all(bed.control_plane.client().await?);
    pools.patch("default", &PatchParams::default(), &slowly).await?;
    make_group(&bed, 64).await?;
    Guest::create_disk_in(&bed, "san", "survivor-data").await?;
    let (guest, _) = counting_guest(&bed, "survivor", "10.88.0.33", &["survivor-data"]).await?;
    for (number, (fault, end)) in CASES.into_iter().enumerate() {
        eprintln!("{fault:?} ...");
        let said = go_through(&mut bed, &guest, number, fault, end).await;
        let said = said.map_err(|error| error.context(format!("{fault:?}")))?;
        eprintln!("{fault:?}: {said}");
    }
    guest.delete().await?;
    delete_disk(&bed, "survivor-data").await
}

/// Moves the guest, breaks something, and judges what came of it. Returns what the record says.
async fn go_through(bed: &mut Bed, guest: &Guest, number: usize, fault: Fault, end: End) -> Result<String> {
    let uuid = guest.uuid().await?;
    let before = guest.wait("runs", |status| status.phase == Some(Phase::Running)).await?;
    let (home, other) = hosts(bed, &before)?;
    let count = wait_until("it counts", PATIENCE, async || counted_to(&home, &uuid).await).await?;
    let a_move = Move::begin(bed, guest, &format!("fault-{number}")).await?;
    a_move.until(MigrationPhase::Copying).await?;
    wait_until("the guest's memory comes", PATIENCE, async || {
        ensure!(other.check("xl vm-list").await?.contains(&uuid), "there is no domain for it");
        Ok(())
    })
    .await?;
    strike(bed, fault, &uuid, &a_move, [&home, &other]).await?;
    let (phase, goes_on) = match end {
        End::Stays(_) => (MigrationPhase::Failed, &home),
        End::Moves => (MigrationPhase::Succeeded, &other),
    };
    let status = a_move.until(phase).await?;
    let said = find(&status.conditions, "Succeeded").map(|said| said.message.clone()).unwrap_or_default();
    if let End::Stays(words) = end {
        ensure!(words.iter().any(|word| said.contains(word)), "the record says {said:?}");
    }
    let name = goes_on.name();
    guest
        .wait("runs on", |status| {
            status.phase == Some(Phase::Running) && status.host.as_deref() == Some(&*name)
        })
        .await?;
    wait_until("it counts on", PATIENCE, async || {
        ensure!(counted_to(goes_on, &uuid).await? > count + 1, "it stands still");
        Ok(())
    })
    .await?;
    wait_until("exactly one domain runs", PATIENCE, async || {
        for (host, wanted) in [(goes_on, 1), (if name == home.name() { &other } else { &home }, 0)] {
            let domains = host.check("xl vm-list").await?;
            let found = domains.lines().filter(|line| line.starts_with(&uuid)).count();
            ensure!(found == wanted, "{} has {found}", host.name());
            if wanted == 0 {
                nothing_is_left(host, &uuid, None).await?;
            }
        }
        Ok(())
    })
    .await?;
    Ok(said)
}

/// Breaks something, and mends what does not mend itself as soon as it has had its effect.
async fn strike(
    bed: &mut Bed,
    fault: Fault,
    uuid: &str,
    a_move: &Move,
    [home, other]: [&LabHost; 2],
) -> Result<()> {
    match fault {
        Fault::SourceAgent => kill_agent(home).await,
        Fault::DestinationAgent => kill_agent(other).await,
        Fault::SourceWorkers => home.check(KILL_WORKERS).await.map(drop),
        Fault::DestinationWorkers => other.check(KILL_WORKERS).await.map(drop),
        Fault::Cable => {
            home.set_link(Link::Segment, false).await?;
            let failed = a_move.until(MigrationPhase::Failed).await;
            home.set_link(Link::Segment, true).await?;
            failed.map(drop)
        }
        Fault::Memory => {
            let taken = other.exec_within(TAKE_MEMORY, PATIENCE).await?;
            ensure!(taken.code == 0, "{}", String::from_utf8_lossy(&taken.stderr));
            let failed = a_move.until(MigrationPhase::Failed).await;
            other.check("xl destroy taker").await?;
            failed.map(drop)
        }
        Fault::Repository => {
            // From now on every read and write of the volume fails there, as when its LUN is gone.
            other.check(&format!("dmsetup wipe_table {DEVICES}*")).await.map(drop)
        }
        Fault::PoolStore => {
            let known = std::fs::read_to_string(other.agent_log())?.len();
            bed.control_plane.crash(Part::PoolEtcd)?;
            wait_until("the destination has tried to take the guest over", PATIENCE, async || {
                let log = std::fs::read_to_string(other.agent_log())?;
                let tried =
                    log.get(known..).is_some_and(|new| new.contains("asking again who owns the guest"));
                ensure!(tried, "it has not");
                Ok(())
            })
            .await?;
            bed.control_plane.restart(Part::PoolEtcd).await
        }
        Fault::Controller => {
            bed.pool.kill_controller(0)?;
            counts_at(other, uuid).await?;
            bed.pool.start_controller(0)
        }
        Fault::ApiServer => {
            bed.control_plane.crash(Part::ApiServer)?;
            counts_at(other, uuid).await?;
            bed.control_plane.restart(Part::ApiServer).await
        }
    }
}

/// Waits until the guest counts on this host, as that host's Xen knows it.
async fn counts_at(host: &LabHost, uuid: &str) -> Result<()> {
    let mut first = None;
    wait_until(&format!("the guest counts on {}", host.name()), WHOLE_MOVE, async || {
        let domains = host.check("xl vm-list").await?;
        ensure!(domains.contains(uuid), "it has not come");
        let now = counted_to(host, uuid).await?;
        ensure!(now > *first.get_or_insert(now), "it stands still at {now}");
        Ok(())
    })
    .await
}
