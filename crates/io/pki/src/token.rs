//! The join token: `sha256hex(CA DER) "." JWT`, official format.

use crate::jwt::{self, JwtError};
use crate::{Authority, Certificate, show_time};
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
        let bearer = jwt::sign_hs256(&claims, authority.key().sec1_der());
        Ok(Self {
            text: format!("{}.{bearer}", authority.certificate().hash()),
        })
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
        if hash.len() != HASH_CHARS
            || !hash
                .bytes()
                .all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
        {
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

    /// The cloud's check of the bearer part: signature in constant time, then expiry.
    pub fn verify_bearer(bearer: &str, authority: &Authority, now: UnixTime) -> Result<(), TokenError> {
        jwt::verify_hs256(bearer, authority.key().sec1_der(), now).map_err(TokenError::from)
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
    use crate::certificate::hex;
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
        assert_eq!(jwt::verify_hs256(token.bearer(), &key, at(1_767_311_999)), Ok(()));
    }

    #[test]
    fn every_wrong_token_is_told_apart() {
        let (ours, theirs) = (
            Authority::create(at(1)).unwrap(),
            Authority::create(at(1)).unwrap(),
        );
        let token = JoinToken::issue(&ours, at(5000)).unwrap();
        assert_eq!(JoinToken::verify_bearer(token.bearer(), &ours, at(4999)), Ok(()));
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
}
