//! Roles and bindings.

use super::{Errors, one_of};
use crate::kinds::Kind;
use crate::meta::{at, items, text};
use crate::rbac::GROUP;
use crate::schema::names;
use crate::status::FieldError;
use serde_json::Value;

pub(super) fn role(kind: &Kind, object: &Value, errors: &mut Errors) {
    if at(object, &["aggregationRule"]).is_object() {
        let why = "cluster roles that gather others are not available in the embedded Kubernetes API; write the rules out";
        errors.push(FieldError::forbidden("aggregationRule", why));
    }
    for (place, rule) in items(object, &["rules"]).iter().enumerate() {
        let path = format!("rules[{place}]");
        let given = |field: &str| !items(rule, &[field]).is_empty();
        if !given("verbs") {
            errors.push(FieldError::required(
                format!("{path}.verbs"),
                "verbs must contain at least one value",
            ));
        }
        if given("nonResourceURLs") {
            paths(kind, &path, rule, errors);
            continue;
        }
        if !given("apiGroups") {
            errors.push(FieldError::required(
                format!("{path}.apiGroups"),
                "resource rules must supply at least one api group",
            ));
        }
        if !given("resources") {
            errors.push(FieldError::required(
                format!("{path}.resources"),
                "resource rules must supply at least one resource",
            ));
        }
    }
}

fn paths(kind: &Kind, path: &str, rule: &Value, errors: &mut Errors) {
    let urls = at(rule, &["nonResourceURLs"]);
    let mut invalid = |why: &str| {
        let path = format!("{path}.nonResourceURLs");
        errors.push(FieldError::invalid(path, urls.clone(), why));
    };
    if kind.namespaced {
        invalid("namespaced rules cannot apply to non-resource URLs");
    }
    let others = ["apiGroups", "resources", "resourceNames"];
    if others.iter().any(|field| !items(rule, &[field]).is_empty()) {
        invalid("rules cannot apply to both regular resources and non-resource URLs");
    }
}

pub(super) fn binding(kind: &Kind, object: &Value, errors: &mut Errors) {
    let reference = at(object, &["roleRef"]);
    one_of(
        "roleRef.apiGroup",
        text(reference, &["apiGroup"]),
        &[GROUP],
        errors,
    );
    let kinds: &[&str] = if kind.namespaced {
        &["Role", "ClusterRole"]
    } else {
        &["ClusterRole"]
    };
    one_of("roleRef.kind", text(reference, &["kind"]), kinds, errors);
    path_name("roleRef.name", text(reference, &["name"]), errors);
    for (place, subject) in items(object, &["subjects"]).iter().enumerate() {
        let path = format!("subjects[{place}]");
        let (name, group) = (text(subject, &["name"]), text(subject, &["apiGroup"]));
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        }
        match text(subject, &["kind"]) {
            "ServiceAccount" => {
                one_of(format!("{path}.apiGroup"), group, &[""], errors);
                if !name.is_empty() {
                    super::grammar(format!("{path}.name"), name, names::dns_subdomain(name), errors);
                }
                if !kind.namespaced && text(subject, &["namespace"]).is_empty() {
                    errors.push(FieldError::required(format!("{path}.namespace"), ""));
                }
            }
            "User" | "Group" => one_of(format!("{path}.apiGroup"), group, &[GROUP], errors),
            other => errors.push(FieldError::unsupported(
                format!("{path}.kind"),
                other,
                &["ServiceAccount", "User", "Group"],
            )),
        }
    }
}

fn path_name(path: &str, name: &str, errors: &mut Errors) {
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else {
        super::grammar(path, name, names::path_segment(name), errors);
    }
}
