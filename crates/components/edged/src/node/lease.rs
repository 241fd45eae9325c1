//! The node's lease: the one sign of life that the cloud believes.

use super::{RETRY_MIN, wait_offline, wait_online};
use crate::beside::Beside;
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
pub(super) async fn run(mut beside: Beside, mut registered: latest::Receiver<Option<String>>) {
    let interval = beside.config.node.lease_interval;
    let mut held: Option<Value> = None;
    loop {
        if registered.wait_for(Option::is_some).await.is_err()
            || wait_online(&mut beside.online).await.is_none()
        {
            return;
        }
        let uid = registered.borrow().clone().unwrap_or_default();
        let wait = match renew(&beside, &mut held, &uid).await {
            Ok(()) => interval,
            // Offline is told by `online`; until then a short wait is enough.
            Err(error) => {
                if !error.is_absence() {
                    tracing::warn!(%error, "lease not renewed, will be tried again");
                }
                interval / 10
            }
        };
        tokio::select! {
            biased;
            // When the link comes back the lease is due at once.
            down = wait_offline(&mut beside.online) => down,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn renew(beside: &Beside, held: &mut Option<Value>, node_uid: &str) -> Result<(), Error> {
    let mut delay: Duration = RETRY_MIN;
    for attempt in 1..=ATTEMPTS_MAX {
        match renew_once(beside, held, node_uid).await {
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

async fn renew_once(beside: &Beside, held: &Option<Value>, node_uid: &str) -> Result<Value, Error> {
    let key = ObjectKey::namespaced(ObjectKind::Lease, NAMESPACE, beside.config.node_name.as_str());
    let known = match held {
        Some(lease) => Some(lease.clone()),
        None => match beside
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
        Some(lease) => (Operation::Update, touched(beside, lease)),
        None => (Operation::Insert, fresh(beside, node_uid)),
    };
    let body = Body::from_value(&lease).map_err(|error| Error::Unreadable(error.to_string()))?;
    beside.cloud.object(operation, key, body).await
}

/// The lease as it is, with a new time. What else is in it stays.
fn touched(beside: &Beside, mut lease: Value) -> Value {
    let spec = json!({
        "holderIdentity": beside.config.node_name.as_str(),
        "leaseDurationSeconds": beside.config.node.lease_duration.as_secs(),
        "renewTime": MicroTime::from_ms(beside.clock.wall().as_ms()),
    });
    if let Some(map) = lease.as_object_mut() {
        map.insert("apiVersion".to_owned(), json!("coordination.k8s.io/v1"));
        map.insert("kind".to_owned(), json!("Lease"));
        map.insert("spec".to_owned(), spec);
    }
    lease
}

fn fresh(beside: &Beside, node_uid: &str) -> Value {
    let name = beside.config.node_name.to_string();
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
            lease_duration_seconds: i32::try_from(beside.config.node.lease_duration.as_secs()).ok(),
            renew_time: Some(MicroTime::from_ms(beside.clock.wall().as_ms())),
        },
    };
    json!(lease)
}
