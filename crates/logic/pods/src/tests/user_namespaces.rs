//! Ids of pods with users of their own.

use crate::user_namespaces::{Ranges, print};
use expect_test::expect;
use kedge_containers::{IdMapping, UserNamespace};
use proptest::prelude::*;
use std::collections::BTreeMap;

#[test]
fn records_are_those_of_a_kubelet() {
    let mut ranges = Ranges::default();
    let kept = r#"{"uidMappings":[{"hostId":131072,"containerId":0,"length":65536}],"gidMappings":[{"hostId":131072,"containerId":0,"length":65536}]}"#;
    ranges.record("b", kept).unwrap();
    let given = ["a", "b", "c"].map(|uid| print(&ranges.give(uid).unwrap()));
    expect![[r#"
        {"uidMappings":[{"hostId":65536,"containerId":0,"length":65536}],"gidMappings":[{"hostId":65536,"containerId":0,"length":65536}]}
        {"uidMappings":[{"hostId":131072,"containerId":0,"length":65536}],"gidMappings":[{"hostId":131072,"containerId":0,"length":65536}]}
        {"uidMappings":[{"hostId":196608,"containerId":0,"length":65536}],"gidMappings":[{"hostId":196608,"containerId":0,"length":65536}]}"#]]
    .assert_eq(&given.join("\n"));
}

#[test]
fn a_record_that_is_wrong_is_named() {
    let of = |host: u64, container: u64, length: u64| {
        let list = format!(r#"[{{"hostId":{host},"containerId":{container},"length":{length}}}]"#);
        format!(r#"{{"uidMappings":{list},"gidMappings":{list}}}"#)
    };
    let one = of(65536, 0, 65536);
    let cases = [
        String::new(),
        "[]".to_owned(),
        r#"{"uidMappings":[],"gidMappings":[]}"#.to_owned(),
        of(1 << 40, 0, 65536),
        of(65536, 1, 65536),
        of(65536, 0, 10),
        of(0, 0, 65536),
        of(u64::from(u32::MAX) - 65535, 0, 65536),
        one.replacen("65536", "131072", 1),
        of(65536 + 7, 0, 65536),
    ];
    let told = cases.map(|text| {
        let mut ranges = Ranges::default();
        ranges.record("first", &one).unwrap();
        ranges.record("u1", &text).unwrap_err().to_string()
    });
    expect![[r#"
        read which ids pod u1 has (its file userns): it is no JSON
        read which ids pod u1 has (its file userns): there is not one mapping
        read which ids pod u1 has (its file userns): there is not one mapping
        read which ids pod u1 has (its file userns): a mapping is not understood
        read which ids pod u1 has (its file userns): they are not all that a pod needs
        read which ids pod u1 has (its file userns): they are not all that a pod needs
        read which ids pod u1 has (its file userns): some of them are the node's, or none at all
        read which ids pod u1 has (its file userns): some of them are the node's, or none at all
        read which ids pod u1 has (its file userns): users and groups differ
        ids of pod u1 are also those of pod first"#]]
    .assert_eq(&told.join("\n"));
}

#[test]
fn ids_of_a_pod_have_ids_of_the_node() {
    let mapping = IdMapping {
        host_id: 65536,
        container_id: 0,
        length: 65536,
    };
    let of = [0, 1000, 65535, 65536, u32::MAX].map(|id| mapping.on_node(id));
    assert_eq!(of, [Some(65536), Some(66536), Some(131_071), None, None]);
}

fn ids(of: &UserNamespace) -> std::ops::Range<u64> {
    u64::from(of.uids.host_id)..u64::from(of.uids.host_id) + u64::from(of.uids.length)
}

proptest! {
    /// Pods come and go, the agent is started again whenever it likes: what it knows is always what the records say.
    #[test]
    fn no_two_pods_have_an_id_in_common(steps in proptest::collection::vec((0_u8..30, any::<bool>()), 1..120)) {
        let mut disk: BTreeMap<String, String> = BTreeMap::new();
        let mut had: BTreeMap<String, UserNamespace> = BTreeMap::new();
        for (pod, comes) in steps {
            let uid = format!("u{pod}");
            if !comes {
                disk.remove(&uid);
                had.remove(&uid);
                continue;
            }
            let mut ranges = Ranges::default();
            for (uid, text) in &disk {
                ranges.record(uid, text).unwrap();
            }
            let given = ranges.give(&uid).unwrap();
            prop_assert_eq!(*had.entry(uid.clone()).or_insert(given), given, "it keeps what it has");
            disk.insert(uid, print(&given));
            let lowest = u64::from(given.uids.host_id) / 65536;
            prop_assert!(lowest <= disk.len() as u64 + 30, "ids are used again");
            prop_assert_eq!(given.uids, given.gids);
            let all: Vec<_> = had.values().map(ids).collect();
            for (at, one) in all.iter().enumerate() {
                prop_assert!(one.start >= 65536 && one.end <= u64::from(u32::MAX));
                let apart = |other: &std::ops::Range<u64>| one.end <= other.start || other.end <= one.start;
                prop_assert!(all[at + 1..].iter().all(apart));
            }
        }
    }

    /// Whatever a record says, it is taken or refused, and what is given away is nobody else's.
    #[test]
    fn hostile_records_cost_nobody_ids(text in ".{0,200}", host in any::<u32>(), length in any::<u32>()) {
        let mut ranges = Ranges::default();
        let _ = ranges.record("noise", &text);
        let list = format!(r#"[{{"hostId":{host},"containerId":0,"length":{length}}}]"#);
        let _ = ranges.record("odd", &format!(r#"{{"uidMappings":{list},"gidMappings":{list}}}"#));
        let odd = ranges.of("odd");
        match ranges.give("new") {
            Ok(given) => {
                let apart = odd.is_none_or(|odd| ids(&odd).end <= ids(&given).start || ids(&given).end <= ids(&odd).start);
                prop_assert!(apart);
            }
            Err(trouble) => prop_assert!(odd.is_some_and(|odd| odd.uids.length > u32::MAX - 3 * 65536), "{}", trouble),
        }
    }
}
