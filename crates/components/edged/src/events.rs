//! Events of Kubernetes. They are news, not state: when there are too many, some are dropped and counted.

use crate::clock::Clock;
use crate::cloud::Cloud;
use kedge_api::{Event, EventSource, ObjectMeta, ObjectReference, Timestamp};
use kedge_pods::PodEvent;
use kedge_telemetry::Scope;
use kedge_telemetry::channel::lossy;
use kedge_wire::{Body, ObjectKey, ObjectKind, Operation};
use std::collections::BTreeMap;

/// A burst of a node's start: ten pods with five events each, twice.
const WAITING_MAX: usize = 128;
/// Repetitions are counted for so many different events.
const REMEMBERED_MAX: usize = 512;

/// The end that tells.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    tx: Option<lossy::Sender<PodEvent>>,
}

impl Events {
    /// Starts the task that sends them; with `enabled` false they are only logged.
    pub(crate) fn start(enabled: bool, cloud: Cloud, node: String, clock: Clock, scope: &Scope) -> Self {
        if !enabled {
            return Self { tx: None };
        }
        let (tx, mut rx) = lossy::channel("edged-events", WAITING_MAX);
        scope.spawn_until_cancelled("edged-events", async move {
            let mut told = Told::default();
            while let Some(event) = rx.recv().await {
                let (operation, event) = told.next(event, &node, clock.now().as_ms());
                send(&cloud, operation, event).await;
            }
        });
        Self { tx: Some(tx) }
    }

    pub(crate) fn tell(&self, event: PodEvent) {
        let container = event.container.as_deref().unwrap_or_default();
        tracing::debug!(pod = %event.key, container, reason = event.reason.as_str(), message = event.message, "event");
        if let Some(tx) = &self.tx {
            tx.offer(event);
        }
    }
}

async fn send(cloud: &Cloud, operation: Operation, event: Event) {
    let namespace = event.metadata.namespace.clone().unwrap_or_default();
    let key = ObjectKey::namespaced(ObjectKind::Event, &namespace, &event.metadata.name);
    let Ok(body) = Body::from_value(&event) else {
        return;
    };
    // Nobody answers an event; metamanager keeps it until the cloud has it.
    if let Err(error) = cloud.ask(operation, key, body).await {
        tracing::debug!(%error, "event not sent");
    }
}

/// Which events were told, so that a repetition counts up instead of making a new object.
#[derive(Default)]
struct Told {
    events: BTreeMap<(String, Option<String>, &'static str, String), Event>,
}

impl Told {
    fn next(&mut self, event: PodEvent, node: &str, now_ms: u64) -> (Operation, Event) {
        let now = Timestamp::from_ms(now_ms);
        let key = (
            event.uid.clone(),
            event.container.clone(),
            event.reason.as_str(),
            event.message.clone(),
        );
        if let Some(known) = self.events.get_mut(&key) {
            known.count += 1;
            known.last_timestamp = Some(now);
            return (Operation::Update, known.clone());
        }
        if self.events.len() >= REMEMBERED_MAX {
            self.events.clear();
        }
        let serial = self.events.len();
        let made = Event {
            api_version: "v1".to_owned(),
            kind: "Event".to_owned(),
            metadata: ObjectMeta {
                name: format!("{}.{:x}{serial:03x}", event.key.name, now_ms),
                namespace: Some(event.key.namespace.clone()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: "v1".to_owned(),
                kind: "Pod".to_owned(),
                name: event.key.name,
                namespace: Some(event.key.namespace),
                uid: Some(event.uid),
                field_path: event.container.map(|name| format!("spec.containers{{{name}}}")),
            },
            reason: event.reason.as_str().to_owned(),
            message: event.message,
            source: EventSource {
                component: "kubelet".to_owned(),
                host: node.to_owned(),
            },
            first_timestamp: Some(now),
            last_timestamp: Some(now),
            count: 1,
            type_: event.reason.event_type().to_owned(),
            reporting_component: "kubelet".to_owned(),
            reporting_instance: node.to_owned(),
        };
        self.events.insert(key, made.clone());
        (Operation::Insert, made)
    }
}
