//! What makes an object valid beyond its shape. All mistakes are reported at once.

mod metadata;
mod others;
mod pod;
mod roles;
mod workload;

pub use crate::status::FieldError;

use super::KindSchema;
use super::{catalog, check};
use crate::kinds::Kind;
use crate::meta::at;
use serde_json::Value;

/// Mistakes found so far.
type Errors = Vec<FieldError>;

/// Everything that is wrong with a new object (after decoding and defaulting).
pub fn object(kind: &Kind, object: &Value) -> Errors {
    let mut errors = Errors::new();
    metadata::check(kind, object, &mut errors);
    match &kind.schema {
        KindSchema::Custom(schema) => errors.extend(schema.validate(object)),
        KindSchema::Builtin(name) => {
            if let Some(field) = catalog::find(name).and_then(|t| t.field("spec"))
                && let catalog::Shape::Type(spec) = field.shape
            {
                check::missing(spec, "spec", at(object, &["spec"]), &mut errors);
            }
            builtin(kind, object, &mut errors);
        }
    }
    let mut seen = Errors::new();
    for error in errors {
        // The catalog and a rule may both miss the same field.
        if !seen
            .iter()
            .any(|s| s.path == error.path && s.fault == error.fault && s.value == error.value)
        {
            seen.push(error);
        }
    }
    seen
}

fn builtin(kind: &Kind, object: &Value, errors: &mut Errors) {
    match kind.group_resource().as_str() {
        "pods" => pod::check(object, errors),
        "deployments.apps" => workload::deployment(object, errors),
        "replicasets.apps" => workload::replica_set(object, errors),
        "services" => others::service(object, errors),
        "configmaps" => others::config_map(object, errors),
        "secrets" => others::secret(object, errors),
        "nodes" => others::node(object, errors),
        "leases.coordination.k8s.io" => others::lease(object, errors),
        "events" => others::event(object, errors),
        "customresourcedefinitions.apiextensions.k8s.io" => others::definition(object, errors),
        "certificatesigningrequests.certificates.k8s.io" => others::signing_request(object, errors),
        "roles.rbac.authorization.k8s.io" | "clusterroles.rbac.authorization.k8s.io" => {
            roles::role(kind, object, errors)
        }
        "rolebindings.rbac.authorization.k8s.io" | "clusterrolebindings.rbac.authorization.k8s.io" => {
            roles::binding(kind, object, errors)
        }
        "storageclasses.storage.k8s.io" => others::storage_class(object, errors),
        "csidrivers.storage.k8s.io" => others::csi_driver(object, errors),
        "runtimeclasses.node.k8s.io" => others::runtime_class(object, errors),
        _ => {}
    }
}

/// Everything that may not change like this; `new` is checked by [`object`] too.
pub fn update(kind: &Kind, new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let mut fixed = |path: &[&str]| {
        if at(new, path) != at(old, path) && !at(old, path).is_null() {
            errors.push(FieldError::invalid(
                path.join("."),
                at(new, path).clone(),
                "field is immutable",
            ));
        }
    };
    match kind.group_resource().as_str() {
        "pods" => pod::update(new, old, &mut errors),
        "deployments.apps" | "replicasets.apps" => fixed(&["spec", "selector"]),
        "secrets" => {
            fixed(&["type"]);
            others::immutable_data(new, old, &mut errors);
        }
        "configmaps" => others::immutable_data(new, old, &mut errors),
        "services"
            if at(new, &["spec", "type"]) != "ExternalName" && at(old, &["spec", "clusterIP"]) != "" =>
        {
            fixed(&["spec", "clusterIP"]);
        }
        "nodes" => {
            fixed(&["spec", "podCIDR"]);
            fixed(&["spec", "providerID"]);
        }
        "customresourcedefinitions.apiextensions.k8s.io" => {
            for path in [
                &["spec", "group"][..],
                &["spec", "scope"],
                &["spec", "names", "plural"],
                &["spec", "names", "kind"],
            ] {
                fixed(path);
            }
        }
        "certificatesigningrequests.certificates.k8s.io" | "volumeattachments.storage.k8s.io" => {
            fixed(&["spec"])
        }
        "rolebindings.rbac.authorization.k8s.io" | "clusterrolebindings.rbac.authorization.k8s.io"
            if at(new, &["roleRef"]) != at(old, &["roleRef"]) =>
        {
            let given = at(new, &["roleRef"]).clone();
            errors.push(FieldError::invalid("roleRef", given, "cannot change roleRef"));
        }
        "csidrivers.storage.k8s.io" => {
            for field in ["attachRequired", "volumeLifecycleModes"] {
                fixed(&["spec", field]);
            }
        }
        "csinodes.storage.k8s.io" => others::csi_node_update(new, old, &mut errors),
        "runtimeclasses.node.k8s.io" => fixed(&["handler"]),
        "storageclasses.storage.k8s.io" => {
            for field in ["provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"] {
                fixed(&[field]);
            }
        }
        _ => {}
    }
    errors
}

/// Pushes an error with the grammar's sentence.
fn grammar(path: impl Into<String>, name: &str, verdict: super::names::Verdict, errors: &mut Errors) {
    if let Err(why) = verdict {
        errors.push(FieldError::invalid(path, name, why));
    }
}

/// Pushes an error unless the text is one of those allowed.
fn one_of(path: impl Into<String>, value: &str, allowed: &[&str], errors: &mut Errors) {
    if !allowed.contains(&value) {
        errors.push(FieldError::unsupported(path, value, allowed));
    }
}

fn port_number(path: impl Into<String>, value: &Value, errors: &mut Errors) {
    if value.as_i64().is_none_or(|n| !(1..=65535).contains(&n)) {
        errors.push(FieldError::invalid(
            path,
            value.clone(),
            "must be between 1 and 65535, inclusive",
        ));
    }
}

/// A port by number or by name.
fn port(path: String, value: &Value, errors: &mut Errors) {
    match value {
        Value::Null => errors.push(FieldError::required(path, "")),
        Value::String(name) => grammar(path, name, super::names::port_name(name), errors),
        other => port_number(path, other, errors),
    }
}

fn not_negative(path: impl Into<String>, value: &Value, errors: &mut Errors) {
    if value.as_i64().is_some_and(|n| n < 0) {
        errors.push(FieldError::invalid(
            path,
            value.clone(),
            "must be greater than or equal to 0",
        ));
    }
}

#[cfg(test)]
mod tests;
