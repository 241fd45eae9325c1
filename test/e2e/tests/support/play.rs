//! The recorded traffic, played against our cloud: what the official edge said, and what somebody did at the API.

use super::official_edge::{OfficialEdge, version_is_true};
use super::recording::{Line, NODE, Recording, content, object_of};
use super::shape::{push_shape, shape};
use super::world::World;
use kedge_cluster::Patch;
use kedge_wire::{Body, Envelope, Route};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Where our cloud is meant to differ from the recorded one.
pub(crate) struct Difference {
    /// How the recorded message begins, in the words of [`shape`].
    pub(crate) recorded: &'static str,
    /// The shape of ours, or [`SILENCE`].
    pub(crate) ours: &'static str,
    pub(crate) why: &'static str,
}

pub(crate) const SILENCE: &str = "nothing";

/// The recorded traffic, played. Each line does what the official edge, or somebody at the API, did then.
pub(crate) struct Play<'a> {
    differences: &'static [Difference],
    not_recorded: &'static [&'static str],
    recording: &'a Recording,
    world: &'a World,
    pub(crate) edge: OfficialEdge,
    /// Objects that somebody at the API has begun to delete.
    deleting: BTreeSet<String>,
    pub(crate) complaints: Vec<String>,
    /// The differences that were met; one that is not met has outlived its reason.
    pub(crate) met: BTreeSet<&'static str>,
    /// Answers that were like the recorded ones.
    pub(crate) compared: usize,
}

impl<'a> Play<'a> {
    /// The edge has joined, and what the recording takes for granted is there.
    pub(crate) async fn begin(
        recording: &'a Recording,
        world: &'a World,
        differences: &'static [Difference],
        not_recorded: &'static [&'static str],
    ) -> Self {
        let mut play = Self {
            differences,
            not_recorded,
            recording,
            world,
            edge: OfficialEdge::join(world, NODE).await,
            deleting: BTreeSet::new(),
            complaints: Vec::new(),
            met: BTreeSet::new(),
            compared: 0,
        };
        for (path, object) in furniture(recording) {
            play.furnish(&path, &object).await;
        }
        play
    }

    pub(crate) async fn run(&mut self) {
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
        assert!(version_is_true(&answer), "{}", answer.encode());
        self.compared += 1;
        if shape(&answer) != wanted {
            let route = Route::parse(&envelope.route);
            let said: String = answer.content.json().chars().take(300).collect();
            self.complaints
                .push(format!("{route}\n- {wanted}\n+ {}\n  {said}", shape(&answer)));
        }
    }

    /// The shape that is expected of us.
    fn wanted(&mut self, recorded: String) -> String {
        match self
            .differences
            .iter()
            .find(|difference| recorded.starts_with(difference.recorded))
        {
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
    pub(crate) fn compare_pushes(&mut self) {
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
        let ours = &self.edge.push_shapes;
        self.complaints
            .extend(wanted.difference(ours).map(|push| format!("push - {push}")));
        let more = ours
            .difference(&wanted)
            .filter(|push| !self.not_recorded.contains(&push.as_str()));
        self.complaints.extend(more.map(|push| format!("push + {push}")));
    }

    /// An official edge repeats a delete until it hears OK, long after the pod is gone.
    pub(crate) async fn repeat_deletes(&mut self) {
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
