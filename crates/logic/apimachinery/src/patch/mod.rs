//! Patches: JSON patch (RFC 6902), merge patch (RFC 7396) and strategic merge patch.
//!
//! Server-side apply is refused with a sentence; `kubectl apply` uses it only with `--server-side`.

mod strategic;

use crate::kinds::Kind;
use crate::schema::KindSchema;
use crate::status::{Reason, Status};
use serde_json::Value;

/// Most operations in one JSON patch, as in Kubernetes.
pub const JSON_PATCH_OPERATIONS_MAX: usize = 10_000;

/// The kinds of patch, by the media type of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    /// `application/json-patch+json`
    Json,
    /// `application/merge-patch+json`
    Merge,
    /// `application/strategic-merge-patch+json`
    Strategic,
}

const ACCEPTED: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

impl PatchKind {
    /// From the Content-Type of the request for objects of a kind (custom resources take no strategic merge patch).
    pub fn from_content_type(kind: &Kind, content_type: &str) -> Result<Self, Status> {
        let media_type = content_type.split(';').next().unwrap_or_default().trim();
        let custom = matches!(kind.schema, KindSchema::Custom(_));
        match media_type {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" if !custom => Ok(Self::Strategic),
            "application/apply-patch+yaml" | "application/apply-patch+cbor" => Err(Status::new(
                Reason::UnsupportedMediaType,
                "server-side apply is not supported by this server; use client-side apply (kubectl apply without --server-side)",
            )),
            other => Err(Status::unsupported_media_type(
                other,
                if custom { &ACCEPTED[..2] } else { ACCEPTED },
            )),
        }
    }
}

/// The object after the patch; the input is left alone when the patch fails.
pub fn apply(patch: PatchKind, kind: &Kind, object: &Value, body: &Value) -> Result<Value, Status> {
    let mut patched = object.clone();
    match patch {
        PatchKind::Json => json_patch(&mut patched, body)?,
        PatchKind::Merge => {
            if !body.is_object() {
                return Err(Status::bad_request("a merge patch must be a map"));
            }
            json_patch::merge(&mut patched, body);
        }
        PatchKind::Strategic => {
            let KindSchema::Builtin(type_name) = kind.schema else {
                return Err(Status::unsupported_media_type(ACCEPTED[2], &ACCEPTED[..2]));
            };
            strategic::apply(type_name, &mut patched, body)
                .map_err(|e| Status::bad_request(e.to_string()))?;
        }
    }
    Ok(patched)
}

fn json_patch(object: &mut Value, body: &Value) -> Result<(), Status> {
    let operations = body.as_array().map(Vec::len);
    if operations.is_some_and(|n| n > JSON_PATCH_OPERATIONS_MAX) {
        let message =
            format!("the allowed maximum operations in a JSON patch is {JSON_PATCH_OPERATIONS_MAX}");
        return Err(Status::new(Reason::RequestEntityTooLarge, message));
    }
    let patch: json_patch::Patch = serde_json::from_value(body.clone())
        .map_err(|e| Status::bad_request(format!("error decoding JSON patch: {e}")))?;
    json_patch::patch(object, &patch).map_err(|e| {
        Status::new(
            Reason::Invalid,
            format!("the server rejected the JSON patch: {e}"),
        )
    })
}

#[cfg(test)]
mod tests;
