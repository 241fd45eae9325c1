//! The life of an object: what happens to it when it is created, changed and deleted.

mod delete;
mod pod;
mod scale;

pub use delete::{
    DeleteOptions, Deletion, FOREGROUND_FINALIZER, ORPHAN_FINALIZER, Propagation, begin_delete, is_finished,
};
pub use pod::{bind, evict_options};
pub use scale::{apply_scale, scale};

use crate::kinds::{Kind, Subresource};
use crate::meta::{self, at, text};
use crate::schema::{self, FieldValidation, KindSchema, validate};
use crate::status::{FieldError, Status};
use base64::prelude::{BASE64_STANDARD, Engine};
use jiff::Timestamp;
use serde_json::{Value, json};

/// What the caller brings along to a create.
#[derive(Clone, Copy, Debug)]
pub struct Creation<'a> {
    /// The namespace of the request path; empty for cluster kinds.
    pub namespace: &'a str,
    /// A fresh UUID.
    pub uid: &'a str,
    /// Appended to `generateName` ([`crate::meta::name_suffix`]).
    pub suffix: &'a str,
    pub now: Timestamp,
    pub validation: FieldValidation,
}

/// An object ready to be stored and the warnings for the client (`Warning: 299 - "..."` headers).
#[derive(Clone, Debug, PartialEq)]
pub struct Admitted {
    pub object: Value,
    pub warnings: Vec<String>,
}

/// Longest part of `generateName` that is kept, so that the whole name stays a valid label.
const GENERATE_NAME_MAX: usize = 63 - meta::NAME_SUFFIX_LENGTH;

/// POST: decodes, defaults, completes and validates. The caller sets `metadata.resourceVersion`.
pub fn create(kind: &Kind, mut object: Value, creation: &Creation<'_>) -> Result<Admitted, Status> {
    check_type(kind, &mut object)?;
    let warnings = schema::decode(kind, &mut object, creation.validation)?;
    check_namespace(kind, &mut object, creation.namespace)?;
    if !meta::resource_version(&object).is_empty() {
        return Err(Status::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    name_it(&mut object, creation.suffix);
    let metadata = meta::map(meta::map(&mut object).entry("metadata").or_insert(Value::Null));
    for system in [
        "selfLink",
        "managedFields",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
    ] {
        metadata.shift_remove(system);
    }
    metadata.insert("uid".into(), creation.uid.into());
    metadata.insert("creationTimestamp".into(), meta::time(creation.now).into());
    if has_generation(kind) {
        metadata.insert("generation".into(), 1.into());
    }
    if keeps_status_apart(kind)
        && !kind.is("nodes")
        && !kind.is("customresourcedefinitions.apiextensions.k8s.io")
    {
        meta::map(&mut object).shift_remove("status");
    }
    prepare_secret(kind, &mut object);
    schema::apply_defaults(kind, &mut object);
    if kind.is("pods") {
        schema::pod_tolerations(&mut object);
    }
    type_first(kind, &mut object);
    refuse_invalid(kind, &object, &validate::object(kind, &object))?;
    Ok(Admitted { object, warnings })
}

/// PUT and the result of a PATCH. `old` is what is stored. Refuses a stale `resourceVersion` (when one is given).
pub fn update(
    kind: &Kind,
    mut object: Value,
    old: &Value,
    validation: FieldValidation,
) -> Result<Admitted, Status> {
    check_type(kind, &mut object)?;
    let warnings = schema::decode(kind, &mut object, validation)?;
    check_same(kind, &mut object, old)?;
    if keeps_status_apart(kind) {
        copy(&mut object, old, &["status"]);
    }
    prepare_secret(kind, &mut object);
    schema::apply_defaults(kind, &mut object);
    keep_assigned(kind, &mut object, old);
    keep_metadata(&mut object, old);
    if has_generation(kind) {
        let generation = meta::number(old, &["metadata", "generation"]).unwrap_or(1);
        let bumped = generation + i64::from(desired_changed(kind, &object, old));
        meta::set(&mut object, &["metadata", "generation"], bumped.into());
    }
    type_first(kind, &mut object);
    let mut errors = validate::object(kind, &object);
    errors.extend(validate::update(kind, &object, old));
    errors.extend(new_finalizers_while_terminating(&object, old));
    refuse_invalid(kind, &object, &errors)?;
    Ok(Admitted { object, warnings })
}

/// PUT or PATCH of `/status`: everything but the status stays as stored (labels and annotations of nodes and pods may
/// be written along, as kubelets do).
pub fn update_status(
    kind: &Kind,
    mut body: Value,
    old: &Value,
    validation: FieldValidation,
) -> Result<Admitted, Status> {
    check_type(kind, &mut body)?;
    let warnings = schema::decode(kind, &mut body, validation)?;
    check_same(kind, &mut body, old)?;
    let mut object = without_status(old);
    if let Some(status) = meta::take(&mut body, &["status"]).filter(|status| !status.is_null()) {
        meta::set(&mut object, &["status"], status);
    }
    if kind.is("nodes") || kind.is("pods") {
        for place in ["labels", "annotations"] {
            copy(&mut object, &body, &["metadata", place]);
        }
    }
    if kind.is("pods") {
        pod::keep_facts(&mut object, old);
    }
    type_first(kind, &mut object);
    let mut errors = Vec::new();
    if let KindSchema::Custom(schema) = &kind.schema {
        errors.extend(
            schema
                .validate(&object)
                .into_iter()
                .filter(|e| e.path.starts_with("status")),
        );
    }
    refuse_invalid(kind, &object, &errors)?;
    Ok(Admitted { object, warnings })
}

/// A copy of what is not the status. Status is the larger part of a node or a pod, and it is about to be replaced.
fn without_status(object: &Value) -> Value {
    let fields = object.as_object().into_iter().flatten();
    let kept = fields.filter(|(name, _)| *name != "status");
    Value::Object(kept.map(|(name, value)| (name.clone(), value.clone())).collect())
}

/// Whether a write changes anything; a write that does not is answered without a new version.
pub fn changes(new: &Value, old: &Value) -> bool {
    let bare = |object: &Value| {
        let mut object = object.clone();
        meta::take(&mut object, &["metadata", "resourceVersion"]);
        meta::take(&mut object, &["metadata", "managedFields"]);
        object
    };
    bare(new) != bare(old)
}

/// PUT of `namespaces/<name>/finalize`: only `spec.finalizers` changes.
pub fn finalize_namespace(kind: &Kind, body: &Value, old: &Value) -> Result<Value, Status> {
    let mut body = body.clone();
    check_same(kind, &mut body, old)?;
    let mut object = old.clone();
    let finalizers = at(&body, &["spec", "finalizers"]).clone();
    match finalizers.as_array() {
        Some(left) if !left.is_empty() => meta::set(&mut object, &["spec", "finalizers"], finalizers),
        _ => {
            meta::take(&mut object, &["spec", "finalizers"]);
        }
    }
    Ok(object)
}

/// PUT of `certificatesigningrequests/<name>/approval`: only `status.conditions` changes.
pub fn approve(kind: &Kind, body: &Value, old: &Value) -> Result<Value, Status> {
    let mut body = body.clone();
    check_same(kind, &mut body, old)?;
    let mut object = old.clone();
    let conditions = at(&body, &["status", "conditions"]).clone();
    let both = |kind: &str| {
        conditions
            .as_array()
            .into_iter()
            .flatten()
            .any(|c| text(c, &["type"]) == kind)
    };
    if both("Approved") && both("Denied") {
        let error = FieldError::invalid(
            "status.conditions",
            "Approved,Denied",
            "may not be both approved and denied",
        );
        return Err(Status::invalid(kind, meta::name(old), &[error]));
    }
    meta::set(&mut object, &["status", "conditions"], conditions);
    Ok(object)
}

/// Whether nobody is harmed when a crash undoes this write (`None`: the object is not there): an event, or the renewal
/// of a lease by its holder. Who holds a lease is never forgotten.
pub fn may_be_lost(kind: &Kind, before: Option<&Value>, after: Option<&Value>) -> bool {
    if kind.is("leases.coordination.k8s.io") {
        let holder = |lease: &Value| at(lease, &["spec", "holderIdentity"]).clone();
        return match (before, after) {
            (Some(before), Some(after)) => holder(before) == holder(after) && !meta::is_terminating(after),
            (None, _) | (_, None) => false,
        };
    }
    kind.is("events")
}

/// A signing request names who asks for it; only the server knows that.
pub fn requested_by(request: &mut Value, user: &crate::rbac::User) {
    for field in ["username", "uid", "groups", "extra"] {
        meta::take(request, &["spec", field]);
    }
    if let Value::Object(fields) = user.to_value() {
        for (field, value) in fields {
            meta::set(request, &["spec", &field], value);
        }
    }
}

/// apiVersion and kind of a body must be those of the address; absent ones are filled in.
fn check_type(kind: &Kind, object: &mut Value) -> Result<(), Status> {
    if !object.is_object() {
        return Err(Status::bad_request(format!(
            "the body must be a {} object",
            kind.kind
        )));
    }
    for (field, expected) in [("apiVersion", kind.api_version()), ("kind", kind.kind.clone())] {
        match text(object, &[field]) {
            "" => meta::set(object, &[field], expected.into()),
            given if given == expected => {}
            given => {
                let message =
                    format!("{field} of the body is {given:?}, but the address serves {expected:?}");
                return Err(Status::bad_request(message));
            }
        }
    }
    Ok(())
}

fn check_namespace(kind: &Kind, object: &mut Value, namespace: &str) -> Result<(), Status> {
    let given = meta::namespace(object);
    if !kind.namespaced {
        meta::take(object, &["metadata", "namespace"]);
        return Ok(());
    }
    if namespace.is_empty() {
        return Err(Status::bad_request(format!(
            "an empty namespace may not be set when a {} is created",
            kind.singular
        )));
    }
    if !given.is_empty() && given != namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    meta::set(object, &["metadata", "namespace"], namespace.into());
    Ok(())
}

fn name_it(object: &mut Value, suffix: &str) {
    let prefix = text(object, &["metadata", "generateName"]);
    if meta::name(object).is_empty() && !prefix.is_empty() {
        let kept: String = prefix.chars().take(GENERATE_NAME_MAX).collect();
        meta::set(object, &["metadata", "name"], format!("{kept}{suffix}").into());
    }
}

/// Name, namespace, UID and version of a body must be those of the stored object, where they are given.
fn check_same(kind: &Kind, object: &mut Value, old: &Value) -> Result<(), Status> {
    let name = meta::name(old);
    for field in ["name", "namespace"] {
        let (given, stored) = (
            text(object, &["metadata", field]),
            text(old, &["metadata", field]),
        );
        if !given.is_empty() && given != stored {
            let message = format!(
                "the {field} of the object ({given}) does not match the {field} on the URL ({stored})"
            );
            return Err(Status::bad_request(message));
        }
    }
    let uid = meta::uid(object);
    if !uid.is_empty() && uid != meta::uid(old) {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            meta::uid(old)
        );
        return Err(Status::conflict(kind, name, &why));
    }
    let version = meta::resource_version(object);
    if !version.is_empty() && version != "0" && version != meta::resource_version(old) {
        return Err(Status::stale(kind, name));
    }
    for field in ["name", "namespace", "uid", "resourceVersion"] {
        copy(object, old, &["metadata", field]);
    }
    Ok(())
}

/// What only the server writes comes from the stored object.
fn keep_metadata(object: &mut Value, old: &Value) {
    const KEPT: [&str; 6] = [
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generateName",
        "selfLink",
        "generation",
    ];
    for field in KEPT {
        copy(object, old, &["metadata", field]);
    }
    for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
        let empty = match at(object, &["metadata", field]) {
            Value::Object(fields) => fields.is_empty(),
            Value::Array(values) => values.is_empty(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
        };
        if empty {
            meta::take(object, &["metadata", field]);
        }
    }
}

/// Values that the system assigned stay when the author leaves them out, so that a PUT of a manifest is possible.
fn keep_assigned(kind: &Kind, object: &mut Value, old: &Value) {
    let mut keep = |path: &[&str]| {
        if at(object, path).is_null() && !at(old, path).is_null() {
            copy(object, old, path);
        }
    };
    if kind.is("services") {
        for field in ["clusterIP", "clusterIPs", "healthCheckNodePort"] {
            keep(&["spec", field]);
        }
    }
    if kind.is("pods") {
        for field in [
            "nodeName",
            "priority",
            "preemptionPolicy",
            "enableServiceLinks",
            "serviceAccountName",
            "serviceAccount",
        ] {
            keep(&["spec", field]);
        }
    }
    if kind.is("nodes") {
        keep(&["spec", "podCIDR"]);
        keep(&["spec", "podCIDRs"]);
    }
    if kind.is("namespaces") {
        // The finalizers of a namespace change by its finalize subresource only.
        copy(object, old, &["spec", "finalizers"]);
    }
}

/// `stringData` of a secret is written to `data`.
fn prepare_secret(kind: &Kind, object: &mut Value) {
    if !kind.is("secrets") {
        return;
    }
    for (key, value) in meta::take(object, &["stringData"])
        .as_ref()
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        let encoded = BASE64_STANDARD.encode(value.as_str().unwrap_or_default());
        meta::set(object, &["data", key], encoded.into());
    }
}

/// The value at a path as in the other object: set or absent.
fn copy(object: &mut Value, from: &Value, path: &[&str]) {
    match at(from, path) {
        Value::Null => {
            meta::take(object, path);
        }
        value => meta::set(object, path, value.clone()),
    }
}

/// Whether `metadata.generation` counts changes of the desired state.
fn has_generation(kind: &Kind) -> bool {
    const COUNTED: [&str; 4] = [
        "pods",
        "deployments.apps",
        "replicasets.apps",
        "customresourcedefinitions.apiextensions.k8s.io",
    ];
    matches!(kind.schema, KindSchema::Custom(_)) || COUNTED.iter().any(|k| kind.is(k))
}

/// Whether writes to the main resource leave the status alone.
fn keeps_status_apart(kind: &Kind) -> bool {
    kind.has(Subresource::Status)
}

/// Whether anything but metadata (and status, where it is apart) differs.
fn desired_changed(kind: &Kind, new: &Value, old: &Value) -> bool {
    let desired = |object: &Value| {
        let mut object = object.clone();
        let fields = meta::map(&mut object);
        fields.shift_remove("metadata");
        if keeps_status_apart(kind) {
            fields.shift_remove("status");
        }
        object
    };
    desired(new) != desired(old)
}

/// A terminating object takes no new finalizers.
fn new_finalizers_while_terminating(new: &Value, old: &Value) -> Option<FieldError> {
    if !meta::is_terminating(old) {
        return None;
    }
    let added: Vec<&str> = meta::finalizers(new)
        .filter(|f| meta::finalizers(old).all(|o| o != *f))
        .collect();
    (!added.is_empty()).then(|| {
        let detail = format!(
            "no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
        );
        FieldError::forbidden("metadata.finalizers", detail)
    })
}

fn refuse_invalid(kind: &Kind, object: &Value, errors: &[FieldError]) -> Result<(), Status> {
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Status::invalid(kind, meta::name(object), errors))
    }
}

/// kind, apiVersion and metadata come first, as people expect them.
fn type_first(kind: &Kind, object: &mut Value) {
    let fields = std::mem::take(meta::map(object));
    let mut ordered = json!({"kind": kind.kind, "apiVersion": kind.api_version(), "metadata": {}});
    let place = meta::map(&mut ordered);
    for (name, value) in fields {
        place.insert(name, value);
    }
    place.insert("kind".into(), kind.kind.clone().into());
    place.insert("apiVersion".into(), kind.api_version().into());
    *object = ordered;
}

#[cfg(test)]
mod tests;
