//! Service account tokens: asked for, signed, never stored.

use super::write::{body, written};
use super::{Call, read};
use crate::acts::new_uid;
use crate::reply::Reply;
use crate::storage::{Collection, Place};
use crate::token::Claims;
use bytes::Bytes;
use http::StatusCode;
use jiff::Timestamp;
use kedge_apimachinery::meta;
use kedge_apimachinery::schema::{self, FieldValidation};
use kedge_apimachinery::status::{FieldError, Status};
use serde_json::{Value, json};

const LIFETIME_S_DEFAULT: i64 = 3600;
/// Shorter tokens would be renewed all the time.
const LIFETIME_S_MIN: i64 = 600;
/// As in Kubernetes; longer wishes are cut to this.
const LIFETIME_S_MAX: i64 = 1 << 32;

/// POST of `serviceaccounts/<name>/token`.
pub(super) async fn request(call: &Call, bytes: Bytes) -> Result<Reply, Status> {
    let mut asked = body(call, &bytes)?;
    schema::decode_body("TokenRequest", &mut asked, FieldValidation::Ignore)?;
    let account = read::find(call)?.value();
    let spec = &asked["spec"];
    let lifetime_s = spec["expirationSeconds"].as_i64().unwrap_or(LIFETIME_S_DEFAULT);
    if lifetime_s < LIFETIME_S_MIN {
        let why = "may not specify a duration less than 10 minutes";
        let error = FieldError::invalid("spec.expirationSeconds", lifetime_s, why);
        return Err(Status::invalid(&call.kind, &call.target.name, &[error]));
    }
    let issuer = call.server.tokens.signer.issuer();
    let mut audiences: Vec<String> = meta::items(spec, &["audiences"])
        .iter()
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    if audiences.is_empty() {
        audiences.push(issuer.to_owned());
    }
    let bound = bound_object(call, spec)?;
    let now_s = Timestamp::now().as_second();
    let expires_s = now_s + lifetime_s.min(LIFETIME_S_MAX);
    let claims = Claims {
        namespace: &call.target.namespace,
        account: &call.target.name,
        account_uid: meta::uid(&account),
        bound: bound
            .as_ref()
            .map(|(kind, name, uid)| (kind.as_str(), name.as_str(), uid.as_str())),
        audiences: audiences.clone(),
        issued_s: now_s,
        expires_s,
        id: new_uid()?,
    };
    let token = call
        .server
        .tokens
        .signer
        .sign(&claims)
        .map_err(Status::internal)?;
    let expires = Timestamp::from_second(expires_s).map_err(|error| Status::internal(error.to_string()))?;
    let mut answer = json!({
        "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"name": call.target.name, "namespace": call.target.namespace, "creationTimestamp": meta::time(Timestamp::now())},
        "spec": {"audiences": audiences, "expirationSeconds": lifetime_s.min(LIFETIME_S_MAX)},
        "status": {"token": token, "expirationTimestamp": meta::time(expires)},
    });
    if let Some(object) = spec.get("boundObjectRef").filter(|object| object.is_object()) {
        meta::set(&mut answer, &["spec", "boundObjectRef"], object.clone());
    }
    written(call, StatusCode::CREATED, answer, &[])
}

/// Kind, name and UID of the object to which the token is bound; it must exist, and be the one that is meant.
fn bound_object(call: &Call, spec: &Value) -> Result<Option<(String, String, String)>, Status> {
    let object = &spec["boundObjectRef"];
    if !object.is_object() {
        return Ok(None);
    }
    let (kind, name) = (meta::text(object, &["kind"]), meta::text(object, &["name"]));
    let (resource, namespace) = match kind {
        "Pod" => ("pods", call.target.namespace.as_str()),
        "Secret" => ("secrets", call.target.namespace.as_str()),
        "Node" => ("nodes", ""),
        other => {
            return Err(Status::bad_request(format!(
                "cannot bind a token to an object of kind {other:?}"
            )));
        }
    };
    let registry = call.server.registry();
    let served = registry
        .by_group_resource(resource)
        .ok_or_else(Status::no_such_resource)?;
    let found = call
        .server
        .storage
        .get(&Collection::named(resource), &Place::new(namespace, name));
    let found = found.ok_or_else(|| Status::not_found(&served, name))?.value();
    let wanted = meta::text(object, &["uid"]);
    if !wanted.is_empty() && wanted != meta::uid(&found) {
        let why =
            format!("the UID in the bound object reference ({wanted}) does not match the UID in record");
        return Err(Status::conflict(&served, name, &why));
    }
    Ok(Some((
        kind.to_owned(),
        name.to_owned(),
        meta::uid(&found).to_owned(),
    )))
}
