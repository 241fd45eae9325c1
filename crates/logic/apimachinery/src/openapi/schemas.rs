//! Schemas of kinds in OpenAPI, from the catalog and from custom resource definitions.

use crate::kinds::Kind;
use crate::meta;
use crate::schema::KindSchema;
use crate::schema::catalog::{self, Field, Merge, Shape, Type};
use serde_json::{Map, Value, json};

/// Where schemas lie and what they may say differs between the versions of OpenAPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    V2,
    V3,
}

impl Dialect {
    pub(super) fn reference(self, name: &str) -> Value {
        match self {
            Self::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Self::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }
}

/// The name of a kind's schema: `io.k8s.api.core.v1.Pod`, `io.kubeedge.devices.v1beta1.Device`.
pub(super) fn name(kind: &Kind) -> String {
    match &kind.schema {
        KindSchema::Builtin(name) => catalog::find(name).map_or_else(|| (*name).to_owned(), Type::full_name),
        KindSchema::Custom(_) => {
            let reversed: Vec<&str> = kind.group.split('.').rev().collect();
            format!("{}.{}.{}", reversed.join("."), kind.version, kind.kind)
        }
    }
}

pub(super) fn list_name(kind: &Kind) -> String {
    format!("{}List", name(kind))
}

pub(super) fn group_version_kind(kind: &Kind) -> Value {
    json!({"group": kind.group, "version": kind.version, "kind": kind.kind})
}

/// All schemas that these kinds need.
pub(super) fn of<'a>(kinds: impl Iterator<Item = &'a Kind>, dialect: Dialect) -> Map<String, Value> {
    let mut schemas = Map::new();
    let mut roots = vec!["ListMeta", "ObjectMeta"];
    let mut served = Vec::new();
    for kind in kinds {
        served.push(kind);
        match &kind.schema {
            KindSchema::Builtin(name) => roots.push(name),
            KindSchema::Custom(schema) => {
                schemas.insert(name(kind), custom(kind, schema.root(), dialect));
            }
        }
        schemas.insert(list_name(kind), list(kind, dialect));
    }
    for known in catalog::closure(&roots) {
        schemas.insert(known.full_name(), of_type(known, dialect));
    }
    for kind in served {
        if let Some(schema) = schemas.get_mut(&name(kind)) {
            meta::set(
                schema,
                &["x-kubernetes-group-version-kind"],
                json!([group_version_kind(kind)]),
            );
        }
    }
    schemas
}

fn of_type(known: &Type, dialect: Dialect) -> Value {
    let properties: Map<String, Value> = known
        .fields
        .iter()
        .map(|f| (f.name.to_owned(), of_field(f, dialect)))
        .collect();
    let required: Vec<&str> = known
        .fields
        .iter()
        .filter(|f| f.required)
        .map(|f| f.name)
        .collect();
    let mut schema = json!({"type": "object", "properties": properties});
    if !required.is_empty() {
        meta::set(&mut schema, &["required"], required.into());
    }
    schema
}

fn of_field(field: &Field, dialect: Dialect) -> Value {
    let mut schema = of_shape(&field.shape, dialect);
    match field.merge {
        Merge::Replace => {}
        Merge::Set => meta::set(&mut schema, &["x-kubernetes-patch-strategy"], "merge".into()),
        Merge::ByKey(key) => {
            meta::set(&mut schema, &["x-kubernetes-patch-strategy"], "merge".into());
            meta::set(&mut schema, &["x-kubernetes-patch-merge-key"], key.into());
        }
    }
    schema
}

fn of_shape(shape: &Shape, dialect: Dialect) -> Value {
    match shape {
        Shape::Text | Shape::Quantity => json!({"type": "string"}),
        Shape::Bool => json!({"type": "boolean"}),
        Shape::Int32 => json!({"type": "integer", "format": "int32"}),
        Shape::Int64 => json!({"type": "integer", "format": "int64"}),
        Shape::Number => json!({"type": "number", "format": "double"}),
        Shape::Bytes => json!({"type": "string", "format": "byte"}),
        Shape::Time | Shape::MicroTime => json!({"type": "string", "format": "date-time"}),
        Shape::IntOrString => match dialect {
            Dialect::V2 => json!({"type": "string", "format": "int-or-string"}),
            Dialect::V3 => {
                json!({"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"})
            }
        },
        Shape::Any => json!({}),
        Shape::List(element) => json!({"type": "array", "items": of_shape(element, dialect)}),
        Shape::Map(element) => json!({"type": "object", "additionalProperties": of_shape(element, dialect)}),
        Shape::Type(name) => {
            dialect.reference(&catalog::find(name).map_or_else(|| (*name).to_owned(), Type::full_name))
        }
    }
}

fn list(kind: &Kind, dialect: Dialect) -> Value {
    let list_meta = catalog::find("ListMeta").map(Type::full_name).unwrap_or_default();
    json!({
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": dialect.reference(&list_meta),
            "items": {"type": "array", "items": dialect.reference(&name(kind))},
        },
        "x-kubernetes-group-version-kind": [{"group": kind.group, "version": kind.version, "kind": kind.list_kind}],
    })
}

/// The schema of the definition with the parts that every object has.
fn custom(kind: &Kind, root: &Value, dialect: Dialect) -> Value {
    let object_meta = catalog::find("ObjectMeta")
        .map(Type::full_name)
        .unwrap_or_default();
    let mut schema = match dialect {
        Dialect::V3 => root.clone(),
        // What OpenAPI v2 cannot say is left open rather than wrong.
        Dialect::V2 => json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
    };
    for field in ["apiVersion", "kind"] {
        meta::set(&mut schema, &["properties", field], json!({"type": "string"}));
    }
    meta::set(
        &mut schema,
        &["properties", "metadata"],
        dialect.reference(&object_meta),
    );
    meta::set(
        &mut schema,
        &["x-kubernetes-group-version-kind"],
        json!([group_version_kind(kind)]),
    );
    schema
}
