//! What is worth telling, and when each condition became what it is.

use crate::config;
use kedge_api::{NodeStatus, Timestamp};
use kedge_wire::Time;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// Decides when a status is worth sending.
#[derive(Debug, Default)]
pub(super) struct Reporter {
    sent: Option<(NodeStatus, Time)>,
    /// The cloud may have changed it while it was away (it sets conditions to Unknown): everything is told again.
    again: bool,
    /// By the type of the condition: its status, and since when.
    since: BTreeMap<String, (String, Timestamp)>,
}

impl Reporter {
    /// Nobody knows what the cloud holds by now.
    pub(super) fn forget_sent(&mut self) {
        self.again = true;
    }

    /// The cloud was away: it may have believed something else meanwhile.
    pub(super) fn forget_times(&mut self) {
        self.again = true;
        self.since.clear();
    }

    /// Writes the times on what was seen. `known` is the status as the cloud holds it.
    pub(super) fn stamp(
        &mut self,
        looked: &NodeStatus,
        known: Option<&NodeStatus>,
        wall: Time,
    ) -> NodeStatus {
        let now = Timestamp::from_ms(wall.as_ms());
        let mut status = looked.clone();
        for condition in &mut status.conditions {
            let changed = condition.last_transition_time;
            let known = known.and_then(|known| known.conditions.iter().find(|k| k.type_ == condition.type_));
            let since = match (self.since.get(&condition.type_), known) {
                (Some((told, at)), _) if *told == condition.status && changed.is_none_or(|c| c <= *at) => *at,
                // It changed since it was told.
                (Some(_), _) => changed.unwrap_or(now),
                // It was so before this process started, or became so while the cloud was away.
                (None, Some(known)) if known.status == condition.status => {
                    known.last_transition_time.max(changed).unwrap_or(now)
                }
                // Until now the cloud believed something else.
                (None, Some(_)) => now,
                (None, None) => changed.unwrap_or(now),
            };
            self.since
                .insert(condition.type_.clone(), (condition.status.clone(), since));
            condition.last_transition_time = Some(since);
            condition.last_heartbeat_time = Some(now);
        }
        status
    }

    /// The patch to send now, if any: what changed, or after a while the conditions alone as a sign of life.
    pub(super) fn patch(&self, config: &config::Node, status: &NodeStatus, now: Time) -> Option<String> {
        let Some((sent, at)) = self.sent.as_ref().filter(|_| !self.again) else {
            return Some(whole_patch(status));
        };
        let is_due = now.since(*at) >= config.status_report_interval || timeless(sent) != timeless(status);
        is_due.then(|| changed_patch(sent, status))
    }

    /// How long until a status must be sent although nothing changed.
    pub(super) fn due_in(&self, config: &config::Node, now: Time) -> Duration {
        let passed = self
            .sent
            .as_ref()
            .map_or(Duration::ZERO, |(_, at)| now.since(*at));
        config.status_report_interval.saturating_sub(passed)
    }

    pub(super) fn sent(&mut self, status: NodeStatus, now: Time) {
        self.sent = Some((status, now));
        self.again = false;
    }
}

/// Without heartbeats, which alone are no news.
fn timeless(status: &NodeStatus) -> NodeStatus {
    let mut status = status.clone();
    for condition in &mut status.conditions {
        condition.last_heartbeat_time = None;
    }
    status
}

/// Tells everything. Lists that are empty are told, too: the cloud may hold older ones.
pub(super) fn whole_patch(status: &NodeStatus) -> String {
    const LISTS: [&str; 3] = ["images", "volumesInUse", "runtimeHandlers"];
    let mut fields = fields(status);
    for name in LISTS {
        fields.entry(name).or_insert(Value::Null);
    }
    print(fields)
}

/// Tells the fields that differ, and the conditions always.
fn changed_patch(sent: &NodeStatus, status: &NodeStatus) -> String {
    let old = fields(sent);
    let mut new = fields(status);
    let gone: Vec<String> = old
        .keys()
        .filter(|name| !new.contains_key(*name))
        .cloned()
        .collect();
    new.retain(|name, value| name == "conditions" || old.get(name) != Some(value));
    new.extend(gone.into_iter().map(|name| (name, Value::Null)));
    print(new)
}

fn fields(status: &NodeStatus) -> Map<String, Value> {
    match json!(status) {
        Value::Object(fields) => fields,
        _a_struct_is_an_object => Map::new(),
    }
}

/// Addresses are merged by their type, so that an old one would stay: the list says that it replaces the other.
fn print(mut fields: Map<String, Value>) -> String {
    if let Some(Value::Array(addresses)) = fields.get_mut("addresses") {
        addresses.push(json!({ "$patch": "replace" }));
    }
    json!({ "status": fields }).to_string()
}
