//! Reference pages: what `kubectl explain` says, as Markdown.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};

/// The page of one kind: what it is, its columns, every field of spec and status, and every rule.
pub(crate) fn page(definition: &CustomResourceDefinition) -> String {
    let names = &definition.spec.names;
    let mut page = format!("# {}\n\n", names.kind);
    for version in &definition.spec.versions {
        let Some(root) = version.schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref()) else {
            continue;
        };
        page.push_str(root.description.as_deref().unwrap_or_default());
        page.push_str("\n\n");
        let short = names.short_names.as_deref().unwrap_or_default().join(", ");
        push(
            &mut page,
            &format!(
                "`{}/{}`, {}, resource `{}`, short name `{short}`.\n\n",
                definition.spec.group,
                version.name,
                scope(definition),
                names.plural,
            ),
        );
        rules_of_object(&mut page, root);
        for part in ["spec", "status"] {
            let Some(schema) = root.properties.as_ref().and_then(|properties| properties.get(part)) else {
                continue;
            };
            page.push_str(&format!("## {part}\n\n"));
            page.push_str("| field | type | description |\n|---|---|---|\n");
            rows(&mut page, "", schema);
            page.push('\n');
            let mut rules = Vec::new();
            collect_rules(part, schema, &mut rules);
            if !rules.is_empty() {
                page.push_str("Rules:\n\n");
                for (path, message) in rules {
                    page.push_str(&format!("- `{path}`: {message}\n"));
                }
                page.push('\n');
            }
        }
    }
    page.truncate(page.trim_end().len());
    page.push('\n');
    page
}

/// The page that leads to the others.
pub(crate) fn index(definitions: &[CustomResourceDefinition]) -> String {
    let mut page =
        "# API reference\n\n| kind | scope | short name | what it is |\n|---|---|---|---|\n".to_owned();
    for definition in definitions {
        let names = &definition.spec.names;
        let description = definition
            .spec
            .versions
            .first()
            .and_then(|version| version.schema.as_ref()?.open_api_v3_schema.as_ref()?.description.as_deref())
            .unwrap_or_default();
        let first = description.split_once(". ").map_or(description, |(first, _)| first);
        push(
            &mut page,
            &format!(
                "| [{kind}]({file}.md) | {scope} | `{short}` | {what}. |\n",
                kind = names.kind,
                file = names.kind.to_lowercase(),
                scope = scope(definition),
                short = names.short_names.as_deref().unwrap_or_default().join(", "),
                what = first.trim_end_matches('.'),
            ),
        );
    }
    page
}

fn scope(definition: &CustomResourceDefinition) -> &'static str {
    if definition.spec.scope == "Namespaced" { "namespaced" } else { "cluster-scoped" }
}

/// Rules that concern more than spec or status: the name, what status may become.
fn rules_of_object(page: &mut String, root: &JSONSchemaProps) {
    let rules = root.x_kubernetes_validations.as_deref().unwrap_or_default();
    if rules.is_empty() {
        return;
    }
    push(page, "Rules:\n\n");
    for rule in rules {
        push(page, &format!("- {}\n", without_tags(rule.message.as_deref().unwrap_or(&rule.rule))));
    }
    page.push('\n');
}

fn rows(page: &mut String, prefix: &str, schema: &JSONSchemaProps) {
    for (name, field) in schema.properties.iter().flatten() {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        let required = schema.required.iter().flatten().any(|required| required == name);
        push(
            page,
            &format!(
                "| `{path}`{} | {} | {} |\n",
                if required { " (required)" } else { "" },
                type_of(field),
                field.description.as_deref().unwrap_or_default().replace('|', "\\|").replace("\n\n", "<br>"),
            ),
        );
        rows(page, &path, field);
        if let Some(JSONSchemaPropsOrArray::Schema(item)) = field.items.as_ref() {
            rows(page, &format!("{path}[]"), item);
        }
    }
}

fn type_of(schema: &JSONSchemaProps) -> String {
    if let Some(values) = &schema.enum_ {
        let values: Vec<String> =
            values.iter().map(|value| format!("`{}`", value.0.as_str().unwrap_or_default())).collect();
        return values.join(", ");
    }
    if let Some(JSONSchemaPropsOrArray::Schema(item)) = schema.items.as_ref() {
        return format!("list of {}", type_of(item));
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = schema.additional_properties.as_ref() {
        return format!("map of {}", type_of(values));
    }
    let name = schema.type_.as_deref().unwrap_or_default();
    match (schema.minimum, schema.maximum) {
        (Some(minimum), Some(maximum)) => format!("{name}, {minimum} to {maximum}"),
        (Some(minimum), None) => format!("{name}, at least {minimum}"),
        (None, Some(maximum)) => format!("{name}, at most {maximum}"),
        (None, None) => name.to_owned(),
    }
}

fn collect_rules(path: &str, schema: &JSONSchemaProps, rules: &mut Vec<(String, String)>) {
    for rule in schema.x_kubernetes_validations.iter().flatten() {
        rules.push((
            format!("{path}{}", rule.field_path.as_deref().unwrap_or_default()),
            without_tags(rule.message.as_deref().unwrap_or(&rule.rule)),
        ));
    }
    for (name, field) in schema.properties.iter().flatten() {
        collect_rules(&format!("{path}.{name}"), field, rules);
        if let Some(JSONSchemaPropsOrArray::Schema(item)) = field.items.as_ref() {
            collect_rules(&format!("{path}.{name}[]"), item, rules);
        }
    }
}

/// Text in which nothing is taken for an HTML tag.
fn without_tags(text: &str) -> String {
    text.replace('<', "&lt;")
}

fn push(page: &mut String, text: &str) {
    page.push_str(text);
}
