//! The node's lease: the one sign of life that the cloud believes.

use super::{NodeTasks, RETRY_MIN, wait_online};
use crate::cloud::Error;
use kedge_api::{Lease, LeaseSpec, MicroTime, ObjectMeta, OwnerReference};
use kedge_telemetry::channel::latest;
use kedge_wire::{Body, ObjectKey, ObjectKind, Operation};
use serde_json::{Value, json};
use std::time::Duration;

const NAMESPACE: &str = "kube-node-lease";
/// Attempts within one interval: a lost race is settled by the next read.
const ATTEMPTS_MAX: u32 = 5;

/// Renews the lease as long as the process lives.
pub(super) async fn run(mut tasks: NodeTasks, mut registered: latest::Receiver<Option<String>>) {
    let mut held: Option<Value> = None;
    loop {
        if registered.wait_for(Option::is_some).await.is_err()
            || wait_online(&mut tasks.online).await.is_none()
        {
            return;
        }
        let uid = registered.borrow().clone().unwrap_or_default();
        let renewed = renew(&tasks, &mut held, &uid).await;
        let wait = match renewed {
            Ok(()) => tasks.config.lease_interval,
            // Offline is told by `online`; until then a short wait is enough.
            Err(error) => {
                if !error.is_absence() {
                    tracing::warn!(%error, "lease not renewed, will be tried again");
                }
                tasks.config.lease_interval / 10
            }
        };
        tokio::time::sleep(wait).await;
    }
}

async fn renew(tasks: &NodeTasks, held: &mut Option<Value>, node_uid: &str) -> Result<(), Error> {
    let mut delay: Duration = RETRY_MIN;
    for attempt in 1..=ATTEMPTS_MAX {
        match renew_once(tasks, held, node_uid).await {
            Ok(lease) => {
                *held = Some(lease);
                return Ok(());
            }
            Err(error) if attempt == ATTEMPTS_MAX || error.is_absence() => return Err(error),
            // Somebody else wrote it, or removed it: read it again.
            Err(_) => *held = None,
        }
        tokio::time::sleep(delay).await;
        delay *= 2;
    }
    Ok(())
}

async fn renew_once(tasks: &NodeTasks, held: &Option<Value>, node_uid: &str) -> Result<Value, Error> {
    let key = ObjectKey::namespaced(ObjectKind::Lease, NAMESPACE, tasks.config.node_name.as_str());
    let known = match held {
        Some(lease) => Some(lease.clone()),
        None => match tasks
            .cloud
            .object::<Value>(Operation::Query, key.clone(), Body::null())
            .await
        {
            Ok(lease) if lease.get("metadata").is_some() => Some(lease),
            Ok(_) => None,
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error),
        },
    };
    let (operation, lease) = match known {
        Some(lease) => (Operation::Update, touched(tasks, lease)),
        None => (Operation::Insert, fresh(tasks, node_uid)),
    };
    let body = Body::from_value(&lease).map_err(|error| Error::Unreadable(error.to_string()))?;
    tasks.cloud.object(operation, key, body).await
}

/// The lease as it is, with a new time. What else is in it stays.
fn touched(tasks: &NodeTasks, mut lease: Value) -> Value {
    let spec = json!({
        "holderIdentity": tasks.config.node_name.as_str(),
        "leaseDurationSeconds": tasks.config.lease_duration.as_secs(),
        "renewTime": MicroTime::from_ms(tasks.now().as_ms()),
    });
    if let Some(map) = lease.as_object_mut() {
        map.insert("apiVersion".to_owned(), json!("coordination.k8s.io/v1"));
        map.insert("kind".to_owned(), json!("Lease"));
        map.insert("spec".to_owned(), spec);
    }
    lease
}

fn fresh(tasks: &NodeTasks, node_uid: &str) -> Value {
    let name = tasks.config.node_name.to_string();
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: name.clone(),
        uid: node_uid.to_owned(),
        ..OwnerReference::default()
    };
    let lease = Lease {
        api_version: "coordination.k8s.io/v1".to_owned(),
        kind: "Lease".to_owned(),
        metadata: ObjectMeta {
            name: name.clone(),
            namespace: Some(NAMESPACE.to_owned()),
            owner_references: if node_uid.is_empty() {
                Vec::new()
            } else {
                vec![owner]
            },
            ..ObjectMeta::default()
        },
        spec: LeaseSpec {
            holder_identity: Some(name),
            lease_duration_seconds: i32::try_from(tasks.config.lease_duration.as_secs()).ok(),
            renew_time: Some(MicroTime::from_ms(tasks.now().as_ms())),
        },
    };
    json!(lease)
}
