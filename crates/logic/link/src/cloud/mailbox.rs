//! What one node must hold, what it holds, and what is on its way: state, not events.
//!
//! Only the newest desired version of a key exists here, so the mailbox is as large as the node's objects and no
//! larger, however long the node is away and however fast its objects change.

use super::slot::{Rank, SENT_REMEMBERED_MAX, Saying, Sent, Slot, Stage, Step, Told, View, number};
use crate::seed::Seed;
use kedge_wire::{MessageId, Object, ObjectKey, ObjectKind, PlacedKind, ResourceVersion, Time, Uid};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Bytes sent and not acknowledged beyond which the next object waits. Objects of an ordinary size never meet it; of
/// large ones (a config map may have 1 MiB) a slow link has one or two on the way instead of a whole window.
pub const IN_FLIGHT_BYTES_MAX: usize = 1024 * 1024;
/// The slowest link that is served without repeating what is still on its way: an acknowledgement is waited for
/// longer by the time that such a link needs for the bytes before it.
const SLOW_LINK_BYTES_PER_SECOND: u64 = 32 * 1024;
/// How long a node may be ahead of our watch before we act on what we know. A watch lags by a second or so; one that
/// lags longer than this belongs to a cloud that should not take new nodes.
pub const LAG_WAIT_MAX: Duration = Duration::from_secs(10);
/// Doublings of the retry delay; 2^16 times any sensible delay is above any sensible maximum.
const DOUBLINGS_MAX: u32 = 16;

/// A key, shared by the map, the queues and the timers.
type Key = Arc<ObjectKey>;

/// When an unacknowledged message is sent again, and how many are on the way at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    pub(super) first: Duration,
    pub(super) max: Duration,
    pub(super) window: usize,
}

/// A message about one key, ready to be put into an envelope.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) id: MessageId,
    pub(super) key: ObjectKey,
    pub(super) saying: Saying,
}

/// What an acknowledgement means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Acknowledged {
    /// What the node holds under this key now; nothing when it came too late to say anything about that.
    Settled { key: ObjectKey, told: Vec<Told> },
    /// Never sent, or acknowledged before.
    Unknown,
}

#[derive(Debug)]
pub(super) struct Mailbox {
    /// Boxed, because a tree keeps room for twice as many.
    slots: BTreeMap<Key, Box<Slot>>,
    objects: VecDeque<Key>,
    bulk: VecDeque<Key>,
    /// Every remembered message id and its key.
    sent: HashMap<MessageId, Key>,
    timers: BTreeSet<(Time, Key)>,
    view: View,
    /// When patience with our own watch ends; counted from the first full set.
    patient_until: Option<Time>,
    /// Keys of the first full set that the node has not been seen to hold as it is desired, or was at some moment since;
    /// nothing before that set is known, and after [`Mailbox::take_settled`].
    owed: Option<BTreeSet<Key>>,
    /// Keys whose held version our watch has not reached.
    ahead: BTreeMap<ObjectKind, BTreeSet<(u64, Key)>>,
    flying: usize,
    flying_bytes: usize,
    waiting: usize,
    refusals: u64,
    retries: u64,
    /// Decisions taken about a key; tests count them, because they must grow with the work and not with its square.
    steps: u64,
}

impl Default for Mailbox {
    fn default() -> Self {
        let view = View {
            complete: false,
            patient: true,
            reached: [None; PlacedKind::COUNT],
        };
        Self {
            slots: BTreeMap::new(),
            objects: VecDeque::new(),
            bulk: VecDeque::new(),
            sent: HashMap::new(),
            timers: BTreeSet::new(),
            view,
            patient_until: None,
            owed: None,
            ahead: BTreeMap::new(),
            flying: 0,
            flying_bytes: 0,
            waiting: 0,
            refusals: 0,
            retries: 0,
            steps: 0,
        }
    }
}

impl Mailbox {
    /// Somebody else than the node says that it holds this.
    pub(super) fn assume(&mut self, key: ObjectKey, uid: Uid, version: ResourceVersion) {
        if key.kind.placed().is_none() {
            return;
        }
        let key = self.key(key);
        let slot = self.slots.entry(Arc::clone(&key)).or_default();
        slot.assume(uid, version);
        self.enqueue_if_due(&key, Rank::Bulk);
    }

    /// The node itself says what it held when the session began. Its word replaces every assumption, and gives way only
    /// to what was put there in this session.
    pub(super) fn resume(&mut self, held: Vec<(ObjectKey, Uid, ResourceVersion)>) {
        for slot in self.slots.values_mut().filter(|slot| !slot.was_put()) {
            slot.forget_held();
        }
        for (key, uid, version) in held {
            if key.kind.placed().is_none() {
                continue;
            }
            let slot = self.slots.entry(self.key(key)).or_default();
            if !slot.was_put() {
                slot.confirm(uid, version);
            }
        }
        self.owe_all();
        self.requeue_all();
    }

    pub(super) fn want(&mut self, key: ObjectKey, object: Option<Object>) {
        if let Some(object) = &object
            && key
                .kind
                .placed()
                .is_some_and(|kind| self.view.reached[kind as usize].is_some())
        {
            self.reach(&key.kind, &object.version);
        }
        let rank = if self.view.complete {
            Rank::Object
        } else {
            Rank::Bulk
        };
        let key = self.key(key);
        self.slots.entry(Arc::clone(&key)).or_default().want(object);
        self.enqueue_if_due(&key, rank);
        self.tidy(&key);
    }

    /// Our watch of `kind` has got as far as `version`.
    pub(super) fn reach(&mut self, kind: &ObjectKind, version: &ResourceVersion) {
        let (Some(place), Some(version)) = (kind.placed(), number(version)) else {
            return;
        };
        let reached = &mut self.view.reached[place as usize];
        *reached = Some(version).max(*reached);
        while let Some(ahead) = self.ahead.get_mut(kind) {
            if ahead.first().is_none_or(|(held, _)| *held > version) {
                return;
            }
            if let Some((_, key)) = ahead.pop_first() {
                self.enqueue_if_due(&key, Rank::Bulk);
            }
        }
    }

    /// The first full set is known: the rest of what the node holds may go.
    pub(super) fn complete(&mut self, now: Time) {
        if self.view.complete {
            return;
        }
        self.view.complete = true;
        self.patient_until = Some(now + LAG_WAIT_MAX);
        self.owe_all();
        self.requeue_all();
    }

    /// From the first full set on, every key is owed until it was in step once.
    fn owe_all(&mut self) {
        if self.view.complete {
            self.owed = Some(self.slots.keys().cloned().collect());
        }
    }

    /// The node has come to hold the first full set. True once, however often its objects have changed meanwhile.
    pub(super) fn take_settled(&mut self) -> bool {
        let settled = self.owed.as_ref().is_some_and(BTreeSet::is_empty);
        if settled {
            self.owed = None;
        }
        settled
    }

    fn settled(&mut self, key: &Key) {
        if let Some(owed) = &mut self.owed {
            owed.remove(key);
        }
    }

    /// The next message, if the window has room and a key waits.
    pub(super) fn next(&mut self, now: Time, pace: Pace, seed: &mut Seed) -> Option<Outgoing> {
        while self.flying < pace.window && (self.flying == 0 || self.flying_bytes < IN_FLIGHT_BYTES_MAX) {
            let key = self.dequeue()?;
            if let Some(outgoing) = self.launch(&key, now, pace, seed) {
                return Some(outgoing);
            }
            self.tidy(&key);
        }
        None
    }

    fn dequeue(&mut self) -> Option<Key> {
        loop {
            let (key, rank) = match self.objects.pop_front() {
                Some(key) => (key, Rank::Object),
                None => (self.bulk.pop_front()?, Rank::Bulk),
            };
            let work = self.slots.get_mut(&key).and_then(|slot| slot.work.as_mut());
            if let Some(work) = work.filter(|work| work.queued == Some(rank)) {
                work.queued = None;
                self.waiting -= 1;
                return Some(key);
            }
        }
    }

    fn launch(&mut self, key: &Key, now: Time, pace: Pace, seed: &mut Seed) -> Option<Outgoing> {
        let slot = self.slots.get_mut(key)?;
        if slot.stage() != Stage::Ready {
            return None;
        }
        self.steps += 1;
        let saying = slot.saying(slot.step(&key.kind, &self.view))?;
        let work = slot.work();
        let (id, saying) = match work.repeated(&saying) {
            Some(last) => (last.id.clone(), last.saying.clone()),
            None => {
                let id = seed.message_id();
                work.sent.push_back(Sent {
                    id: id.clone(),
                    saying: saying.clone(),
                });
                self.sent.insert(id.clone(), Arc::clone(key));
                (id, saying)
            }
        };
        if work.sent.len() > SENT_REMEMBERED_MAX
            && let Some(forgotten) = work.sent.pop_front()
        {
            self.sent.remove(&forgotten.id);
        }
        let bytes = saying.bytes();
        self.flying += 1;
        self.flying_bytes += bytes;
        let due = now + delay(work.attempts, pace, seed) + transfer(self.flying_bytes);
        work.stage = Stage::Flying { due, bytes };
        slot.expect_effect(&saying);
        self.timers.insert((due, Arc::clone(key)));
        Some(Outgoing {
            id,
            key: (**key).clone(),
            saying,
        })
    }

    /// The node acknowledged message `id`.
    pub(super) fn acknowledged(&mut self, id: &MessageId) -> Acknowledged {
        let Some(key) = self.sent.get(id).cloned() else {
            return Acknowledged::Unknown;
        };
        let told = self.settle(&key, id).unwrap_or_default();
        Acknowledged::Settled {
            key: Arc::unwrap_or_clone(key),
            told,
        }
    }

    fn settle(&mut self, key: &Key, id: &MessageId) -> Option<Vec<Told>> {
        let slot = self.slots.get_mut(key)?;
        let work = slot.work.as_mut()?;
        let index = work.sent.iter().position(|sent| sent.id == *id)?;
        let newest = index + 1 == work.sent.len();
        let mut saying = None;
        for sent in work.sent.drain(..=index) {
            self.sent.remove(&sent.id);
            saying = Some(sent.saying);
        }
        if newest {
            work.attempts = 0;
        }
        let saying = saying?;
        let put = matches!(saying, Saying::Put { .. });
        let told = slot.settle(&key.kind, saying, newest);
        if put {
            self.settled(key);
        }
        if newest {
            self.land(key);
        }
        self.enqueue_if_due(key, Rank::Object);
        self.tidy(key);
        Some(told)
    }

    /// The node could not do what message `id` asked: it is asked again after a delay, for as long as it takes. False
    /// when that message is not known.
    pub(super) fn refused(&mut self, id: &MessageId, now: Time, pace: Pace, seed: &mut Seed) -> bool {
        let Some(key) = self.sent.get(id).cloned() else {
            return false;
        };
        self.refusals += 1;
        let Some(work) = self.slots.get_mut(&key).and_then(|slot| slot.work.as_mut()) else {
            return true;
        };
        let newest = work.sent.back().is_some_and(|sent| sent.id == *id);
        if !newest || !matches!(work.stage, Stage::Flying { .. }) {
            return true;
        }
        work.attempts = work.attempts.saturating_add(1);
        let until = now + delay(work.attempts, pace, seed);
        self.land(&key);
        if let Some(slot) = self.slots.get_mut(&key) {
            slot.work().stage = Stage::Resting { until };
            self.timers.insert((until, key));
        }
        true
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
            let work = slot.work();
            match work.stage {
                Stage::Ready => {}
                Stage::Flying { bytes, .. } => {
                    work.attempts = work.attempts.saturating_add(1);
                    self.flying -= 1;
                    self.flying_bytes -= bytes;
                    self.retries += 1;
                }
                Stage::Resting { .. } => {}
            }
            work.stage = Stage::Ready;
            self.enqueue_if_due(&key, Rank::Object);
            self.tidy(&key);
        }
        if self.patient_until.is_some_and(|until| until <= now) {
            self.patient_until = None;
            self.view.patient = false;
            self.ahead.clear();
            self.requeue_all();
        }
    }

    pub(super) fn next_timeout(&self) -> Option<Time> {
        let timer = self.timers.first().map(|(due, _)| *due);
        timer.into_iter().chain(self.patient_until).min()
    }

    /// Everything that the node holds or may hold.
    pub(super) fn held(&self) -> Vec<(ObjectKey, Uid, ResourceVersion)> {
        let held = |(key, slot): (&Key, &Slot)| {
            let key = (**key).clone();
            let named = slot.held().into_iter();
            named.map(move |(uid, version)| (key.clone(), uid, version))
        };
        let slots = self.slots.iter().map(|(key, slot)| (key, &**slot));
        slots.flat_map(held).collect()
    }

    /// Messages sent and not acknowledged.
    pub(super) fn in_flight(&self) -> usize {
        self.flying
    }

    /// Bytes sent and not acknowledged.
    pub(super) fn in_flight_bytes(&self) -> usize {
        self.flying_bytes
    }

    /// Keys that wait for the window.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    pub(super) fn refusals(&self) -> u64 {
        self.refusals
    }

    pub(super) fn retries(&self) -> u64 {
        self.retries
    }

    pub(super) fn steps(&self) -> u64 {
        self.steps
    }

    /// The one shared copy of a key.
    fn key(&self, key: ObjectKey) -> Key {
        match self.slots.get_key_value(&key) {
            Some((shared, _)) => Arc::clone(shared),
            None => Arc::new(key),
        }
    }

    fn requeue_all(&mut self) {
        let keys: Vec<Key> = self.slots.keys().cloned().collect();
        for key in keys {
            self.enqueue_if_due(&key, Rank::Bulk);
            self.tidy(&key);
        }
    }

    /// Takes the key out of the air, whatever its stage was.
    fn land(&mut self, key: &Key) {
        let Some(work) = self.slots.get_mut(key).and_then(|slot| slot.work.as_mut()) else {
            return;
        };
        match std::mem::take(&mut work.stage) {
            Stage::Ready => {}
            Stage::Flying { due, bytes } => {
                self.flying -= 1;
                self.flying_bytes -= bytes;
                self.timers.remove(&(due, Arc::clone(key)));
            }
            Stage::Resting { until } => {
                self.timers.remove(&(until, Arc::clone(key)));
            }
        }
    }

    /// Puts the key into a queue once, if it is ready and out of step.
    fn enqueue_if_due(&mut self, key: &Key, rank: Rank) {
        let Some(slot) = self.slots.get_mut(key) else {
            return;
        };
        if slot.stage() != Stage::Ready {
            return;
        }
        self.steps += 1;
        match slot.step(&key.kind, &self.view) {
            Step::InSync => return self.settled(key),
            Step::Wait(version) => {
                let ahead = self.ahead.entry(key.kind.clone()).or_default();
                ahead.insert((version, Arc::clone(key)));
                return;
            }
            Step::Put | Step::Delete(_) => {}
        }
        let work = slot.work();
        let queue = match (work.queued, rank) {
            (Some(Rank::Object), _) | (Some(Rank::Bulk), Rank::Bulk) => return,
            (None | Some(Rank::Bulk), Rank::Object) => &mut self.objects,
            (None, Rank::Bulk) => &mut self.bulk,
        };
        queue.push_back(Arc::clone(key));
        if work.queued.replace(rank).is_none() {
            self.waiting += 1;
        }
    }

    /// Gives memory back: of a key that came to rest, of one that nothing is known about, and of the queues when the
    /// whole mailbox is at rest, which it is nearly always.
    fn tidy(&mut self, key: &Key) {
        if let Some(slot) = self.slots.get_mut(key) {
            slot.rest();
            if slot.is_empty() && slot.work.is_none() {
                self.slots.remove(key);
            }
        }
        if self.flying == 0 && self.waiting == 0 {
            self.objects = VecDeque::new();
            self.bulk = VecDeque::new();
            self.sent.shrink_to_fit();
            if self.timers.is_empty() {
                self.timers = BTreeSet::new();
            }
        }
    }
}

fn delay(attempts: u32, pace: Pace, seed: &mut Seed) -> Duration {
    let doubled = pace.first.saturating_mul(1_u32 << attempts.min(DOUBLINGS_MAX));
    seed.jittered(doubled.min(pace.max))
}

/// How long a slow link is busy with so many bytes.
fn transfer(bytes: usize) -> Duration {
    Duration::from_millis(bytes as u64 * 1000 / SLOW_LINK_BYTES_PER_SECOND)
}
