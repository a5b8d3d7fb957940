//! A mirror of one kind of objects, kept true by a watch.
//!
//! ```text
//!   API server ──list, watch──▶ Mirror ──changed(key)──▶ work queues
//!                                  ▲
//!              answers to own writes ┘  learn()
//! ```
//!
//! # Guarantees
//! An object in the mirror never goes back to an older version. What [`Mirror::learn`] was told is seen at once.
//! Listings are sorted by namespace and name. An object that cannot be decoded is left out, kept in
//! [`Mirror::undecodable`], and stops no other.
//!
//! # Caveats
//! A mirror may be behind. Never take it as proof for something that cannot be undone: read from the server.

use futures::{StreamExt, TryStreamExt};
use kube::{
    Api, Resource, ResourceExt,
    core::DeserializeGuard,
    runtime::watcher::{self, Event},
};
use kubexen_mutants::Mutant;
use serde::de::DeserializeOwned;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::SetOnce;
use tracing::{debug, warn};

/// Namespace and name of an object; no namespace for cluster-scoped kinds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Namespace; empty for cluster-scoped kinds.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// Key of a namespaced object.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// Key of a cluster-scoped object.
    pub fn cluster(name: impl Into<String>) -> Self {
        Self { namespace: String::new(), name: name.into() }
    }

    /// Key of an object.
    pub fn of<K: Resource>(object: &K) -> Self {
        Self { namespace: object.namespace().unwrap_or_default(), name: object.name_any() }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// First wait after a watch broke; it doubles up to [`LONGEST_RETRY`].
const SHORTEST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// A change of one object in a mirror: what was there and what is there now.
#[derive(Debug)]
pub struct Change<'a, K> {
    /// The object's key.
    pub key: &'a Key,
    /// Before; none if it is new.
    pub before: Option<&'a Arc<K>>,
    /// Now; none if it is gone.
    pub after: Option<&'a Arc<K>>,
}

/// A mirror of one kind of objects. Clones are handles to the same mirror.
#[derive(Debug)]
pub struct Mirror<K> {
    state: Arc<Mutex<State<K>>>,
    synced: Arc<SetOnce<()>>,
}

impl<K> Clone for Mirror<K> {
    fn clone(&self) -> Self {
        Self { state: Arc::clone(&self.state), synced: Arc::clone(&self.synced) }
    }
}

#[derive(Debug)]
struct State<K> {
    objects: BTreeMap<Key, Arc<K>>,
    undecodable: BTreeMap<Key, String>,
    /// Objects of a list under way.
    listing: BTreeMap<Key, Arc<K>>,
    /// The largest resource version that the watch has delivered: what is older is known already.
    seen: u64,
}

impl<K> Default for Mirror<K> {
    fn default() -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                objects: BTreeMap::new(),
                undecodable: BTreeMap::new(),
                listing: BTreeMap::new(),
                seen: 0,
            })),
            synced: Arc::default(),
        }
    }
}

impl<K> Mirror<K> {
    /// The object with this key.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.lock().objects.get(key).cloned()
    }

    /// All objects, sorted by key.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<K>> {
        self.lock().objects.values().cloned().collect()
    }

    /// All keys, sorted.
    #[must_use]
    pub fn keys(&self) -> Vec<Key> {
        self.lock().objects.keys().cloned().collect()
    }

    /// Objects that could not be decoded, with the reason.
    #[must_use]
    pub fn undecodable(&self) -> BTreeMap<Key, String> {
        self.lock().undecodable.clone()
    }

    /// Whether the first list is complete.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.synced.initialized()
    }

    /// Waits until the first list is complete.
    pub async fn synced(&self) {
        self.synced.wait().await;
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> Mirror<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Clone + Default + Debug,
{
    /// Puts in what the server answered to a request of ours, so that the next look sees it. Ignored when the watch
    /// has delivered that version or a later one already: then the object may be gone since.
    pub fn learn(&self, object: K) {
        self.learn_with(object, |_| {});
    }

    /// As [`Mirror::learn`], and calls `changed` unless the object was ignored. The watch delivers the same version
    /// again later, as a change whose before and after have one resource version.
    pub fn learn_with(&self, object: K, changed: impl FnOnce(&Change<'_, K>)) {
        let key = Key::of(&object);
        let version = version_of(&object);
        let after = Arc::new(without_managed_fields(object));
        let before = {
            let mut state = self.lock();
            let before = state.objects.get(&key).cloned();
            if version <= state.seen || before.as_ref().is_some_and(|known| version_of(&**known) >= version) {
                return;
            }
            state.objects.insert(key.clone(), Arc::clone(&after));
            before
        };
        changed(&Change { key: &key, before: before.as_ref(), after: Some(&after) });
    }

    /// Keeps the mirror true until it is dropped, and calls `changed` for every object that changed.
    pub async fn run(
        &self,
        api: Api<DeserializeGuard<K>>,
        config: watcher::Config,
        changed: impl Fn(&Change<'_, K>),
    ) {
        let kind = K::kind(&K::DynamicType::default()).into_owned();
        let mut retry = SHORTEST_RETRY;
        loop {
            let mut stream = watcher::watcher(api.clone(), config.clone()).boxed();
            loop {
                match stream.try_next().await {
                    Ok(Some(event)) => {
                        retry = SHORTEST_RETRY;
                        self.take(event, &changed);
                    }
                    Ok(None) => break,
                    Err(error) => {
                        debug!(kind, %error, "watch broke");
                        tokio::time::sleep(retry).await;
                        retry = (retry * 2).min(LONGEST_RETRY);
                    }
                }
            }
        }
    }

    /// Takes what a watch has delivered, and calls `changed` for every object that changed.
    pub fn take(&self, event: Event<DeserializeGuard<K>>, changed: &impl Fn(&Change<'_, K>)) {
        match event {
            Event::Init => {
                let mut state = self.lock();
                state.listing.clear();
                state.undecodable.clear();
            }
            Event::InitApply(object) => {
                if let Some((key, object)) = self.decoded(object) {
                    self.lock().listing.insert(key, object);
                }
            }
            Event::InitDone => self.replace(changed),
            Event::Apply(object) => {
                if let Some((key, object)) = self.decoded(object) {
                    self.apply(&key, object, changed);
                }
            }
            Event::Delete(object) => self.delete(&object, changed),
        }
    }

    fn decoded(&self, object: DeserializeGuard<K>) -> Option<(Key, Arc<K>)> {
        match object.0 {
            Ok(object) => Some((Key::of(&object), Arc::new(without_managed_fields(object)))),
            Err(invalid) => {
                let key = Key::new(
                    invalid.metadata.namespace.unwrap_or_default(),
                    invalid.metadata.name.unwrap_or_default(),
                );
                warn!(%key, error = invalid.error, "object cannot be decoded and is left alone");
                self.lock().undecodable.insert(key, invalid.error);
                None
            }
        }
    }

    fn replace(&self, changed: &impl Fn(&Change<'_, K>)) {
        let mut differences = Vec::new();
        {
            let mut state = self.lock();
            let mut listed = std::mem::take(&mut state.listing);
            let before = std::mem::take(&mut state.objects);
            for (key, object) in &mut listed {
                // A list may come from a cache of the server that is behind what the watch or a write showed us.
                if let Some(newer) =
                    before.get(key).filter(|known| version_of(&***known) > version_of(&**object))
                {
                    *object = Arc::clone(newer);
                }
            }
            if Mutant::RelistWithoutDiff.is_active() {
                listed.extend(
                    before
                        .clone()
                        .into_iter()
                        .filter(|(key, _)| !listed.contains_key(key))
                        .collect::<Vec<_>>(),
                );
            }
            state.objects = listed;
            let newest = state.objects.values().map(|object| version_of(&**object)).max().unwrap_or(0);
            state.seen = state.seen.max(newest);
            let keys: BTreeSet<Key> = before.keys().chain(state.objects.keys()).cloned().collect();
            for key in keys {
                let (old, new) = (before.get(&key).cloned(), state.objects.get(&key).cloned());
                let same = matches!((&old, &new), (Some(old), Some(new)) if version_of(&**old) == version_of(&**new));
                if !same {
                    differences.push((key, old, new));
                }
            }
        }
        // It stays so, whatever list comes after the first.
        let _ = self.synced.set(());
        for (key, before, after) in &differences {
            changed(&Change { key, before: before.as_ref(), after: after.as_ref() });
        }
    }

    fn apply(&self, key: &Key, object: Arc<K>, changed: &impl Fn(&Change<'_, K>)) {
        let version = version_of(&*object);
        let (before, after) = {
            let mut state = self.lock();
            state.seen = state.seen.max(version);
            state.undecodable.remove(key);
            let before = state.objects.get(key).cloned();
            if before.as_ref().is_some_and(|before| version_of(&**before) > version) {
                return;
            }
            state.objects.insert(key.clone(), Arc::clone(&object));
            (before, object)
        };
        changed(&Change { key, before: before.as_ref(), after: Some(&after) });
    }

    fn delete(&self, object: &DeserializeGuard<K>, changed: &impl Fn(&Change<'_, K>)) {
        let key = Key::of(object);
        let version = version_of(object);
        let before = {
            let mut state = self.lock();
            state.seen = state.seen.max(version);
            state.undecodable.remove(&key);
            if state.objects.get(&key).is_some_and(|known| version_of(&**known) > version) {
                return;
            }
            state.objects.remove(&key)
        };
        changed(&Change { key: &key, before: before.as_ref(), after: None });
    }
}

/// The version of an object as a number. Kubernetes promises since 1.35 that versions of one kind are numbers that
/// grow; anything else counts as oldest.
fn version_of(object: &impl Resource) -> u64 {
    object.meta().resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

fn without_managed_fields<K: Resource>(mut object: K) -> K {
    object.meta_mut().managed_fields = None;
    object
}

#[cfg(test)]
mod tests;
