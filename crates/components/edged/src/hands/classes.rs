//! Runtime classes: which handler of the container runtime runs a pod.

use super::{Hands, within};
use kedge_api::{Container, Pod, VolumeMount};
use kedge_pods::Refusal;
use kedge_wire::{Body, ObjectKey, ObjectKind, Operation};
use serde::Deserialize;
use std::time::Duration;

/// A cloud that knows the class answers at once; the official one does not answer this question at all.
const CLOUD_MAX: Duration = Duration::from_secs(5);
/// The runtime only looks into its configuration.
const RUNTIME_MAX: Duration = Duration::from_secs(30);
/// What the wire calls the object.
const KIND: &str = "runtimeclass";

#[derive(Deserialize)]
struct RuntimeClass {
    handler: String,
}

impl Hands {
    /// The handler of a class: as its object says, where the cloud or the store has it, else the handler of the same
    /// name. A pod runs under the handler of its class or not at all: another one would not keep what the class
    /// promises. A runtime that does not list its handlers judges by itself.
    pub(super) async fn handler(&self, class: &str) -> Result<String, Refusal> {
        let known = self.known_handler(class).await;
        let handler = known.clone().unwrap_or_else(|| class.to_owned());
        let asked = within(RUNTIME_MAX, "ask for the handlers", self.runtime.status()).await;
        let asked = asked.map_err(refuse)?;
        let handlers = asked.handlers;
        if handlers.is_empty() || handlers.contains(&handler) {
            return Ok(handler);
        }
        if let Some(why) = asked.missing_handlers.get(&handler) {
            return Err(refuse(why.clone()));
        }
        let what = match known {
            Some(_) => format!("no runtime for \"{handler}\" is configured"),
            None => format!("RuntimeClass \"{class}\" not found"),
        };
        let handlers = handlers.join(", ");
        Err(refuse(format!(
            "{what}: the handlers of the container runtime are {handlers}"
        )))
    }

    /// Whether the runtime can do what a mount of the container may ask for; it is only asked where one does.
    pub(super) async fn makes_recursive_read_only(
        &self,
        pod: &Pod,
        spec: &Container,
    ) -> Result<bool, Refusal> {
        let asks = |mount: &VolumeMount| {
            let mode = mount.recursive_read_only.as_deref();
            mode.is_some_and(|mode| mode != "Disabled")
        };
        if !spec.volume_mounts.iter().any(asks) {
            return Ok(false);
        }
        let handler = match pod.spec.runtime_class_name.as_deref().unwrap_or_default() {
            "" => String::new(),
            class => self
                .known_handler(class)
                .await
                .unwrap_or_else(|| class.to_owned()),
        };
        let asked = within(RUNTIME_MAX, "ask for the handlers", self.runtime.status()).await;
        let features = asked
            .map_err(|message| Refusal::new("CreateContainerError", message))?
            .features;
        Ok(features
            .get(&handler)
            .is_some_and(|features| features.recursive_read_only_mounts))
    }

    async fn known_handler(&self, class: &str) -> Option<String> {
        let key = ObjectKey::cluster(ObjectKind::Other(KIND.to_owned()), class);
        let asked = self
            .cloud
            .object::<RuntimeClass>(Operation::Query, key, Body::null());
        match tokio::time::timeout(CLOUD_MAX, asked).await {
            Ok(Ok(object)) => Some(object.handler),
            Ok(Err(error)) => {
                tracing::debug!(class, %error, "runtime class is not known");
                None
            }
            Err(_) => None,
        }
    }
}

fn refuse(message: String) -> Refusal {
    Refusal::new("CreatePodSandboxError", message)
}
