//! Writes to the API server: only what differs, with a time limit.

use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use std::{fmt::Debug, future::Future, time::Duration};

/// Longest time a single request to the API server may take.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(15);

/// Why a write did not happen, or is not known to have happened.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The API server refused, or could not be reached.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// No answer in time; whether the write happened is not known.
    #[error("The API server did not answer within {} s", REQUEST_LIMIT.as_secs())]
    TimedOut,
    /// A value of ours cannot be written as JSON.
    #[error("A value cannot be written as JSON")]
    Serialize(#[from] serde_json::Error),
}

impl WriteError {
    /// Whether the object is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Api(kube::Error::Api(status)) if status.is_not_found())
    }

    /// Whether the object changed in between.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Api(kube::Error::Api(status)) if status.is_conflict())
    }

    /// Whether an object of that name is there already.
    #[must_use]
    pub fn is_already_exists(&self) -> bool {
        matches!(self, Self::Api(kube::Error::Api(status)) if status.is_already_exists())
    }

    /// Whether the API server says that the object breaks its rules; trying again is of no use.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        matches!(self, Self::Api(kube::Error::Api(status)) if status.is_invalid())
    }
}

/// Waits for a request to the API server, at most [`REQUEST_LIMIT`].
///
/// # Errors
/// The request's own, or `TimedOut`.
pub async fn limited<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, WriteError> {
    match tokio::time::timeout(REQUEST_LIMIT, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(WriteError::TimedOut),
    }
}

/// The JSON merge patch (RFC 7386) that turns `before` into `after`; none when they are equal. Lists are replaced
/// whole. `null` in either counts as absent.
#[must_use]
pub fn merge_patch(before: &Value, after: &Value) -> Option<Value> {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            let mut patch = Map::new();
            for (name, value) in after {
                let old = before.get(name).unwrap_or(&Value::Null);
                if let Some(change) = merge_patch(old, value) {
                    patch.insert(name.clone(), change);
                }
            }
            for (name, value) in before {
                if !value.is_null() && !after.contains_key(name) {
                    patch.insert(name.clone(), Value::Null);
                }
            }
            (!patch.is_empty()).then_some(Value::Object(patch))
        }
        _ if before == after => None,
        _ => Some(after.clone()),
    }
}

/// The JSON merge patch that turns the status `before` into `after`; none when they are equal, which is the common case and costs
/// no JSON.
///
/// # Errors
/// `Serialize`.
pub fn status_patch<S>(before: Option<&S>, after: &S) -> Result<Option<Value>, WriteError>
where
    S: Serialize + PartialEq,
{
    if before == Some(after) {
        return Ok(None);
    }
    let before = before.map(serde_json::to_value).transpose()?.unwrap_or_else(|| json!({}));
    Ok(merge_patch(&before, &serde_json::to_value(after)?))
}

/// Writes `after` as the status of `object`, whose status is `before`, if the two differ.
///
/// It is a compare-and-swap on the version that was seen: whoever looked at an older state writes nothing, and neither does a
/// request that comes late, after a newer one.
///
/// Returns the object as it stands now, or none when nothing had to be written.
///
/// # Errors
/// See [`WriteError`].
pub async fn status<K, S>(
    api: &Api<K>,
    object: &K,
    manager: &str,
    before: Option<&S>,
    after: &S,
) -> Result<Option<K>, WriteError>
where
    K: Resource + Clone + Debug + DeserializeOwned,
    S: Serialize + PartialEq,
{
    let Some(change) = status_patch(before, after)? else { return Ok(None) };
    let meta = object.meta();
    let patch = Patch::Merge(json!({
        "metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version},
        "status": change,
    }));
    let parameters = PatchParams { field_manager: Some(manager.to_owned()), ..PatchParams::default() };
    limited(api.patch_status(&object.name_any(), &parameters, &patch)).await.map(Some)
}

/// Merges `change` into the object, metadata and spec.
///
/// # Errors
/// See [`WriteError`]. A `resourceVersion` inside `change` makes it a compare-and-swap.
pub async fn merge<K>(api: &Api<K>, name: &str, manager: &str, change: &Value) -> Result<K, WriteError>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let parameters = PatchParams { field_manager: Some(manager.to_owned()), ..PatchParams::default() };
    limited(api.patch(name, &parameters, &Patch::Merge(change))).await
}

/// The change that puts `finalizer` on an object, or none if it is there. Guarded by uid and version, because the list is
/// replaced whole and others may have theirs in it.
#[must_use]
pub fn with_finalizer(object: &impl Resource, finalizer: &str) -> Option<Value> {
    let present = object.meta().finalizers.as_deref().unwrap_or_default();
    (!present.iter().any(|name| name == finalizer)).then(|| {
        let names: Vec<&str> = present.iter().map(String::as_str).chain([finalizer]).collect();
        finalizers(object, &names)
    })
}

/// The change that takes `finalizer` off an object, or none if it is not there.
#[must_use]
pub fn without_finalizer(object: &impl Resource, finalizer: &str) -> Option<Value> {
    let present = object.meta().finalizers.as_deref().unwrap_or_default();
    present.iter().any(|name| name == finalizer).then(|| {
        let names: Vec<&str> = present.iter().map(String::as_str).filter(|name| *name != finalizer).collect();
        finalizers(object, &names)
    })
}

fn finalizers(object: &impl Resource, names: &[&str]) -> Value {
    let meta = object.meta();
    json!({"metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version, "finalizers": names}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_need_no_patch() {
        assert_eq!(merge_patch(&json!({"a": 1, "b": null}), &json!({"a": 1})), None);
    }

    #[test]
    fn a_field_that_went_away_becomes_null() {
        let patch =
            merge_patch(&json!({"a": {"b": 1, "c": 2}, "d": [1]}), &json!({"a": {"b": 1}, "d": [1, 2]}));
        assert_eq!(patch, Some(json!({"a": {"c": null}, "d": [1, 2]})));
    }
}
