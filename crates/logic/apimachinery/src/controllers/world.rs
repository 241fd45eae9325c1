//! All objects as the controllers see them.

use crate::kinds::{Kind, Registry};
use crate::meta::{self, text};
use jiff::Timestamp;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// By resource (`pods`, `deployments.apps` ...) and then by namespace and name.
///
/// The owner puts in all objects of all kinds before the first pass, every stored change after it, and the answers of
/// the controllers' writes before the next pass, so that no decision is taken twice.
#[derive(Clone, Debug)]
pub struct World {
    objects: BTreeMap<String, BTreeMap<(String, String), Arc<Value>>>,
    /// Group and kind of everything that is completely here: only owners of these kinds can be known to be gone. The
    /// built-in kinds, and custom ones once an object of theirs was here.
    tracked: BTreeSet<(String, String)>,
    /// Node -> its last sign of life and when, by our clock, it changed.
    heartbeats: HashMap<String, (String, Timestamp)>,
    /// Pod's UID -> when its node was first found missing.
    homeless: HashMap<String, Timestamp>,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    pub fn new() -> Self {
        let tracked = Registry::builtin()
            .iter()
            .map(|k| (k.group.clone(), k.kind.clone()))
            .collect();
        Self {
            objects: BTreeMap::new(),
            tracked,
            heartbeats: HashMap::new(),
            homeless: HashMap::new(),
        }
    }

    /// Declares that all objects of a custom kind are in this world, even if there are none.
    pub fn track(&mut self, kind: &Kind) {
        self.tracked.insert((kind.group.clone(), kind.kind.clone()));
        self.objects.entry(kind.group_resource()).or_default();
    }

    /// Forgets a kind whose definition has gone, with all its objects.
    pub fn untrack(&mut self, kind: &Kind) {
        self.tracked.remove(&(kind.group.clone(), kind.kind.clone()));
        self.objects.remove(&kind.group_resource());
    }

    pub fn put(&mut self, group_resource: &str, object: Arc<Value>) {
        let key = (
            meta::namespace(&object).to_owned(),
            meta::name(&object).to_owned(),
        );
        let group = group_of(text(&object, &["apiVersion"]));
        let kind = text(&object, &["kind"]);
        if !kind.is_empty() && !self.tracked.iter().any(|(g, k)| g == group && k == kind) {
            self.tracked.insert((group.to_owned(), kind.to_owned()));
        }
        match self.objects.get_mut(group_resource) {
            Some(objects) => objects.insert(key, object),
            None => self
                .objects
                .entry(group_resource.to_owned())
                .or_default()
                .insert(key, object),
        };
    }

    pub fn remove(&mut self, group_resource: &str, namespace: &str, name: &str) {
        if let Some(objects) = self.objects.get_mut(group_resource) {
            objects.remove(&(namespace.to_owned(), name.to_owned()));
        }
    }

    pub fn get(&self, group_resource: &str, namespace: &str, name: &str) -> Option<&Arc<Value>> {
        self.objects
            .get(group_resource)?
            .get(&(namespace.to_owned(), name.to_owned()))
    }

    /// All objects of a resource, by namespace and name.
    pub fn list(&self, group_resource: &str) -> impl Iterator<Item = &Arc<Value>> {
        self.objects
            .get(group_resource)
            .into_iter()
            .flat_map(BTreeMap::values)
    }

    /// The objects of a resource in one namespace.
    pub fn list_in(&self, group_resource: &str, namespace: &str) -> impl Iterator<Item = &Arc<Value>> {
        let start = (namespace.to_owned(), String::new());
        let objects = self.objects.get(group_resource).into_iter();
        objects
            .flat_map(move |o| o.range(start.clone()..))
            .take_while(move |((n, _), _)| n == namespace)
            .map(|(_, object)| object)
    }

    /// Everything with its resource.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<Value>)> {
        self.objects
            .iter()
            .flat_map(|(resource, objects)| objects.values().map(move |o| (resource.as_str(), o)))
    }

    /// Whether absence of an object of this apiVersion and kind means that it does not exist.
    pub(super) fn is_tracked(&self, api_version: &str, kind: &str) -> bool {
        self.tracked
            .contains(&(group_of(api_version).to_owned(), kind.to_owned()))
    }

    /// Notes which nodes gave a sign of life since the last call; to be called before each pass. The edge's clock may be
    /// wrong, so what counts is when we saw the sign change, not the time written in it. Without it the written times
    /// are believed.
    pub fn observe(&mut self, now: Timestamp) {
        let nodes: Vec<(String, String)> = self
            .list("nodes")
            .map(|n| (meta::name(n).to_owned(), self.sign_of_life(n)))
            .collect();
        self.heartbeats
            .retain(|name, _| nodes.iter().any(|(n, _)| n == name));
        for (name, sign) in nodes {
            match self.heartbeats.get_mut(&name) {
                Some((last, _)) if *last == sign => {}
                Some(entry) => *entry = (sign, now),
                None => {
                    self.heartbeats.insert(name, (sign, now));
                }
            }
        }
        let homeless: Vec<String> = self
            .list("pods")
            .filter(|p| {
                let node = text(p, &["spec", "nodeName"]);
                !node.is_empty() && self.get("nodes", "", node).is_none()
            })
            .map(|p| meta::uid(p).to_owned())
            .collect();
        self.homeless.retain(|uid, _| homeless.contains(uid));
        for uid in homeless {
            self.homeless.entry(uid).or_insert(now);
        }
    }

    fn sign_of_life(&self, node: &Value) -> String {
        let lease = self.get("leases.coordination.k8s.io", "kube-node-lease", meta::name(node));
        let renewed = lease.map(|l| text(l, &["spec", "renewTime"])).unwrap_or_default();
        // Only what the node itself writes: our own "Unknown" must not look like a sign of life.
        let posted = match meta::condition(node, "Ready") {
            Some(ready) => text(ready, &["lastHeartbeatTime"]),
            None => "",
        };
        format!("{} {renewed} {posted}", meta::uid(node))
    }

    /// When the node last gave a sign of life: as observed, else as written.
    pub(super) fn heard(&self, node: &Value) -> Option<Timestamp> {
        let observed = self.heartbeats.get(meta::name(node)).map(|(_, at)| *at);
        let lease = self.get("leases.coordination.k8s.io", "kube-node-lease", meta::name(node));
        let written = || {
            let renewed = lease.and_then(|l| meta::parse_time(text(l, &["spec", "renewTime"])));
            let posted = meta::condition(node, "Ready")
                .and_then(|c| meta::parse_time(text(c, &["lastHeartbeatTime"])));
            let created = meta::parse_time(text(node, &["metadata", "creationTimestamp"]));
            renewed.max(posted).max(created)
        };
        observed.or_else(written)
    }

    /// Since when the pod's node has been missing; none when it is there. Unobserved, it counts as long missing.
    pub(super) fn homeless_since(&self, pod: &Value) -> Option<Timestamp> {
        let node = text(pod, &["spec", "nodeName"]);
        let missing = !node.is_empty() && self.get("nodes", "", node).is_none();
        missing.then(|| {
            self.homeless
                .get(meta::uid(pod))
                .copied()
                .unwrap_or(Timestamp::UNIX_EPOCH)
        })
    }
}

fn group_of(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}
