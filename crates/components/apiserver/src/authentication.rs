//! Who asks: a client certificate, a service account token, and as whom they want to be taken.

use crate::handlers::Server;
use crate::request::percent_decode;
use crate::storage::{Collection, Place};
use crate::token::{Signer, Verified};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use jiff::Timestamp;
use kedge_apimachinery::meta;
use kedge_apimachinery::rbac::{AUTHENTICATED, Access, Act, ResourceAct, User};
use kedge_apimachinery::status::Status;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Tokens whose signature was found good: checking one takes a tenth of a millisecond, and a client sends the same one
/// with every request for an hour. About one KiB each.
const TOKENS_KNOWN_MAX: usize = 4096;

type Digest = [u8; 32];

/// Reads tokens, each only once.
pub(crate) struct Tokens {
    pub(crate) signer: Signer,
    known: Mutex<HashMap<Digest, Arc<Verified>>>,
}

impl Tokens {
    pub(crate) fn new(signer: Signer) -> Self {
        Self {
            signer,
            known: Mutex::new(HashMap::new()),
        }
    }

    fn read(&self, token: &str, now_s: i64) -> Option<Arc<Verified>> {
        let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
        let digest: Digest = digest.as_ref().try_into().ok()?;
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(verified) = lock().get(&digest) {
            return Some(Arc::clone(verified));
        }
        let verified = Arc::new(self.signer.read(token)?);
        let mut known = lock();
        if known.len() >= TOKENS_KNOWN_MAX {
            known.retain(|_, verified| verified.expires_s > now_s);
        }
        // Still full of valid ones: begin again rather than think about which is used least.
        if known.len() >= TOKENS_KNOWN_MAX {
            known.clear();
        }
        known.insert(digest, Arc::clone(&verified));
        Some(verified)
    }
}

impl Server {
    /// The user of a request. A certificate counts before a token, as in Kubernetes.
    pub(crate) fn identify(
        &self,
        certificate: Option<Arc<User>>,
        headers: &HeaderMap,
    ) -> Result<Arc<User>, Status> {
        let user = match certificate {
            Some(user) => user,
            None => Arc::new(self.bearer(headers).ok_or_else(Status::unauthorized)?),
        };
        match impersonated(&self.access(), &user, headers)? {
            Some(other) => Ok(Arc::new(other)),
            None => Ok(user),
        }
    }

    fn bearer(&self, headers: &HeaderMap) -> Option<User> {
        let header = headers.get(AUTHORIZATION)?.to_str().ok()?;
        let (scheme, token) = header.split_once(' ')?;
        let ours = [self.tokens.signer.issuer().to_owned()];
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let verified = self.holder(token.trim(), &ours)?;
        Some(verified.user())
    }

    /// Who holds a token: it is ours, valid now and for one of these audiences, and what it speaks of still exists.
    pub(crate) fn holder(&self, token: &str, audiences: &[String]) -> Option<Arc<Verified>> {
        let now_s = Timestamp::now().as_second();
        let verified = self.tokens.read(token, now_s)?;
        let exists = |resource: &str, namespace: &str, name: &str, uid: &str| {
            let found = self
                .storage
                .get(&Collection::named(resource), &Place::new(namespace, name));
            found.is_some_and(|found| meta::uid(&found.value()) == uid)
        };
        let Verified {
            namespace,
            account,
            account_uid,
            bound,
            ..
        } = &*verified;
        let lives = verified.is_for(audiences, now_s)
            && exists("serviceaccounts", namespace, account, account_uid)
            && bound.as_ref().is_none_or(|bound| {
                let namespace = if bound.resource == "nodes" { "" } else { namespace };
                exists(bound.resource, namespace, &bound.name, &bound.uid)
            });
        lives.then_some(verified)
    }
}

const AS_USER: &str = "impersonate-user";
const AS_GROUP: &str = "impersonate-group";
const AS_UID: &str = "impersonate-uid";
const AS_EXTRA: &str = "impersonate-extra-";
/// Most groups and extra values that somebody may want to be taken for.
const IMPERSONATED_MAX: usize = 64;

/// The user that the headers ask to be taken for, when the real one may.
fn impersonated(access: &Access, user: &User, headers: &HeaderMap) -> Result<Option<User>, Status> {
    let texts = |name: &str| -> Result<Vec<String>, Status> {
        let values = headers.get_all(name).iter();
        let text = |value: &http::HeaderValue| value.to_str().map(str::to_owned);
        let all: Result<Vec<String>, _> = values.map(text).collect();
        all.map_err(|_| Status::bad_request(format!("header {name} is not plain text")))
    };
    let (names, groups, uids) = (texts(AS_USER)?, texts(AS_GROUP)?, texts(AS_UID)?);
    let mut extra: Vec<(String, Vec<String>)> = Vec::new();
    for header in headers.keys().filter(|key| key.as_str().starts_with(AS_EXTRA)) {
        let key = percent_decode(&header.as_str()[AS_EXTRA.len()..])
            .ok_or_else(|| Status::bad_request(format!("header {header} is not valid")))?;
        extra.push((key, texts(header.as_str())?));
    }
    let Some(name) = names.first().filter(|name| !name.is_empty()) else {
        if groups.is_empty() && uids.is_empty() && extra.is_empty() {
            return Ok(None);
        }
        return Err(Status::bad_request(
            "requested impersonation of a group, a UID or more, but no user",
        ));
    };
    let values: usize = extra.iter().map(|(_, values)| values.len()).sum();
    if groups.len() + values > IMPERSONATED_MAX {
        return Err(Status::bad_request(format!(
            "impersonation of more than {IMPERSONATED_MAX} groups and extra values"
        )));
    }
    let other = match User::as_service_account(name) {
        Some((namespace, account)) => {
            may(access, user, ("", "serviceaccounts", ""), namespace, account)?;
            let default = User::service_account(namespace, account, "");
            if groups.is_empty() {
                default
            } else {
                User::authenticated(name, groups.clone())
            }
        }
        None => {
            may(access, user, ("", "users", ""), "", name)?;
            let mut other = User {
                name: name.clone(),
                groups: groups.clone(),
                ..User::default()
            };
            if name != "system:anonymous" {
                other.join(AUTHENTICATED);
            }
            other
        }
    };
    for group in &groups {
        may(access, user, ("", "groups", ""), "", group)?;
    }
    for uid in &uids {
        may(access, user, ("authentication.k8s.io", "uids", ""), "", uid)?;
    }
    for (key, values) in &extra {
        for value in values {
            may(
                access,
                user,
                ("authentication.k8s.io", "userextras", key),
                "",
                value,
            )?;
        }
    }
    Ok(Some(User {
        uid: uids.into_iter().next().unwrap_or_default(),
        extra,
        ..other
    }))
}

/// Group, resource and subresource.
type What<'a> = (&'a str, &'a str, &'a str);

fn may(access: &Access, user: &User, what: What<'_>, namespace: &str, name: &str) -> Result<(), Status> {
    let (group, resource, subresource) = what;
    let act = Act::Resource(ResourceAct {
        verb: "impersonate",
        group,
        resource,
        subresource,
        namespace,
        name,
    });
    access.allow(user, &act).map_err(|why| act.refusal(&why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use http::HeaderName;
    use serde_json::json;

    fn check(headers: &[(&str, &str)], expected: Expect) {
        let rules = json!([
            {"apiGroups": [""], "resources": ["users"], "resourceNames": ["bob"], "verbs": ["impersonate"]},
            {"apiGroups": [""], "resources": ["groups"], "resourceNames": ["people"], "verbs": ["impersonate"]},
            {"apiGroups": [""], "resources": ["serviceaccounts"], "verbs": ["impersonate"]},
            {"apiGroups": ["authentication.k8s.io"], "resources": ["userextras/reason"], "verbs": ["impersonate"]},
        ]);
        let role = json!({"kind": "ClusterRole", "metadata": {"name": "r"}, "rules": rules});
        let binding = json!({"kind": "ClusterRoleBinding", "metadata": {"name": "b"},
            "subjects": [{"kind": "User", "name": "anna"}], "roleRef": {"kind": "ClusterRole", "name": "r"}});
        let access = Access::new(Vec::new()).with(&[role, binding]);
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                value.parse().unwrap(),
            );
        }
        let text = match impersonated(&access, &User::authenticated("anna", Vec::new()), &map) {
            Ok(None) => "nobody else".to_owned(),
            Ok(Some(user)) => user.to_value().to_string(),
            Err(status) => format!("{} {}", status.code(), status.message),
        };
        expected.assert_eq(&text);
    }

    #[test]
    fn taken_for_somebody_else() {
        check(&[], expect!["nobody else"]);
        check(
            &[(AS_USER, "bob")],
            expect![[r#"{"username":"bob","groups":["system:authenticated"]}"#]],
        );
        check(
            &[
                (AS_USER, "bob"),
                (AS_GROUP, "people"),
                ("impersonate-extra-reason", "test"),
            ],
            expect![[
                r#"{"username":"bob","groups":["people","system:authenticated"],"extra":{"reason":["test"]}}"#
            ]],
        );
        check(
            &[(AS_USER, "system:serviceaccount:default:web")],
            expect![[
                r#"{"username":"system:serviceaccount:default:web","groups":["system:serviceaccounts","system:serviceaccounts:default","system:authenticated"]}"#
            ]],
        );
        check(
            &[(AS_USER, "root")],
            expect![[
                r#"403 users "root" is forbidden: User "anna" cannot impersonate resource "users" in API group "" at the cluster scope"#
            ]],
        );
        check(
            &[(AS_USER, "bob"), (AS_GROUP, "system:masters")],
            expect![[
                r#"403 groups "system:masters" is forbidden: User "anna" cannot impersonate resource "groups" in API group "" at the cluster scope"#
            ]],
        );
        check(
            &[(AS_GROUP, "people")],
            expect!["400 requested impersonation of a group, a UID or more, but no user"],
        );
    }
}
