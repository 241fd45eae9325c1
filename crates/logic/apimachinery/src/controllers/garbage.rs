//! Owners and dependents: what nobody owns any more goes.

use super::Pass;
use crate::meta::{self, at, text};
use crate::strategy::{
    DeleteOptions, FOREGROUND_FINALIZER as FOREGROUND, ORPHAN_FINALIZER as ORPHAN, Propagation,
};
use serde_json::Value;
use std::collections::HashSet;

pub(super) fn run(pass: &mut Pass<'_>) {
    let world = pass.world;
    let living: HashSet<&str> = world.iter().map(|(_, o)| meta::uid(o)).collect();
    for (resource, object) in world.iter() {
        if meta::is_terminating(object) {
            if meta::finalizers(object).any(|f| f == FOREGROUND) {
                delete_dependents(pass, resource, object);
            } else if meta::finalizers(object).any(|f| f == ORPHAN) {
                orphan_dependents(pass, resource, object);
            }
        } else {
            collect(pass, resource, object, &living);
        }
    }
}

/// Deletes an object all of whose owners are gone, or forgets those that are.
fn collect(pass: &mut Pass<'_>, resource: &str, object: &Value, living: &HashSet<&str>) {
    let owners = meta::items(object, &["metadata", "ownerReferences"]);
    let is_gone = |owner: &&Value| {
        !living.contains(text(owner, &["uid"]))
            && pass
                .world
                .is_tracked(text(owner, &["apiVersion"]), text(owner, &["kind"]))
    };
    let gone: Vec<&Value> = owners.iter().filter(is_gone).collect();
    if gone.is_empty() {
        return;
    }
    if gone.len() == owners.len() {
        let options = DeleteOptions {
            propagation: Some(Propagation::Background),
            ..DeleteOptions::default()
        };
        pass.delete(resource, object, options);
        return;
    }
    let kept: Vec<Value> = owners.iter().filter(|o| !gone.contains(o)).cloned().collect();
    let mut object = object.clone();
    meta::set(&mut object, &["metadata", "ownerReferences"], kept.into());
    pass.update(resource, object);
}

/// Foreground: first the dependents, then (when none that blocks is left) the owner.
fn delete_dependents(pass: &mut Pass<'_>, resource: &str, owner: &Value) {
    let dependents = pass.dependents.get(meta::uid(owner)).cloned().unwrap_or_default();
    let blocks = |object: &Value| {
        let mut owners = meta::items(object, &["metadata", "ownerReferences"]).iter();
        owners.any(|o| {
            text(o, &["uid"]) == meta::uid(owner) && at(o, &["blockOwnerDeletion"]) == &Value::Bool(true)
        })
    };
    let mut blocked = false;
    for (resource, object) in dependents {
        blocked |= blocks(object);
        if !meta::is_terminating(object) {
            // A dependent that has none of its own needs no finalizer to wait for them.
            let has_own = pass.dependents.contains_key(meta::uid(object));
            let propagation = if has_own {
                Propagation::Foreground
            } else {
                Propagation::Background
            };
            pass.delete(
                resource,
                object,
                DeleteOptions {
                    propagation: Some(propagation),
                    ..DeleteOptions::default()
                },
            );
        }
    }
    if !blocked {
        drop_finalizer(pass, resource, owner, FOREGROUND);
    }
}

fn orphan_dependents(pass: &mut Pass<'_>, resource: &str, owner: &Value) {
    let dependents = pass.dependents.get(meta::uid(owner)).cloned().unwrap_or_default();
    for (resource, object) in &dependents {
        let owners = meta::items(object, &["metadata", "ownerReferences"]);
        let kept: Vec<Value> = owners
            .iter()
            .filter(|o| text(o, &["uid"]) != meta::uid(owner))
            .cloned()
            .collect();
        let mut object = (***object).clone();
        meta::set(&mut object, &["metadata", "ownerReferences"], kept.into());
        pass.update(resource, object);
    }
    if dependents.is_empty() {
        drop_finalizer(pass, resource, owner, ORPHAN);
    }
}

fn drop_finalizer(pass: &mut Pass<'_>, resource: &str, object: &Value, finalizer: &str) {
    let kept: Vec<Value> = meta::finalizers(object)
        .filter(|f| *f != finalizer)
        .map(Value::from)
        .collect();
    let mut object = object.clone();
    meta::set(&mut object, &["metadata", "finalizers"], kept.into());
    pass.update(resource, object);
}
