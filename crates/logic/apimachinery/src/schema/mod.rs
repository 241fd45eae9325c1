//! What objects of each kind look like: their fields and types, defaults, and what makes them valid.
//!
//! Built-in kinds are described by the compact catalog in `data/schema.txt`; custom ones by the
//! `openAPIV3Schema` of their definition.

pub mod catalog;
mod check;
pub mod crd;
mod defaults;
pub mod names;
pub mod validate;

pub use check::Mistake;
pub use defaults::{pod_spec as default_pod_spec, pod_tolerations};
pub use validate::FieldError;

use crate::kinds::Kind;
use crate::status::Status;
use serde_json::Value;
use std::sync::Arc;

/// Where the schema of a kind is.
#[derive(Clone, Debug)]
pub enum KindSchema {
    /// The name of a type in the catalog.
    Builtin(&'static str),
    Custom(Arc<crd::CrdSchema>),
}

/// How the server treats fields that it does not know (`fieldValidation` of the request).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

impl FieldValidation {
    /// The query parameter; absent means Warn.
    pub fn parse(text: &str) -> Result<Self, Status> {
        match text {
            "" | "Warn" => Ok(Self::Warn),
            "Ignore" => Ok(Self::Ignore),
            "Strict" => Ok(Self::Strict),
            other => Err(Status::bad_request(format!(
                "invalid value {other:?} for fieldValidation: supported values are Ignore, Warn, Strict"
            ))),
        }
    }
}

/// All unknown fields and wrong types of an object, in the order of the object.
pub fn check(kind: &Kind, object: &Value) -> Vec<Mistake> {
    match &kind.schema {
        KindSchema::Builtin(name) => check::builtin(name, object),
        KindSchema::Custom(schema) => schema.check(object),
    }
}

/// Decodes a body: refuses wrong types, refuses, reports or ignores unknown fields, and drops what is unknown or null.
/// Returns the warnings for the client.
pub fn decode(kind: &Kind, object: &mut Value, validation: FieldValidation) -> Result<Vec<String>, Status> {
    decode_with(&kind.schema, &kind.kind, &kind.version, object, validation)
}

/// The same for the body of a subresource (`Scale`, `Eviction` ...), named by its type in the catalog.
pub fn decode_body(
    type_name: &'static str,
    object: &mut Value,
    validation: FieldValidation,
) -> Result<Vec<String>, Status> {
    decode_with(
        &KindSchema::Builtin(type_name),
        type_name,
        "v1",
        object,
        validation,
    )
}

fn decode_with(
    schema: &KindSchema,
    kind: &str,
    version: &str,
    object: &mut Value,
    validation: FieldValidation,
) -> Result<Vec<String>, Status> {
    let mistakes = match schema {
        KindSchema::Builtin(name) => check::builtin(name, object),
        KindSchema::Custom(schema) => schema.check(object),
    };
    let wrong: Vec<String> = mistakes
        .iter()
        .filter(|m| m.is_wrong_type())
        .map(ToString::to_string)
        .collect();
    if !wrong.is_empty() {
        let message = format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: {}",
            wrong.join(", ")
        );
        return Err(Status::bad_request(message));
    }
    let unknown: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    if !unknown.is_empty() && validation == FieldValidation::Strict {
        return Err(Status::bad_request(format!(
            "strict decoding error: {}",
            unknown.join(", ")
        )));
    }
    match schema {
        KindSchema::Builtin(name) => check::prune_builtin(name, object),
        KindSchema::Custom(schema) => schema.prune(object),
    }
    Ok(if validation == FieldValidation::Warn {
        unknown
    } else {
        Vec::new()
    })
}

/// Fills in what the author left out, as Kubernetes does.
pub fn apply_defaults(kind: &Kind, object: &mut Value) {
    match &kind.schema {
        KindSchema::Builtin(_) => defaults::builtin(kind, object),
        KindSchema::Custom(schema) => schema.apply_defaults(object),
    }
}
