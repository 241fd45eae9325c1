//! The controllers' view of all objects, kept up by the same changes that watchers see.

use crate::storage::{Change, ChangeKind, Collection, Place, Storage};
use kedge_apimachinery::controllers::{World, view};
use kedge_apimachinery::kinds::{Kind, Registry, Verb};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A world, and up to where it is complete.
#[derive(Default)]
pub(super) struct Mirror {
    world: World,
    /// `None` before the first reading.
    seen: Option<u64>,
    tracked: BTreeMap<String, Arc<Kind>>,
}

impl Mirror {
    pub(super) fn world(&mut self) -> &mut World {
        &mut self.world
    }

    /// The view of an object that the last decision was made from.
    pub(super) fn view(&self, resource: &str, place: &Place) -> Option<Arc<Value>> {
        self.world.get(resource, &place.namespace, &place.name).cloned()
    }

    /// The views of all objects of a resource.
    pub(super) fn all(&self, resource: &str) -> impl Iterator<Item = &Arc<Value>> {
        self.world.list(resource)
    }

    /// Takes in what changed since the last time, all collections at one moment: a dependent must never be seen
    /// without its owner. When a window moved past us, everything is read anew.
    pub(super) fn follow(&mut self, storage: &Storage, registry: &Registry) {
        let changes = self.seen.map(|seen| storage.all_changes(seen));
        match changes {
            Some(Ok((changes, complete))) => {
                for (collection, changes) in changes {
                    let resource = resource(&collection);
                    for change in latest(&changes) {
                        match change.kind {
                            ChangeKind::Added | ChangeKind::Modified => {
                                self.world
                                    .put(&resource, Arc::new(view(&resource, change.value())));
                            }
                            ChangeKind::Deleted => {
                                self.world
                                    .remove(&resource, &change.place.namespace, &change.place.name);
                            }
                        }
                    }
                }
                self.seen = Some(complete);
            }
            Some(Err(_)) | None => {
                *self = Self::default();
                let (all, complete) = storage.snapshot();
                for (collection, found) in all {
                    let resource = resource(&collection);
                    for found in found {
                        self.world
                            .put(&resource, Arc::new(view(&resource, found.value())));
                    }
                }
                self.seen = Some(complete);
            }
        }
        self.track(registry);
    }

    /// Says which kinds are completely here: all that are served and stored.
    fn track(&mut self, registry: &Registry) {
        let served: BTreeMap<String, Arc<Kind>> = registry
            .iter()
            .filter(|kind| kind.serves(Verb::List))
            .map(|kind| (kind.group_resource(), Arc::clone(kind)))
            .collect();
        for kind in self
            .tracked
            .iter()
            .filter(|(name, _)| !served.contains_key(*name))
            .map(|(_, kind)| kind)
        {
            self.world.untrack(kind);
        }
        for kind in served
            .iter()
            .filter(|(name, _)| !self.tracked.contains_key(*name))
            .map(|(_, kind)| kind)
        {
            self.world.track(kind);
        }
        self.tracked = served;
    }
}

/// Of each object its last change only: what it was in between nobody decides on.
fn latest(changes: &[Arc<Change>]) -> impl Iterator<Item = &Arc<Change>> {
    let last: HashMap<&Place, u64> = changes
        .iter()
        .map(|change| (&change.place, change.revision))
        .collect();
    changes
        .iter()
        .filter(move |change| last.get(&change.place) == Some(&change.revision))
}

/// `pods`, `deployments.apps`.
fn resource(collection: &Collection) -> String {
    if collection.group.is_empty() {
        collection.plural.clone()
    } else {
        format!("{}.{}", collection.plural, collection.group)
    }
}
