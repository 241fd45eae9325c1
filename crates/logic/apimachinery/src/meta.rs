//! Reading and writing the parts that all objects share: metadata, conditions, owners, times.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// The value at a path of object keys, or null.
pub fn at<'a>(object: &'a Value, path: &[&str]) -> &'a Value {
    const NULL: &Value = &Value::Null;
    path.iter()
        .fold(object, |value, key| value.get(key).unwrap_or(NULL))
}

/// The text at a path, or "".
pub fn text<'a>(object: &'a Value, path: &[&str]) -> &'a str {
    at(object, path).as_str().unwrap_or_default()
}

/// The whole number at a path.
pub fn number(object: &Value, path: &[&str]) -> Option<i64> {
    at(object, path).as_i64()
}

/// The elements of the list at a path; a missing or wrongly typed list is empty.
pub fn items<'a>(object: &'a Value, path: &[&str]) -> &'a [Value] {
    at(object, path).as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The string map at a path as pairs.
pub fn pairs<'a>(object: &'a Value, path: &[&str]) -> impl Iterator<Item = (&'a str, &'a str)> {
    at(object, path)
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, v)| (k.as_str(), v.as_str().unwrap_or_default()))
}

pub fn name(object: &Value) -> &str {
    text(object, &["metadata", "name"])
}

pub fn namespace(object: &Value) -> &str {
    text(object, &["metadata", "namespace"])
}

pub fn uid(object: &Value) -> &str {
    text(object, &["metadata", "uid"])
}

pub fn resource_version(object: &Value) -> &str {
    text(object, &["metadata", "resourceVersion"])
}

pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    at(object, &["metadata", "labels", key]).as_str()
}

pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    at(object, &["metadata", "annotations", key]).as_str()
}

/// Whether deletion has begun.
pub fn is_terminating(object: &Value) -> bool {
    at(object, &["metadata", "deletionTimestamp"]).is_string()
}

pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    items(object, &["metadata", "finalizers"])
        .iter()
        .filter_map(Value::as_str)
}

/// Writes a value at a path and makes the maps in between.
pub fn set(object: &mut Value, path: &[&str], value: Value) {
    let Some((last, parents)) = path.split_last() else {
        *object = value;
        return;
    };
    let mut place = object;
    for key in parents {
        place = map(place).entry(*key).or_insert(Value::Null);
    }
    map(place).insert((*last).to_owned(), value);
}

/// Writes a value at a path unless something other than null is there.
pub fn set_default(object: &mut Value, path: &[&str], value: Value) {
    if at(object, path).is_null() {
        set(object, path, value);
    }
}

/// Removes what is at a path and returns it.
pub fn take(object: &mut Value, path: &[&str]) -> Option<Value> {
    let (last, parents) = path.split_last()?;
    let mut place = object;
    for key in parents {
        place = place.get_mut(key)?;
    }
    place.as_object_mut()?.shift_remove(*last)
}

/// The value as a map; anything that is not a map is replaced by an empty one.
pub fn map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("the line above made it a map")
}

/// The value as a list; anything that is not a list is replaced by an empty one.
pub fn list(value: &mut Value) -> &mut Vec<Value> {
    if !value.is_array() {
        *value = Value::Array(Vec::new());
    }
    value.as_array_mut().expect("the line above made it a list")
}

/// A moment as metav1.Time prints it: whole seconds, UTC.
pub fn time(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A moment as metav1.MicroTime prints it.
pub fn micro_time(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// A moment read from an object.
pub fn parse_time(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// Seconds from the moment at a path until `now`; negative when it lies in the future.
pub fn seconds_since(object: &Value, path: &[&str], now: Timestamp) -> Option<i64> {
    Some(now.as_second() - parse_time(text(object, path))?.as_second())
}

/// The condition of that type in `status.conditions`.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    items(object, &["status", "conditions"])
        .iter()
        .find(|c| text(c, &["type"]) == kind)
}

/// Whether the condition of that type has status True.
pub fn condition_true(object: &Value, kind: &str) -> bool {
    condition(object, kind).is_some_and(|c| text(c, &["status"]) == "True")
}

/// Sets a condition in `status.conditions`; `lastTransitionTime` moves only when the status changes. Returns whether
/// anything but times changed.
pub fn set_condition(
    object: &mut Value,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> bool {
    let place = map(object).entry("status").or_insert(Value::Null);
    let conditions = list(map(place).entry("conditions").or_insert(Value::Null));
    let Some(condition) = conditions.iter_mut().find(|c| text(c, &["type"]) == kind) else {
        conditions.push(json!({
            "type": kind, "status": status, "lastTransitionTime": time(now), "reason": reason, "message": message,
        }));
        return true;
    };
    let flipped = text(condition, &["status"]) != status;
    let changed =
        flipped || text(condition, &["reason"]) != reason || text(condition, &["message"]) != message;
    if flipped {
        set(condition, &["lastTransitionTime"], Value::String(time(now)));
    }
    set(condition, &["status"], Value::String(status.to_owned()));
    set(condition, &["reason"], Value::String(reason.to_owned()));
    set(condition, &["message"], Value::String(message.to_owned()));
    changed
}

/// The owner reference with `controller: true`.
pub fn controller_of(object: &Value) -> Option<&Value> {
    items(object, &["metadata", "ownerReferences"])
        .iter()
        .find(|o| at(o, &["controller"]) == &Value::Bool(true))
}

/// An owner reference that makes `owner` the controller of something.
pub fn controller_reference(owner: &Value) -> Value {
    json!({
        "apiVersion": text(owner, &["apiVersion"]),
        "kind": text(owner, &["kind"]),
        "name": name(owner),
        "uid": uid(owner),
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

/// Letters and digits of generated names: no vowels, and nothing that is easily misread, so that no words appear.
const NAME_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Length of the generated tail of a name.
pub const NAME_SUFFIX_LENGTH: usize = 5;

/// A generated name tail from a seed and something that tells this use of the seed from others.
pub fn name_suffix(seed: u64, salt: &str) -> String {
    let mut state = fnv64(salt.as_bytes(), seed ^ 0xcbf2_9ce4_8422_2325);
    (0..NAME_SUFFIX_LENGTH)
        .map(|_| {
            // splitmix64: cheap, and well spread even for neighbouring seeds.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            char::from(NAME_ALPHABET[(z % NAME_ALPHABET.len() as u64) as usize])
        })
        .collect()
}

/// A short stable hash of a value, spelled in the alphabet of names (as in `pod-template-hash`).
pub fn value_hash(value: &Value) -> String {
    let mut hash = fnv64(canonical(value).to_string().as_bytes(), 0xcbf2_9ce4_8422_2325);
    hash ^= hash >> 32;
    (hash as u32)
        .to_string()
        .bytes()
        .map(|digit| char::from(NAME_ALPHABET[usize::from(digit) % NAME_ALPHABET.len()]))
        .collect()
}

/// The value with all maps sorted by key, so that equal objects print equally.
fn canonical(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut sorted: Vec<_> = fields.iter().collect();
            sorted.sort_by(|a, b| a.0.cmp(b.0));
            Value::Object(
                sorted
                    .into_iter()
                    .map(|(k, v)| (k.clone(), canonical(v)))
                    .collect(),
            )
        }
        Value::Array(items) => Value::Array(items.iter().map(canonical).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

fn fnv64(bytes: &[u8], start: u64) -> u64 {
    bytes.iter().fold(start, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_stable_and_differ() {
        assert_eq!(name_suffix(7, "web"), name_suffix(7, "web"));
        assert_ne!(name_suffix(7, "web"), name_suffix(8, "web"));
        assert_ne!(name_suffix(7, "web0"), name_suffix(7, "web1"));
    }

    #[test]
    fn hash_ignores_the_order_of_keys() {
        assert_eq!(
            value_hash(&json!({"a": 1, "b": [{"c": 2, "d": 3}]})),
            value_hash(&json!({"b": [{"d": 3, "c": 2}], "a": 1}))
        );
        assert_ne!(value_hash(&json!({"a": 1})), value_hash(&json!({"a": 2})));
    }

    #[test]
    fn times_print_as_kubernetes_prints_them() {
        let now: Timestamp = "2026-11-21T10:00:00.123456789Z".parse().unwrap();
        assert_eq!(time(now), "2026-11-21T10:00:00Z");
        assert_eq!(micro_time(now), "2026-11-21T10:00:00.123456Z");
    }
}
