//! When a node's lease is written to the API, and what its edge is told meanwhile.
//!
//! An edge renews its lease every 10 s and wants an answer; the node controller wants to see a change within its grace
//! period of 40 to 50 s. So the edge is answered from here at once, whether the API is there or not, and the newest
//! renewal is written every [`LEASE_WRITE_INTERVAL`] or a little sooner.
//!
//! ```text
//!                first renewal                  write
//!   Idle ───────────────────────> Due ──────────────────> Writing
//!    ^                             ^                          │
//!    │        a newer renewal      │   failed, or a newer     │
//!    └──────────── waits ──────────┴───── renewal came ───────┤
//!    └───────────────────────── done ─────────────────────────┘
//! ```
//!
//! What an official edge makes of the answer: the object that it gets is the base of its next renewal, with uid and
//! version. Here both are the API's as soon as the API has told them. An edge that starts asks for its lease first, and that
//! question goes to the API; without one it is answered with 404, the edge creates its lease, and that becomes a merge into
//! the one that exists. An official cloud that takes over refuses an old version with 409; the edge then asks anew and goes
//! on.

use crate::report::ApiCall;
use kedge_wire::{Body, NodeName, ObjectKey, Operation, Request, ResourceVersion, Status, Time, Uid};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// The longest time between two writes of one node's lease. With the edge's 10 s the API sees a renewal that is at most
/// 35 s old, and a change each 25 s: under the 40 s after which old node controllers call a node dead.
pub const LEASE_WRITE_INTERVAL: Duration = Duration::from_secs(25);
/// Taken off the interval, by node, so that the nodes of a cloud that has just started do not write all at once for ever.
pub const LEASE_WRITE_JITTER_MAX: Duration = Duration::from_secs(5);
/// First wait after a failed write; doubles.
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// The longest wait after a failed write, so that an API that comes back hears of every node within a few seconds.
const RETRY_MAX: Duration = Duration::from_secs(8);
/// Doublings of the retry delay: enough to reach the maximum.
const DOUBLINGS_MAX: u32 = 4;
/// What the API may ask us to wait; a node must not be forgotten because of a wrong number.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(15);

/// The collection of node leases.
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

/// The lease of one attached node.
#[derive(Debug)]
pub struct Lease {
    interval: Duration,
    stage: Stage,
    /// As the edge last said it, without what the API adds.
    newest: Option<Body>,
    /// Uid and version that the API told last.
    known: Option<Box<(Uid, ResourceVersion)>>,
    failures: u32,
    /// The API has no such lease: the next write creates it.
    absent: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The API has the newest renewal; the next one may be written from then on.
    Idle { next: Time },
    /// A renewal waits for its time.
    Due { at: Time },
    /// A write is under way. `newer`: a renewal came meanwhile.
    Writing { began: Time, newer: bool },
}

/// What to answer, and whether the renewal took the place of one that was not written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewed {
    pub lease: Body,
    pub saved: bool,
}

/// What the API says to a question for the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    Lease(Body),
    Absent,
    /// It says nothing.
    Nothing,
}

/// A write that is to be made now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Into the lease that is there.
    Merge(ApiCall),
    /// There is none. The owner is the Node of this uid, if it is known; else whom the edge names.
    Create(Body),
}

impl Write {
    /// The call; `node_uid` is what the index says about the node.
    pub fn call(self, node: &NodeName, node_uid: Option<&Uid>) -> ApiCall {
        match self {
            Self::Merge(call) => call,
            Self::Create(lease) => ApiCall::Create {
                path: LEASES.to_owned(),
                body: owned(&lease, node, node_uid).unwrap_or(lease),
            },
        }
    }
}

/// How a lease is read before [`replaced`].
pub fn read(node: &NodeName) -> ApiCall {
    ApiCall::Get {
        path: format!("{LEASES}/{node}"),
    }
}

/// The same as a merge, for a cloud that may update leases but not patch them, as the official one: the lease that the API
/// has, with the fields of the merge in its spec.
pub fn replaced(merge: &ApiCall, current: &Body) -> Option<ApiCall> {
    let ApiCall::MergePatch { path, body } = merge else {
        return None;
    };
    let patch: Map<String, Value> = serde_json::from_str(body).ok()?;
    let mut lease: Map<String, Value> = current.parse().ok()?;
    let spec = lease.get_mut("spec")?.as_object_mut()?;
    spec.extend(patch.get("spec")?.as_object()?.clone());
    Some(ApiCall::Update {
        path: path.clone(),
        body: Body::from_value(&lease).ok()?,
    })
}

/// How a write ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    Done {
        uid: Uid,
        version: ResourceVersion,
    },
    /// 404: there is nothing to merge into.
    Absent,
    /// 409: somebody created it first.
    Exists,
    Failed {
        /// What the API asked us to wait.
        retry_after: Option<Duration>,
    },
}

impl Lease {
    /// The lease of a session that begins. `seed` differs from node to node.
    pub fn new(seed: u64) -> Self {
        let jitter_ms = u64::try_from(LEASE_WRITE_JITTER_MAX.as_millis()).unwrap_or(u64::MAX);
        let jitter = Duration::from_millis(seed % jitter_ms.max(1));
        Self {
            interval: LEASE_WRITE_INTERVAL - jitter,
            stage: Stage::Idle {
                next: Time::default(),
            },
            newest: None,
            known: None,
            failures: 0,
            absent: false,
        }
    }

    /// Whether this question must go to the API, by [`read`], and its answer to [`Lease::handle_found`]: the edge asks for
    /// its own lease and has not said anything about it in this session.
    pub fn must_ask(&self, node: &NodeName, request: &Request) -> bool {
        request.route.operation == Operation::Query
            && request.key == ObjectKey::lease(node)
            && self.newest.is_none()
    }

    /// The answer to a question that went to the API.
    pub fn handle_found(&mut self, node: &NodeName, found: Found) -> Result<Body, Status> {
        match found {
            Found::Lease(lease) => {
                let meta = lease.object_meta().unwrap_or_default();
                self.known = meta.uid.zip(meta.resource_version).map(Box::new);
                self.absent = false;
                Ok(lease)
            }
            Found::Absent => {
                self.absent = true;
                Err(Status::not_found("leases", node.as_str()))
            }
            // The edge creates what is not there, and goes on.
            Found::Nothing => Err(Status::not_found("leases", node.as_str())),
        }
    }

    /// Answers a query, an insert or an update of the node's own lease.
    pub fn handle_request(
        &mut self,
        node: &NodeName,
        request: &Request,
        now: Time,
    ) -> Result<Renewed, Status> {
        if request.key != ObjectKey::lease(node) {
            return Err(Status::forbidden(&format!(
                "{node} may not {} {}: it is the lease of another node",
                request.route.operation, request.key
            )));
        }
        match &request.route.operation {
            Operation::Query => {
                let lease = self.newest.as_ref().map(|lease| self.as_known(lease));
                let lease = lease.ok_or_else(|| Status::not_found("leases", node.as_str()))?;
                Ok(Renewed { lease, saved: false })
            }
            Operation::Insert | Operation::Update => {
                let lease = trimmed(node, &request.body).map_err(|why| {
                    Status::bad_request(&format!(
                        "{node} asked to {} its lease, but {why}",
                        request.route.operation
                    ))
                })?;
                let answer = self.as_known(&lease);
                self.newest = Some(lease);
                Ok(Renewed {
                    lease: answer,
                    saved: self.renewed(now),
                })
            }
            other => Err(Status::bad_request(&format!(
                "{node} asked to {other} its lease, which is not served: this kind has no such operation"
            ))),
        }
    }

    /// The write that is due, once. Its end is told with [`Lease::handle_written`].
    pub fn poll_write(&mut self, now: Time) -> Option<Write> {
        match self.stage {
            Stage::Due { at } if at <= now => self.write(now),
            Stage::Due { .. } | Stage::Idle { .. } | Stage::Writing { .. } => None,
        }
    }

    /// The write of what is not written yet, whatever the time: the session ends, and the next one may be far away.
    pub fn last_write(&mut self, now: Time) -> Option<Write> {
        match self.stage {
            Stage::Due { .. } => self.write(now),
            Stage::Idle { .. } | Stage::Writing { .. } => None,
        }
    }

    pub fn handle_written(&mut self, written: Written, now: Time) {
        let Stage::Writing { began, newer } = self.stage else {
            return;
        };
        match written {
            Written::Done { uid, version } => {
                self.known = Some(Box::new((uid, version)));
                self.failures = 0;
                self.absent = false;
                let next = began + self.interval;
                self.stage = match newer {
                    true => Stage::Due { at: next },
                    false => Stage::Idle { next },
                };
            }
            // A node that is not seen is in a hurry: the other way is tried at once.
            Written::Absent => self.again(true, Duration::ZERO, now),
            Written::Exists => self.again(false, Duration::ZERO, now),
            Written::Failed { retry_after } => {
                let waits = RETRY_FIRST.saturating_mul(1 << self.failures.min(DOUBLINGS_MAX));
                let wait = retry_after.map_or(Duration::ZERO, |asked| asked.min(RETRY_AFTER_MAX));
                self.again(self.absent, waits.min(RETRY_MAX).max(wait), now);
            }
        }
    }

    /// When [`Lease::poll_write`] has something to say.
    pub fn poll_timeout(&self) -> Option<Time> {
        match self.stage {
            Stage::Due { at } => Some(at),
            Stage::Idle { .. } | Stage::Writing { .. } => None,
        }
    }

    fn write(&mut self, now: Time) -> Option<Write> {
        let lease = self.newest.clone()?;
        self.stage = Stage::Writing {
            began: now,
            newer: false,
        };
        if self.absent {
            return Some(Write::Create(lease));
        }
        let name = lease.object_meta().ok()?.name;
        let spec: Spec<'_> = serde_json::from_str(lease.json()).ok()?;
        Some(Write::Merge(ApiCall::MergePatch {
            path: format!("{LEASES}/{name}"),
            body: format!("{{\"spec\":{}}}", spec.spec.get()),
        }))
    }

    fn again(&mut self, absent: bool, wait: Duration, now: Time) {
        // Two sides that say "absent" and "exists" in turns must not make us spin.
        let turns = self.failures > 0 && wait.is_zero();
        self.failures = self.failures.saturating_add(1);
        self.absent = absent;
        let wait = if turns { RETRY_FIRST } else { wait };
        self.stage = Stage::Due { at: now + wait };
    }

    /// Whether the renewal before this one was never written.
    fn renewed(&mut self, now: Time) -> bool {
        match self.stage {
            Stage::Idle { next } => {
                self.stage = Stage::Due { at: next.max(now) };
                false
            }
            Stage::Due { .. } => true,
            Stage::Writing { began, newer } => {
                self.stage = Stage::Writing { began, newer: true };
                newer
            }
        }
    }

    /// The object with the uid and version that the API told last.
    fn as_known(&self, lease: &Body) -> Body {
        let Some((uid, version)) = self.known.as_deref() else {
            return lease.clone();
        };
        let named = || -> Option<Body> {
            let mut object: Map<String, Value> = lease.parse().ok()?;
            let metadata = object.get_mut("metadata")?.as_object_mut()?;
            metadata.insert("uid".to_owned(), uid.as_str().into());
            metadata.insert("resourceVersion".to_owned(), version.as_str().into());
            Body::from_value(&object).ok()
        };
        named().unwrap_or_else(|| lease.clone())
    }
}

#[derive(Deserialize)]
struct Spec<'a> {
    #[serde(borrow)]
    spec: &'a RawValue,
}

/// The lease of this node with its type, and without the field owners that edges send back.
fn trimmed(node: &NodeName, body: &Body) -> Result<Body, String> {
    let text = body.content_data();
    let mut lease: Map<String, Value> =
        serde_json::from_str(&text).map_err(|_| "its body is not a JSON object".to_owned())?;
    let metadata = lease.get_mut("metadata").and_then(Value::as_object_mut);
    let metadata = metadata.ok_or_else(|| "its body has no metadata".to_owned())?;
    if metadata.get("name").and_then(Value::as_str) != Some(node.as_str()) {
        return Err("its body names another lease".to_owned());
    }
    metadata.shift_remove("managedFields");
    if !lease.get("spec").is_some_and(Value::is_object) {
        return Err("its body has no spec".to_owned());
    }
    lease.insert("kind".to_owned(), "Lease".into());
    lease.insert("apiVersion".to_owned(), "coordination.k8s.io/v1".into());
    Body::from_value(&lease).map_err(|problem| problem.to_string())
}

/// The lease as it is created: nothing of an earlier one, and owned by the Node that exists, because the garbage
/// collector removes what only a Node of the past owns.
fn owned(lease: &Body, node: &NodeName, node_uid: Option<&Uid>) -> Option<Body> {
    let mut object: Map<String, Value> = lease.parse().ok()?;
    let metadata = object.get_mut("metadata")?.as_object_mut()?;
    for field in ["uid", "resourceVersion", "creationTimestamp"] {
        metadata.shift_remove(field);
    }
    if let Some(uid) = node_uid {
        let owner = json!({"apiVersion": "v1", "kind": "Node", "name": node.as_str(), "uid": uid.as_str()});
        metadata.insert("ownerReferences".to_owned(), json!([owner]));
    }
    Body::from_value(&object).ok()
}
