//! The objects, and the log of their changes.

use super::{
    object::Object,
    request::{Place, Refusal, Selection},
    resources::Resource,
};
use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, sync::Arc};
use tokio::time::Instant;
use uuid::Uuid;

/// Namespace and name.
type Name = (String, String);

/// A change of one object.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) resource: &'static Resource,
    pub(super) before: Option<Arc<Object>>,
    /// For a deletion, the last state at the version of the deletion.
    pub(super) object: Arc<Object>,
    pub(super) deleted: bool,
    pub(super) at: Instant,
}

impl Change {
    fn new(
        resource: &'static Resource,
        before: Option<Arc<Object>>,
        object: Arc<Object>,
        deleted: bool,
    ) -> Self {
        Self { resource, before, object, deleted, at: Instant::now() }
    }
}

/// What comes next in a watch.
#[derive(Debug)]
pub(super) enum Next {
    /// A change at this version.
    Change(u64, Change),
    /// Nothing up to this version.
    Nothing(u64),
    /// What came next is not in the log any more.
    Expired,
}

/// All objects of the server. Every write raises one revision, which becomes the object's resource version.
#[derive(Debug)]
pub(super) struct Store {
    name: String,
    revision: u64,
    /// Changes up to this revision are forgotten.
    compacted: u64,
    /// The last change of each kind, by its index.
    last: BTreeMap<usize, u64>,
    /// The last change of each kind that is forgotten.
    forgotten: BTreeMap<usize, u64>,
    made: u64,
    /// The objects of each kind, by its index.
    objects: BTreeMap<usize, BTreeMap<Name, Arc<Object>>>,
    log: BTreeMap<u64, Change>,
}

impl Store {
    /// Nothing, at revision 1. Uids follow from `name`.
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            revision: 1,
            compacted: 0,
            last: BTreeMap::new(),
            forgotten: BTreeMap::new(),
            made: 0,
            objects: BTreeMap::new(),
            log: BTreeMap::new(),
        }
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// Forgets the changes so far: who has not seen them has to list.
    pub(super) fn compact(&mut self) {
        self.compacted = self.revision;
        self.forgotten.clone_from(&self.last);
        self.log.clear();
    }

    pub(super) fn get(&self, place: &Place) -> Result<Arc<Object>, Refusal> {
        let name = place.name.as_deref().unwrap_or_default();
        self.find(place.resource, &place.namespace, name)
            .cloned()
            .ok_or_else(|| Refusal::not_found(place.resource, name))
    }

    pub(super) fn find(&self, resource: &Resource, namespace: &str, name: &str) -> Option<&Arc<Object>> {
        self.objects.get(&resource.index)?.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// The objects that `selection` shows, by namespace and name.
    pub(super) fn list(&self, resource: &Resource, selection: &Selection) -> Vec<Arc<Object>> {
        let objects = self.objects.get(&resource.index).into_iter().flat_map(BTreeMap::values);
        objects.filter(|object| selection.shows(object)).cloned().collect()
    }

    /// Whether changes after this revision are forgotten.
    pub(super) fn has_forgotten(&self, revision: u64) -> bool {
        revision < self.compacted
    }

    /// The first change after `revision` that a watch of `selection` shows.
    pub(super) fn after(&self, revision: u64, resource: &Resource, selection: &Selection) -> Next {
        if self.forgotten.get(&resource.index).is_some_and(|forgotten| revision < *forgotten) {
            return Next::Expired;
        }
        let shown = |change: &Change| {
            std::ptr::eq(change.resource, resource)
                && (selection.shows(&change.object)
                    || change.before.as_ref().is_some_and(|before| selection.shows(before)))
        };
        match self.log.range(revision + 1..).find(|(_, change)| shown(change)) {
            Some((revision, change)) => Next::Change(*revision, change.clone()),
            None => Next::Nothing(self.revision),
        }
    }

    pub(super) fn create(
        &mut self,
        place: &Place,
        mut object: Value,
        now: Timestamp,
    ) -> Result<Change, Refusal> {
        let resource = place.resource;
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if name.is_empty() {
            return Err(Refusal::invalid(resource, "", "metadata.name: Required value: name is required"));
        }
        if resource.namespaced {
            self.enter_namespace(&place.namespace, &object)?;
        }
        if self.find(resource, &place.namespace, &name).is_some() {
            let message = format!("{} \"{name}\" already exists", resource.qualified());
            return Err(Refusal::new(StatusCode::CONFLICT, "AlreadyExists", message));
        }
        if object["metadata"]["resourceVersion"].as_str().is_some_and(|version| !version.is_empty()) {
            return Err(Refusal::bad_request("resourceVersion should not be set on objects to be created"));
        }
        self.made += 1;
        let uid = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{} {}", self.name, self.made).as_bytes());
        let fields = fields(&mut object)?;
        if resource.custom {
            fields.remove("status");
        }
        fields.insert("apiVersion".to_owned(), resource.api_version().into());
        fields.insert("kind".to_owned(), resource.kind.clone().into());
        let meta = fields.entry("metadata").or_insert_with(|| json!({}));
        meta["uid"] = uid.to_string().into();
        meta["creationTimestamp"] = seconds(now);
        if resource.namespaced {
            meta["namespace"] = place.namespace.clone().into();
        }
        if resource.custom {
            meta["generation"] = 1.into();
        }
        if let Some(meta) = meta.as_object_mut() {
            meta.remove("deletionTimestamp");
            meta.remove("managedFields");
        }
        resource.fill_in(&mut object);
        Ok(self.put(resource, None, object))
    }

    fn enter_namespace(&self, namespace: &str, object: &Value) -> Result<(), Refusal> {
        if object["metadata"]["namespace"].as_str().is_some_and(|inside| inside != namespace) {
            return Err(Refusal::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        let namespaces = Resource::find("", "v1", "namespaces");
        let known = namespaces.is_some_and(|resource| self.find(resource, "", namespace).is_some());
        let message = || format!("namespaces \"{namespace}\" not found");
        if known { Ok(()) } else { Err(Refusal::new(StatusCode::NOT_FOUND, "NotFound", message())) }
    }

    /// Puts `wanted` in the place of what is there; nothing changes if it is the same.
    pub(super) fn update(&mut self, place: &Place, wanted: Value) -> Result<Written, Refusal> {
        let present = self.get(place)?;
        let name = place.name.as_deref().unwrap_or_default();
        let (resource, meta) = (place.resource, &wanted["metadata"]);
        if !meta["uid"].is_null() && meta["uid"] != present["metadata"]["uid"] {
            return Err(Refusal::conflict(resource, name, "Precondition failed: UID in precondition"));
        }
        if meta["resourceVersion"].as_str().unwrap_or_default().is_empty() {
            return Err(Refusal::invalid(
                resource,
                name,
                "metadata.resourceVersion: Invalid value: must be specified for an update",
            ));
        }
        self.change(place, &present, wanted)
    }

    /// Merges `patch` (RFC 7386) into what is there.
    pub(super) fn patch(&mut self, place: &Place, patch: &Value) -> Result<Written, Refusal> {
        let present = self.get(place)?;
        let mut wanted = Value::clone(&present);
        merge(&mut wanted, patch);
        self.change(place, &present, wanted)
    }

    fn change(&mut self, place: &Place, present: &Arc<Object>, wanted: Value) -> Result<Written, Refusal> {
        let (resource, name) = (place.resource, place.name.as_deref().unwrap_or_default());
        let version = wanted["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        if !version.is_empty() && present["metadata"]["resourceVersion"] != version {
            return Err(Refusal::conflict(
                resource,
                name,
                "the object has been modified; please apply your changes to the latest version and try again",
            ));
        }
        if !wanted["metadata"]["uid"].is_null() && wanted["metadata"]["uid"] != present["metadata"]["uid"] {
            return Err(Refusal::invalid(resource, name, "metadata.uid: Invalid value: field is immutable"));
        }
        let mut next = settled(place, present, wanted)?;
        resource.fill_in(&mut next);
        let deleting = !next["metadata"]["deletionTimestamp"].is_null();
        if deleting && adds_finalizer(present, &next) {
            let why = "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted";
            return Err(Refusal::invalid(resource, name, why));
        }
        if next == ***present {
            return Ok(Written::Same(Arc::clone(present)));
        }
        if resource.custom && !place.status && wanted_differs(present, &next) {
            next["metadata"]["generation"] =
                (present["metadata"]["generation"].as_u64().unwrap_or(0) + 1).into();
        }
        if deleting && finalizers(&next).is_empty() {
            // Watches show the object as it was stored last; the answer shows what was asked for, at that version.
            let last = Value::clone(present);
            return Ok(Written::Ended(self.remove(resource, present, last), next));
        }
        Ok(Written::Changed(self.put(resource, Some(Arc::clone(present)), next)))
    }

    /// Deletes an object, or marks it while it has finalizers.
    pub(super) fn delete(
        &mut self,
        place: &Place,
        options: &Value,
        now: Timestamp,
    ) -> Result<Written, Refusal> {
        let present = self.get(place)?;
        let (resource, name) = (place.resource, place.name.as_deref().unwrap_or_default());
        for condition in ["uid", "resourceVersion"] {
            let wanted = &options["preconditions"][condition];
            if !wanted.is_null() && *wanted != present["metadata"][condition] {
                return Err(Refusal::conflict(resource, name, "the preconditions are not met"));
            }
        }
        if finalizers(&present).is_empty() {
            let last = Value::clone(&present);
            return Ok(Written::Changed(self.remove(resource, &present, last)));
        }
        if !present["metadata"]["deletionTimestamp"].is_null() {
            return Ok(Written::Same(present));
        }
        let mut marked = Value::clone(&present);
        marked["metadata"]["deletionTimestamp"] = seconds(now);
        marked["metadata"]["deletionGracePeriodSeconds"] = 0.into();
        if let Some(generation) = marked["metadata"]["generation"].as_u64() {
            marked["metadata"]["generation"] = (generation + 1).into();
        }
        Ok(Written::Changed(self.put(resource, Some(present), marked)))
    }

    fn put(&mut self, resource: &'static Resource, before: Option<Arc<Object>>, mut object: Value) -> Change {
        let object = self.stamped(&mut object);
        let name = name_of(&object);
        self.objects.entry(resource.index).or_default().insert(name, Arc::clone(&object));
        self.noted(Change::new(resource, before, object, false))
    }

    fn remove(&mut self, resource: &'static Resource, before: &Arc<Object>, mut last: Value) -> Change {
        let object = self.stamped(&mut last);
        if let Some(objects) = self.objects.get_mut(&resource.index) {
            objects.remove(&name_of(&object));
        }
        let before = Some(Arc::clone(before));
        self.noted(Change::new(resource, before, object, true))
    }

    fn stamped(&mut self, object: &mut Value) -> Arc<Object> {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        Arc::new(Object::new(object.take()))
    }

    fn noted(&mut self, change: Change) -> Change {
        self.log.insert(self.revision, change.clone());
        self.last.insert(change.resource.index, self.revision);
        change
    }
}

/// What a write did.
#[derive(Debug)]
pub(super) enum Written {
    /// Nothing: the object was so already.
    Same(Arc<Object>),
    /// This.
    Changed(Change),
    /// The last finalizer went, and the object with it; with what is answered.
    Ended(Change, Value),
}

/// The object as it is to be: of `wanted` only what this place may change.
fn settled(place: &Place, present: &Value, mut wanted: Value) -> Result<Value, Refusal> {
    let mut next = present.clone();
    if place.status {
        match fields(&mut wanted)?.remove("status") {
            Some(status) => next["status"] = status,
            None => drop(fields(&mut next)?.remove("status")),
        }
        return Ok(next);
    }
    let fields = fields(&mut wanted)?;
    if place.resource.custom {
        match present.get("status") {
            Some(status) => drop(fields.insert("status".to_owned(), status.clone())),
            None => drop(fields.remove("status")),
        }
    }
    fields.insert("apiVersion".to_owned(), present["apiVersion"].clone());
    fields.insert("kind".to_owned(), present["kind"].clone());
    for fixed in [
        "uid",
        "name",
        "namespace",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "resourceVersion",
    ] {
        match present["metadata"].get(fixed) {
            Some(value) => wanted["metadata"][fixed] = value.clone(),
            None => {
                if let Some(meta) = wanted["metadata"].as_object_mut() {
                    meta.remove(fixed);
                }
            }
        }
    }
    if let Some(meta) = wanted["metadata"].as_object_mut() {
        meta.remove("managedFields");
        if meta.get("finalizers").and_then(Value::as_array).is_some_and(Vec::is_empty) {
            meta.remove("finalizers");
        }
    }
    Ok(wanted)
}

/// Whether something other than metadata and status differs.
fn wanted_differs(before: &Value, after: &Value) -> bool {
    fn wanted(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
        let fields = object.as_object().into_iter().flatten();
        fields.filter(|(name, _)| *name != "metadata" && *name != "status")
    }
    wanted(before).ne(wanted(after))
}

fn finalizers(object: &Value) -> Vec<&str> {
    object["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn adds_finalizer(before: &Value, after: &Value) -> bool {
    let present = finalizers(before);
    finalizers(after).iter().any(|name| !present.contains(name))
}

fn name_of(object: &Value) -> Name {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

fn fields(object: &mut Value) -> Result<&mut Map<String, Value>, Refusal> {
    object.as_object_mut().ok_or_else(|| Refusal::bad_request("the body is no object"))
}

/// A moment as the server writes it: whole seconds.
fn seconds(now: Timestamp) -> Value {
    Timestamp::from_second(now.as_second()).unwrap_or(now).to_string().into()
}

/// JSON merge patch, RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Some(changes) = patch.as_object() else {
        target.clone_from(patch);
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    if let Some(fields) = target.as_object_mut() {
        for (name, change) in changes {
            if change.is_null() {
                fields.remove(name);
            } else {
                merge(fields.entry(name).or_insert(Value::Null), change);
            }
        }
    }
}
