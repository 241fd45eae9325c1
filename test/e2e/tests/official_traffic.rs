//! Compatibility with the official peers, proven with their recorded traffic (`test/fixtures/vectors`): an official
//! EdgeCore is played against our CloudCore, and an official CloudCore against our EdgeCore, over real TLS.

mod support;

use kedge_cluster::Patch;
use kedge_config::{EdgeCore, EdgeFacts};
use kedge_pki::IdentityFiles;
use kedge_telemetry::Scope;
use kedge_transport::Plug;
use kedge_wire::{Body, Envelope, Route};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use support::official_cloud::OfficialCloud;
use support::official_edge::{OfficialEdge, version_is_true};
use support::recording::{Line, NODE, Recording, content, object_of};
use support::shape::{push_shape, shape};
use support::world::{DRAIN_DEADLINE, World};

/// Where our cloud is meant to differ from the recorded one.
struct Difference {
    /// How the recorded message begins, in the words of [`shape`].
    recorded: &'static str,
    ours: &'static str,
    why: &'static str,
}

const SILENCE: &str = "nothing";

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

impl Difference {
    fn of(recorded: &str) -> Option<&'static Self> {
        DIFFERENCES
            .iter()
            .find(|difference| recorded.starts_with(difference.recorded))
    }
}

/// The recorded traffic, played. Each line does what the official edge, or somebody at the API, did then.
struct Play<'a> {
    recording: &'a Recording,
    world: &'a World,
    edge: OfficialEdge,
    /// Objects that somebody at the API has begun to delete.
    deleting: BTreeSet<String>,
    complaints: Vec<String>,
    /// The differences that were met; one that is not met has outlived its reason.
    met: BTreeSet<&'static str>,
}

impl<'a> Play<'a> {
    async fn run(mut self) -> Self {
        let recording = self.recording;
        for (number, line) in recording.lines.iter().enumerate() {
            match line {
                Line::Connects => {
                    self.edge.disconnect().await;
                    if number > 0 {
                        self.happen_offline(number + 1).await;
                    }
                    self.edge.connect(self.world).await;
                }
                Line::ToCloud(envelope) => self.edge_says(envelope).await,
                Line::ToEdge(envelope) if envelope.header.parent.is_none() => {
                    self.cloud_pushes(envelope).await
                }
                // Compared where the request is sent.
                Line::ToEdge(_) => {}
            }
        }
        self
    }

    /// What the cloud pushed between a reconnect and the edge's first request had happened while the link was cut.
    async fn happen_offline(&mut self, from: usize) {
        for line in &self.recording.lines[from..] {
            match line {
                Line::ToEdge(envelope) if envelope.header.parent.is_none() => self.happen(envelope).await,
                Line::ToCloud(envelope) if envelope.route.source == "edged" => return,
                Line::ToEdge(_) | Line::ToCloud(_) | Line::Connects => {}
            }
        }
    }

    async fn edge_says(&mut self, envelope: &Envelope) {
        if let Some(parent) = &envelope.header.parent {
            // What is pushed is acknowledged on arrival.
            if self.edge.knows(parent.as_str()) {
                self.edge.say(envelope).await;
            }
            return;
        }
        self.edge.say(envelope).await;
        let Some(recorded) = self.recording.answer_to(&envelope.header.id) else {
            return;
        };
        let wanted = self.wanted(shape(recorded));
        if wanted == SILENCE {
            return;
        }
        let answer = self.edge.answer(recorded).await;
        assert_eq!(answer.route.resource, recorded.route.resource);
        if shape(&answer) != wanted {
            let route = Route::parse(&envelope.route);
            let said: String = answer.content.json().chars().take(300).collect();
            self.complaints
                .push(format!("{route}\n- {wanted}\n+ {}\n  {said}", shape(&answer)));
        }
    }

    /// The shape that is expected of us.
    fn wanted(&mut self, recorded: String) -> String {
        match Difference::of(&recorded) {
            Some(difference) => {
                self.met.insert(difference.why);
                difference.ours.to_owned()
            }
            None => recorded,
        }
    }

    async fn cloud_pushes(&mut self, recorded: &Envelope) {
        if recorded.route.source != "edgecontroller" {
            return;
        }
        self.happen(recorded).await;
        let resource = recorded.route.resource.as_str();
        let wanted = content(recorded);
        let deleted = recorded.route.operation == "delete";
        let ends = wanted["metadata"]["deletionGracePeriodSeconds"] == 0;
        let push = self.edge.pushed(resource, |push| {
            let seen = content(push);
            let terminates = |pod: &Value| pod["metadata"]["deletionTimestamp"].is_string();
            match push.route.operation.as_str() {
                "delete" => deleted || ends,
                // A pod without grace vanishes at once: the official API shows it once more before.
                _ => {
                    !deleted
                        && seen["data"] == wanted["data"]
                        && (ends || terminates(&seen) == terminates(&wanted))
                }
            }
        });
        let push = push.await;
        if push.route.operation != "delete" {
            assert!(version_is_true(&push), "{}", push.encode());
            assert_eq!(
                (&content(&push)["kind"], &content(&push)["apiVersion"]),
                (&wanted["kind"], &wanted["apiVersion"])
            );
        }
    }

    /// Every kind of push that was recorded comes from us too, and no other.
    fn compare_pushes(&mut self) {
        let pushes = self
            .recording
            .to_edge()
            .filter(|envelope| envelope.header.parent.is_none());
        let recorded: BTreeSet<String> = pushes.map(push_shape).collect();
        let mut wanted: BTreeSet<String> = recorded
            .into_iter()
            .map(|recorded| self.wanted(recorded))
            .collect();
        wanted.remove(SILENCE);
        // The official cloud pushes these as well (protocol, section 3.6), only not while it was recorded.
        wanted.insert("edgecontroller resource put secret versioned".into());
        wanted.insert("edgecontroller resource delete secret".into());
        let ours = &self.edge.push_shapes;
        self.complaints
            .extend(wanted.difference(ours).map(|push| format!("push - {push}")));
        self.complaints
            .extend(ours.difference(&wanted).map(|push| format!("push + {push}")));
    }

    /// An official edge repeats a delete until it hears OK, long after the pod is gone.
    async fn repeat_deletes(&mut self) {
        for delete in self
            .recording
            .to_cloud()
            .filter(|envelope| envelope.route.operation == "delete")
        {
            self.edge_says(delete).await;
        }
    }

    /// Does at the API what made the official cloud push this.
    async fn happen(&mut self, recorded: &Envelope) {
        let Some((namespace, kind, name)) = object_of(recorded) else {
            return;
        };
        let plural = match kind {
            "pod" => "pods",
            "configmap" => "configmaps",
            "secret" => "secrets",
            _ => return,
        };
        let path = format!("/api/v1/namespaces/{namespace}/{plural}");
        let object = content(recorded);
        let uid = object["metadata"]["uid"].as_str().unwrap();
        let grace = object["metadata"]["deletionGracePeriodSeconds"].as_i64();
        if !self.edge.knows(uid) {
            let made = self.make(&path, &object).await;
            self.edge.map(uid, made["metadata"]["uid"].as_str().unwrap());
        } else if kind == "configmap" && recorded.route.operation == "update" {
            let patch = json!({"data": object["data"]}).to_string();
            self.world
                .cluster
                .patch(&format!("{path}/{name}"), Patch::Merge, &patch)
                .await
                .unwrap();
        }
        let ends = grace.is_some() || recorded.route.operation == "delete";
        if ends && self.deleting.insert(uid.to_owned()) {
            let options = json!({"gracePeriodSeconds": grace.unwrap_or(0)});
            self.world
                .cluster
                .delete(&format!("{path}/{name}"), &Body::from_value(&options).unwrap())
                .await
                .unwrap();
        }
    }

    /// Sees to it that the object exists; some the API has made by itself.
    async fn furnish(&mut self, path: &str, recorded: &Value) {
        let uid = recorded["metadata"]["uid"].as_str().unwrap();
        if self.edge.knows(uid) {
            return;
        }
        let name = recorded["metadata"]["name"].as_str().unwrap();
        let object = match self.world.cluster.get(&format!("{path}/{name}")).await {
            Ok(found) => found.parse().unwrap(),
            Err(_) => self.make(path, recorded).await,
        };
        self.edge.map(uid, object["metadata"]["uid"].as_str().unwrap());
    }

    /// Creates a recorded object, without what the API itself gives it.
    async fn make(&self, path: &str, recorded: &Value) -> Value {
        let mut object = recorded.clone();
        let meta = object["metadata"].as_object_mut().unwrap();
        meta.retain(|key, _| matches!(key.as_str(), "name" | "namespace" | "labels" | "annotations"));
        let status = object.as_object_mut().unwrap().remove("status");
        let made = self.world.create(path, &object).await;
        if let Some(status) = status {
            let name = made["metadata"]["name"].as_str().unwrap();
            let patch = json!({ "status": status }).to_string();
            self.world
                .cluster
                .patch(&format!("{path}/{name}/status"), Patch::Merge, &patch)
                .await
                .unwrap();
        }
        made
    }
}

/// What the recording takes for granted: the node, its lease, everything that the edge asks for, and the pods that it
/// reports before the cloud pushes them. Each with the path where it is created.
fn furniture(recording: &Recording) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for recorded in recording.to_edge() {
        let Some((_, kind, _)) = object_of(recorded) else {
            continue;
        };
        let mut content = content(recorded);
        let (group, plural, kubernetes_kind) = match kind {
            "nodepatch" => ("api/v1", "nodes", "Node"),
            "lease" => (
                "apis/coordination.k8s.io/v1",
                "namespaces/kube-node-lease/leases",
                "Lease",
            ),
            "configmap" => ("api/v1", "namespaces/default/configmaps", "ConfigMap"),
            "secret" => ("api/v1", "namespaces/default/secrets", "Secret"),
            _ => continue,
        };
        let mut object = content.get_mut("Object").map(Value::take).unwrap_or(content);
        // Answers to writes leave these out.
        object["apiVersion"] = group
            .trim_start_matches("apis/")
            .trim_start_matches("api/")
            .into();
        object["kind"] = kubernetes_kind.into();
        found.push((format!("/{group}/{plural}"), object));
    }
    let first_push = |lines: &[Line], pod: &str| {
        lines
            .iter()
            .position(|line| matches!(line, Line::ToEdge(push) if push.route.resource == pod))
    };
    for (number, line) in recording.lines.iter().enumerate() {
        let Line::ToCloud(patch) = line else { continue };
        let pod = patch.route.resource.replace("/podpatch/", "/pod/");
        if pod == patch.route.resource || first_push(&recording.lines[..number], &pod).is_some() {
            continue;
        }
        let push = recording
            .pushes_of(&pod)
            .next()
            .expect("a pod that is reported is pushed some day");
        let (namespace, _, _) = object_of(push).unwrap();
        found.push((format!("/api/v1/namespaces/{namespace}/pods"), content(push)));
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_official_edge_finds_our_cloud_as_it_knows_clouds() {
    let (recording, world) = (Recording::read(), World::start().await);
    let edge = OfficialEdge::join(&world, NODE).await;
    let mut play = Play {
        recording: &recording,
        world: &world,
        edge,
        deleting: BTreeSet::new(),
        complaints: Vec::new(),
        met: BTreeSet::new(),
    };
    for (path, object) in furniture(&recording) {
        play.furnish(&path, &object).await;
    }
    let mut play = play.run().await;
    play.compare_pushes();
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

/// Our edge, with the certificate it would have got.
async fn start_edge(cloud: &OfficialCloud, dir: &Path, scope: &Scope) {
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
    let facts = EdgeFacts { hostname: NODE.into(), primary_ip: "127.0.0.1".into() };
    let (config, _) = EdgeCore::from_yaml(&yaml, &facts).unwrap();
    let runtime = kedge_edgecore::runtime::open(&config.edged).await.unwrap();
    kedge_edgecore::wiring::start(config, runtime, Plug::new(), scope).await.unwrap();
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
            let lease = recording.to_edge().find(|envelope| envelope.route.resource == LEASE).unwrap();
            cloud.hold(LEASE, content(lease)["Object"].clone());
            cloud.hold("null/node/goedge", recorded("null/node/goedge"));
        }
    }
    let scope = Scope::new();
    let edge = scope.clone();
    // The edge dials while this cloud is still on its way to accept.
    start_edge(&cloud, &dir, &edge).await;
    cloud.accept().await;
    comes_up(&mut cloud, &recording).await;
    runs_pods(&mut cloud, &recording).await;
    ends_pods(&mut cloud, &recording).await;
    is_not_disturbed(&mut cloud, &recording).await;
    comes_back(&mut cloud, &recording).await;
    assert!(scope.drain(DRAIN_DEADLINE).await.left.is_empty(), "the edge drains");
    std::fs::remove_dir_all(dir).unwrap();
}

const LEASE: &str = "kube-node-lease/lease/goedge";

/// The recorded message that an official edge begins with and ours must begin with.
async fn says_keepalive_first(cloud: &mut OfficialCloud, recording: &Recording) {
    let keepalive = cloud.hears("anything", |_| true).await;
    let recorded = recording.to_cloud().next().unwrap();
    assert_eq!((&keepalive.route, keepalive.content.json()), (&recorded.route, recorded.content.json()));
}

async fn comes_up(cloud: &mut OfficialCloud, recording: &Recording) {
    says_keepalive_first(cloud, recording).await;
    let is = |operation: &'static str, resource: &'static str| {
        move |heard: &Envelope| heard.route.operation == operation && heard.route.resource == resource
    };
    let node = cloud.hears("the registration", is("insert", "null/node/goedge")).await;
    let recorded = recording.to_cloud().find(|envelope| is("insert", "null/node/goedge")(envelope)).unwrap();
    let (node, recorded) = (content(&node), content(recorded));
    let without_arch = |node: &Value| {
        let mut labels = node["metadata"]["labels"].as_object().unwrap().clone();
        labels.iter_mut().filter(|(name, _)| name.ends_with("/arch")).for_each(|(_, value)| *value = Value::Null);
        labels
    };
    assert_eq!(without_arch(&node), without_arch(&recorded));
    assert_eq!(node["metadata"]["annotations"], recorded["metadata"]["annotations"]);
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    for key in ["capacity", "allocatable", "conditions", "addresses", "nodeInfo", "daemonEndpoints"] {
        assert!(keys(&node["status"]).contains(key), "{key} of the node");
    }
    let patch = cloud.hears("the node's status", is("patch", "null/nodepatch/goedge")).await;
    let patch: Value = serde_json::from_str(content(&patch).as_str().unwrap()).unwrap();
    assert_eq!(keys(&patch), BTreeSet::from(["status".to_owned()]));
    let lease = cloud
        .hears("a lease", |heard| heard.route.resource == LEASE && content(heard).is_object())
        .await;
    let recorded = recording.to_cloud().find(|envelope| is("update", LEASE)(envelope)).unwrap();
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

async fn runs_pods(cloud: &mut OfficialCloud, recording: &Recording) {
    let first = |resource: &str| recording.pushes_of(resource).next().unwrap().clone();
    cloud.push(OFF.map(first)).await;
    cloud.push([first(WEB)]).await;
    for resource in OFF.into_iter().chain([WEB]) {
        let (patches, uid) = (resource.replace("/pod/", "/podpatch/"), content(&first(resource))["metadata"]["uid"].clone());
        cloud
            .hears(&format!("that {resource} runs"), |heard| {
                heard.route.resource == patches && status_of(heard, &uid)["phase"] == "Running"
            })
            .await;
    }
    for asked in ["configmap/app-config", "secret/app-secret", "serviceaccounttoken/default", "configmap/kube-root-ca.crt"] {
        let resource = format!("default/{asked}");
        cloud.hears(asked, |heard| heard.route.resource == resource && heard.route.operation == "query").await;
    }
    cloud.push([first("default/configmap/app-config")]).await;
}

async fn ends_pods(cloud: &mut OfficialCloud, recording: &Recording) {
    let terminating = |push: &&Envelope| content(push)["metadata"]["deletionGracePeriodSeconds"] == 1;
    let push = recording.pushes_of(WEB).find(terminating).unwrap().clone();
    let wanted = recording.to_cloud().find(|envelope| envelope.route.operation == "delete").unwrap();
    assert_eq!(wanted.route.resource, WEB);
    cloud.push([push]).await;
    let delete = cloud.hears("that the pod has ended", |heard| heard.route.operation == "delete").await;
    assert_eq!((&delete.route, content(&delete)), (&wanted.route, content(wanted)));
    // A forced delete comes without a word before it.
    let gone = recording.pushes_of(OFF[0]).find(|push| push.route.operation == "delete").unwrap();
    cloud.push([gone.clone()]).await;
}

/// Messages for parts that this edge has not.
async fn is_not_disturbed(cloud: &mut OfficialCloud, recording: &Recording) {
    let devices = recording.to_edge().filter(|envelope| envelope.route.source == "devicecontroller");
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
    cloud.push([OFF[1], OFF[2], "default/pod/web-5fc8d484f-4z5jr", "default/configmap/app-config"].map(held)).await;
    cloud
        .hears("the new pod", |heard| heard.route.resource == "default/podpatch/web-5fc8d484f-4z5jr")
        .await;
}
