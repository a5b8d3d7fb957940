//! What every schema of the API must keep, so that no new field escapes it: a description that says what `kubectl
//! explain` should, bounds on everything, lists that server-side apply can merge, rules that explain themselves.

use kubexen_crds::manifest::{definitions, generated_files};
use serde_json::Value;

/// A place in a schema: the path that a person would write, and the schema there.
struct Place<'a> {
    path: String,
    schema: &'a Value,
}

impl Place<'_> {
    fn text(&self, key: &str) -> &str {
        self.schema[key].as_str().unwrap_or_default()
    }

    fn in_spec(&self) -> bool {
        self.path.contains(".spec.")
    }

    fn in_conditions(&self) -> bool {
        self.path.contains(".conditions")
    }
}

/// Every schema below the root of every kind, items and map values included.
fn places(check: &mut dyn FnMut(&Place<'_>)) {
    for definition in definitions() {
        for version in &definition.spec.versions {
            let root = serde_json::to_value(version.schema.as_ref().expect("a version has a schema"))
                .expect("a schema is JSON");
            walk(&definition.spec.names.kind, &root["openAPIV3Schema"], check);
        }
    }
}

fn walk(path: &str, schema: &Value, check: &mut dyn FnMut(&Place<'_>)) {
    check(&Place { path: path.to_owned(), schema });
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        walk(&format!("{path}.{name}"), field, check);
    }
    if schema["items"].is_object() {
        walk(&format!("{path}[]"), &schema["items"], check);
    }
    if schema["additionalProperties"].is_object() {
        walk(&format!("{path}{{}}"), &schema["additionalProperties"], check);
    }
}

/// Fails with the list of all places that break the rule.
fn require(rule: &str, holds: impl Fn(&Place<'_>) -> bool) {
    let mut broken = Vec::new();
    let mut seen = 0;
    places(&mut |place| {
        seen += 1;
        if !holds(place) {
            broken.push(place.path.clone());
        }
    });
    assert!(seen > 100, "the walk saw only {seen} places");
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

#[test]
fn every_field_is_described_in_sentences() {
    require("a description is missing or does not end with a full stop", |place| {
        let is_text_of_list = place.path.ends_with("[]") && place.text("type") == "string";
        is_text_of_list || place.text("description").ends_with('.')
    });
}

#[test]
fn a_description_names_the_default_when_there_is_one() {
    require("the description does not mention the default", |place| {
        place.schema.get("default").is_none() || place.text("description").to_lowercase().contains("default")
    });
}

#[test]
fn a_description_explains_every_value_of_an_enumeration() {
    require("the description does not mention every value in backticks", |place| {
        place.in_conditions()
            || place.schema["enum"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .all(|value| place.text("description").contains(&format!("`{value}`")))
    });
}

#[test]
fn a_description_in_spec_names_the_bounds_that_a_person_may_meet() {
    require("the description does not mention the largest value or number of items", |place| {
        ["maximum", "maxItems", "maxProperties"].iter().all(|bound| {
            place.schema.get(*bound).and_then(Value::as_f64).is_none_or(|bound| {
                !place.in_spec() || place.text("description").contains(&bound.to_string())
            })
        })
    });
}

#[test]
fn every_string_is_bounded() {
    require("a string has no maxLength, enum or date-time format", |place| {
        place.text("type") != "string"
            || place.schema.get("maxLength").is_some()
            || place.schema.get("enum").is_some()
            || place.text("format") == "date-time"
    });
}

#[test]
fn every_number_is_bounded() {
    require("a number has no minimum, or none in spec has a maximum", |place| {
        place.text("type") != "integer"
            || (place.schema.get("minimum").is_some()
                && (!place.in_spec() || place.schema.get("maximum").is_some()))
    });
}

#[test]
fn every_list_is_bounded_and_can_be_merged() {
    require("a list has no maxItems, or is no set of texts and no map by required keys", |place| {
        if place.text("type") != "array" {
            return true;
        }
        let items = &place.schema["items"];
        let mergeable = match place.text("x-kubernetes-list-type") {
            "map" => {
                let required = items["required"].as_array().cloned().unwrap_or_default();
                let keys = place.schema["x-kubernetes-list-map-keys"].as_array().cloned().unwrap_or_default();
                !keys.is_empty() && keys.iter().all(|key| required.contains(key))
            }
            "set" => items["type"] == "string",
            _ => false,
        };
        place.schema.get("maxItems").is_some() && mergeable
    });
}

#[test]
fn every_map_is_bounded() {
    require("a map has no maxProperties", |place| {
        place.schema.get("additionalProperties").is_none() || place.schema.get("maxProperties").is_some()
    });
}

#[test]
fn nothing_accepts_null_or_unknown_fields() {
    require("null or unknown fields are accepted, or the type is missing", |place| {
        place.schema.get("nullable").is_none()
            && place.schema.get("x-kubernetes-preserve-unknown-fields").is_none()
            && place.schema.get("type").is_some()
    });
}

#[test]
fn every_rule_names_a_field_in_its_message() {
    require("a rule has no message that names a field in backticks", |place| {
        place.schema["x-kubernetes-validations"]
            .as_array()
            .into_iter()
            .flatten()
            .all(|rule| rule["message"].as_str().is_some_and(|message| message.matches('`').count() >= 2))
    });
}

#[test]
fn every_kind_has_what_tools_and_people_expect() {
    for definition in definitions() {
        let names = &definition.spec.names;
        let kind = &names.kind;
        assert_eq!(names.categories.as_deref(), Some(["xen".to_owned()].as_slice()), "category of {kind}");
        assert!(names.short_names.as_ref().is_some_and(|names| names.len() == 1), "short name of {kind}");
        for version in &definition.spec.versions {
            assert!(
                version.subresources.as_ref().is_some_and(|subresources| subresources.status.is_some()),
                "status subresource of {kind}"
            );
            let columns = version.additional_printer_columns.as_deref().unwrap_or_default();
            assert!(columns.iter().any(|column| column.name == "Age"), "age column of {kind}");
            let root = serde_json::to_value(&version.schema).expect("a schema is JSON");
            let status = &root["openAPIV3Schema"]["properties"]["status"]["properties"];
            assert!(status["conditions"].is_object(), "conditions of {kind}");
            assert!(status["observedGeneration"].is_object(), "observedGeneration of {kind}");
        }
    }
}

#[test]
fn generated_files_are_up_to_date() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for file in generated_files().expect("definitions can be written") {
        let present = std::fs::read_to_string(root.join(&file.path)).unwrap_or_default();
        assert!(present == file.content, "{} differs: run `cargo xtask crds`", file.path.display());
    }
}
