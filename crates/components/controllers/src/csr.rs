//! Certificates of the nodes' own servers: requests taken from nodes, and approved while this replica leads.

use crate::edge::reports::finished;
use crate::edge::{Answer, Caller, Outcome, refused};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kedge_cluster::{ApiError, Backoff, Class, Cluster, Watch, WatchItem, Watched};
use kedge_pki::{ServingRequest, check_serving_usages};
use kedge_placement::certificates::{NodeNames, SIGNING_REQUESTS, SigningRequest, approved};
use kedge_placement::index::Standing;
use kedge_placement::report::{ApiCall, ReplyShape};
use kedge_telemetry::channel::latest;
use kedge_telemetry::{Scope, clock};
use kedge_wire::{Body, NodeName, Operation, Request, Status};
use serde::Deserialize;
use std::time::Duration;
use tokio::time::Instant;

/// How long one approval is worked on.
const APPROVAL_WORK_MAX: Duration = Duration::from_secs(30);
/// First and longest wait before asking the API again who we are to it; an old one cannot say and never will.
const IDENTITY_RETRY: Duration = Duration::from_secs(2);
const IDENTITY_RETRY_MAX: Duration = Duration::from_secs(300);
const IDENTITY: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

/// Answers a node's insert or query of a certificate request.
pub(crate) async fn answer(
    caller: &Caller,
    node: &NodeName,
    request: &Request,
    standing: &Standing,
    deadline: Instant,
) -> (Outcome, Answer) {
    let forbidden = |why: &str| {
        let text = format!(
            "{node} may not {} {}: {why}",
            request.route.operation, request.key
        );
        (Outcome::Refused, refused(request, Status::forbidden(&text)))
    };
    let path = format!("{SIGNING_REQUESTS}/{}", request.key.name);
    match &request.route.operation {
        Operation::Insert => {
            let created = SigningRequest::read(&request.body).and_then(|asked| {
                asked.check_asked(node, &request.key.name)?;
                let names = standing.node.as_ref().map(NodeNames::of);
                let names = names.ok_or_else(|| "it has no Node object yet".to_owned())?;
                check_content(&asked, node, &names)?;
                Ok(asked.to_create(node))
            });
            match created {
                Ok(body) => {
                    let call = ApiCall::Create {
                        path: SIGNING_REQUESTS.to_owned(),
                        body,
                    };
                    let result = caller.call(Class::Other, node, &call, deadline).await;
                    finished(node, request, &call, ReplyShape::ObjectResponse, result)
                }
                Err(why) => forbidden(&why),
            }
        }
        Operation::Query => {
            let name = &request.key.name;
            if SigningRequest::is_foreign_name(node, name) {
                return forbidden("it is not a request of this node");
            }
            let call = ApiCall::Get { path };
            let result = caller.call(Class::Other, node, &call, deadline).await;
            if let Ok(found) = &result
                && !is_of(found, node)
            {
                return forbidden("it is not a request of this node");
            }
            finished(node, request, &call, ReplyShape::Raw, result)
        }
        other => {
            let text = format!("{node} asked to {other} {}, which is not served", request.key);
            (Outcome::Refused, refused(request, Status::bad_request(&text)))
        }
    }
}

/// Whether what is in the request is the node's own: its subject, its use, its names.
fn check_content(asked: &SigningRequest, node: &NodeName, names: &NodeNames) -> Result<(), String> {
    let pem = STANDARD
        .decode(asked.request())
        .map_err(|problem| format!("its request is not base64: {problem}"))?;
    let serving = ServingRequest::from_pem(&pem).map_err(|problem| problem.to_string())?;
    if serving.node != *node {
        return Err(format!("its subject is the node {}", serving.node));
    }
    check_serving_usages(asked.usages()).map_err(|problem| problem.to_string())?;
    names.check(&serving.dns_names, &serving.ips)
}

/// Whether a request in the API came from this node: by what was written down, or, for one that an official cloud took
/// before, by its subject.
fn is_of(found: &Body, node: &NodeName) -> bool {
    let Ok(found) = SigningRequest::read(found) else {
        return false;
    };
    if let Some(from) = found.node() {
        return from == node.as_str();
    }
    let pem = STANDARD.decode(found.request()).ok();
    let serving = pem.and_then(|pem| ServingRequest::from_pem(&pem).ok());
    serving.is_some_and(|serving| serving.node == *node)
}

/// Approves while this replica leads.
pub(crate) fn start(caller: Caller, mut leads: latest::Receiver<bool>, scope: &Scope) {
    scope.spawn_until_cancelled("controllers.approver", async move {
        loop {
            if leads.wait_for(|leads| *leads).await.is_err() {
                return;
            }
            tokio::select! {
                biased;
                // What only one may do ends at once when this is not the one any more.
                _ = leads.wait_for(|leads| !*leads) => {}
                () = approve_all(&caller) => {}
            }
        }
    });
}

/// Follows every certificate request for ever.
async fn approve_all(caller: &Caller) {
    let own_user = own_user(caller.cluster()).await;
    tracing::info!(own_user, "certificates of nodes' servers are approved here");
    let watched = Watched {
        path: SIGNING_REQUESTS.to_owned(),
        api_version: "certificates.k8s.io/v1",
        kind: "CertificateSigningRequest",
    };
    let mut watch = Watch::new(caller.cluster().clone(), watched);
    loop {
        match watch.next().await {
            WatchItem::Applied(body) => {
                if let Err(why) = approve(caller, &own_user, &body).await {
                    let name = body.object_meta().unwrap_or_default().name;
                    tracing::warn!(request = name, why, "a certificate request is not approved");
                }
            }
            WatchItem::Deleted(_) | WatchItem::Synced { .. } => {}
        }
    }
}

/// Approves one request if it is ours, undecided, and holds only what the Node object says.
async fn approve(caller: &Caller, own_user: &str, body: &Body) -> Result<(), String> {
    let asked = SigningRequest::read(body)?;
    if !asked.is_ours_to_approve(own_user) {
        return Ok(());
    }
    let node = asked.node().unwrap_or_default();
    let node = NodeName::new(node).map_err(|problem| problem.to_string())?;
    let deadline = Instant::now() + APPROVAL_WORK_MAX;
    let get = ApiCall::Get {
        path: format!("/api/v1/nodes/{node}"),
    };
    let text = |error: ApiError| error.to_string();
    // Not the index: what is decided here is decided by what the API holds now.
    let object = caller
        .call(Class::Other, &node, &get, deadline)
        .await
        .map_err(text)?;
    check_content(&asked, &node, &NodeNames::of(&object))?;
    let now = jiff::Timestamp::now()
        .round(jiff::Unit::Second)
        .map_or_else(|_| jiff::Timestamp::now().to_string(), |now| now.to_string());
    let approval =
        approved(body, &now).ok_or_else(|| "it is not an object that can be approved".to_owned())?;
    let put = ApiCall::Update {
        path: format!("{SIGNING_REQUESTS}/{}/approval", asked.name()),
        body: approval,
    };
    match caller.call(Class::Other, &node, &put, deadline).await {
        Ok(_) => {
            tracing::info!(%node, request = asked.name(), "the certificate of a node's server is approved");
            caller.metrics.certificates_approved.inc();
            Ok(())
        }
        // Decided or gone in between.
        Err(error) if error.is_not_found() || error.is_already_exists() => Ok(()),
        Err(error) => Err(text(error)),
    }
}

/// The name under which the API knows us; asked until it says.
async fn own_user(cluster: &Cluster) -> String {
    #[derive(Deserialize)]
    struct Review {
        status: ReviewStatus,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct ReviewStatus {
        user_info: UserInfo,
    }
    #[derive(Deserialize)]
    struct UserInfo {
        username: String,
    }
    let question = serde_json::json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let question = Body::from_value(&question).expect("maps with text keys are JSON");
    let mut backoff = Backoff::new(IDENTITY_RETRY, IDENTITY_RETRY_MAX, clock::process_seed());
    let mut warned = false;
    loop {
        let told = match cluster.create(IDENTITY, &question).await {
            Ok(review) => review
                .parse::<Review>()
                .map(|review| review.status.user_info.username)
                .map_err(|problem| problem.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match told {
            Ok(user) if !user.is_empty() => return user,
            Ok(_) => {}
            Err(error) if !warned => {
                warned = true;
                tracing::warn!(
                    error,
                    "certificates of nodes' servers are not approved until the API says who we are"
                );
            }
            Err(_) => {}
        }
        tokio::time::sleep(backoff.next(None)).await;
    }
}
