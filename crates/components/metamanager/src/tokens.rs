//! Service account tokens, kept for most of their life.

use kedge_wire::{Body, Request};
use serde::Deserialize;
use serde_json::Value;

/// The column `type` of token rows, as in the Go edge.
pub(crate) const KIND: &str = "serviceaccounttoken";
/// A token is renewed when this part of its life is left.
const RENEW_BELOW: f64 = 0.2;

#[derive(Deserialize, Default)]
#[serde(default)]
struct TokenRequest {
    spec: Spec,
    status: Status,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    expiration_seconds: Option<i64>,
    bound_object_ref: Option<Bound>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Bound {
    uid: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    token: String,
    expiration_timestamp: Option<String>,
}

/// How usable a kept token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freshness {
    Fresh,
    /// Works, but a new one should be asked for.
    Due,
    Expired,
}

/// The row of a token: of the question, because the API server fills in what the question left out.
pub(crate) fn row_key(request: &Request) -> String {
    let spec = request
        .body
        .parse::<Value>()
        .ok()
        .and_then(|mut body| body.get_mut("spec").map(Value::take));
    let mut spec = spec.unwrap_or(Value::Null);
    spec.sort_all_objects();
    format!("{} {spec}", request.key)
}

/// Whether an answer holds a token.
pub(crate) fn is_token(body: &Body) -> bool {
    body.parse::<TokenRequest>()
        .is_ok_and(|answer| !answer.status.token.is_empty())
}

/// How usable the kept answer is at `now_ms`.
pub(crate) fn freshness(kept: &Body, now_ms: u64) -> Freshness {
    let Ok(answer) = kept.parse::<TokenRequest>() else {
        return Freshness::Expired;
    };
    let expires = answer
        .status
        .expiration_timestamp
        .and_then(|text| text.parse::<jiff::Timestamp>().ok());
    let Some(expires) = expires else {
        return Freshness::Expired;
    };
    let left_seconds = expires.as_second() - i64::try_from(now_ms / 1000).unwrap_or(i64::MAX);
    let life_seconds = answer.spec.expiration_seconds.unwrap_or(3600);
    if left_seconds <= 0 {
        Freshness::Expired
    } else if (left_seconds as f64) < life_seconds as f64 * RENEW_BELOW {
        Freshness::Due
    } else {
        Freshness::Fresh
    }
}

/// Whether the kept answer is bound to the object with this uid.
pub(crate) fn is_bound_to(kept: &str, uid: &str) -> bool {
    let bound = serde_json::from_str::<TokenRequest>(kept)
        .ok()
        .and_then(|answer| answer.spec.bound_object_ref);
    bound
        .and_then(|bound| bound.uid)
        .is_some_and(|bound| bound == uid)
}
