//! What must hold after every event, as functions over what just happened.
//!
//! 1. *Versions never go backwards*: a node's durable version of one uid only grows ([`wrote`]).
//! 2. *A delete is never overtaken*: an object that is gone from the API and was deleted on a node never comes back
//!    there ([`wrote`]).
//! 3. *Old before new*: a pod of a new uid is never written over one of an old uid ([`wrote`]).
//! 4. *Acknowledged means durable*: what the cloud believes to be held was durable on the node ([`acknowledged`]).
//! 5. *Every request ends once*: in one answer or one timeout (the world counts them).
//! 6. *Limits*: nothing in flight or waiting beyond its maximum ([`within_limits`]).
//! 7. *One session a node, the newest* ([`newest_session`]).
//! 8. *Agreement*: once faults have stopped, every node holds exactly what placement says ([`agreed`]).
//!
//! One thing is excused: a cloud that lost its memory cannot know what a node that speaks only the official protocol
//! held, so what such a node held at that moment may stay with it (recorded ObjectSyncs will close this gap). A node
//! of ours deletes an old uid by itself even then.

use crate::api::Api;
use crate::edge::Edge;
use crate::store::{Stored, Wrote};
use kedge_link::cloud::Depth;
use kedge_placement::index::Placement;
use kedge_wire::{NodeName, Object, ObjectKey, ObjectKind, ResourceVersion};
use std::collections::BTreeMap;
use std::fmt;

/// A broken promise.
#[derive(Debug)]
pub struct Violation {
    pub seed: u64,
    pub text: String,
    /// The last events before it.
    pub trace: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "  {line}")?;
        }
        writeln!(f, "seed {} breaks the contract: {}", self.seed, self.text)?;
        write!(
            f,
            "replay it with: KEDGE_SIM_SEED={} cargo test -p kedge-sim replay",
            self.seed
        )
    }
}

pub(crate) fn wrote(edge: &mut Edge, api: &Api, wrote: &Wrote) -> Result<(), String> {
    let name = &edge.name;
    match wrote {
        Wrote::Nothing => Ok(()),
        Wrote::Deleted { gone, .. } => {
            // A delete from before the object died may have been one of something not needed for a while, with an
            // update behind it that is as old.
            if let Some(died) = api.dead.get(&gone.uid)
                && edge.first_delete.get(&gone.uid).is_none_or(|told| told >= died)
            {
                edge.buried.insert(gone.uid.clone());
            }
            Ok(())
        }
        Wrote::Put { key, before, after } => {
            if edge.buried.contains(&after.uid) {
                return Err(format!("{name}: {key} {} came back after its delete", after.uid));
            }
            match before {
                Some(before) if before.uid == after.uid && before.version > after.version => {
                    let (old, new) = (before.version, after.version);
                    Err(format!(
                        "{name}: {key} went backwards from version {old} to {new}"
                    ))
                }
                Some(before) if before.uid != after.uid && key.kind == ObjectKind::Pod => {
                    if edge.is_official_model() && edge.excused.contains(&before.uid) {
                        return Ok(());
                    }
                    Err(format!("{name}: {key} {} written over {}", after.uid, before.uid))
                }
                Some(_) | None => Ok(()),
            }
        }
    }
}

pub(crate) fn acknowledged(
    edge: &Edge,
    api: &Api,
    key: &ObjectKey,
    version: Option<&ResourceVersion>,
) -> Result<(), String> {
    let Some(version) = version else { return Ok(()) };
    let version: u64 = version
        .as_str()
        .parse()
        .map_err(|_| format!("version {version} is no number"))?;
    let (owner, uid) = api
        .versions
        .get(&version)
        .ok_or_else(|| format!("version {version} never was"))?;
    if owner != key {
        return Err(format!(
            "{}: {key} acknowledged with a version of {owner}",
            edge.name
        ));
    }
    if edge.store.ever.get(uid).is_none_or(|durable| *durable < version) {
        return Err(format!(
            "{}: {key} version {version} acknowledged but never durable",
            edge.name
        ));
    }
    Ok(())
}

pub(crate) fn within_limits(depth: Depth, in_flight_max: usize, requests_max: usize) -> Result<(), String> {
    if depth.in_flight > in_flight_max {
        return Err(format!(
            "{} objects in flight are more than {in_flight_max}",
            depth.in_flight
        ));
    }
    if depth.requests > requests_max {
        return Err(format!(
            "{} requests are more than {requests_max}",
            depth.requests
        ));
    }
    Ok(())
}

pub(crate) fn newest_session(edge: &Edge, session: u64, newest: u64) -> Result<(), String> {
    if session == newest {
        return Ok(());
    }
    Err(format!(
        "{}: session {session} is active although {newest} came later",
        edge.name
    ))
}

pub(crate) fn agreed(edge: &Edge, api: &Api, placement: &Placement) -> Result<(), String> {
    let node = NodeName::new(edge.name.as_str()).map_err(|problem| problem.to_string())?;
    let desired: BTreeMap<ObjectKey, Object> = placement.desired(&node).into_iter().collect();
    for (key, object) in &desired {
        let held = edge.store.durable.get(key);
        same(edge, api, key, object, held)?;
    }
    for (key, stored) in &edge.store.durable {
        let excused = edge.excused.contains(&stored.uid);
        if !desired.contains_key(key) && !excused {
            return Err(format!("{}: holds {key} {} and must not", edge.name, stored.uid));
        }
    }
    Ok(())
}

/// Changes that mean nothing to an edge are not sent, so any version since the last significant one is right.
fn same(
    edge: &Edge,
    api: &Api,
    key: &ObjectKey,
    object: &Object,
    held: Option<&Stored>,
) -> Result<(), String> {
    let name = &edge.name;
    let Some(held) = held else {
        return Err(format!(
            "{name}: lacks {key} {} version {}",
            object.uid, object.version
        ));
    };
    let real = api
        .objects
        .get(key)
        .ok_or_else(|| format!("{key} is placed and not in the API"))?;
    if object.uid.as_str() != real.uid || object.version.as_str() != real.version.to_string() {
        return Err(format!(
            "placement of {key} is at {}, the API at {}",
            object.version, real.version
        ));
    }
    if held.uid != real.uid || held.version < real.significant || held.version > real.version {
        let (significant, now) = (real.significant, real.version);
        return Err(format!(
            "{name}: holds {key} {}@{} instead of {}@{significant}..{now}",
            held.uid, held.version, real.uid
        ));
    }
    Ok(())
}
