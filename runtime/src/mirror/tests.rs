//! What a mirror shows after events in any order.

use super::*;
use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::core::error_boundary::InvalidObject;
use std::cell::RefCell;

fn object(name: &str, version: u64) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            namespace: Some("shop".to_owned()),
            name: Some(name.to_owned()),
            resource_version: Some(version.to_string()),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    }
}

fn seen(name: &str, version: u64) -> DeserializeGuard<ConfigMap> {
    DeserializeGuard(Ok(object(name, version)))
}

fn broken(name: &str) -> DeserializeGuard<ConfigMap> {
    DeserializeGuard(Err(InvalidObject { error: "no".to_owned(), metadata: object(name, 1).metadata }))
}

/// Feeds the events and tells the keys that changed.
fn feed(mirror: &Mirror<ConfigMap>, events: Vec<Event<DeserializeGuard<ConfigMap>>>) -> Vec<String> {
    let changes = RefCell::new(Vec::new());
    for event in events {
        mirror.take(event, &|change| changes.borrow_mut().push(change.key.name.clone()));
    }
    changes.into_inner()
}

fn listed(objects: Vec<DeserializeGuard<ConfigMap>>) -> Vec<Event<DeserializeGuard<ConfigMap>>> {
    let apply = objects.into_iter().map(Event::InitApply);
    std::iter::once(Event::Init).chain(apply).chain([Event::InitDone]).collect()
}

fn shown(mirror: &Mirror<ConfigMap>) -> Vec<(String, u64)> {
    mirror.list().iter().map(|object| (object.name_any(), version_of(&**object))).collect()
}

#[test]
fn a_list_replaces_what_was_there_and_tells_only_what_changed() {
    let mirror = Mirror::default();
    assert!(!mirror.is_synced());
    assert_eq!(feed(&mirror, listed(vec![seen("b", 2), seen("a", 1)])), ["a", "b"]);
    assert!(mirror.is_synced());
    assert_eq!(feed(&mirror, listed(vec![seen("b", 2), seen("c", 3)])), ["a", "c"]);
    assert_eq!(shown(&mirror), [("b".to_owned(), 2), ("c".to_owned(), 3)]);
}

#[test]
fn an_object_never_goes_back_to_an_older_version() {
    let mirror = Mirror::default();
    feed(&mirror, listed(vec![seen("a", 5)]));
    assert!(feed(&mirror, vec![Event::Apply(seen("a", 4))]).is_empty());
    feed(&mirror, listed(vec![seen("a", 3)]));
    assert_eq!(shown(&mirror), [("a".to_owned(), 5)]);
}

#[test]
fn what_was_learned_is_shown_until_the_watch_catches_up() {
    let mirror = Mirror::default();
    feed(&mirror, listed(vec![seen("a", 5)]));
    mirror.learn(object("a", 8));
    mirror.learn(object("b", 9));
    assert_eq!(shown(&mirror), [("a".to_owned(), 8), ("b".to_owned(), 9)]);
    assert!(feed(&mirror, vec![Event::Apply(seen("a", 7))]).is_empty());
    assert_eq!(feed(&mirror, vec![Event::Apply(seen("a", 10))]), ["a"]);
    assert_eq!(shown(&mirror)[0].1, 10);
}

#[test]
fn what_was_deleted_does_not_come_back_by_a_late_answer() {
    let mirror = Mirror::default();
    feed(&mirror, listed(vec![seen("a", 5)]));
    feed(&mirror, vec![Event::Delete(seen("a", 9))]);
    mirror.learn(object("a", 8));
    assert!(shown(&mirror).is_empty());
}

#[test]
fn a_deletion_of_a_predecessor_does_not_hide_its_successor() {
    let mirror = Mirror::default();
    feed(&mirror, listed(vec![]));
    mirror.learn(object("a", 12));
    assert!(feed(&mirror, vec![Event::Delete(seen("a", 9))]).is_empty());
    assert_eq!(shown(&mirror), [("a".to_owned(), 12)]);
}

#[test]
fn an_object_that_cannot_be_decoded_stops_no_other() {
    let mirror = Mirror::default();
    feed(&mirror, listed(vec![broken("bad"), seen("good", 2)]));
    assert_eq!(shown(&mirror), [("good".to_owned(), 2)]);
    assert_eq!(mirror.undecodable().keys().map(|key| key.name.as_str()).collect::<Vec<_>>(), ["bad"]);
    feed(&mirror, vec![Event::Apply(seen("bad", 3))]);
    assert!(mirror.undecodable().is_empty());
}
