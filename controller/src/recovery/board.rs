//! What a term of leadership knows of dead hosts.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use kubexen_crds::{Host, HostRecovery};
use kubexen_ownership::{
    HostBoot, Owner, VmUid,
    liveness::{Brake, Proof, Roll},
};
use tokio::time::Instant;

use super::{
    decide::Halt,
    loss::{self, Loss},
    turns::Turns,
    votes::Votes,
};
use crate::view::is_ready;

/// What a term of leadership knows of dead hosts.
#[derive(Debug, Default)]
pub(crate) struct Board {
    /// When the store was read last; none before it was.
    pub(crate) read: Option<Instant>,
    /// Whether the store has not answered for so long that this is to be said.
    pub(crate) unreachable: bool,
    /// All hosts, as of then.
    pub(crate) roll: Roll,
    /// All owners, as of then or a little before.
    pub(crate) owners: BTreeMap<VmUid, Owner>,
    /// The epoch in which the store's records count, if they do.
    pub(crate) epoch: Option<String>,
    /// How many hosts the store outlives; none before its members were asked for.
    pub(crate) votes: Option<Votes>,
    /// Why nothing is to be done, if nothing is.
    pub(crate) halt: Option<Halt>,
    /// Why no end of a lease is taken for a death, if it is not.
    pub(crate) brake: Option<Brake>,
    /// Hosts that are silent and not fenced, sorted; under the brake those that count for it.
    pub(crate) silent: Vec<String>,
    /// Boots that were unfenced, or found not to be fenced, because an operator's word said so; by the host's name.
    pub(crate) unfenced: BTreeMap<String, HostBoot>,
    /// When each boot that is silent or fenced was seen, seen gone, and fenced.
    pub(crate) times: BTreeMap<HostBoot, Times>,
    /// Whose turn it is, for each dead boot.
    pub(crate) turns: Turns,
    /// How guests of each host come back, by the host's name.
    pub(crate) hosts: BTreeMap<String, HostRecovery>,
    /// What this process has given to other hosts.
    pub(crate) given: BTreeMap<VmUid, Given>,
}

/// When a boot died, in wall-clock time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    /// When its agent's last heartbeat at the API server was seen before that, if one was.
    pub(crate) last_sign: Option<Timestamp>,
    /// When it was first seen not to be.
    pub(crate) gone: Timestamp,
    /// When it was fenced, as far as is known.
    pub(crate) fenced: Option<Timestamp>,
}

/// A machine that was given to another host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    /// The boot that died.
    pub(crate) from: HostBoot,
    /// When that was fenced.
    pub(crate) fenced: Timestamp,
    /// The host that has it now.
    pub(crate) to: String,
    /// When it was given.
    pub(crate) at: Timestamp,
    /// Domains, by uid, that were taken away since, and that a mirror may still show.
    pub(crate) removed: BTreeSet<String>,
}

impl Board {
    /// What happened to a machine that is, or was last, on `host`, of which the object says this; none if nothing did, as far as
    /// is known.
    pub(crate) fn loss(&self, machine: VmUid, host: &str, object: Option<&Host>) -> Option<Loss> {
        self.read?;
        let status = object.and_then(|host| host.status.as_ref());
        let seen = loss::Seen {
            roll: &self.roll,
            owner: self.owners.get(&machine),
            host,
            host_ready: object.is_some_and(is_ready),
            host_boot: status.and_then(|status| status.boot_id.as_deref()),
            halt: self.halt.as_ref(),
            brake: self.brake.is_some(),
        };
        loss::loss(&seen)
    }

    /// Whether it is the turn of machines of this order that a boot had.
    pub(crate) fn is_turn(&self, boot: &HostBoot, order: i32) -> bool {
        self.turns.allows(boot, order)
    }

    /// Whether this boot of a host is fenced, and why.
    pub(crate) fn fenced(&self, host: &str, boot_id: &str) -> Option<Proof> {
        let mut fenced = self.roll.fenced.iter();
        let is = |boot: &HostBoot| boot.host.as_str() == host && boot.boot_id.as_str() == boot_id;
        fenced.find(|(boot, _)| is(boot)).map(|(_, record)| record.proof)
    }

    /// These owners were read. The read may be older than what this process has given to others since.
    pub(crate) fn renew_owners(&mut self, mut owners: BTreeMap<VmUid, Owner>) {
        for (machine, given) in &self.given {
            if owners.get(machine).is_some_and(|owner| owner.is(&given.from)) {
                owners.remove(machine);
                owners.extend(self.owners.remove(machine).map(|owner| (*machine, owner)));
            }
        }
        self.owners = owners;
    }

    /// A machine has another owner now.
    pub(crate) fn owned(&mut self, machine: VmUid, owner: Owner) {
        self.owners.insert(machine, owner);
    }

    /// A machine has no owner.
    pub(crate) fn unowned(&mut self, machine: VmUid) {
        self.owners.remove(&machine);
    }

    /// Domains of a machine that are gone although a mirror may still show them.
    pub(crate) fn is_removed(&self, machine: VmUid, domain_uid: &str) -> bool {
        self.given.get(&machine).is_some_and(|given| given.removed.contains(domain_uid))
    }
}
