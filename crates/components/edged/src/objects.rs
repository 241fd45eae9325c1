//! Config maps and secrets: held here, or asked for.

use crate::cloud::{self, Cloud};
use kedge_api::{ConfigMap, Secret};
use kedge_pods::Refusal;
use kedge_pods::translate::{Objects, References};
use kedge_wire::{Body, ObjectKey, ObjectKind, Operation};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;

/// Waiting reason of a container whose configuration is missing.
pub(crate) const CONFIG_ERROR: &str = "CreateContainerConfigError";

/// The desired objects of this node that are not pods.
#[derive(Debug, Default)]
pub(crate) struct Held {
    objects: BTreeMap<ObjectKey, Body>,
}

/// What one pod names, as far as it is held. Cheap to make: bodies are shared.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    objects: BTreeMap<ObjectKey, Body>,
}

/// What was found, and why something was not.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) objects: Objects,
    /// Names that could not be asked for, with the reason; a name that does not exist is simply absent.
    pub(crate) unknown: Vec<String>,
}

impl Held {
    pub(crate) fn set(&mut self, key: ObjectKey, body: Option<Body>) {
        match body {
            Some(body) => self.objects.insert(key, body),
            None => self.objects.remove(&key),
        };
    }

    pub(crate) fn snapshot(&self, namespace: &str, references: &References) -> Snapshot {
        let keys = keys(namespace, references);
        Snapshot {
            objects: keys
                .filter_map(|key| Some((key.clone(), self.objects.get(&key)?.clone())))
                .collect(),
        }
    }
}

fn keys<'a>(namespace: &'a str, references: &'a References) -> impl Iterator<Item = ObjectKey> + 'a {
    let maps = references.config_maps.iter();
    let secrets = references.secrets.iter();
    maps.map(|name| ObjectKey::namespaced(ObjectKind::ConfigMap, namespace, name))
        .chain(secrets.map(|name| ObjectKey::namespaced(ObjectKind::Secret, namespace, name)))
}

/// Gathers what is named: from the snapshot first, else from the cloud.
pub(crate) async fn gather(
    snapshot: &Snapshot,
    cloud: &Cloud,
    namespace: &str,
    references: &References,
) -> Found {
    let mut found = Found::default();
    for name in &references.config_maps {
        let key = ObjectKey::namespaced(ObjectKind::ConfigMap, namespace, name);
        if let Some(map) =
            find::<ConfigMap>(snapshot, cloud, key, "configmap", name, &mut found.unknown).await
        {
            found.objects.config_maps.insert(name.clone(), map);
        }
    }
    for name in &references.secrets {
        let key = ObjectKey::namespaced(ObjectKind::Secret, namespace, name);
        if let Some(secret) = find::<Secret>(snapshot, cloud, key, "secret", name, &mut found.unknown).await {
            found.objects.secrets.insert(name.clone(), secret);
        }
    }
    found
}

async fn find<T: DeserializeOwned>(
    snapshot: &Snapshot,
    cloud: &Cloud,
    key: ObjectKey,
    kind: &str,
    name: &str,
    unknown: &mut Vec<String>,
) -> Option<T> {
    if let Some(body) = snapshot.objects.get(&key) {
        return match body.parse() {
            Ok(object) => Some(object),
            Err(error) => {
                unknown.push(format!("{kind} \"{name}\" cannot be read: {error}"));
                None
            }
        };
    }
    match cloud.object(Operation::Query, key, Body::null()).await {
        Ok(object) => Some(object),
        Err(error) if error.is_not_found() => None,
        Err(error) => {
            unknown.push(why_unknown(kind, name, &error));
            None
        }
    }
}

fn why_unknown(kind: &str, name: &str, error: &cloud::Error) -> String {
    format!("{kind} \"{name}\" is not on this node and the cloud does not give it: {error}")
}

/// Replaces a plain "not found" by what is known about the absence.
pub(crate) fn explain(refusal: Refusal, unknown: &[String]) -> Refusal {
    let better = unknown.iter().find(|text| {
        let subject = text.split('"').nth(1).unwrap_or_default();
        refusal.message.contains(&format!("\"{subject}\""))
    });
    match better {
        Some(text) if refusal.reason == CONFIG_ERROR => Refusal {
            message: text.clone(),
            ..refusal
        },
        Some(_) | None => refusal,
    }
}
