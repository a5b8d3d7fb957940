//! Which objects refer to which, found without a scan.

use kubexen_runtime::Key;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Directed references between objects, readable against their direction.
///
/// Setting is idempotent and needs no knowledge of what was there before, so it does not matter whether a change is
/// learnt from an own write, from the watch, or from both.
#[derive(Debug, Default)]
pub(crate) struct Relation(Mutex<Edges>);

#[derive(Debug, Default)]
struct Edges {
    targets: BTreeMap<Key, BTreeSet<Key>>,
    sources: BTreeMap<Key, BTreeSet<Key>>,
}

impl Relation {
    /// From now on `source` refers to exactly these.
    pub(crate) fn set(&self, source: &Key, targets: BTreeSet<Key>) {
        let mut edges = self.lock();
        let before = edges.targets.remove(source).unwrap_or_default();
        for gone in before.difference(&targets) {
            if let Some(sources) = edges.sources.get_mut(gone) {
                sources.remove(source);
                if sources.is_empty() {
                    edges.sources.remove(gone);
                }
            }
        }
        for target in targets.difference(&before) {
            edges.sources.entry(target.clone()).or_default().insert(source.clone());
        }
        if !targets.is_empty() {
            edges.targets.insert(source.clone(), targets);
        }
    }

    /// What refers to `target`, sorted.
    pub(crate) fn to(&self, target: &Key) -> Vec<Key> {
        self.read(target, |source| Some(source.clone()))
    }

    /// What `read` makes of each that refers to `target`, in their order; without what it makes nothing of. It must not ask this
    /// relation.
    pub(crate) fn read<T>(&self, target: &Key, read: impl FnMut(&Key) -> Option<T>) -> Vec<T> {
        self.lock().sources.get(target).into_iter().flatten().filter_map(read).collect()
    }

    /// How many refer to `target`.
    pub(crate) fn count_to(&self, target: &Key) -> usize {
        self.lock().sources.get(target).map_or(0, BTreeSet::len)
    }

    fn lock(&self) -> MutexGuard<'_, Edges> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::cluster(name)
    }

    #[test]
    fn sources_follow_every_change_of_targets() {
        let relation = Relation::default();
        relation.set(&key("a"), BTreeSet::from([key("x"), key("y")]));
        relation.set(&key("b"), BTreeSet::from([key("y")]));
        assert_eq!(relation.to(&key("y")), [key("a"), key("b")]);
        relation.set(&key("a"), BTreeSet::from([key("z")]));
        assert_eq!(relation.to(&key("x")), []);
        assert_eq!(relation.to(&key("y")), [key("b")]);
        relation.set(&key("a"), BTreeSet::new());
        relation.set(&key("b"), BTreeSet::new());
        let edges = relation.lock();
        assert!(edges.targets.is_empty() && edges.sources.is_empty());
    }
}
