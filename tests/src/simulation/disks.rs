//! What disks see: who writes, and until when. They say whether a guest ran twice (I1), or two wrote to one disk at a time (I2);
//! nothing that an agent or a controller believes counts here. Whether somebody runs under an old token is judged of guests, whose
//! tokens are their own: two guests' tokens say nothing of which of them a disk belongs to.
//!
//! A guest that can run writes all the time to what it has at that moment. What a host had under way when it lost its power or was
//! reset lands up to eight seconds later, and what a suspended guest had under way a little later, unless somebody waits for that.
//! Each guest has its memory as one more disk, so that a guest without disks is judged too.

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

/// How long after a guest was suspended its writes may land on its disks.
pub(super) const LATE_AFTER_SUSPEND: Duration = Duration::from_millis(200);

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
    /// Whether the guest was suspended then.
    suspended: bool,
}

impl Span {
    /// As it is on devices, which take a little longer.
    fn on_devices(self) -> Self {
        let late = if self.suspended { LATE_AFTER_SUSPEND } else { Duration::ZERO };
        Self { until: self.until.and_then(|until| until.checked_add(late).ok()), ..self }
    }
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
        let Self { host, machine, token, from, until, .. } = self;
        write!(f, "{machine} on {host} under token {token} from {from}")?;
        until.map_or(Ok(()), |until| write!(f, " to {until}"))
    }
}

impl Disks {
    /// A guest has these devices on a host from now on.
    pub(super) fn give(&mut self, at: Timestamp, host: &str, machine: Uuid, devices: BTreeSet<PathBuf>) {
        self.given.push((at, host.to_owned(), machine, devices));
    }

    /// The devices that a guest has on a host, as far as was told.
    pub(super) fn of(&self, host: &str, machine: Uuid) -> Option<&BTreeSet<PathBuf>> {
        let mut given = self.given.iter().rev();
        given.find(|(_, on, of, _)| on == host && *of == machine).map(|(.., devices)| devices)
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
                for (device, span) in self.on_devices(&span) {
                    written.entry(Disk::Device(device)).or_default().push(span);
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
                // What runs on where it was suspended writes after what it had under way.
                let second =
                    second.filter(|second| (&first.host, first.machine) != (&second.host, second.machine));
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
                        suspended: false,
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
                        span.suspended = record.event == StartEvent::Suspend;
                    }
                }
            }
        }
        spans
    }

    /// The devices that a guest had in a span, each with the part of the span in which it had it.
    fn on_devices(&self, span: &Span) -> Vec<(PathBuf, Span)> {
        let mine =
            self.given.iter().filter(|(_, host, machine, _)| *host == span.host && *machine == span.machine);
        let mut given: Vec<_> = mine.map(|(at, .., devices)| (*at, devices)).collect();
        let before = given.iter().rposition(|(at, _)| *at <= span.from).unwrap_or_default();
        given.drain(..before);
        let mut parts: Vec<(PathBuf, Span)> = Vec::new();
        let mut open: BTreeMap<&PathBuf, Timestamp> = BTreeMap::new();
        let part = |device: &PathBuf, from: Timestamp, until: Option<Timestamp>| {
            let whole = span.clone().on_devices();
            (device.clone(), Span { from, until: until.or(whole.until), ..whole })
        };
        for (at, devices) in
            given.into_iter().take_while(|(at, _)| span.until.is_none_or(|until| *at < until))
        {
            let at = at.max(span.from);
            for (device, from) in open.extract_if(.., |device, _| !devices.contains(*device)) {
                parts.push(part(device, from, Some(at)));
            }
            for device in devices {
                open.entry(device).or_insert(at);
            }
        }
        parts.extend(open.into_iter().map(|(device, from)| part(device, from, None)));
        parts
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
    fn a_device_that_was_plugged_in_later_counts_from_then_and_until_it_is_let_go() {
        let device = || BTreeSet::from([PathBuf::from("/dev/san/one")]);
        let mut disks = Disks::default();
        disks.give(at(0), "a", Uuid::from_u128(1), BTreeSet::new());
        disks.give(at(3), "a", Uuid::from_u128(1), device());
        disks.give(at(6), "a", Uuid::from_u128(1), BTreeSet::new());
        let one = vec![record(StartEvent::Start, 1, 0), record(StartEvent::Stop, 1, 10)];
        for (begins, ends, promises) in [(1, 3, 0), (1, 4, 1), (5, 7, 1), (6, 7, 0)] {
            let mut disks = Disks { given: disks.given.clone(), losses: BTreeSet::new() };
            disks.give(at(begins), "b", Uuid::from_u128(2), device());
            let other = vec![record(StartEvent::Start, 2, begins), record(StartEvent::Stop, 2, ends)];
            let broken = broken(&disks, [("a", one.clone()), ("b", other)]);
            assert_eq!(broken, vec!["I2"; promises], "from {begins} to {ends}");
        }
    }

    #[test]
    fn what_a_suspended_guest_had_under_way_lands_a_little_later_unless_it_runs_on_there() {
        let device = || BTreeSet::from([PathBuf::from("/dev/san/one")]);
        let mut disks = Disks::default();
        disks.give(at(0), "a", Uuid::from_u128(1), device());
        disks.give(at(0), "b", Uuid::from_u128(1), device());
        let sent = vec![record(StartEvent::Start, 1, 0), record(StartEvent::Suspend, 1, 10)];
        let arrives = |second| vec![record(StartEvent::Arrive, 1, second)];
        assert_eq!(broken(&disks, [("a", sent.clone()), ("b", arrives(10))]), ["I2"]);
        assert_eq!(broken(&disks, [("a", sent.clone()), ("b", arrives(11))]), [""; 0]);
        let back = [sent, vec![record(StartEvent::Resume, 1, 10)]].concat();
        assert_eq!(broken(&disks, [("a", back), ("b", Vec::new())]), [""; 0]);
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
