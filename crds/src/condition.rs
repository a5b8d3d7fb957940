//! Conditions: `metav1.Condition` with bounds, and the one way to change a list of them.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::{Schema, SchemaGenerator, json_schema};

/// Value of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// Nobody can say at the moment.
    Unknown,
}

impl State {
    /// The text that stands in the object.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            State::True => "True",
            State::False => "False",
            State::Unknown => "Unknown",
        }
    }
}

/// A condition to be set, without the times that only the list can know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// `Ready`, `Scheduled` …
    pub type_: &'static str,
    /// Whether it holds.
    pub state: State,
    /// CamelCase, from a fixed set.
    pub reason: &'static str,
    /// What a person should read: what is so, and what to change.
    pub message: String,
}

impl Wanted {
    /// A condition with all its parts.
    pub fn new(type_: &'static str, state: State, reason: &'static str, message: impl Into<String>) -> Self {
        Self { type_, state, reason, message: message.into() }
    }
}

/// The conditions after `wanted` was set for `generation`.
///
/// Guarantees: sorted by type; conditions not in `wanted` are dropped (one writer owns the list);
/// `lastTransitionTime` moves only where the status changed; equal input gives an equal list, so that a
/// comparison with what stands in the object tells whether a write is needed.
#[must_use]
pub fn set(
    present: &[Condition],
    wanted: Vec<Wanted>,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let mut conditions: Vec<Condition> = wanted
        .into_iter()
        .map(|wanted| {
            let before = present.iter().find(|condition| condition.type_ == wanted.type_);
            let last_transition_time = before
                .filter(|before| before.status == wanted.state.as_str())
                .map_or(Time(now), |before| before.last_transition_time.clone());
            Condition {
                type_: wanted.type_.to_owned(),
                status: wanted.state.as_str().to_owned(),
                reason: wanted.reason.to_owned(),
                message: truncated(wanted.message),
                observed_generation: generation,
                last_transition_time,
            }
        })
        .collect();
    conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
    conditions
}

/// The condition of this type, if it is there.
#[must_use]
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether the condition of this type is there and `True`.
#[must_use]
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    find(conditions, type_).is_some_and(|condition| condition.status == State::True.as_str())
}

const MESSAGE_LIMIT: usize = 2048;

fn truncated(mut message: String) -> String {
    if message.len() > MESSAGE_LIMIT {
        let end = (0..=MESSAGE_LIMIT - 3).rev().find(|&index| message.is_char_boundary(index)).unwrap_or(0);
        message.truncate(end);
        message.push_str("...");
    }
    message
}

/// Schema of a `conditions` list: a map by type, every string bounded.
pub(crate) fn conditions_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "description": "One aspect of the object's state.",
            "required": ["type", "status", "reason", "message", "lastTransitionTime"],
            "properties": {
                "type": {"type": "string", "minLength": 1, "maxLength": 63, "description": "What the condition is about, in CamelCase."},
                "status": {"type": "string", "enum": ["True", "False", "Unknown"], "description": "Whether it holds."},
                "reason": {"type": "string", "minLength": 1, "maxLength": 63, "description": "Why, as one CamelCase word from a fixed set; made for programs."},
                "message": {"type": "string", "maxLength": MESSAGE_LIMIT, "description": "Why, in words, and what to change; made for people."},
                "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0, "description": "The `metadata.generation` that the condition speaks of."},
                "lastTransitionTime": {"type": "string", "format": "date-time", "maxLength": 64, "description": "When `status` last changed."},
            },
        },
    })
}
