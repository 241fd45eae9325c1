//! OpenAPI documents: what `kubectl explain` shows and from which clients learn that the server validates fields.
//!
//! Schemas have fields, types, required fields and merge keys, but no descriptions. Operations list the parameters
//! that clients look for. Bodies of PATCH are left out: clients that find none there use the merge keys they know
//! themselves, which for built-in kinds is exact.

mod protobuf;
mod schemas;

pub use protobuf::v2 as v2_protobuf;

use crate::kinds::{Kind, Registry, Verb};
use crate::meta;
use schemas::Dialect;
use serde_json::{Map, Value, json};

/// The title and version of the documents.
const TITLE: &str = "Kubernetes";
const VERSION: &str = "v1.32.0";

/// `/openapi/v3`: one entry for each group version, with a hash of its document so that clients may cache it.
pub fn v3_index(registry: &Registry) -> Value {
    let mut paths = Map::new();
    for (group, versions) in registry.groups() {
        for version in versions {
            let document = v3(registry, &group, &version).unwrap_or_default();
            let place = group_version_path(&group, &version);
            let url = format!("/openapi/v3/{place}?hash={}", meta::value_hash(&document));
            paths.insert(place, json!({"serverRelativeURL": url}));
        }
    }
    json!({"paths": paths})
}

fn group_version_path(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("api/{version}")
    } else {
        format!("apis/{group}/{version}")
    }
}

/// `/openapi/v3/api/v1` (group "") and `/openapi/v3/apis/<group>/<version>`.
pub fn v3(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let kinds: Vec<_> = registry
        .iter()
        .filter(|k| k.group == group && k.version == version)
        .collect();
    if kinds.is_empty() {
        return None;
    }
    let mut paths = Map::new();
    for kind in &kinds {
        add_paths(kind, Dialect::V3, &mut paths);
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": TITLE, "version": VERSION},
        "paths": paths,
        "components": {"schemas": schemas::of(kinds.into_iter().map(|k| &**k), Dialect::V3)},
    }))
}

/// `/openapi/v2` as JSON.
pub fn v2(registry: &Registry) -> Value {
    let mut paths = Map::new();
    for kind in registry.iter() {
        add_paths(kind, Dialect::V2, &mut paths);
    }
    json!({
        "swagger": "2.0",
        "info": {"title": TITLE, "version": VERSION},
        "paths": paths,
        "definitions": schemas::of(registry.iter().map(|k| &**k), Dialect::V2),
    })
}

fn add_paths(kind: &Kind, dialect: Dialect, paths: &mut Map<String, Value>) {
    let root = format!("/{}", group_version_path(&kind.group, &kind.version));
    let collection = if kind.namespaced {
        format!("{root}/namespaces/{{namespace}}/{}", kind.plural)
    } else {
        format!("{root}/{}", kind.plural)
    };
    let object = format!("{collection}/{{name}}");
    if kind.namespaced && kind.serves(Verb::List) {
        paths.insert(
            format!("{root}/{}", kind.plural),
            operations(kind, &[Verb::List], dialect),
        );
    }
    let mut of_object = operations(
        kind,
        &[Verb::Get, Verb::Update, Verb::Patch, Verb::Delete],
        dialect,
    );
    let mut parameters = vec![parameter("name", "path", "string", dialect)];
    if kind.namespaced {
        parameters.push(parameter("namespace", "path", "string", dialect));
    }
    meta::set(&mut of_object, &["parameters"], parameters.into());
    paths.insert(
        collection,
        operations(kind, &[Verb::List, Verb::Create, Verb::DeleteCollection], dialect),
    );
    if kind.serves(Verb::Get) {
        paths.insert(object, of_object);
    }
}

/// The operations of one path: method -> operation.
fn operations(kind: &Kind, verbs: &[Verb], dialect: Dialect) -> Value {
    let mut item = Map::new();
    for verb in verbs.iter().copied().filter(|v| kind.serves(*v)) {
        let method = match verb {
            Verb::Get | Verb::List | Verb::Watch => "get",
            Verb::Create => "post",
            Verb::Update => "put",
            Verb::Patch => "patch",
            Verb::Delete | Verb::DeleteCollection => "delete",
        };
        item.insert(method.to_owned(), operation(kind, verb, dialect));
    }
    Value::Object(item)
}

fn operation(kind: &Kind, verb: Verb, dialect: Dialect) -> Value {
    let names: &[(&str, &str)] = match verb {
        Verb::Create | Verb::Update | Verb::Patch => &[
            ("dryRun", "string"),
            ("fieldManager", "string"),
            ("fieldValidation", "string"),
        ],
        Verb::List | Verb::Watch | Verb::DeleteCollection => &[
            ("labelSelector", "string"),
            ("fieldSelector", "string"),
            ("limit", "integer"),
            ("continue", "string"),
            ("resourceVersion", "string"),
            ("watch", "boolean"),
            ("allowWatchBookmarks", "boolean"),
        ],
        Verb::Delete => &[
            ("dryRun", "string"),
            ("gracePeriodSeconds", "integer"),
            ("propagationPolicy", "string"),
        ],
        Verb::Get => &[],
    };
    let mut parameters: Vec<Value> = names
        .iter()
        .map(|(name, of)| parameter(name, "query", of, dialect))
        .collect();
    let list = matches!(verb, Verb::List | Verb::Watch);
    let reference = if list {
        schemas::list_name(kind)
    } else {
        schemas::name(kind)
    };
    let schema = dialect.reference(&reference);
    let mut operation = json!({
        "operationId": format!("{}{}{}", verb.as_str(), capitalized(&kind.version), kind.kind),
        "x-kubernetes-action": if verb == Verb::Create { "post" } else { verb.as_str() },
        "x-kubernetes-group-version-kind": schemas::group_version_kind(kind),
    });
    let takes_body = matches!(verb, Verb::Create | Verb::Update);
    let response = match dialect {
        Dialect::V3 => {
            if takes_body {
                let body = json!({"required": true, "content": {"*/*": {"schema": schema.clone()}}});
                meta::set(&mut operation, &["requestBody"], body);
            }
            json!({"description": "OK", "content": {"application/json": {"schema": schema}}})
        }
        Dialect::V2 => {
            if takes_body {
                parameters
                    .push(json!({"name": "body", "in": "body", "required": true, "schema": schema.clone()}));
            }
            json!({"description": "OK", "schema": schema})
        }
    };
    meta::set(&mut operation, &["parameters"], parameters.into());
    meta::set(&mut operation, &["responses", "200"], response);
    operation
}

fn parameter(name: &str, place: &str, kind: &str, dialect: Dialect) -> Value {
    let mut parameter = json!({"name": name, "in": place});
    if place == "path" {
        meta::set(&mut parameter, &["required"], true.into());
    }
    match dialect {
        Dialect::V3 => meta::set(
            &mut parameter,
            &["schema"],
            json!({"type": kind, "uniqueItems": true}),
        ),
        Dialect::V2 => meta::set(&mut parameter, &["type"], kind.into()),
    }
    parameter
}

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests;
