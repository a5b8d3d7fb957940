//! What holds of a machine's policy whatever is seen.

use super::{suspension::state_disk, *};
use crate::virtual_machine::suspension::{is_saved, saved_state};
use kubexen_crds::virtual_machine::Suspended;
use proptest::prelude::*;

/// Carries a plan out on a model of the cluster, where agents are quick and nothing fails.
fn apply(mut observed: Observed, plan: Plan) -> Option<Observed> {
    let mut machine = (*observed.machine).clone();
    for action in plan.actions {
        match action {
            Action::AddFinalizer => machine.metadata.finalizers = Some(vec![CONTROLLER_FINALIZER.to_owned()]),
            Action::ConfirmGone => assert!(observed.domains.is_empty()),
            Action::RemoveFinalizer => return None,
            Action::AskForHost => observed.answer = Some(Answer::Waiting),
            Action::Start { host } => {
                assert!(observed.domains.is_empty(), "never a second Domain");
                let mut domain = domain_on(&host);
                domain.spec.machine = observed.references.clone().expect("resolved").machine;
                domain.spec.restart_requested = crate::virtual_machine::decide::restart_requested(&machine);
                domain.spec.power_state =
                    crate::virtual_machine::decide::domain_power_state(machine.spec.power_state);
                domain.spec.protected = crate::virtual_machine::decide::is_protected(&machine);
                domain.spec.lifecycle = machine.spec.lifecycle.clone();
                domain.spec.saved_state = observed.references.clone().expect("resolved").saved_state;
                observed.domains.push(Arc::new(domain));
                observed.answer = None;
            }
            Action::Adjust { domain: key, change } => {
                for domain in &mut observed.domains {
                    if Key::of(&**domain) == key {
                        let Adjustment {
                            power_state,
                            lifecycle,
                            protected,
                            restart_requested,
                            machine,
                            saved_state,
                        } = change.clone();
                        let spec = &mut Arc::make_mut(domain).spec;
                        spec.machine = machine.map_or_else(|| spec.machine.clone(), |machine| *machine);
                        spec.power_state = power_state.unwrap_or(spec.power_state);
                        spec.protected = protected.unwrap_or(spec.protected);
                        spec.lifecycle = lifecycle.unwrap_or_else(|| spec.lifecycle.clone());
                        spec.restart_requested = restart_requested.or(spec.restart_requested.take());
                        spec.saved_state = saved_state.unwrap_or(spec.saved_state.take());
                    }
                }
            }
            Action::DeleteUnchanged(key) => observed.domains.retain(|present| Key::of(&**present) != key),
            Action::MakeStateDisk { .. } => observed.state = Some(state_disk("a")),
            Action::DiscardState(_) => observed.state = None,
            Action::MakeVolumes { .. } | Action::CopyUserData { .. } => {}
            Action::DeleteDomain { domain, .. } => {
                observed.domains.retain(|present| Key::of(&**present) != domain)
            }
            Action::SettleDuplicates { .. } => observed.domains.truncate(1),
            Action::Recover { .. } => panic!("no host is dead"),
        }
    }
    if let Some(report) = plan.report {
        machine.status = Some(render(&machine, &report, Timestamp::UNIX_EPOCH));
    }
    observed.machine = Arc::new(machine);
    Some(observed)
}

fn any_domain(host: &'static str) -> impl Strategy<Value = Domain> {
    let phases = prop_oneof![
        Just(None),
        prop::sample::select(vec![
            DomainPhase::Pending,
            DomainPhase::Running,
            DomainPhase::Paused,
            DomainPhase::Suspended,
            DomainPhase::Stopping,
            DomainPhase::Halted,
            DomainPhase::Preserved,
            DomainPhase::Failed,
        ])
        .prop_map(Some),
    ];
    let power_states = vec![DomainPowerState::Running, DomainPowerState::Paused, DomainPowerState::Suspended];
    let power_state = prop::sample::select(power_states);
    (phases, 1..4_i32, any::<bool>(), power_state, prop::option::of(0..9_i64)).prop_map(
        move |(phase, cpus, leaving, power_state, token)| {
            let mut domain = phase.map_or_else(|| domain_on(host), |phase| in_phase(domain_on(host), phase));
            (domain.spec.machine.cpus, domain.spec.machine.max_cpus) = (cpus, cpus);
            domain.spec.power_state = power_state;
            if power_state == DomainPowerState::Suspended {
                domain.spec.saved_state = state_disk(host).found.ok().map(|disk| saved_state(&disk));
            }
            if let Some(status) = &mut domain.status {
                status.owner_token = token;
            }
            if leaving { deleting(domain) } else { domain }
        },
    )
}

prop_compose! {
    fn any_observed()(
        finalizer in any::<bool>(),
        leaving in any::<bool>(),
        power_state in prop::sample::select(vec![
            PowerState::Running, PowerState::Halted, PowerState::Paused, PowerState::Suspended,
        ]),
        restart in any::<bool>(),
        first in prop::option::of(any_domain("a")),
        second in prop::option::of(any_domain("b")),
        predecessor in any::<bool>(),
        problem in any::<bool>(),
        answer in prop::option::of(prop::sample::select(vec![
            Answer::Waiting, Answer::Assigned("c".to_owned()), Answer::Rejected("none".to_owned()),
        ])),
        host_ready in any::<bool>(),
        token in prop::option::of(0..9_i64),
        saved in any::<bool>(),
        state in prop::option::of(prop::sample::select(vec!["a", "b"])),
    ) -> Observed {
        let mut machine = changed(|machine| {
            machine.spec.power_state = power_state;
            if !finalizer { machine.metadata.finalizers = None; }
            if restart {
                machine.metadata.annotations =
                    Some(BTreeMap::from([(RESTART_REQUESTED_AT.to_owned(), "now".to_owned())]));
            }
            machine.status = token.map(|token| VirtualMachineStatus {
                owner_token: Some(token),
                suspended: saved.then(|| Suspended { disk: "d".to_owned(), machine: domain_on("a").spec.machine }),
                ..VirtualMachineStatus::default()
            });
        });
        if leaving { machine = deleting(machine); }
        let mut seen = observed(machine, first.into_iter().chain(second).collect());
        if predecessor { seen.predecessors = vec![Key::new("kubexen-host-z", "shop.web-1")]; }
        if problem { seen.references = Err(Problem::NetworkNotFound { network: "prod".to_owned() }); }
        seen.state = state.map(state_disk);
        seen.answer = answer;
        seen.host_ready = host_ready;
        seen
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, ..ProptestConfig::default() })]

    #[test]
    fn carrying_plans_out_leads_to_one_that_changes_nothing(start in any_observed()) {
        let token = start.machine.status.as_ref().and_then(|status| status.owner_token);
        let mut seen = start;
        for round in 0.. {
            let plan = decide(&seen);
            let quiet = plan.actions.is_empty() && plan.report.as_ref().is_none_or(|report| {
                Some(render(&seen.machine, report, Timestamp::MAX)) == seen.machine.status
            });
            if quiet {
                break;
            }
            prop_assert!(round < 16, "still not settled: {plan:?}");
            let Some(next) = apply(seen, plan) else { break };
            seen = next;
            let now = seen.machine.status.as_ref().and_then(|status| status.owner_token);
            prop_assert!(now >= token, "the token went back");
        }
    }

    #[test]
    fn a_domain_is_deleted_only_for_a_reason(seen in any_observed()) {
        let to_be_on = matches!(seen.machine.spec.power_state, PowerState::Running | PowerState::Paused);
        let wanted = !crate::view::is_deleting(&*seen.machine) && to_be_on;
        let restart = seen.machine.metadata.annotations.is_some();
        let deletes = decide(&seen).actions.iter().any(|action| matches!(action, Action::DeleteDomain { .. }));
        prop_assert!(!(deletes && wanted && !restart));
    }

    #[test]
    fn a_domain_whose_guest_is_saved_goes_only_after_that_was_written_down(seen in any_observed()) {
        for action in decide(&seen).actions {
            if let Action::DeleteUnchanged(key) = action {
                let domain = seen.domains.iter().find(|domain| Key::of(&***domain) == key).expect("one that is there");
                prop_assert!(is_saved(domain));
                let kept = seen.suspended().map(|suspended| &suspended.machine);
                prop_assert_eq!(kept, Some(&domain.spec.machine));
            }
        }
    }

    #[test]
    fn what_is_said_always_has_ready_and_fits_the_schema(seen in any_observed()) {
        if let Some(report) = decide(&seen).report {
            let status = render(&seen.machine, &report, Timestamp::UNIX_EPOCH);
            prop_assert!(find(&status.conditions, "Ready").is_some());
            let words = |condition: &Condition| !condition.reason.is_empty() && !condition.message.is_empty();
            prop_assert!(status.conditions.iter().all(words));
        }
    }
}
