//! What must be equal between two messages whose names, versions and times differ.

use super::recording::content;
use kedge_wire::Envelope;
use serde_json::Value;

/// A message in words: route with the kind for the resource, whether the header has a version, what the content is.
pub(crate) fn shape(envelope: &Envelope) -> String {
    let route = &envelope.route;
    let version = if envelope.header.resource_version.is_some() {
        " versioned"
    } else {
        ""
    };
    let (kind, content) = (kind_of(&route.resource), content_shape(&content(envelope)));
    format!(
        "{} {} {} {kind}{version} {content}",
        route.source, route.group, route.operation
    )
}

/// As [`shape`], for what is pushed: `put` for insert and update, and nothing said about the content.
pub(crate) fn push_shape(envelope: &Envelope) -> String {
    let route = &envelope.route;
    let version = if envelope.header.resource_version.is_some() {
        " versioned"
    } else {
        ""
    };
    let class = match route.operation.as_str() {
        "insert" | "update" => "put",
        other => other,
    };
    format!(
        "{} {} {class} {}{version}",
        route.source,
        route.group,
        kind_of(&route.resource)
    )
}

/// As [`shape`], for what an edge says of itself: only the type of the content, because any object may be asked about.
pub(crate) fn request_shape(envelope: &Envelope) -> String {
    let route = &envelope.route;
    let content = match content(envelope) {
        Value::Null => "null",
        Value::String(_) => "string",
        Value::Object(_) => "object",
        Value::Array(_) | Value::Bool(_) | Value::Number(_) => "strange",
    };
    format!(
        "{} {} {} {} {content}",
        route.source,
        route.group,
        route.operation,
        kind_of(&route.resource)
    )
}

/// `default/pod/web` -> `pod`; what is not the name of an object stays as it is.
fn kind_of(resource: &str) -> &str {
    let words: Vec<&str> = resource.split('/').collect();
    match words[..] {
        [_, "Application", _] => resource,
        [_, kind, _] => kind,
        ["device", _, _, ..] => "device/…",
        _ => resource,
    }
}

fn content_shape(content: &Value) -> String {
    match content {
        Value::Null => "null".into(),
        Value::String(text) if text == "OK" => "\"OK\"".into(),
        Value::String(_) => "string".into(),
        Value::Object(map) => {
            let mut keys: Vec<String> = map.keys().cloned().collect();
            keys.sort();
            let err = map
                .get("Err")
                .filter(|err| !err.is_null())
                .map(|err| &err["ErrStatus"]);
            let err = err
                .map(|status| format!(" {} {}", status["code"], status["reason"]))
                .unwrap_or_default();
            format!("{{{}}}{err}", keys.join(","))
        }
        Value::Array(_) | Value::Bool(_) | Value::Number(_) => "strange".into(),
    }
}
