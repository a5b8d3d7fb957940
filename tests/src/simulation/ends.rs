//! What lasts, and its end.

use super::world::{HOSTS, Process, World};
use kubexen_ownership::{Cut, HostName};
use std::{sync::atomic::Ordering, time::Duration};
use tokio::time::Instant;

/// How long guests of a host that listens take to power off.
const SHUTDOWN_TIME: Duration = Duration::from_secs(2);

/// The end of something that lasts.
#[derive(Clone, Debug)]
pub(super) enum End {
    Start(String),
    Resume(String),
    MendApi(String),
    MendStore(String),
    SlowStore(String),
    LateCreates(String),
    ResumeHost(usize),
    SlowApi(String),
    StorageFull(usize),
    Dom0Full(usize),
    StorageOutage(usize),
    HypervisorOutage(usize),
    DeafGuests(usize),
    StoreOutage,
    StoreFull,
    LateRequests,
    Link(HostName, HostName),
}

/// The ends of what lasts, and the process that is to crash at a write.
#[derive(Debug, Default)]
pub(super) struct Ends {
    pub(super) due: Vec<(Instant, End)>,
    /// How long the process will be away that crashes at its write.
    pub(super) away: Duration,
}

impl World {
    /// When something that lasts ends next.
    pub(super) fn next_end(&self) -> Option<Instant> {
        let due = self.ends.due.iter().map(|(at, _)| *at).chain(self.judge.next_due());
        due.chain(self.next_recovery()).min()
    }

    /// Whether nothing lasts but that hosts are off.
    pub(super) fn nothing_lasts(&self) -> bool {
        let is_off = |end: &End| matches!(end, End::Start(process) if process.starts_with("agent-"));
        self.ends.due.iter().all(|(_, end)| is_off(end))
    }

    /// Ends all faults, those included that wait for their moment.
    pub(super) fn end_faults(&mut self) {
        self.judge.note("faults end");
        self.are_faults_over = true;
        std::mem::take(&mut self.ends.due).into_iter().for_each(|(_, end)| self.end(end));
        self.judge.disarm();
        self.weather.calm_down();
        self.pool_store.end_faults();
        self.pool_store.set_clock(0);
        self.standstill.set(None);
        self.migrations.set_latency(Duration::ZERO);
        self.migrations.set_rate(None);
        for process in self.hosts.iter().map(|side| &side.agent).chain(&self.controllers) {
            process.ahead.store(0, Ordering::Relaxed);
            process.seam.end_at_call(None);
            process.store.set_own_clock(None);
        }
        for side in &self.hosts {
            side.failing.clear();
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
        self.start_everything();
    }

    pub(super) fn until(&mut self, time: Duration, end: End) {
        if let End::Start(process) = &end {
            // A process that was to start sooner does not start while its host is off.
            self.ends.due.retain(|(_, other)| !matches!(other, End::Start(other) if other == process));
        }
        self.ends.due.push((Instant::now() + time, end));
    }

    pub(super) fn end(&mut self, end: End) {
        match end {
            End::Start(process) => {
                let agent = self.hosts.iter().position(|side| side.agent.name == process);
                let controller = self.controllers.iter().position(|one| one.name == process);
                if let Some(number) = agent {
                    self.start_agent(number);
                }
                if let Some(number) = controller {
                    self.start_controller(number);
                }
            }
            End::Resume(process) => {
                let effects = self.effects.clone();
                self.with_process(&process, |process| {
                    if process.gate.set_shut(false) {
                        effects.had("pause");
                    }
                });
            }
            End::ResumeHost(number) => self.set_dom0_stopped(number, false),
            End::SlowApi(process) => {
                self.with_process(&process, |process| process.wire.set_slow(Duration::ZERO));
            }
            End::StorageFull(number) => self.hosts[number].storage.set_full(false),
            End::Dom0Full(number) => self.hosts[number].seeds.set_full(false),
            End::MendApi(process) => self.with_process(&process, |process| process.wire.set_cut(None)),
            End::MendStore(process) => {
                self.with_process(&process, |process| process.store.set_cut(Cut::None))
            }
            End::LateCreates(process) => {
                self.with_process(&process, |process| process.wire.delay_creates(None));
            }
            End::SlowStore(process) => {
                self.with_process(&process, |process| process.store.set_latency(Duration::ZERO));
            }
            End::StorageOutage(number) => self.hosts[number].storage.set_outage(false),
            End::HypervisorOutage(number) => self.hosts[number].host.set_unreachable(false),
            End::DeafGuests(number) => self.hosts[number].host.set_shutdown_time(Some(SHUTDOWN_TIME)),
            End::StoreOutage => self.pool_store.set_outage(false),
            End::StoreFull => self.pool_store.set_full(false),
            End::LateRequests => {
                self.judge.note("the late request arrives");
                self.is_late = true;
                self.pool_store.deliver_delayed();
            }
            End::Link(from, to) => self.migrations.mend(&from, &to),
        }
    }

    /// Stops a host's dom0, or lets it go on: other hosts get no answer from its network meanwhile.
    pub(super) fn set_dom0_stopped(&mut self, number: usize, stopped: bool) {
        let side = &self.hosts[number];
        side.host.set_stopped(stopped);
        if side.agent.gate.set_shut(stopped) {
            self.effects.had("pause-host");
        }
        for other in HOSTS.into_iter().filter(|other| *other != side.name) {
            let (Ok(one), Ok(other)) = (HostName::new(side.name), HostName::new(other)) else { continue };
            for (from, to) in [(&one, &other), (&other, &one)] {
                if stopped {
                    self.migrations.cut(from, to, 0);
                } else {
                    self.migrations.mend(from, to);
                }
            }
        }
    }

    pub(super) fn with_process(&mut self, name: &str, work: impl FnOnce(&mut Process)) {
        if let Some(process) = self.process(name) {
            work(process);
        }
    }
}
