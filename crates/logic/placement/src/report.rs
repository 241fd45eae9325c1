//! What an edge's request means to the Kubernetes API.

use kedge_wire::{Body, NodeName, Request};

/// One API call. Paths are complete, for example `/api/v1/namespaces/default/pods/web/status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiCall {
    Get { path: String },
    Create { path: String, body: Body },
    Update { path: String, body: Body },
    /// `application/strategic-merge-patch+json`.
    StrategicPatch { path: String, body: String },
    MergePatch { path: String, body: String },
    Delete { path: String, options: Body },
}

/// How the result goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyShape {
    /// `{"Object":…, "Err":…}`.
    ObjectResponse,
    /// The object itself; an API error becomes operation `error` with its text.
    Raw,
    /// `"OK"`; an API error becomes operation `error`, except NotFound on delete.
    Ok,
    /// Nothing is sent back.
    None,
}

/// The decision about one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Call { call: ApiCall, shape: ReplyShape },
    /// The node may not do this; the text says why.
    Forbidden(String),
    /// Not a request this version serves; the text says what is missing.
    Unsupported(String),
}

/// Judges a request of `node`: identity is the certificate's, never the message's.
pub fn judge(_node: &NodeName, _request: &Request, _may_read: bool) -> Verdict {
    todo!()
}
