//! Service account tokens: JWTs signed with ES256.

use crate::config::OpenError;
use crate::tls::credentials;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kedge_apimachinery::rbac::User;
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, KeyPair, UnparsedPublicKey};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

/// The longest token that is looked at: ours have about 1 KiB.
const TOKEN_BYTES_MAX: usize = 16 << 10;

/// Signs and verifies tokens.
pub(crate) struct Signer {
    pair: EcdsaKeyPair,
    key_id: String,
    issuer: String,
    random: SystemRandom,
}

/// For whom a token is.
#[derive(Debug, Clone)]
pub(crate) struct Claims<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) account: &'a str,
    pub(crate) account_uid: &'a str,
    /// Kind, name and UID of the object whose end is the end of the token.
    pub(crate) bound: Option<(&'a str, &'a str, &'a str)>,
    pub(crate) audiences: Vec<String>,
    pub(crate) issued_s: i64,
    pub(crate) expires_s: i64,
    pub(crate) id: String,
}

impl Signer {
    pub(crate) fn new(key_pem: &str, issuer: &str) -> Result<Self, OpenError> {
        let failed = |detail: String| credentials("service account key", detail);
        let der =
            PrivatePkcs8KeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|e| failed(e.to_string()))?;
        let random = SystemRandom::new();
        let algorithm = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, der.secret_pkcs8_der(), &random)
            .map_err(|e| failed(format!("it is not a P-256 key in PKCS#8 ({e})")))?;
        let digest = ring::digest::digest(&ring::digest::SHA256, pair.public_key().as_ref());
        let key_id = URL_SAFE_NO_PAD.encode(&digest.as_ref()[..16]);
        Ok(Self {
            pair,
            key_id,
            issuer: issuer.to_owned(),
            random,
        })
    }

    pub(crate) fn issuer(&self) -> &str {
        &self.issuer
    }

    pub(crate) fn sign(&self, claims: &Claims<'_>) -> Result<String, &'static str> {
        let header = json!({"alg": "ES256", "kid": self.key_id});
        let mut private = json!({
            "namespace": claims.namespace,
            "serviceaccount": {"name": claims.account, "uid": claims.account_uid},
        });
        if let Some((kind, name, uid)) = claims.bound {
            private[kind.to_ascii_lowercase()] = json!({"name": name, "uid": uid});
        }
        let payload = json!({
            "aud": claims.audiences,
            "exp": claims.expires_s,
            "iat": claims.issued_s,
            "iss": self.issuer,
            "jti": claims.id,
            "kubernetes.io": private,
            "nbf": claims.issued_s,
            "sub": format!("system:serviceaccount:{}:{}", claims.namespace, claims.account),
        });
        let mut token = URL_SAFE_NO_PAD.encode(header.to_string());
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(payload.to_string()));
        let signed = self
            .pair
            .sign(&self.random, token.as_bytes())
            .map_err(|_| "the system gave no random bytes")?;
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signed.as_ref()));
        Ok(token)
    }

    /// What a token of ours says, whatever the time and whoever it is for.
    pub(crate) fn read(&self, token: &str) -> Option<Verified> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        let key = UnparsedPublicKey::new(
            &signature::ECDSA_P256_SHA256_FIXED,
            self.pair.public_key().as_ref(),
        );
        key.verify(signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).ok()?)
            .ok()?;
        let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        let payload: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        if header["alg"] != "ES256" || payload["iss"] != self.issuer.as_str() {
            return None;
        }
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let private = &payload["kubernetes.io"];
        let bound = BOUND_KINDS.iter().find_map(|(key, resource)| {
            let object = &private[*key];
            Some(Bound {
                resource,
                name: text(&object["name"])?,
                uid: text(&object["uid"])?,
            })
        });
        Some(Verified {
            namespace: text(&private["namespace"])?,
            account: text(&private["serviceaccount"]["name"])?,
            account_uid: text(&private["serviceaccount"]["uid"])?,
            bound,
            audiences: payload["aud"].as_array()?.iter().filter_map(text).collect(),
            not_before_s: payload["nbf"].as_i64()?,
            expires_s: payload["exp"].as_i64()?,
            id: text(&payload["jti"])?,
        })
    }
}

/// Where a token names the object it is bound to, and the resource of that object.
const BOUND_KINDS: [(&str, &str); 3] = [("pod", "pods"), ("secret", "secrets"), ("node", "nodes")];

/// The object whose end is the end of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) resource: &'static str,
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// What a token with our signature says. Whether its account and its object still exist is not known here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verified {
    pub(crate) namespace: String,
    pub(crate) account: String,
    pub(crate) account_uid: String,
    pub(crate) bound: Option<Bound>,
    pub(crate) audiences: Vec<String>,
    not_before_s: i64,
    pub(crate) expires_s: i64,
    id: String,
}

impl Verified {
    pub(crate) fn is_for(&self, audiences: &[String], now_s: i64) -> bool {
        let in_time = self.not_before_s <= now_s && now_s < self.expires_s;
        in_time && self.audiences.iter().any(|own| audiences.contains(own))
    }

    /// The account as a user.
    pub(crate) fn user(&self) -> User {
        let mut user = User::service_account(&self.namespace, &self.account, &self.account_uid);
        let mut say = |key: &str, value: &str| {
            let key = format!("authentication.kubernetes.io/{key}");
            user.extra.push((key, vec![value.to_owned()]));
        };
        say("credential-id", &format!("JTI={}", self.id));
        if let Some(bound) = self.bound.as_ref().filter(|bound| bound.resource == "pods") {
            say("pod-name", &bound.name);
            say("pod-uid", &bound.uid);
        }
        user
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_until_it_expires_and_only_unchanged() {
        let key = rcgen::KeyPair::generate().unwrap();
        let signer = Signer::new(&key.serialize_pem(), "https://kubernetes.default.svc").unwrap();
        let claims = Claims {
            namespace: "default",
            account: "web",
            account_uid: "u1",
            bound: Some(("Pod", "web-1", "u2")),
            audiences: vec!["https://kubernetes.default.svc".to_owned()],
            issued_s: 1000,
            expires_s: 4600,
            id: "j1".to_owned(),
        };
        let token = signer.sign(&claims).unwrap();
        let ours = [signer.issuer().to_owned()];
        let verify = |signer: &Signer, token: &str, audiences: &[String], now_s| {
            signer
                .read(token)
                .filter(|verified| verified.is_for(audiences, now_s))
        };
        let user = verify(&signer, &token, &ours, 1001).unwrap().user();
        assert_eq!(user.name, "system:serviceaccount:default:web");
        let bound = signer.read(&token).unwrap().bound.unwrap();
        assert_eq!(
            (bound.resource, &*bound.name, &*bound.uid),
            ("pods", "web-1", "u2")
        );
        assert_eq!(verify(&signer, &token, &ours, 4600), None);
        assert_eq!(verify(&signer, &token, &ours, 999), None);
        let (head, tail) = token.split_at(token.len() / 2);
        assert_eq!(
            verify(&signer, &format!("{head}A{}", &tail[1..]), &ours, 1001),
            None
        );
        let other = Signer::new(
            &rcgen::KeyPair::generate().unwrap().serialize_pem(),
            signer.issuer(),
        )
        .unwrap();
        assert_eq!(verify(&other, &token, &ours, 1001), None);
        let elsewhere = Claims {
            audiences: vec!["vault".to_owned()],
            ..claims
        };
        let token = signer.sign(&elsewhere).unwrap();
        assert_eq!(verify(&signer, &token, &ours, 1001), None);
        assert!(verify(&signer, &token, &["vault".to_owned()], 1001).is_some());
    }
}
