//! One call: a method, a path, perhaps a body; an object or a reason.

use crate::Cluster;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use kedge_wire::{Body, Status};
use std::future::Future;
use std::time::Duration;

/// An API server that is alive answers any call on one object, and any page, well within this.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// One answer. A page of 250 objects of the size of etcd's largest would be 375 MiB, but real pages stay below a tenth.
const ANSWER_BYTES_MAX: usize = 128 * 1024 * 1024;
/// How much of an answer that is not a `Status` is quoted.
const QUOTE_CHARS_MAX: usize = 200;

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The API understood and refused: branch on the status.
    #[error("{act}: {status}")]
    Refused {
        act: String,
        status: Box<Status>,
        /// How long the server wants to be left alone, when it says so.
        retry_after: Option<Duration>,
    },
    #[error("{act}: the API server cannot be reached: {source}")]
    Unreachable { act: String, source: Box<kube::Error> },
    #[error("{act}: the answer broke off: {source}")]
    Broken {
        act: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{act}: no answer within {after:?}")]
    Timeout { act: String, after: Duration },
    #[error("{act}: the answer is larger than the limit of {max} bytes")]
    TooLarge { act: String, max: usize },
    #[error("{act}: the answer is not JSON: {source}")]
    NotJson { act: String, source: serde_json::Error },
    #[error("{act}: not a path of the API: {source}")]
    BadPath { act: String, source: http::Error },
}

impl ApiError {
    /// The API's own status, when it was the API that said no.
    pub fn refusal(&self) -> Option<&Status> {
        if let Self::Refused { status, .. } = self {
            Some(status)
        } else {
            None
        }
    }

    /// A status for whoever waits for one: the API's own, or one that says that the API could not be asked.
    pub fn to_status(&self) -> Status {
        match self {
            Self::Refused { status, .. } => (**status).clone(),
            Self::Timeout { .. } => Status::failure(504, "Timeout", &self.to_string()),
            Self::Unreachable { .. } | Self::Broken { .. } => Status::unavailable(&self.to_string()),
            Self::TooLarge { .. } | Self::NotJson { .. } | Self::BadPath { .. } => {
                Status::internal(&self.to_string())
            }
        }
    }

    /// How long the server wants to be left alone: its `Retry-After`, with 429 and 503.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            Self::Unreachable { .. }
            | Self::Broken { .. }
            | Self::Timeout { .. }
            | Self::TooLarge { .. }
            | Self::NotJson { .. }
            | Self::BadPath { .. } => None,
        }
    }

    /// Whether the same call may succeed later: the server is away, overloaded or failing. A refusal that judged the
    /// content of the call is final.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Refused { status, .. } => status.code == 429 || status.code >= 500,
            Self::Unreachable { .. } | Self::Broken { .. } | Self::Timeout { .. } => true,
            Self::TooLarge { .. } | Self::NotJson { .. } | Self::BadPath { .. } => false,
        }
    }

    /// Whether the object does not exist.
    pub fn is_not_found(&self) -> bool {
        self.refusal().is_some_and(Status::is_not_found)
    }

    /// Whether a create was refused because the object is there.
    pub fn is_already_exists(&self) -> bool {
        self.refusal().is_some_and(|status| status.code == 409)
    }

    /// Whether the server no longer knows the resource version or the page.
    pub(crate) fn is_gone(&self) -> bool {
        self.refusal().is_some_and(|status| status.code == 410)
    }
}

/// The kind of a patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patch {
    Json,
    Merge,
    Strategic,
}

impl Patch {
    fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json-patch+json",
            Self::Merge => "application/merge-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
        }
    }
}

const JSON: &str = "application/json";

/// `path` is always complete, for example `/api/v1/namespaces/default/pods/web/status`, and may carry a query.
impl Cluster {
    /// Reads an object or a list.
    pub async fn get(&self, path: &str) -> Result<Body, ApiError> {
        self.call(Method::GET, path, JSON, Bytes::new()).await
    }

    /// Reads a text, such as a pod's log.
    pub async fn get_text(&self, path: &str) -> Result<String, ApiError> {
        let act = format!("GET {path}");
        let answered = async {
            collect(
                &act,
                self.send(&act, Method::GET, path, JSON, Bytes::new()).await?,
            )
            .await
        };
        within(&act, answered).await
    }

    /// Creates an object in a collection.
    pub async fn create(&self, path: &str, object: &Body) -> Result<Body, ApiError> {
        self.call(Method::POST, path, JSON, text(object)).await
    }

    /// Creates an object, or merges `patch` into the one of this name that is there.
    pub async fn create_or_merge(
        &self,
        collection: &str,
        name: &str,
        object: &Body,
        patch: &str,
    ) -> Result<Body, ApiError> {
        match self.create(collection, object).await {
            Err(error) if error.is_already_exists() => {
                self.patch(&format!("{collection}/{name}"), Patch::Merge, patch)
                    .await
            }
            created => created,
        }
    }

    /// Replaces an object.
    pub async fn update(&self, path: &str, object: &Body) -> Result<Body, ApiError> {
        self.call(Method::PUT, path, JSON, text(object)).await
    }

    /// Changes parts of an object; `patch` is JSON.
    pub async fn patch(&self, path: &str, kind: Patch, patch: &str) -> Result<Body, ApiError> {
        self.call(
            Method::PATCH,
            path,
            kind.content_type(),
            Bytes::copy_from_slice(patch.as_bytes()),
        )
        .await
    }

    /// Deletes an object; `options` is a `metav1.DeleteOptions`. Answers with the object or a `Status`.
    pub async fn delete(&self, path: &str, options: &Body) -> Result<Body, ApiError> {
        self.call(Method::DELETE, path, JSON, text(options)).await
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> Result<Body, ApiError> {
        let act = format!("{method} {path}");
        let answered = async {
            let answer = self.send(&act, method, path, content_type, body).await?;
            let json = collect(&act, answer).await?;
            Body::from_json(json).map_err(|source| ApiError::NotJson {
                act: act.clone(),
                source,
            })
        };
        within(&act, answered).await
    }

    /// Opens a stream of watch events; the caller bounds how long it lives.
    pub(crate) async fn open(&self, path: &str) -> Result<kube::client::Body, ApiError> {
        let act = format!("WATCH {path}");
        within(&act, self.send(&act, Method::GET, path, JSON, Bytes::new())).await
    }

    /// Sends a request and turns every answer that is not a success into a refusal.
    async fn send(
        &self,
        act: &str,
        method: Method,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> Result<kube::client::Body, ApiError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::ACCEPT, JSON)
            .header(http::header::CONTENT_TYPE, content_type)
            // The bodies are read as they come; a compressed watch would arrive in lumps.
            .header(http::header::ACCEPT_ENCODING, "identity")
            .body(kube::client::Body::from(body.to_vec()))
            .map_err(|source| ApiError::BadPath {
                act: act.to_owned(),
                source,
            })?;
        let answer = self
            .client
            .send(request)
            .await
            .map_err(|source| ApiError::Unreachable {
                act: act.to_owned(),
                source: Box::new(source),
            })?;
        let code = answer.status();
        if code.is_success() {
            return Ok(answer.into_body());
        }
        let header = answer.headers().get(http::header::RETRY_AFTER);
        // The other form of the header, a date, is not used by Kubernetes.
        let header = header.and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let text = collect(act, answer.into_body()).await?;
        let status = Box::new(status_of(code, &text));
        let retry_after = header.or_else(|| status.rest.get("details")?.get("retryAfterSeconds")?.as_u64());
        Err(ApiError::Refused {
            act: act.to_owned(),
            status,
            retry_after: retry_after.map(Duration::from_secs),
        })
    }
}

fn text(body: &Body) -> Bytes {
    Bytes::copy_from_slice(body.json().as_bytes())
}

async fn within<T>(act: &str, work: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
    match tokio::time::timeout(CALL_TIMEOUT, work).await {
        Ok(result) => result,
        Err(_) => Err(ApiError::Timeout {
            act: act.to_owned(),
            after: CALL_TIMEOUT,
        }),
    }
}

async fn collect(act: &str, body: kube::client::Body) -> Result<String, ApiError> {
    let collected = Limited::new(body, ANSWER_BYTES_MAX)
        .collect()
        .await
        .map_err(|source| {
            if source.is::<LengthLimitError>() {
                ApiError::TooLarge {
                    act: act.to_owned(),
                    max: ANSWER_BYTES_MAX,
                }
            } else {
                ApiError::Broken {
                    act: act.to_owned(),
                    source,
                }
            }
        })?;
    let bytes = Vec::from(collected.to_bytes());
    String::from_utf8(bytes).map_err(|source| ApiError::Broken {
        act: act.to_owned(),
        source: Box::new(source),
    })
}

/// The status that an API sends with a refusal, or one made from the HTTP code when something else answered.
fn status_of(code: StatusCode, text: &str) -> Status {
    let parsed = serde_json::from_str::<Status>(text)
        .ok()
        .filter(|status| status.code != 0);
    parsed.unwrap_or_else(|| {
        let quote: String = text.chars().take(QUOTE_CHARS_MAX).collect();
        Status::failure(code.as_u16(), reason_of(code), quote.trim())
    })
}

fn reason_of(code: StatusCode) -> &'static str {
    match code.as_u16() {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        405 => "MethodNotAllowed",
        409 => "Conflict",
        410 => "Expired",
        413 => "RequestEntityTooLarge",
        415 => "UnsupportedMediaType",
        422 => "Invalid",
        429 => "TooManyRequests",
        500 => "InternalError",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _without_a_word => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_the_servers_words_or_gets_some() {
        let text = r#"{"kind":"Status","status":"Failure","message":"no","reason":"Invalid","code":422,"details":{"x":1}}"#;
        let status = status_of(StatusCode::UNPROCESSABLE_ENTITY, text);
        assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"));
        assert!(status.rest.contains_key("details"));

        let status = status_of(StatusCode::BAD_GATEWAY, "<html>proxy</html>");
        assert_eq!(
            (status.code, status.reason.as_str(), status.message.as_str()),
            (502, "Unknown", "<html>proxy</html>")
        );
    }
}
