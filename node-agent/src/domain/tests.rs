//! The policy of domains, by tables and by walking a model host from arbitrary states.

use super::{
    decide::{AfterStop, DestroyReason, Plan, Waiting, backoff, decide},
    live::{AskedDisk, Live, LiveStep},
    observe::{Observed, Unmet},
    status,
};
use crate::hypervisor::{DomId, DomainInfo, DomainState};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kubexen_crds::{
    DomainStatus,
    domain::{DomainPhase, DomainPowerState, Stop, StopReason},
    virtual_machine::{Lifecycle, OnCrash, OnReboot, OnShutdown},
};
use proptest::prelude::*;
use std::time::Duration;
use uuid::Uuid;

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn domain(state: DomainState) -> DomainInfo {
    let token = (state != DomainState::HalfBuilt).then_some(7);
    DomainInfo {
        uuid: Uuid::from_u128(1),
        domid: DomId(5),
        state,
        token,
        sent_under: None,
        memory_kib: 1024,
        vcpus: 1,
    }
}

pub(super) fn observed(present: Option<DomainState>) -> Observed {
    Observed {
        host: "xen-1".to_owned(),
        deleting: false,
        power_state: DomainPowerState::Running,
        restart_requested: None,
        lifecycle: Lifecycle::default(),
        status: DomainStatus::default(),
        present: present.map(domain),
        guest: None,
        unmet: None,
        disks_attached: false,
        shutdown_left: None,
        live: Live::default(),
        part: None,
        saved: None,
        moved: None,
    }
}

fn with_phase(mut seen: Observed, phase: DomainPhase) -> Observed {
    seen.status.phase = Some(phase);
    seen.status.domid = Some(5);
    seen
}

fn stopped_before(mut seen: Observed, reason: StopReason, crashes: i32, ago: SignedDuration) -> Observed {
    seen.status.last_stop = Some(Stop { reason, at: Time(now() - ago) });
    seen.status.crashes = (crashes > 0).then_some(crashes);
    seen
}

#[test]
fn a_new_domain_is_started_then_unpaused_then_left_alone() {
    assert_eq!(decide(&observed(None), now()), Plan::Start);
    assert_eq!(decide(&observed(Some(DomainState::Paused)), now()), Plan::Unpause);
    assert_eq!(decide(&observed(Some(DomainState::Running)), now()), Plan::Settled);
}

#[test]
fn a_domain_that_is_to_stand_still_is_paused_and_never_unpaused() {
    for (state, plan) in [(DomainState::Running, Plan::Pause), (DomainState::Paused, Plan::Settled)] {
        let seen = Observed { power_state: DomainPowerState::Paused, ..observed(Some(state)) };
        assert_eq!(decide(&seen, now()), plan);
    }
}

#[test]
fn a_half_built_domain_is_taken_apart_whatever_is_wanted() {
    for deleting in [false, true] {
        let seen = Observed { deleting, ..observed(Some(DomainState::HalfBuilt)) };
        assert_eq!(decide(&seen, now()), Plan::Destroy(DestroyReason::HalfBuilt));
    }
}

#[test]
fn a_domain_to_be_deleted_is_asked_first_and_forced_after_its_time() {
    let asked =
        |left| Observed { deleting: true, shutdown_left: left, ..observed(Some(DomainState::Running)) };
    assert_eq!(decide(&asked(None), now()), Plan::RequestShutdown);
    let left = Duration::from_secs(4);
    assert_eq!(decide(&asked(Some(left)), now()), Plan::Wait(Waiting::Shutdown, left));
    assert_eq!(decide(&asked(Some(Duration::ZERO)), now()), Plan::Destroy(DestroyReason::Deleted));
    assert_eq!(decide(&Observed { deleting: true, ..observed(None) }, now()), Plan::Finish);
}

#[test]
fn what_the_guest_does_by_itself_is_recorded_as_its_policy_says() {
    let halting = Lifecycle { on_reboot: OnReboot::Halt, on_crash: OnCrash::Halt, ..Lifecycle::default() };
    let restarting = Lifecycle { on_shutdown: OnShutdown::Restart, ..Lifecycle::default() };
    let preserving = Lifecycle { on_crash: OnCrash::Preserve, ..Lifecycle::default() };
    let table = [
        (StopReason::Poweroff, Lifecycle::default(), AfterStop::Halt),
        (StopReason::Poweroff, restarting, AfterStop::Restart),
        (StopReason::Reboot, Lifecycle::default(), AfterStop::Restart),
        (StopReason::Reboot, halting.clone(), AfterStop::Halt),
        (StopReason::Crash, Lifecycle::default(), AfterStop::Restart),
        (StopReason::Crash, halting, AfterStop::Halt),
        (StopReason::Crash, preserving, AfterStop::Preserve),
    ];
    for (reason, lifecycle, then) in table {
        let mut seen = with_phase(observed(Some(DomainState::Shutdown(reason))), DomainPhase::Running);
        seen.lifecycle = lifecycle;
        assert_eq!(decide(&seen, now()), Plan::RecordStop { reason, then });
    }
}

#[test]
fn a_stop_is_recorded_before_its_domain_is_taken_apart() {
    let shutdown = || observed(Some(DomainState::Shutdown(StopReason::Poweroff)));
    let unrecorded = with_phase(shutdown(), DomainPhase::Running);
    assert!(matches!(decide(&unrecorded, now()), Plan::RecordStop { .. }));
    let recorded = stopped_before(
        with_phase(shutdown(), DomainPhase::Halted),
        StopReason::Poweroff,
        0,
        SignedDuration::ZERO,
    );
    assert_eq!(decide(&recorded, now()), Plan::Destroy(DestroyReason::Stopped));
}

#[test]
fn a_stop_of_the_next_domain_is_not_mistaken_for_the_recorded_one() {
    let mut seen =
        with_phase(observed(Some(DomainState::Shutdown(StopReason::Reboot))), DomainPhase::Pending);
    seen = stopped_before(seen, StopReason::Reboot, 0, SignedDuration::ZERO);
    seen.status.domid = Some(4);
    assert!(matches!(decide(&seen, now()), Plan::RecordStop { .. }));
}

#[test]
fn a_guest_that_stopped_by_itself_stays_off_until_a_restart_is_asked_for() {
    let mut seen = with_phase(observed(None), DomainPhase::Halted);
    seen = stopped_before(seen, StopReason::Poweroff, 0, SignedDuration::from_hours(1));
    assert_eq!(decide(&seen, now()), Plan::Settled);
    seen.disks_attached = true;
    assert_eq!(decide(&seen, now()), Plan::DetachDisks);
    seen.restart_requested = Some("2026-01-01T00:00:00Z".to_owned());
    assert_eq!(decide(&seen, now()), Plan::RecordRestart);
}

#[test]
fn a_guest_that_is_off_gives_back_the_disks_that_are_to_be_detached() {
    let mut seen = with_phase(observed(None), DomainPhase::Halted);
    let disk = AskedDisk {
        name: "data".to_owned(),
        target: "xvdb".to_owned(),
        detach: true,
        need: None,
        stored: true,
    };
    seen.live.wanted.disks.push(disk);
    let release = LiveStep::ReleaseVolume("data".to_owned());
    assert_eq!(decide(&seen, now()), Plan::Change(release));
    seen.live.wanted.disks[0].stored = false;
    assert_eq!(decide(&seen, now()), Plan::Settled);
    assert_eq!(status::settled(&seen, &Plan::Settled, None, now()).detached, ["data"]);
}

#[test]
fn a_preserved_domain_is_left_in_memory() {
    let seen = with_phase(observed(Some(DomainState::Shutdown(StopReason::Crash))), DomainPhase::Preserved);
    let seen = stopped_before(seen, StopReason::Crash, 1, SignedDuration::ZERO);
    assert_eq!(decide(&seen, now()), Plan::Settled);
}

#[test]
fn a_restart_that_stood_there_before_the_first_start_is_none() {
    let mut seen = observed(Some(DomainState::Running));
    seen.restart_requested = Some("t".to_owned());
    assert_eq!(decide(&seen, now()), Plan::Settled);
    let status = status::settled(&seen, &Plan::Settled, Some(1), now());
    assert_eq!(status.restart_handled.as_deref(), Some("t"));
}

#[test]
fn a_restart_asks_the_guest_and_is_recorded_before_the_new_start() {
    let mut seen = with_phase(observed(Some(DomainState::Running)), DomainPhase::Running);
    seen.restart_requested = Some("t".to_owned());
    assert_eq!(decide(&seen, now()), Plan::RequestShutdown);
    seen.present = Some(domain(DomainState::Shutdown(StopReason::Poweroff)));
    assert_eq!(decide(&seen, now()), Plan::Destroy(DestroyReason::Restart));
    seen.present = None;
    assert_eq!(decide(&seen, now()), Plan::RecordRestart);
    seen.status = status::restarting(&seen, Some(1), now());
    assert_eq!(decide(&seen, now()), Plan::Start);
}

#[test]
fn a_domain_that_vanished_is_recorded_and_started_again() {
    let seen = with_phase(observed(None), DomainPhase::Running);
    let plan = Plan::RecordStop { reason: StopReason::Vanished, then: AfterStop::Restart };
    assert_eq!(decide(&seen, now()), plan);
}

#[test]
fn the_back_off_grows_with_the_crashes_and_has_an_end() {
    let seconds: Vec<i64> = (0..=9).map(|crashes| backoff(crashes).as_secs()).collect();
    assert_eq!(seconds, [0, 0, 10, 20, 40, 80, 160, 300, 300, 300]);
    assert_eq!(backoff(i32::MAX).as_secs(), 300);
}

#[test]
fn a_crashing_guest_waits_for_its_back_off() {
    let seen = with_phase(observed(None), DomainPhase::Pending);
    let seen = stopped_before(seen, StopReason::Crash, 3, SignedDuration::from_secs(5));
    assert_eq!(decide(&seen, now()), Plan::Wait(Waiting::Backoff, Duration::from_secs(15)));
    let later = now() + SignedDuration::from_secs(15);
    assert_eq!(decide(&seen, later), Plan::Start);
}

#[test]
fn a_crash_that_a_fast_clock_dated_into_the_future_delays_no_start() {
    let seen = with_phase(observed(None), DomainPhase::Pending);
    for crashes in [1, 3] {
        let seen = stopped_before(seen.clone(), StopReason::Crash, crashes, SignedDuration::from_hours(-24));
        assert_eq!(decide(&seen, now()), Plan::Start);
    }
}

#[test]
fn crashes_are_forgotten_after_a_long_run() {
    let seen = with_phase(observed(Some(DomainState::Running)), DomainPhase::Running);
    let seen = stopped_before(seen, StopReason::Crash, 1, SignedDuration::from_mins(1));
    assert_eq!(decide(&seen, now()), Plan::Wait(Waiting::Stability, Duration::from_mins(9)));
    let later = now() + SignedDuration::from_mins(9);
    assert_eq!(decide(&seen, later), Plan::Settled);
    assert_eq!(status::settled(&seen, &Plan::Settled, None, later).crashes, None);
}

#[test]
fn a_domain_whose_need_is_not_met_waits_and_says_for_what() {
    let unmet = Unmet::KernelMissing("debian-12".to_owned());
    let seen = Observed { unmet: Some(unmet), ..observed(None) };
    let plan = decide(&seen, now());
    assert!(matches!(plan, Plan::Wait(Waiting::Needs(_), _)));
    let status = status::settled(&seen, &plan, Some(2), now());
    assert_eq!(status.phase, Some(DomainPhase::Pending));
    assert_eq!(status.conditions[0].reason, "KernelMissing");
}

#[test]
fn the_token_in_the_status_never_goes_back() {
    let mut seen = observed(Some(DomainState::Running));
    seen.status.owner_token = Some(9);
    assert_eq!(status::settled(&seen, &Plan::Settled, None, now()).owner_token, Some(9));
}

fn any_state() -> impl Strategy<Value = Option<DomainState>> {
    prop_oneof![
        Just(None),
        Just(Some(DomainState::HalfBuilt)),
        Just(Some(DomainState::Running)),
        Just(Some(DomainState::Paused)),
        Just(Some(DomainState::Dying)),
        any_stop().prop_map(|reason| Some(DomainState::Shutdown(reason))),
    ]
}

fn any_stop() -> impl Strategy<Value = StopReason> {
    prop_oneof![Just(StopReason::Poweroff), Just(StopReason::Reboot), Just(StopReason::Crash)]
}

fn any_lifecycle() -> impl Strategy<Value = Lifecycle> {
    (
        prop_oneof![Just(OnShutdown::Halt), Just(OnShutdown::Restart)],
        prop_oneof![Just(OnReboot::Halt), Just(OnReboot::Restart)],
        prop_oneof![Just(OnCrash::Halt), Just(OnCrash::Restart), Just(OnCrash::Preserve)],
    )
        .prop_map(|(on_shutdown, on_reboot, on_crash)| Lifecycle {
            on_shutdown,
            on_reboot,
            on_crash,
            ..Lifecycle::default()
        })
}

prop_compose! {
    fn any_observed()(
        present in any_state(),
        deleting: bool,
        paused: bool,
        restart in prop_oneof![Just(None), Just(Some("t".to_owned()))],
        handled in prop_oneof![Just(None), Just(Some("t".to_owned()))],
        lifecycle in any_lifecycle(),
        phase in prop_oneof![
            Just(None),
            Just(Some(DomainPhase::Pending)),
            Just(Some(DomainPhase::Running)),
            Just(Some(DomainPhase::Paused)),
            Just(Some(DomainPhase::Stopping)),
            Just(Some(DomainPhase::Halted)),
            Just(Some(DomainPhase::Preserved)),
            Just(Some(DomainPhase::Failed)),
        ],
        last_stop in prop_oneof![Just(None), any_stop().prop_map(Some)],
        crashes in 0_i32..5,
        domid in prop_oneof![Just(None), Just(Some(4)), Just(Some(5))],
        disks_attached: bool,
    ) -> Observed {
        let mut seen = observed(present);
        seen.deleting = deleting;
        seen.power_state = if paused { DomainPowerState::Paused } else { DomainPowerState::Running };
        seen.restart_requested = restart;
        seen.lifecycle = lifecycle;
        seen.disks_attached = disks_attached;
        seen.status = DomainStatus {
            phase,
            domid,
            restart_handled: handled,
            crashes: (crashes > 0).then_some(crashes),
            last_stop: last_stop.map(|reason| Stop { reason, at: Time(now()) }),
            ..DomainStatus::default()
        };
        seen
    }
}

/// What a model host is after `plan`: time passes in waits, guests obey.
fn step(mut seen: Observed, plan: &Plan, at: &mut Timestamp) -> Observed {
    match plan {
        Plan::RecordStop { reason, then } => seen.status = status::stopped(&seen, *reason, *then, None, *at),
        Plan::RecordRestart => seen.status = status::restarting(&seen, None, *at),
        Plan::Start => {
            seen.present = Some(domain(DomainState::Paused));
            seen.disks_attached = true;
        }
        Plan::Unpause => seen.present = Some(domain(DomainState::Running)),
        Plan::Pause => seen.present = Some(domain(DomainState::Paused)),
        Plan::RequestShutdown => seen.present = Some(domain(DomainState::Shutdown(StopReason::Poweroff))),
        Plan::Destroy(_) => seen.present = None,
        Plan::DetachDisks => seen.disks_attached = false,
        Plan::Wait(Waiting::Dying, _) => seen.present = None,
        Plan::Wait(_, time) => *at += SignedDuration::try_from(*time).unwrap(),
        // A model host takes part in no migration, saves nothing, and nothing of it changes.
        Plan::Move(_) | Plan::Save(_) | Plan::Change(_) => unreachable!("{plan:?}"),
        Plan::Finish | Plan::Settled => {}
    }
    seen
}

proptest! {
    #[test]
    fn from_any_state_a_domain_comes_to_rest_as_it_is_wanted(start in any_observed()) {
        let (mut seen, mut at) = (start, now());
        for _ in 0..24 {
            let plan = decide(&seen, at);
            if let Plan::Settled | Plan::Finish = plan {
                prop_assert_eq!(matches!(plan, Plan::Finish), seen.deleting);
                if let Plan::Settled = plan {
                    let rest = status::settled(&seen, &plan, None, at);
                    let wanted = matches!(
                        (rest.phase, seen.power_state),
                        (Some(DomainPhase::Running), DomainPowerState::Running)
                            | (Some(DomainPhase::Paused), DomainPowerState::Paused)
                            | (Some(DomainPhase::Halted | DomainPhase::Preserved), _)
                    );
                    prop_assert!(wanted, "{rest:?}");
                }
                return Ok(());
            }
            seen = step(seen, &plan, &mut at);
        }
        prop_assert!(false, "no rest: {seen:?}");
    }

    #[test]
    fn once_at_rest_the_status_is_written_once(start in any_observed()) {
        let mut seen = start;
        let plan = decide(&seen, now());
        if let Plan::Settled = plan {
            seen.status = status::settled(&seen, &plan, Some(3), now());
            let again = decide(&seen, now() + SignedDuration::from_hours(1));
            prop_assert_eq!(&again, &Plan::Settled);
            let later = now() + SignedDuration::from_hours(1);
            prop_assert_eq!(status::settled(&seen, &again, Some(3), later), seen.status);
        }
    }

    #[test]
    fn no_domain_is_taken_apart_while_it_runs_as_wanted(start in any_observed()) {
        let seen = Observed { deleting: false, restart_requested: None, ..start };
        let runs = matches!(
            seen.present.as_ref().map(|present| present.state),
            Some(DomainState::Running | DomainState::Paused)
        );
        let destroys = matches!(decide(&seen, now()), Plan::Destroy(_) | Plan::RequestShutdown);
        prop_assert!(!(runs && destroys));
    }
}
