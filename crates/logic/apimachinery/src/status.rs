//! Refusals as clients know them: metav1.Status with its reasons, codes and wording.

use crate::kinds::Kind;
use serde_json::{Map, Value, json};

/// Why a request was refused, in the machine-readable vocabulary of Kubernetes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    AlreadyExists,
    Conflict,
    Gone,
    Expired,
    Invalid,
    MethodNotAllowed,
    NotAcceptable,
    UnsupportedMediaType,
    RequestEntityTooLarge,
    TooManyRequests,
    Timeout,
    InternalError,
    ServiceUnavailable,
}

impl Reason {
    pub fn code(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::NotAcceptable => 406,
            Self::AlreadyExists | Self::Conflict => 409,
            Self::Gone | Self::Expired => 410,
            Self::RequestEntityTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::Invalid => 422,
            Self::TooManyRequests => 429,
            Self::InternalError => 500,
            Self::ServiceUnavailable => 503,
            Self::Timeout => 504,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "BadRequest",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "NotFound",
            Self::AlreadyExists => "AlreadyExists",
            Self::Conflict => "Conflict",
            Self::Gone => "Gone",
            Self::Expired => "Expired",
            Self::Invalid => "Invalid",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::NotAcceptable => "NotAcceptable",
            Self::UnsupportedMediaType => "UnsupportedMediaType",
            Self::RequestEntityTooLarge => "RequestEntityTooLarge",
            Self::TooManyRequests => "TooManyRequests",
            Self::Timeout => "Timeout",
            Self::InternalError => "InternalError",
            Self::ServiceUnavailable => "ServiceUnavailable",
        }
    }
}

/// What is wrong with one field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Required,
    Invalid,
    NotSupported,
    Duplicate,
    Forbidden,
    TypeInvalid,
    TooLong,
}

impl Fault {
    fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Forbidden => "FieldValueForbidden",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::TooLong => "FieldValueTooLong",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Duplicate => "Duplicate value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
        }
    }
}

/// One mistake in an object: where, what kind of mistake, the offending value, and a sentence.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    pub path: String,
    pub fault: Fault,
    pub value: Option<Value>,
    pub detail: String,
}

impl FieldError {
    pub fn required(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            fault: Fault::Required,
            value: None,
            detail: detail.into(),
        }
    }

    pub fn invalid(path: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            fault: Fault::Invalid,
            value: Some(value.into()),
            detail: detail.into(),
        }
    }

    pub fn forbidden(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            fault: Fault::Forbidden,
            value: None,
            detail: detail.into(),
        }
    }

    pub fn duplicate(path: impl Into<String>, value: impl Into<Value>) -> Self {
        Self {
            path: path.into(),
            fault: Fault::Duplicate,
            value: Some(value.into()),
            detail: String::new(),
        }
    }

    pub fn unsupported(path: impl Into<String>, value: impl Into<Value>, allowed: &[&str]) -> Self {
        let allowed: Vec<_> = allowed.iter().map(|a| format!("\"{a}\"")).collect();
        let detail = format!("supported values: {}", allowed.join(", "));
        Self {
            path: path.into(),
            fault: Fault::NotSupported,
            value: Some(value.into()),
            detail,
        }
    }

    /// The sentence after the path, e.g. `Invalid value: "x": must be lower case`.
    pub fn sentence(&self) -> String {
        let mut sentence = self.fault.words().to_owned();
        if let Some(value) = &self.value {
            sentence.push_str(": ");
            sentence.push_str(&value.to_string());
        }
        if !self.detail.is_empty() {
            sentence.push_str(": ");
            sentence.push_str(&self.detail);
        }
        sentence
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path, self.sentence())
    }
}

/// A refusal (or, with [`Status::success`], a bare success).
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    pub reason: Reason,
    pub message: String,
    details: Option<Box<Map<String, Value>>>,
}

impl Status {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            details: None,
        }
    }

    pub fn code(&self) -> u16 {
        self.reason.code()
    }

    fn about(mut self, kind: &Kind, name: &str) -> Self {
        let mut details = Map::new();
        if !name.is_empty() {
            details.insert("name".into(), name.into());
        }
        if !kind.group.is_empty() {
            details.insert("group".into(), kind.group.clone().into());
        }
        details.insert("kind".into(), kind.plural.clone().into());
        self.details = Some(Box::new(details));
        self
    }

    fn detail(mut self, key: &str, value: Value) -> Self {
        self.details.get_or_insert_default().insert(key.to_owned(), value);
        self
    }

    pub fn not_found(kind: &Kind, name: &str) -> Self {
        Self::new(
            Reason::NotFound,
            format!("{} \"{name}\" not found", kind.group_resource()),
        )
        .about(kind, name)
    }

    /// The address itself is unknown: no such kind or path.
    pub fn no_such_resource() -> Self {
        Self::new(
            Reason::NotFound,
            "the server could not find the requested resource",
        )
        .detail("causes", json!([]))
    }

    pub fn already_exists(kind: &Kind, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", kind.group_resource());
        Self::new(Reason::AlreadyExists, message).about(kind, name)
    }

    pub fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": {why}",
            kind.group_resource()
        );
        Self::new(Reason::Conflict, message).about(kind, name)
    }

    /// The writer's resource version is not the current one.
    pub fn stale(kind: &Kind, name: &str) -> Self {
        const WHY: &str =
            "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(kind, name, WHY)
    }

    pub fn forbidden(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("{} \"{name}\" is forbidden: {why}", kind.group_resource());
        Self::new(Reason::Forbidden, message).about(kind, name)
    }

    /// All mistakes of one object at once.
    pub fn invalid(kind: &Kind, name: &str, errors: &[FieldError]) -> Self {
        let sentences: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let list = match sentences.as_slice() {
            [] => String::new(),
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let of_group = if kind.group.is_empty() {
            String::new()
        } else {
            format!(".{}", kind.group)
        };
        let message = format!("{}{of_group} \"{name}\" is invalid: {list}", kind.kind);
        let causes: Vec<Value> = errors
            .iter()
            .map(|e| json!({"reason": e.fault.reason(), "message": e.sentence(), "field": e.path}))
            .collect();
        let mut status = Self::new(Reason::Invalid, message).about(kind, name);
        status = status.detail("kind", kind.kind.clone().into());
        status.detail("causes", causes.into())
    }

    /// Somebody may not do something: `pods "web" is forbidden: <why>`. Empty texts are left out.
    pub fn access_denied(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let mut message = String::new();
        let mut details = Map::new();
        for (field, value) in [("name", name), ("group", group), ("kind", resource)] {
            if !value.is_empty() {
                details.insert(field.to_owned(), value.into());
            }
        }
        if !resource.is_empty() {
            message.push_str(resource);
            if !group.is_empty() {
                message.push_str(&format!(".{group}"));
            }
            if !name.is_empty() {
                message.push_str(&format!(" {name:?}"));
            }
            message.push_str(" is ");
        }
        message.push_str(&format!("forbidden: {why}"));
        let mut status = Self::new(Reason::Forbidden, message);
        status.details = Some(Box::new(details));
        status
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Reason::BadRequest, message)
    }

    pub fn unauthorized() -> Self {
        Self::new(Reason::Unauthorized, "Unauthorized")
    }

    /// A continue token or resource version older than what is kept.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(Reason::Expired, message)
    }

    /// The watch start is older than the window.
    pub fn too_old_resource_version(asked: u64, oldest: u64) -> Self {
        Self::expired(format!("too old resource version: {asked} ({oldest})"))
    }

    pub fn method_not_allowed(kind: &Kind, verb: &str) -> Self {
        let message = format!(
            "{verb} is not supported on resources of kind \"{}\"",
            kind.group_resource()
        );
        Self::new(Reason::MethodNotAllowed, message).about(kind, "")
    }

    pub fn unsupported_media_type(got: &str, accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {} (got \"{got}\")",
            accepted.join(", ")
        );
        Self::new(Reason::UnsupportedMediaType, message)
    }

    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!(
            "only the following media types are accepted: {}",
            accepted.join(", ")
        );
        Self::new(Reason::NotAcceptable, message)
    }

    pub fn too_large(limit: usize) -> Self {
        let message = format!("Request entity too large: limit is {limit}");
        Self::new(Reason::RequestEntityTooLarge, message)
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        Self::new(Reason::TooManyRequests, message).detail("retryAfterSeconds", retry_after_seconds.into())
    }

    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(Reason::Timeout, message)
    }

    pub fn internal(message: impl AsRef<str>) -> Self {
        let message = message.as_ref();
        Self::new(
            Reason::InternalError,
            format!("Internal error occurred: {message}"),
        )
        .detail("causes", json!([{"message": message}]))
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Reason::ServiceUnavailable, message)
    }

    /// The object that goes over the wire.
    pub fn to_value(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason.as_str(),
        });
        if let (Some(details), Some(fields)) = (&self.details, status.as_object_mut()) {
            fields.insert("details".into(), Value::Object((**details).clone()));
        }
        if let Some(fields) = status.as_object_mut() {
            fields.insert("code".into(), self.code().into());
        }
        status
    }

    /// The answer to a delete that removed the object at once.
    pub fn success(kind: &Kind, name: &str, uid: &str) -> Value {
        let refusal = Self::new(Reason::BadRequest, "")
            .about(kind, name)
            .detail("uid", uid.into());
        let details = refusal.details.map(|d| Value::Object(*d)).unwrap_or_default();
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::Registry;
    use expect_test::{Expect, expect};

    fn check(status: &Status, expected: Expect) {
        expected.assert_eq(&format!("{}\n{}", status.code(), status.to_value()));
    }

    #[test]
    fn shapes() {
        let registry = Registry::builtin();
        let pods = registry.lookup("", "v1", "pods").unwrap();
        let deployments = registry.lookup("apps", "v1", "deployments").unwrap();
        check(
            &Status::not_found(&pods, "web"),
            expect![[r#"
                404
                {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"pods \"web\" not found","reason":"NotFound","details":{"name":"web","kind":"pods"},"code":404}"#]],
        );
        check(
            &Status::already_exists(&deployments, "web"),
            expect![[r#"
                409
                {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"deployments.apps \"web\" already exists","reason":"AlreadyExists","details":{"name":"web","group":"apps","kind":"deployments"},"code":409}"#]],
        );
        let errors = [
            FieldError::required("spec.containers", ""),
            FieldError::unsupported("spec.restartPolicy", "No", &["Always", "Never"]),
        ];
        check(
            &Status::invalid(&pods, "web", &errors),
            expect![[r#"
                422
                {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Pod \"web\" is invalid: [spec.containers: Required value, spec.restartPolicy: Unsupported value: \"No\": supported values: \"Always\", \"Never\"]","reason":"Invalid","details":{"name":"web","kind":"Pod","causes":[{"reason":"FieldValueRequired","message":"Required value","field":"spec.containers"},{"reason":"FieldValueNotSupported","message":"Unsupported value: \"No\": supported values: \"Always\", \"Never\"","field":"spec.restartPolicy"}]},"code":422}"#]],
        );
        check(
            &Status::too_old_resource_version(3, 10),
            expect![[r#"
                410
                {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too old resource version: 3 (10)","reason":"Expired","code":410}"#]],
        );
    }
}
