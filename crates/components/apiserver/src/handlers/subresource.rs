//! Binding, eviction and scale.

use super::write::{body, options, patch_body, written};
use super::{Call, read};
use crate::reply::{self, Reply};
use crate::storage::Place;
use bytes::Bytes;
use http::StatusCode;
use jiff::Timestamp;
use kedge_apimachinery::patch;
use kedge_apimachinery::schema::{self, FieldValidation};
use kedge_apimachinery::status::Status;
use kedge_apimachinery::strategy::{self, Admitted, DeleteOptions};
use kedge_apimachinery::{kinds::Kind, meta};
use serde_json::{Value, json};
use std::sync::Arc;

fn success() -> Reply {
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    reply::json(StatusCode::CREATED, &status)
}

fn pods(call: &Call) -> Result<Arc<Kind>, Status> {
    call.server
        .registry()
        .by_group_resource("pods")
        .ok_or_else(Status::no_such_resource)
}

/// POST of `pods/<name>/binding`.
pub(super) async fn bind(call: &Call, bytes: Bytes) -> Result<Reply, Status> {
    let mut binding = body(call, &bytes)?;
    if meta::name(&binding).is_empty() {
        meta::set(
            &mut binding,
            &["metadata", "name"],
            call.target.name.clone().into(),
        );
    }
    if meta::name(&binding) != call.target.name {
        return Err(Status::bad_request(
            "the name of the binding does not match the name in the path",
        ));
    }
    bind_body(call, binding).await
}

/// A binding that names its pod.
pub(super) async fn bind_body(call: &Call, mut binding: Value) -> Result<Reply, Status> {
    let options = options(call)?;
    schema::decode_body("Binding", &mut binding, options.validation)?;
    let pods = pods(call)?;
    let place = Place::new(&call.target.namespace, meta::name(&binding));
    let change = |pod: &Value| {
        let object = strategy::bind(&pods, pod, &binding, Timestamp::now())?;
        Ok(Admitted {
            object,
            warnings: Vec::new(),
        })
    };
    call.server.change(&pods, &place, options, change).await?;
    Ok(success())
}

/// POST of `pods/<name>/eviction`: a delete that a disruption budget could refuse; there are none.
pub(super) async fn evict(call: &Call, bytes: Bytes) -> Result<Reply, Status> {
    let mut eviction = body(call, &bytes)?;
    schema::decode_body("Eviction", &mut eviction, FieldValidation::Ignore)?;
    let query = |name: &str| call.query.has(name).then(|| call.query.text(name).to_owned());
    let options = DeleteOptions::parse(&eviction["deleteOptions"], query)?;
    call.server.delete(&call.kind, &call.place(), &options).await?;
    Ok(success())
}

pub(super) fn get_scale(call: &Call) -> Result<Reply, Status> {
    let object = read::find(call)?.value();
    Ok(reply::json(
        StatusCode::OK,
        &strategy::scale(&call.kind, &object)?,
    ))
}

pub(super) async fn update_scale(call: &Call, bytes: Bytes) -> Result<Reply, Status> {
    let mut scale = body(call, &bytes)?;
    let options = options(call)?;
    let warnings = schema::decode_body("Scale", &mut scale, options.validation)?;
    let change = |old: &Value| {
        let object = strategy::apply_scale(&call.kind, &scale, old)?;
        Ok(Admitted {
            object,
            warnings: warnings.clone(),
        })
    };
    let done = call
        .server
        .change(&call.kind, &call.place(), options, change)
        .await?;
    written(
        call,
        StatusCode::OK,
        strategy::scale(&call.kind, &done.object)?,
        &done.warnings,
    )
}

pub(super) async fn patch_scale(call: &Call, bytes: Bytes) -> Result<Reply, Status> {
    let (kind, patch_body) = patch_body(call, &bytes)?;
    let options = options(call)?;
    let change = |old: &Value| {
        let scale = strategy::scale(&call.kind, old)?;
        let scale = patch::apply(kind, &call.kind, &scale, &patch_body)?;
        let object = strategy::apply_scale(&call.kind, &scale, old)?;
        Ok(Admitted {
            object,
            warnings: Vec::new(),
        })
    };
    let done = call
        .server
        .change(&call.kind, &call.place(), options, change)
        .await?;
    written(
        call,
        StatusCode::OK,
        strategy::scale(&call.kind, &done.object)?,
        &done.warnings,
    )
}
