//! What the pure core makes of one virtual machine's record and of the hosts that want it, as a thing to hold histories against.
//!
//! The verbs are the core's own. What is added is what a history does not tell: the revision of a write whose answer was lost
//! is known only once somebody has read it.

use std::collections::{BTreeMap, BTreeSet};

use kubexen_ownership::liveness::{Fence, Join};
use kubexen_ownership::protocol::{
    AbortVerb, CommitVerb, Compare, Decision, DiscardVerb, GuardVerb, ReleaseVerb, ResumeVerb, RunVerb,
    SaveVerb, StartVerb, StealVerb, Transaction, Verb, Write,
};
use kubexen_ownership::{
    Abort, Commit, Discard, DiskUid, Entry, Guard, HostBoot, Key, LeaseId, Owner, Phase, Release, Resume,
    Run, Save, Start, Steal, Token, VmUid,
};

/// What a client asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    Read,
    Start {
        me: HostBoot,
    },
    Release {
        me: HostBoot,
        token: Token,
    },
    Guard {
        me: HostBoot,
        token: Token,
        guarded: bool,
    },
    Commit {
        from: HostBoot,
        token: Token,
        to: HostBoot,
    },
    Abort {
        me: HostBoot,
        token: Token,
    },
    Steal {
        from: HostBoot,
        token: Token,
        to: HostBoot,
    },
    Save {
        me: HostBoot,
        token: Token,
        disk: DiskUid,
    },
    Resume {
        me: HostBoot,
        disk: DiskUid,
    },
    Run {
        me: HostBoot,
        token: Token,
    },
    Discard {
        disk: DiskUid,
    },
    Join {
        me: HostBoot,
    },
    /// The end of a lease.
    Leave {
        me: HostBoot,
        lease: LeaseId,
    },
    Fence {
        boot: HostBoot,
    },
}

/// What it was told.
#[derive(Clone, Debug, PartialEq)]
pub enum Ret {
    Read(Option<Owner>),
    Start(Start),
    Release(Release),
    Guard(Guard),
    Commit(Commit),
    Abort(Abort),
    Steal(Steal),
    Save(Save),
    Resume(Resume),
    Run(Run),
    Discard(Discard),
    Join(Join),
    Left,
    Fence(Fence),
}

/// Which hosts are live, and which are dead for good.
#[derive(Clone, Debug, Default, PartialEq, Hash)]
pub struct Hosts {
    pub live: BTreeSet<HostBoot>,
    pub fenced: BTreeSet<HostBoot>,
    /// The leases on which hosts are live, as far as anybody was told of them.
    pub leases: BTreeMap<HostBoot, LeaseId>,
}

impl Hosts {
    /// A host joins, and may have been told of its lease; whether it may.
    fn join(&mut self, me: &HostBoot, lease: Option<LeaseId>) -> bool {
        if self.fenced.contains(me) {
            return false;
        }
        self.live.insert(me.clone());
        match lease {
            Some(lease) => drop(self.leases.insert(me.clone(), lease)),
            None => drop(self.leases.remove(me)),
        }
        true
    }

    /// A lease ends, and with it the host's life, unless it has joined on another one since.
    fn end(&mut self, me: &HostBoot, lease: LeaseId) {
        if self.leases.get(me) == Some(&lease) {
            self.leases.remove(me);
            self.live.remove(me);
        }
    }

    /// A boot is fenced, if it is not already; whether it may be.
    fn fence(&mut self, boot: &HostBoot) -> bool {
        if self.live.contains(boot) {
            return false;
        }
        self.fenced.insert(boot.clone());
        true
    }
}

/// The record of one virtual machine.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct Record {
    vm: VmUid,
    hosts: Hosts,
    /// Its token is the greatest that it can be.
    owner: Option<Owner>,
    /// Its token is greater than this, and so is that of any later owner.
    above: Token,
}

/// What is known of the revision of a write.
#[derive(Clone, Copy)]
enum Revision {
    Exactly(Token),
    AtMost(Token),
}

impl Revision {
    const UNKNOWN: Self = Self::AtMost(Token(u64::MAX));
}

impl Record {
    /// Nobody owns it.
    pub fn new(vm: VmUid, hosts: Hosts) -> Self {
        Self { vm, hosts, owner: None, above: Token(0) }
    }

    /// Learns that the owner's token is this one; false if it cannot be.
    fn bind(&mut self, token: Token) -> bool {
        match &mut self.owner {
            Some(owner) if self.above < token && token <= owner.token => {
                owner.token = token;
                self.above = Token(token.0 - 1);
                true
            }
            Some(_) | None => false,
        }
    }

    /// Whether this host may be the owner under this token.
    ///
    /// That is all that a hand-over promises which asked again because its answer was lost: a host that was taken for dead may
    /// have handed the machine over to the very host that it was to be stolen for. And that host may have written since.
    fn has(&mut self, host: &HostBoot, token: Token) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.is(host)) && self.bind(token)
    }

    fn holds(&self, compare: &Compare) -> bool {
        let there = |key: &Key| match key {
            Key::Owner(vm) => *vm == self.vm && self.owner.is_some(),
            Key::Live(boot) => self.hosts.live.contains(boot),
            Key::Fenced(boot) => self.hosts.fenced.contains(boot),
            Key::Disk(_) | Key::Epoch => false,
        };
        match compare {
            Compare::Absent(key) => !there(key),
            Compare::Present(key) => there(key),
            Compare::Unchanged { key, mod_revision } => {
                *key == Key::Owner(self.vm)
                    && self.owner.as_ref().is_some_and(|owner| owner.token.0 == *mod_revision)
            }
        }
    }

    /// Executes a transaction at that revision; false if a condition does not hold, or the revision is an old one.
    fn execute(&mut self, transaction: &Transaction, revision: Revision) -> bool {
        if !transaction.compares.iter().all(|compare| self.holds(compare)) {
            return false;
        }
        // A write comes after the one that made the owner who was there.
        let lowest = if self.owner.is_some() { Token(self.above.0 + 1) } else { self.above };
        let (above, token) = match revision {
            Revision::Exactly(token) => (Token(token.0.saturating_sub(1)), token),
            Revision::AtMost(token) => (lowest, token),
        };
        if above < lowest || above >= token {
            return false;
        }
        self.above = above;
        for write in &transaction.writes {
            self.owner = match write {
                Write::Put { key: Key::Owner(_), value } => {
                    let entry = Entry { value: value.clone(), mod_revision: token.0 };
                    Some(entry.owner().expect("what the core writes can be read"))
                }
                Write::Delete(Key::Owner(_)) => None,
                Write::Put { .. } | Write::PutLeased { .. } | Write::Delete(_) => {
                    unreachable!("these verbs write owners alone")
                }
            };
        }
        true
    }

    /// Whether a verb may have been told this. If a transaction was needed, it is executed at `revision`.
    fn answers<V>(&mut self, verb: &V, told: &V::Answer, revision: Option<Revision>) -> bool
    where
        V: Verb,
        V::Answer: PartialEq,
    {
        match verb.decide(self.owner.as_ref(), false) {
            Decision::Answer(answer) => answer == *told,
            Decision::Execute(transaction) => {
                revision.is_some_and(|revision| self.execute(&transaction, revision))
            }
        }
    }

    /// Whether a verb may have been refused because of this owner.
    fn refuses<V>(&mut self, verb: &V, told: &V::Answer, owner: Option<&Owner>) -> bool
    where
        V: Verb,
        V::Answer: PartialEq,
    {
        owner.is_none_or(|owner| self.bind(owner.token)) && self.answers(verb, told, None)
    }

    /// Does what a verb may have done of which nothing was heard.
    fn try_verb<V: Verb>(&mut self, verb: &V) {
        match verb.decide(self.owner.as_ref(), false) {
            Decision::Answer(_) => {}
            Decision::Execute(transaction) => {
                self.execute(&transaction, Revision::UNKNOWN);
            }
        }
    }
}

impl Record {
    /// Does what an operation may have done of which nothing was heard.
    pub fn may_have_done(&mut self, op: &Op) {
        let vm = self.vm;
        match op {
            Op::Read => {}
            Op::Start { me } => self.try_verb(&StartVerb { vm, me }),
            Op::Release { me, token } => {
                self.bind(*token);
                self.try_verb(&ReleaseVerb { vm, me, token: *token });
            }
            Op::Guard { me, token, guarded } => {
                self.bind(*token);
                self.try_verb(&GuardVerb { vm, me, token: *token, guarded: *guarded });
            }
            Op::Commit { from, token, to } => {
                self.bind(*token);
                self.try_verb(&CommitVerb { vm, from, token: *token, to });
            }
            Op::Abort { me, token } => {
                self.bind(*token);
                self.try_verb(&AbortVerb { vm, me, token: *token });
            }
            Op::Steal { from, token, to } => {
                self.bind(*token);
                self.try_verb(&StealVerb { vm, from, token: *token, to });
            }
            Op::Save { me, token, disk } => {
                self.bind(*token);
                self.try_verb(&SaveVerb { vm, me, token: *token, disk: *disk });
            }
            Op::Resume { me, disk } => self.try_verb(&ResumeVerb { vm, me, disk: *disk }),
            Op::Run { me, token } => {
                self.bind(*token);
                self.try_verb(&RunVerb { vm, me, token: *token });
            }
            Op::Discard { disk } => self.try_verb(&DiscardVerb { vm, disk: *disk }),
            Op::Join { me } => {
                self.hosts.join(me, None);
            }
            Op::Leave { me, lease } => self.hosts.end(me, *lease),
            Op::Fence { boot } => {
                self.hosts.fence(boot);
            }
        }
    }

    /// Does an operation; whether this may be what it is told.
    pub fn tells(&mut self, op: &Op, ret: &Ret) -> bool {
        let vm = self.vm;
        match (op, ret) {
            (Op::Read, Ret::Read(None)) => self.owner.is_none(),
            (Op::Read, Ret::Read(Some(seen))) => self.bind(seen.token) && self.owner.as_ref() == Some(seen),
            (Op::Start { me }, Ret::Start(told)) => {
                let verb = StartVerb { vm, me };
                match told {
                    Start::Acquired(new) => self.answers(&verb, told, Some(Revision::Exactly(*new))),
                    Start::AlreadyMine(token) => self.bind(*token) && self.answers(&verb, told, None),
                    Start::Refused(owner) => self.refuses(&verb, told, Some(owner)),
                }
            }
            (Op::Release { me, token }, Ret::Release(told)) => {
                let verb = ReleaseVerb { vm, me, token: *token };
                match told {
                    Release::Released if self.bind(*token) => {
                        self.answers(&verb, told, Some(Revision::UNKNOWN))
                    }
                    // What it promises is that the token is gone, whoever ended it.
                    Release::Released => true,
                    Release::NotOwner(owner) => self.refuses(&verb, told, owner.as_ref()),
                }
            }
            (Op::Guard { me, token, guarded }, Ret::Guard(told)) => {
                let verb = GuardVerb { vm, me, token: *token, guarded: *guarded };
                match told {
                    Guard::Written(new) => {
                        self.bind(*token) && self.answers(&verb, told, Some(Revision::Exactly(*new)))
                    }
                    // This is about the host, whoever owns the machine by then.
                    Guard::NotLive => *guarded && !self.hosts.live.contains(me),
                    Guard::Refused(owner) => self.refuses(&verb, told, owner.as_ref()),
                }
            }
            (Op::Commit { from, token, to }, Ret::Commit(told)) => {
                let verb = CommitVerb { vm, from, token: *token, to };
                match told {
                    Commit::Committed(new) if self.bind(*token) => {
                        self.answers(&verb, told, Some(Revision::AtMost(*new)))
                    }
                    Commit::Committed(new) => self.has(to, *new),
                    Commit::Refused(owner) => self.refuses(&verb, told, owner.as_ref()),
                }
            }
            (Op::Abort { me, token }, Ret::Abort(told)) => {
                let verb = AbortVerb { vm, me, token: *token };
                match told {
                    Abort::Aborted(new) => {
                        self.bind(*token) && self.answers(&verb, told, Some(Revision::Exactly(*new)))
                    }
                    Abort::Refused(owner) => self.refuses(&verb, told, owner.as_ref()),
                }
            }
            (Op::Steal { from, token, to }, Ret::Steal(told)) => {
                let verb = StealVerb { vm, from, token: *token, to };
                let dead = self.hosts.fenced.contains(from) && !self.hosts.live.contains(from);
                match told {
                    Steal::Stolen(new) if self.bind(*token) => {
                        self.answers(&verb, told, Some(Revision::AtMost(*new)))
                    }
                    Steal::Stolen(new) => self.has(to, *new),
                    // These are about hosts, whoever owns the machine by then.
                    Steal::NotDead => !dead,
                    Steal::NobodyThere => dead && !self.hosts.live.contains(to),
                    Steal::Refused(owner) => self.refuses(&verb, told, owner.as_ref()),
                }
            }
            (Op::Save { me, token, disk }, Ret::Save(told)) => {
                let verb = SaveVerb { vm, me, token: *token, disk: *disk };
                match told {
                    Save::Saved(new) => {
                        self.bind(*token) && self.answers(&verb, told, Some(Revision::Exactly(*new)))
                    }
                    Save::Refused(owner) => self.refuses(&verb, told, owner.as_ref()),
                }
            }
            (Op::Resume { me, disk }, Ret::Resume(told)) => {
                let verb = ResumeVerb { vm, me, disk: *disk };
                let resumes = |owner: &Owner| owner.is(me) && owner.phase == Phase::Resuming(*disk);
                match told {
                    Resume::Resuming(token) if self.owner.as_ref().is_some_and(resumes) => {
                        self.bind(*token) && self.answers(&verb, told, None)
                    }
                    Resume::Resuming(new) => self.answers(&verb, told, Some(Revision::Exactly(*new))),
                    Resume::Refused(owner) => self.refuses(&verb, told, owner.as_ref()),
                }
            }
            (Op::Run { me, token }, Ret::Run(told)) => {
                let verb = RunVerb { vm, me, token: *token };
                match told {
                    Run::Running(new) if self.bind(*token) => {
                        self.answers(&verb, told, Some(Revision::Exactly(*new)))
                    }
                    Run::Running(new) => self.has(me, *new),
                    Run::Refused(owner) => self.refuses(&verb, told, owner.as_ref()),
                }
            }
            (Op::Discard { disk }, Ret::Discard(told)) => {
                let verb = DiscardVerb { vm, disk: *disk };
                match told {
                    Discard::Discarded => self.answers(&verb, told, Some(Revision::UNKNOWN)),
                    Discard::Refused(owner) => self.refuses(&verb, told, Some(owner)),
                }
            }
            (Op::Join { me }, Ret::Join(Join::Joined(lease))) => self.hosts.join(me, Some(*lease)),
            (Op::Join { me }, Ret::Join(Join::Fenced(_))) => self.hosts.fenced.contains(me),
            (Op::Leave { me, lease }, Ret::Left) => {
                self.hosts.end(me, *lease);
                true
            }
            (Op::Fence { boot }, Ret::Fence(Fence::Fenced(_))) => self.hosts.fence(boot),
            (Op::Fence { boot }, Ret::Fence(Fence::Alive)) => self.hosts.live.contains(boot),
            (_, _) => false,
        }
    }
}
