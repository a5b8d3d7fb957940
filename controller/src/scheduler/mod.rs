//! Finds hosts for the machines that wait for one.
//!
//! ```text
//!   VirtualMachine look ──ask──▶ pending ──┐                    ┌──▶ assigned ──▶ that machine looks again
//!                                          ├─▶ pass: place(…) ──┤
//!   any change of what could fit ──wake──▶ ┘                    └──▶ rejected, with the reason counted
//! ```
//!
//! # Guarantees
//! A pass takes all machines that wait, protected ones first, then the oldest, and is a function of what the mirrors show, of what
//! was assigned before, and of the plans that the failure reserve has kept; a host that was assigned counts as used until the machine's Domain is in the mirror. One pass at a
//! time; what changes meanwhile leads to another. Nothing is placed by a timer.
//!
//! # Caveats
//! It writes nothing. A machine's own look carries the answer out, so that a machine has one writer.

mod books;
mod rehearsal;
mod reserve;
mod room;
mod snapshot;
mod touched;

#[cfg(test)]
mod tests;

use crate::{
    context::Context,
    placement::{
        DiskNeed, NetworkNeed, Rejections, Request, Snapshot, Verdict, group_key, growth_overhead, place,
        place_keeping,
    },
    view::{View, uid},
    virtual_machine::{
        is_protected,
        references::{Resolved, Site, resolve_to_start},
    },
};
use kubexen_crds::{ByteQuantity, VirtualMachine, domain::Machine};
use kubexen_runtime::Key;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

pub use rehearsal::Rehearsal;
pub(crate) use reserve::{Standing, standing, wanted};
pub(crate) use room::{Growth, HostRoom, Reserved, domain_memory, room_on};
pub(crate) use snapshot::host_view;
pub(crate) use touched::Touched;

use books::Books;

/// How long changes are collected before a pass: a storm of machines becomes a few batches.
const WINDOW: Duration = Duration::from_millis(25);
/// How often at most a machine that fits nowhere says so in other words; counts change with every neighbour.
const REWORD: Duration = Duration::from_secs(5);

/// What the scheduler says of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It will be in the next pass.
    Waiting,
    /// This host is to run it; the room is kept.
    Assigned(String),
    /// No host fits, for these reasons; every pass tries again.
    Rejected(String),
}

/// The machines that wait for a host.
#[derive(Debug, Default)]
pub(crate) struct Scheduler {
    pending: Mutex<BTreeMap<Key, Pending>>,
    /// As they were when they were last looked at, so that the next time only what has changed is computed.
    books: Mutex<Books>,
    wake: Notify,
}

#[derive(Debug)]
struct Pending {
    uid: String,
    generation: Option<i64>,
    answer: Answer,
    /// What was assigned, to be counted as used; the disks in it by key.
    claim: Option<Claim>,
}

/// What an assigned machine will use.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Claim {
    pub(crate) host: String,
    pub(crate) request: Request,
    pub(crate) disks: BTreeSet<Key>,
    /// Of the disks those that are to be made: location and size in bytes.
    pub(crate) new_disks: BTreeMap<Key, (String, u64)>,
}

impl Scheduler {
    /// What is said of this machine as it is now; none if nobody has asked.
    pub(crate) fn answer(&self, key: &Key, machine: &VirtualMachine) -> Option<Answer> {
        let pending = self.lock();
        pending.get(key).filter(|entry| entry.is_about(machine)).map(|entry| entry.answer.clone())
    }

    /// Asks for a host for this machine as it is now.
    pub(crate) fn ask(&self, key: &Key, machine: &VirtualMachine) {
        let mut pending = self.lock();
        if pending.get(key).is_none_or(|entry| !entry.is_about(machine)) {
            let entry = Pending {
                uid: uid(machine).to_owned(),
                generation: machine.metadata.generation,
                answer: Answer::Waiting,
                claim: None,
            };
            pending.insert(key.clone(), entry);
        }
        drop(pending);
        self.wake();
    }

    /// The machine's Domain is in the mirror: its place is used, no longer kept.
    pub(crate) fn started(&self, key: &Key) {
        self.lock().remove(key);
    }

    /// The machine does not want a host any more.
    pub(crate) fn forget(&self, key: &Key) {
        let gone = self.lock().remove(key);
        if gone.is_some_and(|entry| entry.claim.is_some()) {
            self.wake();
        }
    }

    /// Forgets everything, at the beginning of a term.
    pub(crate) fn clear(&self) {
        self.lock().clear();
        *self.lock_books() = Books::default();
    }

    /// Something changed that may make room.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Whether a machine was assigned this host and its Domain is not in the mirror yet.
    pub(crate) fn claims_host(&self, host: &str) -> bool {
        self.lock().values().filter_map(|entry| entry.claim.as_ref()).any(|claim| claim.host == host)
    }

    /// Whether a machine that was assigned a host is about to use this disk.
    pub(crate) fn claims_disk(&self, disk: &Key) -> bool {
        self.lock().values().filter_map(|entry| entry.claim.as_ref()).any(|claim| claim.disks.contains(disk))
    }

    /// The pool as the mirrors show it now, with what was assigned. Not to be held across an await, nor beside other locks of this.
    pub(crate) fn books(&self, view: &View) -> MutexGuard<'_, Books> {
        let claims = self.claims();
        let mut books = self.lock_books();
        books.refresh(view, claims);
        books
    }

    fn lock_books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claims(&self) -> Vec<Claim> {
        self.lock().values().filter_map(|entry| entry.claim.clone()).collect()
    }

    /// Machines without an assignment.
    fn waiting(&self) -> Vec<Key> {
        self.lock().iter().filter(|(_, entry)| entry.claim.is_none()).map(|(key, _)| key.clone()).collect()
    }

    /// Notes the verdict; says whether the machine hears something new, and whether that was its first answer.
    fn note(&self, key: &Key, answer: Answer, claim: Option<Claim>) -> Option<News> {
        let mut pending = self.lock();
        let entry = pending.get_mut(key)?;
        if entry.answer == answer {
            return None;
        }
        let reworded = matches!((&entry.answer, &answer), (Answer::Rejected(_), Answer::Rejected(_)));
        entry.answer = answer;
        entry.claim = claim;
        Some(if reworded { News::Reworded } else { News::Decided })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum News {
    Decided,
    Reworded,
}

impl Pending {
    fn is_about(&self, machine: &VirtualMachine) -> bool {
        self.uid == uid(machine) && self.generation == machine.metadata.generation
    }
}

/// Runs passes whenever there is a reason to, for ever.
pub(crate) async fn run(context: &Context) {
    loop {
        context.scheduler.wake.notified().await;
        tokio::time::sleep(WINDOW).await;
        let mut left = pass(context, &context.scheduler.waiting());
        while !left.is_empty() {
            // The same task renews the leader's lease.
            tokio::task::yield_now().await;
            left = pass(context, &left);
        }
    }
}

/// One pass over machines that wait; returns those for which it had no time.
fn pass(context: &Context, waiting: &[Key]) -> Vec<Key> {
    let started = Instant::now();
    let scheduler = &context.scheduler;
    if waiting.is_empty() {
        context.metrics.pending(0);
        return Vec::new();
    }
    let mut batch = batch(context, waiting, &scheduler.claims());
    let requests: Vec<Request> = batch.iter().map(|candidate| candidate.request.clone()).collect();
    let mut books = scheduler.books(&context.view);
    books.doubt(requests.iter().filter(|request| request.protected).map(|request| request.key.clone()));
    let Books { pool, reserve, .. } = &mut *books;
    let verdicts = match reserve {
        Some(reserve) => place_keeping(pool, &requests, reserve),
        None => place(pool, &requests),
    };
    drop(books);
    let left = batch.split_off(verdicts.len());
    for (candidate, verdict) in batch.into_iter().zip(verdicts) {
        let key = candidate.request.key.clone();
        let news = match verdict {
            Verdict::Placed { host } => {
                let claim = candidate.claim(host.clone());
                scheduler.note(&key, Answer::Assigned(host), Some(claim))
            }
            Verdict::Unplaced(reasons) => scheduler.note(&key, Answer::Rejected(reasons.to_string()), None),
        };
        match news {
            Some(News::Decided) => context.queues.add(&context.queues.machines, key),
            Some(News::Reworded) => context.queues.add_after(&context.queues.machines, key, REWORD),
            None => {}
        }
    }
    context.metrics.placed(started.elapsed().as_secs_f64(), scheduler.waiting().len());
    left.into_iter().map(|candidate| candidate.request.key).collect()
}

/// The best host for a guest that is to leave its own while it runs, among those that `may_be`; or why none fits. The
/// guest has what `running` says, whatever its machine asks for meanwhile.
pub(crate) fn find_destination(
    context: &Context,
    machine: &VirtualMachine,
    resolved: &Resolved,
    running: &Machine,
    may_be: impl Fn(&str) -> bool,
) -> Verdict {
    let mut pool = pool(context);
    pool.hosts.retain(|host| may_be(&host.name));
    let request = request_to_move(machine, resolved, running);
    let verdict = place(&pool, std::slice::from_ref(&request)).pop();
    verdict.unwrap_or_else(|| Verdict::Unplaced(Rejections::default()))
}

/// The pool as the scheduler sees it now: what was assigned counts as used.
pub(crate) fn pool(context: &Context) -> Snapshot {
    context.scheduler.books(&context.view).pool.clone()
}

/// What a guest needs that is to leave its host while it runs. It has what `running` says, whatever its machine asks for
/// meanwhile.
pub(crate) fn request_to_move(machine: &VirtualMachine, resolved: &Resolved, running: &Machine) -> Request {
    Request {
        moves: true,
        memory: running.memory.bytes().unwrap_or(u64::MAX),
        vcpus: u32::try_from(running.cpus).unwrap_or(u32::MAX),
        growth: growth(running),
        boot: running.boot.type_,
        cpu_level: running.cpu_level.clone(),
        kernel: running.boot.kernel.as_ref().map(|kernel| kernel.name.clone()),
        boot_loader: running.boot.needs_boot_loader(),
        firmware: running.boot.firmware(),
        ..request_to_start(machine, resolved)
    }
}

/// What a machine needs that is to start.
pub(crate) fn request_to_start(machine: &VirtualMachine, resolved: &Resolved) -> Request {
    candidate(machine, resolved).request
}

fn growth(machine: &Machine) -> u64 {
    let vcpus = |count: i32| u32::try_from(count).unwrap_or(u32::MAX);
    let bytes = |memory: &ByteQuantity| memory.bytes().unwrap_or(u64::MAX);
    let (memory, max_memory) = (bytes(&machine.memory), bytes(&machine.max_memory));
    growth_overhead(memory, max_memory, vcpus(machine.cpus), vcpus(machine.max_cpus))
}

/// A machine in a pass.
struct Candidate {
    request: Request,
    disks: BTreeSet<Key>,
    new_disks: BTreeMap<Key, (String, u64)>,
}

impl Candidate {
    fn claim(self, host: String) -> Claim {
        let Self { request, disks, new_disks } = self;
        Claim { host, request, disks, new_disks }
    }
}

/// The machines that can be placed now, protected ones first, then the oldest. Of machines that name the same disk only the first is taken: the
/// others hear of it when its Domain is there.
fn batch(context: &Context, waiting: &[Key], claims: &[Claim]) -> Vec<Candidate> {
    let mut machines: Vec<_> = waiting.iter().filter_map(|key| context.view.machines.get(key)).collect();
    machines.sort_by_cached_key(|machine| {
        let created = machine.metadata.creation_timestamp.as_ref().map(|created| created.0);
        (!is_protected(machine), created, Key::of(&**machine))
    });
    let mut claimed: BTreeSet<Key> = claims.iter().flat_map(|claim| claim.disks.iter().cloned()).collect();
    let mut batch = Vec::with_capacity(machines.len());
    for machine in machines {
        // A problem is reported by the machine's own look, which every change of what it refers to causes.
        let Ok(resolved) = resolve_to_start(&context.view, &machine) else { continue };
        let mut candidate = candidate(&machine, &resolved);
        // One that asks for a host although it has a Domain has that on a dead host.
        let domains = context.view.domains_of_machine(&Key::of(&*machine));
        candidate.request.recovers =
            domains.iter().any(|domain| domain.spec.virtual_machine.uid == uid(&*machine));
        if candidate.disks.is_disjoint(&claimed) {
            claimed.extend(candidate.disks.iter().cloned());
            batch.push(candidate);
        }
    }
    batch
}

fn candidate(machine: &VirtualMachine, resolved: &Resolved) -> Candidate {
    let key = Key::of(machine);
    let mut new_disks = BTreeMap::new();
    let mut disks = BTreeSet::new();
    let mut needs = Vec::with_capacity(resolved.disks.len());
    for disk in &resolved.disks {
        let disk_key = Key::of(&*disk.disk);
        needs.push(match &disk.site {
            Site::On(host) => DiskNeed::On { disk: disk_key.name.clone(), host: host.clone() },
            Site::Shared { location, storage, selector } => DiskNeed::Shared {
                repository: disk.disk.spec.repository.clone(),
                location: location.clone(),
                storage: storage.clone(),
                selector: selector.clone(),
            },
            Site::New { location, shared, selector } => {
                let size = disk.disk.spec.size.bytes().unwrap_or(u64::MAX);
                new_disks.insert(disk_key.clone(), (location.clone(), size));
                DiskNeed::New {
                    repository: disk.disk.spec.repository.clone(),
                    location: location.clone(),
                    shared: *shared,
                    size,
                    selector: selector.clone(),
                }
            }
        });
        disks.insert(disk_key);
    }
    let placement = &machine.spec.placement;
    let anti_affinity = placement
        .anti_affinity
        .as_ref()
        .map(|wanted| (group_key(&key.namespace, &wanted.group), wanted.mode));
    let request = Request {
        memory: resolved.machine.memory.bytes().unwrap_or(u64::MAX),
        vcpus: u32::try_from(resolved.machine.cpus).unwrap_or(u32::MAX),
        growth: growth(&resolved.machine),
        boot: resolved.machine.boot.type_,
        cpu_level: resolved.machine.cpu_level.clone(),
        kernel: resolved.machine.boot.kernel.as_ref().map(|kernel| kernel.name.clone()),
        boot_loader: resolved.machine.boot.needs_boot_loader(),
        firmware: resolved.machine.boot.firmware(),
        selector: placement.host_selector.clone(),
        anti_affinity,
        networks: resolved
            .networks
            .iter()
            .map(|network| NetworkNeed {
                network: network.name.clone(),
                uplink: network.uplink.clone(),
                selector: network.selector.clone(),
            })
            .collect(),
        disks: needs,
        images: resolved.images.clone(),
        moves: false,
        protected: is_protected(machine),
        recovers: false,
        avoid: None,
        key,
    };
    Candidate { request, disks, new_disks }
}
