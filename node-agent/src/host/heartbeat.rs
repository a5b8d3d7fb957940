//! The heartbeat: a Lease in the host's namespace, renewed every few seconds.

use crate::domain::MANAGER;
use k8s_openapi::{
    api::coordination::v1::Lease,
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, api::PostParams};
use kubexen_crds::names::{HEARTBEAT_LEASE, HEARTBEAT_SECONDS, HEARTBEAT_TIMEOUT_SECONDS, host_namespace};
use kubexen_ownership::HostBoot;
use kubexen_runtime::{
    Clock,
    write::{self, WriteError},
};
use serde_json::json;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

/// Renews the heartbeat until it is dropped.
pub async fn beat(client: Client, me: HostBoot, clock: std::sync::Arc<dyn Clock>) {
    let api: Api<Lease> = Api::namespaced(client, &host_namespace(me.host.as_str()));
    let mut ticks = interval(Duration::from_secs(HEARTBEAT_SECONDS));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = renew(&api, &me, &*clock).await {
            warn!(%error, "the heartbeat could not be renewed");
        }
    }
}

async fn renew(api: &Api<Lease>, me: &HostBoot, clock: &dyn Clock) -> Result<(), WriteError> {
    let now = MicroTime(clock.now());
    let spec = json!({
        "holderIdentity": me.boot_id.as_str(),
        "leaseDurationSeconds": HEARTBEAT_TIMEOUT_SECONDS,
        "renewTime": now,
    });
    match write::merge(api, HEARTBEAT_LEASE, MANAGER, &json!({ "spec": spec })).await {
        Err(error) if error.is_not_found() => {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(HEARTBEAT_LEASE.to_owned()),
                    labels: Some(BTreeMap::from([("kubexen.io/heartbeat".to_owned(), "true".to_owned())])),
                    ..ObjectMeta::default()
                },
                spec: serde_json::from_value(spec)?,
            };
            write::limited(api.create(&PostParams::default(), &lease)).await.map(drop)
        }
        renewed => renewed.map(drop),
    }
}
