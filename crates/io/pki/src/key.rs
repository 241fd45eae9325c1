//! A P-256 private key in the two encodings the world uses.

use crate::Error;
use crate::certificate::{pem_block, pem_sections};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// `ECPrivateKey` as Go and OpenSSL write it: version, 32 bytes, [0] curve, [1] public point.
const SEC1_HEAD: &[u8] = &[0x30, 0x77, 0x02, 0x01, 0x01, 0x04, 0x20];
const SEC1_CURVE: &[u8] = &[
    0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07,
];
const PUBLIC_HEAD: &[u8] = &[0xa1, 0x44, 0x03, 0x42, 0x00];
/// PKCS#8 version 1 around an `ECPrivateKey` without the curve, which is what ring accepts.
const PKCS8_HEAD: &[u8] = &[
    0x30, 0x81, 0x87, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01,
    0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04, 0x6d, 0x30, 0x6b, 0x02, 0x01, 0x01,
    0x04, 0x20,
];
/// Algorithm and curve inside any PKCS#8 EC P-256 key.
const PKCS8_ALGORITHM: &[u8] = &[
    0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03,
    0x01, 0x07,
];
const SCALAR_BYTES: usize = 32;
const POINT_BYTES: usize = 65;
/// Larger than any encoding of a P-256 key.
const KEY_BYTES_MAX: usize = 4096;

/// A private key. It never prints itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// SEC1 bytes exactly as loaded, because the official join token uses them as the HMAC key.
    sec1: Vec<u8>,
    scalar: [u8; SCALAR_BYTES],
    point: [u8; POINT_BYTES],
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(secret)")
    }
}

impl Key {
    /// A new random key.
    pub fn generate() -> Result<Self, Error> {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
            .map_err(|_| Error::Random)?;
        Self::from_der(document.as_ref())
    }

    /// Reads SEC1 or PKCS#8 DER. The public point must be in it, as Go, OpenSSL and ring write it.
    pub fn from_der(der: &[u8]) -> Result<Self, Error> {
        let bad = |why| Error::Parse {
            what: "private key",
            why: String::from(why),
        };
        if der.len() > KEY_BYTES_MAX {
            return Err(bad("it is larger than any P-256 key"));
        }
        let sec1 = inner_sec1(der).ok_or_else(|| {
            bad("it is neither SEC1 nor PKCS#8 for the curve P-256; make one with `openssl ecparam -name prime256v1 -genkey`")
        })?;
        let (scalar, point) =
            read_sec1(sec1).ok_or_else(|| bad("its scalar or its public point is missing"))?;
        let exact = sec1.len() == der.len();
        let sec1 = if exact {
            der.to_vec()
        } else {
            write_sec1(&scalar, &point)
        };
        let key = Self { sec1, scalar, point };
        key.signer()
            .map_err(|_| bad("its public point does not belong to its scalar"))?;
        Ok(key)
    }

    /// Reads the first `EC PRIVATE KEY` or `PRIVATE KEY` block.
    pub fn from_pem(pem: &[u8]) -> Result<Self, Error> {
        let blocks = pem_sections(pem, "private key")?;
        let found: Vec<&str> = blocks.iter().map(|(label, _)| label.as_str()).collect();
        let why = match found.contains(&"RSA PRIVATE KEY") {
            true => "it is an RSA key; only keys of the curve P-256 are taken",
            false => "the file has no block EC PRIVATE KEY or PRIVATE KEY",
        };
        let der = blocks
            .into_iter()
            .find(|(label, _)| label == "EC PRIVATE KEY" || label == "PRIVATE KEY");
        let (_, der) = der.ok_or_else(|| Error::Parse {
            what: "private key",
            why: why.into(),
        })?;
        Self::from_der(&der)
    }

    /// SEC1 DER, as `cakeydata` holds it.
    pub fn sec1_der(&self) -> &[u8] {
        &self.sec1
    }

    /// PKCS#8 DER.
    pub fn pkcs8_der(&self) -> Vec<u8> {
        [PKCS8_HEAD, &self.scalar, PUBLIC_HEAD, &self.point].concat()
    }

    /// A `PRIVATE KEY` block (PKCS#8).
    pub fn pkcs8_pem(&self) -> String {
        pem_block("PRIVATE KEY", &self.pkcs8_der())
    }

    /// An `EC PRIVATE KEY` block.
    pub fn pem(&self) -> String {
        pem_block("EC PRIVATE KEY", &self.sec1)
    }

    /// The uncompressed public point.
    pub fn public_point(&self) -> &[u8] {
        &self.point
    }

    /// For rustls.
    pub fn to_rustls(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pkcs8_der()))
    }

    pub(crate) fn to_rcgen(&self) -> Result<rcgen::KeyPair, Error> {
        let pkcs8 = PrivatePkcs8KeyDer::from(self.pkcs8_der());
        rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, &rcgen::PKCS_ECDSA_P256_SHA256).map_err(
            |source| Error::Sign {
                what: "private key".into(),
                source,
            },
        )
    }

    fn signer(&self) -> Result<EcdsaKeyPair, ring::error::KeyRejected> {
        let pair = EcdsaKeyPair::from_private_key_and_public_key(
            &ECDSA_P256_SHA256_ASN1_SIGNING,
            &self.scalar,
            &self.point,
            &SystemRandom::new(),
        )?;
        debug_assert_eq!(pair.public_key().as_ref(), self.point);
        Ok(pair)
    }
}

fn write_sec1(scalar: &[u8], point: &[u8]) -> Vec<u8> {
    [SEC1_HEAD, scalar, SEC1_CURVE, PUBLIC_HEAD, point].concat()
}

/// One DER element: its tag, its content, and what follows it.
pub(crate) fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => {
            let (&length, rest) = rest.split_first()?;
            (usize::from(length), rest)
        }
        0x82 => {
            let (length, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(*length)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// The `ECPrivateKey` inside SEC1 (itself) or PKCS#8.
fn inner_sec1(der: &[u8]) -> Option<&[u8]> {
    let (0x30, content, []) = element(der)? else {
        return None;
    };
    let (0x02, version, rest) = element(content)? else {
        return None;
    };
    if version == [1] && element(rest)?.0 == 0x04 {
        return Some(der);
    }
    let (0x30, algorithm, rest) = element(rest)? else {
        return None;
    };
    let (0x04, inner, _) = element(rest)? else {
        return None;
    };
    (algorithm == PKCS8_ALGORITHM).then_some(inner)
}

/// Scalar and public point of an `ECPrivateKey`.
fn read_sec1(sec1: &[u8]) -> Option<([u8; SCALAR_BYTES], [u8; POINT_BYTES])> {
    let (0x30, content, []) = element(sec1)? else {
        return None;
    };
    let (0x02, [1], rest) = element(content)? else {
        return None;
    };
    let (0x04, scalar, mut rest) = element(rest)? else {
        return None;
    };
    while !rest.is_empty() {
        let (tag, inner, after) = element(rest)?;
        match tag {
            0xa0 if inner != &SEC1_CURVE[2..] => return None,
            0xa1 => {
                let (0x03, [0, point @ ..], []) = element(inner)? else {
                    return None;
                };
                return Some((scalar.try_into().ok()?, point.try_into().ok()?));
            }
            _ => rest = after,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_encodings_and_pem_lead_back_to_the_same_key() {
        let key = Key::generate().unwrap();
        assert_eq!(key.sec1_der().len(), 121);
        assert_eq!(Key::from_der(key.sec1_der()).unwrap(), key);
        assert_eq!(Key::from_der(&key.pkcs8_der()).unwrap(), key);
        assert_eq!(Key::from_pem(key.pem().as_bytes()).unwrap(), key);
        assert_eq!(format!("{key:?}"), "Key(secret)");
    }

    #[test]
    fn a_foreign_public_point_is_refused() {
        let (one, other) = (Key::generate().unwrap(), Key::generate().unwrap());
        let mixed = write_sec1(&one.scalar, &other.point);
        let error = Key::from_der(&mixed).unwrap_err().to_string();
        assert_eq!(
            error,
            "read private key: its public point does not belong to its scalar"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read_but_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Key::from_der(&bytes);
        }

        #[test]
        fn a_damaged_key_never_panics(at in 0usize..121, value: u8) {
            let mut der = write_sec1(&[7; 32], &[4; 65]);
            der[at] = value;
            let _ = Key::from_der(&der);
        }
    }
}
