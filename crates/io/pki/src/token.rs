//! The join token: `sha256hex(CA DER) "." JWT`, official format.

use crate::certificate::hex;
use crate::jwt::{self, JwtError};
use crate::{Authority, Certificate, show_time};
use kedge_wire::NodeName;
use ring::rand::{SecureRandom, SystemRandom};
use rustls_pki_types::UnixTime;
use serde_json::{Map, Value};

/// Why a join token is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the join token is malformed ({0}): copy it whole, it has four parts between dots")]
    Malformed(&'static str),
    #[error(
        "the join token expired at {expired} and the clock of this machine says {now}: ask the cloud for a new one \
         with `keadm gettoken`, or set the clock"
    )]
    Expired { expired: String, now: String },
    #[error("the join token was not made by this cloud: ask it for one with `keadm gettoken`")]
    WrongSignature,
    #[error(
        "the join token is for another cloud: it names the authority {expected} but the cloud at this address has \
         {found}"
    )]
    OtherAuthority { expected: String, found: String },
}

/// What a join token allows, once its signature is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinClaims {
    /// The official token: any node may join until it expires.
    Shared,
    /// One node may join with one key. Whether it has is kept elsewhere, under `id`.
    OneTime { id: TokenId, node: NodeName },
}

/// The number of a one-time token: 32 hex digits, so it may stand in a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TokenId(String);

impl TokenId {
    /// A new random number.
    fn random() -> Result<Self, crate::Error> {
        let mut bytes = [0; ID_BYTES];
        SystemRandom::new()
            .fill(&mut bytes)
            .map_err(|_| crate::Error::Random)?;
        Ok(Self(hex(&bytes)))
    }

    fn parse(text: &str) -> Option<Self> {
        let fine = text.len() == ID_BYTES * 2 && is_hex(text);
        fine.then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for TokenId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Nobody guesses a number of 128 bits.
const ID_BYTES: usize = 16;

fn is_hex(text: &str) -> bool {
    text.bytes()
        .all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
}

/// A join token. It never prints itself.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    text: String,
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JoinToken(secret)")
    }
}

const HASH_CHARS: usize = 64;

impl JoinToken {
    /// A token that lets nodes join until `expires`.
    pub fn issue(authority: &Authority, expires: UnixTime) -> Result<Self, crate::Error> {
        let mut claims = Map::new();
        claims.insert("exp".into(), Value::from(expires.as_secs()));
        Ok(Self::sign(authority, &claims))
    }

    /// A token that lets one node join until `expires`, with the number under which its use is to be kept. It has the
    /// official form, so every edge and `keadm` take it.
    pub fn issue_one_time(
        authority: &Authority,
        node: &NodeName,
        expires: UnixTime,
    ) -> Result<(Self, TokenId), crate::Error> {
        let id = TokenId::random()?;
        let mut claims = Map::new();
        claims.insert("exp".into(), Value::from(expires.as_secs()));
        claims.insert("jti".into(), Value::from(id.as_str()));
        claims.insert("node".into(), Value::from(node.as_str()));
        Ok((Self::sign(authority, &claims), id))
    }

    fn sign(authority: &Authority, claims: &Map<String, Value>) -> Self {
        let bearer = jwt::sign_hs256(claims, authority.key().sec1_der());
        Self {
            text: format!("{}.{bearer}", authority.certificate().hash()),
        }
    }

    /// Reads a token as a person typed it; surrounding white space is dropped.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.split('.').count() != 4 {
            return Err(TokenError::Malformed("it does not have four parts"));
        }
        let token = Self {
            text: text.to_owned(),
        };
        let hash = token.authority_hash();
        if hash.len() != HASH_CHARS || !is_hex(hash) {
            return Err(TokenError::Malformed("its first part is not a SHA-256 in hex"));
        }
        Ok(token)
    }

    /// The whole token.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// SHA-256 of the authority that the edge shall trust.
    pub fn authority_hash(&self) -> &str {
        self.split().0
    }

    /// What is sent as `Authorization: Bearer`.
    pub fn bearer(&self) -> &str {
        self.split().1
    }

    /// When the token expires, by its own words.
    pub fn expires(&self) -> Result<UnixTime, TokenError> {
        jwt::unverified_expiry(self.bearer()).map_err(TokenError::from)
    }

    /// The edge's check: whether this is the authority that the token speaks of.
    pub fn check_authority(&self, authority: &Certificate) -> Result<(), TokenError> {
        let found = authority.hash();
        if found == self.authority_hash() {
            return Ok(());
        }
        Err(TokenError::OtherAuthority {
            expected: self.authority_hash().to_owned(),
            found,
        })
    }

    /// The edge's check before it dials: an expired token would be refused anyway.
    pub fn check_expiry(&self, now: UnixTime) -> Result<(), TokenError> {
        let expires = self.expires()?;
        if now.as_secs() < expires.as_secs() {
            return Ok(());
        }
        Err(TokenError::Expired {
            expired: show_time(expires),
            now: show_time(now),
        })
    }

    /// The cloud's check of the bearer part: signature in constant time, then expiry, then what it allows.
    pub fn verify_bearer(
        bearer: &str,
        authority: &Authority,
        now: UnixTime,
    ) -> Result<JoinClaims, TokenError> {
        let claims = jwt::verify_hs256(bearer, authority.key().sec1_der(), now)?;
        // A token that is bound to anything must never be taken for one that is not.
        let bad = TokenError::Malformed("it is bound to something that is not one node and one number");
        match (claims.get("jti"), claims.get("node")) {
            (None, None) => Ok(JoinClaims::Shared),
            (Some(Value::String(id)), Some(Value::String(node))) => Ok(JoinClaims::OneTime {
                id: TokenId::parse(id).ok_or_else(|| bad.clone())?,
                node: NodeName::new(node.as_str()).map_err(|_| bad)?,
            }),
            (Some(_), _) | (None, Some(_)) => Err(bad),
        }
    }

    fn split(&self) -> (&str, &str) {
        self.text.split_once('.').expect("a token is made with a dot")
    }
}

impl From<JwtError> for TokenError {
    fn from(error: JwtError) -> Self {
        match error {
            JwtError::Malformed(why) => Self::Malformed(why),
            JwtError::WrongSignature => Self::WrongSignature,
            JwtError::Expired { expired, now } => Self::Expired { expired, now },
            JwtError::NotYet { .. } => Self::Malformed("it has a start time"),
        }
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

    /// The toy vector of the protocol's description: the plumbing of hash and HMAC with bytes that are no real DER.
    #[test]
    fn the_official_construction_gives_the_official_text() {
        let authority = [0x30, 0x82, 0x01, 0x02, 0x64, 0x65, 0x6d, 0x6f];
        let key = [[0x30, 0x77, 0x02, 0x01, 0x01, 0x04, 0x20].as_slice(), &[0x11; 32]].concat();
        let hash = hex(ring::digest::digest(&ring::digest::SHA256, &authority).as_ref());
        let mut claims = Map::new();
        claims.insert("exp".into(), Value::from(1_767_312_000));
        let bearer = jwt::sign_hs256(&claims, &key);
        let official = "8743b209c502fa21c01b1b579d329321efb93dec652575aba23608b4fb38cfce.\
                        eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJleHAiOjE3NjczMTIwMDB9.\
                        7T7MtFYg27PbLcBKeYoYsUHrA9-AN5VPzj1nHVfjEZs";
        assert_eq!(format!("{hash}.{bearer}"), official);
        let token = JoinToken::parse(&format!(" {official}\n")).unwrap();
        assert_eq!(token.expires().unwrap().as_secs(), 1_767_312_000);
        assert_eq!(
            jwt::verify_hs256(token.bearer(), &key, at(1_767_311_999)),
            Ok(claims)
        );
    }

    #[test]
    fn every_wrong_token_is_told_apart() {
        let (ours, theirs) = (
            Authority::create(at(1)).unwrap(),
            Authority::create(at(1)).unwrap(),
        );
        let token = JoinToken::issue(&ours, at(5000)).unwrap();
        assert_eq!(
            JoinToken::verify_bearer(token.bearer(), &ours, at(4999)),
            Ok(JoinClaims::Shared)
        );
        assert_eq!(token.check_authority(ours.certificate()), Ok(()));
        let told = [
            JoinToken::verify_bearer(token.bearer(), &ours, at(6000)).unwrap_err(),
            JoinToken::verify_bearer(token.bearer(), &theirs, at(6000)).unwrap_err(),
            JoinToken::verify_bearer("a.b", &ours, at(1)).unwrap_err(),
            JoinToken::parse("a.b.c").unwrap_err(),
            JoinToken::parse("a.b.c.d").unwrap_err(),
        ];
        let told = told.map(|error| error.to_string()).join("\n");
        expect_test::expect![[r#"
            the join token expired at 1970-01-01T01:23:20Z and the clock of this machine says 1970-01-01T01:40:00Z: ask the cloud for a new one with `keadm gettoken`, or set the clock
            the join token was not made by this cloud: ask it for one with `keadm gettoken`
            the join token is malformed (it has no three parts): copy it whole, it has four parts between dots
            the join token is malformed (it does not have four parts): copy it whole, it has four parts between dots
            the join token is malformed (its first part is not a SHA-256 in hex): copy it whole, it has four parts between dots"#]].assert_eq(&told);
        assert!(matches!(
            token.check_authority(theirs.certificate()),
            Err(TokenError::OtherAuthority { .. })
        ));
        assert!(matches!(
            token.check_expiry(at(5000)),
            Err(TokenError::Expired { .. })
        ));
    }

    #[test]
    fn a_token_of_one_node_is_never_taken_for_the_shared_one() {
        let authority = Authority::create(at(1)).unwrap();
        let node = NodeName::new("gate-7").unwrap();
        let (token, id) = JoinToken::issue_one_time(&authority, &node, at(5000)).unwrap();
        assert_eq!(JoinToken::parse(token.text()).as_ref(), Ok(&token));
        let wanted = JoinClaims::OneTime { id, node };
        assert_eq!(
            JoinToken::verify_bearer(token.bearer(), &authority, at(1)),
            Ok(wanted)
        );

        let number = "0".repeat(32);
        for claims in [
            json!({"jti": number}),
            json!({"node": "gate-7"}),
            json!({"jti": "../casecret", "node": "gate-7"}),
            json!({"jti": number, "node": "Gate 7"}),
            json!({"jti": number, "node": null}),
            json!({"jti": 7, "node": "gate-7"}),
        ] {
            let mut claims = claims.as_object().cloned().unwrap();
            claims.insert("exp".into(), Value::from(5000));
            let token = JoinToken::sign(&authority, &claims);
            assert!(matches!(
                JoinToken::verify_bearer(token.bearer(), &authority, at(1)),
                Err(TokenError::Malformed(_))
            ));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-f0-9.=_ -]{0,120}|.{0,60}") {
            let _ = JoinToken::parse(&text).map(|token| token.expires());
        }
    }
}
