//! The CustomResourceDefinitions, and every file that is generated from them: `crds/manifests/` for
//! `kubectl apply -f`, the chart's templates, and the reference pages.

use crate::{
    Domain, Host, Network, Pool, StorageRepository, VirtualDisk, VirtualMachine, VirtualMachineMigration,
    Volume, reference,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;
use serde_json::Value;
use std::path::PathBuf;

/// Every CustomResourceDefinition of the API, user kinds first.
///
/// The schemas are the derived ones made fit for people and for the API server: the description of a kind stands at
/// its root, text is not broken into lines, and `null` is no value.
#[must_use]
pub fn definitions() -> Vec<CustomResourceDefinition> {
    let mut definitions = vec![
        VirtualMachine::crd(),
        VirtualMachineMigration::crd(),
        VirtualDisk::crd(),
        Network::crd(),
        StorageRepository::crd(),
        Host::crd(),
        Pool::crd(),
        Domain::crd(),
        Volume::crd(),
    ];
    for definition in &mut definitions {
        for version in &mut definition.spec.versions {
            if let Some(root) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut())
            {
                describe_root(root);
                tidy(root);
            }
        }
    }
    definitions
}

/// A generated file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeneratedFile {
    /// Where it belongs, from the root of the repository.
    pub path: PathBuf,
    /// What it contains.
    pub content: String,
}

/// The folders that hold nothing but generated files, from the root of the repository.
pub const GENERATED_FOLDERS: [&str; 3] =
    ["crds/manifests", "charts/kubexen/templates/crds", "docs/reference"];

/// Every generated file. Equal types give equal files, byte for byte.
///
/// # Errors
/// When a definition cannot be written as YAML.
pub fn generated_files() -> Result<Vec<GeneratedFile>, serde_yaml_ng::Error> {
    let definitions = definitions();
    let mut files = Vec::new();
    for definition in &definitions {
        let names = &definition.spec.names;
        files.push(GeneratedFile {
            path: format!("crds/manifests/{}.yaml", names.plural).into(),
            content: manifest(definition)?,
        });
        files.push(GeneratedFile {
            path: format!("charts/kubexen/templates/crds/{}.yaml", names.plural).into(),
            content: chart_template(definition)?,
        });
        files.push(GeneratedFile {
            path: format!("docs/reference/{}.md", names.kind.to_lowercase()).into(),
            content: reference::page(definition),
        });
    }
    files.push(GeneratedFile {
        path: "docs/reference/index.md".into(),
        content: reference::index(&definitions),
    });
    Ok(files)
}

const HEADER: &str = "Generated from the types in crds/src by `cargo xtask crds`: change those.";

/// A definition as YAML, for `kubectl apply -f`.
fn manifest(definition: &CustomResourceDefinition) -> Result<String, serde_yaml_ng::Error> {
    Ok(format!("# {HEADER}\n{}", yaml(definition)?))
}

/// A definition as a template of the chart: installed and kept as the chart's values say.
fn chart_template(definition: &CustomResourceDefinition) -> Result<String, serde_yaml_ng::Error> {
    let body = yaml(definition)?.replace("{{", "{{ \"{{\" }}");
    let metadata = "metadata:\n";
    let head = concat!(
        "metadata:\n",
        "  labels:\n",
        "    {{- include \"kubexen.labels\" . | nindent 4 }}\n",
        "  {{- if .Values.crds.keep }}\n",
        "  annotations:\n",
        "    helm.sh/resource-policy: keep\n",
        "  {{- end }}\n",
    );
    Ok(format!(
        "{{{{- /* {HEADER} */}}}}\n{{{{- if .Values.crds.install }}}}\n{}{{{{- end }}}}\n",
        body.replacen(metadata, head, 1)
    ))
}

fn yaml(definition: &CustomResourceDefinition) -> Result<String, serde_yaml_ng::Error> {
    let mut value =
        serde_json::to_value(definition).map_err(<serde_yaml_ng::Error as serde::ser::Error>::custom)?;
    whole_numbers(&mut value);
    serde_yaml_ng::to_string(&value)
}

/// Bounds are floating-point numbers in the type of a schema, but `128` is what a person reads and what the API
/// server gives back.
fn whole_numbers(value: &mut Value) {
    match value {
        Value::Number(number) => {
            let text = number.to_string();
            if let Some(whole) = text.strip_suffix(".0").and_then(|whole| whole.parse::<i64>().ok()) {
                *value = whole.into();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(fields) => fields.values_mut().for_each(whole_numbers),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// The derive macro puts the description of a kind on its spec, and a sentence about itself at the root.
fn describe_root(root: &mut JSONSchemaProps) {
    let Some(properties) = root.properties.as_mut() else { return };
    if let Some(spec) = properties.get_mut("spec") {
        root.description = spec.description.replace("What is wanted.".to_owned());
    }
    root.title = None;
}

fn tidy(schema: &mut JSONSchemaProps) {
    // An optional field is left out, never null: `has()` in a rule then means what it says.
    schema.nullable = None;
    if let Some(description) = schema.description.as_mut() {
        *description = unwrapped(description);
    }
    if let Some(properties) = schema.properties.as_mut() {
        properties.values_mut().for_each(tidy);
    }
    match schema.items.as_mut() {
        Some(JSONSchemaPropsOrArray::Schema(item)) => tidy(item),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => items.iter_mut().for_each(tidy),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = schema.additional_properties.as_mut() {
        tidy(values);
    }
}

/// Text with its lines joined; paragraphs stay apart.
fn unwrapped(text: &str) -> String {
    let paragraphs = text.split("\n\n").map(|paragraph| paragraph.split('\n').collect::<Vec<_>>().join(" "));
    paragraphs.collect::<Vec<_>>().join("\n\n")
}
