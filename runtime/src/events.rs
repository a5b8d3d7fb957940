//! Kubernetes events: history for people, written beside the work and never in its way.

use crate::{clock::Clock, write};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event as ClusterEvent},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, Resource, api::PostParams};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::mpsc;
use tracing::debug;

/// How loud an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Something went as it should.
    Normal,
    /// Something a person should look at.
    Warning,
}

/// Events that wait to be written; more are dropped and counted.
const WAITING: usize = 10_000;
/// The same event of the same object is not written again within this time.
const QUIET: SignedDuration = SignedDuration::from_secs(300);
/// Events written at a time.
const CONCURRENCY: usize = 16;

/// Takes events and hands them to [`EventWriter`].
#[derive(Clone, Debug)]
pub struct Events {
    sender: mpsc::Sender<ClusterEvent>,
    clock: Arc<dyn Clock>,
    component: &'static str,
    instance: String,
    recent: Arc<Mutex<Recent>>,
}

#[derive(Debug, Default)]
struct Recent {
    last: BTreeMap<(String, &'static str, String), Timestamp>,
    written: u64,
    dropped: u64,
}

/// Writes the events that [`Events`] took.
#[derive(Debug)]
pub struct EventWriter {
    receiver: mpsc::Receiver<ClusterEvent>,
}

/// A recorder of events for `component` (bounded: `kubexen-controller`), running as `instance`.
#[must_use]
pub fn channel(component: &'static str, instance: String, clock: Arc<dyn Clock>) -> (Events, EventWriter) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Events { sender, clock, component, instance, recent: Arc::default() }, EventWriter { receiver })
}

impl Events {
    /// Records that `reason` happened to `object`. Never waits and never fails: events are history, not state.
    pub fn record<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        severity: Severity,
        reason: &'static str,
        action: &'static str,
        note: String,
    ) {
        self.record_for(&object.object_ref(&()), severity, reason, action, note);
    }

    /// As [`Events::record`], for an object that is at hand only by reference.
    pub fn record_for(
        &self,
        object: &ObjectReference,
        severity: Severity,
        reason: &'static str,
        action: &'static str,
        note: String,
    ) {
        let now = self.clock.now();
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.last.len() > WAITING {
            recent.last.retain(|_, at| at.duration_until(now) < QUIET);
        }
        let subject = object.uid.clone().or_else(|| object.name.clone()).unwrap_or_default();
        let short: String = note.chars().take(1024).collect();
        let before = recent.last.insert((subject, reason, note), now);
        if before.is_some_and(|at| at.duration_until(now) < QUIET) {
            return;
        }
        recent.written += 1;
        // Unique among all recorders: instance and counter; the hash keeps the name short.
        let name = format!(
            "{}.{:x}.{:x}",
            object.name.as_deref().unwrap_or(self.component),
            fnv1a(&self.instance),
            now.as_nanosecond().wrapping_add(i128::from(recent.written))
        );
        let event = ClusterEvent {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: Some(object.namespace.clone().unwrap_or_else(|| "default".to_owned())),
                ..ObjectMeta::default()
            },
            action: Some(action.to_owned()),
            reason: Some(reason.to_owned()),
            note: Some(short),
            event_time: Some(MicroTime(now)),
            regarding: Some(object.clone()),
            reporting_controller: Some(self.component.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            type_: Some(
                match severity {
                    Severity::Normal => "Normal",
                    Severity::Warning => "Warning",
                }
                .to_owned(),
            ),
            ..ClusterEvent::default()
        };
        if self.sender.try_send(event).is_err() {
            recent.dropped += 1;
        }
    }

    /// How many events were dropped because too many waited.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).dropped
    }
}

impl EventWriter {
    /// Writes events until every [`Events`] is gone.
    pub async fn run(mut self, client: Client) {
        let receiver = &mut self.receiver;
        let stream = futures::stream::poll_fn(|context| receiver.poll_recv(context));
        futures::StreamExt::for_each_concurrent(stream, CONCURRENCY, |event| {
            let namespace = event.metadata.namespace.clone().unwrap_or_default();
            let api: Api<ClusterEvent> = Api::namespaced(client.clone(), &namespace);
            async move {
                if let Err(error) = write::limited(api.create(&PostParams::default(), &event)).await {
                    debug!(%error, reason = event.reason, "event was not written");
                }
            }
        })
        .await;
    }
}

/// FNV-1a, 32 bits: a short stable mark, nothing that must resist anybody.
fn fnv1a(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
