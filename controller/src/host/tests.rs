use super::{
    access::{AGENT_ROLE, objects},
    decide::{ACCESS_LOOK, Action, Observed, Plan, TIMEOUT, decide},
    heartbeat::{Heartbeat, Heartbeats},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Resource;
use kubexen_crds::{
    Host, HostSpec, HostStatus,
    condition::{self, State, Wanted},
    names::CONTROLLER_FINALIZER,
};
use kubexen_runtime::Key;
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;

fn host() -> Host {
    Host {
        metadata: ObjectMeta {
            name: Some("a".to_owned()),
            uid: Some("host".to_owned()),
            finalizers: Some(vec![CONTROLLER_FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: HostSpec { schedulable: true, ..HostSpec::default() },
        status: None,
    }
}

fn said(mut host: Host, state: State) -> Host {
    let wanted = vec![Wanted::new("Ready", state, "AgentReporting", "so it was")];
    host.status = Some(HostStatus {
        conditions: condition::set(&[], wanted, None, Timestamp::UNIX_EPOCH),
        ..HostStatus::default()
    });
    host
}

fn observed(host: Host, heartbeat: Heartbeat) -> Observed {
    Observed {
        host: Arc::new(host),
        heartbeat,
        fenced: false,
        access_age: Some(Duration::ZERO),
        domains: Vec::new(),
        volumes: Vec::new(),
        evacuation: None,
    }
}

fn reason(observed: &Observed) -> Option<&'static str> {
    decide(observed, Timestamp::UNIX_EPOCH).report.map(|report| report[0].reason)
}

#[test]
fn readiness_follows_the_heartbeat() {
    let second = Duration::from_secs(1);
    let cases = [
        (host(), Heartbeat::Never, Some("AgentNeverSeen")),
        (host(), Heartbeat::Beaten(Duration::ZERO), Some("AgentReporting")),
        (host(), Heartbeat::Beaten(TIMEOUT - second), Some("AgentReporting")),
        (host(), Heartbeat::Beaten(TIMEOUT), Some("AgentSilent")),
        (host(), Heartbeat::Unwitnessed(TIMEOUT), Some("AgentSilent")),
        // After a restart of the controller: what was said holds until there is evidence.
        (host(), Heartbeat::Unwitnessed(second), None),
        (said(host(), State::True), Heartbeat::Unwitnessed(second), Some("AgentReporting")),
        (said(host(), State::Unknown), Heartbeat::Unwitnessed(second), None),
    ];
    for (host, heartbeat, expected) in cases {
        assert_eq!(reason(&observed(host, heartbeat)), expected, "{heartbeat:?}");
    }
}

#[test]
fn a_host_is_looked_at_again_when_its_heartbeat_is_due() {
    let plan = decide(&observed(host(), Heartbeat::Beaten(Duration::from_secs(10))), Timestamp::UNIX_EPOCH);
    assert_eq!(plan.again, Some(TIMEOUT - Duration::from_secs(10)));
    let never = decide(&observed(host(), Heartbeat::Never), Timestamp::UNIX_EPOCH);
    assert_eq!(never.again, Some(ACCESS_LOOK));
}

#[test]
fn access_is_looked_after_at_first_and_every_five_minutes() {
    let actions = |age| {
        decide(&Observed { access_age: age, ..observed(host(), Heartbeat::Never) }, Timestamp::UNIX_EPOCH)
            .actions
    };
    assert_eq!(actions(None), [Action::GrantAccess]);
    assert_eq!(actions(Some(ACCESS_LOOK - Duration::from_secs(1))), []);
    assert_eq!(actions(Some(ACCESS_LOOK)), [Action::GrantAccess]);
}

#[test]
fn a_deleted_host_waits_until_it_is_empty() {
    let mut leaving = host();
    leaving.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    let empty = observed(leaving.clone(), Heartbeat::Never);
    assert_eq!(decide(&empty, Timestamp::UNIX_EPOCH).actions, [Action::LetGo]);
    let used = Observed { domains: vec![Key::new("kubexen-host-a", "shop.web-1")], ..empty.clone() };
    assert_eq!(decide(&used, Timestamp::UNIX_EPOCH).actions, []);
    let report = decide(&used, Timestamp::UNIX_EPOCH).report.expect("a report");
    assert_eq!(report[1].reason, "DomainsLeft");
    assert!(report[1].message.contains("kubexen-host-a/shop.web-1"), "{}", report[1].message);
    let alive = Observed { heartbeat: Heartbeat::Beaten(Duration::ZERO), ..used };
    assert_eq!(reason(&alive), Some("AgentReporting"), "its guests run: the agent is not silent");
    let stored = Observed { volumes: vec![Key::new("kubexen-host-a", "shop.root")], ..empty };
    assert_eq!(decide(&stored, Timestamp::UNIX_EPOCH).actions, []);
    leaving.metadata.finalizers = None;
    assert_eq!(decide(&observed(leaving, Heartbeat::Never), Timestamp::UNIX_EPOCH), Plan::default());
}

#[test]
fn an_agent_may_read_its_own_host_by_name_and_belongs_to_it() {
    let access = objects(&host());
    let rules = access.cluster_role.rules.clone().expect("rules");
    assert!(rules.iter().all(|rule| rule.resource_names == Some(vec!["a".to_owned()])));
    assert_eq!(access.role_binding.role_ref.name, AGENT_ROLE);
    assert_eq!(access.role_binding.metadata.namespace.as_deref(), Some("kubexen-host-a"));
    let owners = [
        access.namespace.meta(),
        access.service_account.meta(),
        access.role_binding.meta(),
        access.cluster_role.meta(),
        access.cluster_role_binding.meta(),
    ]
    .map(|meta| meta.owner_references.clone().expect("an owner")[0].uid.clone());
    assert_eq!(owners, ["host"; 5]);
}

#[tokio::test(start_paused = true)]
async fn only_what_changes_before_our_eyes_is_witnessed() {
    let heartbeats = Heartbeats::default();
    heartbeats.beat("old");
    heartbeats.all_listed();
    heartbeats.beat("new");
    sleep(Duration::from_secs(3)).await;
    assert_eq!(heartbeats.of("old"), Heartbeat::Unwitnessed(Duration::from_secs(3)));
    assert_eq!(heartbeats.of("new"), Heartbeat::Beaten(Duration::from_secs(3)));
    heartbeats.beat("old");
    assert_eq!(heartbeats.of("old"), Heartbeat::Beaten(Duration::ZERO));
    heartbeats.forget("old");
    assert_eq!(heartbeats.of("old"), Heartbeat::Never);
}
