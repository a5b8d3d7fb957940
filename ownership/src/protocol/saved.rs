//! SAVE, RESUME, RUN and DISCARD: a guest leaves its host's memory for a disk, and comes back from it.
//!
//! The record stays while the guest is nothing but what a disk holds, so nobody else can start it afresh. Who resumes it
//! owns it first, and has it run only after [`RunVerb`] has taken the disk's content out of use: a guest is never resumed
//! twice, and what was saved stays good until then.

use super::{Decision, Transaction, Verb, Write, put, unchanged};
use crate::disk::DiskUid;
use crate::names::{HostBoot, Owner, Phase, Token, VmUid};
use crate::record::{Key, encode};
use crate::store::{Discard, Resume, Run, Save};

/// SAVE: all of `vm`, which `me` owns under `token`, is in the disk.
#[derive(Clone, Debug)]
pub struct SaveVerb<'a> {
    /// The virtual machine.
    pub vm: VmUid,
    /// Who owns it.
    pub me: &'a HostBoot,
    /// The ownership under which it ran, or was to be resumed.
    pub token: Token,
    /// Where it is.
    pub disk: DiskUid,
}

impl Verb for SaveVerb<'_> {
    type Answer = Save;

    fn name(&self) -> &'static str {
        "save"
    }

    fn vm(&self) -> VmUid {
        self.vm
    }

    fn decide(&self, owner: Option<&Owner>, unresolved: bool) -> Decision<Save> {
        let saved = Phase::Saved(self.disk);
        match owner {
            Some(owner) if owner.token == self.token && self.may_save(owner) => {
                put(self.vm, encode(self.me, saved, false, None), vec![unchanged(self.vm, owner)])
            }
            // The record was the caller's when the lost transaction was sent, so it was saved since.
            Some(owner) if unresolved && owner.phase == saved && owner.is(self.me) => {
                Decision::Answer(Save::Saved(owner.token))
            }
            None | Some(_) => Decision::Answer(Save::Refused(owner.cloned())),
        }
    }

    fn executed(&self, revision: u64) -> Save {
        Save::Saved(Token(revision))
    }
}

impl SaveVerb<'_> {
    fn may_save(&self, owner: &Owner) -> bool {
        match owner.phase {
            // What ran at an earlier boot is gone.
            Phase::Running => owner.is(self.me),
            // What was to be resumed at an earlier boot is still in the disk.
            Phase::Resuming(disk) => disk == self.disk && owner.host == self.me.host,
            Phase::Saved(_) => false,
        }
    }
}

/// RESUME: `me` wants to resume `vm` from the disk that it was saved to.
#[derive(Clone, Debug)]
pub struct ResumeVerb<'a> {
    /// The virtual machine.
    pub vm: VmUid,
    /// Who wants to run it.
    pub me: &'a HostBoot,
    /// Where it is.
    pub disk: DiskUid,
}

impl Verb for ResumeVerb<'_> {
    type Answer = Resume;

    fn name(&self) -> &'static str {
        "resume"
    }

    fn vm(&self) -> VmUid {
        self.vm
    }

    fn decide(&self, owner: Option<&Owner>, _unresolved: bool) -> Decision<Resume> {
        let resuming = Phase::Resuming(self.disk);
        match owner {
            Some(owner) if owner.phase == resuming && owner.is(self.me) => {
                Decision::Answer(Resume::Resuming(owner.token))
            }
            Some(owner)
                if owner.phase == Phase::Saved(self.disk)
                    || (owner.phase == resuming && owner.host == self.me.host) =>
            {
                put(self.vm, encode(self.me, resuming, false, None), vec![unchanged(self.vm, owner)])
            }
            None | Some(_) => Decision::Answer(Resume::Refused(owner.cloned())),
        }
    }

    fn executed(&self, revision: u64) -> Resume {
        Resume::Resuming(Token(revision))
    }
}

/// RUN: `vm`, which `me` resumes under `token`, is whole again and about to run.
#[derive(Clone, Debug)]
pub struct RunVerb<'a> {
    /// The virtual machine.
    pub vm: VmUid,
    /// Who resumes it.
    pub me: &'a HostBoot,
    /// The ownership under which it is resumed.
    pub token: Token,
}

impl Verb for RunVerb<'_> {
    type Answer = Run;

    fn name(&self) -> &'static str {
        "run"
    }

    fn vm(&self) -> VmUid {
        self.vm
    }

    fn decide(&self, owner: Option<&Owner>, unresolved: bool) -> Decision<Run> {
        match owner.map(|owner| (owner, owner.phase)) {
            Some((owner, Phase::Resuming(_))) if owner.token == self.token && owner.is(self.me) => {
                put(self.vm, encode(self.me, Phase::Running, false, None), vec![unchanged(self.vm, owner)])
            }
            // The record was being resumed when the lost transaction was sent, so it runs since.
            Some((owner, Phase::Running)) if unresolved && owner.is(self.me) => {
                Decision::Answer(Run::Running(owner.token))
            }
            None | Some(_) => Decision::Answer(Run::Refused(owner.cloned())),
        }
    }

    fn executed(&self, revision: u64) -> Run {
        Run::Running(Token(revision))
    }
}

/// DISCARD: what the disk holds of `vm` is given up.
#[derive(Clone, Debug)]
pub struct DiscardVerb {
    /// The virtual machine.
    pub vm: VmUid,
    /// The disk, whose content is about to be deleted.
    pub disk: DiskUid,
}

impl Verb for DiscardVerb {
    type Answer = Discard;

    fn name(&self) -> &'static str {
        "discard"
    }

    fn vm(&self) -> VmUid {
        self.vm
    }

    fn decide(&self, owner: Option<&Owner>, _unresolved: bool) -> Decision<Discard> {
        match owner.map(|owner| (owner, owner.phase)) {
            Some((owner, Phase::Saved(disk))) if disk == self.disk => {
                let condition = unchanged(self.vm, owner);
                let write = Write::Delete(Key::Owner(self.vm));
                Decision::Execute(Transaction { compares: vec![condition], writes: vec![write] })
            }
            Some((owner, Phase::Resuming(disk))) if disk == self.disk => {
                Decision::Answer(Discard::Refused(owner.clone()))
            }
            None | Some(_) => Decision::Answer(Discard::Discarded),
        }
    }

    fn executed(&self, _revision: u64) -> Discard {
        Discard::Discarded
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Compare;
    use crate::protocol::samples::{KEY, VM, at, owner};
    use uuid::Uuid;

    const DISK: DiskUid = DiskUid(Uuid::from_u128(9));
    const OTHER: DiskUid = DiskUid(Uuid::from_u128(10));

    fn in_phase(phase: Phase, host: &str, boot: &str, token: u64) -> Owner {
        Owner { phase, ..owner(host, boot, token) }
    }

    fn writes<A>(me: &HostBoot, phase: Phase) -> Decision<A> {
        Decision::Execute(Transaction {
            compares: vec![Compare::Unchanged { key: KEY, mod_revision: 7 }],
            writes: vec![Write::Put { key: KEY, value: encode(me, phase, false, None) }],
        })
    }

    #[test]
    fn save_is_for_who_runs_the_guest_at_this_boot_or_was_to_resume_it_from_this_disk() {
        let me = at("xen-1", "boot-2");
        let save = SaveVerb { vm: VM, me: &me, token: Token(7), disk: DISK };
        for good in [
            in_phase(Phase::Running, "xen-1", "boot-2", 7),
            in_phase(Phase::Resuming(DISK), "xen-1", "boot-2", 7),
            in_phase(Phase::Resuming(DISK), "xen-1", "boot-1", 7),
        ] {
            assert_eq!(save.decide(Some(&good), false), writes(&me, Phase::Saved(DISK)), "{good:?}");
        }
        for stranger in [
            in_phase(Phase::Running, "xen-1", "boot-1", 7),
            in_phase(Phase::Running, "xen-1", "boot-2", 8),
            in_phase(Phase::Running, "xen-2", "boot-2", 7),
            in_phase(Phase::Resuming(OTHER), "xen-1", "boot-2", 7),
            in_phase(Phase::Saved(OTHER), "xen-1", "boot-2", 7),
        ] {
            for unresolved in [false, true] {
                let refused = Decision::Answer(Save::Refused(Some(stranger.clone())));
                assert_eq!(save.decide(Some(&stranger), unresolved), refused);
            }
        }
        let saved = in_phase(Phase::Saved(DISK), "xen-1", "boot-2", 8);
        assert_eq!(save.decide(Some(&saved), true), Decision::Answer(Save::Saved(Token(8))));
        assert_eq!(save.decide(None, true), Decision::Answer(Save::Refused(None)));
    }

    #[test]
    fn resume_takes_what_is_saved_in_this_disk_whoever_saved_it_and_nothing_else() {
        let me = at("xen-1", "boot-2");
        let resume = ResumeVerb { vm: VM, me: &me, disk: DISK };
        for good in [
            in_phase(Phase::Saved(DISK), "xen-2", "boot-1", 7),
            in_phase(Phase::Saved(DISK), "xen-1", "boot-2", 7),
            in_phase(Phase::Resuming(DISK), "xen-1", "boot-1", 7),
        ] {
            assert_eq!(resume.decide(Some(&good), false), writes(&me, Phase::Resuming(DISK)), "{good:?}");
        }
        for stranger in [
            in_phase(Phase::Running, "xen-1", "boot-2", 7),
            in_phase(Phase::Saved(OTHER), "xen-1", "boot-2", 7),
            in_phase(Phase::Resuming(DISK), "xen-2", "boot-2", 7),
        ] {
            let refused = Decision::Answer(Resume::Refused(Some(stranger.clone())));
            assert_eq!(resume.decide(Some(&stranger), false), refused);
        }
        let mine = in_phase(Phase::Resuming(DISK), "xen-1", "boot-2", 8);
        assert_eq!(resume.decide(Some(&mine), false), Decision::Answer(Resume::Resuming(Token(8))));
        assert_eq!(resume.decide(None, false), Decision::Answer(Resume::Refused(None)));
    }

    #[test]
    fn run_is_for_who_resumes_the_guest_under_this_token() {
        let me = at("xen-1", "boot-2");
        let run = RunVerb { vm: VM, me: &me, token: Token(7) };
        let resuming = in_phase(Phase::Resuming(DISK), "xen-1", "boot-2", 7);
        assert_eq!(run.decide(Some(&resuming), false), writes(&me, Phase::Running));
        let runs = owner("xen-1", "boot-2", 8);
        assert_eq!(run.decide(Some(&runs), true), Decision::Answer(Run::Running(Token(8))));
        for stranger in [
            runs.clone(),
            in_phase(Phase::Resuming(DISK), "xen-1", "boot-2", 8),
            in_phase(Phase::Resuming(DISK), "xen-1", "boot-1", 7),
            in_phase(Phase::Saved(DISK), "xen-1", "boot-2", 7),
        ] {
            let refused = Decision::Answer(Run::Refused(Some(stranger.clone())));
            assert_eq!(run.decide(Some(&stranger), false), refused);
        }
    }

    #[test]
    fn discard_ends_what_is_saved_in_this_disk_and_leaves_all_else_alone() {
        let discard = DiscardVerb { vm: VM, disk: DISK };
        let saved = in_phase(Phase::Saved(DISK), "xen-2", "boot-1", 7);
        let delete = Decision::Execute(Transaction {
            compares: vec![Compare::Unchanged { key: KEY, mod_revision: 7 }],
            writes: vec![Write::Delete(KEY)],
        });
        assert_eq!(discard.decide(Some(&saved), false), delete);
        let resuming = in_phase(Phase::Resuming(DISK), "xen-2", "boot-1", 7);
        let refused = Decision::Answer(Discard::Refused(resuming.clone()));
        assert_eq!(discard.decide(Some(&resuming), false), refused);
        for other in [owner("xen-1", "boot-1", 7), in_phase(Phase::Saved(OTHER), "xen-1", "boot-1", 7)] {
            assert_eq!(discard.decide(Some(&other), false), Decision::Answer(Discard::Discarded));
        }
        assert_eq!(discard.decide(None, false), Decision::Answer(Discard::Discarded));
    }
}
