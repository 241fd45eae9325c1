//! In which order the requests of one node are worked on.
//!
//! Leases have a lane of their own, so that nothing else a node asks can make it look dead. Everything else runs side
//! by side up to a limit, but one object has one request at a time, in the order in which they came: a status never
//! overtakes a later one.

use kedge_wire::{ObjectKey, ObjectKind};
use std::collections::{HashSet, VecDeque};

/// Leases at one time: the renewals of half a minute, in case the API hangs that long.
const LEASES_MAX: usize = 3;
/// Requests that wait. An edge with 110 pods has at most a few hundred; more is answered with an error at once.
const WAITING_MAX: usize = 512;

/// What is being worked on; give it back when done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lane {
    Lease,
    Object(ObjectKey),
}

#[derive(Debug)]
pub(super) struct Lanes<T> {
    calls_max: usize,
    leases: VecDeque<T>,
    leases_running: usize,
    waiting: VecDeque<(ObjectKey, T)>,
    running: HashSet<ObjectKey>,
}

impl<T> Lanes<T> {
    pub(super) fn new(calls_max: usize) -> Self {
        Self {
            calls_max: calls_max.max(1),
            leases: VecDeque::new(),
            leases_running: 0,
            waiting: VecDeque::new(),
            running: HashSet::new(),
        }
    }

    /// Takes a request; gives it back when too many wait.
    pub(super) fn add(&mut self, key: &ObjectKey, request: T) -> Result<(), T> {
        if key.kind == ObjectKind::Lease {
            if self.leases.len() >= LEASES_MAX {
                return Err(request);
            }
            self.leases.push_back(request);
            return Ok(());
        }
        if self.waiting.len() >= WAITING_MAX {
            return Err(request);
        }
        self.waiting.push_back((object_of(key), request));
        Ok(())
    }

    /// The next request that may start now.
    pub(super) fn start(&mut self) -> Option<(Lane, T)> {
        if self.leases_running < LEASES_MAX
            && let Some(request) = self.leases.pop_front()
        {
            self.leases_running += 1;
            return Some((Lane::Lease, request));
        }
        if self.running.len() >= self.calls_max {
            return None;
        }
        let free = self
            .waiting
            .iter()
            .position(|(key, _)| !self.running.contains(key))?;
        let (key, request) = self.waiting.remove(free)?;
        self.running.insert(key.clone());
        Some((Lane::Object(key), request))
    }

    pub(super) fn finished(&mut self, lane: &Lane) {
        match lane {
            Lane::Lease => self.leases_running -= 1,
            Lane::Object(key) => {
                self.running.remove(key);
            }
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
        for key in keys {
            lanes
                .add(&ObjectKey::parse(key).unwrap(), (*key).to_owned())
                .unwrap();
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
    fn a_lease_passes_everything_and_one_object_has_one_call() {
        check(
            &[
                "d/podpatch/a",
                "d/podpatch/a",
                "d/pod/a",
                "d/podpatch/b",
                "null/nodepatch/e",
                "kube-node-lease/lease/e",
            ],
            expect![[r#"
                start kube-node-lease/lease/e, d/podpatch/a, d/podpatch/b
                done kube-node-lease/lease/e
                start 
                done d/podpatch/a
                start d/podpatch/a
                done d/podpatch/b
                start null/nodepatch/e
                done d/podpatch/a
                start d/pod/a
                done null/nodepatch/e
                start 
                done d/pod/a
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
        let lease = ObjectKey::parse("kube-node-lease/lease/e").unwrap();
        assert_eq!(lanes.add(&lease, 8), Ok(()));
        assert_eq!(lanes.start(), Some((Lane::Lease, 8)));
    }
}
