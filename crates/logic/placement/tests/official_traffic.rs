//! Everything that a recorded official edge asked for is something that it may ask for.

// Every line here is test code, where a panic is the report.
#![allow(clippy::unwrap_used)]

use expect_test::expect;
use kedge_placement::index::Standing;
use kedge_placement::leases::Lease;
use kedge_placement::report::{ApiCall, Verdict, judge};
use kedge_wire::{Envelope, NodeName, ObjectKind, Request, Time, ToCloud, Uid};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;

fn requests() -> Vec<Request> {
    let path = format!(
        "{}/../../../test/fixtures/vectors/hub.jsonl",
        env!("CARGO_MANIFEST_DIR")
    );
    let recorded = std::fs::read_to_string(path).unwrap();
    let lines = recorded
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let said = lines.filter(|line| line["dir"] == "edge->cloud");
    let messages = said.map(|line| Envelope::decode(line["text"].as_str().unwrap().as_bytes()).unwrap());
    let requests = messages.filter_map(|envelope| match ToCloud::open(envelope).message {
        ToCloud::Request(request) => Some(request),
        _another_family => None,
    });
    requests.collect()
}

/// What the index would say: the pod is placed, and it is the one that the edge means.
fn standing(request: &Request) -> Standing {
    let patch: Value = serde_json::from_str(&request.body.content_data()).unwrap_or_default();
    Standing {
        allowed: true,
        uid: patch["metadata"]["uid"].as_str().map(Uid::new),
        node: None,
    }
}

#[test]
fn a_recorded_official_edge_is_refused_nothing() {
    let node = NodeName::new("goedge").unwrap();
    let mut lease = Lease::new(0);
    let mut counted: BTreeMap<String, usize> = BTreeMap::new();
    for request in requests() {
        let verdict = match request.key.kind == ObjectKind::Lease {
            true if lease.must_ask(&node, &request) => "asked of the API".to_owned(),
            true => match lease.handle_request(&node, &request, Time::from_ms(1)) {
                Ok(_) => "answered here".to_owned(),
                Err(status) => status.to_string(),
            },
            false => describe(judge(&node, &request, &standing(&request))),
        };
        let line = format!(
            "{} {}: {verdict}",
            request.route.operation,
            request.key.kind.as_str()
        );
        *counted.entry(line).or_default() += 1;
    }
    let mut told = String::new();
    for (line, number) in counted {
        writeln!(told, "{number} {line}").unwrap();
    }
    expect![[r#"
        5 delete pod: DELETE -> Ok
        1 insert node: POST -> ObjectResponse
        2 patch nodepatch: PATCH strategic -> ObjectResponse
        35 patch podpatch: PATCH strategic -> ObjectResponse
        3 query configmap: GET -> Raw
        1 query lease: asked of the API
        1 query secret: GET -> Raw
        5 query serviceaccounttoken: POST -> Raw
        3 update lease: answered here
    "#]]
    .assert_eq(&told);
}

fn describe(verdict: Verdict) -> String {
    let name = |call: &ApiCall| match call {
        ApiCall::Get { .. } => "GET",
        ApiCall::Create { .. } => "POST",
        ApiCall::Update { .. } => "PUT",
        ApiCall::StrategicPatch { .. } => "PATCH strategic",
        ApiCall::MergePatch { .. } => "PATCH merge",
        ApiCall::Delete { .. } => "DELETE",
    };
    match verdict {
        Verdict::Call { call, shape } => format!("{} -> {shape:?}", name(&call)),
        Verdict::CallThenCheck { call, shape, owner } => format!("{} -> {shape:?} if {owner:?}", name(&call)),
        Verdict::Settled => "settled".to_owned(),
        Verdict::Refused(status) => format!("refused: {status}"),
        Verdict::Forbidden(why) | Verdict::Unsupported(why) => why,
    }
}
