//! The node's requests being worked on, and the answers that wait for the socket.

use kedge_wire::{
    Body, Envelope, Group, Header, Letter, MessageId, ObjectKind, Operation, Reply, ResourceVersion,
};
use kedge_wire::{Request, Resource, Route, Source, Time, ToEdge};
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// How long the cloud remembers a request: the official edge gives up after 60 s, so a later answer helps nobody.
pub const REQUEST_AGE_MAX: Duration = Duration::from_secs(60);

/// The order in which answers leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Lease,
    Status,
    Query,
}

#[derive(Debug)]
struct Asked {
    route: Route,
    rank: Rank,
    since: Time,
}

#[derive(Debug, Default)]
pub(super) struct Replies {
    asked: HashMap<MessageId, Asked>,
    arrived: VecDeque<(Time, MessageId)>,
    lease: VecDeque<Envelope>,
    status: VecDeque<Envelope>,
    query: VecDeque<Envelope>,
}

impl Replies {
    /// Requests being worked on plus answers not yet taken by the socket.
    pub(super) fn load(&self) -> usize {
        self.asked.len() + self.lease.len() + self.status.len() + self.query.len()
    }

    /// Remembers a request; false when it is already being worked on, which a repetition is.
    pub(super) fn ask(&mut self, id: &MessageId, request: &Request, now: Time) -> bool {
        let route = Route::from_edge_controller(Operation::Response, request.route.resource.clone());
        self.remember(id, route, rank(&request.key.kind), now)
    }

    /// Remembers the question for the Kubernetes CA certificate.
    pub(super) fn ask_kubernetes_ca(&mut self, id: &MessageId, now: Time) -> bool {
        let route = Route::new(
            Source::CloudHub,
            Group::Resource,
            Operation::Response,
            Resource::KubernetesCa,
        );
        self.remember(id, route, Rank::Query, now)
    }

    fn remember(&mut self, id: &MessageId, route: Route, rank: Rank, now: Time) -> bool {
        if self.asked.contains_key(id) {
            return false;
        }
        self.asked.insert(
            id.clone(),
            Asked {
                route,
                rank,
                since: now,
            },
        );
        self.arrived.push_back((now, id.clone()));
        true
    }

    /// No answer will be sent.
    pub(super) fn dismiss(&mut self, id: &MessageId) {
        self.asked.remove(id);
        self.forget_settled();
    }

    /// Queues the answer to `parent`; nothing happens when nobody waits for it.
    pub(super) fn answer(
        &mut self,
        parent: &MessageId,
        id: MessageId,
        body: Body,
        version: Option<ResourceVersion>,
        operation: Operation,
        timestamp_ms: i64,
    ) {
        let Some(asked) = self.asked.remove(parent) else {
            return;
        };
        self.forget_settled();
        let route = Route {
            operation,
            ..asked.route
        };
        let envelope = seal(id, parent, Reply { route, version, body }, timestamp_ms);
        match asked.rank {
            Rank::Lease => self.lease.push_back(envelope),
            Rank::Status => self.status.push_back(envelope),
            Rank::Query => self.query.push_back(envelope),
        }
    }

    /// Lease answers first: a node that looks dead is the worst that a slow socket can cause.
    pub(super) fn next(&mut self) -> Option<Envelope> {
        let queues = [&mut self.lease, &mut self.status, &mut self.query];
        let next = queues.into_iter().find_map(VecDeque::pop_front);
        if self.load() == 0 {
            self.rest();
        }
        next
    }

    /// Gives memory back: a session has nothing open nearly always.
    fn rest(&mut self) {
        self.asked.shrink_to_fit();
        self.arrived.shrink_to_fit();
        for queue in [&mut self.lease, &mut self.status, &mut self.query] {
            queue.shrink_to_fit();
        }
    }

    /// Forgets requests that are too old for anyone to wait for.
    pub(super) fn expire(&mut self, now: Time) {
        while let Some((since, id)) = self.arrived.front()
            && *since + REQUEST_AGE_MAX <= now
        {
            if self.asked.get(id).is_some_and(|asked| asked.since == *since) {
                self.asked.remove(id);
            }
            self.arrived.pop_front();
        }
        self.forget_settled();
    }

    pub(super) fn next_timeout(&self) -> Option<Time> {
        self.arrived.front().map(|(since, _)| *since + REQUEST_AGE_MAX)
    }

    /// Keeps the order of arrival no longer than twice the open requests, so that it is bounded as they are.
    fn forget_settled(&mut self) {
        while let Some((_, id)) = self.arrived.front()
            && !self.asked.contains_key(id)
        {
            self.arrived.pop_front();
        }
        if self.arrived.len() > 2 * self.asked.len() + 16 {
            let asked = &self.asked;
            self.arrived
                .retain(|(since, id)| asked.get(id).is_some_and(|open| open.since == *since));
        }
    }
}

fn seal(id: MessageId, parent: &MessageId, reply: Reply, timestamp_ms: i64) -> Envelope {
    let header = Header {
        id,
        parent: Some(parent.clone()),
        timestamp_ms,
        resource_version: reply.version.clone(),
        sync: false,
        kind: None,
    };
    Letter {
        header,
        message: ToEdge::Reply(reply),
    }
    .seal()
}

fn rank(kind: &ObjectKind) -> Rank {
    match kind {
        ObjectKind::Lease => Rank::Lease,
        ObjectKind::Pod
        | ObjectKind::PodPatch
        | ObjectKind::PodStatus
        | ObjectKind::Node
        | ObjectKind::NodePatch
        | ObjectKind::NodeStatus => Rank::Status,
        ObjectKind::ConfigMap
        | ObjectKind::Secret
        | ObjectKind::ServiceAccountToken
        | ObjectKind::Event
        | ObjectKind::PersistentVolume
        | ObjectKind::PersistentVolumeClaim
        | ObjectKind::VolumeAttachment
        | ObjectKind::CertificateSigningRequest
        | ObjectKind::ServiceAccountAccess
        | ObjectKind::Device
        | ObjectKind::DeviceModel
        | ObjectKind::Volume
        | ObjectKind::Other(_) => Rank::Query,
    }
}
