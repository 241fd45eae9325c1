//! When a status patch makes an older one that still waits superfluous.
//!
//! An edge sends two-way patches: only what differs from the state it knew. A later patch may therefore lack what an
//! earlier one said, and dropping the earlier one would lose it. It may go only when the later one says something about
//! each place that it touches.

use serde_json::{Map, Value};

/// Lists that a strategic merge patch merges by a key of their elements, in the status of pods and nodes. Every other
/// list there is replaced as a whole.
const MERGED_LISTS: [(&str, &str); 4] = [
    ("conditions", "type"),
    ("addresses", "type"),
    ("podIPs", "ip"),
    ("resourceClaimStatuses", "name"),
];

/// Nesting that is looked into; a status has less, and what is deeper is kept.
const DEPTH_MAX: usize = 16;

/// Whether applying `newer` alone leaves the same as applying `older` and then `newer`. Both are strategic merge patches
/// of one status; a text that is none is never covered.
pub fn covers(older: &str, newer: &str) -> bool {
    let parse = |text| serde_json::from_str::<Map<String, Value>>(text).ok();
    match (parse(older), parse(newer)) {
        (Some(older), Some(newer)) => object(&older, &newer, DEPTH_MAX),
        (_, _) => false,
    }
}

fn object(older: &Map<String, Value>, newer: &Map<String, Value>, depth: usize) -> bool {
    let Some(depth) = depth.checked_sub(1) else {
        return false;
    };
    older.iter().all(|(name, before)| match newer.get(name) {
        None => false,
        // Directives order and delete: only the very same does the same.
        Some(after) if name.starts_with('$') => {
            before == after || name.starts_with("$setElementOrder/") && lists(before, after)
        }
        Some(after) => value(name, before, after, depth),
    })
}

fn value(name: &str, older: &Value, newer: &Value, depth: usize) -> bool {
    match (older, newer) {
        (Value::Object(older), Value::Object(newer)) => object(older, newer, depth),
        (Value::Array(older), Value::Array(newer)) => {
            let key = MERGED_LISTS.iter().find(|(list, _)| *list == name);
            key.is_none_or(|(_, key)| elements(older, newer, key, depth))
        }
        // Every other pair replaces: a value, a null that deletes, another type.
        (_, Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => true,
        // A list or an object over what was none says everything there is to say.
        (
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_),
            Value::Object(_),
        )
        | (
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_),
            Value::Array(_),
        ) => true,
    }
}

fn elements(older: &[Value], newer: &[Value], key: &str, depth: usize) -> bool {
    older.iter().all(|before| {
        let (Some(id), Some(before)) = (before.get(key), before.as_object()) else {
            return false;
        };
        newer
            .iter()
            .filter(|after| after.get(key) == Some(id))
            .filter_map(Value::as_object)
            .any(|after| object(before, after, depth))
    })
}

/// Two orders of one list: the later one rules.
fn lists(older: &Value, newer: &Value) -> bool {
    older.is_array() && newer.is_array()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(pairs: &[(&str, &str)], expect: Expect) {
        let told: String = pairs
            .iter()
            .map(|(older, newer)| {
                let word = if covers(older, newer) { "covers" } else { "keeps " };
                format!("{word} {older} | {newer}\n")
            })
            .collect();
        expect.assert_eq(&told);
    }

    #[test]
    fn a_later_patch_covers_what_it_says_something_about() {
        check(
            &[
                (
                    r#"{"status":{"phase":"Pending"}}"#,
                    r#"{"status":{"phase":"Running"}}"#,
                ),
                (r#"{"status":{"phase":"Running"}}"#, r#"{"status":{"podIP":"1"}}"#),
                (
                    r#"{"status":{"phase":"Running","podIP":"1"}}"#,
                    r#"{"status":{"podIP":null,"phase":"Failed"}}"#,
                ),
                (
                    r#"{"status":{"containerStatuses":[{"name":"a"},{"name":"b"}]}}"#,
                    r#"{"status":{"containerStatuses":[{"name":"a"}]}}"#,
                ),
                (
                    r#"{"status":{"conditions":[{"type":"Ready","status":"True"}]}}"#,
                    r#"{"status":{"conditions":[{"type":"Ready","status":"False"}]}}"#,
                ),
                (
                    r#"{"status":{"conditions":[{"type":"Ready","status":"True"}]}}"#,
                    r#"{"status":{"conditions":[{"type":"Ready","reason":"x"}]}}"#,
                ),
                (
                    r#"{"status":{"conditions":[{"type":"Ready"},{"type":"Initialized"}]}}"#,
                    r#"{"status":{"conditions":[{"type":"Ready"}]}}"#,
                ),
                (
                    r#"{"status":{"podIPs":[{"ip":"1"}]}}"#,
                    r#"{"status":{"podIPs":[{"ip":"2"}]}}"#,
                ),
                (
                    r#"{"status":{"$setElementOrder/conditions":[{"type":"A"}]}}"#,
                    r#"{"status":{"$setElementOrder/conditions":[{"type":"B"}]}}"#,
                ),
                (
                    r#"{"status":{"$setElementOrder/conditions":[{"type":"A"}]}}"#,
                    r#"{"status":{}}"#,
                ),
                (
                    r#"{"status":{"conditions":[{"$patch":"delete","type":"A"}]}}"#,
                    r#"{"status":{"conditions":[{"type":"A"}]}}"#,
                ),
                (
                    r#"{"metadata":{"uid":"a"},"status":{"phase":"x"}}"#,
                    r#"{"metadata":{"uid":"a"},"status":{"phase":"y"}}"#,
                ),
                (
                    r#"{"metadata":{"uid":"a"},"status":{"phase":"x"}}"#,
                    r#"{"status":{"phase":"y"}}"#,
                ),
                ("nonsense", r#"{"status":{}}"#),
            ],
            expect![[r#"
                covers {"status":{"phase":"Pending"}} | {"status":{"phase":"Running"}}
                keeps  {"status":{"phase":"Running"}} | {"status":{"podIP":"1"}}
                covers {"status":{"phase":"Running","podIP":"1"}} | {"status":{"podIP":null,"phase":"Failed"}}
                covers {"status":{"containerStatuses":[{"name":"a"},{"name":"b"}]}} | {"status":{"containerStatuses":[{"name":"a"}]}}
                covers {"status":{"conditions":[{"type":"Ready","status":"True"}]}} | {"status":{"conditions":[{"type":"Ready","status":"False"}]}}
                keeps  {"status":{"conditions":[{"type":"Ready","status":"True"}]}} | {"status":{"conditions":[{"type":"Ready","reason":"x"}]}}
                keeps  {"status":{"conditions":[{"type":"Ready"},{"type":"Initialized"}]}} | {"status":{"conditions":[{"type":"Ready"}]}}
                keeps  {"status":{"podIPs":[{"ip":"1"}]}} | {"status":{"podIPs":[{"ip":"2"}]}}
                covers {"status":{"$setElementOrder/conditions":[{"type":"A"}]}} | {"status":{"$setElementOrder/conditions":[{"type":"B"}]}}
                keeps  {"status":{"$setElementOrder/conditions":[{"type":"A"}]}} | {"status":{}}
                keeps  {"status":{"conditions":[{"$patch":"delete","type":"A"}]}} | {"status":{"conditions":[{"type":"A"}]}}
                covers {"metadata":{"uid":"a"},"status":{"phase":"x"}} | {"metadata":{"uid":"a"},"status":{"phase":"y"}}
                keeps  {"metadata":{"uid":"a"},"status":{"phase":"x"}} | {"status":{"phase":"y"}}
                keeps  nonsense | {"status":{}}
            "#]],
        );
    }
}
