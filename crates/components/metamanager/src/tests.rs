//! Stories with a memory store and neighbours in the test.

mod complete;
mod orders;
mod quiet;
mod reports;
mod requests;
mod sweeps;

use crate::{Config, MetaManager, Ports};
use kedge_link::edge::{CloudRequest, RequestError, StoreDone, StoreOrder};
use kedge_store::meta::MetaStore;
use kedge_telemetry::Scope;
use kedge_telemetry::channel::ask::{self, Question};
use kedge_telemetry::channel::{keyed, latest};
use kedge_wire::{
    Body, ChangeVerb, ObjectChange, ObjectKey, Reply, Request, Resource, ResourceVersion, ToCloud, ToEdge,
};
use std::time::Duration;

/// Longer than any wait inside; the clock is paused in tests that could reach it.
const PATIENCE: Duration = Duration::from_secs(3600);

type Answer = Result<Reply, RequestError>;

/// A running metamanager with all its neighbours in the hands of the test.
struct World {
    store: MetaStore,
    orders: ask::Sender<StoreOrder, StoreDone>,
    requests: ask::Sender<Request, Answer>,
    cloud: ask::Receiver<CloudRequest, Answer>,
    online: latest::Sender<bool>,
    objects: keyed::Receiver<ObjectKey, Option<Body>>,
    complete: latest::Receiver<bool>,
    scope: Scope,
}

impl World {
    async fn start(store: MetaStore, online: bool) -> (Self, Vec<(ObjectKey, Body)>) {
        let (manager, holding) = MetaManager::open(store.clone(), Config::default()).await.unwrap();
        let (orders, orders_in) = ask::channel("orders", 16);
        let (requests, requests_in) = ask::channel("requests", 256);
        let (cloud_out, cloud) = ask::channel("cloud", 256);
        let (online, online_in) = latest::channel(online);
        let (objects_out, objects) = keyed::channel("objects");
        let (complete_out, complete) = latest::channel(holding.complete);
        let ports = Ports {
            orders: orders_in,
            requests: requests_in,
            cloud: cloud_out,
            online: online_in,
            objects: objects_out,
            complete: complete_out,
        };
        let scope = Scope::new();
        scope.spawn("metamanager", manager.run(ports, scope.clone()));
        (
            Self {
                store,
                orders,
                requests,
                cloud,
                online,
                objects,
                complete,
                scope,
            },
            holding.objects,
        )
    }

    async fn online() -> Self {
        Self::start(MetaStore::memory(), true).await.0
    }

    async fn commit(&self, verb: ChangeVerb, key: &str, object: &str) -> Result<(), String> {
        let (key, body) = (ObjectKey::parse(key).unwrap(), body(object));
        let change = ObjectChange::from_edge_controller(verb, key, None, body);
        match self
            .orders
            .ask(StoreOrder::Commit(ToEdge::Object(change)), PATIENCE)
            .await
            .unwrap()
        {
            StoreDone::Committed(result) => result,
            StoreDone::Held(_) | StoreDone::Noted => panic!("not the answer to a commit"),
        }
    }

    async fn handed_over(&mut self) -> (String, Option<String>) {
        let (key, value) = self.objects.recv().await.unwrap();
        (key.to_string(), value.map(|body| body.json().to_owned()))
    }

    /// Asks beside the test, so that it can play the cloud meanwhile.
    fn ask(&self, request: Request) -> tokio::task::JoinHandle<Answer> {
        let requests = self.requests.clone();
        tokio::spawn(async move { requests.ask(request, PATIENCE).await.unwrap() })
    }

    /// The next question that reaches the cloud.
    async fn at_cloud(&mut self) -> (Request, ask::Reply<Answer>) {
        let Question { question, reply } = self.cloud.recv().await.unwrap();
        match question.message {
            ToCloud::Request(request) => (request, reply),
            other => panic!("not a request: {other:?}"),
        }
    }

    async fn stored(&self, key: &str) -> Option<String> {
        self.store.get(key).await.unwrap().map(|row| row.value)
    }

    async fn end(self) -> MetaStore {
        assert!(self.scope.drain(PATIENCE).await.left.is_empty());
        self.store
    }
}

fn body(json: &str) -> Body {
    Body::from_json(json.to_owned()).unwrap()
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::parse(text).unwrap()
}

fn object(name: &str, uid: &str, version: &str) -> String {
    format!(r#"{{"kind":"X","metadata":{{"name":"{name}","uid":"{uid}","resourceVersion":"{version}"}}}}"#)
}

/// The cloud's answer to `request`.
fn reply(request: &Request, json: &str) -> Answer {
    let version = body(json)
        .object_meta()
        .ok()
        .and_then(|meta| meta.resource_version);
    let version: Option<ResourceVersion> = version;
    Ok(Reply::response(
        Resource::Object(request.key.clone()),
        version,
        body(json),
    ))
}
