//! What one node must hold, what it holds, and what is on its way: state, not events.
//!
//! Only the newest desired version of a key exists here, so the mailbox is as large as the node's objects and no
//! larger, however long the node is away and however fast its objects change.

use crate::seed::Seed;
use crate::{covers, is_placed};
use kedge_wire::{ChangeVerb, MessageId, Object, ObjectKey, ObjectKind, ResourceVersion, Time, Uid};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

/// Messages of one key whose late acknowledgement is still understood. A key sends its next message only after an
/// acknowledgement or a retry delay, so four cover several retry delays.
const SENT_REMEMBERED_MAX: usize = 4;
/// Doublings of the retry delay; 2^16 times any sensible delay is above any sensible maximum.
const DOUBLINGS_MAX: u32 = 16;
/// The version said of an object that was sent and never acknowledged. It is older than every real version.
const UNACKNOWLEDGED: &str = "0";

/// When an unacknowledged message is sent again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Backoff {
    pub(super) first: Duration,
    pub(super) max: Duration,
}

/// Which queue a key waits in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rank {
    /// Changed while the session was running.
    Object,
    /// Part of the first full set.
    Bulk,
}

/// What a message to the node says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Saying {
    Put { verb: ChangeVerb, object: Object },
    Delete { uid: Uid },
}

/// A message about one key, ready to be put into an envelope.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) id: MessageId,
    pub(super) key: ObjectKey,
    pub(super) saying: Saying,
}

/// What an acknowledgement settled.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Settled {
    pub(super) key: ObjectKey,
    pub(super) version: Option<ResourceVersion>,
}

#[derive(Debug, Default)]
pub(super) struct Mailbox {
    slots: BTreeMap<ObjectKey, Slot>,
    objects: VecDeque<ObjectKey>,
    bulk: VecDeque<ObjectKey>,
    /// Every remembered message id and its key.
    sent: HashMap<MessageId, ObjectKey>,
    timers: BTreeSet<(Time, ObjectKey)>,
    flying: usize,
    /// Deletes of what was never desired wait for this.
    complete: bool,
    refusals: u64,
    retries: u64,
}

#[derive(Debug, Default)]
struct Slot {
    desired: Option<Object>,
    holding: Option<Holding>,
    stage: Stage,
    attempts: u32,
    /// Newest last; the last one is the message in flight if there is one.
    sent: VecDeque<Sent>,
    in_objects: bool,
    in_bulk: bool,
}

/// What the node holds under a key, as far as it is known.
#[derive(Debug, Clone)]
struct Holding {
    uid: Uid,
    /// `None`: it was sent, or held in an earlier session, and this session has no acknowledgement.
    version: Option<ResourceVersion>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    /// Nothing is under way; the key may wait in a queue.
    #[default]
    Ready,
    Flying {
        due: Time,
    },
    /// Refused by the node; rests until the retry delay has passed.
    Resting {
        until: Time,
    },
}

#[derive(Debug)]
struct Sent {
    id: MessageId,
    saying: Saying,
}

enum Step {
    InSync,
    Put,
    Delete(Uid),
}

impl Slot {
    fn step(&self, kind: &ObjectKind, complete: bool) -> Step {
        match (&self.desired, &self.holding) {
            (None, None) => Step::InSync,
            (None, Some(held)) => {
                if complete && *kind != ObjectKind::Node {
                    Step::Delete(held.uid.clone())
                } else {
                    Step::InSync
                }
            }
            (Some(_), None) => Step::Put,
            (Some(wanted), Some(held)) if held.uid != wanted.uid && *kind != ObjectKind::Node => {
                Step::Delete(held.uid.clone())
            }
            (Some(wanted), Some(held)) => {
                let held_version = held.version.as_ref().filter(|_| held.uid == wanted.uid);
                if held_version.is_some_and(|version| covers(version, &wanted.version)) {
                    Step::InSync
                } else {
                    Step::Put
                }
            }
        }
    }

    /// From the moment a message is sent until it is acknowledged the node may hold either state.
    fn expect_effect(&mut self, saying: &Saying) {
        match (saying, &mut self.holding) {
            (Saying::Put { object, .. }, Some(held)) if held.uid == object.uid => {}
            (Saying::Put { object, .. }, holding) => {
                *holding = Some(Holding {
                    uid: object.uid.clone(),
                    version: None,
                });
            }
            (Saying::Delete { .. }, Some(held)) => held.version = None,
            (Saying::Delete { .. }, None) => {}
        }
    }

    fn is_idle(&self) -> bool {
        self.stage == Stage::Ready && !self.in_objects && !self.in_bulk
    }
}

impl Mailbox {
    /// The node holds this; `version` is `None` when only its uid can be relied on.
    pub(super) fn hold(&mut self, key: ObjectKey, uid: Uid, version: Option<ResourceVersion>) {
        if !is_placed(&key.kind) {
            return;
        }
        self.slots.entry(key.clone()).or_default().holding = Some(Holding { uid, version });
        self.enqueue_if_due(&key, Rank::Bulk);
    }

    /// The node itself says what it holds. When nothing was sent yet its word replaces every assumption; later it
    /// only adds the keys that nothing is known about.
    pub(super) fn resume(&mut self, held: Vec<(ObjectKey, Uid, ResourceVersion)>, nothing_sent: bool) {
        if nothing_sent {
            for slot in self.slots.values_mut() {
                slot.holding = None;
            }
        }
        for (key, uid, version) in held {
            let known = self
                .slots
                .get(&key)
                .is_some_and(|slot| slot.holding.is_some() || !slot.sent.is_empty());
            if nothing_sent || !known {
                self.hold(key, uid, Some(version));
            }
        }
        self.requeue_all();
    }

    fn requeue_all(&mut self) {
        let keys: Vec<ObjectKey> = self.slots.keys().cloned().collect();
        for key in keys {
            self.enqueue_if_due(&key, Rank::Bulk);
            self.forget_if_empty(&key);
        }
    }

    pub(super) fn want(&mut self, key: ObjectKey, object: Option<Object>) {
        let rank = if self.complete { Rank::Object } else { Rank::Bulk };
        self.slots.entry(key.clone()).or_default().desired = object;
        self.enqueue_if_due(&key, rank);
        self.forget_if_empty(&key);
    }

    /// The first full set is known: the rest of what the node holds may go.
    pub(super) fn complete(&mut self) {
        if self.complete {
            return;
        }
        self.complete = true;
        self.requeue_all();
    }

    /// The next message, if the window of `in_flight_max` has room and a key waits.
    pub(super) fn next(
        &mut self,
        now: Time,
        in_flight_max: usize,
        backoff: Backoff,
        seed: &mut Seed,
    ) -> Option<Outgoing> {
        while self.flying < in_flight_max {
            let key = self.dequeue()?;
            if let Some(outgoing) = self.launch(&key, now, backoff, seed) {
                return Some(outgoing);
            }
            self.forget_if_empty(&key);
        }
        None
    }

    fn dequeue(&mut self) -> Option<ObjectKey> {
        if let Some(key) = self.objects.pop_front() {
            if let Some(slot) = self.slots.get_mut(&key) {
                slot.in_objects = false;
            }
            return Some(key);
        }
        let key = self.bulk.pop_front()?;
        if let Some(slot) = self.slots.get_mut(&key) {
            slot.in_bulk = false;
        }
        Some(key)
    }

    fn launch(&mut self, key: &ObjectKey, now: Time, backoff: Backoff, seed: &mut Seed) -> Option<Outgoing> {
        let slot = self.slots.get_mut(key)?;
        if slot.stage != Stage::Ready {
            return None;
        }
        let saying = match slot.step(&key.kind, self.complete) {
            Step::InSync => return None,
            Step::Delete(uid) => Saying::Delete { uid },
            Step::Put => {
                let object = slot.desired.clone()?;
                let verb = if slot.holding.is_none() {
                    ChangeVerb::Insert
                } else {
                    ChangeVerb::Update
                };
                Saying::Put { verb, object }
            }
        };
        let repeated = slot.sent.back().filter(|last| same_target(&last.saying, &saying));
        let (id, saying) = match repeated {
            Some(last) => (last.id.clone(), last.saying.clone()),
            None => {
                let id = seed.message_id();
                slot.sent.push_back(Sent {
                    id: id.clone(),
                    saying: saying.clone(),
                });
                self.sent.insert(id.clone(), key.clone());
                (id, saying)
            }
        };
        if slot.sent.len() > SENT_REMEMBERED_MAX
            && let Some(forgotten) = slot.sent.pop_front()
        {
            self.sent.remove(&forgotten.id);
        }
        slot.expect_effect(&saying);
        let due = now + delay(slot.attempts, backoff, seed);
        slot.stage = Stage::Flying { due };
        self.flying += 1;
        self.timers.insert((due, key.clone()));
        Some(Outgoing {
            id,
            key: key.clone(),
            saying,
        })
    }

    /// The node acknowledged message `id`. An unknown id is nothing to us.
    pub(super) fn acknowledged(&mut self, id: &MessageId) -> Option<Settled> {
        let key = self.sent.get(id)?.clone();
        let slot = self.slots.get_mut(&key)?;
        let index = slot.sent.iter().position(|sent| sent.id == *id)?;
        let newest = index + 1 == slot.sent.len();
        let mut saying = None;
        for sent in slot.sent.drain(..=index) {
            self.sent.remove(&sent.id);
            saying = Some(sent.saying);
        }
        let settled = settle(slot, saying?, newest);
        if newest {
            slot.attempts = 0;
            self.land(&key);
        }
        self.enqueue_if_due(&key, Rank::Object);
        self.forget_if_empty(&key);
        settled.map(|version| Settled { key, version })
    }

    /// The node could not do what message `id` asked: it is asked again after a delay, for as long as it takes.
    pub(super) fn refused(&mut self, id: &MessageId, now: Time, backoff: Backoff, seed: &mut Seed) {
        let Some(key) = self.sent.get(id).cloned() else {
            return;
        };
        let Some(slot) = self.slots.get_mut(&key) else {
            return;
        };
        let newest = slot.sent.back().is_some_and(|sent| sent.id == *id);
        self.refusals += 1;
        if !newest || !matches!(slot.stage, Stage::Flying { .. }) {
            return;
        }
        slot.attempts = slot.attempts.saturating_add(1);
        let until = now + delay(slot.attempts, backoff, seed);
        self.land(&key);
        if let Some(slot) = self.slots.get_mut(&key) {
            slot.stage = Stage::Resting { until };
            self.timers.insert((until, key));
        }
    }

    /// Whatever was due by `now` is queued again.
    pub(super) fn expire(&mut self, now: Time) {
        while let Some((due, _)) = self.timers.first()
            && *due <= now
        {
            let Some((_, key)) = self.timers.pop_first() else {
                return;
            };
            let Some(slot) = self.slots.get_mut(&key) else {
                continue;
            };
            match slot.stage {
                Stage::Ready => {}
                Stage::Flying { .. } => {
                    slot.stage = Stage::Ready;
                    slot.attempts = slot.attempts.saturating_add(1);
                    self.flying -= 1;
                    self.retries += 1;
                }
                Stage::Resting { .. } => slot.stage = Stage::Ready,
            }
            self.enqueue_if_due(&key, Rank::Object);
            self.forget_if_empty(&key);
        }
    }

    pub(super) fn next_timeout(&self) -> Option<Time> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// Everything that the node holds or may hold.
    pub(super) fn held(&self) -> Vec<(ObjectKey, Uid, ResourceVersion)> {
        let holding = |(key, slot): (&ObjectKey, &Slot)| {
            let held = slot.holding.as_ref()?;
            let version = held
                .version
                .clone()
                .unwrap_or_else(|| ResourceVersion::new(UNACKNOWLEDGED));
            Some((key.clone(), held.uid.clone(), version))
        };
        self.slots.iter().filter_map(holding).collect()
    }

    /// Messages sent and not acknowledged.
    pub(super) fn in_flight(&self) -> usize {
        self.flying
    }

    /// Keys that wait for the window.
    pub(super) fn waiting(&self) -> usize {
        self.slots
            .values()
            .filter(|slot| slot.in_objects || slot.in_bulk)
            .count()
    }

    pub(super) fn refusals(&self) -> u64 {
        self.refusals
    }

    pub(super) fn retries(&self) -> u64 {
        self.retries
    }

    /// Takes the key out of the air, whatever its stage was.
    fn land(&mut self, key: &ObjectKey) {
        let Some(slot) = self.slots.get_mut(key) else {
            return;
        };
        match slot.stage {
            Stage::Ready => {}
            Stage::Flying { due } => {
                self.flying -= 1;
                self.timers.remove(&(due, key.clone()));
            }
            Stage::Resting { until } => {
                self.timers.remove(&(until, key.clone()));
            }
        }
        slot.stage = Stage::Ready;
    }

    /// Puts the key into a queue once, if it is ready and out of step.
    fn enqueue_if_due(&mut self, key: &ObjectKey, rank: Rank) {
        let Some(slot) = self.slots.get_mut(key) else {
            return;
        };
        if slot.stage != Stage::Ready || matches!(slot.step(&key.kind, self.complete), Step::InSync) {
            return;
        }
        match rank {
            Rank::Object if !slot.in_objects => {
                slot.in_objects = true;
                self.objects.push_back(key.clone());
            }
            Rank::Bulk if !slot.in_bulk && !slot.in_objects => {
                slot.in_bulk = true;
                self.bulk.push_back(key.clone());
            }
            Rank::Object | Rank::Bulk => {}
        }
    }

    fn forget_if_empty(&mut self, key: &ObjectKey) {
        let Some(slot) = self.slots.get(key) else { return };
        if slot.desired.is_some() || slot.holding.is_some() || !slot.is_idle() {
            return;
        }
        if let Some(slot) = self.slots.remove(key) {
            for sent in slot.sent {
                self.sent.remove(&sent.id);
            }
        }
    }
}

/// Books an acknowledged message; `None` when it says nothing that still matters.
fn settle(slot: &mut Slot, saying: Saying, newest: bool) -> Option<Option<ResourceVersion>> {
    match saying {
        Saying::Put { object, .. } => {
            let held = slot.holding.as_mut().filter(|held| held.uid == object.uid)?;
            held.version = Some(object.version.clone());
            Some(Some(object.version))
        }
        Saying::Delete { .. } if newest => {
            slot.holding = None;
            Some(None)
        }
        // A later message about the key is on its way, so the node may hold it by now.
        Saying::Delete { .. } => {
            if let Some(held) = &mut slot.holding {
                held.version = None;
            }
            None
        }
    }
}

fn same_target(one: &Saying, other: &Saying) -> bool {
    match (one, other) {
        (Saying::Put { object: a, .. }, Saying::Put { object: b, .. }) => {
            a.uid == b.uid && a.version == b.version
        }
        (Saying::Delete { uid: a }, Saying::Delete { uid: b }) => a == b,
        (Saying::Put { .. }, Saying::Delete { .. }) | (Saying::Delete { .. }, Saying::Put { .. }) => false,
    }
}

fn delay(attempts: u32, backoff: Backoff, seed: &mut Seed) -> Duration {
    let doubled = backoff.first.saturating_mul(1_u32 << attempts.min(DOUBLINGS_MAX));
    seed.jittered(doubled.min(backoff.max))
}
