//! Repetitions count up, much of the same kind is told as one, and an object that has too much to say is cut short.

use kedge_api::ObjectReference;
use std::collections::BTreeMap;

/// Events that are remembered, to count their repetitions.
const REMEMBERED_MAX: usize = 512;
/// Different messages of one kind about one object within [`KIND_WINDOW_MS`] before they are told as one.
const KIND_MESSAGES_MAX: usize = 10;
const KIND_WINDOW_MS: u64 = 10 * 60 * 1000;
/// An object may say so much at once, and then one thing in [`OBJECT_REFILL_MS`].
const OBJECT_BURST: u32 = 25;
const OBJECT_REFILL_MS: u64 = 5 * 60 * 1000;

/// What happened to an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct News {
    pub(super) object: ObjectReference,
    pub(super) reason: String,
    pub(super) type_: &'static str,
    pub(super) message: String,
}

/// What is said about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) news: News,
    /// Names the event: a time in nanoseconds that no other event of this node has.
    pub(super) serial: u64,
    pub(super) count: i32,
    pub(super) first_ms: u64,
    pub(super) last_ms: u64,
}

/// The object, and the part of it that is meant.
type Subject = (String, Option<String>, String, Option<String>);

#[derive(Debug, Default)]
pub(super) struct Correlator {
    told: BTreeMap<(Subject, String, String), Told>,
    kinds: BTreeMap<(Subject, String), Kind>,
    objects: BTreeMap<Subject, Allowance>,
    serial: u64,
}

/// The messages of one kind about one object.
#[derive(Debug, Default)]
struct Kind {
    messages: Vec<String>,
    last_ms: u64,
}

/// How much an object may still say.
#[derive(Debug)]
struct Allowance {
    left: u32,
    filled_ms: u64,
}

impl Correlator {
    /// What to send, if anything.
    pub(super) fn next(&mut self, mut news: News, now_ms: u64) -> Option<Told> {
        let object = &news.object;
        let subject: Subject = (
            object.uid.clone().unwrap_or_default(),
            object.namespace.clone(),
            object.name.clone(),
            object.field_path.clone(),
        );
        let combined = self.is_one_of_many(&subject, &news, now_ms);
        if combined {
            news.message = format!("(combined from similar events): {}", news.message);
        }
        if !self.may_speak(&subject, now_ms) {
            return None;
        }
        // Those that are told as one are one event, whatever they say.
        let message = if combined {
            String::new()
        } else {
            news.message.clone()
        };
        let key = (subject, news.reason.clone(), message);
        if let Some(known) = self.told.get_mut(&key) {
            known.count = known.count.saturating_add(1);
            known.last_ms = now_ms;
            known.news = news;
            return Some(known.clone());
        }
        make_room(&mut self.told, |told| told.last_ms);
        self.serial = (now_ms.saturating_mul(1_000_000)).max(self.serial + 1);
        let told = Told {
            news,
            serial: self.serial,
            count: 1,
            first_ms: now_ms,
            last_ms: now_ms,
        };
        self.told.insert(key, told.clone());
        Some(told)
    }

    fn is_one_of_many(&mut self, subject: &Subject, news: &News, now_ms: u64) -> bool {
        let key = (subject.clone(), news.reason.clone());
        if !self.kinds.contains_key(&key) {
            make_room(&mut self.kinds, |kind| kind.last_ms);
        }
        let kind = self.kinds.entry(key).or_default();
        if now_ms.saturating_sub(kind.last_ms) > KIND_WINDOW_MS {
            kind.messages.clear();
        }
        kind.last_ms = now_ms;
        if kind.messages.contains(&news.message) {
            return false;
        }
        if kind.messages.len() >= KIND_MESSAGES_MAX {
            return true;
        }
        kind.messages.push(news.message.clone());
        false
    }

    fn may_speak(&mut self, subject: &Subject, now_ms: u64) -> bool {
        let subject = (subject.0.clone(), subject.1.clone(), subject.2.clone(), None);
        if !self.objects.contains_key(&subject) {
            make_room(&mut self.objects, |allowance| allowance.filled_ms);
        }
        let allowance = self.objects.entry(subject).or_insert(Allowance {
            left: OBJECT_BURST,
            filled_ms: now_ms,
        });
        let refills = now_ms.saturating_sub(allowance.filled_ms) / OBJECT_REFILL_MS;
        let refill = u32::try_from(refills).unwrap_or(u32::MAX);
        allowance.left = allowance.left.saturating_add(refill).min(OBJECT_BURST);
        allowance.filled_ms += refills * OBJECT_REFILL_MS;
        if allowance.left == 0 {
            return false;
        }
        allowance.left -= 1;
        true
    }
}

/// Forgets what was touched longest ago, so that one more fits.
fn make_room<K: Ord + Clone, V>(map: &mut BTreeMap<K, V>, touched: impl Fn(&V) -> u64) {
    if map.len() < REMEMBERED_MAX {
        return;
    }
    let oldest = map.iter().min_by_key(|(_, value)| touched(value));
    if let Some(key) = oldest.map(|(key, _)| key.clone()) {
        map.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(object: &str, reason: &str, message: &str) -> News {
        News {
            object: ObjectReference {
                name: object.to_owned(),
                ..ObjectReference::default()
            },
            reason: reason.to_owned(),
            type_: "Normal",
            message: message.to_owned(),
        }
    }

    #[test]
    fn a_repetition_counts_up() {
        let mut correlator = Correlator::default();
        let first = correlator.next(news("web", "Pulled", "a"), 1000).unwrap();
        let other = correlator.next(news("web", "Pulled", "b"), 1000).unwrap();
        let again = correlator.next(news("web", "Pulled", "a"), 5000).unwrap();
        assert_eq!((first.count, other.count, again.count), (1, 1, 2));
        assert_eq!(
            (again.serial, again.first_ms, again.last_ms),
            (first.serial, 1000, 5000)
        );
        assert_ne!(first.serial, other.serial);
    }

    #[test]
    fn many_of_a_kind_are_one() {
        let mut correlator = Correlator::default();
        let mut next = |n: u32| correlator.next(news("web", "Failed", &format!("try {n}")), u64::from(n));
        for n in 0..10 {
            assert_eq!(next(n).unwrap().count, 1);
        }
        let combined = next(10).unwrap();
        assert_eq!(combined.news.message, "(combined from similar events): try 10");
        let again = next(11).unwrap();
        assert_eq!((again.count, again.serial), (2, combined.serial));
    }

    #[test]
    fn an_object_is_cut_short_and_others_are_not() {
        let mut correlator = Correlator::default();
        let mut told = 0;
        for n in 0..100 {
            told += u32::from(correlator.next(news("web", &format!("R{n}"), "m"), 0).is_some());
        }
        assert_eq!(told, OBJECT_BURST);
        assert!(correlator.next(news("db", "R", "m"), 0).is_some());
        assert!(correlator.next(news("web", "R", "m"), OBJECT_REFILL_MS).is_some());
        assert!(correlator.next(news("web", "R", "m"), OBJECT_REFILL_MS).is_none());
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut correlator = Correlator::default();
        for n in 0..REMEMBERED_MAX as u64 * 3 {
            correlator.next(news(&format!("pod-{n}"), "R", "m"), n);
        }
        assert_eq!(correlator.told.len(), REMEMBERED_MAX);
        assert_eq!(correlator.kinds.len(), REMEMBERED_MAX);
        assert_eq!(correlator.objects.len(), REMEMBERED_MAX);
    }

    proptest::proptest! {
        /// Whatever happens: no two events have one name, and an event is made once and then counted up.
        #[test]
        fn names_are_given_once(happenings in proptest::collection::vec((0..3_u8, 0..4_u8, 0..20_u8, 0..400_000_u64), 0..200)) {
            let mut correlator = Correlator::default();
            let mut counts: BTreeMap<u64, i32> = BTreeMap::new();
            let mut now = 0;
            for (object, reason, message, later) in happenings {
                now += later;
                let told = correlator.next(news(&format!("o{object}"), &format!("r{reason}"), &message.to_string()), now);
                if let Some(told) = told {
                    let count = counts.entry(told.serial).or_default();
                    *count += 1;
                    proptest::prop_assert_eq!(told.count, *count);
                    proptest::prop_assert!(told.first_ms <= told.last_ms);
                }
            }
        }
    }
}
