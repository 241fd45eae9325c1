//! An object as a watch gives it, made fit for an edge without parsing what nobody looks at.

use crate::conditions::Conditions;
use crate::index::BadObject;
use kedge_wire::{Body, Object, ResourceVersion, Uid};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Metadata that changes without anything having changed for an edge.
const BOOKKEEPING: [&str; 3] = ["resourceVersion", "generation", "managedFields"];

/// An object ready to be sent, with what the index needs to know about it.
#[derive(Debug)]
pub(crate) struct Prepared<'a> {
    pub(crate) name: String,
    pub(crate) namespace: Option<String>,
    pub(crate) object: Object,
    /// Of everything but status and bookkeeping: equal fingerprints and conditions mean that an
    /// edge has nothing to do.
    pub(crate) fingerprint: u64,
    pub(crate) conditions: Conditions,
    pub(crate) spec: Option<&'a RawValue>,
    pub(crate) metadata: Fields<'a>,
}

/// The fields of a JSON object in their order, values as text.
#[derive(Debug)]
pub(crate) struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Fields<'a> {
    pub(crate) fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.0
            .iter()
            .find(|(field, _)| field == name)
            .map(|(_, value)| *value)
    }

    fn text(&self, name: &str) -> Option<String> {
        serde_json::from_str(self.get(name)?.get()).ok()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;
        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Vec<(String, &'de RawValue)>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(FieldsVisitor).map(Fields)
    }
}

/// Reads an object of `kind`, adds `kind` and `apiVersion` when the items of a list came without, and leaves
/// `managedFields` out, which no edge reads and which often is half of the object.
pub(crate) fn prepare<'a>(kind: &'static str, body: &'a Body) -> Result<Prepared<'a>, BadObject> {
    let bad = |reason: String| BadObject { kind, reason };
    let fields: Fields<'a> = serde_json::from_str(body.json()).map_err(|problem| bad(problem.to_string()))?;
    let metadata = fields
        .get("metadata")
        .ok_or_else(|| bad("it has no metadata".into()))?;
    let metadata: Fields<'a> =
        serde_json::from_str(metadata.get()).map_err(|problem| bad(format!("metadata: {problem}")))?;
    let required = |name: &str| {
        let text = metadata.text(name).filter(|text| !text.is_empty());
        text.ok_or_else(|| bad(format!("metadata.{name} is missing")))
    };
    let object = Object {
        uid: Uid::new(required("uid")?),
        version: ResourceVersion::new(required("resourceVersion")?),
        body: complete(kind, body, &fields, &metadata).map_err(|problem| bad(problem.to_string()))?,
    };
    Ok(Prepared {
        name: required("name")?,
        namespace: metadata.text("namespace").filter(|text| !text.is_empty()),
        fingerprint: fingerprint(&fields, &metadata),
        conditions: Conditions::of(fields.get("status")),
        spec: fields.get("spec"),
        object,
        metadata,
    })
}

/// Who an object is that is gone. What vanished unseen has no version and no spec any more.
#[derive(Debug)]
pub(crate) struct Gone {
    pub(crate) name: String,
    pub(crate) namespace: Option<String>,
    pub(crate) uid: Uid,
}

pub(crate) fn gone(kind: &'static str, body: &Body) -> Result<Gone, BadObject> {
    let bad = |reason: String| BadObject { kind, reason };
    let meta = body
        .object_meta()
        .map_err(|problem| bad(format!("metadata: {problem}")))?;
    let uid = meta.uid.filter(|uid| !uid.as_str().is_empty());
    let missing = |name: &str| bad(format!("metadata.{name} is missing"));
    if meta.name.is_empty() {
        return Err(missing("name"));
    }
    Ok(Gone {
        name: meta.name,
        namespace: meta.namespace.filter(|namespace| !namespace.is_empty()),
        uid: uid.ok_or_else(|| missing("uid"))?,
    })
}

/// The body that edges get; the original when there is nothing to change.
fn complete(
    kind: &str,
    body: &Body,
    fields: &Fields<'_>,
    metadata: &Fields<'_>,
) -> Result<Body, serde_json::Error> {
    let typed = fields.get("kind").is_some() && fields.get("apiVersion").is_some();
    if typed && metadata.get("managedFields").is_none() {
        return Ok(body.clone());
    }
    let kind = serde_json::to_string(kind)?;
    let mut members = vec![format!("\"kind\":{kind}"), "\"apiVersion\":\"v1\"".to_owned()];
    for (name, value) in &fields.0 {
        match name.as_str() {
            "kind" | "apiVersion" => {}
            "metadata" => members.push(format!("\"metadata\":{}", print_metadata(metadata)?)),
            _other_member => members.push(format!("{}:{}", serde_json::to_string(name)?, value.get())),
        }
    }
    Body::from_json(format!("{{{}}}", members.join(",")))
}

/// An object of the API as an edge gets it in an answer: without `managedFields`. The body itself when there is nothing to
/// leave out, or when it is no object.
pub fn trimmed(body: &Body) -> Body {
    let trim = || -> Option<Body> {
        let fields: Fields<'_> = serde_json::from_str(body.json()).ok()?;
        let metadata: Fields<'_> = serde_json::from_str(fields.get("metadata")?.get()).ok()?;
        metadata.get("managedFields")?;
        let members: Result<Vec<String>, serde_json::Error> = fields
            .0
            .iter()
            .map(|(name, value)| {
                let value = match name.as_str() {
                    "metadata" => print_metadata(&metadata)?,
                    _other_member => value.get().to_owned(),
                };
                Ok(format!("{}:{value}", serde_json::to_string(name)?))
            })
            .collect();
        Body::from_json(format!("{{{}}}", members.ok()?.join(","))).ok()
    };
    trim().unwrap_or_else(|| body.clone())
}

fn print_metadata(metadata: &Fields<'_>) -> Result<String, serde_json::Error> {
    let kept = metadata.0.iter().filter(|(name, _)| name != "managedFields");
    let members: Result<Vec<String>, serde_json::Error> = kept
        .map(|(name, value)| Ok(format!("{}:{}", serde_json::to_string(name)?, value.get())))
        .collect();
    Ok(format!("{{{}}}", members?.join(",")))
}

fn fingerprint(fields: &Fields<'_>, metadata: &Fields<'_>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (name, value) in &fields.0 {
        if !matches!(name.as_str(), "kind" | "apiVersion" | "metadata" | "status") {
            name.hash(&mut hasher);
            value.get().hash(&mut hasher);
        }
    }
    for (name, value) in &metadata.0 {
        if !BOOKKEEPING.contains(&name.as_str()) {
            name.hash(&mut hasher);
            value.get().hash(&mut hasher);
        }
    }
    hasher.finish()
}
