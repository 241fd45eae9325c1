//! From a verdict to the API, and from the API's answer to what an official edge expects.

use super::ownership::{CLOUDCORE_ANNOTATION, REPLICA_ANNOTATION};
use super::{Answer, Config};
use kedge_cluster::ApiError;
use kedge_placement::index::EDGE_LABEL;
use kedge_placement::report::{ApiCall, ReplyShape};
use kedge_placement::trimmed;
use kedge_wire::{Body, ObjectKind, ObjectResponse, Operation, Request, ResourceVersion, Status};
use serde_json::{Map, Value};

/// The call as it goes out. A node that registers gets the label that makes it an edge node, which the placement looks
/// for, and the annotations that name the CloudCore.
pub(super) fn prepared(call: ApiCall, request: &Request, config: &Config) -> ApiCall {
    match call {
        ApiCall::Create { path, body } if request.key.kind == ObjectKind::Node => {
            let body = registered(&body, config).unwrap_or(body);
            ApiCall::Create { path, body }
        }
        other => other,
    }
}

/// `None` when the body is not an object with metadata; the API then says what is wrong with it.
fn registered(node: &Body, config: &Config) -> Option<Body> {
    let mut node: Value = node.parse().ok()?;
    let metadata = node.get_mut("metadata")?.as_object_mut()?;
    map(metadata, "labels")?
        .entry(EDGE_LABEL)
        .or_insert_with(|| "".into());
    let names = [
        (CLOUDCORE_ANNOTATION, &config.advertise_address),
        (REPLICA_ANNOTATION, &config.replica),
    ];
    for (annotation, name) in names {
        if let Some(name) = name {
            map(metadata, "annotations")?.insert(annotation.to_owned(), name.as_str().into());
        }
    }
    Body::from_value(&node).ok()
}

/// The map under `name`, made when it is absent or null.
fn map<'a>(metadata: &'a mut Map<String, Value>, name: &str) -> Option<&'a mut Map<String, Value>> {
    let value = metadata.entry(name).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut()
}

pub(super) fn shaped(
    request: &Request,
    call: &ApiCall,
    shape: ReplyShape,
    result: Result<Body, ApiError>,
) -> Answer {
    match (shape, result) {
        (ReplyShape::None, _) => silence(),
        (ReplyShape::ObjectResponse, Ok(object)) => {
            // Official clouds name the version of a patched object only.
            let version = (request.route.operation == Operation::Patch)
                .then(|| version_of(&object))
                .flatten();
            Answer {
                version,
                ..plain(ObjectResponse::ok(trimmed(&object)).to_body())
            }
        }
        (ReplyShape::ObjectResponse, Err(error)) => plain(ObjectResponse::err(error.to_status()).to_body()),
        (ReplyShape::Raw, Ok(object)) => Answer {
            version: version_of(&object),
            ..plain(trimmed(&object))
        },
        (ReplyShape::Ok, Ok(_)) => plain(Body::text("OK")),
        (ReplyShape::Ok, Err(error)) if is_gone(call, &error) => plain(Body::text("OK")),
        (ReplyShape::Raw | ReplyShape::Ok, Err(error)) => said(&error.to_status()),
    }
}

/// Whether a delete found what it wanted: no object of that UID.
fn is_gone(call: &ApiCall, error: &ApiError) -> bool {
    let absent = |status: &Status| status.is_not_found() || status.is_conflict();
    matches!(call, ApiCall::Delete { .. }) && error.refusal().is_some_and(absent)
}

/// The answer to what needs no call because it is so already.
pub(super) fn settled() -> Answer {
    plain(Body::text("OK"))
}

/// A lease, or why not.
pub(super) fn lease(lease: Result<Body, Status>) -> Answer {
    plain(match lease {
        Ok(lease) => ObjectResponse::ok(lease).to_body(),
        Err(status) => ObjectResponse::err(status).to_body(),
    })
}

/// A refusal before any call, in the shape that the official edge reads for this kind of request.
pub(crate) fn refused(request: &Request, status: Status) -> Answer {
    match (&request.route.operation, &request.key.kind) {
        (_, ObjectKind::Event) => silence(),
        (Operation::Insert | Operation::Patch, _) | (_, ObjectKind::Lease) => {
            plain(ObjectResponse::err(status).to_body())
        }
        _others => said(&status),
    }
}

fn version_of(object: &Body) -> Option<ResourceVersion> {
    object.object_meta().ok()?.resource_version
}

fn plain(body: Body) -> Answer {
    Answer {
        body,
        version: None,
        error: false,
        silent: false,
    }
}

fn said(status: &Status) -> Answer {
    Answer {
        error: true,
        ..plain(Body::text(&status.to_string()))
    }
}

pub(super) fn silence() -> Answer {
    Answer {
        silent: true,
        ..plain(Body::null())
    }
}
