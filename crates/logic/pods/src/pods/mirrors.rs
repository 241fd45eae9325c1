//! What shows the node's static pods in the cloud.

use crate::static_pods;
use crate::worker::Worker;
use crate::{Effect, PodKey, PodSource};
use kedge_api::Pod;
use kedge_wire::Time;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// A mirror that did not come, or did not go, is ordered again after this time, and when the link comes up.
const REPEAT: Duration = Duration::from_secs(60);

/// The mirrors that the cloud holds, and what was said about them.
#[derive(Debug, Default)]
pub(super) struct Mirrors {
    held: BTreeMap<PodKey, Arc<Pod>>,
    /// When a change was ordered, and of which mirror: a UID to delete, or none to create one.
    said: BTreeMap<PodKey, (Option<String>, Time)>,
}

/// What is needed to know which mirrors there must be.
pub(super) struct Place<'a> {
    pub(super) node: &'a str,
    pub(super) node_uid: Option<&'a str>,
    pub(super) statics: &'a BTreeMap<PodKey, String>,
    pub(super) workers: &'a BTreeMap<String, Worker>,
}

impl Mirrors {
    /// The cloud holds this mirror under the name, or none.
    pub(super) fn set(&mut self, key: &PodKey, mirror: Option<Arc<Pod>>) {
        match mirror {
            Some(mirror) => self.held.insert(key.clone(), mirror),
            None => self.held.remove(key),
        };
    }

    /// The mirror of this name, whatever it shows.
    pub(super) fn get(&self, key: &PodKey) -> Option<&Arc<Pod>> {
        self.held.get(key)
    }

    /// The mirror of this name, if it shows this version of the static pod.
    pub(super) fn fitting(&self, key: &PodKey, hash: Option<&str>) -> Option<&Arc<Pod>> {
        let stays = |mirror: &&Arc<Pod>| mirror.metadata.deletion_timestamp.is_none();
        let mirror = self.held.get(key).filter(stays)?;
        (static_pods::mirrored_hash(mirror) == hash && hash.is_some()).then_some(mirror)
    }

    /// Tells the workers of static pods what shows them.
    pub(super) fn attach(&self, workers: &mut BTreeMap<String, Worker>) {
        for worker in workers
            .values_mut()
            .filter(|worker| worker.source == PodSource::File)
        {
            let mirror = self.fitting(&worker.key, worker.hash());
            worker.set_mirror(mirror);
        }
    }

    /// The cloud may have missed anything.
    pub(super) fn say_again(&mut self) {
        self.said.clear();
    }

    pub(super) fn wake_at(&self, now: Time) -> Option<Time> {
        let moments = self.said.values().map(|(_, at)| *at + REPEAT);
        moments.filter(|at| *at > now).min()
    }

    /// Orders what is missing and what is too much.
    pub(super) fn settle(&mut self, place: &Place<'_>, now: Time, out: &mut VecDeque<Effect>) {
        let mut open: BTreeMap<PodKey, Option<String>> = BTreeMap::new();
        for (key, mirror) in &self.held {
            let shown = place.statics.get(key).and_then(|uid| place.workers.get(uid));
            let fits = shown.is_some_and(|worker| self.fitting(key, worker.hash()).is_some());
            // While a static pod ends, its mirror tells so.
            let ends = |worker: &Worker| worker.key == *key && worker.source == PodSource::File;
            let needed = shown.is_none() && place.workers.values().any(ends);
            if !fits && !needed {
                open.insert(key.clone(), Some(mirror.uid().to_owned()));
            }
        }
        for (key, uid) in place.statics {
            let (Some(worker), Some(_)) = (place.workers.get(uid), place.node_uid) else {
                continue;
            };
            if !self.held.contains_key(key) && worker.hash().is_some() {
                open.insert(key.clone(), None);
            }
        }
        self.said.retain(|key, (what, _)| open.get(key) == Some(what));
        for (key, what) in open {
            if self.said.get(&key).is_some_and(|(_, at)| now < *at + REPEAT) {
                continue;
            }
            let worker = place.statics.get(&key).and_then(|uid| place.workers.get(uid));
            match (&what, worker) {
                (Some(uid), _) => out.push_back(Effect::DeleteMirror {
                    key: key.clone(),
                    uid: uid.clone(),
                }),
                (None, Some(worker)) => out.push_back(Effect::CreateMirror {
                    pod: static_pods::mirror_of(&worker.pod, place.node, place.node_uid),
                }),
                (None, None) => continue,
            }
            self.said.insert(key, (what, now));
        }
    }
}
