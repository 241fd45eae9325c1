//! What the edge asked and has no answer to yet.

use super::{RequestError, RequestId};
use kedge_wire::{MessageId, Operation, Reply, Status, Time, ToCloud};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Characters of a refusal that are kept; a cloud may put a whole page into one.
const REFUSAL_CHARS_MAX: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Requests {
    open: BTreeMap<RequestId, Open>,
    by_message: HashMap<MessageId, RequestId>,
    due: BTreeSet<(Time, RequestId)>,
    last_id: u64,
}

#[derive(Debug)]
struct Open {
    message: MessageId,
    query: bool,
    due: Time,
}

/// A request that got its answer.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) id: RequestId,
    pub(super) query: bool,
    pub(super) answer: Result<Reply, RequestError>,
}

impl Requests {
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    pub(super) fn open(&mut self, message: MessageId, query: bool, due: Time) -> RequestId {
        self.last_id += 1;
        let id = RequestId(self.last_id);
        self.by_message.insert(message.clone(), id);
        self.due.insert((due, id));
        self.open.insert(id, Open { message, query, due });
        id
    }

    pub(super) fn is_open(&self, id: RequestId) -> bool {
        self.open.contains_key(&id)
    }

    /// Ends a request; false when it had ended already.
    pub(super) fn end(&mut self, id: RequestId) -> bool {
        let Some(open) = self.open.remove(&id) else {
            return false;
        };
        self.by_message.remove(&open.message);
        self.due.remove(&(open.due, id));
        true
    }

    pub(super) fn answered(&mut self, parent: &MessageId, reply: Reply) -> Option<Answered> {
        let id = *self.by_message.get(parent)?;
        let query = self.open.get(&id)?.query;
        self.end(id);
        Some(Answered {
            id,
            query,
            answer: judge(query, reply),
        })
    }

    pub(super) fn expired(&mut self, now: Time) -> Option<RequestId> {
        let (due, id) = *self.due.first()?;
        (due <= now && self.end(id)).then_some(id)
    }

    pub(super) fn end_all(&mut self) -> Vec<RequestId> {
        self.by_message.clear();
        self.due.clear();
        std::mem::take(&mut self.open).into_keys().collect()
    }

    pub(super) fn next_timeout(&self) -> Option<Time> {
        self.due.first().map(|(due, _)| *due)
    }
}

/// Whether the cloud answers this message.
pub(super) fn wants_answer(message: &ToCloud) -> bool {
    match message {
        ToCloud::Request(request) => request.key.kind != kedge_wire::ObjectKind::Event,
        ToCloud::KubernetesCa { .. } | ToCloud::Application { .. } => true,
        ToCloud::KeepAlive
        | ToCloud::Ack(_)
        | ToCloud::Refusal(_)
        | ToCloud::Resume { .. }
        | ToCloud::Twin { .. }
        | ToCloud::Upload { .. }
        | ToCloud::Task { .. }
        | ToCloud::Volume { .. }
        | ToCloud::Other { .. } => false,
    }
}

/// Whether this message asks to read an object.
pub(super) fn is_query(message: &ToCloud) -> bool {
    matches!(message, ToCloud::Request(request) if request.route.operation == Operation::Query)
}

/// Tells an answer from a refusal. The official cloud answers the query of a missing object with a bare
/// `{"ErrStatus": …}`, which must not be taken for the object.
fn judge(query: bool, reply: Reply) -> Result<Reply, RequestError> {
    #[derive(Deserialize)]
    struct Slim<'a> {
        #[serde(default)]
        kind: Option<String>,
        #[serde(borrow, default)]
        metadata: Option<&'a RawValue>,
        #[serde(rename = "ErrStatus", borrow, default)]
        problem: Option<&'a RawValue>,
    }
    if reply.route.operation == Operation::Error {
        return Err(refused(&reply.body.content_data()));
    }
    if !query {
        return Ok(reply);
    }
    let Ok(slim) = serde_json::from_str::<Slim<'_>>(reply.body.json()) else {
        return Ok(reply);
    };
    if slim.metadata.is_none()
        && let Some(problem) = slim.problem
    {
        let status: Status = serde_json::from_str(problem.get()).unwrap_or_default();
        return Err(refused(&status.message));
    }
    if slim.kind.as_deref() == Some("Status")
        && let Ok(status) = reply.body.parse::<Status>()
    {
        return Err(refused(&status.message));
    }
    Ok(reply)
}

fn refused(text: &str) -> RequestError {
    RequestError::Refused(text.chars().take(REFUSAL_CHARS_MAX).collect())
}
