//! Deliveries: one lane a key, in which one change at a time is being committed.

use super::DeliveryId;
use crate::{Held, covers};
use kedge_wire::{
    ChangeVerb, MessageId, ObjectChange, ObjectKey, ObjectKind, Operation, Resource, ResourceVersion,
};
use kedge_wire::{Route, Uid};
use std::collections::{HashMap, HashSet, VecDeque};

/// Changes being committed or waiting for their lane. One that comes when all places are taken is dropped without an
/// acknowledgement, so the cloud sends it again; the official cloud has one under way, ours a small window.
pub const DELIVERIES_MAX: usize = 1024;
/// Message ids of this connection that were acknowledged and are recognised when they come again. The cloud repeats
/// only what is in its window, which is far smaller.
pub const ACKNOWLEDGED_MAX: usize = 1024;

/// What a change leads to.
#[derive(Debug)]
pub(super) enum Outcome {
    Deliver {
        id: DeliveryId,
        change: ObjectChange,
    },
    Acknowledge {
        parent: MessageId,
        route: Route,
    },
    Refuse {
        parent: MessageId,
        route: Route,
        reason: String,
    },
}

#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: HashMap<ObjectKey, Lane>,
    keys: HashMap<DeliveryId, ObjectKey>,
    known: HashMap<ObjectKey, Known>,
    acknowledged: HashSet<MessageId>,
    acknowledged_order: VecDeque<MessageId>,
    last_id: u64,
    /// Counts connections, so that a commit which outlives its connection is not acknowledged on the next.
    session: u64,
    taken: usize,
    dropped: u64,
}

#[derive(Debug)]
struct Lane {
    current: Current,
    waiting: VecDeque<Letter>,
}

#[derive(Debug)]
struct Current {
    session: u64,
    effect: Effect,
    /// What to answer; for a delete that the edge makes by itself, the change that made it necessary.
    letter: Letter,
    made_here: bool,
}

/// A change with the message that brought it.
#[derive(Debug)]
struct Letter {
    id: MessageId,
    change: ObjectChange,
    uid: Option<Uid>,
}

#[derive(Debug)]
enum Effect {
    Holds(Known),
    /// Something without a uid or version; nothing can be said about it later.
    HoldsUnknown,
    Gone,
}

/// What the store durably holds under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    uid: Uid,
    version: ResourceVersion,
}

enum Verdict {
    Deliver,
    Covered,
    /// The old uid must be gone first.
    DeleteFirst(Uid),
}

impl Lanes {
    /// A connection begins. `held` is what the store holds once everything delivered so far has been settled.
    pub(super) fn connect(&mut self, held: &[Held]) {
        let mut known = HashMap::with_capacity(held.len());
        for entry in held {
            let Some(key) = ObjectKey::parse(&entry.key).filter(|key| key.kind.placed().is_some()) else {
                continue;
            };
            let uid = Uid::new(entry.uid.as_str());
            let version = ResourceVersion::new(entry.version.as_str());
            let fresh = match self.known.remove(&key) {
                Some(old) if old.uid == uid && covers(&old.version, &version) => old,
                Some(_) | None => Known { uid, version },
            };
            known.insert(key, fresh);
        }
        self.known = known;
    }

    /// The connection is gone: what waits will be sent again, what is being committed goes on.
    pub(super) fn disconnect(&mut self) {
        self.session += 1;
        self.acknowledged.clear();
        self.acknowledged_order.clear();
        for lane in self.lanes.values_mut() {
            self.taken -= lane.waiting.len();
            lane.waiting.clear();
        }
    }

    /// The cloud changes an object.
    pub(super) fn accept(&mut self, id: MessageId, change: ObjectChange) -> Option<Outcome> {
        if self.acknowledged.contains(&id) {
            return Some(Outcome::Acknowledge {
                parent: id,
                route: route_of(&change),
            });
        }
        let uid = match change.body.object_meta() {
            Ok(meta) => meta.uid,
            Err(problem) => {
                let reason = format!("{} cannot be read: {problem}", change.key);
                return Some(Outcome::Refuse {
                    parent: id,
                    route: route_of(&change),
                    reason,
                });
            }
        };
        if self.taken >= DELIVERIES_MAX {
            self.dropped += 1;
            return None;
        }
        let letter = Letter { id, change, uid };
        let session = self.session;
        if let Some(lane) = self.lanes.get_mut(&letter.change.key) {
            let current = lane.current.session == session && lane.current.letter.id == letter.id;
            if !current && lane.waiting.iter().all(|waiting| waiting.id != letter.id) {
                lane.waiting.push_back(letter);
                self.taken += 1;
            }
            return None;
        }
        Some(self.start(letter, &mut VecDeque::new()))
    }

    /// The commit of a delivery ended. Returns everything that follows from it, in order.
    pub(super) fn committed(&mut self, id: DeliveryId, result: Result<(), String>) -> Vec<Outcome> {
        let Some(key) = self.keys.remove(&id) else {
            return Vec::new();
        };
        let Some(Lane { current, mut waiting }) = self.lanes.remove(&key) else {
            return Vec::new();
        };
        self.taken -= 1;
        let mut outcomes = Vec::new();
        let of_this_session = current.session == self.session;
        match result {
            Ok(()) => {
                self.book(&key, current.effect);
                if of_this_session && current.made_here {
                    waiting.push_front(current.letter);
                    self.taken += 1;
                } else if of_this_session {
                    outcomes.push(self.acknowledge(current.letter));
                }
            }
            Err(reason) if of_this_session => {
                let route = route_of(&current.letter.change);
                outcomes.push(Outcome::Refuse {
                    parent: current.letter.id,
                    route,
                    reason,
                });
            }
            Err(_) => {}
        }
        while let Some(letter) = waiting.pop_front() {
            self.taken -= 1;
            let outcome = self.start(letter, &mut waiting);
            let busy = matches!(outcome, Outcome::Deliver { .. });
            outcomes.push(outcome);
            if busy {
                break;
            }
        }
        outcomes
    }

    /// Changes dropped because all places were taken.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Changes being committed or waiting.
    pub(super) fn taken(&self) -> usize {
        self.taken
    }

    /// Begins with a letter whose lane is free. When it must be delivered, what waits goes into the lane behind it.
    fn start(&mut self, letter: Letter, waiting: &mut VecDeque<Letter>) -> Outcome {
        let (change, effect, made_here) = match self.verdict(&letter) {
            Verdict::Covered => return self.acknowledge(letter),
            Verdict::Deliver => (letter.change.clone(), effect_of(&letter), false),
            Verdict::DeleteFirst(uid) => (delete_of(&letter.change, &uid), Effect::Gone, true),
        };
        self.last_id += 1;
        self.taken += 1;
        let delivery = DeliveryId(self.last_id);
        let key = change.key.clone();
        self.keys.insert(delivery, key.clone());
        let current = Current {
            session: self.session,
            effect,
            letter,
            made_here,
        };
        self.lanes.insert(
            key,
            Lane {
                current,
                waiting: std::mem::take(waiting),
            },
        );
        Outcome::Deliver { id: delivery, change }
    }

    fn verdict(&self, letter: &Letter) -> Verdict {
        let (Some(uid), Some(known)) = (&letter.uid, self.known.get(&letter.change.key)) else {
            return Verdict::Deliver;
        };
        match letter.change.verb {
            ChangeVerb::Insert | ChangeVerb::Update if known.uid == *uid => {
                match letter.change.version.as_ref() {
                    Some(version) if covers(&known.version, version) => Verdict::Covered,
                    Some(_) | None => Verdict::Deliver,
                }
            }
            ChangeVerb::Insert | ChangeVerb::Update if letter.change.key.kind == ObjectKind::Pod => {
                Verdict::DeleteFirst(known.uid.clone())
            }
            ChangeVerb::Insert | ChangeVerb::Update => Verdict::Deliver,
            ChangeVerb::Delete if known.uid == *uid => Verdict::Deliver,
            ChangeVerb::Delete => Verdict::Covered,
        }
    }

    fn book(&mut self, key: &ObjectKey, effect: Effect) {
        match effect {
            Effect::Holds(known) if key.kind.placed().is_some() => {
                self.known.insert(key.clone(), known);
            }
            Effect::Holds(_) | Effect::HoldsUnknown | Effect::Gone => {
                self.known.remove(key);
            }
        }
    }

    fn acknowledge(&mut self, letter: Letter) -> Outcome {
        if self.acknowledged_order.len() >= ACKNOWLEDGED_MAX
            && let Some(oldest) = self.acknowledged_order.pop_front()
        {
            self.acknowledged.remove(&oldest);
        }
        if self.acknowledged.insert(letter.id.clone()) {
            self.acknowledged_order.push_back(letter.id.clone());
        }
        Outcome::Acknowledge {
            parent: letter.id,
            route: route_of(&letter.change),
        }
    }
}

fn effect_of(letter: &Letter) -> Effect {
    match (letter.change.verb, &letter.uid, &letter.change.version) {
        (ChangeVerb::Delete, _, _) => Effect::Gone,
        (ChangeVerb::Insert | ChangeVerb::Update, Some(uid), Some(version)) => Effect::Holds(Known {
            uid: uid.clone(),
            version: version.clone(),
        }),
        (ChangeVerb::Insert | ChangeVerb::Update, _, _) => Effect::HoldsUnknown,
    }
}

fn delete_of(change: &ObjectChange, uid: &Uid) -> ObjectChange {
    ObjectChange {
        source: change.source.clone(),
        group: change.group.clone(),
        verb: ChangeVerb::Delete,
        key: change.key.clone(),
        version: None,
        body: crate::cloud::tombstone(&change.key, uid),
    }
}

/// The route of a change, for the answer to copy.
fn route_of(change: &ObjectChange) -> Route {
    let operation = match change.verb {
        ChangeVerb::Insert => Operation::Insert,
        ChangeVerb::Update => Operation::Update,
        ChangeVerb::Delete => Operation::Delete,
    };
    let resource = Resource::Object(change.key.clone());
    Route::new(change.source.clone(), change.group.clone(), operation, resource)
}
