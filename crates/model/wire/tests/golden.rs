//! The recorded traffic of the official peers: every line is understood and written back.

#![allow(clippy::unwrap_used)]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use expect_test::expect;
use kedge_wire::tunnel::{Connect, Frame, FrameBody};
use kedge_wire::{Body, Envelope, ObjectResponse, Reply, Resource, ToCloud, ToEdge};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

#[derive(Deserialize)]
struct Line {
    dir: String,
    #[serde(default)]
    text: String,
    #[serde(default)]
    base64: String,
}

fn lines(file: &str) -> Vec<Line> {
    let path = format!(
        "{}/../../../test/fixtures/vectors/{file}",
        env!("CARGO_MANIFEST_DIR")
    );
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {path}: {error}"));
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &Line| line.dir != "edge-headers")
        .collect()
}

fn summary(counts: BTreeMap<String, usize>) -> String {
    counts.iter().fold(String::new(), |mut out, (what, count)| {
        writeln!(out, "{what}: {count}").unwrap();
        out
    })
}

fn to_edge_family(message: &ToEdge) -> String {
    let ack = if message.needs_ack() { ", acknowledged" } else { "" };
    let family = match message {
        ToEdge::Object(change) => format!("Object {:?} {}", change.verb, change.key.kind),
        ToEdge::Reply(Reply { route, .. }) => match &route.resource {
            Resource::Object(key) => format!("Reply {} about {}", route.operation, key.kind),
            other => format!("Reply {} about {other}", route.operation),
        },
        ToEdge::Twin { route, .. } => format!("Twin {}", route.operation),
        ToEdge::User { .. } => "User".to_owned(),
        ToEdge::Task { .. } => "Task".to_owned(),
        ToEdge::Volume { .. } => "Volume".to_owned(),
        ToEdge::Resumed => "Resumed".to_owned(),
        ToEdge::Other { route, .. } => format!("Other {route}"),
    };
    format!("to edge:  {family}{ack}")
}

fn to_cloud_family(message: &ToCloud) -> String {
    let family = match message {
        ToCloud::KeepAlive => "KeepAlive".to_owned(),
        ToCloud::Ack(_) => "Ack".to_owned(),
        ToCloud::Refusal(_) => "Refusal".to_owned(),
        ToCloud::Request(request) => format!("Request {} {}", request.route.operation, request.key.kind),
        ToCloud::Resume { .. } => "Resume".to_owned(),
        ToCloud::KubernetesCa { .. } => "KubernetesCa".to_owned(),
        ToCloud::Twin { route, .. } => format!("Twin {}", route.operation),
        ToCloud::Application { .. } => "Application".to_owned(),
        ToCloud::Upload { .. } => "Upload".to_owned(),
        ToCloud::Task { .. } => "Task".to_owned(),
        ToCloud::Volume { .. } => "Volume".to_owned(),
        ToCloud::Other { route, .. } => format!("Other {route}"),
    };
    format!("to cloud: {family}")
}

#[test]
fn every_recorded_hub_message_is_typed_and_written_back_byte_for_byte() {
    let mut counts = BTreeMap::new();
    let mut same_bytes = 0;
    let lines = lines("hub.jsonl");
    for line in &lines {
        let envelope = Envelope::decode(line.text.as_bytes()).unwrap();
        let encoded = envelope.encode();
        let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(json(&encoded), json(&line.text));
        same_bytes += usize::from(encoded == line.text);

        let (family, sealed) = match line.dir.as_str() {
            "cloud->edge" => {
                let letter = ToEdge::open(envelope.clone());
                (to_edge_family(&letter.message), letter.seal())
            }
            "edge->cloud" => {
                let letter = ToCloud::open(envelope.clone());
                (to_cloud_family(&letter.message), letter.seal())
            }
            other => panic!("unknown direction {other}"),
        };
        assert_eq!(sealed, envelope);
        *counts.entry(family).or_default() += 1;
    }
    expect![[r#"
        to cloud: Ack: 74
        to cloud: Application: 5
        to cloud: KeepAlive: 3
        to cloud: Request delete pod: 5
        to cloud: Request insert node: 1
        to cloud: Request patch nodepatch: 2
        to cloud: Request patch podpatch: 35
        to cloud: Request query configmap: 3
        to cloud: Request query lease: 1
        to cloud: Request query secret: 1
        to cloud: Request query serviceaccounttoken: 5
        to cloud: Request update lease: 3
        to cloud: Twin get: 4
        to cloud: Twin update: 3
        to cloud: Upload: 2
        to edge:  Object Delete configmap, acknowledged: 1
        to edge:  Object Delete device, acknowledged: 1
        to edge:  Object Delete devicemodel, acknowledged: 1
        to edge:  Object Delete pod, acknowledged: 15
        to edge:  Object Insert device, acknowledged: 1
        to edge:  Object Insert devicemodel, acknowledged: 1
        to edge:  Object Update configmap, acknowledged: 2
        to edge:  Object Update device, acknowledged: 1
        to edge:  Object Update node, acknowledged: 2
        to edge:  Object Update pod, acknowledged: 51
        to edge:  Reply applicationResponse about ignore/Application/ignore: 4
        to edge:  Reply applicationResponse about watchapp/sync: 1
        to edge:  Reply response about configmap, acknowledged: 3
        to edge:  Reply response about lease: 3
        to edge:  Reply response about node: 1
        to edge:  Reply response about nodepatch: 2
        to edge:  Reply response about pod: 5
        to edge:  Reply response about podpatch: 35
        to edge:  Reply response about secret, acknowledged: 1
        to edge:  Reply response about serviceaccounttoken: 5
        to edge:  Twin response: 3
        to edge:  Twin update: 2
        288 of 288 with the same bytes
    "#]]
    .assert_eq(&format!(
        "{}{same_bytes} of {} with the same bytes\n",
        summary(counts),
        lines.len()
    ));
}

#[test]
fn every_recorded_object_response_is_an_object_or_a_reason() {
    let mut counts = BTreeMap::new();
    for line in lines("hub.jsonl") {
        let envelope = Envelope::decode(line.text.as_bytes()).unwrap();
        if !envelope.content.json().starts_with(r#"{"Object":"#) {
            continue;
        }
        let kind = envelope
            .route
            .resource
            .split('/')
            .nth(1)
            .unwrap_or_default()
            .to_owned();
        let result = match ObjectResponse::read(&envelope.content) {
            Ok(object) => {
                assert!(object.object_meta().unwrap().resource_version.is_some());
                assert_eq!(ObjectResponse::ok(object).to_body(), envelope.content);
                "object".to_owned()
            }
            Err(status) => status.to_string(),
        };
        *counts.entry(format!("{kind} is {result}")).or_default() += 1;
    }
    expect![[r#"
        lease is object: 3
        node is nodes "goedge" already exists (409 AlreadyExists): 1
        nodepatch is object: 2
        podpatch is object: 35
    "#]]
    .assert_eq(&summary(counts));
}

#[test]
fn every_recorded_tunnel_frame_is_typed_and_written_back_byte_for_byte() {
    let mut counts = BTreeMap::new();
    for line in lines("tunnel.jsonl") {
        let bytes = STANDARD.decode(line.base64).unwrap();
        let frame = Frame::decode(&bytes).unwrap();
        assert_eq!(frame.encode(), bytes);
        let family = match &frame.body {
            FrameBody::LogsConnect(data) => connect("logs", data),
            FrameBody::ExecConnect(data) => connect("exec", data),
            FrameBody::MetricsConnect(data) => connect("metrics", data),
            FrameBody::AttachConnect(data) => connect("attach", data),
            FrameBody::Data(_) => "data".to_owned(),
            FrameBody::Remove => "remove".to_owned(),
            FrameBody::Close(_) => "close".to_owned(),
            FrameBody::Window(_) => panic!("an official peer knows no windows"),
        };
        *counts.entry(format!("{} {family}", line.dir)).or_default() += 1;
    }
    expect![[r#"
        cloud->edge data: 36
        cloud->edge exec /exec/default/web-5fc8d484f-knxvb/c?command=%2Fbin%2Fcat&error=1&input=1&output=1: 1
        cloud->edge exec /exec/default/web-5fc8d484f-knxvb/c?command=%2Fbin%2Fecho&command=exec-ok&error=1&output=1: 1
        cloud->edge exec /exec/default/web-5fc8d484f-knxvb/c?command=%2Fbin%2Fsh&command=-c&command=exit+3&error=1&output=1: 1
        cloud->edge logs /containerLogs/default/web-5fc8d484f-knxvb/c?tailLines=2: 1
        cloud->edge metrics /stats/summary?: 1
        cloud->edge remove: 5
        edge->cloud data: 49
        edge->cloud remove: 5
    "#]].assert_eq(&summary(counts));
}

fn connect(what: &str, data: &[u8]) -> String {
    let connect = Connect::decode(data).unwrap();
    let json = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
    assert_eq!(json(&connect.encode()), json(data));
    format!("{what} {}?{}", connect.url.path, connect.url.raw_query)
}

#[test]
fn numbers_in_a_body_keep_their_digits() {
    let numbers = "[18446744073709551615,-9223372036854775808,1.10,1e400,0.1234567890123456789]";
    let text = format!(r#"{{"header":{{"msg_id":"m","timestamp":1}},"route":{{}},"content":{numbers}}}"#);
    let envelope = Envelope::decode(text.as_bytes()).unwrap();
    assert_eq!(envelope.content, Body::from_json(numbers.to_owned()).unwrap());
    assert_eq!(envelope.encode().trim_end(), text);
}
