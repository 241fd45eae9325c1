//! Requests to the cloud, typed.

use kedge_link::edge::RequestError;
use kedge_telemetry::channel::ask;
use kedge_wire::{Body, Group, ObjectKey, Operation, Reply, Request, Resource, Route, Source};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::time::Duration;

/// A bit more than the 60 s that metamanager gives the cloud, so that it is metamanager that says why.
const ANSWER_MAX: Duration = Duration::from_secs(70);

/// The port to metamanager.
#[derive(Debug, Clone)]
pub(crate) struct Cloud {
    port: ask::Sender<Request, Result<Reply, RequestError>>,
}

/// Why there is no object in the answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    NotAsked(RequestError),
    /// The Kubernetes API said no.
    #[error("{message}")]
    Status { code: u16, message: String },
    #[error("the answer cannot be read: {0}")]
    Unreadable(String),
}

impl Error {
    pub(crate) fn is_not_found(&self) -> bool {
        match self {
            Self::Status { code, .. } => *code == 404,
            Self::NotAsked(RequestError::Refused(text)) => text.contains("not found"),
            Self::NotAsked(_) | Self::Unreadable(_) => false,
        }
    }

    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Status { code: 409, .. })
    }

    /// The cloud was not reached at all.
    pub(crate) fn is_absence(&self) -> bool {
        matches!(self, Self::NotAsked(RequestError::Offline | RequestError::Lost))
    }
}

impl Cloud {
    pub(crate) fn new(port: ask::Sender<Request, Result<Reply, RequestError>>) -> Self {
        Self { port }
    }

    /// Asks and gives back the answer as it is.
    pub(crate) async fn ask(&self, operation: Operation, key: ObjectKey, body: Body) -> Result<Reply, Error> {
        let route = Route::new(
            Source::Edged,
            Group::Meta,
            operation,
            Resource::Object(key.clone()),
        );
        let request = Request { route, key, body };
        match self.port.ask(request, ANSWER_MAX).await {
            Ok(answer) => answer.map_err(Error::NotAsked),
            Err(ask::NoAnswer::Closed(_)) => Err(Error::NotAsked(RequestError::Offline)),
            Err(ask::NoAnswer::Timeout { .. }) => Err(Error::NotAsked(RequestError::Timeout)),
        }
    }

    /// Asks and reads the object in the answer, in any of the shapes that clouds use for it.
    pub(crate) async fn object<T: DeserializeOwned>(
        &self,
        operation: Operation,
        key: ObjectKey,
        body: Body,
    ) -> Result<T, Error> {
        let reply = self.ask(operation, key, body).await?;
        let value = read(&reply)?;
        serde_json::from_value(value).map_err(|error| Error::Unreadable(error.to_string()))
    }
}

/// `{"Object": …, "Err": …}`, a bare object, or a bare status error.
fn read(reply: &Reply) -> Result<Value, Error> {
    if reply.route.operation == Operation::Error {
        return Err(Error::NotAsked(RequestError::Refused(reply.body.content_data())));
    }
    let mut value: Value = reply
        .body
        .parse()
        .map_err(|error| Error::Unreadable(error.to_string()))?;
    let Some(map) = value.as_object_mut() else {
        return Ok(value);
    };
    let err = map.remove("Err").filter(|err| !err.is_null());
    if let Some(status) = err
        .as_ref()
        .and_then(|err| err.get("ErrStatus"))
        .or_else(|| map.get("ErrStatus"))
    {
        return Err(status_error(status));
    }
    if let Some(err) = err {
        return Err(Error::Status {
            code: 500,
            message: format!("the cloud failed without a reason: {err}"),
        });
    }
    Ok(map.remove("Object").unwrap_or(value))
}

fn status_error(status: &Value) -> Error {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Slim {
        code: u16,
        message: String,
    }
    let slim = Slim::deserialize(status).unwrap_or_default();
    Error::Status {
        code: slim.code,
        message: slim.message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        let read = |json: &str, operation: Operation| {
            let route = Route::new(
                Source::EdgeController,
                Group::Resource,
                operation,
                Resource::Other("x".into()),
            );
            read(&Reply {
                route,
                version: None,
                body: Body::from_json(json.to_owned()).unwrap(),
            })
        };
        let ok = |json: &str| read(json, Operation::Response);
        assert_eq!(
            ok(r#"{"Object":{"a":1},"Err":null}"#).unwrap(),
            serde_json::json!({"a":1})
        );
        assert_eq!(ok(r#"{"a":1}"#).unwrap(), serde_json::json!({"a":1}));
        let refused = r#"{"Object":{},"Err":{"ErrStatus":{"code":409,"message":"exists"}}}"#;
        assert!(ok(refused).unwrap_err().is_conflict());
        assert!(ok(r#"{"ErrStatus":{"code":404}}"#).unwrap_err().is_not_found());
        assert!(
            read(r#""configmaps \"a\" not found""#, Operation::Error)
                .unwrap_err()
                .is_not_found()
        );
        assert!(ok(r#"{"Object":null,"Err":{}}"#).is_err());
    }
}
