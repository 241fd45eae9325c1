//! Questions that are answered and not stored: who am I, who holds this token, who may do what.

use super::Call;
use super::write::written;
use crate::reply::Reply;
use http::StatusCode;
use kedge_apimachinery::meta::{self, at, items, text};
use kedge_apimachinery::rbac::{Access, Act, ResourceAct, User};
use kedge_apimachinery::schema::{self, FieldValidation};
use kedge_apimachinery::status::Status;
use serde_json::{Value, json};

/// POST of a review. Whether the asker may ask was decided before.
pub(super) fn answer(call: &Call, mut review: Value) -> Result<Reply, Status> {
    let warnings = schema::decode(&call.kind, &mut review, FieldValidation::Warn)?;
    let access = call.server.access();
    let status = match call.kind.kind.as_str() {
        "SelfSubjectReview" => json!({"userInfo": call.who.to_value()}),
        "TokenReview" => token(call, &review),
        "SelfSubjectAccessReview" => verdict(&access, &call.who, at(&review, &["spec"]))?,
        "SubjectAccessReview" => verdict(&access, &subject(&review)?, at(&review, &["spec"]))?,
        "LocalSubjectAccessReview" => {
            let path = ["spec", "resourceAttributes", "namespace"];
            if text(&review, &path).is_empty() {
                meta::set(&mut review, &path, call.target.namespace.clone().into());
            }
            if text(&review, &path) != call.target.namespace {
                return Err(Status::bad_request(
                    "spec.resourceAttributes.namespace must match the namespace of the request",
                ));
            }
            verdict(&access, &subject(&review)?, at(&review, &["spec"]))?
        }
        "SelfSubjectRulesReview" => rules(&access, &call.who, text(&review, &["spec", "namespace"]))?,
        _ => return Err(Status::no_such_resource()),
    };
    meta::set(&mut review, &["kind"], call.kind.kind.clone().into());
    meta::set(&mut review, &["apiVersion"], call.kind.api_version().into());
    meta::set_default(&mut review, &["metadata"], json!({"creationTimestamp": null}));
    meta::set(&mut review, &["status"], status);
    written(call, StatusCode::CREATED, review, &warnings)
}

fn token(call: &Call, review: &Value) -> Value {
    let texts = |path: &[&str]| -> Vec<String> {
        let all = items(review, path).iter();
        all.filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let mut audiences = texts(&["spec", "audiences"]);
    if audiences.is_empty() {
        audiences.push(call.server.tokens.signer.issuer().to_owned());
    }
    match call.server.holder(text(review, &["spec", "token"]), &audiences) {
        Some(verified) => {
            audiences.retain(|audience| verified.audiences.contains(audience));
            json!({"authenticated": true, "user": verified.user().to_value(), "audiences": audiences})
        }
        None => json!({"authenticated": false, "user": {}, "error": "invalid bearer token"}),
    }
}

/// Whom a review is about.
fn subject(review: &Value) -> Result<User, Status> {
    let spec = at(review, &["spec"]);
    let texts = |value: &Value| -> Vec<String> {
        let all = value.as_array().into_iter().flatten();
        all.filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let extra = at(spec, &["extra"]).as_object().into_iter().flatten();
    let user = User {
        name: text(spec, &["user"]).to_owned(),
        uid: text(spec, &["uid"]).to_owned(),
        groups: texts(at(spec, &["groups"])),
        extra: extra.map(|(key, values)| (key.clone(), texts(values))).collect(),
    };
    if user.name.is_empty() && user.groups.is_empty() {
        return Err(Status::bad_request(
            "at least one of spec.user or spec.groups must be specified",
        ));
    }
    Ok(user)
}

fn verdict(access: &Access, user: &User, spec: &Value) -> Result<Value, Status> {
    let (resource, path) = (
        at(spec, &["resourceAttributes"]),
        at(spec, &["nonResourceAttributes"]),
    );
    let act = match (resource.is_object(), path.is_object()) {
        (true, false) => Act::Resource(ResourceAct {
            verb: text(resource, &["verb"]),
            group: text(resource, &["group"]),
            resource: text(resource, &["resource"]),
            subresource: text(resource, &["subresource"]),
            namespace: text(resource, &["namespace"]),
            name: text(resource, &["name"]),
        }),
        (false, true) => Act::Path {
            verb: text(path, &["verb"]),
            path: text(path, &["path"]),
        },
        (true, true) | (false, false) => {
            return Err(Status::bad_request(
                "exactly one of spec.resourceAttributes or spec.nonResourceAttributes must be specified",
            ));
        }
    };
    Ok(match access.allow(user, &act) {
        Ok(()) => json!({"allowed": true}),
        // Clients print the reason; that the user may not is the answer already, a role that is missing is news.
        Err(why) => match why.split_once(": RBAC: ") {
            Some((_, missing)) => json!({"allowed": false, "reason": format!("RBAC: {missing}")}),
            None => json!({"allowed": false}),
        },
    })
}

fn rules(access: &Access, user: &User, namespace: &str) -> Result<Value, Status> {
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let (rules, missing) = access.rules(user, namespace);
    let (resources, paths): (Vec<_>, Vec<_>) = rules.iter().partition(|rule| rule.is_about_resources());
    let values = |rules: Vec<&kedge_apimachinery::rbac::Rule>| -> Vec<Value> {
        rules
            .into_iter()
            .map(kedge_apimachinery::rbac::Rule::to_value)
            .collect()
    };
    let mut status = json!({
        "resourceRules": values(resources), "nonResourceRules": values(paths), "incomplete": !missing.is_empty(),
    });
    if !missing.is_empty() {
        meta::set(&mut status, &["evaluationError"], missing.join(", ").into());
    }
    Ok(status)
}
