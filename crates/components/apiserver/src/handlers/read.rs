//! Get and list.

use super::Call;
use super::shape::{self, Shape};
use crate::reply::{self, Reply};
use crate::storage::{Found, Place};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::StatusCode;
use kedge_apimachinery::selector::Selector;
use kedge_apimachinery::status::Status;
use serde::{Deserialize, Serialize};

/// Most objects in one answer to a client that asks for pages.
const PAGE_OBJECTS_MAX: u64 = 10_000;

pub(super) fn get(call: &Call) -> Result<Reply, Status> {
    let found = find(call)?;
    let shape = Shape::of(call)?;
    Ok(reply::bytes(
        StatusCode::OK,
        shape::CONTENT_TYPE,
        shape.one(&found),
    ))
}

/// The object that the path names.
pub(super) fn find(call: &Call) -> Result<Found, Status> {
    call.server
        .storage
        .get(&call.collection(), &call.place())
        .ok_or_else(|| Status::not_found(&call.kind, &call.target.name))
}

/// What the list parameters select.
pub(super) fn selector(call: &Call) -> Result<Selector, Status> {
    let (labels, fields) = (call.query.text("labelSelector"), call.query.text("fieldSelector"));
    let selector = Selector::parse(&call.kind, labels, fields)
        .map_err(|error| Status::bad_request(error.to_string()))?;
    Ok(if call.target.name.is_empty() {
        selector
    } else {
        selector.and_name(&call.target.name)
    })
}

/// Where a paged list goes on: the revision of its first page, so that a watch from there misses nothing, and the
/// last place that was given out.
#[derive(Serialize, Deserialize)]
struct Continue {
    #[serde(rename = "v")]
    revision: u64,
    #[serde(rename = "ns")]
    namespace: String,
    #[serde(rename = "n")]
    name: String,
}

impl Continue {
    fn print(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).expect("three plain fields print"))
    }

    fn parse(text: &str) -> Result<Self, Status> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok();
        bytes
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .ok_or_else(|| Status::bad_request("continue: this is not a token of this server"))
    }
}

pub(super) fn list(call: &Call) -> Result<Reply, Status> {
    let selector = selector(call)?;
    let limit = call.query.number("limit")?.unwrap_or(0).min(PAGE_OBJECTS_MAX);
    let token = match call.query.text("continue") {
        "" => None,
        text => Some(Continue::parse(text)?),
    };
    let after = token
        .as_ref()
        .map(|token| Place::new(&token.namespace, &token.name));
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let all = selector.is_everything();
    let page = call.server.storage.page(
        &call.collection(),
        &call.target.namespace,
        after.as_ref(),
        limit,
        |found| all || selector.matches(&found.value()),
    );
    let revision = token.map_or(page.revision, |token| token.revision);
    let mut metadata = serde_json::json!({ "resourceVersion": revision.to_string() });
    if page.remaining > 0
        && let Some(last) = page.found.last()
    {
        let (namespace, name) = (last.place.namespace.clone(), last.place.name.clone());
        metadata["continue"] = Continue {
            revision,
            namespace,
            name,
        }
        .print()
        .into();
        if all {
            metadata["remainingItemCount"] = page.remaining.into();
        }
    }
    let shape = Shape::of(call)?;
    let body: Bytes = shape.list(&page.found, &metadata);
    Ok(reply::bytes(StatusCode::OK, shape::CONTENT_TYPE, body))
}
