//! Which new pods the node takes.

use super::Pods;
use crate::admission::{self, Candidate, Node, Rejection};
use crate::worker::{PREEMPTING, Wish, Worker};
use crate::{Eviction, is_critical};
use kedge_api::Pod;
use std::time::Duration;

/// What a pod is told that had to make room.
const PREEMPTED: &str = "Preempted in order to admit critical pod";
const SHUTTING_DOWN: &str = "Pod was rejected as the node is shutting down.";
/// Who makes room has its own grace.
const PREEMPTION_GRACE: Duration = Duration::MAX;

/// What becomes of a new pod.
enum Verdict {
    Taken,
    Refused(Rejection),
    /// Others are going, and then there will be room.
    Later,
    /// These must go first.
    AfterThese(Vec<String>),
}

impl Pods {
    /// Judges a pod once, when nothing of it exists yet. Returns whether it may be worked on.
    pub(super) fn admit(&mut self, uid: &str) -> bool {
        let Some(worker) = self.workers.get(uid) else {
            return false;
        };
        if worker.admitted || worker.is_terminal() || worker.wish != Wish::Run || self.observed.is_none() {
            return true;
        }
        if worker.is_held() {
            return false;
        }
        let verdict = if worker.exists() {
            Verdict::Taken
        } else {
            self.judge(uid, worker)
        };
        match verdict {
            Verdict::Later => return false,
            Verdict::AfterThese(victims) => {
                self.preempt(&victims);
                return false;
            }
            Verdict::Taken | Verdict::Refused(_) => {}
        }
        if let Some(worker) = self.workers.get_mut(uid) {
            match verdict {
                Verdict::Refused(rejection) => worker.reject(&rejection, &mut self.effects),
                Verdict::Taken | Verdict::Later | Verdict::AfterThese(_) => worker.admit(),
            }
        }
        true
    }

    fn judge(&self, uid: &str, worker: &Worker) -> Verdict {
        if self.shutting_down {
            return Verdict::Refused(Rejection::new("NodeShutdown", SHUTTING_DOWN));
        }
        let node = Node {
            config: &self.config,
            allocatable: &self.allocatable,
            labels: &self.node.labels,
            taints: &self.node.taints,
            pressures: self.pressures,
        };
        let holding = || {
            let others = self.workers.iter().filter(move |(other, _)| *other != uid);
            others.filter(|(_, other)| other.holds_resources())
        };
        let all: Vec<&Pod> = holding().map(|(_, other)| other.pod.as_ref()).collect();
        let Err(rejection) = admission::judge(&node, &worker.pod, &all) else {
            return Verdict::Taken;
        };
        let staying: Vec<(&String, &Worker)> = holding().filter(|(_, other)| !other.is_leaving()).collect();
        let pods: Vec<&Pod> = staying.iter().map(|(_, other)| other.pod.as_ref()).collect();
        let rejection = match admission::judge(&node, &worker.pod, &pods) {
            // What is in the way is leaving: the pod need not fail for being early.
            Ok(()) => return Verdict::Later,
            Err(later) if later.lacking.is_empty() => return Verdict::Refused(later),
            Err(later) => {
                if !is_critical(&worker.pod) {
                    return Verdict::Refused(rejection);
                }
                later
            }
        };
        let candidates: Vec<Candidate<'_>> = staying
            .iter()
            .map(|(uid, other)| Candidate { uid, pod: &other.pod })
            .collect();
        match admission::victims(&worker.pod, &rejection.lacking, &candidates) {
            Some(victims) => Verdict::AfterThese(victims),
            None => Verdict::Refused(admission::no_victims(&rejection)),
        }
    }

    fn preempt(&mut self, victims: &[String]) {
        let eviction = Eviction {
            reason: PREEMPTING.to_owned(),
            message: PREEMPTED.to_owned(),
            grace: PREEMPTION_GRACE,
        };
        for uid in victims {
            if let Some(worker) = self.workers.get_mut(uid) {
                worker.evict(&eviction, &mut self.effects);
            }
        }
    }
}
