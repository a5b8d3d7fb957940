//! What every reconciler works with: the view, the queues, and the only way to write.

use crate::{
    error::Error,
    host::heartbeat::Heartbeats,
    lease::Leadership,
    metrics::Metrics,
    migration,
    scheduler::Scheduler,
    view::{View, uid},
    watched::Watched,
};
use kube::{
    Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, PostParams, Preconditions},
};
use kubexen_crds::names::CONTROLLER_FINALIZER;
use kubexen_runtime::{
    Clock, Key, WorkQueue,
    events::Events,
    mirror::Change,
    write::{self, limited},
};
use serde::Serialize;
use serde_json::Value;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Who the API server says changed a field.
pub(crate) const MANAGER: &str = "kubexen-controller";

/// What every reconciler works with.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) events: Events,
    pub(crate) metrics: Metrics,
    pub(crate) leadership: Leadership,
    pub(crate) view: View,
    pub(crate) queues: Queues,
    pub(crate) scheduler: Scheduler,
    pub(crate) heartbeats: Heartbeats,
    pub(crate) access: crate::host::access::Looks,
    pub(crate) evacuations: crate::evacuation::Told,
    /// What is known of dead hosts, and the pool's store.
    pub(crate) recovery: crate::recovery::Recovery,
    /// Held while a migration begins.
    pub(crate) migration_start: migration::Starting,
}

/// How far carrying out a plan got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Applied {
    /// There was nothing to do.
    Nothing,
    /// Everything was done; the next look sees it.
    Something,
    /// The mirrors are behind what the server says, or something must pass: look again later.
    Behind,
}

/// The queues of all kinds. They take keys only while this process leads: each term begins with every object anyway.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    open: AtomicBool,
    pub(crate) machines: WorkQueue<Key>,
    pub(crate) disks: WorkQueue<Key>,
    pub(crate) networks: WorkQueue<Key>,
    pub(crate) repositories: WorkQueue<Key>,
    pub(crate) hosts: WorkQueue<Key>,
    pub(crate) pools: WorkQueue<Key>,
    pub(crate) migrations: WorkQueue<Key>,
}

impl Queues {
    /// Adds a key to one of the queues, while they are open.
    pub(crate) fn add(&self, queue: &WorkQueue<Key>, key: Key) {
        if self.open.load(Ordering::Relaxed) {
            queue.add(key);
        }
    }

    /// Adds keys to one of the queues, while they are open.
    pub(crate) fn add_all(&self, queue: &WorkQueue<Key>, keys: impl IntoIterator<Item = Key>) {
        for key in keys {
            self.add(queue, key);
        }
    }

    /// Adds a key after a delay, while they are open.
    pub(crate) fn add_after(&self, queue: &WorkQueue<Key>, key: Key, delay: Duration) {
        if self.open.load(Ordering::Relaxed) {
            queue.add_after(key, delay);
        }
    }

    /// Empties all queues, and opens or closes them.
    pub(crate) fn restart(&self, open: bool) {
        self.open.store(open, Ordering::Relaxed);
        for queue in [
            &self.machines,
            &self.disks,
            &self.networks,
            &self.repositories,
            &self.hosts,
            &self.pools,
            &self.migrations,
        ] {
            queue.clear();
        }
    }
}

impl Context {
    /// Takes a change that a watch showed.
    pub(crate) fn changed<K: Watched>(&self, change: &Change<'_, K>) {
        let version = |object: Option<&Arc<K>>| object.and_then(|object| object.resource_version());
        let (before, after) = (version(change.before), version(change.after));
        if before.is_some() && before == after {
            // The answer to a write of ours, or to a read, was taken already.
            return;
        }
        self.take(change);
    }

    /// Takes the answer to a write of ours. The object itself is not queued: who wrote it looks again anyway.
    pub(crate) fn learn<K: Watched>(&self, object: K) {
        K::mirror(&self.view).learn_with(object, |change| {
            K::index(&self.view, change);
            K::wake(self, change);
        });
    }

    /// Takes what a read from the server showed. If it is news, others wrote it, and the object is queued as by a watch, which
    /// says nothing of a version that is known.
    pub(crate) fn found<K: Watched>(&self, object: K) {
        K::mirror(&self.view).learn_with(object, |change| self.take(change));
    }

    fn take<K: Watched>(&self, change: &Change<'_, K>) {
        K::index(&self.view, change);
        K::wake(self, change);
        if let Some(queue) = K::queue(&self.queues) {
            self.queues.add(queue, change.key.clone());
        }
    }

    /// Creates an object; if one of its name is there already, takes that one instead.
    pub(crate) async fn create<K: Watched>(&self, object: &K) -> Result<(), Error> {
        let key = Key::of(object);
        let api = K::api(&self.client, &key.namespace);
        self.may_write::<K>("create")?;
        match limited(api.create(&PostParams::default(), object)).await {
            Ok(created) => self.learn(created),
            Err(error) if error.is_already_exists() => {
                if let Some(present) = self.get::<K>(&key).await? {
                    self.found(present);
                }
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Merges a change into an object's metadata or spec.
    pub(crate) async fn merge<K: Watched>(&self, key: &Key, change: &Value) -> Result<(), Error> {
        self.may_write::<K>("patch")?;
        let api = K::api(&self.client, &key.namespace);
        self.learn(write::merge(&api, &key.name, MANAGER, change).await?);
        Ok(())
    }

    /// Writes the status of `object` where it differs; says whether there was anything to write.
    ///
    /// A controller that was deposed meanwhile writes nothing, as it has not seen the newest version; see [`write::status`].
    pub(crate) async fn write_status<K, S>(
        &self,
        object: &K,
        before: Option<&S>,
        after: &S,
    ) -> Result<bool, Error>
    where
        K: Watched,
        S: Serialize + PartialEq,
    {
        if before == Some(after) {
            return Ok(false);
        }
        self.may_write::<K>("patch_status")?;
        let api = K::api(&self.client, &object.namespace().unwrap_or_default());
        let written = write::status(&api, object, MANAGER, before, after).await?;
        let is_written = written.is_some();
        written.into_iter().for_each(|object| self.learn(object));
        Ok(is_written)
    }

    /// Deletes exactly this object, not one that has its name now; says whether the server still had it.
    pub(crate) async fn delete<K: Watched>(&self, object: &K) -> Result<bool, Error> {
        self.delete_version(object, None).await
    }

    /// Deletes exactly this object, if nobody has changed it since it was seen; says whether that was so.
    pub(crate) async fn delete_unchanged<K: Watched>(&self, object: &K) -> Result<bool, Error> {
        self.delete_version(object, object.resource_version()).await
    }

    async fn delete_version<K: Watched>(&self, object: &K, version: Option<String>) -> Result<bool, Error> {
        self.may_write::<K>("delete")?;
        let api = K::api(&self.client, &object.namespace().unwrap_or_default());
        let only_this = Preconditions { uid: Some(uid(object).to_owned()), resource_version: version };
        let parameters = DeleteParams::default().preconditions(only_this);
        match limited(api.delete(&object.name_any(), &parameters)).await {
            Ok(answer) => {
                // An object with finalizers is answered as it stands now, one without is gone.
                if let Some(marked) = answer.left() {
                    self.learn(marked);
                }
                Ok(true)
            }
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes the object of this key if it is the one with this uid; says whether the mirror knew what the server has.
    pub(crate) async fn delete_known<K: Watched>(&self, key: &Key, wanted: &str) -> Result<bool, Error> {
        match K::mirror(&self.view).get(key) {
            Some(object) if uid(&*object) == wanted => self.delete(&*object).await,
            Some(_) | None => Ok(true),
        }
    }

    /// Puts the controller's finalizer on an object.
    pub(crate) async fn add_finalizer<K: Watched>(&self, object: &K) -> Result<(), Error> {
        match write::with_finalizer(object, CONTROLLER_FINALIZER) {
            Some(change) => self.merge::<K>(&Key::of(object), &change).await,
            None => Ok(()),
        }
    }

    /// Takes the controller's finalizer off an object, which may be gone then.
    pub(crate) async fn remove_finalizer<K: Watched>(&self, object: &K) -> Result<(), Error> {
        self.take_finalizer(object, CONTROLLER_FINALIZER).await
    }

    /// Takes a finalizer off an object, which may be gone then.
    pub(crate) async fn take_finalizer<K: Watched>(&self, object: &K, finalizer: &str) -> Result<(), Error> {
        let Some(change) = write::without_finalizer(object, finalizer) else { return Ok(()) };
        self.may_write::<K>("patch")?;
        let key = Key::of(object);
        let api = K::api(&self.client, &key.namespace);
        // The answer is not learnt: it shows an object that the same request may have ended.
        match write::merge(&api, &key.name, MANAGER, &change).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads an object from the server, linearizably.
    pub(crate) async fn get<K: Watched>(&self, key: &Key) -> Result<Option<K>, Error> {
        Ok(limited(K::api(&self.client, &key.namespace).get_opt(&key.name)).await?)
    }

    /// Reads all objects of this name in all namespaces from the server, linearizably.
    pub(crate) async fn list_named<K: Watched>(&self, name: &str) -> Result<Vec<K>, Error> {
        let parameters = ListParams::default().fields(&format!("metadata.name={name}"));
        let list = limited(K::api_all(&self.client).list(&parameters)).await?;
        Ok(list.items.into_iter().filter(|object| object.name_any() == name).collect())
    }

    /// Reads all objects in a namespace from the server, linearizably.
    pub(crate) async fn list_in<K: Watched>(&self, namespace: &str) -> Result<Vec<K>, Error> {
        Ok(limited(K::api(&self.client, namespace).list(&ListParams::default())).await?.items)
    }

    /// Reads all objects of a kind from the server, linearizably, and takes what the mirror does not show yet. One that cannot be
    /// decoded is left out.
    pub(crate) async fn find_all<K: Watched>(&self) -> Result<(), Error> {
        let listed = limited(K::api_guarded(&self.client).list(&ListParams::default())).await?;
        listed.items.into_iter().filter_map(|object| object.0.ok()).for_each(|object| self.found(object));
        Ok(())
    }

    /// Counts a write that is about to be sent, or refuses it because this process does not lead.
    pub(crate) fn may_write<K: Resource<DynamicType = ()>>(&self, verb: &'static str) -> Result<(), Error> {
        if !self.leadership.holds() {
            return Err(Error::Deposed);
        }
        self.metrics.wrote(K::kind(&()), verb);
        Ok(())
    }

    /// Wall-clock age of an object, as far as clocks agree; for what only people see.
    pub(crate) fn age(&self, object: &impl Resource) -> Duration {
        object
            .meta()
            .creation_timestamp
            .as_ref()
            .and_then(|created| Duration::try_from(self.clock.now().duration_since(created.0)).ok())
            .unwrap_or_default()
    }
}
