//! One key of the mailbox: what is desired, what is held, and what follows from the two.

use crate::covers;
use kedge_wire::{ChangeVerb, MessageId, Object, ObjectKind, PlacedKind, ResourceVersion, Time, Uid};
use std::collections::VecDeque;

/// Messages of one key whose late acknowledgement is still understood. A key sends its next message only after an
/// acknowledgement or a retry delay, so four cover several retry delays.
pub(super) const SENT_REMEMBERED_MAX: usize = 4;
/// Uids that may be left under one name besides the one held last. Each is an object that was created anew while the
/// record of the old one's end got lost; more than that many in a row are no accident.
const OLDER_MAX: usize = 8;
/// The version said of an object that was sent and never acknowledged. It is older than every real version.
const UNACKNOWLEDGED: &str = "0";

/// What a node is known to hold of a uid: this version, or `None` of it.
pub(super) type Told = (Uid, Option<ResourceVersion>);

/// What a message to the node says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Saying {
    Put { verb: ChangeVerb, object: Object },
    Delete { uid: Uid },
}

impl Saying {
    fn same_target(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Put { object: a, .. }, Self::Put { object: b, .. }) => {
                a.uid == b.uid && a.version == b.version
            }
            (Self::Delete { uid: a }, Self::Delete { uid: b }) => a == b,
            (Self::Put { .. }, Self::Delete { .. }) | (Self::Delete { .. }, Self::Put { .. }) => false,
        }
    }

    /// Bytes of the body; a delete has next to none.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Put { object, .. } => object.body.json().len(),
            Self::Delete { .. } => 0,
        }
    }
}

/// Which queue a key waits in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rank {
    /// Changed while the session was running.
    Object,
    /// Part of the first full set.
    Bulk,
}

/// Everything about a key of which at most the newest fact matters. At rest it is small: the strings of what is held
/// are those of what is desired, and there is no work.
#[derive(Debug, Default)]
pub(super) struct Slot {
    desired: Option<Object>,
    held: Held,
    pub(super) work: Option<Box<Work>>,
}

/// What the node holds under a key, as far as it is known.
#[derive(Debug, Default)]
enum Held {
    #[default]
    Nothing,
    /// Exactly what is desired, acknowledged.
    Desired,
    Other(Box<Holding>),
}

#[derive(Debug)]
struct Holding {
    uid: Uid,
    version: Version,
    /// Objects of the same name, older than `uid`, that are said to be there, too. A pod among them may still run, so it is
    /// deleted; anything else is replaced under its name and goes with what is held.
    older: Vec<Uid>,
}

/// How much is known about the version of what is held.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Version {
    /// Sent or being deleted, and not acknowledged.
    Unknown,
    /// Said by somebody else than the node. The node may have lost it since, so nothing is left out because of it; but
    /// it tells who is behind when our own watch has seen less.
    Hinted(ResourceVersion),
    /// Acknowledged, or in the node's digest.
    Known(ResourceVersion),
}

impl Holding {
    /// The uids that must be deleted before anything else is said about the key.
    fn older_pods(&self, kind: &ObjectKind) -> impl Iterator<Item = &Uid> {
        let pods = *kind == ObjectKind::Pod;
        self.older.iter().filter(move |_| pods)
    }
}

impl Version {
    fn number(&self) -> Option<u64> {
        match self {
            Self::Unknown => None,
            Self::Hinted(version) | Self::Known(version) => number(version),
        }
    }
}

/// What is under way for a key.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) stage: Stage,
    pub(super) attempts: u32,
    /// The queue in which the key waits; an entry in the other one is stale.
    pub(super) queued: Option<Rank>,
    /// Newest last; the last one is the message in flight if there is one.
    pub(super) sent: VecDeque<Sent>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Stage {
    /// Nothing is under way; the key may wait in a queue.
    #[default]
    Ready,
    Flying {
        due: Time,
        bytes: usize,
    },
    /// Refused by the node; rests until the retry delay has passed.
    Resting {
        until: Time,
    },
}

#[derive(Debug)]
pub(super) struct Sent {
    pub(super) id: MessageId,
    pub(super) saying: Saying,
}

/// What a key asks for now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    InSync,
    Put,
    Delete(Uid),
    /// The node holds something of this version, which our watch has not reached: a cloud that lags must not undo what
    /// another one did. It will get there, or the patience ends.
    Wait(u64),
}

/// How far our own knowledge goes.
#[derive(Debug)]
pub(super) struct View {
    /// The first full set has been given.
    pub(super) complete: bool,
    /// Whether a node that is ahead of our watch is waited for.
    pub(super) patient: bool,
    /// The newest version of each placed kind that our watch has reached; `None`: the owner does not tell, so its watch is
    /// taken to be where the API is.
    pub(super) reached: [Option<u64>; PlacedKind::COUNT],
}

impl View {
    /// Whether a node that holds `version` is to be waited for.
    fn waits_for(&self, kind: &ObjectKind, version: u64) -> bool {
        let reached = kind.placed().and_then(|kind| self.reached[kind as usize]);
        self.patient && reached.is_some_and(|reached| reached < version)
    }
}

impl Slot {
    pub(super) fn want(&mut self, object: Option<Object>) {
        self.expand();
        self.desired = object;
        self.compact();
    }

    pub(super) fn holds_something(&self) -> bool {
        match self.held {
            Held::Nothing => false,
            Held::Desired | Held::Other(_) => true,
        }
    }

    /// Whether the node was given something under this key in this session, whatever it held before. Only for sessions
    /// that have not seen a digest yet: that tells versions, too.
    pub(super) fn was_put(&self) -> bool {
        let last = self.work.as_ref().and_then(|work| work.sent.back());
        let sent = last.is_some_and(|last| matches!(last.saying, Saying::Put { .. }));
        sent || match &self.held {
            Held::Desired => true,
            Held::Other(held) => matches!(held.version, Version::Known(_)),
            Held::Nothing => false,
        }
    }

    pub(super) fn forget_held(&mut self) {
        self.held = Held::Nothing;
    }

    /// The node itself says what it holds.
    pub(super) fn confirm(&mut self, uid: Uid, version: ResourceVersion) {
        self.held = holding(uid, Version::Known(version), Vec::new());
        self.compact();
    }

    /// Somebody else says that the node holds this. Of two uids the one with the greater version came later.
    pub(super) fn assume(&mut self, uid: Uid, version: ResourceVersion) {
        let hint = Version::Hinted(version);
        let known = match &mut self.held {
            Held::Nothing => {
                self.held = holding(uid, hint, Vec::new());
                return;
            }
            // Acknowledged in this session, so whatever else there was has gone.
            Held::Desired => return,
            Held::Other(known) if matches!(known.version, Version::Known(_)) => return,
            Held::Other(known) => known,
        };
        // What was sent in this session is newer than any record.
        let newer = matches!(known.version, Version::Hinted(_)) && hint.number() > known.version.number();
        if known.uid == uid {
            if newer {
                known.version = hint;
            }
            return;
        }
        let older = if newer {
            known.older.retain(|older| *older != uid);
            known.version = hint;
            std::mem::replace(&mut known.uid, uid)
        } else {
            uid
        };
        if !known.older.contains(&older) {
            if known.older.len() >= OLDER_MAX {
                known.older.remove(0);
            }
            known.older.push(older);
        }
    }

    pub(super) fn step(&self, kind: &ObjectKind, view: &View) -> Step {
        let replaced_only = *kind == ObjectKind::Node;
        match (&self.desired, &self.held) {
            (None, Held::Nothing | Held::Desired) | (Some(_), Held::Desired) => Step::InSync,
            (Some(_), Held::Nothing) => Step::Put,
            (None, Held::Other(_)) if replaced_only || !view.complete => Step::InSync,
            (None, Held::Other(held)) => match (held.older_pods(kind).next(), held.version.number()) {
                (Some(older), _) => Step::Delete(older.clone()),
                (None, Some(version)) if view.waits_for(kind, version) => Step::Wait(version),
                (None, Some(_) | None) => Step::Delete(held.uid.clone()),
            },
            (Some(wanted), Held::Other(held)) => {
                let older = held.older_pods(kind).find(|older| **older != wanted.uid);
                if let Some(older) = older {
                    return Step::Delete(older.clone());
                }
                let same = held.uid == wanted.uid;
                if let (true, Version::Known(version)) = (same, &held.version)
                    && covers(version, &wanted.version)
                {
                    return Step::InSync;
                }
                // Versions grow under a name, from one object to the next: what is wanted is of the past.
                if let (Some(held), Some(wanted)) = (held.version.number(), number(&wanted.version))
                    && held > wanted
                    && view.waits_for(kind, held)
                {
                    return Step::Wait(held);
                }
                if same || replaced_only {
                    Step::Put
                } else {
                    Step::Delete(held.uid.clone())
                }
            }
        }
    }

    /// The message that a step asks for.
    pub(super) fn saying(&self, step: Step) -> Option<Saying> {
        match step {
            Step::InSync | Step::Wait(_) => None,
            Step::Delete(uid) => Some(Saying::Delete { uid }),
            Step::Put => {
                let verb = if self.holds_something() {
                    ChangeVerb::Update
                } else {
                    ChangeVerb::Insert
                };
                let object = self.desired.clone()?;
                Some(Saying::Put { verb, object })
            }
        }
    }

    /// From the moment a message is sent until it is acknowledged the node may hold either state.
    pub(super) fn expect_effect(&mut self, saying: &Saying) {
        match (saying, &mut self.held) {
            (Saying::Put { object, .. }, Held::Other(held)) if held.uid == object.uid => {}
            (Saying::Put { object, .. }, Held::Nothing | Held::Desired | Held::Other(_)) => {
                self.held = holding(object.uid.clone(), Version::Unknown, Vec::new());
            }
            (Saying::Delete { uid }, Held::Other(held)) if held.uid == *uid => {
                held.version = Version::Unknown
            }
            (Saying::Delete { .. }, Held::Nothing | Held::Desired | Held::Other(_)) => {}
        }
    }

    /// Books an acknowledged message; returns what is known now, which is nothing when the message says nothing that
    /// still matters. `newest`: nothing was sent about this key after it.
    pub(super) fn settle(&mut self, kind: &ObjectKind, saying: Saying, newest: bool) -> Vec<Told> {
        self.expand();
        let told = self.book(kind, saying, newest);
        self.compact();
        told
    }

    fn book(&mut self, kind: &ObjectKind, saying: Saying, newest: bool) -> Vec<Told> {
        let Held::Other(held) = &mut self.held else {
            return Vec::new();
        };
        match saying {
            Saying::Put { object, .. } if held.uid == object.uid => {
                held.version = Version::Known(object.version.clone());
                let older = std::mem::take(&mut held.older).into_iter();
                let gone = older
                    .filter(|older| *older != object.uid)
                    .map(|older| (older, None));
                let gone: Vec<Told> = gone.collect();
                [vec![(object.uid, Some(object.version))], gone].concat()
            }
            Saying::Delete { uid } if held.uid == uid && newest => {
                let replaced = std::mem::take(&mut held.older).into_iter();
                let replaced = replaced.filter(|_| *kind != ObjectKind::Pod);
                let gone = [uid].into_iter().chain(replaced).map(|uid| (uid, None)).collect();
                self.held = Held::Nothing;
                gone
            }
            Saying::Delete { uid } if held.uid == uid => {
                // A later message about the key is on its way, so the node may hold it by now.
                held.version = Version::Unknown;
                Vec::new()
            }
            Saying::Delete { uid } if held.older.contains(&uid) => {
                held.older.retain(|older| *older != uid);
                vec![(uid, None)]
            }
            Saying::Put { .. } | Saying::Delete { .. } => Vec::new(),
        }
    }

    /// Everything that the node holds or may hold under this key.
    pub(super) fn held(&self) -> Vec<(Uid, ResourceVersion)> {
        let unacknowledged = || ResourceVersion::new(UNACKNOWLEDGED);
        match (&self.held, &self.desired) {
            (Held::Nothing, _) | (Held::Desired, None) => Vec::new(),
            (Held::Desired, Some(desired)) => vec![(desired.uid.clone(), desired.version.clone())],
            (Held::Other(held), _) => {
                let version = match &held.version {
                    Version::Unknown => unacknowledged(),
                    Version::Hinted(version) | Version::Known(version) => version.clone(),
                };
                let older = held.older.iter().map(|uid| (uid.clone(), unacknowledged()));
                older.chain([(held.uid.clone(), version)]).collect()
            }
        }
    }

    pub(super) fn work(&mut self) -> &mut Work {
        self.work.get_or_insert_default()
    }

    pub(super) fn stage(&self) -> Stage {
        self.work.as_ref().map_or(Stage::Ready, |work| work.stage)
    }

    /// Lets go of the work when there is none.
    pub(super) fn rest(&mut self) {
        if self.work.as_ref().is_some_and(|work| work.is_done()) {
            self.work = None;
        }
    }

    /// Whether nothing at all is known about the key.
    pub(super) fn is_empty(&self) -> bool {
        self.desired.is_none() && !self.holds_something()
    }

    /// Gives what is held its own strings.
    fn expand(&mut self) {
        if let (Held::Desired, Some(desired)) = (&self.held, &self.desired) {
            let version = Version::Known(desired.version.clone());
            self.held = holding(desired.uid.clone(), version, Vec::new());
        }
    }

    /// Shares the strings of what is desired once it is held.
    fn compact(&mut self) {
        if let (Held::Other(held), Some(desired)) = (&self.held, &self.desired)
            && held.older.is_empty()
            && held.uid == desired.uid
            && matches!(&held.version, Version::Known(version) if *version == desired.version)
        {
            self.held = Held::Desired;
        }
    }
}

impl Work {
    fn is_done(&self) -> bool {
        self.stage == Stage::Ready && self.queued.is_none() && self.sent.is_empty()
    }

    /// The message of this target that was sent last, if nothing else was sent since.
    pub(super) fn repeated(&self, saying: &Saying) -> Option<&Sent> {
        self.sent.back().filter(|last| last.saying.same_target(saying))
    }
}

fn holding(uid: Uid, version: Version, older: Vec<Uid>) -> Held {
    Held::Other(Box::new(Holding { uid, version, older }))
}

/// A version as a number, which is what it is with every real API.
pub(super) fn number(version: &ResourceVersion) -> Option<u64> {
    version.as_str().parse().ok()
}
