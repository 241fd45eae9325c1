//! A pod's status as the patch that the cloud applies.

use kedge_api::{PodIp, PodStatus};
use serde_json::{Value, json};

/// The strategic merge patch that turns any earlier report into `status`. `before` is what the cloud may still hold:
/// merged lists and dropped texts need an explicit deletion.
pub(crate) fn status_patch(
    uid: &str,
    before: &PodStatus,
    status: &PodStatus,
) -> Result<String, serde_json::Error> {
    let mut value = serde_json::to_value(status)?;
    if let Some(map) = value.as_object_mut() {
        let clears = [
            ("reason", before.reason.is_some() && status.reason.is_none()),
            ("message", before.message.is_some() && status.message.is_none()),
            ("podIP", before.pod_ip.is_some() && status.pod_ip.is_none()),
        ];
        for (field, clear) in clears {
            if clear {
                map.insert(field.to_owned(), Value::Null);
            }
        }
        drop_condition_texts(map, before);
        drop_ips(map, "podIPs", &before.pod_ips, &status.pod_ips);
        drop_ips(map, "hostIPs", &before.host_ips, &status.host_ips);
    }
    serde_json::to_string(&json!({ "metadata": { "uid": uid }, "status": value }))
}

/// Conditions are merged by type, so a text that is gone must be named.
fn drop_condition_texts(map: &mut serde_json::Map<String, Value>, before: &PodStatus) {
    let Some(conditions) = map.get_mut("conditions").and_then(Value::as_array_mut) else {
        return;
    };
    for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
        let type_ = condition.get("type").and_then(Value::as_str).unwrap_or_default();
        let Some(old) = before.conditions.iter().find(|old| old.type_ == type_) else {
            continue;
        };
        for (field, held) in [
            ("reason", old.reason.is_some()),
            ("message", old.message.is_some()),
        ] {
            if held && !condition.contains_key(field) {
                condition.insert(field.to_owned(), Value::Null);
            }
        }
    }
}

/// The lists of addresses are merged by address, so an address that is gone must be named.
fn drop_ips(map: &mut serde_json::Map<String, Value>, field: &str, before: &[PodIp], now: &[PodIp]) {
    let gone: Vec<Value> = before
        .iter()
        .filter(|old| !now.contains(old))
        .map(|old| json!({ "$patch": "delete", "ip": old.ip }))
        .collect();
    if gone.is_empty() {
        return;
    }
    let list = map.entry(field).or_insert_with(|| json!([]));
    if let Some(list) = list.as_array_mut() {
        list.extend(gone);
    }
}
