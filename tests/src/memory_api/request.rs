//! Requests as the server understands them, and refusals as it answers them.

use super::resources::Resource;
use http::{StatusCode, Uri};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What a request is about.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) resource: &'static Resource,
    /// Empty for cluster-scoped kinds, and for lists of all namespaces.
    pub(super) namespace: String,
    /// None for lists, watches and creates.
    pub(super) name: Option<String>,
    /// Whether it is the status alone.
    pub(super) status: bool,
}

/// Which objects a list or a watch shows.
#[derive(Clone, Debug, Default)]
pub(super) struct Selection {
    pub(super) namespace: String,
    /// By JSON pointer.
    fields: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: StatusCode,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into() }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub(super) fn not_found(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", resource.qualified());
        Self::new(StatusCode::NOT_FOUND, "NotFound", message)
    }

    pub(super) fn conflict(resource: &Resource, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", resource.qualified());
        Self::new(StatusCode::CONFLICT, "Conflict", message)
    }

    pub(super) fn invalid(resource: &Resource, name: &str, why: &str) -> Self {
        let message = format!("{} \"{name}\" is invalid: {why}", resource.kind);
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
    }

    /// The answer's body.
    pub(super) fn status(&self) -> Value {
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code.as_u16(),
        })
    }
}

/// What the path of a request names: `/api/v1/…` or `/apis/<group>/<version>/…`.
pub(super) fn place(uri: &Uri) -> Result<Place, Refusal> {
    let parts: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
    let unknown = || {
        Refusal::new(StatusCode::NOT_FOUND, "NotFound", "the server could not find the requested resource")
    };
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return Err(unknown()),
    };
    let (namespace, plural, rest) = match rest {
        ["namespaces", namespace, plural, rest @ ..] if *plural != "status" => (*namespace, *plural, rest),
        [plural, rest @ ..] => ("", *plural, rest),
        [] => return Err(unknown()),
    };
    let resource = Resource::find(group, version, plural).ok_or_else(unknown)?;
    let (name, status) = match rest {
        [] => (None, false),
        [name] => (Some((*name).to_owned()), false),
        [name, "status"] if resource.custom => (Some((*name).to_owned()), true),
        _ => return Err(unknown()),
    };
    if resource.namespaced == namespace.is_empty() && name.is_some() {
        return Err(unknown());
    }
    Ok(Place { resource, namespace: namespace.to_owned(), name, status })
}

/// The parameters after the question mark.
pub(super) fn query(uri: &Uri) -> BTreeMap<String, String> {
    let pairs = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(name), decoded(value))
        })
        .collect()
}

/// Text without its percent-encoding.
fn decoded(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut plain = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16)).unwrap_or(0);
                u8::try_from(digit() * 16 + digit()).unwrap_or(b'?')
            }
            other => other,
        });
    }
    String::from_utf8_lossy(&plain).into_owned()
}

impl Selection {
    /// What the place and the selectors of a request name.
    pub(super) fn of(place: &Place, query: &BTreeMap<String, String>) -> Result<Self, Refusal> {
        let fields = terms(query.get("fieldSelector"))?.into_iter();
        Ok(Self {
            namespace: place.namespace.clone(),
            fields: fields.map(|(path, value)| (format!("/{}", path.replace('.', "/")), value)).collect(),
            labels: terms(query.get("labelSelector"))?,
        })
    }

    /// Whether it shows this object.
    pub(super) fn shows(&self, object: &Value) -> bool {
        let field = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let meta = &object["metadata"];
        (self.namespace.is_empty() || meta["namespace"] == self.namespace.as_str())
            && self.fields.iter().all(|(pointer, value)| field(pointer) == value)
            && self.labels.iter().all(|(name, value)| meta["labels"][name] == value.as_str())
    }
}

/// The terms of a selector, which are all equalities.
fn terms(selector: Option<&String>) -> Result<BTreeMap<String, String>, Refusal> {
    let terms = selector.map(String::as_str).unwrap_or_default();
    terms
        .split(',')
        .filter(|term| !term.is_empty())
        .map(|term| match term.split_once('=') {
            Some((name, value)) if !name.ends_with('!') => {
                Ok((name.to_owned(), value.trim_start_matches('=').to_owned()))
            }
            Some(_) | None => Err(Refusal::bad_request(format!("only equalities are understood: {term}"))),
        })
        .collect()
}
