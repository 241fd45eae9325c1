//! What must hold after every event, as functions over what just happened.
//!
//! 1. *Versions never go backwards*: a node's durable version of one uid only grows ([`wrote`]).
//! 2. *A delete is never overtaken*: an object that is gone from the API and was deleted on a node comes back there only
//!    by a cloud that had not seen its end yet ([`wrote`]).
//! 3. *Old before new*: a pod of a new uid is never written over one of an old uid ([`wrote`]).
//! 4. *Acknowledged means durable*: what the cloud believes to be held was durable on the node ([`acknowledged`]).
//! 5. *Every request ends once*: in one answer or one timeout (the world counts them).
//! 6. *Limits*: nothing in flight or waiting beyond its maximum ([`within_limits`]).
//! 7. *One session a node, the newest* ([`newest_session`]).
//! 8. *Agreement*: once faults have stopped, every node holds exactly what placement says ([`agreed`]).
//!
//! 9. *The truth is told*: once faults have stopped, the API has the status that each node has, and what an official node
//!    holds is recorded as its ObjectSyncs ([`recorded`]).
//! 10. *No life after death*: a cloud that has seen the end of an object never sends it ([`sends`]).
//! 11. *Lag stops nothing*: no cloud deletes a pod that the API wants on this node ([`deletes`]).
//!
//! What is excused, and only for nodes that speak the official protocol, because they cannot say what they hold: what a
//! node holds that was not recorded when it came to a cloud that did not know of it (sent and not yet acknowledged, or
//! acknowledged and not yet written to the API). A node of ours deletes an old uid by itself even then.

use crate::api::Api;
use crate::edge::Edge;
use crate::store::{Stored, Wrote};
use kedge_link::cloud::Depth;
use kedge_placement::index::Placement;
use kedge_wire::{NodeName, Object, ObjectKey, ObjectKind, ResourceVersion, Uid};
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
                && let told = edge.first_delete.get(&gone.uid).copied().unwrap_or(died.at)
                && told >= died.at
            {
                edge.buried.insert(gone.uid.clone(), told);
            }
            Ok(())
        }
        Wrote::Put { key, before, after } => {
            if let Some(deleted) = edge.buried.remove(&after.uid)
                && edge.revived.get(&after.uid).is_none_or(|sent| *sent < deleted)
            {
                return Err(format!("{name}: {key} {} came back after its delete", after.uid));
            }
            match before {
                Some(before) if before.uid == after.uid && before.version > after.version => {
                    backwards(edge, api, key, before, after)
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

/// An official edge takes what it is told. It may be told an older version that means the same to it, or be set back by a
/// cloud that lags and has no record of the newer one.
fn backwards(edge: &Edge, api: &Api, key: &ObjectKey, before: &Stored, after: &Stored) -> Result<(), String> {
    let same = api.mean_the_same(&after.uid, after.version, before.version);
    if edge.is_official_model() && (same || edge.ahead.contains(&before.uid)) {
        return Ok(());
    }
    let (name, old, new) = (&edge.name, before.version, after.version);
    Err(format!(
        "{name}: {key} went backwards from version {old} to {new}"
    ))
}

/// A cloud whose watches have shown `position` changes sends an object.
pub(crate) fn sends(edge: &mut Edge, api: &Api, uid: &str, position: usize, now: u64) -> Result<(), String> {
    let Some(death) = api.dead.get(uid) else {
        return Ok(());
    };
    if death.index < position {
        return Err(format!(
            "{}: {uid} is sent by a cloud that has seen its end",
            edge.name
        ));
    }
    edge.revived.insert(uid.to_owned(), now);
    Ok(())
}

/// A pod stays on its node for as long as it lives, so nothing but a cloud that lags would delete it there.
pub(crate) fn deletes(edge: &Edge, index: usize, api: &Api, uid: &str) -> Result<(), String> {
    let pod = api.objects.iter().find(|(_, object)| object.uid == uid);
    match pod {
        Some((key, object)) if key.kind == ObjectKind::Pod && object.node == index => Err(format!(
            "{}: {key} {uid} is deleted although it lives here",
            edge.name
        )),
        Some(_) | None => Ok(()),
    }
}

/// What the clouds recorded about an official node is what it holds. Its present cloud is `replica`, which has read the
/// records at `attached_at`; another one may have been late to write what was so before.
pub(crate) fn recorded(
    edge: &Edge,
    index: usize,
    api: &Api,
    replica: usize,
    attached_at: u64,
) -> Result<(), String> {
    for ((_, uid), sync) in api.syncs.iter().filter(|((node, _), _)| *node == index) {
        let held = edge.store.durable.values().any(|stored| stored.uid == *uid);
        let late = sync.replica != replica && sync.at > attached_at;
        if !held && !late {
            return Err(format!("{}: {uid} is recorded and not held", edge.name));
        }
    }
    for (key, stored) in &edge.store.durable {
        let sync = api.syncs.get(&(index, stored.uid.clone()));
        // What means the same is not sent again, and an edge of ours acknowledges what is older than what it holds.
        let right = sync.is_some_and(|sync| {
            let (older, newer) = (sync.version.min(stored.version), sync.version.max(stored.version));
            let same = api.mean_the_same(&stored.uid, older, newer);
            sync.key == *key && (same || edge.ahead.contains(&stored.uid))
        });
        if !right && !edge.excused.contains(&stored.uid) {
            return Err(format!(
                "{}: holds {key} {}@{}, and the record says {sync:?}",
                edge.name, stored.uid, stored.version
            ));
        }
    }
    Ok(())
}

pub(crate) fn acknowledged(
    edge: &Edge,
    api: &Api,
    key: &ObjectKey,
    told: &Uid,
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
    if owner != key || uid != told.as_str() {
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

/// The API has the status that the node has, and the node knows it.
pub(crate) fn told(edge: &Edge, index: usize, api: &Api) -> Result<(), String> {
    let written = api.statuses.get(&index).copied().unwrap_or(0);
    let confirmed = edge.is_official_model() || edge.confirmed == edge.status;
    if written == edge.status && confirmed {
        return Ok(());
    }
    Err(format!(
        "{}: has status {}, had {} confirmed, and the API has {written}",
        edge.name, edge.status, edge.confirmed
    ))
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
    let placed: u64 = object.version.as_str().parse().unwrap_or_default();
    let right = real.significant..=real.version;
    if object.uid.as_str() != real.uid || !right.contains(&placed) {
        return Err(format!("placement of {key} is at {placed} instead of {right:?}"));
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
