//! The answer to a write, and how an API error looks inside it.

use crate::Body;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The answer to a write: `{"Object": …, "Err": …}` (capitalised on the wire), format of KubeEdge's ObjectResp.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectResponse {
    #[serde(rename = "Object", default)]
    pub object: Option<Body>,
    #[serde(rename = "Err", default)]
    pub err: Option<StatusError>,
}

impl ObjectResponse {
    /// The object as the API stored it.
    pub fn ok(object: Body) -> Self {
        Self {
            object: Some(object),
            err: None,
        }
    }

    /// The API's refusal. Official edges branch on `reason` and `code`, so a whole `Status` is always sent.
    pub fn err(status: Status) -> Self {
        Self {
            object: None,
            err: Some(StatusError { status }),
        }
    }

    /// As the content of a message.
    pub fn to_body(&self) -> Body {
        Body::from_value(self).expect("two optional JSON values are JSON")
    }

    /// Reads the content of an answer. Any way of not holding an object is an error with a `Status`.
    ///
    /// The official cloud writes `"Err":{}` for a failure that was not an API error; read here as a failure too.
    pub fn read(body: &Body) -> Result<Body, Status> {
        let unreadable = |error| Status::internal(&format!("the answer is not an object response: {error}"));
        body.parse::<Self>().map_err(unreadable)?.into_result()
    }

    /// The object, or why there is none.
    pub fn into_result(self) -> Result<Body, Status> {
        match (self.object, self.err) {
            (_, Some(StatusError { status })) if status == Status::default() => Err(Status::internal(
                "the cloud reported an error without saying which",
            )),
            (_, Some(StatusError { status })) => Err(status),
            (Some(object), None) => Ok(object),
            (None, None) => Err(Status::internal(
                "the answer holds neither an object nor an error",
            )),
        }
    }
}

/// How a Go API error looks as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StatusError {
    #[serde(rename = "ErrStatus", default)]
    pub status: Status,
}

/// `metav1.Status`, the fields that peers branch on; the rest is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub status: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub code: u16,
    #[serde(flatten)]
    pub rest: Box<serde_json::Map<String, serde_json::Value>>,
}

impl Status {
    /// A failure with the reason word and HTTP code that Kubernetes pairs.
    pub fn failure(code: u16, reason: &str, message: &str) -> Self {
        Self {
            status: "Failure".to_owned(),
            message: message.to_owned(),
            reason: reason.to_owned(),
            code,
            rest: Box::new(serde_json::Map::from_iter([("metadata".to_owned(), json!({}))])),
        }
    }

    /// 404. `resource` is the plural, as in `configmaps`.
    pub fn not_found(resource: &str, name: &str) -> Self {
        Self::failure(404, "NotFound", &format!("{resource} \"{name}\" not found")).about(resource, name)
    }

    /// 409 on a create.
    pub fn already_exists(resource: &str, name: &str) -> Self {
        Self::failure(
            409,
            "AlreadyExists",
            &format!("{resource} \"{name}\" already exists"),
        )
        .about(resource, name)
    }

    /// 409 on a write with an old version or another UID.
    pub fn conflict(resource: &str, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {resource} \"{name}\": {why}");
        Self::failure(409, "Conflict", &message).about(resource, name)
    }

    /// 403.
    pub fn forbidden(why: &str) -> Self {
        Self::failure(403, "Forbidden", why)
    }

    /// 400.
    pub fn bad_request(why: &str) -> Self {
        Self::failure(400, "BadRequest", why)
    }

    /// 500: anything that went wrong without being an API error.
    pub fn internal(why: &str) -> Self {
        Self::failure(500, "InternalError", why)
    }

    /// 503: the cluster cannot be reached now; trying again may help.
    pub fn unavailable(why: &str) -> Self {
        Self::failure(503, "ServiceUnavailable", why)
    }

    /// Whether the object does not exist.
    pub fn is_not_found(&self) -> bool {
        self.code == 404
    }

    /// Whether the object was there before.
    pub fn is_already_exists(&self) -> bool {
        self.reason == "AlreadyExists"
    }

    /// Whether somebody else wrote in between.
    pub fn is_conflict(&self) -> bool {
        self.reason == "Conflict"
    }

    fn about(mut self, resource: &str, name: &str) -> Self {
        self.rest
            .insert("details".to_owned(), json!({ "name": name, "kind": resource }));
        self
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let message = if self.message.is_empty() {
            "no message"
        } else {
            &self.message
        };
        write!(f, "{message} ({} {})", self.code, self.reason)
    }
}

impl std::error::Error for Status {}

fn is_zero(code: &u16) -> bool {
    *code == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(json: &str, expect: Expect) {
        let body = Body::from_json(json.to_owned()).unwrap();
        let line = match ObjectResponse::read(&body) {
            Ok(object) => format!("object {}", object.json()),
            Err(status) => format!("error {status}"),
        };
        expect.assert_eq(&line);
    }

    #[test]
    fn an_answer_is_an_object_or_a_reason() {
        check(r#"{"Object":{"a":1},"Err":null}"#, expect![[r#"object {"a":1}"#]]);
        check(
            r#"{"Object":{},"Err":{"ErrStatus":{"metadata":{},"status":"Failure","message":"gone","reason":"NotFound","code":404}}}"#,
            expect!["error gone (404 NotFound)"],
        );
        check(
            r#"{"Object":null,"Err":{}}"#,
            expect!["error the cloud reported an error without saying which (500 InternalError)"],
        );
        check(
            r#"{"Object":null,"Err":null}"#,
            expect!["error the answer holds neither an object nor an error (500 InternalError)"],
        );
        check(
            r#""OK""#,
            expect![[
                r#"error the answer is not an object response: invalid type: string "OK", expected struct ObjectResponse at line 1 column 4 (500 InternalError)"#
            ]],
        );
    }

    #[test]
    fn a_refusal_carries_the_whole_status() {
        let body = ObjectResponse::err(Status::already_exists("nodes", "edge-1")).to_body();
        expect![[r#"{"Object":null,"Err":{"ErrStatus":{"status":"Failure","message":"nodes \"edge-1\" already exists","reason":"AlreadyExists","code":409,"metadata":{},"details":{"name":"edge-1","kind":"nodes"}}}}"#]]
            .assert_eq(body.json());
        assert!(ObjectResponse::read(&body).unwrap_err().is_already_exists());
    }
}
