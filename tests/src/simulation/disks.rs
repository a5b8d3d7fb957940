//! What disks see: who writes, and until when. They alone say whether a guest ran twice (I1), or wrote after another owner
//! did (I2); nothing that an agent or a controller believes counts here.
//!
//! A guest that can run writes all the time. What a host had under way when it lost its power or was reset lands up to eight
//! seconds later. Each guest has its memory as one more disk, so that a guest without disks is judged too.

use jiff::Timestamp;
use kubexen_node_agent::hypervisor::simulated::{StartEvent, StartRecord};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    time::Duration,
};
use uuid::Uuid;

/// How long after the loss of a host its writes may land.
pub(super) const LATE_WRITES: Duration = Duration::from_secs(8);

/// What is written to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Disk {
    Memory(Uuid),
    Device(PathBuf),
}

/// A guest writes to all of its disks from one moment to another.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    host: String,
    machine: Uuid,
    token: u64,
    from: Timestamp,
    /// None while it goes on.
    until: Option<Timestamp>,
}

/// What happened to disks, to be judged in the end.
#[derive(Debug, Default)]
pub(super) struct Disks {
    /// Which devices a guest was given on a host, and when.
    given: Vec<(Timestamp, String, Uuid, BTreeSet<PathBuf>)>,
    /// When which host lost its guests.
    losses: BTreeSet<(String, Timestamp)>,
}

/// Two wrote to one disk at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Overlap {
    disk: Disk,
    first: Span,
    second: Span,
}

impl Overlap {
    /// The promise that it breaks.
    pub(super) fn promise(&self) -> &'static str {
        match self.disk {
            Disk::Memory(_) => "I1",
            Disk::Device(_) => "I2",
        }
    }
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { disk, first, second } = self;
        match disk {
            Disk::Memory(_) => f.write_str("it runs twice")?,
            Disk::Device(path) => write!(f, "{} is written to by two", path.display())?,
        }
        write!(f, ": {second} begins, and {first} writes on")
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, machine, token, from, until } = self;
        write!(f, "{machine} on {host} under token {token} from {from}")?;
        until.map_or(Ok(()), |until| write!(f, " to {until}"))
    }
}

impl Disks {
    /// A guest has these devices on a host from now on.
    pub(super) fn give(&mut self, at: Timestamp, host: &str, machine: Uuid, devices: BTreeSet<PathBuf>) {
        self.given.push((at, host.to_owned(), machine, devices));
    }

    /// A host lost its power or was reset.
    pub(super) fn lose(&mut self, host: &str, at: Timestamp) {
        self.losses.insert((host.to_owned(), at));
    }

    /// Finds who wrote to one disk at one time, given what hosts say of when their domains could run.
    pub(super) fn overlaps(&self, logs: &BTreeMap<String, Vec<StartRecord>>) -> Vec<Overlap> {
        let mut written: BTreeMap<Disk, Vec<Span>> = BTreeMap::new();
        for (host, log) in logs {
            for span in self.spans(host, log) {
                for device in self.devices(&span) {
                    written.entry(Disk::Device(device.clone())).or_default().push(span.clone());
                }
                written.entry(Disk::Memory(span.machine)).or_default().push(span);
            }
        }
        let mut found = Vec::new();
        for (disk, mut spans) in written {
            spans.sort_by_key(|span| span.from);
            for (index, first) in spans.iter().enumerate() {
                let later = spans.iter().skip(index + 1);
                let second = later.filter(|second| first.until.is_none_or(|until| second.from < until));
                found.extend(second.map(|second| Overlap {
                    disk: disk.clone(),
                    first: first.clone(),
                    second: second.clone(),
                }));
            }
        }
        found
    }

    fn spans(&self, host: &str, log: &[StartRecord]) -> Vec<Span> {
        let mut spans: Vec<Span> = Vec::new();
        let mut open: BTreeMap<Uuid, usize> = BTreeMap::new();
        for record in log {
            match record.event {
                StartEvent::Start | StartEvent::Arrive | StartEvent::Resume => {
                    open.insert(record.uuid, spans.len());
                    spans.push(Span {
                        host: host.to_owned(),
                        machine: record.uuid,
                        token: record.token,
                        from: record.at,
                        until: None,
                    });
                }
                StartEvent::Claim => {
                    if let Some(span) = open.get(&record.uuid).and_then(|index| spans.get_mut(*index)) {
                        span.token = record.token;
                    }
                }
                StartEvent::Suspend | StartEvent::Stop => {
                    let lost = self.losses.contains(&(host.to_owned(), record.at));
                    let late = if lost { LATE_WRITES } else { Duration::ZERO };
                    if let Some(span) = open.remove(&record.uuid).and_then(|index| spans.get_mut(index)) {
                        span.until = record.at.checked_add(late).ok();
                    }
                }
            }
        }
        spans
    }

    /// The devices that a guest had at the beginning of a span.
    fn devices(&self, span: &Span) -> impl Iterator<Item = &PathBuf> {
        let given = self.given.iter().rev();
        let mut given = given.filter(|(at, host, machine, _)| {
            *at <= span.from && *host == span.host && *machine == span.machine
        });
        given.next().into_iter().flat_map(|(.., devices)| devices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn record(event: StartEvent, machine: u128, second: i64) -> StartRecord {
        StartRecord { event, uuid: Uuid::from_u128(machine), token: 1, at: at(second) }
    }

    fn broken(disks: &Disks, logs: [(&str, Vec<StartRecord>); 2]) -> Vec<&'static str> {
        let logs = logs.into_iter().map(|(host, log)| (host.to_owned(), log)).collect();
        disks.overlaps(&logs).iter().map(Overlap::promise).collect()
    }

    #[test]
    fn a_guest_on_two_hosts_at_one_time_breaks_a_promise() {
        let stopped = vec![record(StartEvent::Start, 1, 0), record(StartEvent::Stop, 1, 10)];
        let later = |second| vec![record(StartEvent::Start, 1, second)];
        let disks = Disks::default();
        assert_eq!(broken(&disks, [("a", stopped.clone()), ("b", later(10))]), [""; 0]);
        assert_eq!(broken(&disks, [("a", stopped), ("b", later(9))]), ["I1"]);
    }

    #[test]
    fn what_a_lost_host_had_under_way_lands_late() {
        let log = vec![record(StartEvent::Start, 1, 0), record(StartEvent::Stop, 1, 10)];
        let mut disks = Disks::default();
        disks.lose("a", at(10));
        let later = |second| vec![record(StartEvent::Start, 1, second)];
        assert_eq!(broken(&disks, [("a", log.clone()), ("b", later(18))]), [""; 0]);
        assert_eq!(broken(&disks, [("a", log), ("b", later(17))]), ["I1"]);
    }

    #[test]
    fn two_guests_on_one_device_break_a_promise() {
        let device = || BTreeSet::from([PathBuf::from("/dev/san/one")]);
        let mut disks = Disks::default();
        disks.give(at(0), "a", Uuid::from_u128(1), device());
        disks.give(at(5), "b", Uuid::from_u128(2), device());
        let one = vec![record(StartEvent::Start, 1, 0), record(StartEvent::Stop, 1, 10)];
        let other = |second| vec![record(StartEvent::Start, 2, second)];
        assert_eq!(broken(&disks, [("a", one.clone()), ("b", other(10))]), [""; 0]);
        assert_eq!(broken(&disks, [("a", one), ("b", other(6))]), ["I2"]);
    }
}
