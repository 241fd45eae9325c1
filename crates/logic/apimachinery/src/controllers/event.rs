//! Events: what controllers tell people.

use super::{Pass, Write};
use crate::meta::{self, text};
use crate::strategy::DeleteOptions;
use jiff::Timestamp;
use serde_json::{Value, json};

/// Events are kept this long after they happened last.
const EVENT_SECONDS: i64 = 3600;

/// A core/v1 event about an object. The name follows from what happened, so that the same thing happening again is
/// counted on the same event.
pub(super) fn event(
    about: &Value,
    kind: &str,
    reason: &str,
    message: &str,
    source: &str,
    now: Timestamp,
) -> Value {
    let namespace = match meta::namespace(about) {
        "" => "default",
        namespace => namespace,
    };
    let involved = json!({
        "kind": text(about, &["kind"]),
        "namespace": meta::namespace(about),
        "name": meta::name(about),
        "uid": meta::uid(about),
        "apiVersion": text(about, &["apiVersion"]),
        "resourceVersion": meta::resource_version(about),
    });
    let hash = meta::value_hash(&json!([meta::uid(about), reason, message, source]));
    let mut event = json!({
        "kind": "Event",
        "apiVersion": "v1",
        "metadata": {"name": format!("{}.{hash}", meta::name(about)), "namespace": namespace},
        "involvedObject": involved,
        "reason": reason,
        "message": message,
        "source": {"component": source},
        "firstTimestamp": meta::time(now),
        "lastTimestamp": meta::time(now),
        "count": 1,
        "type": kind,
        "reportingComponent": source,
        "reportingInstance": "",
    });
    if meta::namespace(about).is_empty() {
        meta::take(&mut event, &["involvedObject", "namespace"]);
    }
    event
}

impl Pass<'_> {
    pub(super) fn tell(&mut self, about: &Value, kind: &str, reason: &str, message: &str, source: &str) {
        let object = event(about, kind, reason, message, source, self.now);
        self.write(Write::Event { object });
    }
}

/// The stored event after the same thing happened once more.
pub fn count_event(stored: &Value, again: &Value) -> Value {
    let mut event = stored.clone();
    let count = meta::number(stored, &["count"]).unwrap_or(1);
    meta::set(&mut event, &["count"], count.saturating_add(1).into());
    meta::set(
        &mut event,
        &["lastTimestamp"],
        again.get("lastTimestamp").cloned().unwrap_or_default(),
    );
    event
}

/// Deletes events that nobody will ask for any more.
pub(super) fn expire(pass: &mut Pass<'_>) {
    let world = pass.world;
    for event in world.list("events") {
        let times = [
            &["series", "lastObservedTime"][..],
            &["lastTimestamp"],
            &["metadata", "creationTimestamp"],
        ];
        let Some(last) = times.iter().find_map(|path| meta::parse_time(text(event, path))) else {
            continue;
        };
        if pass.now.as_second() - last.as_second() > EVENT_SECONDS {
            pass.delete("events", event, DeleteOptions::default());
        } else {
            pass.wake_after(last, EVENT_SECONDS + 1);
        }
    }
}
