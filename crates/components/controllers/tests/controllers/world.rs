//! An API server, the controllers, and sessions of nodes.

use expect_test::Expect;
use kedge_cluster::peer::Peer as Api;
use kedge_cluster::{Budget, BudgetConfig};
use kedge_controllers::{Acked, Answer, Attach, Attached, Config, Controllers, Hands};
use kedge_link::Peer;
use kedge_telemetry::Scope;
use kedge_telemetry::channel::{ask, keyed, latest};
use kedge_telemetry::metrics::Registry;
use kedge_wire::{Body, NodeName, Object, ObjectKey, ObjectKind, Request, ResourceVersion, Uid};
use serde_json::{Value, json};
use std::time::Duration;

/// Far more than anything here takes; only a broken test reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct World {
    pub(crate) api: Api,
    pub(crate) attach: ask::Sender<Attach, Attached>,
    pub(crate) scope: Scope,
    pub(crate) metrics: Registry,
    pub(crate) leads: latest::Sender<bool>,
}

pub(crate) struct Session {
    pub(crate) desired: keyed::Receiver<ObjectKey, Option<Object>>,
    pub(crate) requests: ask::Sender<Request, Answer>,
    pub(crate) acked: keyed::Sender<ObjectKey, Acked>,
    pub(crate) first: Attached,
}

impl World {
    pub(crate) async fn new(objects: &[(String, Value)]) -> Self {
        let config = Config {
            advertise_address: Some("10.0.0.1".to_owned()),
            ..Config::default()
        };
        Self::with(config, objects, |_| {}).await
    }

    /// `prepare` is called with the API before anybody looks at it.
    pub(crate) async fn with(config: Config, objects: &[(String, Value)], prepare: impl Fn(&Api)) -> Self {
        let api = Api::start().await.unwrap();
        for (path, object) in objects {
            api.put(path, object.clone());
        }
        prepare(&api);
        let (scope, metrics) = (Scope::new(), Registry::new());
        let budget = BudgetConfig {
            calls_per_second: 1000,
            burst: 1000,
            concurrent_max: 64,
        };
        let (leads, led) = latest::channel(false);
        let hands = Hands {
            cluster: api.cluster().await.unwrap(),
            budget: Budget::start(budget, &metrics, &scope),
            metrics: metrics.clone(),
            leads: led,
        };
        let (attach, attached) = ask::channel("test.attach", 8);
        let controllers = Controllers::new(config, hands, attached);
        scope.spawn("controllers", controllers.run(scope.clone()));
        Self {
            api,
            attach,
            scope,
            metrics,
            leads,
        }
    }

    pub(crate) async fn session(&self, node: &str) -> Session {
        self.session_of(node, Peer::Kedge).await
    }

    pub(crate) async fn session_of(&self, node: &str, peer: Peer) -> Session {
        let (tell, desired) = keyed::channel("test.desired");
        let (requests, receive) = ask::channel("test.requests", 64);
        let (acked, acks) = keyed::channel("test.acked");
        let attach = Attach {
            node: NodeName::new(node).unwrap(),
            peer,
            desired: tell,
            requests: receive,
            acked: acks,
        };
        let first = self.attach.ask(attach, PATIENCE).await.unwrap();
        Session {
            desired,
            requests,
            acked,
            first,
        }
    }

    /// Calls on a path, by their method.
    pub(crate) fn calls(&self, path: &str) -> Vec<String> {
        let calls = self.api.calls().into_iter();
        calls
            .filter_map(|call| {
                let (method, called) = call.split_once(' ')?;
                (called.split('?').next() == Some(path)).then(|| method.to_owned())
            })
            .collect()
    }

    /// The series of a metric, as printed.
    pub(crate) fn series(&self, name: &str) -> Vec<String> {
        let text = self.metrics.text();
        let mut lines: Vec<String> = text
            .lines()
            .filter(|line| line.starts_with(name) && !line.ends_with(" 0"))
            .map(str::to_owned)
            .collect();
        lines.sort();
        lines
    }
}

impl Session {
    pub(crate) fn check_first(&self, expect: Expect) {
        let lines = self.first.objects.iter();
        let lines: Vec<String> = lines
            .map(|(key, object)| format!("{key} {}\n", object.uid))
            .collect();
        expect.assert_eq(&lines.concat());
    }

    /// What the node must know next; `None` when the session is ended.
    pub(crate) async fn change(&mut self) -> Option<String> {
        let (key, object) = tokio::time::timeout(PATIENCE, self.desired.recv())
            .await
            .unwrap()?;
        Some(match object {
            Some(object) => format!("{key} is {}", object.uid),
            None => format!("{key} is gone"),
        })
    }

    pub(crate) async fn next_change(&mut self) -> String {
        self.change().await.unwrap()
    }

    pub(crate) async fn ask(&self, request: Request) -> String {
        let answer = self.requests.ask(request, PATIENCE).await.unwrap();
        let kind = if answer.silent {
            "silence"
        } else if answer.error {
            "error"
        } else {
            "response"
        };
        let version = answer
            .version
            .map(|version| format!(" at {version}"))
            .unwrap_or_default();
        format!("{kind}{version}: {}", answer.body.json())
    }

    pub(crate) async fn check(&self, request: Request, expect: Expect) {
        expect.assert_eq(&self.ask(request).await);
    }

    pub(crate) fn acknowledge(&self, key: ObjectKey, uid: &str, version: Option<&str>) {
        let acked = Acked {
            uid: Uid::new(uid),
            version: version.map(ResourceVersion::new),
        };
        self.acked.set(key, acked).unwrap();
    }
}

pub(crate) fn pod(name: &str, node: &str, config_map: &str) -> (String, Value) {
    let object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "default", "uid": format!("{name}-uid") },
        "spec": {
            "nodeName": node,
            "serviceAccountName": "default",
            "containers": [{ "name": "c", "envFrom": [{ "configMapRef": { "name": config_map } }] }],
        },
    });
    (format!("/api/v1/namespaces/default/pods/{name}"), object)
}

pub(crate) fn config_map(name: &str) -> (String, Value) {
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": name, "namespace": "default", "uid": format!("{name}-uid") },
        "data": { "a": "1" },
    });
    (format!("/api/v1/namespaces/default/configmaps/{name}"), object)
}

/// An edge node.
pub(crate) fn node(name: &str) -> (String, Value) {
    let object = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "uid": format!("{name}-uid"),
                      "labels": { "node-role.kubernetes.io/edge": "" } },
        "status": { "addresses": [{ "type": "InternalIP", "address": "10.0.0.7" }] },
    });
    (format!("/api/v1/nodes/{name}"), object)
}

pub(crate) fn body(value: Value) -> Body {
    Body::from_value(&value).unwrap()
}

pub(crate) fn key(kind: ObjectKind, name: &str) -> ObjectKey {
    ObjectKey::namespaced(kind, "default", name)
}
