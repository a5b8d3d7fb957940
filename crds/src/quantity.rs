//! Byte sizes and time spans as people write them.

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, fmt, time::Duration};

/// A text that is no quantity or no time span.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` must be {expected}")]
pub struct Malformed {
    text: String,
    expected: &'static str,
}

/// A number of bytes as a Kubernetes quantity: digits and one of Ki, Mi, Gi, Ti, k, M, G, T, or no suffix.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash)]
#[serde(transparent)]
pub struct ByteQuantity(pub String);

const SUFFIXES: [(&str, u64); 8] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
];

/// Digits and nothing else: `str::parse` would take a sign too.
fn number(digits: &str) -> Option<u64> {
    if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
}

impl ByteQuantity {
    /// The size in bytes.
    ///
    /// # Errors
    /// When the text is no quantity, or is larger than `u64` holds. The API server refuses such text, so this is
    /// seen only with objects that were written under another schema.
    pub fn bytes(&self) -> Result<u64, Malformed> {
        let malformed = || Malformed { text: self.0.clone(), expected: "a quantity such as 512Mi or 4Gi" };
        let (digits, factor) = SUFFIXES
            .iter()
            .find_map(|(suffix, factor)| self.0.strip_suffix(suffix).map(|digits| (digits, *factor)))
            .unwrap_or((self.0.as_str(), 1));
        number(digits).and_then(|number| number.checked_mul(factor)).ok_or_else(malformed)
    }

    /// The quantity for a number of bytes, in the largest binary unit that loses nothing.
    #[must_use]
    pub fn from_bytes(bytes: u64) -> Self {
        for (suffix, factor) in [("Ti", 1_u64 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)] {
            if bytes != 0 && bytes.is_multiple_of(factor) {
                return Self(format!("{}{suffix}", bytes / factor));
            }
        }
        Self(bytes.to_string())
    }
}

impl fmt::Display for ByteQuantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl JsonSchema for ByteQuantity {
    fn schema_name() -> Cow<'static, str> {
        "ByteQuantity".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "maxLength": 20, "pattern": "^[0-9]{1,15}(Ki|Mi|Gi|Ti|k|M|G|T)?$"})
    }
}

/// A time span: hours, minutes and seconds, as in `90s`, `5m` or `1h30m`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash)]
#[serde(transparent)]
pub struct TimeSpan(pub String);

impl TimeSpan {
    /// The length of the span.
    ///
    /// # Errors
    /// When the text is no time span. The API server refuses such text.
    pub fn duration(&self) -> Result<Duration, Malformed> {
        let malformed =
            || Malformed { text: self.0.clone(), expected: "a time span such as 90s, 5m or 1h30m" };
        let mut seconds: u64 = 0;
        let mut rest = self.0.as_str();
        for (unit, factor) in [('h', 3600), ('m', 60), ('s', 1)] {
            if let Some((digits, after)) = rest.split_once(unit) {
                let part =
                    number(digits).and_then(|number| number.checked_mul(factor)).ok_or_else(malformed)?;
                seconds = seconds.checked_add(part).ok_or_else(malformed)?;
                rest = after;
            }
        }
        if rest.is_empty() && !self.0.is_empty() {
            Ok(Duration::from_secs(seconds))
        } else {
            Err(malformed())
        }
    }
}

impl JsonSchema for TimeSpan {
    fn schema_name() -> Cow<'static, str> {
        "TimeSpan".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "minLength": 2, "maxLength": 16, "pattern": "^([0-9]{1,4}h)?([0-9]{1,5}m)?([0-9]{1,6}s)?$"})
    }
}

/// Labels that a host must carry, all of them, to be used.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostSelector {
    /// Label names and the values they must have, at most 16. Default: empty, which every host matches.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    #[schemars(schema_with = "match_labels_schema")]
    pub match_labels: std::collections::BTreeMap<String, String>,
}

impl HostSelector {
    /// Whether a host with these labels matches.
    #[must_use]
    pub fn matches(&self, labels: &std::collections::BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(name, value)| labels.get(name) == Some(value))
    }
}

fn match_labels_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {
            "type": "string",
            "maxLength": 63,
            "pattern": "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$",
            "description": "Value that the label must have.",
        },
        "x-kubernetes-validations": [{
            "rule": "self.all(name, name.size() >= 1 && name.size() <= 317)",
            "message": "names in `matchLabels` must be 1 to 317 characters long, as label names are",
        }],
    })
}
