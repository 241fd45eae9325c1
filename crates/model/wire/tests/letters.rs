//! Any envelope survives being typed, and being written.

#![allow(clippy::unwrap_used)]

use expect_test::{Expect, expect};
use kedge_wire::{
    Ack, Body, ChangeVerb, Envelope, Group, Header, Letter, MessageId, NodeName, ObjectChange, ObjectKey,
    ObjectKind, Operation, RawRoute, Refusal, Reply, Request, Resource, ResourceVersion, Route, Source,
    ToCloud, ToEdge,
};
use proptest::prelude::*;

fn word(known: Vec<String>) -> impl Strategy<Value = String> {
    prop_oneof![8 => prop::sample::select(known), 1 => ".{0,8}"]
}

fn words<T: ToString>(known: &[T]) -> Vec<String> {
    known.iter().map(ToString::to_string).collect()
}

fn resource() -> impl Strategy<Value = String> {
    let key = (
        word(vec!["default".into(), "null".into()]),
        word(words(ObjectKind::KNOWN)),
        "[a-z-]{1,8}",
    );
    prop_oneof![
        4 => key.prop_map(|(namespace, kind, name)| format!("{namespace}/{kind}/{name}")),
        1 => prop::sample::select(vec![
            "node", "k8s/ca.crt", "membership", "membership/detail", "twin", "null", "watchapp/sync", "",
            "ignore/Application/ignore", "device/default/thermo/state/update", "default/podstatus",
        ]).prop_map(str::to_owned),
        1 => ".{0,12}",
    ]
}

fn route() -> impl Strategy<Value = RawRoute> {
    let source = word(words(Source::KNOWN));
    let group = word(words(Group::KNOWN));
    let operation = word(words(Operation::KNOWN));
    let destination = prop_oneof![6 => Just(String::new()), 1 => ".{1,4}"];
    (source, destination, group, operation, resource()).prop_map(
        |(source, destination, group, operation, resource)| RawRoute {
            source,
            destination,
            group,
            operation,
            resource,
        },
    )
}

fn header() -> impl Strategy<Value = Header> {
    (
        ".{0,8}",
        prop::option::of(".{1,8}"),
        any::<i64>(),
        prop::option::of(".{1,8}"),
        any::<bool>(),
        prop::option::of(".{1,8}"),
    )
        .prop_map(|(id, parent, timestamp_ms, version, sync, kind)| Header {
            id: MessageId::new(id),
            parent: parent.map(MessageId::new),
            timestamp_ms,
            resource_version: version.map(ResourceVersion::new),
            sync,
            kind,
        })
}

fn content() -> impl Strategy<Value = Body> {
    prop_oneof![
        Just(Body::null()),
        Just(Body::text("ping")),
        Just(Body::text("OK")),
        ".{0,20}".prop_map(|text| Body::text(&text)),
        any::<f64>().prop_map(|number| Body::from_value(&[number]).unwrap()),
    ]
}

fn envelope() -> impl Strategy<Value = Envelope> {
    (header(), route(), content()).prop_map(|(header, route, content)| Envelope {
        header,
        route,
        content,
    })
}

proptest! {
    #[test]
    fn sealing_what_an_edge_opened_gives_the_same_envelope(envelope in envelope()) {
        prop_assert_eq!(&ToEdge::open(envelope.clone()).seal(), &envelope);
    }

    #[test]
    fn sealing_what_the_cloud_opened_gives_the_same_envelope(envelope in envelope()) {
        prop_assert_eq!(&ToCloud::open(envelope.clone()).seal(), &envelope);
    }

    #[test]
    fn decoding_what_was_encoded_gives_the_same_envelope(envelope in envelope()) {
        prop_assert_eq!(&Envelope::decode(envelope.encode().as_bytes()).unwrap(), &envelope);
    }
}

fn header_of(id: &str) -> Header {
    Header::new(MessageId::new(id), 7)
}

fn check_to_cloud(message: ToCloud, expect: Expect) {
    let sealed = Letter {
        header: header_of("m"),
        message: message.clone(),
    }
    .seal();
    expect.assert_eq(sealed.encode().trim_end());
    assert_eq!(ToCloud::open(sealed).message, message);
}

fn check_to_edge(header: Header, message: ToEdge, acknowledged: bool, expect: Expect) {
    assert_eq!(message.needs_ack(), acknowledged);
    let sealed = Letter {
        header,
        message: message.clone(),
    }
    .seal();
    expect.assert_eq(sealed.encode().trim_end());
    assert_eq!(ToEdge::open(sealed).message, message);
}

fn web() -> ObjectKey {
    ObjectKey::namespaced(ObjectKind::Pod, "default", "web")
}

#[test]
fn an_edge_speaks_as_official_edges_do() {
    let edge = NodeName::new("edge-1").unwrap();
    let object = || Body::from_json("{}".to_owned()).unwrap();
    check_to_cloud(
        ToCloud::KeepAlive,
        expect![[
            r#"{"header":{"msg_id":"m","timestamp":7},"route":{"source":"websocket","group":"resource","operation":"keepalive","resource":"node"},"content":"ping"}"#
        ]],
    );
    check_to_cloud(
        ToCloud::Request(Request::query(ObjectKey::lease(&edge))),
        expect![[
            r#"{"header":{"msg_id":"m","timestamp":7},"route":{"source":"edged","group":"meta","operation":"query","resource":"kube-node-lease/lease/edge-1"},"content":null}"#
        ]],
    );
    check_to_cloud(
        ToCloud::Request(Request::insert(
            ObjectKey::cluster(ObjectKind::Node, "edge-1"),
            object(),
        )),
        expect![[
            r#"{"header":{"msg_id":"m","timestamp":7},"route":{"source":"edged","group":"meta","operation":"insert","resource":"null/node/edge-1"},"content":{}}"#
        ]],
    );
    check_to_cloud(
        ToCloud::Request(Request::patch_node_status(&edge, r#"{"status":{}}"#)),
        expect![[
            r#"{"header":{"msg_id":"m","timestamp":7},"route":{"source":"edged","group":"meta","operation":"patch","resource":"null/nodepatch/edge-1"},"content":"{\"status\":{}}"}"#
        ]],
    );
    check_to_cloud(
        ToCloud::Request(Request::patch_pod_status("default", "web", r#"{"a":"<&>"}"#)),
        expect![[
            r#"{"header":{"msg_id":"m","timestamp":7},"route":{"source":"edged","group":"meta","operation":"patch","resource":"default/podpatch/web"},"content":"{\"a\":\"<&>\"}"}"#
        ]],
    );
    check_to_cloud(
        ToCloud::Request(Request::delete(web(), object())),
        expect![[
            r#"{"header":{"msg_id":"m","timestamp":7},"route":{"source":"edged","group":"meta","operation":"delete","resource":"default/pod/web"},"content":{}}"#
        ]],
    );
    check_to_cloud(
        ToCloud::Request(Request::query_token("default", "builder", object())),
        expect![[
            r#"{"header":{"msg_id":"m","timestamp":7},"route":{"source":"edged","group":"meta","operation":"query","resource":"default/serviceaccounttoken/builder"},"content":{}}"#
        ]],
    );
    let change = ToEdge::Object(ObjectChange::from_edge_controller(
        ChangeVerb::Insert,
        web(),
        None,
        object(),
    ));
    check_to_cloud(
        ToCloud::Ack(Ack::of(MessageId::new("p"), &change)),
        expect![[
            r#"{"header":{"msg_id":"m","parent_msg_id":"p","timestamp":7},"route":{"source":"edgecontroller","group":"resource","operation":"response","resource":"default/pod/web"},"content":"OK"}"#
        ]],
    );
    check_to_cloud(
        ToCloud::Refusal(Refusal::of(MessageId::new("p"), &change, "disk full")),
        expect![[
            r#"{"header":{"msg_id":"m","parent_msg_id":"p","timestamp":7},"route":{"source":"metamanager","group":"resource","operation":"error","resource":"default/pod/web"},"content":"disk full"}"#
        ]],
    );
    check_to_cloud(
        ToCloud::Resume {
            body: Body::from_json("[]".to_owned()).unwrap(),
        },
        expect![[
            r#"{"header":{"msg_id":"m","timestamp":7},"route":{"source":"kedge","group":"hub","operation":"resume"},"content":[]}"#
        ]],
    );
}

#[test]
fn the_cloud_speaks_as_the_official_cloud_does() {
    let object = || Body::from_json("{}".to_owned()).unwrap();
    let version = || Some(ResourceVersion::new("9"));
    check_to_edge(
        header_of("m"),
        ToEdge::Object(ObjectChange::from_edge_controller(
            ChangeVerb::Insert,
            web(),
            version(),
            object(),
        )),
        true,
        expect![[
            r#"{"header":{"msg_id":"m","timestamp":7,"resourceversion":"9"},"route":{"source":"edgecontroller","group":"resource","operation":"insert","resource":"default/pod/web"},"content":{}}"#
        ]],
    );
    check_to_edge(
        header_of("m").answering(MessageId::new("q")),
        ToEdge::Reply(Reply::response(Resource::Object(web()), None, Body::text("OK"))),
        false,
        expect![[
            r#"{"header":{"msg_id":"m","parent_msg_id":"q","timestamp":7},"route":{"source":"edgecontroller","group":"resource","operation":"response","resource":"default/pod/web"},"content":"OK"}"#
        ]],
    );
    check_to_edge(
        header_of("m").answering(MessageId::new("q")),
        ToEdge::Reply(Reply::error(Resource::Object(web()), "no such pod")),
        false,
        expect![[
            r#"{"header":{"msg_id":"m","parent_msg_id":"q","timestamp":7},"route":{"source":"edgecontroller","group":"resource","operation":"error","resource":"default/pod/web"},"content":"no such pod"}"#
        ]],
    );
}

#[test]
fn only_the_type_decides_what_is_acknowledged() {
    let change = |verb, kind, namespace: &str, name: &str| {
        let key = ObjectKey::namespaced(kind, namespace, name);
        ToEdge::Object(ObjectChange::from_edge_controller(verb, key, None, Body::null())).needs_ack()
    };
    let reply = |kind, version: Option<&str>| {
        let resource = Resource::Object(ObjectKey::namespaced(kind, "default", "x"));
        let body = Body::from_json("{}".to_owned()).unwrap();
        ToEdge::Reply(Reply::response(resource, version.map(ResourceVersion::new), body)).needs_ack()
    };
    assert!(change(
        ChangeVerb::Update,
        ObjectKind::ConfigMap,
        "default",
        "membership-config"
    ));
    assert!(change(ChangeVerb::Update, ObjectKind::Pod, "podlist", "twin"));
    assert!(change(
        ChangeVerb::Delete,
        ObjectKind::Secret,
        "default",
        "serviceaccounttoken"
    ));
    assert!(change(ChangeVerb::Update, ObjectKind::Node, "null", "edge-1"));
    assert!(!change(ChangeVerb::Delete, ObjectKind::Node, "null", "edge-1"));
    assert!(!change(
        ChangeVerb::Update,
        ObjectKind::Lease,
        "kube-node-lease",
        "edge-1"
    ));
    assert!(reply(ObjectKind::ConfigMap, Some("9")));
    assert!(!reply(ObjectKind::ConfigMap, None));
    assert!(!reply(ObjectKind::Lease, Some("9")));
    assert!(!reply(ObjectKind::Pod, Some("9")));
    assert!(!reply(ObjectKind::PodPatch, Some("9")));

    let jobs = Route::new(
        Source::TaskManager,
        Group::TaskManager,
        Operation::Upgrade,
        Resource::Other("x".into()),
    );
    assert!(
        !ToEdge::Task {
            route: jobs,
            body: Body::null()
        }
        .needs_ack()
    );
}
