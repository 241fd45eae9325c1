//! What `covers` promises, held against the strategic merge of the embedded API.

// Every line here is test code, where a panic is the report.
#![allow(clippy::unwrap_used)]

use kedge_apimachinery::kinds::Registry;
use kedge_apimachinery::patch::{PatchKind, apply};
use kedge_placement::report::covers;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn any_text() -> impl Strategy<Value = Value> {
    prop_oneof![Just(json!("a")), Just(json!("b")), Just(Value::Null)]
}

fn any_conditions() -> impl Strategy<Value = Value> {
    let condition = (0..3_u8, any_text(), any::<bool>()).prop_map(|(kind, status, reason)| {
        let mut condition = json!({"type": format!("T{kind}"), "status": status});
        if reason {
            condition["reason"] = "r".into();
        }
        condition
    });
    proptest::collection::vec(condition, 0..3).prop_map(Value::from)
}

/// Fields of a pod's status, few of each, so that two patches often say something about the same place.
fn any_status() -> impl Strategy<Value = Value> {
    let fields = (
        proptest::option::of(any_text()),
        proptest::option::of(any_text()),
        proptest::option::of(any_conditions()),
        proptest::option::of(proptest::collection::vec(0..3_u8, 0..3)),
        proptest::option::of(proptest::collection::vec(0..2_u8, 0..2)),
    );
    fields.prop_map(|(phase, ip, conditions, containers, ips)| {
        let mut status = Map::new();
        let mut set = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                status.insert(name.to_owned(), value);
            }
        };
        let named = |number: u8| json!({"name": format!("c{number}"), "restartCount": number});
        let ips_of = |ips: Vec<u8>| {
            ips.into_iter()
                .map(|ip| json!({"ip": format!("10.0.0.{ip}")}))
                .collect()
        };
        set("phase", phase);
        set("podIP", ip);
        set("conditions", conditions);
        set(
            "containerStatuses",
            containers.map(|all| all.into_iter().map(named).collect()),
        );
        set("podIPs", ips.map(ips_of));
        Value::Object(status)
    })
}

proptest! {
    // About every sixth pair is a covered one.
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_covered_may_be_left_out(base in any_status(), older in any_status(), newer in any_status()) {
        let patch = |status: &Value| json!({"status": status});
        if !covers(&patch(&older).to_string(), &patch(&newer).to_string()) {
            return Ok(());
        }
        let pods = Registry::builtin().lookup("", "v1", "pods").unwrap();
        let merge = |object: &Value, status: &Value| apply(PatchKind::Strategic, &pods, object, &patch(status)).unwrap();
        let base = json!({"apiVersion": "v1", "kind": "Pod", "status": base});
        let (both, newer_only) = (merge(&merge(&base, &older), &newer), merge(&base, &newer));
        prop_assert_eq!(ordered(both), ordered(newer_only));
    }
}

/// Merged lists are sets: in which order new elements came is not what a status says.
fn ordered(mut object: Value) -> Value {
    for (list, key) in [("conditions", "type"), ("podIPs", "ip")] {
        if let Some(list) = object["status"][list].as_array_mut() {
            list.sort_by_key(|element| element[key].to_string());
        }
    }
    object
}
