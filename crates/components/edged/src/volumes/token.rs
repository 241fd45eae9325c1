//! Service account tokens in volumes.
//!
//! metamanager keeps tokens durable, gives the same one until it is due, and gives an old one only while it is valid and
//! the cloud is away. What stands in the volume is the last resort; where even that is gone (memory after a reboot) a
//! volume that was complete once is made without its token, because a pod that ran must start again without the cloud.
//! A token of another identity is never used, whoever gave it.

use super::atomic::DATA;
use super::content::Making;
use super::error::Error;
use crate::cloud::Cloud;
use base64::Engine as _;
use kedge_api::{
    BoundObjectReference, Pod, ServiceAccountTokenProjection, TokenRequest, TokenRequestSpec,
    TokenRequestStatus,
};
use kedge_wire::{Body, ObjectKey, ObjectKind, Operation, Time};
use serde::Deserialize;
use std::time::Duration;

/// Kubernetes' default life of a token.
const EXPIRATION_SECONDS: i64 = 3600;
/// A token is renewed when this part of its life has passed.
const RENEW_AFTER_PERCENT: u32 = 80;
/// No token is kept longer.
const AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// A token that could not be renewed is tried again after this time.
const RETRY: Duration = Duration::from_secs(60);

pub(super) struct Made {
    /// Nothing when there is none to be had and the pod shall start all the same.
    pub(super) token: Option<String>,
    pub(super) refresh_at: Time,
}

/// A fresh token, or the one in the volume when none can be had.
pub(super) async fn make(making: Making<'_>, source: &ServiceAccountTokenProjection) -> Result<Made, Error> {
    let pod = making.inputs.pod;
    let account = account(pod);
    let request = request(pod, source);
    let why = match ask(making.cloud, pod, &request).await {
        Ok(status) => return Ok(fresh(&request, status, making.now)),
        Err(why) => why,
    };
    let retry = |token| Made {
        token,
        refresh_at: making.now + RETRY,
    };
    let standing = std::fs::read_to_string(making.dir.join(DATA).join(&source.path));
    match standing {
        Ok(token) if !token.is_empty() => Ok(retry(Some(token))),
        Ok(_) | Err(_) if making.stood => {
            tracing::warn!(
                pod = pod.metadata.name,
                account,
                why,
                "pod starts without its token"
            );
            Ok(retry(None))
        }
        Ok(_) | Err(_) => Err(refuse(account, &why)),
    }
}

/// A token of the pod's account for one audience; without one for those whom the API server believes in.
pub(crate) async fn pod_token(
    cloud: &Cloud,
    pod: &Pod,
    audience: &str,
    expiration_seconds: Option<i64>,
) -> Result<TokenRequestStatus, String> {
    let source = ServiceAccountTokenProjection {
        audience: Some(audience.to_owned()),
        expiration_seconds,
        ..ServiceAccountTokenProjection::default()
    };
    let answer = ask(cloud, pod, &request(pod, &source)).await;
    answer.map_err(|why| format!("service account \"{}\": {why}", account(pod)))
}

async fn ask(cloud: &Cloud, pod: &Pod, request: &TokenRequest) -> Result<TokenRequestStatus, String> {
    let key = ObjectKey::namespaced(ObjectKind::ServiceAccountToken, pod.namespace(), account(pod));
    let body = Body::from_value(request).map_err(|error| error.to_string())?;
    let answer = cloud.object(Operation::Query, key, body).await;
    checked(pod, answer.map_err(|error| error.to_string())?)
}

/// The token of the answer, if it is one for this pod.
fn checked(pod: &Pod, answer: TokenRequest) -> Result<TokenRequestStatus, String> {
    let bound = answer.spec.bound_object_ref.as_ref();
    if bound.is_some_and(|bound| !bound.uid.is_empty() && bound.uid != pod.uid()) {
        return Err("the answer is a token of another pod".to_owned());
    }
    let status = answer.status.unwrap_or_default();
    if status.token.is_empty() {
        return Err("the answer holds no token".to_owned());
    }
    let own = format!("system:serviceaccount:{}:{}", pod.namespace(), account(pod));
    match subject(&status.token) {
        Some(subject) if subject != own => Err(format!("the answer is a token of {subject}")),
        Some(_) | None => Ok(status),
    }
}

/// Who a token says it stands for; nothing when it is not of the kind that says so. Its signature is for those to check
/// who accept it.
fn subject(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Claims {
        sub: String,
    }
    let payload = token.split('.').nth(1)?;
    let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(payload)
        .ok()?;
    serde_json::from_slice::<Claims>(&payload)
        .ok()
        .map(|claims| claims.sub)
}

/// When 80 % of its life are over, at the latest after a day.
fn fresh(request: &TokenRequest, status: TokenRequestStatus, now: Time) -> Made {
    let asked = request.spec.expiration_seconds.unwrap_or(EXPIRATION_SECONDS);
    let life = Duration::from_secs(u64::try_from(asked).unwrap_or(0));
    let left = status
        .expiration_timestamp
        .map_or(life, |end| Time::from_ms(end.as_ms()).since(now));
    // A kept token is older than the answer that brings it: it is due when a fifth of the whole life is left.
    let spared = life * (100 - RENEW_AFTER_PERCENT) / 100;
    let wait = left.saturating_sub(spared).min(AGE_MAX).max(RETRY);
    Made {
        token: Some(status.token),
        refresh_at: now + wait,
    }
}

fn account(pod: &Pod) -> &str {
    let name = pod.spec.service_account_name.as_deref();
    name.filter(|name| !name.is_empty()).unwrap_or("default")
}

/// Readable by the container's own user only, where that is known.
pub(super) fn mode(pod: &Pod, default: u32) -> u32 {
    let context = pod.spec.security_context.as_ref();
    let group = context.is_some_and(|context| context.fs_group.is_some());
    if group || owner(pod).is_some() {
        0o600
    } else {
        default
    }
}

/// The user that all containers run as, if they agree.
pub(super) fn owner(pod: &Pod) -> Option<u32> {
    let of_pod = pod
        .spec
        .security_context
        .as_ref()
        .and_then(|context| context.run_as_user);
    let user = |container: &kedge_api::Container| {
        let own = container
            .security_context
            .as_ref()
            .and_then(|context| context.run_as_user);
        own.or(of_pod)
    };
    let mut users = pod.all_containers().map(user);
    let first = users.next()??;
    users
        .all(|user| user == Some(first))
        .then(|| u32::try_from(first).ok())?
}

fn request(pod: &Pod, source: &ServiceAccountTokenProjection) -> TokenRequest {
    let audience = source.audience.iter().filter(|audience| !audience.is_empty());
    TokenRequest {
        api_version: "authentication.k8s.io/v1".to_owned(),
        kind: "TokenRequest".to_owned(),
        spec: TokenRequestSpec {
            audiences: audience.cloned().collect(),
            expiration_seconds: Some(source.expiration_seconds.unwrap_or(EXPIRATION_SECONDS)),
            bound_object_ref: Some(BoundObjectReference {
                api_version: "v1".to_owned(),
                kind: "Pod".to_owned(),
                name: pod.metadata.name.clone(),
                uid: pod.uid().to_owned(),
            }),
        },
        status: None,
    }
}

fn refuse(account: &str, why: &str) -> Error {
    Error::Unfit(format!(
        "failed to fetch token: service account \"{account}\": {why}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kedge_api::Timestamp;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        let metadata = json!({ "name": "web", "namespace": "shop", "uid": "u1" });
        serde_json::from_value(json!({ "metadata": metadata, "spec": spec })).unwrap()
    }

    fn jwt(subject: &str) -> String {
        let payload = json!({ "sub": subject }).to_string();
        format!(
            "e30.{}.sig",
            base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(payload)
        )
    }

    #[test]
    fn a_token_of_another_identity_is_not_taken() {
        let pod = pod(json!({ "serviceAccountName": "robot", "containers": [] }));
        let answer = |uid: &str, token: String| -> TokenRequest {
            serde_json::from_value(json!({
                "spec": { "boundObjectRef": { "uid": uid } }, "status": { "token": token },
            }))
            .unwrap()
        };
        let judge = |uid, token| checked(&pod, answer(uid, token)).map(|status| status.token);
        let own = jwt("system:serviceaccount:shop:robot");
        assert_eq!(judge("u1", own.clone()), Ok(own.clone()));
        assert_eq!(judge("", own.clone()), Ok(own.clone()));
        assert_eq!(judge("u1", "opaque".to_owned()), Ok("opaque".to_owned()));
        assert!(judge("u2", own).unwrap_err().contains("another pod"));
        let other = judge("u1", jwt("system:serviceaccount:shop:other"));
        assert!(other.unwrap_err().ends_with("shop:other"));
        assert!(judge("u1", String::new()).unwrap_err().contains("no token"));
    }

    #[test]
    fn a_token_is_due_at_four_fifths_of_its_life() {
        let now = Time::from_ms(1_000_000_000);
        let due = |life: i64, left: u64| {
            let source = ServiceAccountTokenProjection {
                expiration_seconds: Some(life),
                ..ServiceAccountTokenProjection::default()
            };
            let request = request(&pod(json!({ "containers": [] })), &source);
            let status = TokenRequestStatus {
                token: "t".to_owned(),
                expiration_timestamp: Some(Timestamp::from_ms(now.as_ms() + left * 1000)),
            };
            fresh(&request, status, now).refresh_at.since(now).as_secs()
        };
        assert_eq!(due(3600, 3600), 2880);
        assert_eq!(due(3600, 1800), 1080, "a kept token is due at the same moment");
        assert_eq!(due(3600, 100), 60);
        assert_eq!(due(1_000_000, 1_000_000), 24 * 3600);
    }

    #[test]
    fn the_file_belongs_to_the_user_on_whom_all_containers_agree() {
        let containers = |users: [Option<u32>; 2]| {
            let container = |user| json!({ "name": "c", "securityContext": { "runAsUser": user } });
            json!(users.map(container))
        };
        let own = |context: Value, users| {
            let pod = pod(json!({ "securityContext": context, "containers": containers(users) }));
            (owner(&pod), mode(&pod, 0o644))
        };
        assert_eq!(own(json!({}), [None, None]), (None, 0o644));
        assert_eq!(own(json!({ "runAsUser": 5 }), [None, Some(5)]), (Some(5), 0o600));
        assert_eq!(own(json!({ "runAsUser": 5 }), [None, Some(6)]), (None, 0o644));
        assert_eq!(own(json!({ "fsGroup": 7 }), [None, Some(6)]), (None, 0o600));
    }
}
