//! One question of edged, from its arrival to an answer: runs beside all others and owns nothing.

use crate::objects;
use crate::tokens::{self, Freshness};
use kedge_link::edge::{CloudRequest, RequestError};
use kedge_store::meta::{MetaStore, Row};
use kedge_telemetry::channel::ask::{self, NoAnswer};
use kedge_telemetry::channel::latest;
use kedge_telemetry::clock;
use kedge_wire::{
    Body, Group, ObjectKey, ObjectResponse, Operation, Reply, Request, Resource, Route, Source, ToCloud,
};
use std::time::Duration;

/// Beyond the cloud's own timeout: edgehub answers in time by itself, this only covers its end.
const ASK_SLACK: Duration = Duration::from_secs(5);

/// Who holds a token that still works does not wait long for the next one: a pod may be starting with it.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(10);

/// What came of a question, and what the owner shall keep of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) answer: Result<Reply, RequestError>,
    pub(crate) keep: Option<Row>,
}

impl From<Result<Reply, RequestError>> for Outcome {
    fn from(answer: Result<Reply, RequestError>) -> Self {
        Self { answer, keep: None }
    }
}

/// The hands of a question.
#[derive(Debug, Clone)]
pub(crate) struct Asker {
    pub(crate) store: MetaStore,
    pub(crate) cloud: ask::Sender<CloudRequest, Result<Reply, RequestError>>,
    pub(crate) online: latest::Receiver<bool>,
    pub(crate) timeout: Duration,
}

impl Asker {
    /// Asks the cloud; offline it does not wait.
    pub(crate) async fn cloud(&self, request: Request) -> Result<Reply, RequestError> {
        self.cloud_within(request, self.timeout).await
    }

    async fn cloud_within(&self, request: Request, timeout: Duration) -> Result<Reply, RequestError> {
        if !*self.online.borrow() {
            return Err(RequestError::Offline);
        }
        let question = CloudRequest {
            message: ToCloud::Request(request),
            timeout,
        };
        match self.cloud.ask(question, timeout + ASK_SLACK).await {
            Ok(answer) => answer,
            Err(NoAnswer::Closed(_)) => Err(RequestError::Offline),
            Err(NoAnswer::Timeout { .. }) => Err(RequestError::Timeout),
        }
    }

    /// From the store only.
    pub(crate) async fn held_only(&self, request: Request) -> Outcome {
        let held = self.held(&request.key).await;
        let absent = || RequestError::Refused(format!("{} not found on this node", request.key));
        held.ok_or_else(absent).into()
    }

    /// From the store when held, else from the cloud.
    pub(crate) async fn held_else_cloud(&self, request: Request) -> Outcome {
        match self.held(&request.key).await {
            Some(reply) => Ok(reply).into(),
            None => self.object_from_cloud(request).await,
        }
    }

    /// From the cloud, and from the store when the cloud cannot be asked.
    pub(crate) async fn cloud_else_held(&self, request: Request) -> Outcome {
        let key = request.key.clone();
        let outcome = self.object_from_cloud(request).await;
        match &outcome.answer {
            Err(RequestError::Offline | RequestError::Lost | RequestError::Timeout | RequestError::Full) => {
                self.held(&key).await.map_or(outcome, |reply| Ok(reply).into())
            }
            Ok(_) | Err(RequestError::Refused(_)) => outcome,
        }
    }

    async fn object_from_cloud(&self, request: Request) -> Outcome {
        let key = request.key.clone();
        let answer = self
            .cloud(request)
            .await
            .and_then(|reply| match objects::read_answer(&reply.body) {
                Ok(()) => Ok(reply),
                Err(why) => Err(RequestError::Refused(why)),
            });
        Outcome {
            keep: answer.as_ref().ok().map(|reply| objects::row(&key, &reply.body)),
            answer,
        }
    }

    /// Cloud only; with `keep_object` the object in a successful answer is kept.
    pub(crate) async fn cloud_keeping(&self, request: Request, keep_object: bool) -> Outcome {
        let key = request.key.clone();
        let answer = self.cloud(request).await;
        let object = |reply: &Reply| ObjectResponse::read(&reply.body).ok();
        let keep = answer.as_ref().ok().filter(|_| keep_object).and_then(object);
        Outcome {
            keep: keep.map(|object| objects::row(&key, &object)),
            answer,
        }
    }

    /// A kept token while it is fresh; else a new one; else, when none can be had, the kept one while it works.
    pub(crate) async fn token(&self, request: Request) -> Outcome {
        let Some(row_key) = tokens::row_key(&request) else {
            let why = format!("the question for {} is no TokenRequest", request.key);
            return Err(RequestError::Refused(why)).into();
        };
        let kept = self.row(&row_key).await;
        let freshness = |kept: &Body| tokens::freshness(kept.json(), clock::wall_ms());
        let resource = Resource::Object(request.key.clone());
        let (timeout, usable) = match (kept.as_ref().map(freshness), kept) {
            (Some(Freshness::Fresh), Some(kept)) => return Ok(local_reply(resource, kept)).into(),
            (Some(Freshness::Due), Some(kept)) => (self.timeout.min(RENEWAL_TIMEOUT), Some(kept)),
            (Some(Freshness::Expired | Freshness::Fresh | Freshness::Due) | None, _) => (self.timeout, None),
        };
        let answer = self.cloud_within(request.clone(), timeout).await;
        let answer = answer.and_then(|found| match tokens::check(&request, &found.body) {
            Ok(()) => Ok(found),
            Err(why) => {
                let said = objects::read_answer(&found.body).err();
                Err(RequestError::Refused(said.unwrap_or_else(|| why.to_owned())))
            }
        });
        match (answer, usable) {
            (Ok(found), _) => {
                let row = Row {
                    key: row_key,
                    kind: tokens::KIND.to_owned(),
                    value: found.body.json().to_owned(),
                };
                Outcome {
                    answer: Ok(found),
                    keep: Some(row),
                }
            }
            (Err(error), Some(kept)) => {
                tracing::debug!(key = %request.key, %error, "token not renewed; the kept one still works");
                Ok(local_reply(resource, kept)).into()
            }
            (Err(error), None) => Err(error).into(),
        }
    }

    async fn held(&self, key: &ObjectKey) -> Option<Reply> {
        let body = self.row(&key.to_string()).await?;
        Some(local_reply(Resource::Object(key.clone()), body))
    }

    async fn row(&self, key: &str) -> Option<Body> {
        match self.store.get(key).await {
            Ok(row) => Body::from_json(row?.value).ok(),
            Err(error) => {
                // The cloud may still have it.
                tracing::error!(%error, "stored object not readable");
                None
            }
        }
    }
}

/// An answer that did not come from the cloud.
pub(crate) fn local_reply(resource: Resource, body: Body) -> Reply {
    let version = body.object_meta().ok().and_then(|meta| meta.resource_version);
    Reply {
        route: Route::new(
            Source::MetaManager,
            Group::Resource,
            Operation::Response,
            resource,
        ),
        version,
        body,
    }
}
