//! In which store the records count: whether it is the one that the pool works with, or was made of a backup since.
//!
//! ```text
//!   /kubexen/epoch   number, cluster, after   written when the pool begins, and when an operator confirms a restore
//!
//!   the record names the cluster that answers   → current
//!   it names another, or none                   → frozen: the records may be old, nothing is decided by them
//! ```
//!
//! etcd gives a cluster that is made of a snapshot another identity if its token or its members' addresses differ
//! (`server/etcdserver/api/membership/cluster.go`, `genID`). The record is in the snapshot and names the cluster that it was
//! taken of, so whoever reads both in one answer knows that the store was restored, and needs no memory for that. What a
//! client remembers finds the rest: a store that is empty, one with a lower number than before, and a restore under the same
//! identity, which shows in a revision that went back or leapt. A store without the record is in its first epoch: one in which the
//! first epoch begins in another cluster took the place of it, and nobody has confirmed that.
//!
//! A store of another cluster may also be that of another pool. It follows the one that a client has worked with if its record says so:
//! it names that one, as in a backup, or has it as the cluster in which the records counted before (`after`), which who confirms a
//! restore writes.
//!
//! A store that has to be told that it is frozen gets a number that no store of this cluster had before, as each confirmed epoch
//! does. So what a host has said of it, by number and cluster, is of this very freeze: never of the time before, and never of an
//! earlier freeze.

use kubexen_mutants::Mutant;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use crate::names::Token;
use crate::protocol::{Compare, Transaction, Write};
use crate::record::{Entry, Key};

/// The only version of the value that there is so far.
const VERSION: u32 = 1;

/// The epoch of a store that has no record of it: agents may work with it before the controller comes to write that.
const FIRST: u64 = 1;

/// More revisions a second than an etcd can make: a store that has moved faster was restored with its revision raised.
const REVISIONS_PER_SECOND: u64 = 10_000;
/// What a store may have moved by at once, whatever the time.
const REVISIONS_AT_ONCE: u64 = 1_000_000;

/// The stretch of time through which the records have no gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch {
    /// Grows with each restore that is confirmed, and with each that is found out by memory alone. From 1.
    pub number: u64,
    /// The cluster in which the records count; none as long as they count in none.
    pub cluster: Option<u64>,
}

impl Epoch {
    /// Reads what [`fmt::Display`] shows.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (number, cluster) = text.split_once('-')?;
        Some(Self { number: number.parse().ok()?, cluster: u64::from_str_radix(cluster, 16).ok() })
    }

    /// The epoch after this one, in the same cluster.
    #[must_use]
    pub fn next(self) -> Self {
        Self { number: self.number + 1, ..self }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cluster {
            Some(cluster) => write!(f, "{}-{cluster:x}", self.number),
            None => write!(f, "{}-none", self.number),
        }
    }
}

/// How the store that answers stands to the records in it, by one linearizable read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The cluster that answered.
    pub cluster: u64,
    /// The epoch on record, if there is one.
    pub epoch: Option<Epoch>,
    /// Whether this client has seen that the store is not what it was, although the record does not say so.
    pub broken: bool,
    /// The cluster that this client has worked with, or another process of its boot, if another one answers whose record does not
    /// say that it follows that one, so that the one that was may be alive. Nothing that it says is heeded, and nothing is written
    /// to it.
    pub instead_of: Option<u64>,
    /// The cluster in which the records counted before they came into this one, by the record.
    pub after: Option<u64>,
    /// The revision at which the record was written; 0 if there is none.
    pub(crate) written: u64,
    /// The highest number that this client has seen; 0 if it has seen none.
    pub(crate) newest: u64,
    /// The cluster that this client has worked with.
    pub(crate) known: Option<u64>,
}

impl Standing {
    /// Whether the records count: nothing is known to have been restored.
    #[must_use]
    pub fn is_current(&self) -> bool {
        let is_itself = !self.broken && self.instead_of.is_none();
        let is_current = is_itself && (self.epoch.is_none() || self.names_itself());
        is_current || Mutant::FreezeIgnored.is_active()
    }

    /// Whether a record with this token is from before the epoch began: a larger token may have been given out since, in the store
    /// that was.
    #[must_use]
    pub fn predates(&self, token: Token) -> bool {
        token.0 < self.written
    }

    /// What this store is called by those who look at it: the number of its records, and the cluster that they are in.
    #[must_use]
    pub fn seen_as(&self) -> Epoch {
        Epoch { number: self.epoch.map_or(0, |epoch| epoch.number), cluster: Some(self.cluster) }
    }

    /// The epoch that the store is to say, so that its records count nowhere: with a number that nobody has seen so far, as far as
    /// this client knows.
    #[must_use]
    pub fn nowhere(&self) -> Epoch {
        Epoch { number: self.number().max(self.newest) + 1, cluster: None }
    }

    /// The number of the epoch on record, or that of the first epoch.
    #[must_use]
    pub fn number(&self) -> u64 {
        number(self.epoch)
    }

    /// Whether the record, if there is one, names the cluster that answered.
    #[must_use]
    pub fn names_itself(&self) -> bool {
        self.epoch.is_some_and(|epoch| epoch.cluster == Some(self.cluster))
    }

    /// This store, which is to say that it follows that cluster.
    #[must_use]
    pub fn following(self, cluster: u64) -> Self {
        Self { after: Some(cluster), known: Some(cluster), ..self }
    }

    /// Whether the record is as it was seen, by what a transaction that compared it has found.
    pub(crate) fn is_as_found(&self, found: &BTreeMap<Key, Entry>) -> bool {
        found.get(&Key::Epoch).map_or(0, |entry| entry.mod_revision) == self.written
    }

    /// The condition that the record is as it was seen.
    pub(crate) fn unchanged(&self) -> Compare {
        match self.written {
            0 => Compare::Absent(Key::Epoch),
            mod_revision => Compare::Unchanged { key: Key::Epoch, mod_revision },
        }
    }
}

/// The number of a store that has this on record.
fn number(epoch: Option<Epoch>) -> u64 {
    epoch.map_or(FIRST, |epoch| epoch.number)
}

#[derive(Serialize, Deserialize)]
struct EpochValue {
    version: u32,
    number: u64,
    /// In hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
    /// The cluster in which the records counted before, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after: Option<String>,
}

/// EPOCH: the records count in this epoch from now on, if the record is as it was seen.
#[must_use]
pub fn beginning(epoch: Epoch, seen: &Standing) -> Transaction {
    // Who says that it is frozen may be the only one that knows whose place it took.
    let after = match epoch.cluster {
        None => seen.known.filter(|known| *known != seen.cluster).or(seen.after).or(seen.known),
        Some(_) => seen.after,
    };
    let text = |cluster| format!("{cluster:x}");
    let (cluster, after) = (epoch.cluster.map(text), after.map(text));
    let value = EpochValue { version: VERSION, number: epoch.number, cluster, after };
    let value = serde_json::to_vec(&value).expect("strings and numbers always have a JSON form");
    Transaction { compares: vec![seen.unchanged()], writes: vec![Write::Put { key: Key::Epoch, value }] }
}

/// The epoch that an entry names, and the cluster in which the records counted before. One that cannot be read names no cluster: the
/// store is not trusted.
fn decode(entry: &Entry) -> (Epoch, Option<u64>) {
    let cluster_of = |text: String| u64::from_str_radix(&text, 16).ok();
    match serde_json::from_slice::<EpochValue>(&entry.value) {
        Ok(EpochValue { version: VERSION, number, cluster, after }) => {
            (Epoch { number, cluster: cluster.and_then(cluster_of) }, after.and_then(cluster_of))
        }
        Ok(EpochValue { version, .. }) => {
            tracing::error!(version, "the record of the epoch has a version that this program does not know");
            (Epoch { number: 0, cluster: None }, None)
        }
        Err(error) => {
            tracing::error!(%error, "the record of the epoch cannot be read");
            (Epoch { number: 0, cluster: None }, None)
        }
    }
}

/// What a client remembers of the store that it has worked with. Pure: it is told the time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Trust {
    known: Option<Known>,
    /// The store that was seen frozen last, since one was worked with.
    frozen: Option<Seen>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    seen: Seen,
    /// Whether there was a record that said so.
    recorded: bool,
    broken: bool,
    /// Whether it is what another process has worked with, perhaps at other endpoints.
    recalled: bool,
}

/// A store as it was seen.
#[derive(Clone, Copy, Debug)]
struct Seen {
    number: u64,
    cluster: u64,
    /// The newest revision of it.
    revision: u64,
    at: Instant,
}

impl Seen {
    /// Whether a store at this revision can be the one that was seen.
    fn goes_on(&self, revision: u64, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).max(Duration::from_secs(1)).as_secs();
        let most = passed.saturating_mul(REVISIONS_PER_SECOND).saturating_add(REVISIONS_AT_ONCE);
        revision >= self.revision && revision - self.revision <= most
    }
}

impl Trust {
    /// Another process of this boot has worked with a store that it saw as this. What this one knows itself counts for more.
    pub(crate) fn recall(&mut self, seen_as: Epoch, now: Instant) {
        let Some(cluster) = seen_as.cluster.filter(|_| self.known.is_none()) else { return };
        let recorded = seen_as.number > 0;
        let number = number(recorded.then_some(seen_as));
        let seen = Seen { number, cluster, revision: 0, at: now };
        self.known = Some(Known { seen, recorded, broken: false, recalled: true });
    }

    /// The cluster that was worked with before, if that may be alive beside the one that answers with this record, which does not say
    /// that it follows it. One that is empty, or frozen already, took its place for a client that worked with that one at these very
    /// endpoints.
    fn passed_over(&self, cluster: u64, epoch: Option<Epoch>, after: Option<u64>) -> Option<u64> {
        let known = self.known.filter(|known| known.seen.cluster != cluster)?;
        let follows =
            after == Some(known.seen.cluster) || self.frozen.is_some_and(|frozen| frozen.cluster == cluster);
        let is_at_work = epoch.is_some_and(|epoch| epoch.cluster == Some(cluster));
        (!follows && (known.recalled || is_at_work)).then_some(known.seen.cluster)
    }

    /// The cluster that was worked with last.
    pub(crate) fn cluster(&self) -> Option<u64> {
        self.known.map(|known| known.seen.cluster)
    }

    /// The newest revision that was seen of the store that answered last.
    pub(crate) fn revision(&self) -> u64 {
        self.frozen.or(self.known.map(|known| known.seen)).map_or(0, |seen| seen.revision)
    }

    /// Whether an answer is of the store that is known, which had at least the revision `floor` when the request was sent.
    pub(crate) fn admits(&mut self, cluster: u64, revision: u64, floor: u64, now: Instant) -> bool {
        let Some(known) = &mut self.known else { return false };
        let seen = &mut known.seen;
        // Answers overtake each other, so the newest revision says nothing of this one.
        let goes_on = seen.goes_on(revision.max(seen.revision), now) && revision >= floor;
        if known.recalled || known.broken || seen.cluster != cluster || !goes_on {
            return false;
        }
        (seen.revision, seen.at) = (seen.revision.max(revision), now);
        true
    }

    /// How the store stands whose record of the epoch was read, at this revision of it. `floor` as in [`Trust::admits`].
    pub(crate) fn look(
        &mut self,
        (cluster, revision): (u64, u64),
        entry: Option<&Entry>,
        floor: u64,
        now: Instant,
    ) -> Standing {
        let (epoch, before) = entry.map(decode).unzip();
        // A record that names another cluster is in a backup of that one.
        let after =
            epoch.and_then(|epoch| epoch.cluster).filter(|named| *named != cluster).or(before.flatten());
        let written = entry.map_or(0, |entry| entry.mod_revision);
        let (newest, known) = (self.newest(), self.cluster());
        let instead_of = self.passed_over(cluster, epoch, after);
        let mut standing =
            Standing { cluster, epoch, broken: false, instead_of, after, written, newest, known };
        if instead_of.is_some() {
            return standing;
        }
        // A revision says nothing of another cluster.
        let floor = if self.frozen.is_some_and(|frozen| frozen.cluster != cluster) { 0 } else { floor };
        let seen = Seen { number: number(epoch), cluster, revision, at: now };
        let overtaken = |known: Known| {
            known.seen.cluster == cluster && (floor..known.seen.revision).contains(&revision) && !known.broken
        };
        if self.known.is_some_and(overtaken) {
            // What is known by now is newer.
            return standing;
        }
        if !standing.is_current() {
            if let Some(known) = self.known.as_mut().filter(|known| known.seen.cluster == cluster) {
                // It has been made to say so: what it answers counts no more before the next epoch.
                known.broken = true;
            }
            standing.broken = self.is_another_freeze(seen, floor, now);
            return standing;
        }
        if self.frozen.is_some_and(|frozen| frozen.cluster == cluster && seen.number <= frozen.number) {
            // Nobody has confirmed it, and it does not say any more that it is frozen.
            standing.broken = true;
        }
        match &mut self.known {
            Some(known) if standing.broken || seen.number <= known.seen.number => {
                let same = seen.number == known.seen.number && cluster == known.seen.cluster && !known.broken;
                let lost = known.recorded && epoch.is_none();
                let newest = revision.max(known.seen.revision);
                let goes_on = known.recalled || known.seen.goes_on(newest, now) && revision >= floor;
                if same && !lost && goes_on && !standing.broken {
                    (known.recorded, known.recalled) = (epoch.is_some(), false);
                    (known.seen.revision, known.seen.at) = (newest, now);
                } else {
                    known.broken = true;
                    standing.broken = true;
                }
            }
            None if standing.broken => {}
            // The first that is known, or an operator has confirmed it since.
            Some(_) | None => {
                self.known = Some(Known { seen, recorded: epoch.is_some(), broken: false, recalled: false });
            }
        }
        if !standing.broken {
            self.frozen = None;
        }
        standing
    }

    /// The highest number that was seen.
    fn newest(&self) -> u64 {
        let known = self.known.map(|known| known.seen);
        known.into_iter().chain(self.frozen).map(|seen| seen.number).max().unwrap_or(0)
    }

    /// Whether a store that is frozen took the place of one that was frozen too, or of a later one, and does not say so: what hosts
    /// have said of that one is not true of this.
    fn is_another_freeze(&mut self, seen: Seen, floor: u64, now: Instant) -> bool {
        let known = self.known.filter(|known| known.seen.cluster == seen.cluster);
        // A record that cannot be read has no number.
        let went_below = |number: u64| (1..number).contains(&seen.number);
        let had_a_higher_number = known.is_some_and(|known| went_below(known.seen.number + 1));
        let Some(frozen) = self.frozen.filter(|frozen| frozen.cluster == seen.cluster) else {
            self.frozen = Some(seen);
            return had_a_higher_number;
        };
        if (floor..frozen.revision).contains(&seen.revision) {
            // What was seen since is newer.
            return false;
        }
        let newest = seen.revision.max(frozen.revision);
        let went_back = seen.revision < floor.min(frozen.revision) || went_below(frozen.number);
        let says_so = seen.number > frozen.number;
        let is_another = (went_back || !frozen.goes_on(newest, now)) && !says_so || had_a_higher_number;
        let number = seen.number.max(frozen.number);
        self.frozen =
            Some(Seen { number, revision: if is_another { seen.revision } else { newest }, ..seen });
        is_another
    }
}

#[cfg(test)]
mod tests;
