//! Events of Kubernetes. They are news, not state: when there are too many, some are dropped and counted.

mod correlate;

use crate::beside::PodView;
use crate::clock::Clock;
use crate::cloud::Cloud;
use correlate::{Correlator, News, Told};
use kedge_api::{Event, EventSource, ObjectMeta, ObjectReference, Pod, Timestamp};
use kedge_link::{Bucket, Rate};
use kedge_pods::PodEvent;
use kedge_telemetry::Scope;
use kedge_telemetry::channel::{latest, lossy};
use kedge_wire::{Body, ObjectKey, ObjectKind, Operation};
use std::sync::Arc;

/// A burst of a node's start: ten pods with five events each, twice.
const WAITING_MAX: usize = 128;
/// The API refuses longer messages.
const MESSAGE_BYTES_MAX: usize = 1024;
/// Events of the node itself lie here.
const NODE_EVENTS_NAMESPACE: &str = "default";

/// How many events are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// In the long run; zero is no limit.
    pub per_second: u32,
    pub burst: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            per_second: 50,
            burst: 100,
        }
    }
}

impl Limits {
    fn rate(self) -> Option<Rate> {
        let Self { per_second, burst } = self;
        (per_second > 0).then_some(Rate { per_second, burst })
    }
}

/// The end that tells.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    tx: Option<lossy::Sender<News>>,
    node: Arc<str>,
    pods: latest::Receiver<Arc<Vec<PodView>>>,
}

impl Events {
    /// Starts the task that sends them; without limits there is none, and they are only logged.
    pub(crate) fn start(
        limits: Option<Limits>,
        cloud: Cloud,
        node: String,
        pods: latest::Receiver<Arc<Vec<PodView>>>,
        clock: Clock,
        scope: &Scope,
    ) -> Self {
        let node: Arc<str> = node.into();
        let tx = limits.map(|limits| {
            let (tx, rx) = lossy::channel("edged-events", WAITING_MAX);
            let sender = Sender {
                correlator: Correlator::default(),
                rate: limits.rate(),
                bucket: Bucket::default(),
                cloud,
                node: Arc::clone(&node),
                clock,
            };
            scope.spawn_until_cancelled("edged-events", sender.run(rx));
            tx
        });
        Self { tx, node, pods }
    }

    /// Tells about a pod or one of its containers.
    pub(crate) fn tell(&self, event: PodEvent) {
        let container = event.container.as_deref().unwrap_or_default();
        let reason = event.reason.as_str();
        tracing::debug!(pod = %event.key, container, reason, message = event.message, "event");
        let Some(tx) = &self.tx else { return };
        let field_path = event
            .container
            .as_deref()
            .map(|name| self.field_path(&event.uid, name));
        tx.offer(News {
            reason: reason.to_owned(),
            type_: event.reason.event_type(),
            object: ObjectReference {
                api_version: "v1".to_owned(),
                kind: "Pod".to_owned(),
                name: event.key.name,
                namespace: Some(event.key.namespace),
                uid: Some(event.uid),
                field_path,
            },
            message: event.message,
        });
    }

    /// Tells about the node itself.
    pub(crate) fn tell_node(&self, reason: &str, warning: bool, message: String) {
        tracing::debug!(reason, message, "event of the node");
        let Some(tx) = &self.tx else { return };
        tx.offer(News {
            reason: reason.to_owned(),
            type_: if warning { "Warning" } else { "Normal" },
            object: ObjectReference {
                kind: "Node".to_owned(),
                name: self.node.to_string(),
                // As a kubelet does, which tells of its node before it knows the object.
                uid: Some(self.node.to_string()),
                ..ObjectReference::default()
            },
            message,
        });
    }

    fn field_path(&self, uid: &str, container: &str) -> String {
        let pods = self.pods.borrow();
        let pod = pods.iter().map(|view| &view.pod).find(|pod| pod.uid() == uid);
        let list = pod.map_or("containers", |pod| list_of(pod, container));
        format!("spec.{list}{{{container}}}")
    }
}

/// Which list of the pod's spec names a container.
fn list_of(pod: &Pod, container: &str) -> &'static str {
    let spec = &pod.spec;
    if spec.init_containers.iter().any(|c| c.name == container) {
        "initContainers"
    } else if spec.containers.iter().any(|c| c.name == container) {
        "containers"
    } else {
        "ephemeralContainers"
    }
}

/// The task that sends.
struct Sender {
    correlator: Correlator,
    /// `None` sets no limit.
    rate: Option<Rate>,
    bucket: Bucket,
    cloud: Cloud,
    node: Arc<str>,
    clock: Clock,
}

impl Sender {
    async fn run(mut self, mut rx: lossy::Receiver<News>) {
        while let Some(news) = rx.recv().await {
            let now_ms = self.clock.now().as_ms();
            // What is dropped here was told often enough.
            if let Some(told) = self.correlator.next(news, now_ms) {
                if let Some(rate) = self.rate {
                    while let Err(wait) = self.bucket.take(rate, self.clock.now()) {
                        tokio::time::sleep(wait).await;
                    }
                }
                self.send(told).await;
            }
        }
    }

    async fn send(&self, told: Told) {
        let operation = if told.count == 1 {
            Operation::Insert
        } else {
            Operation::Update
        };
        let event = self.event(told);
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let key = ObjectKey::namespaced(ObjectKind::Event, &namespace, &event.metadata.name);
        let Ok(body) = Body::from_value(&event) else {
            return;
        };
        // Nobody answers an event; metamanager keeps it until the cloud has it.
        if let Err(error) = self.cloud.ask(operation, key, body).await {
            tracing::debug!(%error, "event not sent");
        }
    }

    fn event(&self, told: Told) -> Event {
        let namespace = told.news.object.namespace.clone();
        let node = self.node.to_string();
        let mut message = told.news.message;
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        Event {
            api_version: "v1".to_owned(),
            kind: "Event".to_owned(),
            metadata: ObjectMeta {
                name: format!("{}.{:x}", told.news.object.name, told.serial),
                namespace: Some(namespace.unwrap_or_else(|| NODE_EVENTS_NAMESPACE.to_owned())),
                ..ObjectMeta::default()
            },
            involved_object: told.news.object,
            reason: told.news.reason,
            message,
            source: EventSource {
                component: "kubelet".to_owned(),
                host: node.clone(),
            },
            first_timestamp: Some(Timestamp::from_ms(told.first_ms)),
            last_timestamp: Some(Timestamp::from_ms(told.last_ms)),
            count: told.count,
            type_: told.news.type_.to_owned(),
            reporting_component: "kubelet".to_owned(),
            reporting_instance: node,
        }
    }
}
