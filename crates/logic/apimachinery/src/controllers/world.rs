//! All objects as the controllers see them.

use crate::kinds::{Kind, Registry};
use crate::meta::{self, text};
use jiff::Timestamp;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// By namespace and name.
type Namespaces = BTreeMap<String, BTreeMap<String, Arc<Value>>>;

/// By resource (`pods`, `deployments.apps` ...) and then by namespace and name.
///
/// The owner puts in all objects of all kinds before the first pass, every stored change after it, and the answers of
/// the controllers' writes before the next pass, so that no decision is taken twice.
#[derive(Clone, Debug)]
pub struct World {
    objects: BTreeMap<String, Namespaces>,
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
        let group = group_of(text(&object, &["apiVersion"]));
        let kind = text(&object, &["kind"]);
        if !kind.is_empty() && !self.tracked.iter().any(|(g, k)| g == group && k == kind) {
            self.tracked.insert((group.to_owned(), kind.to_owned()));
        }
        let (namespace, name) = (
            meta::namespace(&object).to_owned(),
            meta::name(&object).to_owned(),
        );
        if !self.objects.contains_key(group_resource) {
            self.objects.insert(group_resource.to_owned(), Namespaces::new());
        }
        if let Some(namespaces) = self.objects.get_mut(group_resource) {
            namespaces.entry(namespace).or_default().insert(name, object);
        }
    }

    pub fn remove(&mut self, group_resource: &str, namespace: &str, name: &str) {
        let Some(namespaces) = self.objects.get_mut(group_resource) else {
            return;
        };
        if let Some(objects) = namespaces.get_mut(namespace) {
            objects.remove(name);
            if objects.is_empty() {
                namespaces.remove(namespace);
            }
        }
    }

    pub fn get(&self, group_resource: &str, namespace: &str, name: &str) -> Option<&Arc<Value>> {
        self.objects.get(group_resource)?.get(namespace)?.get(name)
    }

    /// All objects of a resource, by namespace and name.
    pub fn list(&self, group_resource: &str) -> impl Iterator<Item = &Arc<Value>> {
        let namespaces = self.objects.get(group_resource).into_iter();
        namespaces.flat_map(BTreeMap::values).flat_map(BTreeMap::values)
    }

    /// The objects of a resource in one namespace.
    pub fn list_in(&self, group_resource: &str, namespace: &str) -> impl Iterator<Item = &Arc<Value>> {
        let namespaces = self.objects.get(group_resource);
        let objects = namespaces.and_then(|namespaces| namespaces.get(namespace));
        objects.into_iter().flat_map(BTreeMap::values)
    }

    /// Everything with its resource.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<Value>)> {
        self.objects.iter().flat_map(|(resource, namespaces)| {
            let objects = namespaces.values().flat_map(BTreeMap::values);
            objects.map(move |object| (resource.as_str(), object))
        })
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
        let signs: Vec<(String, String)> = self
            .list("nodes")
            .map(|n| (meta::name(n).to_owned(), self.sign_of_life(n)))
            .collect();
        let mut before = std::mem::take(&mut self.heartbeats);
        for (name, sign) in signs {
            let entry = match before.remove(&name) {
                Some((last, seen)) if last == sign => (last, seen),
                Some(_) | None => (sign, now),
            };
            self.heartbeats.insert(name, entry);
        }
        let homeless: HashSet<String> = self
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
