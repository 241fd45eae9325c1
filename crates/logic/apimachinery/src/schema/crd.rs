//! Custom resources: objects checked against the `openAPIV3Schema` of their definition.
//!
//! Understood: types, properties, additionalProperties, items, required, enum, numeric limits, lengths, multipleOf,
//! uniqueItems, nullable, default, int-or-string, preserve-unknown-fields, embedded-resource. `pattern`, `format`,
//! allOf/anyOf/oneOf/not and CEL rules are not evaluated: what they would refuse is accepted.

use super::check::{self, Mistake, join, wrong_type};
use crate::meta;
use crate::status::{Fault, FieldError};
use serde_json::Value;

/// The schema of one version of a custom resource.
#[derive(Clone, Debug, PartialEq)]
pub struct CrdSchema {
    root: Value,
}

const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";
const INT_OR_STRING: &str = "x-kubernetes-int-or-string";
const EMBEDDED: &str = "x-kubernetes-embedded-resource";

fn is_set(schema: &Value, key: &str) -> bool {
    schema.get(key) == Some(&Value::Bool(true))
}

impl CrdSchema {
    /// From `openAPIV3Schema`; null accepts anything.
    pub fn new(root: Value) -> Self {
        let root = if root.is_object() {
            root
        } else {
            serde_json::json!({PRESERVE: true})
        };
        Self { root }
    }

    /// The schema as it was given.
    pub fn root(&self) -> &Value {
        &self.root
    }

    pub(super) fn check(&self, object: &Value) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        let Some(fields) = object.as_object() else {
            return vec![wrong_type("", "map", object)];
        };
        check::metadata(meta::at(object, &["metadata"]), &mut mistakes);
        for name in ["apiVersion", "kind"] {
            if let Some(value) = fields.get(name).filter(|v| !v.is_string()) {
                mistakes.push(wrong_type(name, "string", value));
            }
        }
        unknown(
            &self.root,
            "",
            &check::without(fields, &["apiVersion", "kind", "metadata"]),
            &mut mistakes,
        );
        mistakes
    }

    pub(super) fn prune(&self, object: &mut Value) {
        prune(&self.root, object, true);
        if let Some(metadata) = object.get_mut("metadata") {
            check::prune_builtin("ObjectMeta", metadata);
        }
    }

    pub(super) fn apply_defaults(&self, object: &mut Value) {
        defaults(&self.root, object);
    }

    /// Everything that the schema refuses; wrong types are part of it, as the API reports them with 422.
    pub fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if let Some(fields) = object.as_object() {
            let body = check::without(fields, &["apiVersion", "kind", "metadata"]);
            validate(&self.root, "", &body, &mut errors);
        }
        errors
    }
}

fn property<'a>(schema: &'a Value, name: &str) -> Option<&'a Value> {
    schema.get("properties").and_then(|p| p.get(name))
}

/// The schema of the values of a free map.
fn additional(schema: &Value) -> Option<&Value> {
    schema.get("additionalProperties").filter(|a| a.is_object())
}

/// Whether any field name is taken.
fn open(schema: &Value) -> bool {
    is_set(schema, PRESERVE) || schema.get("additionalProperties") == Some(&Value::Bool(true))
}

fn is_embedded_field(schema: &Value, name: &str) -> bool {
    is_set(schema, EMBEDDED) && matches!(name, "apiVersion" | "kind" | "metadata")
}

fn unknown(schema: &Value, path: &str, value: &Value, mistakes: &mut Vec<Mistake>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = join(path, name);
                match property(schema, name).or_else(|| additional(schema)) {
                    Some(schema) => unknown(schema, &path, value, mistakes),
                    None if open(schema) || is_embedded_field(schema, name) => {}
                    None => mistakes.push(Mistake::UnknownField { path }),
                }
            }
        }
        Value::Array(values) => {
            if let Some(items) = schema.get("items") {
                for (place, value) in values.iter().enumerate() {
                    unknown(items, &format!("{path}[{place}]"), value, mistakes);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn prune(schema: &Value, value: &mut Value, root: bool) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, value| {
                if root && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
                    return true;
                }
                match property(schema, name).or_else(|| additional(schema)) {
                    Some(inner) => {
                        prune(inner, value, false);
                        // A null that the schema does not allow is dropped, so that a default may take its place.
                        !(value.is_null() && !is_set(inner, "nullable") && inner.get("default").is_some())
                    }
                    None => open(schema) || is_embedded_field(schema, name),
                }
            });
        }
        Value::Array(values) => {
            if let Some(items) = schema.get("items") {
                values.iter_mut().for_each(|v| prune(items, v, false));
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn defaults(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, inner) in schema
                .get("properties")
                .and_then(Value::as_object)
                .into_iter()
                .flatten()
            {
                if let (false, Some(default)) = (fields.contains_key(name), inner.get("default")) {
                    fields.insert(name.clone(), default.clone());
                }
            }
            for (name, value) in fields.iter_mut() {
                if let Some(inner) = property(schema, name).or_else(|| additional(schema)) {
                    defaults(inner, value);
                }
            }
        }
        Value::Array(values) => {
            if let Some(items) = schema.get("items") {
                values.iter_mut().for_each(|v| defaults(items, v));
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn validate(schema: &Value, path: &str, value: &Value, errors: &mut Vec<FieldError>) {
    if value.is_null() && is_set(schema, "nullable") {
        return;
    }
    if !has_type(schema, value) {
        let expected = schema
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or("integer or string");
        let detail = format!("must be of type {expected}");
        errors.push(FieldError {
            path: path.to_owned(),
            fault: Fault::TypeInvalid,
            value: Some(value.clone()),
            detail,
        });
        return;
    }
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        let allowed: Vec<String> = allowed
            .iter()
            .map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
            .collect();
        let allowed: Vec<&str> = allowed.iter().map(String::as_str).collect();
        errors.push(FieldError::unsupported(path, value.clone(), &allowed));
    }
    match value {
        Value::Object(fields) => {
            for name in meta::items(schema, &["required"])
                .iter()
                .filter_map(Value::as_str)
            {
                if !fields.contains_key(name) {
                    errors.push(FieldError::required(join(path, name), ""));
                }
            }
            limit(
                schema,
                path,
                value,
                fields.len() as f64,
                ["minProperties", "maxProperties"],
                "properties",
                errors,
            );
            for (name, value) in fields {
                if let Some(inner) = property(schema, name).or_else(|| additional(schema)) {
                    validate(inner, &join(path, name), value, errors);
                }
            }
        }
        Value::Array(values) => {
            limit(
                schema,
                path,
                value,
                values.len() as f64,
                ["minItems", "maxItems"],
                "items",
                errors,
            );
            let twice = values
                .iter()
                .enumerate()
                .find(|(place, v)| values[..*place].contains(v));
            if let (true, Some((place, value))) = (is_set(schema, "uniqueItems"), twice) {
                errors.push(FieldError::duplicate(format!("{path}[{place}]"), value.clone()));
            }
            if let Some(items) = schema.get("items") {
                for (place, value) in values.iter().enumerate() {
                    validate(items, &format!("{path}[{place}]"), value, errors);
                }
            }
        }
        Value::String(text) => {
            limit(
                schema,
                path,
                value,
                text.chars().count() as f64,
                ["minLength", "maxLength"],
                "characters",
                errors,
            );
        }
        Value::Number(number) => validate_number(schema, path, value, number.as_f64().unwrap_or(0.0), errors),
        Value::Null | Value::Bool(_) => {}
    }
}

fn validate_number(schema: &Value, path: &str, value: &Value, number: f64, errors: &mut Vec<FieldError>) {
    let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
    if let Some(least) = bound("minimum") {
        let exclusive = is_set(schema, "exclusiveMinimum");
        if number < least || (exclusive && number == least) {
            let words = if exclusive {
                "greater than"
            } else {
                "greater than or equal to"
            };
            errors.push(FieldError::invalid(
                path,
                value.clone(),
                format!("should be {words} {least}"),
            ));
        }
    }
    if let Some(most) = bound("maximum") {
        let exclusive = is_set(schema, "exclusiveMaximum");
        if number > most || (exclusive && number == most) {
            let words = if exclusive {
                "less than"
            } else {
                "less than or equal to"
            };
            errors.push(FieldError::invalid(
                path,
                value.clone(),
                format!("should be {words} {most}"),
            ));
        }
    }
    if let Some(step) = bound("multipleOf").filter(|s| *s != 0.0)
        && (number / step).fract() != 0.0
    {
        errors.push(FieldError::invalid(
            path,
            value.clone(),
            format!("should be a multiple of {step}"),
        ));
    }
}

fn limit(
    schema: &Value,
    path: &str,
    value: &Value,
    count: f64,
    [least, most]: [&str; 2],
    unit: &str,
    errors: &mut Vec<FieldError>,
) {
    let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
    if let Some(least) = bound(least).filter(|l| count < *l) {
        errors.push(FieldError::invalid(
            path,
            value.clone(),
            format!("should have at least {least} {unit}"),
        ));
    }
    if let Some(most) = bound(most).filter(|m| count > *m) {
        let detail = format!("may not have more than {most} {unit}");
        errors.push(FieldError {
            path: path.to_owned(),
            fault: Fault::TooLong,
            value: None,
            detail,
        });
    }
}

fn has_type(schema: &Value, value: &Value) -> bool {
    let whole = || value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0);
    if is_set(schema, INT_OR_STRING) {
        return value.is_string() || whole();
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => whole(),
        Some("number") => value.is_number(),
        Some("null") => value.is_null(),
        Some(_) | None => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    fn schema() -> CrdSchema {
        CrdSchema::new(json!({
            "type": "object",
            "properties": {
                "spec": {
                    "type": "object",
                    "required": ["model"],
                    "properties": {
                        "model": {"type": "string", "minLength": 2},
                        "mode": {"type": "string", "enum": ["auto", "manual"], "default": "auto"},
                        "period": {"type": "integer", "minimum": 1, "maximum": 10},
                        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                        "port": {"x-kubernetes-int-or-string": true},
                        "list": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "integer"}}}},
                    },
                },
            },
        }))
    }

    #[test]
    fn unknown_fields_are_named_and_pruned() {
        let mut object = json!({"metadata": {"name": "a", "nam": 1}, "spec": {"model": "tt", "x": 1, "free": {"y": 1},
            "labels": {"z": "1"}, "list": [{"a": 1, "b": 2}]}, "other": 1});
        let mistakes: Vec<_> = schema().check(&object).iter().map(ToString::to_string).collect();
        expect![[r#"["unknown field \"metadata.nam\"", "unknown field \"spec.x\"", "unknown field \"spec.list[0].b\"", "unknown field \"other\""]"#]]
            .assert_eq(&format!("{mistakes:?}"));
        schema().prune(&mut object);
        schema().apply_defaults(&mut object);
        expect![[r#"{"metadata":{"name":"a"},"spec":{"model":"tt","free":{"y":1},"labels":{"z":"1"},"list":[{"a":1}],"mode":"auto"}}"#]]
            .assert_eq(&object.to_string());
    }

    #[test]
    fn all_mistakes_at_once() {
        let object = json!({"spec": {"mode": "fast", "period": 11, "port": true, "list": [{"a": "x"}], "labels": {"k": 1}}});
        let errors: Vec<_> = schema()
            .validate(&object)
            .iter()
            .map(ToString::to_string)
            .collect();
        expect![[r#"
            spec.model: Required value
            spec.mode: Unsupported value: "fast": supported values: "auto", "manual"
            spec.period: Invalid value: 11: should be less than or equal to 10
            spec.port: Invalid value: true: must be of type integer or string
            spec.list[0].a: Invalid value: "x": must be of type integer
            spec.labels.k: Invalid value: 1: must be of type string"#]]
        .assert_eq(&errors.join("\n"));
    }
}
