//! The state of the modelled pool.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use kubexen_ownership::conformance::{host, vm};
use kubexen_ownership::liveness::{Rung, Timing, Vitals};
use kubexen_ownership::protocol::Transaction;
use kubexen_ownership::{HostBoot, LeaseId, VmUid};

use crate::clock::{Tick, instant};
use crate::store::Store;

pub const HOSTS: usize = 3;
pub const VMS: usize = 2;
pub const CONTROLLERS: usize = 2;
/// Boots of one host that the model knows names for.
pub const BOOTS: usize = 4;

static NAMES: LazyLock<Vec<Vec<HostBoot>>> = LazyLock::new(|| {
    let boots = |number| (0..BOOTS).map(move |boot| host(&format!("xen-{number}"), &format!("boot-{boot}")));
    (0..HOSTS).map(|number| boots(number).collect()).collect()
});
static UIDS: LazyLock<[VmUid; VMS]> = LazyLock::new(|| [vm("guarded"), vm("plain")]);

/// The virtual machine of this number. The first is guarded by whichever host runs it, the second never is.
pub fn uid(number: usize) -> VmUid {
    UIDS[number]
}

/// Whether hosts guard this virtual machine.
pub fn is_guarded(number: usize) -> bool {
    number == 0
}

/// The name of a boot.
pub fn name(host: usize, boot: usize) -> &'static HostBoot {
    &NAMES[host][boot]
}

/// What a host has of a virtual machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Guest {
    Absent,
    /// It executes, and writes to its disk under this token.
    Running(u64),
    /// The ladder has it stand still.
    Paused(u64),
    /// It is restored and paused, and waits for its COMMIT.
    Restored,
    /// It stands still to be handed over to this host.
    Suspended(u64, usize),
    /// It is destroyed, and its RELEASE is not settled.
    Releasing(u64),
}

/// A call of a verb whose transaction was sent, and whose answer has not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    Start,
    Guard(u64),
    /// The promise is taken back.
    Unguard(u64),
    Commit,
    Abort,
    Release,
}

/// What an agent knows of its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Held {
    pub lease: LeaseId,
    pub sent: Tick,
    pub ended: bool,
}

/// A host with its agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    pub boot: usize,
    /// Since when it is off, if it is.
    pub down: Option<Tick>,
    /// Whether its dom0 stands still: guests and Xen's watchdog go on.
    pub stalled: bool,
    /// Whether it reaches the store.
    pub connected: bool,
    pub held: Option<Held>,
    /// A renewal that the store has carried out, whose answer is under way.
    pub renewing: Option<(LeaseId, Tick)>,
    /// Whether it keeps the promise for what it guards: by its ladder, and by Xen's watchdog.
    pub guards: bool,
    pub guests: [Guest; VMS],
    pub calls: [Option<Call>; VMS],
}

impl Host {
    pub fn vitals(&self, timing: Timing) -> Vitals {
        let mut vitals = Vitals::new(timing);
        if let Some(held) = self.held {
            vitals.answered(held.lease, instant(held.sent));
            if held.ended {
                vitals.ended(held.lease);
            }
        }
        vitals
    }

    pub fn rung(&self, timing: Timing, now: Tick) -> Rung {
        self.vitals(timing).rung(instant(now))
    }

    pub fn is_up(&self) -> bool {
        self.down.is_none()
    }

    /// Whether its agent acts.
    pub fn acts(&self) -> bool {
        self.is_up() && !self.stalled
    }
}

/// A controller, as far as its judge remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Controller {
    /// When it first saw a boot gone that owns guests.
    pub gone: BTreeMap<HostBoot, Tick>,
    /// When it looked last.
    pub looked: Tick,
}

/// A transaction on its way to the store. What is lost is never delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parcel {
    pub transaction: Transaction,
    /// How often it may be delivered yet.
    pub copies: u8,
}

/// A write of a host that was reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LateWrite {
    pub vm: usize,
    pub token: u64,
    pub until: Tick,
}

/// What has gone wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Wrongs {
    /// An older token was written to a disk after a newer one.
    pub stale_write: bool,
    /// A token was given that is not greater than those before it.
    pub token_shrank: bool,
}

/// The pool at one moment. Two that can never be told apart count as one: see [`crate::sameness`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub now: Tick,
    pub faults: u8,
    pub outage: bool,
    /// Until when a deposed leader acknowledges renewals.
    pub deposed: Tick,
    pub store: Arc<Store>,
    pub wire: Vec<Parcel>,
    pub hosts: [Host; HOSTS],
    pub controllers: [Controller; CONTROLLERS],
    /// The greatest token that each virtual machine's disk has seen.
    pub disks: [u64; VMS],
    pub late: Vec<LateWrite>,
    /// The greatest token that each virtual machine had.
    pub tokens: [u64; VMS],
    pub wrongs: Wrongs,
    /// Whether tokens are told apart by more than their order.
    pub exact: bool,
}

impl State {
    pub fn me(&self, host: usize) -> &'static HostBoot {
        name(host, self.hosts[host].boot)
    }

    /// Whether the agent of this host reaches the store now.
    pub fn reaches(&self, host: usize) -> bool {
        self.hosts[host].acts() && self.hosts[host].connected && !self.outage
    }

    /// How many hosts execute this virtual machine.
    pub fn running(&self, vm: usize) -> usize {
        self.hosts.iter().filter(|host| matches!(host.guests[vm], Guest::Running(_))).count()
    }
}
