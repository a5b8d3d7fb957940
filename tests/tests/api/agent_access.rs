//! What the credentials of an agent, and of the controller, are good for. All of it on the real server, with tokens of
//! the real service accounts; the access of a host is made by the controller's own code, with the controller's rights.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::Method;
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, RoleBinding};
use kube::api::PostParams;
use kube::{Api, Client};
use kubexen_controller::host::access::{self, Access};
use kubexen_crds::names::{AGENT_FINALIZER, AGENT_SERVICE_ACCOUNT, host_namespace};
use kubexen_crds::{Domain, Host, HostSpec};
use kubexen_testbed::control_plane::ControlPlane;
use kubexen_testbed::process::wait_until;
use serde_json::{Value, json};

use crate::installed::{self, RELEASE_NAMESPACE, kind_path, new_namespace, send};

/// A client with the rights of the controller.
async fn controller(control_plane: &ControlPlane) -> Result<Client> {
    control_plane.service_account(RELEASE_NAMESPACE, "kubexen-controller").await?.client().await
}

/// A Host, what the controller makes for it, one Domain with its user data in its namespace, and a client with the rights of
/// its agent.
async fn join(control_plane: &ControlPlane, name: &str) -> Result<Client> {
    let hosts = Api::<Host>::all(control_plane.client().await?);
    let host = hosts
        .create(
            &PostParams::default(),
            &Host::new(name, HostSpec { schedulable: true, ..HostSpec::default() }),
        )
        .await?;
    let (client, namespace, create) =
        (controller(control_plane).await?, host_namespace(name), PostParams::default());
    let Access { namespace: place, service_account, role_binding, cluster_role, cluster_role_binding } =
        access::objects(&host);
    Api::<Namespace>::all(client.clone()).create(&create, &place).await?;
    Api::<ServiceAccount>::namespaced(client.clone(), &namespace).create(&create, &service_account).await?;
    Api::<RoleBinding>::namespaced(client.clone(), &namespace).create(&create, &role_binding).await?;
    Api::<ClusterRole>::all(client.clone()).create(&create, &cluster_role).await?;
    Api::<ClusterRoleBinding>::all(client.clone()).create(&create, &cluster_role_binding).await?;
    let domain = serde_json::from_value::<Domain>(domain("shop.web"))?;
    Api::<Domain>::namespaced(client.clone(), &namespace).create(&create, &domain).await?;
    let user_data = serde_json::from_value::<Secret>(user_data("kubexen.io/cloud-init"))?;
    Api::<Secret>::namespaced(client, &namespace).create(&create, &user_data).await?;

    let agent = control_plane.service_account(&namespace, AGENT_SERVICE_ACCOUNT).await?.client().await?;
    wait_until("the rights of the agent are in force", Duration::from_secs(30), async || {
        for path in [host_path(name), kind_path("domains", Some(&namespace))] {
            send(&agent, Method::GET, &path, &Value::Null).await?.map_err(anyhow::Error::msg)?;
        }
        Ok(())
    })
    .await?;
    Ok(agent)
}

fn domain(name: &str) -> Value {
    json!({
        "apiVersion": "kubexen.io/v1alpha1", "kind": "Domain",
        "metadata": {"name": name, "finalizers": [AGENT_FINALIZER], "labels": {"kubexen.io/vm": "web"}},
        "spec": {
            "virtualMachine": {
                "namespace": "shop", "name": "web", "uid": "5a3c9bb1-9d42-4a76-8d6c-0f8f0f1d2e3a",
            },
            "machine": {"cpus": 1, "maxCpus": 1, "memory": "1Gi", "maxMemory": "1Gi", "boot": {"kernel": {"name": "debian-12"}}},
        },
    })
}

/// The copy of a machine's user data.
fn user_data(type_: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "cloud-init.shop.web"},
        "type": type_, "data": {"userData": "I2Nsb3VkLWNvbmZpZwo="},
    })
}

fn host_path(name: &str) -> String {
    format!("{}/{name}", kind_path("hosts", None))
}

fn core_path(namespace: &str, rest: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/{rest}")
}

fn lease(namespace: &str) -> (String, Value) {
    (
        format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"),
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "heartbeat"}}),
    )
}

/// Everything of this list must be granted, or refused with this text; nothing of it changes anything.
async fn all_are(
    client: &Client,
    refusal: Option<&str>,
    requests: Vec<(Method, String, Value)>,
) -> Result<()> {
    let mut faults = Vec::new();
    for (method, path, body) in requests {
        match (send(client, method.clone(), &path, &body).await?, refusal) {
            (Ok(_), None) => {}
            (Ok(_), Some(_)) => faults.push(format!("{method} {path} {body} was granted")),
            (Err(message), None) => faults.push(format!("{method} {path} {body} was refused: {message}")),
            (Err(message), Some(text)) if message.contains(text) => {}
            (Err(message), Some(text)) => {
                faults.push(format!("{method} {path} {body}: expected `{text}` in: {message}"));
            }
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

#[tokio::test]
async fn an_agent_can_do_its_work_in_its_own_namespace() -> Result<()> {
    let control_plane = installed::control_plane().await;
    let agent = join(control_plane, "access-own").await?;
    let namespace = host_namespace("access-own");
    let domain = format!("{}/shop.web", kind_path("domains", Some(&namespace)));
    let (leases, lease) = lease(&namespace);
    let event = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "started.1", "namespace": namespace},
        "eventTime": "2026-01-31T12:00:00.000000Z", "reportingController": "kubexen.io/node-agent",
        "reportingInstance": "access-own", "action": "Start", "reason": "Started", "type": "Normal",
        "regarding": {"apiVersion": "kubexen.io/v1alpha1", "kind": "Domain", "name": "shop.web", "namespace": namespace},
    });
    all_are(
        &agent,
        None,
        vec![
            (Method::GET, kind_path("domains", Some(&namespace)), Value::Null),
            (Method::GET, kind_path("volumes", Some(&namespace)), Value::Null),
            (Method::GET, host_path("access-own"), Value::Null),
            (Method::GET, core_path(&namespace, "secrets/cloud-init.shop.web"), Value::Null),
            (Method::PATCH, domain.clone(), json!({"metadata": {"finalizers": null}})),
            (
                Method::PATCH,
                format!("{domain}/status"),
                json!({"status": {"phase": "Running", "ownerToken": 7}}),
            ),
            (
                Method::PATCH,
                format!("{}/status", host_path("access-own")),
                json!({"status": {"agentVersion": "1"}}),
            ),
            (Method::POST, leases, lease),
            (Method::POST, format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"), event),
        ],
    )
    .await
}

#[tokio::test]
async fn an_agent_cannot_read_or_write_what_is_not_its_hosts() -> Result<()> {
    let control_plane = installed::control_plane().await;
    let agent = join(control_plane, "access-mine").await?;
    join(control_plane, "access-other").await?;
    let (own, other) = (host_namespace("access-mine"), host_namespace("access-other"));
    let foreign = format!("{}/shop.web", kind_path("domains", Some(&other)));
    let (leases, lease) = lease(&other);
    let token = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    all_are(
        &agent,
        Some("is forbidden: User \"system:serviceaccount:kubexen-host-access-mine:node-agent\" cannot"),
        vec![
            (Method::GET, foreign.clone(), Value::Null),
            (Method::GET, kind_path("domains", Some(&other)), Value::Null),
            (Method::GET, kind_path("domains", None), Value::Null),
            (Method::GET, kind_path("volumes", Some(&other)), Value::Null),
            (Method::PATCH, foreign.clone(), json!({"metadata": {"finalizers": null}})),
            (Method::PATCH, format!("{foreign}/status"), json!({"status": {"phase": "Failed"}})),
            (Method::POST, leases, lease),
            (Method::GET, host_path("access-other"), Value::Null),
            (Method::GET, kind_path("hosts", None), Value::Null),
            (
                Method::PATCH,
                format!("{}/status", host_path("access-other")),
                json!({"status": {"agentVersion": "1"}}),
            ),
            (Method::PATCH, host_path("access-mine"), json!({"spec": {"schedulable": false}})),
            (Method::DELETE, host_path("access-mine"), Value::Null),
            (Method::GET, core_path(&own, "secrets"), Value::Null),
            (Method::GET, core_path(&other, "secrets"), Value::Null),
            (Method::GET, core_path(&other, "secrets/cloud-init.shop.web"), Value::Null),
            (Method::PATCH, core_path(&own, "secrets/cloud-init.shop.web"), json!({"data": null})),
            (Method::DELETE, core_path(&own, "secrets/cloud-init.shop.web"), Value::Null),
            (Method::POST, core_path(&own, "secrets"), user_data("kubexen.io/cloud-init")),
            (Method::GET, core_path("default", "secrets"), Value::Null),
            (Method::GET, "/api/v1/secrets".to_owned(), Value::Null),
            (Method::GET, core_path("default", "secrets/any"), Value::Null),
            (Method::GET, kind_path("virtualmachines", Some("default")), Value::Null),
            (Method::GET, kind_path("virtualmachines", None), Value::Null),
            (Method::GET, kind_path("virtualdisks", None), Value::Null),
            (Method::GET, kind_path("pools", None), Value::Null),
            (Method::POST, kind_path("domains", Some(&own)), domain("shop.web")),
            (Method::DELETE, format!("{}/shop.web", kind_path("domains", Some(&own))), Value::Null),
            (Method::POST, core_path(&own, "serviceaccounts/node-agent/token"), token.clone()),
            (Method::POST, core_path(&other, "serviceaccounts/node-agent/token"), token),
            (Method::GET, core_path(&own, "pods"), Value::Null),
        ],
    )
    .await
}

/// Waits for the policies to be in force, which the refusal of one row shows, and then looks at all rows.
async fn policies_refuse(client: &Client, rows: Vec<(String, Value, &str)>) -> Result<()> {
    let (path, body, message) = rows.first().context("there are rows")?;
    wait_until("the policy is in force", Duration::from_secs(30), async || {
        all_are(client, Some(message), vec![(Method::PATCH, path.clone(), body.clone())]).await
    })
    .await?;
    for (path, body, message) in rows {
        all_are(client, Some(message), vec![(Method::PATCH, path, body)]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_agent_changes_nothing_of_its_domains_but_its_finalizer() -> Result<()> {
    let control_plane = installed::control_plane().await;
    let agent = join(control_plane, "access-spec").await?;
    let domain = format!("{}/shop.web", kind_path("domains", Some(&host_namespace("access-spec"))));
    let metadata = "must not change `metadata.labels`, `metadata.annotations` or `metadata.ownerReferences`";
    let owner = json!([{
        "apiVersion": "v1", "kind": "ConfigMap", "name": "any", "uid": "5a3c9bb1-9d42-4a76-8d6c-0f8f0f1d2e3a",
    }]);
    policies_refuse(
        &agent,
        vec![
            (domain.clone(), json!({"spec": {"powerState": "Paused"}}), "an agent must not change `spec`"),
            (domain.clone(), json!({"spec": {"restartRequested": "now"}}), "an agent must not change `spec`"),
            (domain.clone(), json!({"metadata": {"labels": {"kubexen.io/vm": "db"}}}), metadata),
            (domain.clone(), json!({"metadata": {"labels": null}}), metadata),
            (domain.clone(), json!({"metadata": {"annotations": {"a": "b"}}}), metadata),
            (domain.clone(), json!({"metadata": {"ownerReferences": owner}}), metadata),
            (
                domain,
                json!({"metadata": {"finalizers": [AGENT_FINALIZER, "example.com/any"]}}),
                "must not change `metadata.finalizers` but for \"kubexen.io/node-agent\"",
            ),
        ],
    )
    .await
}

#[tokio::test]
async fn an_agent_does_not_judge_its_own_host() -> Result<()> {
    let control_plane = installed::control_plane().await;
    let agent = join(control_plane, "access-judge").await?;
    let status = format!("{}/status", host_path("access-judge"));
    let conditions = json!([{
        "type": "Ready", "status": "True", "reason": "AgentReporting", "message": "",
        "lastTransitionTime": "2026-01-31T12:00:00Z",
    }]);
    policies_refuse(
        &agent,
        vec![
            (
                status.clone(),
                json!({"status": {"conditions": conditions}}),
                "must not change `status.conditions`",
            ),
            (
                status.clone(),
                json!({"status": {"observedGeneration": 1}}),
                "must not change `status.observedGeneration`",
            ),
            (
                status.clone(),
                json!({"status": {"availability": {"disarmed": true}}}),
                "must not change `status.availability`",
            ),
            (
                status.clone(),
                json!({"status": {"recovery": {
                    "bootID": "b-1", "leaseGone": "2026-01-31T12:00:00.000000Z", "machines": 1, "recovered": 1,
                }}}),
                "must not change `status.recovery`",
            ),
            (
                status,
                json!({"status": {"evacuation": {"migrating": 0, "restarting": 0, "waiting": 0, "staying": 0}}}),
                "must not change `status.evacuation`",
            ),
        ],
    )
    .await
}

#[tokio::test]
async fn the_controller_is_confined_to_what_belongs_to_hosts() -> Result<()> {
    let control_plane = installed::control_plane().await;
    new_namespace(control_plane, "access-bystander").await?;
    new_namespace(control_plane, "kubexen-host-access-controller").await?;
    let client = controller(control_plane).await?;
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let role = |name: &str, resource: &str| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name},
            "rules": [{"apiGroups": [if resource == "hosts" { "kubexen.io" } else { "" }], "resources": [resource], "verbs": ["get"]}],
        })
    };
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "kubexen-host-any"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "node-agent", "namespace": "kubexen-host-any"}],
    });
    let user = format!("system:serviceaccount:{RELEASE_NAMESPACE}:kubexen-controller");
    wait_until("the policy is in force", Duration::from_secs(30), async || {
        all_are(
            &client,
            Some("the controller must not change what does not belong to a host"),
            vec![
                (Method::POST, roles.to_owned(), role("any", "hosts")),
                (Method::DELETE, format!("{roles}/kubexen-agent"), Value::Null),
                (Method::DELETE, "/api/v1/namespaces/access-bystander".to_owned(), Value::Null),
                (Method::POST, kind_path("domains", Some("default")), domain("shop.web")),
                (Method::POST, core_path("default", "secrets"), user_data("kubexen.io/cloud-init")),
            ],
        )
        .await?;
        all_are(
            &client,
            Some("the controller must not change a Secret that is no copy of user data"),
            vec![(Method::POST, core_path("kubexen-host-access-controller", "secrets"), user_data("Opaque"))],
        )
        .await?;
        all_are(
            &client,
            Some("the controller must not grant anything but rights to objects of kubexen.io"),
            vec![(Method::POST, roles.to_owned(), role("kubexen-host-any", "secrets"))],
        )
        .await
    })
    .await?;
    let disk = json!({
        "apiVersion": "kubexen.io/v1alpha1", "kind": "VirtualDisk", "metadata": {"name": "any"},
        "spec": {"repository": "any", "size": "1Gi"},
    });
    all_are(
        &client,
        Some("the controller must not make or delete a disk that is not for a suspended guest"),
        vec![(Method::POST, kind_path("virtualdisks", Some("access-bystander")), disk)],
    )
    .await?;
    all_are(
        &client,
        Some(&format!("user \"{user}\" (groups=")),
        vec![
            (Method::POST, roles.to_owned(), role("kubexen-host-any", "pods")),
            (Method::POST, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings".to_owned(), binding),
        ],
    )
    .await?;
    all_are(
        &client,
        Some(&format!("is forbidden: User \"{user}\" cannot")),
        vec![
            (Method::GET, "/api/v1/secrets".to_owned(), Value::Null),
            (Method::GET, core_path(RELEASE_NAMESPACE, "secrets"), Value::Null),
            (Method::PATCH, core_path("default", "secrets/any"), json!({"data": null})),
            (Method::DELETE, format!("{}/any", kind_path("virtualmachines", Some("default"))), Value::Null),
            (Method::DELETE, host_path("any"), Value::Null),
            (Method::GET, "/api/v1/pods".to_owned(), Value::Null),
        ],
    )
    .await
}
