//! Objects as the server keeps them.

use serde_json::Value;
use std::{ops::Deref, sync::OnceLock};

/// An object at one version. Whatever changes it makes another.
#[derive(Debug, Default)]
pub struct Object {
    value: Value,
    text: OnceLock<String>,
}

impl Object {
    /// The object that this value is.
    #[must_use]
    pub const fn new(value: Value) -> Self {
        Self { value, text: OnceLock::new() }
    }

    /// It as JSON, written once for all who are answered with it.
    pub(super) fn text(&self) -> &str {
        self.text.get_or_init(|| self.value.to_string())
    }
}

impl Deref for Object {
    type Target = Value;

    fn deref(&self) -> &Value {
        &self.value
    }
}
