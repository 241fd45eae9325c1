//! Certificate requests that nobody asks about any more: a node asks anew under the same name when its certificate
//! runs out.

use super::Pass;
use crate::meta::{self, items, text};
use crate::strategy::DeleteOptions;
use jiff::Timestamp;
use serde_json::Value;

const RESOURCE: &str = "certificatesigningrequests.certificates.k8s.io";
/// Issued, denied and failed ones: whoever asked has looked by then.
const SETTLED_SECONDS: i64 = 3600;
/// Those that nobody has decided on, or nobody signs.
const WAITING_SECONDS: i64 = 24 * 3600;

pub(super) fn run(pass: &mut Pass<'_>) {
    for request in pass.world.list(RESOURCE).filter(|r| !meta::is_terminating(r)) {
        let seconds = if is_settled(request) {
            SETTLED_SECONDS
        } else {
            WAITING_SECONDS
        };
        let Some(since) = last_change(request) else {
            continue;
        };
        if pass.now.as_second() - since.as_second() > seconds {
            pass.delete(RESOURCE, request, DeleteOptions::default());
        } else {
            pass.wake_after(since, seconds + 1);
        }
    }
}

fn is_settled(request: &Value) -> bool {
    let over = ["Denied", "Failed"]
        .iter()
        .any(|kind| meta::condition_true(request, kind));
    over || !text(request, &["status", "certificate"]).is_empty()
}

/// When it was made, approved or refused.
fn last_change(request: &Value) -> Option<Timestamp> {
    let conditions = items(request, &["status", "conditions"]).iter();
    let moments =
        conditions.flat_map(|c| ["lastUpdateTime", "lastTransitionTime"].map(|field| text(c, &[field])));
    let decided = moments.filter_map(meta::parse_time).max();
    decided.max(meta::parse_time(text(
        request,
        &["metadata", "creationTimestamp"],
    )))
}

#[cfg(test)]
mod tests {
    use crate::controllers::{Settings, World, Write, decide};
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn gone_after(minutes: i64, status: Value) -> bool {
        let made: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut world = World::new();
        let request = json!({"kind": "CertificateSigningRequest", "apiVersion": "certificates.k8s.io/v1",
            "metadata": {"name": "r", "uid": "u", "creationTimestamp": crate::meta::time(made)}, "status": status});
        world.put(super::RESOURCE, Arc::new(request));
        let now = made + jiff::SignedDuration::from_mins(minutes);
        let decision = decide(&world, &Settings::default(), now, 1);
        let gone =
            |write: &Write| matches!(write, Write::Delete { resource, .. } if resource == super::RESOURCE);
        decision.writes.iter().any(gone)
    }

    #[test]
    fn settled_ones_go_after_an_hour_and_waiting_ones_after_a_day() {
        let issued = json!({"certificate": "eA==", "conditions": [{"type": "Approved", "status": "True",
            "lastTransitionTime": "2026-01-01T00:30:00Z"}]});
        assert!(!gone_after(89, issued.clone()));
        assert!(gone_after(91, issued));
        let approved = json!({"conditions": [{"type": "Approved", "status": "True"}]});
        assert!(!gone_after(23 * 60, approved.clone()));
        assert!(gone_after(25 * 60, approved));
        assert!(gone_after(
            61,
            json!({"conditions": [{"type": "Denied", "status": "True"}]})
        ));
        assert!(!gone_after(61, Value::Null));
    }
}
