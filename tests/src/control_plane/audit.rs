//! Who wrote what: the API server's audit log, counted.
//!
//! The log says what no client can say about itself: every write request that the server granted, with the user that sent
//! it. Tests use it to show that a converged pool writes nothing, benchmarks to count writes per virtual machine.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Records every write at the end of its handling, with its metadata and without its body.
pub(super) const POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
- level: None
  verbs: [get, list, watch]
- level: None
  nonResourceURLs: ['*']
- level: Metadata
";

/// A moment in the audit log; see [`super::ControlPlane::audit_mark`].
#[derive(Clone, Copy, Debug)]
pub struct Mark(u64);

/// What kind of write it was and who sent it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct WriteKind {
    /// The authenticated user, such as `system:serviceaccount:kubexen-system:kubexen-controller`.
    pub user: String,
    /// `create`, `update`, `patch`, `delete` or `deletecollection`.
    pub verb: String,
    /// The plural name of the kind, such as `virtualmachines`.
    pub resource: String,
    /// Such as `status`; empty for the object itself.
    pub subresource: String,
}

/// Granted writes by kind.
///
/// Renewals of leases are heartbeats, not work, and are counted apart. A server-side apply that changes nothing counts: the
/// API server had the work of it all the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Writes {
    /// How many writes of each kind were granted, leases excluded.
    pub by_kind: BTreeMap<WriteKind, u64>,
    /// How many writes of `leases` were granted, by user.
    pub leases: BTreeMap<String, u64>,
}

impl Writes {
    /// All writes but those of leases.
    pub fn total(&self) -> u64 {
        self.by_kind.values().sum()
    }

    /// The writes of those users, and of those kinds, that the predicate accepts; leases are kept.
    #[must_use]
    pub fn filter(mut self, mut accept: impl FnMut(&WriteKind) -> bool) -> Self {
        self.by_kind.retain(|kind, _| accept(kind));
        self
    }

    fn add(&mut self, event: Event) {
        let (Some(object), true) =
            (event.object_ref, event.response_status.is_some_and(|status| status.code < 400))
        else {
            return;
        };
        let user = event.user.username;
        if object.resource == "leases" {
            *self.leases.entry(user).or_default() += 1;
            return;
        }
        let kind =
            WriteKind { user, verb: event.verb, resource: object.resource, subresource: object.subresource };
        *self.by_kind.entry(kind).or_default() += 1;
    }
}

impl fmt::Display for Writes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (WriteKind { user, verb, resource, subresource }, count) in &self.by_kind {
            let slash = if subresource.is_empty() { "" } else { "/" };
            writeln!(f, "{count:>8}  {verb:<7} {resource}{slash}{subresource}  by {user}")?;
        }
        Ok(())
    }
}

/// The part of an audit event (`audit.k8s.io/v1`) that is counted.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    verb: String,
    user: User,
    object_ref: Option<ObjectRef>,
    response_status: Option<ResponseStatus>,
}

#[derive(Debug, Deserialize)]
struct User {
    username: String,
}

#[derive(Debug, Deserialize)]
struct ObjectRef {
    #[serde(default)]
    resource: String,
    #[serde(default)]
    subresource: String,
}

#[derive(Debug, Deserialize)]
struct ResponseStatus {
    #[serde(default)]
    code: u16,
}

/// The present end of the log.
pub(super) fn mark(log: &Path) -> Result<Mark> {
    match std::fs::metadata(log) {
        Ok(metadata) => Ok(Mark(metadata.len())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Mark(0)),
        Err(error) => Err(error).with_context(|| format!("cannot look at {}", log.display())),
    }
}

/// The granted writes from `mark` on. A line that is still being written belongs to the next count.
pub(super) fn writes_since(log: &Path, mark: Mark) -> Result<Writes> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        file.seek(SeekFrom::Start(mark.0))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    count(&read().with_context(|| format!("cannot read {}", log.display()))?)
}

fn count(log: &[u8]) -> Result<Writes> {
    let mut writes = Writes::default();
    for line in log.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
        let event = serde_json::from_slice(line)
            .with_context(|| format!("unexpected audit event {}", String::from_utf8_lossy(line)))?;
        writes.add(event);
    }
    Ok(writes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(user: &str, verb: &str, object: &str, code: u16) -> String {
        format!(
            r#"{{"verb":"{verb}","user":{{"username":"{user}"}},"objectRef":{object},"responseStatus":{{"code":{code}}}}}"#
        ) + "\n"
    }

    #[test]
    fn only_granted_writes_count_and_leases_count_apart() {
        let log = [
            event("controller", "patch", r#"{"resource":"domains","subresource":"status"}"#, 200),
            event("controller", "patch", r#"{"resource":"domains","subresource":"status"}"#, 200),
            event("controller", "patch", r#"{"resource":"domains"}"#, 409),
            event("agent", "update", r#"{"resource":"leases"}"#, 200),
            event("agent", "create", r#"{"resource":"events"}"#, 201),
        ]
        .concat();
        let writes = count(log.as_bytes()).unwrap();
        assert_eq!(writes.total(), 3);
        assert_eq!(writes.leases, BTreeMap::from([("agent".to_owned(), 1)]));
        assert_eq!(
            writes.to_string(),
            "       1  create  events  by agent\n       2  patch   domains/status  by controller\n"
        );
        assert_eq!(writes.filter(|kind| kind.user == "controller").total(), 2);
    }

    #[test]
    fn a_line_that_is_still_being_written_is_left_for_later() {
        let whole = event("agent", "create", r#"{"resource":"events"}"#, 201);
        let half = &whole[..whole.len() - 9];
        assert_eq!(count(format!("{whole}{half}").as_bytes()).unwrap().total(), 1);
    }

    #[test]
    fn an_event_that_is_no_json_is_an_error_not_a_zero() {
        assert!(count(b"not json\n").is_err());
    }
}
