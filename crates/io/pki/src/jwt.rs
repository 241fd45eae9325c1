//! JSON Web Tokens, the two kinds kedge uses: HS256 for joining, ES256 for service accounts.

use crate::{Error, Key, show_time};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, UnparsedPublicKey,
};
use ring::{digest, hmac};
use rustls_pki_types::UnixTime;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::Arc;

/// A join token has about 120 bytes, a service account token about 1 KiB.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// Why a token is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    #[error("the token is signed with another key")]
    WrongSignature,
    #[error("the token expired at {expired} and the clock of this machine says {now}")]
    Expired { expired: String, now: String },
    #[error("the token is valid from {from} on and the clock of this machine says {now}")]
    NotYet { from: String, now: String },
}

#[derive(Serialize, Deserialize)]
struct Head {
    alg: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    kid: Option<String>,
    #[serde(default)]
    typ: String,
}

fn signing_input(head: &Head, claims: &Map<String, Value>) -> String {
    let head = serde_json::to_vec(head).expect("a struct of strings is always JSON");
    let claims = serde_json::to_vec(claims).expect("a JSON map is always JSON");
    format!("{}.{}", BASE64.encode(head), BASE64.encode(claims))
}

/// The parts of a token before its signature is believed.
struct Parts<'a> {
    signed: &'a str,
    head: Head,
    claims: Map<String, Value>,
    signature: Vec<u8>,
}

impl<'a> Parts<'a> {
    fn read(token: &'a str) -> Result<Self, JwtError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(JwtError::Malformed("it is too long"));
        }
        let (signed, signature) = token
            .rsplit_once('.')
            .ok_or(JwtError::Malformed("it has no three parts"))?;
        let (head, claims) = signed
            .split_once('.')
            .ok_or(JwtError::Malformed("it has no three parts"))?;
        let bytes = |text: &str| {
            BASE64
                .decode(text)
                .map_err(|_| JwtError::Malformed("a part is not base64"))
        };
        let head =
            serde_json::from_slice(&bytes(head)?).map_err(|_| JwtError::Malformed("its head is not JSON"))?;
        let claims = serde_json::from_slice(&bytes(claims)?)
            .map_err(|_| JwtError::Malformed("its claims are not JSON"))?;
        Ok(Self {
            signed,
            head,
            claims,
            signature: bytes(signature)?,
        })
    }

    /// The moment in a numeric claim.
    fn moment(&self, claim: &str) -> Result<Option<UnixTime>, JwtError> {
        let Some(value) = self.claims.get(claim) else {
            return Ok(None);
        };
        // NumericDate may have a fraction.
        let seconds = value
            .as_u64()
            .or_else(|| value.as_f64().map(|s| s.max(0.0) as u64));
        let seconds = seconds.ok_or(JwtError::Malformed("a time in it is not a number"))?;
        Ok(Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            seconds,
        ))))
    }

    fn check_time(&self, now: UnixTime) -> Result<(), JwtError> {
        let expires = self
            .moment("exp")?
            .ok_or(JwtError::Malformed("it never expires"))?;
        if now.as_secs() >= expires.as_secs() {
            return Err(JwtError::Expired {
                expired: show_time(expires),
                now: show_time(now),
            });
        }
        if let Some(from) = self.moment("nbf")?
            && now.as_secs() < from.as_secs()
        {
            return Err(JwtError::NotYet {
                from: show_time(from),
                now: show_time(now),
            });
        }
        Ok(())
    }
}

/// Signs with HMAC-SHA256; `key` is any byte string.
pub(crate) fn sign_hs256(claims: &Map<String, Value>, key: &[u8]) -> String {
    let head = Head {
        alg: "HS256".into(),
        kid: None,
        typ: "JWT".into(),
    };
    let signed = signing_input(&head, claims);
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), signed.as_bytes());
    format!("{signed}.{}", BASE64.encode(tag))
}

/// Checks signature (in constant time) and expiry of an HS256 token, and gives its claims.
pub(crate) fn verify_hs256(token: &str, key: &[u8], now: UnixTime) -> Result<Map<String, Value>, JwtError> {
    let parts = Parts::read(token)?;
    if parts.head.alg != "HS256" {
        return Err(JwtError::Malformed("its algorithm is not HS256"));
    }
    hmac::verify(
        &hmac::Key::new(hmac::HMAC_SHA256, key),
        parts.signed.as_bytes(),
        &parts.signature,
    )
    .map_err(|_| JwtError::WrongSignature)?;
    parts.check_time(now)?;
    Ok(parts.claims)
}

/// When a token expires, read without checking its signature.
pub(crate) fn unverified_expiry(token: &str) -> Result<UnixTime, JwtError> {
    Parts::read(token)?
        .moment("exp")?
        .ok_or(JwtError::Malformed("it never expires"))
}

/// Signs and verifies service account tokens with ES256. Cloning shares the key.
#[derive(Debug, Clone)]
pub struct TokenSigner {
    pair: Arc<EcdsaKeyPair>,
    public: Vec<u8>,
    key_id: String,
}

impl TokenSigner {
    /// A signer with this key; keep it to recognise tokens after a restart.
    pub fn new(key: &Key) -> Result<Self, Error> {
        let rng = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key.pkcs8_der(), &rng)
            .map_err(|error| Error::Parse {
                what: "service account key",
                why: error.to_string(),
            })?;
        let key_id = BASE64.encode(digest::digest(&digest::SHA256, key.public_point()));
        Ok(Self {
            pair: Arc::new(pair),
            public: key.public_point().to_vec(),
            key_id,
        })
    }

    /// Signs claims; `exp` (Unix seconds) must be among them to be accepted again.
    pub fn sign(&self, claims: &Map<String, Value>) -> Result<String, Error> {
        let head = Head {
            alg: "ES256".into(),
            kid: Some(self.key_id.clone()),
            typ: "JWT".into(),
        };
        let signed = signing_input(&head, claims);
        let signature = self
            .pair
            .sign(&SystemRandom::new(), signed.as_bytes())
            .map_err(|_| Error::Random)?;
        Ok(format!("{signed}.{}", BASE64.encode(signature)))
    }

    /// Checks signature, expiry and `nbf`, and gives the claims.
    pub fn verify(&self, token: &str, now: UnixTime) -> Result<Map<String, Value>, JwtError> {
        let parts = Parts::read(token)?;
        if parts.head.alg != "ES256" {
            return Err(JwtError::Malformed("its algorithm is not ES256"));
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.public)
            .verify(parts.signed.as_bytes(), &parts.signature)
            .map_err(|_| JwtError::WrongSignature)?;
        parts.check_time(now)?;
        Ok(parts.claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use std::time::Duration;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    fn claims(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn a_service_account_token_is_known_again_until_it_expires() {
        let key = Key::generate().unwrap();
        let signer = TokenSigner::new(&key).unwrap();
        let wanted = claims(json!({"sub": "system:serviceaccount:default:web", "exp": 2000, "nbf": 1000}));
        let token = signer.sign(&wanted).unwrap();
        let again = TokenSigner::new(&key).unwrap();
        assert_eq!(again.verify(&token, at(1500)).unwrap(), wanted);
        assert_eq!(
            again.verify(&token, at(2000)).unwrap_err().to_string(),
            "the token expired at 1970-01-01T00:33:20Z and the clock of this machine says 1970-01-01T00:33:20Z"
        );
        assert!(matches!(
            again.verify(&token, at(999)),
            Err(JwtError::NotYet { .. })
        ));
        let stranger = TokenSigner::new(&Key::generate().unwrap()).unwrap();
        assert_eq!(stranger.verify(&token, at(1500)), Err(JwtError::WrongSignature));
    }

    #[test]
    fn one_kind_of_token_is_not_taken_for_the_other() {
        let key = Key::generate().unwrap();
        let signer = TokenSigner::new(&key).unwrap();
        let symmetric = sign_hs256(&claims(json!({"exp": 2000})), key.public_point());
        assert_eq!(
            signer.verify(&symmetric, at(1)),
            Err(JwtError::Malformed("its algorithm is not ES256"))
        );
        let eternal = sign_hs256(&claims(json!({})), b"key");
        assert_eq!(
            verify_hs256(&eternal, b"key", at(1)),
            Err(JwtError::Malformed("it never expires"))
        );
    }

    proptest! {
        #[test]
        fn any_claims_of_a_signed_token_are_read_or_refused(exp in "[-0-9a-z.e\"]{1,12}", nbf in "[-0-9.e]{1,8}") {
            let text = format!(r#"{{"exp": {exp}, "nbf": {nbf}}}"#);
            let Ok(claims) = serde_json::from_str::<Map<String, Value>>(&text) else { return Ok(()) };
            let _ = verify_hs256(&sign_hs256(&claims, b"key"), b"key", at(1));
        }

        #[test]
        fn a_changed_token_is_refused(at_byte in 0usize..80, value in "[A-Za-z0-9_.-]") {
            let token = sign_hs256(&claims(json!({"exp": 2000})), b"key");
            let mut changed = token.clone();
            let at_byte = at_byte % token.len();
            changed.replace_range(at_byte..=at_byte, &value);
            // The last character of a part may hold bits that mean nothing; the strict decoder refuses them.
            prop_assert!(changed == token || verify_hs256(&changed, b"key", at(1)).is_err());
        }

        #[test]
        fn any_text_is_refused_without_a_panic(text in ".{0,80}") {
            prop_assert!(verify_hs256(&text, b"key", at(1)).is_err());
        }
    }
}
