//! Walking an object along the catalog: unknown fields, wrong types, missing fields.

use super::catalog::{self, Shape};
use crate::quantity::{self, Quantity};
use crate::status::FieldError;
use serde_json::{Map, Value};

/// One mistake that decoding finds.
#[derive(Clone, Debug, PartialEq)]
pub enum Mistake {
    UnknownField {
        path: String,
    },
    WrongType {
        path: String,
        expected: &'static str,
        got: String,
    },
}

impl Mistake {
    pub fn is_wrong_type(&self) -> bool {
        match self {
            Self::WrongType { .. } => true,
            Self::UnknownField { .. } => false,
        }
    }
}

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::UnknownField { path } => write!(f, "unknown field {path:?}"),
            Self::WrongType { path, expected, got } => write!(f, "{path}: expected {expected}, got {got}"),
        }
    }
}

/// Longest excerpt of an offending value in a message.
const EXCERPT_MAX: usize = 64;

pub(super) fn wrong_type(path: &str, expected: &'static str, value: &Value) -> Mistake {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "list",
        Value::Object(_) => "map",
    };
    let got = match value {
        Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            let text: String = value.to_string().chars().take(EXCERPT_MAX).collect();
            format!("{kind} {text}")
        }
        Value::Null | Value::Array(_) | Value::Object(_) => kind.to_owned(),
    };
    Mistake::WrongType {
        path: path.to_owned(),
        expected,
        got,
    }
}

pub(super) fn join(path: &str, field: &str) -> String {
    if path.is_empty() {
        field.to_owned()
    } else {
        format!("{path}.{field}")
    }
}

/// Where the walk is. It is spelled out only when something is wrong there: most objects are right, and each has
/// hundreds of fields.
#[derive(Clone, Copy)]
enum Path<'a> {
    Root(&'a str),
    Field(&'a Path<'a>, &'a str),
    Element(&'a Path<'a>, usize),
}

impl std::fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Root(name) => write!(f, "{name}"),
            Self::Field(Self::Root(""), name) => write!(f, "{name}"),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Element(parent, place) => write!(f, "{parent}[{place}]"),
        }
    }
}

pub(super) fn builtin(type_name: &str, object: &Value) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    walk_type(type_name, &Path::Root(""), object, &mut mistakes);
    mistakes
}

/// Only the metadata, for custom resources.
pub(super) fn metadata(object: &Value, mistakes: &mut Vec<Mistake>) {
    walk_type("ObjectMeta", &Path::Root("metadata"), object, mistakes);
}

fn walk_type(type_name: &str, path: &Path<'_>, value: &Value, mistakes: &mut Vec<Mistake>) {
    let Some(fields) = value.as_object() else {
        if !value.is_null() {
            mistakes.push(wrong_type(&path.to_string(), "map", value));
        }
        return;
    };
    let Some(known) = catalog::find(type_name) else {
        return;
    };
    for (name, value) in fields {
        let path = Path::Field(path, name);
        match known.field(name) {
            Some(field) => walk(&field.shape, &path, value, mistakes),
            None => mistakes.push(Mistake::UnknownField {
                path: path.to_string(),
            }),
        }
    }
}

fn walk(shape: &Shape, path: &Path<'_>, value: &Value, mistakes: &mut Vec<Mistake>) {
    // Null stands for absent everywhere.
    if value.is_null() {
        return;
    }
    match (shape, value) {
        (Shape::Type(name), _) => walk_type(name, path, value, mistakes),
        (Shape::List(element), Value::Array(values)) => {
            for (place, value) in values.iter().enumerate() {
                walk(element, &Path::Element(path, place), value, mistakes);
            }
        }
        (Shape::Map(element), Value::Object(values)) => {
            for (key, value) in values {
                walk(element, &Path::Field(path, key), value, mistakes);
            }
        }
        _ => {
            if let Some(expected) = scalar_mismatch(shape, value) {
                mistakes.push(wrong_type(&path.to_string(), expected, value));
            }
        }
    }
}

/// What was expected, when a value is not of a scalar shape.
fn scalar_mismatch(shape: &Shape, value: &Value) -> Option<&'static str> {
    let is_time = |v: &Value| v.as_str().is_some_and(|t| crate::meta::parse_time(t).is_some());
    let (good, expected) = match shape {
        Shape::Any => (true, ""),
        Shape::Text => (value.is_string(), "string"),
        Shape::Bool => (value.is_boolean(), "boolean"),
        Shape::Int32 => (value.as_i64().is_some_and(|n| i32::try_from(n).is_ok()), "int32"),
        Shape::Int64 => (value.as_i64().is_some(), "int64"),
        Shape::Number => (value.is_number(), "number"),
        Shape::Bytes => (value.as_str().is_some_and(is_base64), "base64 encoded string"),
        Shape::Time | Shape::MicroTime => (is_time(value), "RFC 3339 time"),
        Shape::Quantity => (Quantity::of(value).is_some(), quantity::FORM),
        Shape::IntOrString => (
            value.is_string() || value.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
            "int32 or string",
        ),
        Shape::List(_) => (false, "list"),
        Shape::Map(_) | Shape::Type(_) => (false, "map"),
    };
    (!good).then_some(expected)
}

/// Standard base64 with padding; line breaks are allowed.
fn is_base64(text: &str) -> bool {
    let letters = text.bytes().filter(|b| !matches!(b, b'\n' | b'\r'));
    let (mut count, mut padding) = (0_usize, 0_usize);
    for letter in letters {
        count += 1;
        match letter {
            b'=' => padding += 1,
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' if padding == 0 => {}
            _ => return false,
        }
    }
    count % 4 == 0 && padding <= 2
}

/// Drops unknown and null fields.
pub(super) fn prune_builtin(type_name: &str, object: &mut Value) {
    let Some(known) = catalog::find(type_name) else {
        return;
    };
    let Some(fields) = object.as_object_mut() else {
        return;
    };
    fields.retain(|name, value| !value.is_null() && known.field(name).is_some());
    for (name, value) in fields.iter_mut() {
        if let Some(field) = known.field(name) {
            prune(&field.shape, value);
        }
    }
}

fn prune(shape: &Shape, value: &mut Value) {
    match (shape, value) {
        (Shape::Type(name), value) => prune_builtin(name, value),
        (Shape::List(element), Value::Array(values)) => values.iter_mut().for_each(|v| prune(element, v)),
        (Shape::Map(element), Value::Object(values)) => {
            // A label with the value null is the empty text, as Go's decoder has it.
            if **element == Shape::Text {
                values
                    .values_mut()
                    .filter(|v| v.is_null())
                    .for_each(|v| *v = Value::String(String::new()));
            }
            values.values_mut().for_each(|v| prune(element, v));
        }
        _ => {}
    }
}

/// Fields that the schema requires and that are absent, below a value of that type. Booleans are left out: their
/// absence means false.
pub(super) fn missing(type_name: &str, path: &str, value: &Value, errors: &mut Vec<FieldError>) {
    missing_at(type_name, &Path::Root(path), value, errors);
}

fn missing_at(type_name: &str, path: &Path<'_>, value: &Value, errors: &mut Vec<FieldError>) {
    let (Some(known), Some(fields)) = (catalog::find(type_name), value.as_object()) else {
        return;
    };
    for field in &known.fields {
        let path = Path::Field(path, field.name);
        match fields.get(field.name) {
            Some(value) if !value.is_null() => missing_in(&field.shape, &path, value, errors),
            _ if field.required && field.shape != Shape::Bool => {
                errors.push(FieldError::required(path.to_string(), ""));
            }
            _ => {}
        }
    }
}

fn missing_in(shape: &Shape, path: &Path<'_>, value: &Value, errors: &mut Vec<FieldError>) {
    match (shape, value) {
        (Shape::Type(name), _) => missing_at(name, path, value, errors),
        (Shape::List(element), Value::Array(values)) => {
            for (place, value) in values.iter().enumerate() {
                missing_in(element, &Path::Element(path, place), value, errors);
            }
        }
        (Shape::Map(element), Value::Object(values)) => {
            for (key, value) in values {
                missing_in(element, &Path::Field(path, key), value, errors);
            }
        }
        _ => {}
    }
}

/// A map without the fields named.
pub(super) fn without(fields: &Map<String, Value>, names: &[&str]) -> Value {
    Value::Object(
        fields
            .iter()
            .filter(|(k, _)| !names.contains(&k.as_str()))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use crate::kinds::Registry;
    use crate::schema::{FieldValidation, decode};
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};

    fn check(
        api_version: &str,
        kind: &str,
        mut object: Value,
        validation: FieldValidation,
        expected: Expect,
    ) {
        let kind = Registry::builtin().lookup_kind(api_version, kind).unwrap();
        let story = match decode(&kind, &mut object, validation) {
            Ok(warnings) => format!("{object} {warnings:?}"),
            Err(status) => format!("{} {}", status.code(), status.message),
        };
        expected.assert_eq(&story);
    }

    #[test]
    fn all_unknown_fields_at_once() {
        let pod = || json!({"spec": {"contaners": [], "containers": [{"name": "a", "imag": "b"}]}, "metdata": {}, "status": null});
        check(
            "v1",
            "Pod",
            pod(),
            FieldValidation::Strict,
            expect![[
                r#"400 strict decoding error: unknown field "spec.contaners", unknown field "spec.containers[0].imag", unknown field "metdata""#
            ]],
        );
        check(
            "v1",
            "Pod",
            pod(),
            FieldValidation::Warn,
            expect![[
                r#"{"spec":{"containers":[{"name":"a"}]}} ["unknown field \"spec.contaners\"", "unknown field \"spec.containers[0].imag\"", "unknown field \"metdata\""]"#
            ]],
        );
        check(
            "v1",
            "Pod",
            pod(),
            FieldValidation::Ignore,
            expect![[r#"{"spec":{"containers":[{"name":"a"}]}} []"#]],
        );
    }

    #[test]
    fn wrong_types_are_refused_whatever_the_validation() {
        let deployment = json!({"spec": {"replicas": "three", "template": {"spec": {"containers": {}, "hostNetwork": 1}}}});
        check(
            "apps/v1",
            "Deployment",
            deployment,
            FieldValidation::Ignore,
            expect![[
                r#"400 Deployment in version "v1" cannot be handled as a Deployment: spec.replicas: expected int32, got string "three", spec.template.spec.containers: expected list, got map, spec.template.spec.hostNetwork: expected boolean, got number 1"#
            ]],
        );
        let secret = json!({"data": {"a": "not base64"}});
        check(
            "v1",
            "Secret",
            secret,
            FieldValidation::Ignore,
            expect![[
                r#"400 Secret in version "v1" cannot be handled as a Secret: data.a: expected base64 encoded string, got string "not base64""#
            ]],
        );
        let pod = json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "lots", "memory": 5}}}]}});
        check(
            "v1",
            "Pod",
            pod,
            FieldValidation::Ignore,
            expect![[
                r#"400 Pod in version "v1" cannot be handled as a Pod: spec.containers[0].resources.limits.cpu: expected quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$', got string "lots""#
            ]],
        );
    }
}
