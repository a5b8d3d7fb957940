//! The kinds that the server knows, and the values that their schemas fill in.

use kubexen_crds::manifest;
use serde_json::Value;
use std::sync::OnceLock;

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
    defaults: Defaults,
}

/// The defaults of a schema, without those of its parts that have none.
#[derive(Debug, Default)]
struct Defaults {
    fields: Vec<(String, Option<Value>, Defaults)>,
    items: Option<Box<Defaults>>,
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
        all().iter().find(|one| one.plural == plural && one.group == group && one.version == version)
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
        self.defaults.fill_in(object);
    }
}

fn all() -> &'static [Resource] {
    static ALL: OnceLock<Vec<Resource>> = OnceLock::new();
    ALL.get_or_init(|| {
        let built_in = BUILT_IN.into_iter().map(|(group, plural, kind, namespaced)| Resource {
            group: group.to_owned(),
            version: "v1".to_owned(),
            plural: plural.to_owned(),
            kind: kind.to_owned(),
            namespaced,
            custom: false,
            index: 0,
            defaults: Defaults::default(),
        });
        let all = built_in.chain(custom()).enumerate();
        all.map(|(index, one)| Resource { index, ..one }).collect()
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
            defaults: version
                .schema
                .and_then(|schema| serde_json::to_value(schema.open_api_v3_schema).ok())
                .map(|schema| Defaults::of(&schema))
                .unwrap_or_default(),
        })
    })
}

impl Defaults {
    fn of(schema: &Value) -> Self {
        let properties = schema["properties"].as_object().into_iter().flatten();
        let fields = properties.filter_map(|(name, field)| {
            let (default, inside) = (field.get("default").cloned(), Self::of(field));
            (default.is_some() || !inside.is_empty()).then(|| (name.clone(), default, inside))
        });
        let items = schema.get("items").map(Self::of).filter(|items| !items.is_empty());
        Self { fields: fields.collect(), items: items.map(Box::new) }
    }

    fn is_empty(&self) -> bool {
        self.fields.is_empty() && self.items.is_none()
    }

    fn fill_in(&self, value: &mut Value) {
        match value {
            Value::Object(present) => {
                for (name, default, inside) in &self.fields {
                    if let Some(default) = default
                        && !present.contains_key(name)
                    {
                        present.insert(name.clone(), default.clone());
                    }
                    if let Some(field) = present.get_mut(name) {
                        inside.fill_in(field);
                    }
                }
            }
            Value::Array(items) => {
                if let Some(defaults) = &self.items {
                    items.iter_mut().for_each(|item| defaults.fill_in(item));
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
}
