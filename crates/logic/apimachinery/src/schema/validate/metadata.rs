//! Names, labels, annotations, owners and finalizers.

use super::{Errors, grammar};
use crate::kinds::Kind;
use crate::meta::{self, at, text};
use crate::schema::names::{self, Verdict};
use crate::status::{Fault, FieldError};
use serde_json::Value;

/// All annotations together may be this big.
const ANNOTATIONS_SIZE_MAX: usize = 256 * 1024;

fn name_grammar(kind: &Kind) -> fn(&str) -> Verdict {
    match kind.group_resource().as_str() {
        "namespaces" => names::dns_label,
        "services" => names::dns_1035_label,
        "certificatesigningrequests.certificates.k8s.io"
        | "roles.rbac.authorization.k8s.io"
        | "clusterroles.rbac.authorization.k8s.io"
        | "rolebindings.rbac.authorization.k8s.io"
        | "clusterrolebindings.rbac.authorization.k8s.io" => names::path_segment,
        _ => names::dns_subdomain,
    }
}

pub(super) fn check(kind: &Kind, object: &Value, errors: &mut Errors) {
    let name = meta::name(object);
    if name.is_empty() {
        errors.push(FieldError::required(
            "metadata.name",
            "name or generateName is required",
        ));
    } else {
        grammar("metadata.name", name, name_grammar(kind)(name), errors);
    }
    if kind.namespaced {
        let namespace = meta::namespace(object);
        grammar(
            "metadata.namespace",
            namespace,
            names::dns_label(namespace),
            errors,
        );
    }
    labels("metadata.labels", at(object, &["metadata", "labels"]), errors);
    annotations(
        "metadata.annotations",
        at(object, &["metadata", "annotations"]),
        errors,
    );
    for (place, finalizer) in meta::finalizers(object).enumerate() {
        grammar(
            format!("metadata.finalizers[{place}]"),
            finalizer,
            names::label_key(finalizer),
            errors,
        );
    }
    owners(object, errors);
}

pub(super) fn labels(path: &str, labels: &Value, errors: &mut Errors) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        grammar(path, key, names::label_key(key), errors);
        let value = value.as_str().unwrap_or_default();
        grammar(path, value, names::label_value(value), errors);
    }
}

pub(super) fn annotations(path: &str, annotations: &Value, errors: &mut Errors) {
    let mut size = 0;
    for (key, value) in annotations.as_object().into_iter().flatten() {
        // Only the case of the prefix is forgiven.
        grammar(path, key, names::label_key(&key.to_lowercase()), errors);
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_SIZE_MAX {
        let detail = format!("may not be more than {ANNOTATIONS_SIZE_MAX} bytes");
        errors.push(FieldError {
            path: path.to_owned(),
            fault: Fault::TooLong,
            value: None,
            detail,
        });
    }
}

fn owners(object: &Value, errors: &mut Errors) {
    let owners = meta::items(object, &["metadata", "ownerReferences"]);
    let mut controllers = 0;
    for (place, owner) in owners.iter().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if text(owner, &[field]).is_empty() {
                errors.push(FieldError::required(
                    format!("metadata.ownerReferences[{place}].{field}"),
                    "must not be empty",
                ));
            }
        }
        controllers += usize::from(at(owner, &["controller"]) == &Value::Bool(true));
    }
    if controllers > 1 {
        let detail = "only one reference can have controller set to true";
        errors.push(FieldError::invalid(
            "metadata.ownerReferences",
            Value::from(owners),
            detail,
        ));
    }
}
