//! One request of one node: judged, done, answered.

use super::metrics::Outcome;
use super::owner::Leftover;
use super::worker::Shared;
use super::{Answer, answer};
use kedge_cluster::{ApiError, Class};
use kedge_link::Peer;
use kedge_placement::index::Question;
use kedge_placement::report::{
    ApiCall, Owner, Ownership, ReplyShape, Verdict, is_placed, judge, question, unplaced_pod,
};
use kedge_wire::{Body, NodeName, ObjectKey, ObjectKind, Request, Status, Uid};
use tokio::time::Instant;

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker<'a> {
    pub(super) node: &'a NodeName,
    pub(super) peer: Peer,
    pub(super) session: u64,
}

pub(super) async fn answer(
    shared: &Shared,
    asker: Asker<'_>,
    request: &Request,
    deadline: Instant,
) -> (Outcome, Answer) {
    let node = asker.node;
    let standing = match shared.standing(node, question(request)).await {
        Ok(standing) => standing,
        Err(error) => {
            let status = Status::unavailable(&error.to_string());
            return (Outcome::Failed, answer::refused(request, status));
        }
    };
    let refused = |status| (Outcome::Refused, answer::refused(request, status));
    if request.key.kind == ObjectKind::CertificateSigningRequest {
        return crate::csr::answer(&shared.caller, node, request, &standing, deadline).await;
    }
    if asker.peer == Peer::Official
        && let Some((pod, uid)) = unplaced_pod(request, &standing)
        && is_seen_late(shared, asker, pod, uid, deadline).await
    {
        let status = Status::unavailable("this cloud has not heard of the pod yet");
        return (Outcome::Failed, answer::refused(request, status));
    }
    let (call, shape, result) = match judge(node, request, &standing) {
        Verdict::Call { call, shape } => {
            let call = answer::prepared(call, request, &shared.config);
            let class = class_of(request);
            let result = if request.key.kind == ObjectKind::Event {
                // An event is worth one try.
                shared.caller.once(class, node, &call, deadline).await
            } else {
                shared.caller.call(class, node, &call, deadline).await
            };
            (call, shape, result)
        }
        Verdict::CallThenCheck { call, shape, owner } => {
            let result = shared.caller.call(Class::Other, node, &call, deadline).await;
            if let Ok(object) = &result
                && let Err(refusal) = check_owner(shared, node, request, owner, object, deadline).await
            {
                return refusal;
            }
            (call, shape, result)
        }
        Verdict::Settled => return (Outcome::Done, answer::settled()),
        Verdict::Refused(status) => return refused(status),
        Verdict::Forbidden(why) => {
            tracing::debug!(%node, route = %request.route, why, "request forbidden");
            return refused(Status::forbidden(&why));
        }
        Verdict::Unsupported(why) => {
            tracing::debug!(%node, route = %request.route, why, "request not supported");
            return refused(Status::bad_request(&why));
        }
    };
    finished(node, request, &call, shape, result)
}

/// Whether a pod that is not in the index is this node's all the same, because the API knows more than the index yet. If it
/// is not, the owner is told: the edge runs a pod that is gone, and no cloud knows that it has it. One of our own edges
/// says at the start of a session what it holds.
async fn is_seen_late(
    shared: &Shared,
    asker: Asker<'_>,
    pod: ObjectKey,
    uid: Uid,
    deadline: Instant,
) -> bool {
    let namespace = pod.namespace.as_deref().unwrap_or_default();
    let call = ApiCall::Get {
        path: format!("/api/v1/namespaces/{namespace}/pods/{}", pod.name),
    };
    match shared
        .caller
        .call(Class::Other, asker.node, &call, deadline)
        .await
    {
        Ok(found) if is_placed(&found, asker.node, &uid) => return true,
        Ok(_) => {}
        Err(error) if error.is_not_found() => {}
        // Nothing is known, so nothing is done.
        Err(_) => return true,
    }
    let leftover = Leftover {
        node: asker.node.clone(),
        session: asker.session,
        pod,
        uid,
    };
    // The owner has ended only when the process does.
    let _ = shared.leftovers.send(leftover).await;
    false
}

/// The answer to a call that was made.
pub(crate) fn finished(
    node: &NodeName,
    request: &Request,
    call: &ApiCall,
    shape: ReplyShape,
    result: Result<Body, ApiError>,
) -> (Outcome, Answer) {
    let outcome = match &result {
        Ok(_) => Outcome::Done,
        Err(error) => {
            tracing::debug!(%node, route = %request.route, %error, "request failed");
            Outcome::Failed
        }
    };
    (outcome, answer::shaped(request, call, shape, result))
}

/// Whether an object that says itself whose it is belongs to the node.
async fn check_owner(
    shared: &Shared,
    node: &NodeName,
    request: &Request,
    owner: Owner,
    object: &Body,
    deadline: Instant,
) -> Result<(), (Outcome, Answer)> {
    let forbidden = |why: &str| {
        let text = format!("{node} may not read {}: {why}", request.key);
        Err((
            Outcome::Refused,
            answer::refused(request, Status::forbidden(&text)),
        ))
    };
    let claim = match owner.judge(node, object) {
        Ownership::Ours => return Ok(()),
        Ownership::Foreign => return forbidden("it is not for this node"),
        Ownership::IfClaimed { claim } => claim,
    };
    let standing = shared.standing(node, Question::Key(claim.clone())).await;
    if !standing.is_ok_and(|standing| standing.allowed) {
        return forbidden("no pod of this node uses its claim");
    }
    let call = ApiCall::Get {
        path: claim_path(&claim),
    };
    match shared.caller.call(Class::Other, node, &call, deadline).await {
        Ok(claim) if Owner::claims(&claim, &request.key.name) => Ok(()),
        Ok(_) => forbidden("its claim is bound to another volume"),
        Err(error) if error.is_not_found() => forbidden("its claim is gone"),
        Err(error) => Err(finished(node, request, &call, ReplyShape::Raw, Err(error))),
    }
}

fn claim_path(claim: &ObjectKey) -> String {
    let namespace = claim.namespace.as_deref().unwrap_or_default();
    format!(
        "/api/v1/namespaces/{namespace}/persistentvolumeclaims/{}",
        claim.name
    )
}

/// What the budget puts first: what runs and how, then what a node asks.
fn class_of(request: &Request) -> Class {
    match request.key.kind {
        ObjectKind::Lease => Class::Lease,
        ObjectKind::Node
        | ObjectKind::NodePatch
        | ObjectKind::NodeStatus
        | ObjectKind::Pod
        | ObjectKind::PodPatch
        | ObjectKind::PodStatus => Class::Status,
        ObjectKind::ConfigMap
        | ObjectKind::Secret
        | ObjectKind::ServiceAccountToken
        | ObjectKind::PersistentVolume
        | ObjectKind::PersistentVolumeClaim
        | ObjectKind::VolumeAttachment
        | ObjectKind::CertificateSigningRequest
        | ObjectKind::Other(_) => Class::Other,
        ObjectKind::Event
        | ObjectKind::ServiceAccountAccess
        | ObjectKind::Device
        | ObjectKind::DeviceModel
        | ObjectKind::Volume => Class::Bulk,
    }
}
