//! The place and the rights of a host's agent.
//!
//! ```text
//!   Namespace kubexen-host-<host>
//!     ServiceAccount node-agent ◀── RoleBinding ──▶ ClusterRole kubexen-agent          (from the chart: what is in there)
//!                               ◀── ClusterRoleBinding ──▶ ClusterRole kubexen-host-<host>   (its own Host, by name)
//! ```
//!
//! All of it belongs to the Host and goes with it by garbage collection. RBAC alone keeps an agent away from everything
//! that is another host's.

use crate::{context::Context, error::Error, view::uid};
use k8s_openapi::{
    api::{
        core::v1::{Namespace, ServiceAccount},
        rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, RoleBinding, RoleRef, Subject},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, PostParams, Preconditions},
};
use kubexen_crds::{
    Host,
    names::{AGENT_SERVICE_ACCOUNT, GROUP, host_namespace},
};
use kubexen_runtime::write::{self, limited};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// ClusterRole that says what an agent may do in its host's namespace; the chart brings it.
pub const AGENT_ROLE: &str = "kubexen-agent";

/// What makes up the access of one host's agent.
#[derive(Clone, Debug, PartialEq)]
pub struct Access {
    /// The host's namespace.
    pub namespace: Namespace,
    /// The agent's identity.
    pub service_account: ServiceAccount,
    /// Lets the agent do in its namespace what [`AGENT_ROLE`] says.
    pub role_binding: RoleBinding,
    /// Reading its own Host and writing that one's status.
    pub cluster_role: ClusterRole,
    /// Gives the agent that role.
    pub cluster_role_binding: ClusterRoleBinding,
}

/// The objects that make up the access of this host's agent. The Host must have been stored: they belong to it by uid.
#[must_use]
pub fn objects(host: &Host) -> Access {
    let name = host.name_any();
    let namespace = host_namespace(&name);
    let subject = Subject {
        kind: "ServiceAccount".to_owned(),
        name: AGENT_SERVICE_ACCOUNT.to_owned(),
        namespace: Some(namespace.clone()),
        api_group: None,
    };
    let role = |name: &str| RoleRef {
        api_group: Some("rbac.authorization.k8s.io".to_owned()),
        kind: "ClusterRole".to_owned(),
        name: name.to_owned(),
    };
    let rule = |resource: &str, verbs: &[&str]| PolicyRule {
        api_groups: Some(vec![GROUP.to_owned()]),
        resources: Some(vec![resource.to_owned()]),
        resource_names: Some(vec![name.clone()]),
        verbs: verbs.iter().map(|verb| (*verb).to_owned()).collect(),
        non_resource_urls: None,
    };
    let inside = |object: &str| metadata(host, object, Some(&namespace));
    let own_role = namespace.clone();
    Access {
        namespace: Namespace { metadata: metadata(host, &namespace, None), ..Namespace::default() },
        service_account: ServiceAccount {
            metadata: inside(AGENT_SERVICE_ACCOUNT),
            ..ServiceAccount::default()
        },
        role_binding: RoleBinding {
            metadata: inside(AGENT_SERVICE_ACCOUNT),
            role_ref: role(AGENT_ROLE),
            subjects: Some(vec![subject.clone()]),
        },
        cluster_role: ClusterRole {
            metadata: metadata(host, &own_role, None),
            rules: Some(vec![
                rule("hosts", &["get", "list", "watch"]),
                rule("hosts/status", &["get", "patch", "update"]),
            ]),
            aggregation_rule: None,
        },
        cluster_role_binding: ClusterRoleBinding {
            metadata: metadata(host, &own_role, None),
            role_ref: role(&own_role),
            subjects: Some(vec![subject]),
        },
    }
}

fn metadata(host: &Host, name: &str, namespace: Option<&str>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: namespace.map(str::to_owned),
        labels: Some(BTreeMap::from([(format!("{GROUP}/host"), host.name_any())])),
        owner_references: Some(vec![OwnerReference {
            api_version: Host::api_version(&()).into_owned(),
            kind: Host::kind(&()).into_owned(),
            name: host.name_any(),
            uid: uid(host).to_owned(),
            controller: None,
            block_owner_deletion: None,
        }]),
        ..ObjectMeta::default()
    }
}

/// When each host's access was looked after.
#[derive(Debug, Default)]
pub(crate) struct Looks(Mutex<BTreeMap<String, (String, Instant)>>);

impl Looks {
    /// How long ago the access of this Host was looked after.
    pub(crate) fn age(&self, host: &str, uid: &str) -> Option<Duration> {
        self.lock().get(host).filter(|(of, _)| of == uid).map(|(_, at)| at.elapsed())
    }

    /// The Host is gone.
    pub(crate) fn forget(&self, host: &str) {
        self.lock().remove(host);
    }

    /// Every Host is to be looked after again, at the beginning of a term.
    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    fn note(&self, host: &Host) {
        self.lock().insert(host.name_any(), (uid(host).to_owned(), Instant::now()));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, (String, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes what is missing of the access of this host's agent, and mends what differs.
pub(crate) async fn grant(context: &Context, host: &Host) -> Result<(), Error> {
    let Access { namespace, service_account, role_binding, cluster_role, cluster_role_binding } =
        objects(host);
    let client = &context.client;
    let inside = host_namespace(&host.name_any());
    ensure(context, &Api::all(client.clone()), &namespace).await?;
    ensure(context, &Api::namespaced(client.clone(), &inside), &service_account).await?;
    ensure(context, &Api::namespaced(client.clone(), &inside), &role_binding).await?;
    ensure(context, &Api::all(client.clone()), &cluster_role).await?;
    ensure(context, &Api::all(client.clone()), &cluster_role_binding).await?;
    context.access.note(host);
    Ok(())
}

async fn ensure<K>(context: &Context, api: &Api<K>, wanted: &K) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    let name = wanted.name_any();
    let Some(present) = limited(api.get_opt(&name)).await? else {
        context.may_write::<K>("create")?;
        return match limited(api.create(&PostParams::default(), wanted)).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_already_exists() => Ok(()),
            Err(error) => Err(error.into()),
        };
    };
    let Some(change) = drift(&serde_json::to_value(&present)?, &serde_json::to_value(wanted)?) else {
        return Ok(());
    };
    context.may_write::<K>("patch")?;
    match write::merge(api, &name, crate::context::MANAGER, &change).await {
        Ok(_) => Ok(()),
        // The role that a binding refers to cannot be changed: it is made anew.
        Err(error) if error.is_invalid() => {
            let only_this = Preconditions { uid: present.uid(), resource_version: None };
            context.may_write::<K>("delete")?;
            limited(api.delete(&name, &DeleteParams::default().preconditions(only_this))).await?;
            context.may_write::<K>("create")?;
            limited(api.create(&PostParams::default(), wanted)).await?;
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// The part of `wanted` that `present` lacks. What is in `present` alone is somebody else's, lists excepted.
fn drift(present: &Value, wanted: &Value) -> Option<Value> {
    match (present, wanted) {
        (Value::Object(present), Value::Object(wanted)) => {
            let missing: Map<String, Value> = wanted
                .iter()
                .filter_map(|(name, value)| {
                    drift(present.get(name).unwrap_or(&Value::Null), value)
                        .map(|change| (name.clone(), change))
                })
                .collect();
            (!missing.is_empty()).then_some(Value::Object(missing))
        }
        _ => (present != wanted).then(|| wanted.clone()),
    }
}
