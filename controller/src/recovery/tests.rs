use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kubexen_crds::{
    Pool, PoolAvailability, PoolSpec, Profile, VirtualMachineStatus, condition,
    virtual_machine::Phase as Lights,
};
use kubexen_ownership::{
    BootId, DiskUid, HostBoot, HostName, Owner, Phase, Token, VmUid,
    liveness::{FenceRecord, Proof, Roll, Silence, Tolerance, Verdict},
};
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    board::{Board, Given},
    decide::{self, Halt, Observed, Policy, decide},
    epoch::Freeze,
    loss::{Hold, Loss, LossKind, Seen, loss},
    say::note,
    words::{Refusal, Words},
};

const VM: VmUid = VmUid(Uuid::from_u128(1));

pub(super) fn boot(host: &str, number: u32) -> HostBoot {
    let boot_id = BootId::new(format!("boot-{number}")).expect("a boot");
    HostBoot { host: HostName::new(host).expect("a name"), boot_id }
}

pub(super) fn owner(boot: &HostBoot, guarded: bool) -> Owner {
    let HostBoot { host, boot_id } = boot.clone();
    Owner { host, boot_id, phase: Phase::Running, guarded, token: Token(7), succeeds: None }
}

pub(super) fn roll(live: &[HostBoot], fenced: &[(HostBoot, Proof)]) -> Roll {
    let record = |proof| FenceRecord { by: "somebody".to_owned(), proof, revision: 1 };
    Roll {
        live: live.iter().map(|boot| (boot.clone(), String::new())).collect(),
        fenced: fenced.iter().map(|(boot, proof)| (boot.clone(), record(*proof))).collect(),
        ..Roll::default()
    }
}

fn seen<'a>(roll: &'a Roll, owner: Option<&'a Owner>) -> Seen<'a> {
    Seen { roll, owner, host: "a", host_ready: false, host_boot: None, halt: None, brake: false }
}

#[test]
fn only_what_a_fenced_boot_guarded_is_stolen_unless_all_of_its_guests_are_proven_to_have_stopped() {
    for (proof, guarded, stolen) in
        [(Proof::LeaseEnded, true, true), (Proof::LeaseEnded, false, false), (Proof::Confirmed, false, true)]
    {
        let roll = roll(&[boot("b", 1)], &[(boot("a", 1), proof)]);
        let owner = owner(&boot("a", 1), guarded);
        let kind = if stolen { LossKind::Owned(Token(7)) } else { LossKind::Held(Hold::NotGuarded) };
        let is_off = proof == Proof::Confirmed;
        let expected = Loss { from: boot("a", 1), kind, is_off, resuming: false, is_back: false };
        assert_eq!(loss(&seen(&roll, Some(&owner))), Some(expected), "{proof:?}, guarded: {guarded}");
    }
}

#[test]
fn nothing_is_lost_with_a_boot_that_is_not_fenced_whoever_is_silent() {
    let other = roll(&[boot("b", 1)], &[(boot("a", 2), Proof::Confirmed)]);
    for roll in [roll(&[], &[]), roll(&[boot("a", 1)], &[]), other] {
        assert_eq!(loss(&seen(&roll, Some(&owner(&boot("a", 1), true)))), None, "{roll:?}");
    }
}

#[test]
fn what_is_saved_is_never_stolen_and_what_is_being_resumed_is_as_such() {
    let roll = roll(&[boot("b", 1)], &[(boot("a", 1), Proof::Confirmed)]);
    let disk = DiskUid(Uuid::from_u128(9));
    let saved = Owner { phase: Phase::Saved(disk), ..owner(&boot("a", 1), true) };
    assert_eq!(loss(&seen(&roll, Some(&saved))), None);
    let resuming = Owner { phase: Phase::Resuming(disk), ..saved };
    assert!(loss(&seen(&roll, Some(&resuming))).is_some_and(|loss| loss.resuming));
}

#[test]
fn a_storm_holds_what_only_an_ended_lease_proves_and_a_disarmed_pool_holds_everything() {
    let owner = owner(&boot("a", 1), true);
    let kind = |proof, halt: Option<&Halt>| {
        let roll = roll(&[boot("b", 1)], &[(boot("a", 1), proof)]);
        let seen = Seen { halt, brake: true, ..seen(&roll, Some(&owner)) };
        loss(&seen).expect("it is lost").kind
    };
    assert_eq!(kind(Proof::LeaseEnded, None), LossKind::Held(Hold::StormBrake));
    assert_eq!(kind(Proof::Confirmed, None), LossKind::Owned(Token(7)));
    assert_eq!(kind(Proof::Confirmed, Some(&Halt::Disarmed)), LossKind::Held(Hold::Disarmed));
    let frozen = Halt::Frozen(freeze());
    assert_eq!(kind(Proof::Confirmed, Some(&frozen)), LossKind::Held(Hold::Frozen));
    let unowned = |proof| {
        let roll = roll(&[boot("b", 1)], &[(boot("a", 1), proof)]);
        loss(&Seen { brake: true, ..seen(&roll, None) }).expect("it is lost").kind
    };
    assert_eq!(unowned(Proof::LeaseEnded), LossKind::Held(Hold::StormBrake));
    assert_eq!(unowned(Proof::Confirmed), LossKind::Unowned);
}

#[test]
fn a_host_that_is_live_is_not_dead_for_the_record_of_an_earlier_boot() {
    let old = [(boot("a", 1), Proof::LeaseEnded)];
    let back = roll(&[boot("a", 2), boot("b", 1)], &old);
    // Its agent has reported at the later boot, and does not reach the API server now.
    let later = Seen { host_boot: Some("boot-2"), ..seen(&back, None) };
    assert_eq!(loss(&later), None);
    let unheard = Seen { host_boot: Some("boot-1"), ..later };
    assert!(
        loss(&unheard).is_some_and(|loss| loss.kind == LossKind::Unowned),
        "nobody owns it, and it may start"
    );
    let given = owner(&boot("b", 1), true);
    let given = loss(&Seen { owner: Some(&given), ..later }).expect("another host has it");
    assert!(given.is_back, "what is left there is its agent's to end");
}

#[test]
fn of_several_dead_boots_the_one_counts_that_the_hosts_agent_spoke_of_last() {
    let roll = roll(&[boot("b", 1)], &[(boot("a", 1), Proof::Confirmed), (boot("a", 2), Proof::Confirmed)]);
    for (host_boot, from) in [(None, 1), (Some("boot-2"), 2), (Some("boot-3"), 1)] {
        let loss = loss(&Seen { host_boot, ..seen(&roll, None) });
        assert_eq!(loss.map(|loss| loss.from), Some(boot("a", from)), "{host_boot:?}");
    }
}

#[test]
fn a_machine_that_was_given_to_a_live_host_goes_on_there() {
    let roll = roll(&[boot("b", 1)], &[(boot("a", 1), Proof::LeaseEnded)]);
    let given = owner(&boot("b", 1), false);
    let expected = Loss {
        from: boot("a", 1),
        kind: LossKind::Given(boot("b", 1)),
        is_off: false,
        resuming: false,
        is_back: false,
    };
    assert_eq!(loss(&seen(&roll, Some(&given))), Some(expected));
    let unowned =
        Loss { from: boot("a", 1), kind: LossKind::Unowned, is_off: false, resuming: false, is_back: false };
    assert_eq!(loss(&seen(&roll, None)), Some(unowned));
    let one_is_open = [(boot("a", 1), Proof::Confirmed), (boot("a", 2), Proof::LeaseEnded)];
    for (fenced, is_off) in [(&one_is_open[..1], true), (&one_is_open[..], false)] {
        let roll = self::roll(&[boot("b", 1)], fenced);
        assert_eq!(loss(&seen(&roll, None)).map(|loss| loss.is_off), Some(is_off), "{fenced:?}");
    }
    let on_its_host = Seen { host: "b", ..seen(&roll, Some(&given)) };
    assert_eq!(loss(&on_its_host), None);
}

#[test]
fn a_host_that_is_back_at_another_boot_takes_its_guests_over_itself() {
    let roll = roll(&[boot("a", 2), boot("b", 1)], &[(boot("a", 1), Proof::Confirmed)]);
    for owner in [Some(owner(&boot("a", 1), true)), None] {
        let back = Seen { host_ready: true, ..seen(&roll, owner.as_ref()) };
        assert_eq!(loss(&back), None, "{owner:?}");
    }
    let given = owner(&boot("b", 1), true);
    let back = Seen { host_ready: true, ..seen(&roll, Some(&given)) };
    let kind = LossKind::Given(boot("b", 1));
    assert_eq!(
        loss(&back),
        Some(Loss { from: boot("a", 1), kind, is_off: true, resuming: false, is_back: true }),
        "it is not its own any more"
    );
    // Its agent does not reach the API server.
    assert!(loss(&seen(&roll, Some(&owner(&boot("a", 1), true)))).is_some());
}

fn freeze() -> Freeze {
    Freeze { epoch: "2-7".to_owned(), waiting: Vec::new(), instead_of: None, follows: true }
}

struct Case {
    roll: Roll,
    owners: BTreeMap<VmUid, Owner>,
    due: Vec<(HostBoot, Proof)>,
    words: Words,
    spared: BTreeSet<HostBoot>,
    followed: BTreeSet<HostBoot>,
    ended: BTreeSet<VmUid>,
    over: BTreeSet<HostBoot>,
    halt: Option<Halt>,
}

fn case() -> Case {
    Case {
        roll: roll(&[], &[]),
        owners: BTreeMap::from([(VM, owner(&boot("a", 1), true))]),
        due: vec![(boot("a", 1), Proof::LeaseEnded)],
        words: Words::default(),
        spared: BTreeSet::new(),
        followed: BTreeSet::new(),
        ended: BTreeSet::new(),
        over: BTreeSet::new(),
        halt: None,
    }
}

fn plan(case: &Case) -> decide::Plan {
    let silent = case.due.iter().map(|(boot, proof)| Silence {
        boot: boot.clone(),
        gone: Instant::now(),
        due: Some(*proof),
    });
    let verdict = Verdict { silent: silent.collect(), ..Verdict::default() };
    decide(&Observed {
        roll: &case.roll,
        owners: &case.owners,
        verdict: &verdict,
        halt: case.halt.as_ref(),
        words: &case.words,
        spared: &case.spared,
        followed: &case.followed,
        ended: &case.ended,
        over: &case.over,
    })
}

#[test]
fn a_due_boot_is_fenced_unless_that_brings_nothing_back_or_nothing_is_to_be_done() {
    let fences = |case: &Case| !plan(case).fence.is_empty();
    assert!(fences(&case()));
    let owners = BTreeMap::from([(VM, owner(&boot("a", 1), false))]);
    assert!(!fences(&Case { owners: owners.clone(), ..case() }), "it guards nothing");
    let due = vec![(boot("a", 1), Proof::Confirmed)];
    assert!(fences(&Case { owners, due, ..case() }));
    assert!(!fences(&Case { spared: BTreeSet::from([boot("a", 1)]), ..case() }), "it was just unfenced");
    assert!(!fences(&Case { halt: Some(Halt::Disarmed), ..case() }));
    assert!(!fences(&Case { halt: Some(Halt::Frozen(freeze())), ..case() }));
}

#[test]
fn a_boot_is_unfenced_once_when_none_of_its_guests_is_to_be_stolen() {
    let asked = |owners, proof| Case {
        roll: roll(&[], &[(boot("a", 1), proof)]),
        owners,
        due: Vec::new(),
        words: Words { unfenced: BTreeSet::from([boot("a", 1)]), ..Words::default() },
        ..case()
    };
    let one = |guarded| BTreeMap::from([(VM, owner(&boot("a", 1), guarded))]);
    let free = asked(BTreeMap::new(), Proof::LeaseEnded);
    assert_eq!(plan(&free).unfence, [boot("a", 1)]);
    assert_eq!(plan(&asked(one(false), Proof::LeaseEnded)).unfence, [boot("a", 1)], "it may run on there");
    let refused = |case: &Case| plan(case).refused.into_iter().map(|refused| refused.why).collect::<Vec<_>>();
    for busy in [asked(one(true), Proof::LeaseEnded), asked(one(false), Proof::Confirmed)] {
        assert_eq!(refused(&busy), [Refusal::Guests(1)]);
        assert_eq!(plan(&busy).unfence, []);
        let ended = Case { ended: BTreeSet::from([VM]), ..busy };
        assert_eq!(plan(&ended).unfence, [boot("a", 1)], "the guest had ended before that");
    }
    let followed =
        Case { followed: BTreeSet::from([boot("a", 1)]), ..asked(BTreeMap::new(), Proof::LeaseEnded) };
    assert_eq!(plan(&followed), decide::Plan::default());
    let mut both = asked(BTreeMap::new(), Proof::Confirmed);
    both.words.called_dead.insert(boot("a", 1));
    assert_eq!(refused(&both), [Refusal::CalledDead]);
    let not_fenced = Case { roll: roll(&[], &[]), ..asked(one(true), Proof::LeaseEnded) };
    assert_eq!(plan(&not_fenced), decide::Plan { free: vec![boot("a", 1)], ..decide::Plan::default() });
    let disarmed = Case { halt: Some(Halt::Disarmed), ..free };
    assert_eq!(plan(&disarmed).unfence, [boot("a", 1)], "a disarmed pool can be put in order");
}

#[test]
fn a_fence_record_goes_when_its_boot_is_over_and_nobody_is_named_by_it() {
    let over = |owners| Case { owners, due: Vec::new(), over: BTreeSet::from([boot("a", 1)]), ..case() };
    assert_eq!(plan(&over(BTreeMap::new())).forget, [boot("a", 1)]);
    assert_eq!(plan(&over(BTreeMap::from([(VM, owner(&boot("a", 1), false))]))).forget, []);
    assert_eq!(plan(&Case { halt: Some(Halt::Disarmed), ..over(BTreeMap::new()) }).forget, []);
}

#[test]
fn the_silence_of_a_boot_is_judged_only_if_it_is_known_to_have_had_a_lease() {
    let judged = |guarded, roll: Roll, joined: &[HostBoot]| {
        let owners = BTreeMap::from([(VM, owner(&boot("a", 1), guarded))]);
        !decide::judged(&owners, &roll, &joined.iter().cloned().collect()).is_empty()
    };
    let quiet = roll(&[boot("b", 1)], &[]);
    assert!(!judged(false, quiet.clone(), &[]), "its agent may never have asked for a lease");
    assert!(judged(true, quiet.clone(), &[]));
    assert!(judged(false, quiet, &[boot("a", 1)]));
    assert!(judged(false, roll(&[boot("a", 2)], &[]), &[]));
}

#[test]
fn the_policy_is_read_from_the_pool() {
    let mut pool = Pool::new("default", PoolSpec::default());
    assert_eq!(Policy::of(Some(&pool), None), Policy::of(None, None));
    let policy = Policy::of(None, None);
    let tolerance = Tolerance { share: 30, least: 0 };
    assert_eq!((policy.grace, policy.tolerance, policy.halt), (Duration::from_secs(10), tolerance, None));
    pool.spec.availability = PoolAvailability {
        profile: Profile::Fast,
        disarmed: true,
        host_failures_to_tolerate: 2,
        ..PoolAvailability::default()
    };
    assert_eq!(Policy::of(Some(&pool), None).tolerance, Tolerance { least: 2, ..tolerance });
    let policy = Policy::of(Some(&pool), None);
    assert_eq!((policy.grace, policy.halt), (Duration::from_secs(4), Some(Halt::Disarmed)));
    assert_eq!(Policy::of(Some(&pool), Some(freeze())).halt, Some(Halt::Frozen(freeze())));
}

fn given() -> Given {
    Given {
        from: boot("a", 1),
        fenced: second(3),
        to: "b".to_owned(),
        at: second(4),
        removed: BTreeSet::new(),
    }
}

fn second(second: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(second).expect("a time")
}

#[test]
fn the_timeline_of_a_machine_is_written_once_it_is_given_and_ends_when_it_is_ready_there() {
    let mut status = VirtualMachineStatus { host: Some("b".to_owned()), ..VirtualMachineStatus::default() };
    assert_eq!(note(Some(&given()), &mut status, second(5)), [("steal", second(3), second(4))]);
    status.phase = Some(Lights::Running);
    assert_eq!(note(Some(&given()), &mut status, second(6)), []);
    let ready = vec![condition::Wanted::new("Ready", condition::State::True, "Running", "it runs")];
    status.conditions = condition::set(&[], ready, None, second(7));
    assert_eq!(note(Some(&given()), &mut status, second(7)), [("start", second(4), second(7))]);
    let recovery = status.recovery.clone().expect("it is there");
    assert_eq!((recovery.from.as_str(), recovery.to.as_str()), ("a", "b"));
    assert_eq!(recovery.started, Some(MicroTime(second(6))));
    assert_eq!(recovery.ready, Some(MicroTime(second(7))));
    for given in [Some(given()), None] {
        assert_eq!(note(given.as_ref(), &mut status, second(9)), [], "it is over");
        assert_eq!(status.recovery.as_ref(), Some(&recovery));
    }
}

#[test]
fn a_read_that_is_older_than_a_steal_does_not_undo_it_on_the_board() {
    let mut board = Board { given: BTreeMap::from([(VM, given())]), ..Board::default() };
    let stolen = Owner { token: Token(8), ..owner(&boot("b", 1), false) };
    board.owned(VM, stolen.clone());
    board.renew_owners(BTreeMap::from([(VM, owner(&boot("a", 1), true))]));
    assert_eq!(board.owners.get(&VM), Some(&stolen));
    let moved = Owner { token: Token(9), ..owner(&boot("c", 1), false) };
    board.renew_owners(BTreeMap::from([(VM, moved.clone())]));
    assert_eq!(board.owners.get(&VM), Some(&moved));
}
