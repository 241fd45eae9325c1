//! Service account tokens in volumes.
//!
//! metamanager keeps tokens durable and knows when they are due; the copy in the volume is the last resort when neither
//! it nor the cloud has one: an expired token is better than a pod that does not start without the cloud.

use super::atomic::DATA;
use crate::cloud::Cloud;
use kedge_api::{BoundObjectReference, Pod, ServiceAccountTokenProjection, TokenRequest, TokenRequestSpec};
use kedge_pods::Refusal;
use kedge_pods::translate::Inputs;
use kedge_wire::{Body, ObjectKey, ObjectKind, Operation, Time};
use std::path::Path;
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
    pub(super) token: String,
    pub(super) refresh_at: Time,
}

/// A fresh token, or the one in the volume when none can be had.
pub(super) async fn make(
    inputs: &Inputs<'_>,
    source: &ServiceAccountTokenProjection,
    cloud: &Cloud,
    dir: &Path,
    now: Time,
) -> Result<Made, Refusal> {
    let account = inputs
        .pod
        .spec
        .service_account_name
        .as_deref()
        .unwrap_or("default");
    let request = request(inputs.pod, source);
    let key = ObjectKey::namespaced(ObjectKind::ServiceAccountToken, inputs.pod.namespace(), account);
    let body = Body::from_value(&request).map_err(|error| refuse(account, &error.to_string()))?;
    let answer: Result<TokenRequest, _> = cloud.object(Operation::Query, key, body).await;
    let why = match answer {
        Ok(TokenRequest {
            status: Some(status), ..
        }) if !status.token.is_empty() => {
            let life = status
                .expiration_timestamp
                .map(|end| Time::from_ms(end.as_ms()).since(now));
            let life = life.unwrap_or(Duration::from_secs(3600)).min(AGE_MAX);
            let refresh_at = now + (life * RENEW_AFTER_PERCENT / 100).max(RETRY);
            return Ok(Made {
                token: status.token,
                refresh_at,
            });
        }
        Ok(_) => "the answer holds no token".to_owned(),
        Err(error) => error.to_string(),
    };
    match std::fs::read_to_string(dir.join(DATA).join(&source.path)) {
        Ok(token) if !token.is_empty() => Ok(Made {
            token,
            refresh_at: now + RETRY,
        }),
        Ok(_) | Err(_) => Err(refuse(account, &why)),
    }
}

/// Readable by the container's own user only, where that is known.
pub(super) fn mode(pod: &Pod, default: u32) -> u32 {
    let context = pod.spec.security_context.as_ref();
    if context.is_some_and(|context| context.fs_group.is_some()) {
        0o640
    } else {
        default
    }
}

fn request(pod: &Pod, source: &ServiceAccountTokenProjection) -> TokenRequest {
    TokenRequest {
        api_version: "authentication.k8s.io/v1".to_owned(),
        kind: "TokenRequest".to_owned(),
        spec: TokenRequestSpec {
            audiences: source
                .audience
                .iter()
                .filter(|audience| !audience.is_empty())
                .cloned()
                .collect(),
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

fn refuse(account: &str, why: &str) -> Refusal {
    Refusal::new(
        crate::objects::CONFIG_ERROR,
        format!("token of service account \"{account}\": {why}"),
    )
}
