//! Stories of one node's lease: what the edge is told, and what is written when.

// Every line here is test code, where a panic is the report.
#![allow(clippy::unwrap_used)]

use expect_test::{Expect, expect};
use kedge_placement::leases::{Found, LEASE_WRITE_INTERVAL, LEASE_WRITE_JITTER_MAX, Lease, Write, Written};
use kedge_placement::report::ApiCall;
use kedge_wire::{Body, NodeName, ObjectKey, Operation, Request, ResourceVersion, Time, Uid};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::time::Duration;

const START_MS: u64 = 1_000_000;

/// Each line: a second, and what happens then: `query`, `insert`, `update`; `done`, `absent`, `exists`, `failed`,
/// `failed <seconds>` for what the API asked to wait; `end` of the session; `-` for nothing. A renewal's time is its
/// second. After each line the write that is due is made.
fn check(story: &str, expect: Expect) {
    let node = NodeName::new("edge-1").unwrap();
    let mut lease = Lease::new(0);
    let mut told = String::new();
    for line in story.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let seconds: u64 = words[0].parse().unwrap();
        let now = Time::from_ms(START_MS + seconds * 1000);
        write!(told, "{line:<12}").unwrap();
        let failed = |retry_after| Written::Failed { retry_after };
        match words[1..] {
            ["-"] => {}
            ["done"] => {
                let (uid, version) = (Uid::new("api-uid"), ResourceVersion::new(words[0]));
                lease.handle_written(Written::Done { uid, version }, now);
            }
            ["absent"] => lease.handle_written(Written::Absent, now),
            ["exists"] => lease.handle_written(Written::Exists, now),
            ["failed"] => lease.handle_written(failed(None), now),
            ["failed", wait] => {
                let wait = Duration::from_secs(wait.parse().unwrap());
                lease.handle_written(failed(Some(wait)), now);
            }
            ["end"] => {
                let last = lease.last_write(now);
                write!(
                    told,
                    " {}",
                    last.map_or("nothing".into(), |write| show(write, &node))
                )
                .unwrap();
            }
            [operation] => {
                let operation = Operation::parse(operation);
                let body = if operation == Operation::Query {
                    Body::null()
                } else {
                    renewal(seconds)
                };
                let request = Request::from_edged(operation, ObjectKey::lease(&node), body);
                match lease.handle_request(&node, &request, now) {
                    Ok(renewed) => {
                        let object: Value = renewed.lease.parse().unwrap();
                        let meta = &object["metadata"];
                        let known = format!("{}@{}", meta["uid"], meta["resourceVersion"]);
                        let saved = if renewed.saved { ", one write saved" } else { "" };
                        write!(told, " -> {} {known}{saved}", object["spec"]["renewTime"]).unwrap();
                    }
                    Err(status) => write!(told, " -> {status}").unwrap(),
                }
            }
            _ => panic!("the story has no word {line:?}"),
        }
        if let Some(write) = lease.poll_write(now) {
            write!(told, " | {}", show(write, &node)).unwrap();
        } else if let Some(at) = lease.poll_timeout() {
            let ms = at.since(Time::from_ms(START_MS)).as_millis();
            write!(told, " | waits until {}.{:03}", ms / 1000, ms % 1000).unwrap();
        }
        told.push('\n');
    }
    expect.assert_eq(&told);
}

fn renewal(second: u64) -> Body {
    let lease = json!({
        "metadata": {"name": "edge-1", "namespace": "kube-node-lease", "uid": "edge-uid", "resourceVersion": "old",
                     "creationTimestamp": "2026-01-01T00:00:00Z", "managedFields": [{"manager": "cloudcore"}],
                     "ownerReferences": [{"kind": "Node", "uid": "node-of-the-past"}]},
        "spec": {"holderIdentity": "edge-1", "leaseDurationSeconds": 40, "renewTime": second},
    });
    Body::from_value(&lease).unwrap()
}

fn show(write: Write, node: &NodeName) -> String {
    match write.call(node, Some(&Uid::new("node-uid"))) {
        ApiCall::MergePatch { path, body } => {
            assert!(path.ends_with("/leases/edge-1"));
            format!("merge {body}")
        }
        ApiCall::Create { body, .. } => format!("create {}", body.json()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_renewal_is_answered_and_the_newest_written_in_time() {
    check(
        "0 query
         0 insert
         1 done
         10 update
         20 update
         25 -
         26 done
         30 update
         40 update
         49 update
         50 -
         51 done
         300 -
         301 update",
        expect![[r#"
            0 query      -> leases "edge-1" not found (404 NotFound)
            0 insert     -> 0 "edge-uid"@"old" | merge {"spec":{"holderIdentity":"edge-1","leaseDurationSeconds":40,"renewTime":0}}
            1 done      
            10 update    -> 10 "api-uid"@"1" | waits until 25.000
            20 update    -> 20 "api-uid"@"1", one write saved | waits until 25.000
            25 -         | merge {"spec":{"holderIdentity":"edge-1","leaseDurationSeconds":40,"renewTime":20}}
            26 done     
            30 update    -> 30 "api-uid"@"26" | waits until 50.000
            40 update    -> 40 "api-uid"@"26", one write saved | waits until 50.000
            49 update    -> 49 "api-uid"@"26", one write saved | waits until 50.000
            50 -         | merge {"spec":{"holderIdentity":"edge-1","leaseDurationSeconds":40,"renewTime":49}}
            51 done     
            300 -       
            301 update   -> 301 "api-uid"@"51" | merge {"spec":{"holderIdentity":"edge-1","leaseDurationSeconds":40,"renewTime":301}}
        "#]],
    );
}

#[test]
fn a_slow_write_is_followed_by_the_newest() {
    check(
        "0 update
         10 update
         20 update
         21 done
         25 -
         26 done
         30 query",
        expect![[r#"
            0 update     -> 0 "edge-uid"@"old" | merge {"spec":{"holderIdentity":"edge-1","leaseDurationSeconds":40,"renewTime":0}}
            10 update    -> 10 "edge-uid"@"old"
            20 update    -> 20 "edge-uid"@"old", one write saved
            21 done      | waits until 25.000
            25 -         | merge {"spec":{"holderIdentity":"edge-1","leaseDurationSeconds":40,"renewTime":20}}
            26 done     
            30 query     -> 20 "api-uid"@"26"
        "#]],
    );
}

#[test]
fn without_an_api_every_renewal_is_answered_and_the_newest_written_when_it_is_back() {
    check(
        "0 update
         1 failed
         2 failed
         3 failed
         10 update
         11 failed 30
         20 update
         25 failed 3
         26 -
         28 -
         29 done",
        expect![[r#"
            0 update     -> 0 "edge-uid"@"old" | merge {"spec":{"holderIdentity":"edge-1","leaseDurationSeconds":40,"renewTime":0}}
            1 failed     | waits until 1.500
            2 failed     | merge {"spec":{"holderIdentity":"edge-1","leaseDurationSeconds":40,"renewTime":0}}
            3 failed     | waits until 4.000
            10 update    -> 10 "edge-uid"@"old", one write saved | merge {"spec":{"holderIdentity":"edge-1","leaseDurationSeconds":40,"renewTime":10}}
            11 failed 30 | waits until 26.000
            20 update    -> 20 "edge-uid"@"old", one write saved | waits until 26.000
            25 failed 3  | waits until 26.000
            26 -         | merge {"spec":{"holderIdentity":"edge-1","leaseDurationSeconds":40,"renewTime":20}}
            28 -        
            29 done     
        "#]],
    );
}

#[test]
fn a_lease_that_is_not_there_is_created_for_the_node_that_is() {
    check(
        "0 update
         1 absent
         2 exists
         3 -
         4 absent
         5 done
         10 update",
        expect![[r#"
            0 update     -> 0 "edge-uid"@"old" | merge {"spec":{"holderIdentity":"edge-1","leaseDurationSeconds":40,"renewTime":0}}
            1 absent     | create {"metadata":{"name":"edge-1","namespace":"kube-node-lease","ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"edge-1","uid":"node-uid"}]},"spec":{"holderIdentity":"edge-1","leaseDurationSeconds":40,"renewTime":0},"kind":"Lease","apiVersion":"coordination.k8s.io/v1"}
            2 exists     | waits until 2.500
            3 -          | merge {"spec":{"holderIdentity":"edge-1","leaseDurationSeconds":40,"renewTime":0}}
            4 absent     | waits until 4.500
            5 done       | create {"metadata":{"name":"edge-1","namespace":"kube-node-lease","ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"edge-1","uid":"node-uid"}]},"spec":{"holderIdentity":"edge-1","leaseDurationSeconds":40,"renewTime":0},"kind":"Lease","apiVersion":"coordination.k8s.io/v1"}
            10 update    -> 10 "edge-uid"@"old"
        "#]],
    );
}

#[test]
fn an_edge_that_starts_asks_the_api_and_a_new_lease_is_created_at_once() {
    let node = NodeName::new("edge-1").unwrap();
    let now = Time::from_ms(START_MS);
    let query = Request::query(ObjectKey::lease(&node));
    let mut told = String::new();
    for found in [Found::Lease(renewal(7)), Found::Absent, Found::Nothing] {
        let mut lease = Lease::new(0);
        assert!(lease.must_ask(&node, &query));
        let answer = match lease.handle_found(&node, found) {
            Ok(found) => found.object_meta().unwrap().uid.unwrap().to_string(),
            Err(status) => status.to_string(),
        };
        let update = Request::update(ObjectKey::lease(&node), renewal(9));
        lease.handle_request(&node, &update, now).unwrap();
        assert!(!lease.must_ask(&node, &query));
        let write = show(lease.poll_write(now).unwrap(), &node);
        writeln!(told, "{answer}; then {write}").unwrap();
    }
    expect![[r#"
        edge-uid; then merge {"spec":{"holderIdentity":"edge-1","leaseDurationSeconds":40,"renewTime":9}}
        leases "edge-1" not found (404 NotFound); then create {"metadata":{"name":"edge-1","namespace":"kube-node-lease","ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"edge-1","uid":"node-uid"}]},"spec":{"holderIdentity":"edge-1","leaseDurationSeconds":40,"renewTime":9},"kind":"Lease","apiVersion":"coordination.k8s.io/v1"}
        leases "edge-1" not found (404 NotFound); then merge {"spec":{"holderIdentity":"edge-1","leaseDurationSeconds":40,"renewTime":9}}
    "#]].assert_eq(&told);
}

#[test]
fn the_end_of_a_session_writes_what_waits() {
    check(
        "0 end
         0 update
         1 done
         2 end
         10 update
         11 end
         12 end",
        expect![[r#"
            0 end        nothing
            0 update     -> 0 "edge-uid"@"old" | merge {"spec":{"holderIdentity":"edge-1","leaseDurationSeconds":40,"renewTime":0}}
            1 done      
            2 end        nothing
            10 update    -> 10 "api-uid"@"1" | waits until 25.000
            11 end       merge {"spec":{"holderIdentity":"edge-1","leaseDurationSeconds":40,"renewTime":10}}
            12 end       nothing
        "#]],
    );
}

#[test]
fn what_is_no_renewal_of_this_node_is_refused() {
    let node = NodeName::new("edge-1").unwrap();
    let mut lease = Lease::new(0);
    let now = Time::from_ms(START_MS);
    let key = |text: &str| ObjectKey::parse(text).unwrap();
    let own = || ObjectKey::lease(&node);
    let body = |json: Value| Body::from_value(&json).unwrap();
    let mut told = String::new();
    for (operation, key, json) in [
        (Operation::Query, key("kube-node-lease/lease/edge-2"), Value::Null),
        (Operation::Update, key("default/lease/edge-1"), Value::Null),
        (Operation::Delete, own(), Value::Null),
        (Operation::Update, own(), json!("text")),
        (Operation::Update, own(), json!({"spec": {}})),
        (
            Operation::Update,
            own(),
            json!({"metadata": {"name": "edge-2"}, "spec": {}}),
        ),
        (Operation::Insert, own(), json!({"metadata": {"name": "edge-1"}})),
    ] {
        let request = Request::from_edged(operation, key, body(json));
        let status = lease.handle_request(&node, &request, now).unwrap_err();
        writeln!(told, "{status}").unwrap();
    }
    assert_eq!(lease.poll_write(now), None);
    expect![[r#"
        edge-1 may not query kube-node-lease/lease/edge-2: it is the lease of another node (403 Forbidden)
        edge-1 may not update default/lease/edge-1: it is the lease of another node (403 Forbidden)
        edge-1 asked to delete its lease, which is not served: this kind has no such operation (400 BadRequest)
        edge-1 asked to update its lease, but its body is not a JSON object (400 BadRequest)
        edge-1 asked to update its lease, but its body has no metadata (400 BadRequest)
        edge-1 asked to update its lease, but its body names another lease (400 BadRequest)
        edge-1 asked to insert its lease, but its body has no spec (400 BadRequest)
    "#]].assert_eq(&told);
}

#[test]
fn the_interval_of_a_node_stays_under_the_grace_of_the_node_controller() {
    let node = NodeName::new("edge-1").unwrap();
    for seed in [0, 1, 4999, 5000, u64::MAX] {
        let mut lease = Lease::new(seed);
        let mut at = Time::from_ms(START_MS);
        let request = Request::update(ObjectKey::lease(&node), renewal(0));
        lease.handle_request(&node, &request, at).unwrap();
        let mut calls = 0;
        for second in 0..600 {
            at = Time::from_ms(START_MS + second * 1000);
            if second % 10 == 0 {
                lease.handle_request(&node, &request, at).unwrap();
            }
            if lease.poll_write(at).is_some() {
                calls += 1;
                let (uid, version) = (Uid::new("u"), ResourceVersion::new("1"));
                lease.handle_written(Written::Done { uid, version }, at);
            }
        }
        // Ten minutes: at most 3 a minute, and never so few that a node would seem dead.
        assert!((24..=30).contains(&calls), "{calls} writes with seed {seed}");
    }
    assert!(LEASE_WRITE_INTERVAL + Duration::from_secs(10) < Duration::from_secs(40));
    assert!(LEASE_WRITE_JITTER_MAX < LEASE_WRITE_INTERVAL);
}
