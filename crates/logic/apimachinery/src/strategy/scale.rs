//! The scale subresource: one number seen the same way on all kinds that have it.

use crate::kinds::{Kind, Subresource};
use crate::meta::{self, at};
use crate::selector::LabelSelector;
use crate::status::{FieldError, Status};
use serde_json::{Value, json};

/// Where the wanted number, the present number and the selector (if it is written as text) lie.
type Paths<'a> = (Vec<&'a str>, Vec<&'a str>, Option<Vec<&'a str>>);

fn paths(kind: &Kind) -> Result<Paths<'_>, Status> {
    fn keys(path: &[String]) -> Vec<&str> {
        path.iter().map(String::as_str).collect()
    }
    if !kind.has(Subresource::Scale) {
        return Err(Status::no_such_resource());
    }
    Ok(match &kind.scale {
        Some(p) => (
            keys(&p.spec_replicas),
            keys(&p.status_replicas),
            p.label_selector.as_deref().map(keys),
        ),
        None => (vec!["spec", "replicas"], vec!["status", "replicas"], None),
    })
}

/// GET of `/scale`.
pub fn scale(kind: &Kind, object: &Value) -> Result<Value, Status> {
    let (wanted, present, label_selector) = paths(kind)?;
    let mut metadata = serde_json::Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        let value = at(object, &["metadata", field]);
        if !value.is_null() {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
    let selector = match label_selector {
        Some(path) => meta::text(object, &path).to_owned(),
        None => LabelSelector::from_object(at(object, &["spec", "selector"]))
            .ok()
            .flatten()
            .map(|s| s.to_string())
            .unwrap_or_default(),
    };
    let mut scale = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {"replicas": meta::number(object, &wanted).unwrap_or(0)},
        "status": {"replicas": meta::number(object, &present).unwrap_or(0)},
    });
    if !selector.is_empty() {
        meta::set(&mut scale, &["status", "selector"], selector.into());
    }
    Ok(scale)
}

/// PUT of `/scale` (or the result of its PATCH): the scaled object, to be given to [`super::update`].
pub fn apply_scale(kind: &Kind, scale: &Value, old: &Value) -> Result<Value, Status> {
    let (wanted, _, _) = paths(kind)?;
    let name = meta::name(old);
    let replicas = meta::number(scale, &["spec", "replicas"]).unwrap_or(0);
    if !(0..=i64::from(i32::MAX)).contains(&replicas) {
        let error = FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
        return Err(Status::invalid(kind, name, &[error]));
    }
    let version = meta::resource_version(scale);
    if !version.is_empty() && version != "0" && version != meta::resource_version(old) {
        return Err(Status::stale(kind, name));
    }
    let uid = meta::uid(scale);
    if !uid.is_empty() && uid != meta::uid(old) {
        return Err(Status::conflict(
            kind,
            name,
            "the UID of the scale is not that of the stored object",
        ));
    }
    let mut object = old.clone();
    meta::set(&mut object, &wanted, replicas.into());
    Ok(object)
}
