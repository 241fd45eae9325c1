//! Compatibility with the official peers, proven with their recorded traffic (`test/fixtures/vectors`): an official
//! EdgeCore is played against our CloudCore, and an official CloudCore against our EdgeCore, over real TLS.

// Every line here is test code, where a panic is the report.
#![allow(clippy::unwrap_used)]

mod support;

use kedge_config::{EdgeCore, EdgeFacts};
use kedge_pki::IdentityFiles;
use kedge_runtime::{Hollow, Runtime as _};
use kedge_telemetry::Scope;
use kedge_transport::Plug;
use kedge_wire::{Body, Envelope};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use support::official_cloud::OfficialCloud;
use support::official_edge::OfficialEdge;
use support::play::{Difference, Play, SILENCE};
use support::recording::{NODE, Recording, content, object_of};
use support::shape::{push_shape, shape};
use support::world::{DRAIN_DEADLINE, World};

/// Where our cloud is meant to differ. Each must be met: one that is not has outlived its reason.
const DIFFERENCES: &[Difference] = &[
    Difference {
        recorded: "dynamiccontroller resource applicationResponse",
        ours: SILENCE,
        why: "there is no dynamic controller yet: after 10 s the local API of an edge goes on without the cloud",
    },
    Difference {
        recorded: "devicecontroller twin response twin",
        ours: SILENCE,
        why: "there is no device controller yet: an official edge keeps its reports and says them again each minute",
    },
    Difference {
        recorded: "devicecontroller",
        ours: SILENCE,
        why: "there is no device controller yet, so no device is pushed",
    },
    Difference {
        recorded: "edgecontroller resource delete pod versioned",
        ours: "edgecontroller resource delete pod",
        why: "a delete says name and uid as the official sync controller says it: the last object may be unknown here",
    },
    Difference {
        recorded: "edgecontroller resource delete configmap versioned",
        ours: "edgecontroller resource delete configmap",
        why: "as for pods; it also comes when no pod of the node uses the object any more, not only when it is deleted",
    },
];

/// Pushes of official clouds (protocol, section 3.6) that did not occur while they were recorded.
const NOT_RECORDED: &[&str] = &[
    "edgecontroller resource put secret versioned",
    "edgecontroller resource delete secret",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_official_edge_finds_our_cloud_as_it_knows_clouds() {
    let (recording, world) = (Recording::read(), World::start().await);
    let mut play = Play::begin(&recording, &world, DIFFERENCES, NOT_RECORDED).await;
    play.run().await;
    play.compare_pushes();
    assert!(play.compared > 50, "only {} answers were compared", play.compared);
    play.repeat_deletes().await;
    assert!(play.complaints.is_empty(), "{}", play.complaints.join("\n"));
    for difference in DIFFERENCES {
        assert!(
            play.met.contains(difference.why),
            "never met: {} ({})",
            difference.recorded,
            difference.why
        );
    }
    play.edge.disconnect().await;
    assert!(
        world.scope.drain(DRAIN_DEADLINE).await.left.is_empty(),
        "the cloud drains"
    );
}

/// The recorded edge was known to its cloud; this one comes for the first time, with the same messages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_cloud_registers_an_official_edge() {
    let (recording, world) = (Recording::read(), World::start().await);
    let mut edge = OfficialEdge::join(&world, "fresh").await;
    edge.map(NODE, "fresh");
    edge.connect(&world).await;
    let said = |operation: &str, kind: &str| {
        let is = |envelope: &&Envelope| {
            envelope.route.operation == operation
                && object_of(envelope).is_some_and(|object| object.1 == kind)
        };
        recording.to_cloud().find(is).unwrap().clone()
    };
    let (lease, mut first_lease) = (content(&said("update", "lease")), said("update", "lease"));
    let new = json!({"metadata": {"name": NODE, "namespace": "kube-node-lease"}, "spec": lease["spec"]});
    (first_lease.route.operation, first_lease.content) = ("insert".into(), Body::from_value(&new).unwrap());
    let story = [
        (said("query", "lease"), "lease {Err,Object} 404 \"NotFound\""),
        (said("insert", "node"), "node {Err,Object}"),
        (first_lease, "lease {Err,Object}"),
        (said("patch", "nodepatch"), "nodepatch versioned {Err,Object}"),
    ];
    for (message, wanted) in story {
        edge.say(&message).await;
        let answer = edge
            .answer(recording.answer_to(&message.header.id).unwrap())
            .await;
        assert_eq!(
            shape(&answer),
            format!("edgecontroller resource response {wanted}")
        );
    }
    let pushed = edge.pushed("null/node/fresh", |_| true).await;
    assert_eq!(push_shape(&pushed), "edgecontroller resource put node versioned");
    edge.disconnect().await;
    assert!(
        world.scope.drain(DRAIN_DEADLINE).await.left.is_empty(),
        "the cloud drains"
    );
}

/// Our edge, with the certificate it would have got.
async fn start_edge(cloud: &OfficialCloud, dir: &Path, scope: &Scope) -> Arc<Hollow> {
    let files = IdentityFiles {
        authority: dir.join("ca.crt"),
        certificate: dir.join("server.crt"),
        key: dir.join("server.key"),
    };
    std::fs::create_dir_all(dir).unwrap();
    files.save(&cloud.identity).unwrap();
    let yaml = format!(
        "database: {{dataSource: {dir}/edgecore.db}}
modules:
  edgeHub:
    httpServer: https://127.0.0.1:1
    websocket: {{server: '{hub}'}}
    tlsCaFile: {dir}/ca.crt
    tlsCertFile: {dir}/server.crt
    tlsPrivateKeyFile: {dir}/server.key
  edgeStream: {{enable: false}}
  edged:
    hostnameOverride: {NODE}
    rootDirectory: {dir}/kubelet
    tailoredKubeletConfig: {{containerRuntimeEndpoint: 'kedge://hollow', podLogsDir: {dir}/logs}}
",
        dir = dir.display(),
        hub = cloud.address(),
    );
    let facts = EdgeFacts {
        hostname: NODE.into(),
        primary_ip: "127.0.0.1".into(),
    };
    let (config, _) = EdgeCore::from_yaml(&yaml, &facts).unwrap();
    let runtime = Arc::new(Hollow::new());
    kedge_edgecore::wiring::start(config, runtime.clone(), Plug::new(), scope)
        .await
        .unwrap();
    runtime
}

/// What the cloud knows of the node before the edge comes.
enum Node {
    New,
    /// As recorded: node and lease are there, and the edge starts with an empty store.
    Known,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_official_cloud_takes_our_edge_for_an_official_one() {
    our_edge(Node::Known, "known").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_official_cloud_registers_our_edge() {
    our_edge(Node::New, "new").await;
}

async fn our_edge(node: Node, name: &str) {
    let recording = Recording::read();
    let dir = std::env::temp_dir().join(format!("kedge-official-{name}-{}", std::process::id()));
    let mut cloud = OfficialCloud::start().await;
    let recorded = |resource: &str| content(recording.pushes_of(resource).next().unwrap());
    match node {
        Node::New => {}
        Node::Known => {
            let lease = recording
                .to_edge()
                .find(|envelope| envelope.route.resource == LEASE)
                .unwrap();
            cloud.hold(LEASE, content(lease)["Object"].clone());
            cloud.hold("null/node/goedge", recorded("null/node/goedge"));
        }
    }
    let scope = Scope::new();
    let runtime = start_edge(&cloud, &dir, &scope).await;
    cloud.accept().await;
    comes_up(&mut cloud, &recording).await;
    runs_pods(&mut cloud, &recording, &runtime).await;
    ends_pods(&mut cloud, &recording).await;
    is_not_disturbed(&mut cloud, &recording).await;
    comes_back(&mut cloud, &recording).await;
    assert!(
        scope.drain(DRAIN_DEADLINE).await.left.is_empty(),
        "the edge drains"
    );
    // A blocking write that outlives its task may still put a file there.
    let _ = std::fs::remove_dir_all(dir);
}

const LEASE: &str = "kube-node-lease/lease/goedge";

/// The recorded message that an official edge begins with and ours must begin with.
async fn says_keepalive_first(cloud: &mut OfficialCloud, recording: &Recording) {
    let keepalive = cloud.hears("anything", |_| true).await;
    let recorded = recording.to_cloud().next().unwrap();
    assert_eq!(
        (&keepalive.route, keepalive.content.json()),
        (&recorded.route, recorded.content.json())
    );
}

async fn comes_up(cloud: &mut OfficialCloud, recording: &Recording) {
    says_keepalive_first(cloud, recording).await;
    let is = |operation: &'static str, resource: &'static str| {
        move |heard: &Envelope| heard.route.operation == operation && heard.route.resource == resource
    };
    let node = cloud
        .hears("the registration", is("insert", "null/node/goedge"))
        .await;
    let recorded = recording
        .to_cloud()
        .find(|envelope| is("insert", "null/node/goedge")(envelope))
        .unwrap();
    let (node, recorded) = (content(&node), content(recorded));
    let without_arch = |node: &Value| {
        let mut labels = node["metadata"]["labels"].as_object().unwrap().clone();
        labels
            .iter_mut()
            .filter(|(name, _)| name.ends_with("/arch"))
            .for_each(|(_, value)| *value = Value::Null);
        labels
    };
    assert_eq!(without_arch(&node), without_arch(&recorded));
    assert_eq!(
        node["metadata"]["annotations"],
        recorded["metadata"]["annotations"]
    );
    let keys = |value: &Value| {
        value
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<BTreeSet<_>>()
    };
    for key in [
        "capacity",
        "allocatable",
        "conditions",
        "addresses",
        "nodeInfo",
        "daemonEndpoints",
    ] {
        assert!(keys(&node["status"]).contains(key), "{key} of the node");
    }
    let patch = cloud
        .hears("the node's status", is("patch", "null/nodepatch/goedge"))
        .await;
    let patch: Value = serde_json::from_str(content(&patch).as_str().unwrap()).unwrap();
    assert_eq!(keys(&patch), BTreeSet::from(["status".to_owned()]));
    let lease = cloud
        .hears("a lease", |heard| {
            heard.route.resource == LEASE && content(heard).is_object()
        })
        .await;
    let recorded = recording
        .to_cloud()
        .find(|envelope| is("update", LEASE)(envelope))
        .unwrap();
    assert_eq!(keys(&content(&lease)["spec"]), keys(&content(recorded)["spec"]));
}

/// `patch`, checked to be what an official edge says about this pod: a string with uid and status.
fn status_of(patch: &Envelope, uid: &Value) -> Value {
    let patch: Value = serde_json::from_str(content(patch).as_str().expect("a patch is a string")).unwrap();
    let known = |key: &String| key == "metadata" || key == "status";
    assert!(patch.as_object().unwrap().keys().all(known), "{patch}");
    assert_eq!(patch["metadata"], json!({ "uid": uid }));
    patch["status"].clone()
}

const OFF: [&str; 3] = ["default/pod/off1", "default/pod/off5", "default/pod/off8"];
const WEB: &str = "default/pod/web-f6c574d48-sfzqj";

async fn runs_pods(cloud: &mut OfficialCloud, recording: &Recording, runtime: &Hollow) {
    let first = |resource: &str| recording.pushes_of(resource).next().unwrap().clone();
    cloud.push(OFF.map(first)).await;
    cloud.push([first(WEB)]).await;
    let says = |resource: &str, pointer: &'static str, value: Value| {
        let (patches, uid) = (
            resource.replace("/pod/", "/podpatch/"),
            content(&first(resource))["metadata"]["uid"].clone(),
        );
        move |heard: &Envelope| {
            heard.route.resource == patches && status_of(heard, &uid).pointer(pointer) == Some(&value)
        }
    };
    let (web, uid) = (
        WEB.replace("/pod/", "/podpatch/"),
        content(&first(WEB))["metadata"]["uid"].clone(),
    );
    cloud
        .hears("that init runs", |heard| {
            let state = "/initContainerStatuses/0/state/running";
            heard.route.resource == web && status_of(heard, &uid).pointer(state).is_some()
        })
        .await;
    // Hollow containers end when they are told to.
    let sandboxes = runtime.list().await.unwrap();
    let init = sandboxes
        .iter()
        .flat_map(|sandbox| &sandbox.containers)
        .find(|container| container.name == "init");
    runtime.exit_container(&init.unwrap().id, 0).unwrap();
    for resource in OFF.into_iter().chain([WEB]) {
        cloud
            .hears(
                &format!("that {resource} runs"),
                says(resource, "/phase", "Running".into()),
            )
            .await;
    }
    for asked in [
        "configmap/app-config",
        "secret/app-secret",
        "serviceaccounttoken/default",
        "configmap/kube-root-ca.crt",
    ] {
        let resource = format!("default/{asked}");
        cloud
            .hears(asked, |heard| {
                heard.route.resource == resource && heard.route.operation == "query"
            })
            .await;
    }
    cloud.push([first("default/configmap/app-config")]).await;
}

async fn ends_pods(cloud: &mut OfficialCloud, recording: &Recording) {
    let terminating = |push: &&Envelope| content(push)["metadata"]["deletionGracePeriodSeconds"] == 1;
    let push = recording.pushes_of(WEB).find(terminating).unwrap().clone();
    let wanted = recording
        .to_cloud()
        .find(|envelope| envelope.route.operation == "delete")
        .unwrap();
    assert_eq!(wanted.route.resource, WEB);
    cloud.push([push]).await;
    let delete = cloud
        .hears("that the pod has ended", |heard| {
            heard.route.operation == "delete"
        })
        .await;
    assert_eq!(
        (&delete.route, content(&delete)),
        (&wanted.route, content(wanted))
    );
    // A forced delete comes without a word before it.
    let gone = recording
        .pushes_of(OFF[0])
        .find(|push| push.route.operation == "delete")
        .unwrap();
    cloud.push([gone.clone()]).await;
}

/// Messages for parts that this edge has not.
async fn is_not_disturbed(cloud: &mut OfficialCloud, recording: &Recording) {
    let devices = recording
        .to_edge()
        .filter(|envelope| envelope.route.source == "devicecontroller");
    for recorded in devices {
        match recorded.route.group.as_str() {
            "resource" => cloud.push([recorded.clone()]).await,
            _ => cloud.tell(recorded).await,
        }
    }
}

/// After a cut link an official cloud sends everything again.
async fn comes_back(cloud: &mut OfficialCloud, recording: &Recording) {
    cloud.accept().await;
    says_keepalive_first(cloud, recording).await;
    let held = |resource: &str| recording.pushes_of(resource).next().unwrap().clone();
    cloud
        .push(
            [
                OFF[1],
                OFF[2],
                "default/pod/web-5fc8d484f-4z5jr",
                "default/configmap/app-config",
            ]
            .map(held),
        )
        .await;
    cloud
        .hears("that the new pod starts", |heard| {
            heard.route.resource == "default/podpatch/web-5fc8d484f-4z5jr"
                && heard.content.json().contains("startedAt")
        })
        .await;
}
