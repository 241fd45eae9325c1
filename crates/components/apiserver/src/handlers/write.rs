//! Create, update, patch and delete over HTTP.

use super::shape::Shape;
use super::{Call, read, reviews, subresource};
use crate::acts::{Gone, Options};
use crate::reply::{self, Reply};
use crate::request::{self, Notation};
use crate::signing::REQUESTS;
use crate::storage::Place;
use bytes::Bytes;
use http::StatusCode;
use kedge_apimachinery::kinds::{Subresource, Verb};
use kedge_apimachinery::meta;
use kedge_apimachinery::patch::{self, PatchKind};
use kedge_apimachinery::rbac::{self, Act, ResourceAct};
use kedge_apimachinery::schema::FieldValidation;
use kedge_apimachinery::status::Status;
use kedge_apimachinery::strategy::{self, Admitted, DeleteOptions};
use serde_json::{Value, json};

pub(super) fn options(call: &Call) -> Result<Options, Status> {
    let validation = FieldValidation::parse(call.query.text("fieldValidation"))?;
    Ok(Options {
        validation,
        dry_run: call.query.dry_run()?,
    })
}

/// The body as a value, in the notation that its media type names.
pub(super) fn body(call: &Call, body: &[u8]) -> Result<Value, Status> {
    let notation = request::notation(&request::media_type(&call.headers))?;
    request::parse_body(notation, body)
}

/// The answer to a write.
pub(super) fn written(
    call: &Call,
    code: StatusCode,
    object: Value,
    warnings: &[String],
) -> Result<Reply, Status> {
    let mut reply = reply::json(code, &Shape::of(call)?.object(object));
    reply::warn(&mut reply, warnings);
    Ok(reply)
}

pub(super) async fn create(call: &Call, bytes: Bytes) -> Result<Reply, Status> {
    if !call.target.name.is_empty() {
        return Err(Status::method_not_allowed(
            &call.kind,
            "create with a name in the path",
        ));
    }
    let mut object = body(call, &bytes)?;
    if call.kind.is("bindings") {
        return subresource::bind_body(call, object).await;
    }
    if !call.kind.serves(Verb::Get) {
        return reviews::answer(call, object);
    }
    if call.kind.is(REQUESTS) {
        strategy::requested_by(&mut object, &call.who);
    }
    check_grant(call, &object, None)?;
    let written = call
        .server
        .create(&call.kind, &call.target.namespace, object, options(call)?)
        .await?;
    self::written(call, StatusCode::CREATED, written.object, &written.warnings)
}

pub(super) async fn update(call: &Call, bytes: Bytes) -> Result<Reply, Status> {
    let object = body(call, &bytes)?;
    check_name(call, &object)?;
    let options = options(call)?;
    let new = call
        .server
        .storage
        .get(&call.collection(), &call.place())
        .is_none();
    if new && created_by_update(call) && meta::resource_version(&object).is_empty() {
        // Who may only change what is there may not make something of it.
        authorize_create(call)?;
        let written = call
            .server
            .create(&call.kind, &call.target.namespace, object, options)
            .await?;
        return self::written(call, StatusCode::CREATED, written.object, &written.warnings);
    }
    let change = |old: &Value| admit(call, object.clone(), old, options.validation);
    let written = call
        .server
        .change(&call.kind, &call.place(), options, change)
        .await?;
    self::written(call, StatusCode::OK, written.object, &written.warnings)
}

/// Kinds whose writers do not care whether they are the first.
fn created_by_update(call: &Call) -> bool {
    let kinds = ["leases.coordination.k8s.io", "events", "endpoints"];
    call.target.subresource.is_empty() && kinds.iter().any(|kind| call.kind.is(kind))
}

fn check_name(call: &Call, object: &Value) -> Result<(), Status> {
    let name = meta::name(object);
    if name == call.target.name {
        return Ok(());
    }
    let path = &call.target.name;
    Err(Status::bad_request(format!(
        "the name of the object ({name:?}) does not match the name in the path ({path:?})"
    )))
}

fn authorize_create(call: &Call) -> Result<(), Status> {
    let act = Act::Resource(ResourceAct {
        verb: "create",
        group: &call.target.group,
        resource: &call.target.plural,
        namespace: &call.target.namespace,
        ..ResourceAct::default()
    });
    call.server.authorize(&call.who, &act)
}

/// Roles and bindings give rights: the writer must hold them.
fn check_grant(call: &Call, object: &Value, old: Option<&Value>) -> Result<(), Status> {
    if call.kind.group != rbac::GROUP {
        return Ok(());
    }
    let gives = ["rules", "subjects", "roleRef"];
    if old.is_some_and(|old| gives.iter().all(|field| old.get(field) == object.get(field))) {
        return Ok(());
    }
    let mut object = object.clone();
    if call.kind.namespaced {
        meta::set(
            &mut object,
            &["metadata", "namespace"],
            call.target.namespace.clone().into(),
        );
    }
    let access = call.server.access();
    if matches!(call.kind.kind.as_str(), "Role" | "ClusterRole") {
        rbac::check_role(&access, &call.who, &call.kind, &object)
    } else {
        rbac::check_binding(&access, &call.who, &call.kind, &object)
    }
}

/// A request for a certificate is approved and signed only by those who may do that for its signer.
fn check_signer(call: &Call, verb: &str, object: &Value, old: &Value) -> Result<(), Status> {
    let signer = meta::text(old, &["spec", "signerName"]);
    let unchanged = match verb {
        "sign" => meta::at(object, &["status", "certificate"]) == meta::at(old, &["status", "certificate"]),
        _ => meta::at(object, &["status", "conditions"]) == meta::at(old, &["status", "conditions"]),
    };
    let domain = format!("{}/*", signer.split('/').next().unwrap_or_default());
    let access = call.server.access();
    let may = |name: &str| {
        let act = Act::Resource(ResourceAct {
            verb,
            group: &call.kind.group,
            resource: "signers",
            name,
            ..ResourceAct::default()
        });
        access.allow(&call.who, &act).is_ok()
    };
    if unchanged || may(signer) || may(&domain) {
        return Ok(());
    }
    let why = format!("user not permitted to {verb} requests with signerName {signer:?}");
    Err(Status::access_denied(
        &call.kind.group,
        &call.kind.plural,
        meta::name(old),
        &why,
    ))
}

/// A changed object as the subresource lets it change, by somebody who may.
fn admit(call: &Call, body: Value, old: &Value, validation: FieldValidation) -> Result<Admitted, Status> {
    let admitted = admit_object(call, body, old, validation)?;
    check_grant(call, &admitted.object, Some(old))?;
    if call.kind.is(REQUESTS) {
        match Subresource::parse(&call.target.subresource) {
            Some(Subresource::Approval) => check_signer(call, "approve", &admitted.object, old)?,
            Some(Subresource::Status) => check_signer(call, "sign", &admitted.object, old)?,
            _ => {}
        }
    }
    Ok(admitted)
}

fn admit_object(
    call: &Call,
    body: Value,
    old: &Value,
    validation: FieldValidation,
) -> Result<Admitted, Status> {
    let kind = &call.kind;
    let plain = |object| Admitted {
        object,
        warnings: Vec::new(),
    };
    match Subresource::parse(&call.target.subresource) {
        Some(Subresource::Status) => strategy::update_status(kind, body, old, validation),
        Some(Subresource::Finalize) => strategy::finalize_namespace(kind, &body, old).map(plain),
        Some(Subresource::Approval) => strategy::approve(kind, &body, old).map(plain),
        Some(
            Subresource::Scale
            | Subresource::Binding
            | Subresource::Eviction
            | Subresource::Log
            | Subresource::Token,
        )
        | None => strategy::update(kind, body, old, validation),
    }
}

/// The patch of a request.
pub(super) fn patch_body(call: &Call, bytes: &[u8]) -> Result<(PatchKind, Value), Status> {
    let media_type = request::media_type(&call.headers);
    if media_type.starts_with("application/apply-patch") {
        return Err(Status::new(
            kedge_apimachinery::status::Reason::UnsupportedMediaType,
            "server-side apply is not available in this version of the embedded Kubernetes API; use client-side apply (kubectl apply without --server-side)",
        ));
    }
    let kind = PatchKind::from_content_type(&call.kind, &media_type)?;
    Ok((kind, request::parse_body(Notation::Json, bytes)?))
}

pub(super) async fn patch(call: &Call, bytes: Bytes) -> Result<Reply, Status> {
    let (patch, patch_body) = patch_body(call, &bytes)?;
    let options = options(call)?;
    let change = |old: &Value| {
        let patched = patch::apply(patch, &call.kind, old, &patch_body)?;
        check_name(call, &patched)?;
        admit(call, patched, old, options.validation)
    };
    let written = call
        .server
        .change(&call.kind, &call.place(), options, change)
        .await?;
    self::written(call, StatusCode::OK, written.object, &written.warnings)
}

pub(super) fn delete_options(call: &Call, bytes: &[u8]) -> Result<DeleteOptions, Status> {
    let body = if bytes.is_empty() {
        Value::Null
    } else {
        body(call, bytes)?
    };
    let query = |name: &str| call.query.has(name).then(|| call.query.text(name).to_owned());
    DeleteOptions::parse(&body, query)
}

pub(super) async fn delete(call: &Call, bytes: Bytes) -> Result<Reply, Status> {
    let options = delete_options(call, &bytes)?;
    match call.server.delete(&call.kind, &call.place(), &options).await? {
        Gone::Removed(object) if !call.kind.is("pods") => {
            let success = Status::success(&call.kind, &call.target.name, meta::uid(&object));
            Ok(reply::json(StatusCode::OK, &success))
        }
        Gone::Removed(object) | Gone::Terminating(object) => written(call, StatusCode::OK, object, &[]),
    }
}

pub(super) async fn delete_collection(call: &Call, bytes: Bytes) -> Result<Reply, Status> {
    let options = delete_options(call, &bytes)?;
    let selector = read::selector(call)?;
    let admit = |found: &crate::storage::Found| selector.matches(&found.value());
    let page = call
        .server
        .storage
        .page(&call.collection(), &call.target.namespace, None, 0, admit);
    let mut gone = Vec::with_capacity(page.found.len());
    for found in page.found {
        let place = Place::new(&found.place.namespace, &found.place.name);
        match call.server.delete(&call.kind, &place, &options).await {
            Ok(Gone::Removed(object) | Gone::Terminating(object)) => gone.push(object),
            // Somebody else was faster: it is gone, which was asked for.
            Err(status) if status.reason == kedge_apimachinery::status::Reason::NotFound => {}
            Err(status) => return Err(status),
        }
    }
    let list = json!({
        "kind": call.kind.list_kind, "apiVersion": call.kind.api_version(),
        "metadata": {"resourceVersion": call.server.storage.revision().to_string()}, "items": gone,
    });
    Ok(reply::json(StatusCode::OK, &list))
}
