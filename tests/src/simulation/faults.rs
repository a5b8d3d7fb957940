//! Faults by chance, and their ends.

use super::world::{HOSTS, World};
use kubexen_crds::domain::StopReason;
use kubexen_ownership::HostName;
use std::time::Duration;
use tokio::time::Instant;

/// The end of a fault that lasts.
#[derive(Clone, Debug)]
pub(super) enum End {
    StartAgent(usize),
    StartController(usize),
    Mend(String),
    StorageOutage(usize),
    HypervisorOutage(usize),
    DeafGuests(usize),
    PoolStore,
    LateRequests,
    Link(HostName, HostName),
}

/// Faults under way.
#[derive(Debug, Default)]
pub(super) struct Faults {
    ends: Vec<(Instant, End)>,
}

/// How long an agent may be away, in milliseconds: so long that others do what it would have done.
const LONG_AWAY: u64 = 200_000;

/// How long guests of a host that listens take to power off.
const SHUTDOWN_TIME: Duration = Duration::from_secs(2);

impl Faults {
    /// Begins one fault.
    pub(super) async fn begin(&mut self, world: &mut World) {
        let dice = world.dice.clone();
        let number = dice.below(world.hosts.len());
        let name = world.hosts[number].name;
        let note = |what: &str| world.judge.note(format_args!("fault: {name} {what}"));
        match dice.below(24) {
            0 => self.crash(world, &agent(number)).await,
            1 => self.crash(world, &controller(dice.below(world.controllers.len()))).await,
            2..5 => {
                let process = if dice.chance(60) { agent(number) } else { controller(dice.below(2)) };
                let writes = 1 + dice.below(6);
                let name = self.name_of(world, &process);
                world.judge.note(format_args!("fault: {name} will crash at its write {writes}"));
                world.judge.arm(&name, writes);
            }
            5 => {
                let process = if dice.chance(60) { agent(number) } else { controller(dice.below(2)) };
                let name = self.name_of(world, &process);
                world.judge.note(format_args!("fault: {name} is cut off"));
                if let Some(process) = world.process(&name) {
                    process.wire.set_cut(true);
                }
                self.until(world, 60_000, End::Mend(name));
            }
            6 => {
                note("storage outage");
                world.hosts[number].storage.set_outage(true);
                self.until(world, 30_000, End::StorageOutage(number));
            }
            7 => {
                note("storage refuses or loses an answer");
                let storage = &world.hosts[number].storage;
                if dice.chance(50) { storage.refuse_next(1) } else { storage.lose_answers(1) }
            }
            8 => {
                note("hypervisor outage");
                world.hosts[number].host.set_unreachable(true);
                self.until(world, 30_000, End::HypervisorOutage(number));
            }
            9 => {
                note("next create fails");
                let host = &world.hosts[number].host;
                match dice.below(3) {
                    0 => host.refuse_creates(1),
                    1 => host.hang_creates(1),
                    _ => host.lose_creates(1),
                }
            }
            10 => {
                note("guests do not listen");
                world.hosts[number].host.set_shutdown_time(None);
                self.until(world, 60_000, End::DeafGuests(number));
            }
            11 | 12 => stop_a_guest(world, number),
            13 => self.reboot(world, number).await,
            14 => {
                world.judge.note("fault: pool store outage");
                world.pool_store.set_outage(true);
                self.until(world, 40_000, End::PoolStore);
            }
            15 => {
                world.judge.note("fault: pool store loses a request, an answer, or both");
                match dice.below(3) {
                    0 => world.pool_store.lose_requests(1),
                    1 => world.pool_store.lose_answers(1),
                    _ => {
                        world.pool_store.begin_outage_after_next_write();
                        self.until(world, 40_000, End::PoolStore);
                    }
                }
            }
            16 => self.crash_for(world, &agent(number), LONG_AWAY).await,
            18 => {
                world.judge.note("fault: the pool store gets a request very late");
                world.pool_store.delay_requests(1);
                self.until(world, 60_000, End::LateRequests);
            }
            19 | 20 => {
                let (from, to) =
                    (host_name(number), host_name((number + 1 + dice.below(2)) % world.hosts.len()));
                let bytes = u64::try_from(dice.below(200)).unwrap_or_default() << 20;
                world
                    .judge
                    .note(format_args!("fault: the link from {from} to {to} breaks after {bytes} bytes"));
                world.migrations.cut(&from, &to, bytes);
                self.until(world, 30_000, End::Link(from, to));
            }
            21 | 22 => {
                note("a guest's way out or in fails");
                let host = &world.hosts[number].host;
                match dice.below(6) {
                    0 => host.refuse_suspends(1),
                    1 => host.hang_suspends(1),
                    2 => host.lose_suspends(1),
                    3 => host.refuse_restores(1),
                    4 => host.hang_restores(1),
                    _ => host.lose_restores(1),
                }
            }
            _ => {
                world.judge.note("fault: the API server forgets its changes");
                world.api.compact();
            }
        }
    }

    /// Crashes the process that was armed, now that its write came.
    pub(super) async fn crash_armed(&mut self, world: &mut World) {
        let Some(name) = world.judge.disarm() else { return };
        let agent = world.hosts.iter().position(|side| side.agent.name == name).map(End::StartAgent);
        let controller = || world.controllers.iter().position(|one| one.name == name);
        if let Some(process) = agent.or_else(|| controller().map(End::StartController)) {
            self.crash(world, &process).await;
        }
    }

    /// Ends the faults that are due.
    pub(super) fn end_due(&mut self, world: &mut World) {
        let now = Instant::now();
        let (due, later): (Vec<_>, Vec<_>) = self.ends.drain(..).partition(|(at, _)| *at <= now);
        self.ends = later;
        due.into_iter().for_each(|(_, end)| end.carry_out(world));
    }

    /// Ends all faults, those included that wait for their moment.
    pub(super) fn end_all(&mut self, world: &mut World) {
        world.judge.note("faults end");
        self.ends.drain(..).for_each(|(_, end)| end.carry_out(world));
        world.judge.disarm();
        world.weather.calm_down();
        world.pool_store.end_faults();
        for side in &world.hosts {
            side.storage.refuse_next(0);
            side.storage.lose_answers(0);
            side.host.refuse_creates(0);
            side.host.hang_creates(0);
            side.host.lose_creates(0);
            side.host.refuse_suspends(0);
            side.host.hang_suspends(0);
            side.host.lose_suspends(0);
            side.host.refuse_restores(0);
            side.host.hang_restores(0);
            side.host.lose_restores(0);
            side.host.set_shutdown_time(Some(SHUTDOWN_TIME));
        }
        world.start_everything();
    }

    fn name_of(&self, world: &World, process: &End) -> String {
        match process {
            End::StartAgent(number) => world.hosts[*number].agent.name.clone(),
            End::StartController(number) => world.controllers[*number].name.clone(),
            End::Mend(name) => name.clone(),
            End::StorageOutage(_)
            | End::HypervisorOutage(_)
            | End::DeafGuests(_)
            | End::PoolStore
            | End::LateRequests
            | End::Link(..) => String::new(),
        }
    }

    fn until(&mut self, world: &World, longest: u64, end: End) {
        self.ends.push((Instant::now() + world.dice.millis(100..longest), end));
    }

    async fn crash(&mut self, world: &mut World, process: &End) {
        self.crash_for(world, process, 20_000).await;
    }

    async fn crash_for(&mut self, world: &mut World, process: &End, longest: u64) {
        let name = self.name_of(world, process);
        let judge = std::sync::Arc::clone(&world.judge);
        let Some(running) = world.process(&name).filter(|process| process.is_up()) else { return };
        running.crash(&judge).await;
        self.until(world, longest, process.clone());
    }

    /// A host goes down with everything on it, and comes back.
    async fn reboot(&mut self, world: &mut World, number: usize) {
        self.crash(world, &agent(number)).await;
        let side = &mut world.hosts[number];
        world.judge.note(format_args!("fault: {} reboots", side.name));
        side.rebooted = true;
        side.storage.reboot();
        if let Err(error) = side.host.reboot() {
            world.judge.violated("set-up", error);
        }
    }
}

fn host_name(number: usize) -> HostName {
    HostName::new(HOSTS[number]).expect("the hosts' names are host names")
}

fn agent(number: usize) -> End {
    End::StartAgent(number)
}

fn controller(number: usize) -> End {
    End::StartController(number)
}

impl End {
    fn carry_out(self, world: &mut World) {
        match self {
            Self::StartAgent(number) => world.start_agent(number),
            Self::StartController(number) => world.start_controller(number),
            Self::Mend(name) => {
                if let Some(process) = world.process(&name) {
                    process.wire.set_cut(false);
                }
            }
            Self::StorageOutage(number) => world.hosts[number].storage.set_outage(false),
            Self::HypervisorOutage(number) => world.hosts[number].host.set_unreachable(false),
            Self::DeafGuests(number) => world.hosts[number].host.set_shutdown_time(Some(SHUTDOWN_TIME)),
            Self::PoolStore => world.pool_store.end_faults(),
            Self::LateRequests => {
                world.judge.note("the late request arrives");
                world.pool_store.deliver_delayed();
            }
            Self::Link(from, to) => world.migrations.mend(&from, &to),
        }
    }
}

fn stop_a_guest(world: &World, number: usize) {
    let side = &world.hosts[number];
    let guests: Vec<_> =
        side.host.domains().unwrap_or_default().into_iter().filter(|domain| domain.token.is_some()).collect();
    if guests.is_empty() {
        return;
    }
    let guest = world.dice.pick(&guests);
    let reason = *world.dice.pick(&[StopReason::Poweroff, StopReason::Reboot, StopReason::Crash]);
    world.judge.note(format_args!("fault: guest {} stops: {reason:?}", guest.uuid));
    // A domain that is half built or being taken apart has no guest to stop.
    drop(side.host.stop_guest(guest.uuid, reason));
}
