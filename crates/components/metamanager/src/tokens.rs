//! Service account tokens, kept by their true identity for most of their life.
//!
//! Two questions are the same when namespace, service account, audiences, life time and the object to which the token
//! is bound, with its uid, are the same. The answer is kept under the question, because the API server fills in what
//! the question left out.

use kedge_wire::{Body, Request};
use serde::Deserialize;

/// The column `type` of token rows, as in the Go edge.
pub(crate) const KIND: &str = "serviceaccounttoken";
/// A token is renewed when this part of its life is left.
const RENEW_BELOW: f64 = 0.2;
/// And at this age, however long it lives: as a kubelet does.
const AGE_SECONDS_MAX: i64 = 24 * 3600;
/// The life of a token whose answer does not tell it.
const LIFE_SECONDS: i64 = 3600;

#[derive(Deserialize, Default)]
#[serde(default)]
struct TokenRequest {
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    audiences: Option<Vec<String>>,
    expiration_seconds: Option<i64>,
    bound_object_ref: Option<Bound>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Bound {
    kind: Option<String>,
    name: Option<String>,
    uid: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    token: String,
    expiration_timestamp: Option<String>,
}

impl TokenRequest {
    fn bound_uid(self) -> Option<String> {
        let uid = self.spec.and_then(|spec| spec.bound_object_ref)?.uid;
        uid.filter(|uid| !uid.is_empty())
    }
}

/// How usable a kept token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freshness {
    Fresh,
    /// Works, but a new one should be asked for.
    Due,
    Expired,
}

/// The row of the token that a question asks for; none if it is no such question.
pub(crate) fn row_key(request: &Request) -> Option<String> {
    let spec = request
        .body
        .parse::<TokenRequest>()
        .ok()?
        .spec
        .unwrap_or_default();
    let mut audiences = spec.audiences.unwrap_or_default();
    audiences.sort_unstable();
    audiences.dedup();
    let bound = spec.bound_object_ref.unwrap_or_default();
    let identity = (
        audiences,
        spec.expiration_seconds,
        bound.kind,
        bound.name,
        bound.uid,
    );
    let identity = serde_json::to_string(&identity).expect("texts and numbers are always JSON");
    Some(format!("{} {identity}", request.key))
}

/// Whether an answer holds the token that was asked for.
pub(crate) fn check(request: &Request, answer: &Body) -> Result<(), &'static str> {
    let read = |body: &Body| body.parse::<TokenRequest>();
    let (Ok(asked), Ok(answer)) = (read(&request.body), read(answer)) else {
        return Err("the answer holds no token");
    };
    if answer
        .status
        .as_ref()
        .is_none_or(|status| status.token.is_empty())
    {
        return Err("the answer holds no token");
    }
    match (asked.bound_uid(), answer.bound_uid()) {
        (Some(asked), Some(answer)) if asked != answer => Err("the answer is a token of another object"),
        _same_or_not_told => Ok(()),
    }
}

/// How usable the kept answer is at `now_ms`.
pub(crate) fn freshness(kept: &str, now_ms: u64) -> Freshness {
    let Ok(answer) = serde_json::from_str::<TokenRequest>(kept) else {
        return Freshness::Expired;
    };
    let expires = answer
        .status
        .and_then(|status| status.expiration_timestamp)
        .and_then(|text| text.parse::<jiff::Timestamp>().ok());
    let Some(expires) = expires else {
        return Freshness::Expired;
    };
    let left = expires.as_second() - i64::try_from(now_ms / 1000).unwrap_or(i64::MAX);
    let life = answer.spec.and_then(|spec| spec.expiration_seconds);
    let life = life.unwrap_or(LIFE_SECONDS);
    if left <= 0 {
        Freshness::Expired
    } else if (left as f64) < life as f64 * RENEW_BELOW || life.saturating_sub(left) > AGE_SECONDS_MAX {
        Freshness::Due
    } else {
        Freshness::Fresh
    }
}

/// Whether the kept answer is worth nothing any more.
pub(crate) fn is_expired(kept: &str, now_ms: u64) -> bool {
    freshness(kept, now_ms) == Freshness::Expired
}

/// The uid of the object to which the kept answer is bound.
pub(crate) fn bound_uid(kept: &str) -> Option<String> {
    serde_json::from_str::<TokenRequest>(kept).ok()?.bound_uid()
}
