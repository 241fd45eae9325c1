//! In which order the requests of one node are worked on.
//!
//! Everything runs side by side up to a limit, but one object has one request at a time, in the order in which they came:
//! a status never overtakes a later one. Events come after everything else. Leases are not here: they wait for nothing.

use kedge_wire::{ObjectKey, ObjectKind};
use std::collections::VecDeque;

/// Requests that wait. An edge with 110 pods has at most a few hundred; more is answered with an error at once.
const WAITING_MAX: usize = 512;
/// Events that wait; more are dropped.
const EVENTS_WAITING_MAX: usize = 64;
/// Events being written at one time: they may take their time.
const EVENTS_RUNNING_MAX: usize = 2;

/// What is being worked on; give it back when done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lane {
    Object(ObjectKey),
    Event(ObjectKey),
}

/// Nothing in it is allocated while nothing waits.
#[derive(Debug)]
pub(super) struct Lanes<T> {
    calls_max: usize,
    waiting: VecDeque<(ObjectKey, T)>,
    events: VecDeque<(ObjectKey, T)>,
    running: Vec<Lane>,
    events_running: usize,
}

impl<T> Lanes<T> {
    pub(super) fn new(calls_max: usize) -> Self {
        Self {
            calls_max: calls_max.max(1),
            waiting: VecDeque::new(),
            events: VecDeque::new(),
            running: Vec::new(),
            events_running: 0,
        }
    }

    /// Takes a request; gives it back when too many wait.
    pub(super) fn add(&mut self, key: &ObjectKey, request: T) -> Result<(), T> {
        if self.waiting.len() >= WAITING_MAX {
            return Err(request);
        }
        self.waiting.push_back((object_of(key), request));
        Ok(())
    }

    /// Takes an event; gives it back when too many wait.
    pub(super) fn add_event(&mut self, key: &ObjectKey, event: T) -> Result<(), T> {
        if self.events.len() >= EVENTS_WAITING_MAX {
            return Err(event);
        }
        self.events.push_back((key.clone(), event));
        Ok(())
    }

    /// The last request about the same object that has not started.
    pub(super) fn last_waiting(&mut self, key: &ObjectKey) -> Option<&mut T> {
        let key = object_of(key);
        let mut newest_first = self.waiting.iter_mut().rev();
        newest_first
            .find(|(waiting, _)| *waiting == key)
            .map(|(_, request)| request)
    }

    /// The next request that may start now.
    pub(super) fn start(&mut self) -> Option<(Lane, T)> {
        if self.running.len() - self.events_running >= self.calls_max {
            return None;
        }
        let is_free = |lane: &Lane| !self.running.contains(lane);
        let free = self
            .waiting
            .iter()
            .position(|(key, _)| is_free(&Lane::Object(key.clone())));
        if let Some((key, request)) = free.and_then(|at| self.waiting.remove(at)) {
            let lane = Lane::Object(key);
            self.running.push(lane.clone());
            return Some((lane, request));
        }
        if self.events_running >= EVENTS_RUNNING_MAX {
            return None;
        }
        let free = self
            .events
            .iter()
            .position(|(key, _)| is_free(&Lane::Event(key.clone())))?;
        let (key, event) = self.events.remove(free)?;
        let lane = Lane::Event(key);
        self.running.push(lane.clone());
        self.events_running += 1;
        Some((lane, event))
    }

    pub(super) fn finished(&mut self, lane: &Lane) {
        let before = self.running.len();
        self.running.retain(|running| running != lane);
        if let Lane::Event(_) = lane {
            self.events_running -= before - self.running.len();
        }
    }
}

/// The object behind the several tokens that name it.
fn object_of(key: &ObjectKey) -> ObjectKey {
    match key.kind {
        ObjectKind::PodPatch | ObjectKind::PodStatus => key.with_kind(ObjectKind::Pod),
        ObjectKind::NodePatch | ObjectKind::NodeStatus => key.with_kind(ObjectKind::Node),
        ObjectKind::Pod
        | ObjectKind::ConfigMap
        | ObjectKind::Secret
        | ObjectKind::ServiceAccountToken
        | ObjectKind::Node
        | ObjectKind::Lease
        | ObjectKind::Event
        | ObjectKind::PersistentVolume
        | ObjectKind::PersistentVolumeClaim
        | ObjectKind::VolumeAttachment
        | ObjectKind::CertificateSigningRequest
        | ObjectKind::ServiceAccountAccess
        | ObjectKind::Device
        | ObjectKind::DeviceModel
        | ObjectKind::Volume
        | ObjectKind::Other(_) => key.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    /// Adds the keys with two calls at a time and finishes them in the order in which they started.
    fn check(keys: &[&str], expect: Expect) {
        let mut lanes = Lanes::new(2);
        for name in keys {
            let key = ObjectKey::parse(name).unwrap();
            let added = match key.kind == ObjectKind::Event {
                true => lanes.add_event(&key, (*name).to_owned()),
                false => lanes.add(&key, (*name).to_owned()),
            };
            added.unwrap();
        }
        let mut story = String::new();
        let mut running = VecDeque::new();
        loop {
            let started: Vec<_> = std::iter::from_fn(|| lanes.start()).collect();
            let names: Vec<&str> = started.iter().map(|(_, name)| name.as_str()).collect();
            story.push_str(&format!("start {}\n", names.join(", ")));
            running.extend(started);
            let Some((lane, name)) = running.pop_front() else {
                break;
            };
            lanes.finished(&lane);
            story.push_str(&format!("done {name}\n"));
        }
        expect.assert_eq(&story);
    }

    #[test]
    fn one_object_has_one_call_and_events_come_last() {
        check(
            &[
                "d/event/e",
                "d/podpatch/a",
                "d/podpatch/a",
                "d/pod/a",
                "d/podpatch/b",
                "null/nodepatch/e",
                "d/event/f",
            ],
            expect![[r#"
                start d/podpatch/a, d/podpatch/b
                done d/podpatch/a
                start d/podpatch/a
                done d/podpatch/b
                start null/nodepatch/e
                done d/podpatch/a
                start d/pod/a
                done null/nodepatch/e
                start d/event/e, d/event/f
                done d/pod/a
                start 
                done d/event/e
                start 
                done d/event/f
                start 
            "#]],
        );
    }

    #[test]
    fn more_than_the_limit_is_given_back() {
        let mut lanes = Lanes::new(8);
        let pod = ObjectKey::parse("default/pod/web").unwrap();
        for n in 0..WAITING_MAX {
            lanes.add(&pod, n).unwrap();
        }
        assert_eq!(lanes.add(&pod, 7), Err(7));
        let event = ObjectKey::parse("default/event/e").unwrap();
        for n in 0..EVENTS_WAITING_MAX {
            lanes.add_event(&event, n).unwrap();
        }
        assert_eq!(lanes.add_event(&event, 7), Err(7));
    }

    #[test]
    fn a_later_report_finds_the_one_that_waits() {
        let mut lanes = Lanes::new(8);
        let patch = ObjectKey::parse("default/podpatch/web").unwrap();
        lanes.add(&patch, 1).unwrap();
        let (lane, _) = lanes.start().unwrap();
        // What runs already is not touched.
        assert_eq!(lanes.last_waiting(&patch), None);
        lanes.add(&patch, 2).unwrap();
        lanes.add(&patch.with_kind(ObjectKind::Pod), 3).unwrap();
        assert_eq!(lanes.last_waiting(&patch), Some(&mut 3));
        lanes.finished(&lane);
        assert_eq!(lanes.start().map(|(_, number)| number), Some(2));
    }
}
