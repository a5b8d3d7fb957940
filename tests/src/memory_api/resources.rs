//! The kinds that the server knows, and the values that their schemas fill in.

use kubexen_crds::manifest;
use serde_json::Value;
use std::{collections::BTreeMap, sync::OnceLock};

/// A kind of objects.
#[derive(Debug)]
pub(super) struct Resource {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) plural: String,
    pub(super) kind: String,
    pub(super) namespaced: bool,
    /// Only kinds of KubeXen have a generation, a status of its own, and defaults.
    pub(super) custom: bool,
    /// Its place among all kinds.
    pub(super) index: usize,
    schema: Value,
}

/// Kinds of Kubernetes itself: group, plural, kind, whether it is namespaced.
const BUILT_IN: [(&str, &str, &str, bool); 9] = [
    ("", "namespaces", "Namespace", false),
    ("", "secrets", "Secret", true),
    ("", "serviceaccounts", "ServiceAccount", true),
    ("coordination.k8s.io", "leases", "Lease", true),
    ("events.k8s.io", "events", "Event", true),
    ("rbac.authorization.k8s.io", "clusterroles", "ClusterRole", false),
    ("rbac.authorization.k8s.io", "clusterrolebindings", "ClusterRoleBinding", false),
    ("rbac.authorization.k8s.io", "roles", "Role", true),
    ("rbac.authorization.k8s.io", "rolebindings", "RoleBinding", true),
];

impl Resource {
    /// The kind with this plural in this group and version.
    pub(super) fn find(group: &str, version: &str, plural: &str) -> Option<&'static Self> {
        all().get(&(group.to_owned(), plural.to_owned())).filter(|resource| resource.version == version)
    }

    /// How many kinds there are.
    pub(super) fn count() -> usize {
        all().len()
    }

    /// `apiVersion` of its objects.
    pub(super) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Its name in messages, as in `leases.coordination.k8s.io`.
    pub(super) fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// Fills in what the schema has a default for.
    pub(super) fn fill_in(&self, object: &mut Value) {
        fill_in(&self.schema, object);
    }
}

fn all() -> &'static BTreeMap<(String, String), Resource> {
    static ALL: OnceLock<BTreeMap<(String, String), Resource>> = OnceLock::new();
    ALL.get_or_init(|| {
        let built_in = BUILT_IN.into_iter().map(|(group, plural, kind, namespaced)| Resource {
            group: group.to_owned(),
            version: "v1".to_owned(),
            plural: plural.to_owned(),
            kind: kind.to_owned(),
            namespaced,
            custom: false,
            index: 0,
            schema: Value::Null,
        });
        let all = built_in.chain(custom()).enumerate();
        let all = all.map(|(index, one)| Resource { index, ..one });
        all.map(|one| ((one.group.clone(), one.plural.clone()), one)).collect()
    })
}

fn custom() -> impl Iterator<Item = Resource> {
    manifest::definitions().into_iter().flat_map(|definition| {
        let spec = definition.spec;
        spec.versions.into_iter().map(move |version| Resource {
            group: spec.group.clone(),
            version: version.name,
            plural: spec.names.plural.clone(),
            kind: spec.names.kind.clone(),
            namespaced: spec.scope == "Namespaced",
            custom: true,
            index: 0,
            schema: version
                .schema
                .and_then(|schema| serde_json::to_value(schema.open_api_v3_schema).ok())
                .unwrap_or_default(),
        })
    })
}

fn fill_in(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                if !fields.contains_key(name)
                    && let Some(default) = field.get("default")
                {
                    fields.insert(name.clone(), default.clone());
                }
                if let Some(present) = fields.get_mut(name) {
                    fill_in(field, present);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| fill_in(&schema["items"], item)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
