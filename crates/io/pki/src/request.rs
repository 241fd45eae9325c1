//! A node's certificate request, both ends.

use crate::authority::{Error, printable};
use crate::certificate::{common_names, hex, organizations};
use crate::key::Key;
use crate::{NODE_NAME_PREFIX, NODES_ORGANIZATION};
use kedge_wire::NodeName;
use rcgen::{CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, PublicKey};
use ring::digest;
use rustls_pki_types::CertificateSigningRequestDer;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519,
};
use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo, X509CertificationRequest, X509Name};
use x509_parser::public_key::PublicKey as ParsedKey;

/// A request has about 300 bytes; one with an RSA key of 8192 bits and many names stays below this.
pub(crate) const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// Weaker RSA keys are broken or nearly so; larger ones only make the cloud work.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// A request with the key that it speaks for.
#[derive(Debug, Clone)]
pub struct NodeRequest {
    der: Vec<u8>,
    key: Key,
}

impl NodeRequest {
    /// The official request of a node, with a new key.
    pub fn create(node: &NodeName) -> Result<Self, Error> {
        Self::of(node, Key::generate()?)
    }

    /// The official request of a node, for this key.
    pub fn of(node: &NodeName, key: Key) -> Result<Self, Error> {
        let mut name = DistinguishedName::new();
        let common_name = format!("{NODE_NAME_PREFIX}{node}");
        let parts = [
            (DnType::CountryName, "CN"),
            (DnType::OrganizationName, NODES_ORGANIZATION),
            (DnType::LocalityName, "Hangzhou"),
            (DnType::StateOrProvinceName, "Zhejiang"),
            (DnType::CommonName, common_name.as_str()),
        ];
        for (kind, value) in parts {
            name.push(kind, printable(value)?);
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = name;
        let request = params
            .serialize_request(&key.to_rcgen()?)
            .map_err(|source| Error::Sign {
                what: format!("the request of {node}"),
                source,
            })?;
        Ok(Self {
            der: request.der().to_vec(),
            key,
        })
    }

    /// PKCS#10 DER, the body of `GET /edge.crt`.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The key of the certificate that will come.
    pub fn into_key(self) -> Key {
        self.key
    }
}

/// A node's request that asks for exactly the identity of `node`, is signed by its own key, and whose key is strong.
/// What else it asks for (names, usages) is not in here, so it cannot reach a certificate.
#[derive(Debug)]
pub struct CheckedRequest {
    pub(crate) node: NodeName,
    pub(crate) public_key: PublicKey,
    fingerprint: String,
}

impl CheckedRequest {
    /// Reads and checks the PKCS#10 DER that `node` sent.
    pub fn read(der: &[u8], node: &NodeName) -> Result<Self, Error> {
        let request = parse(der)?;
        let info = &request.certification_request_info;
        let asking = node_of_subject(&info.subject)?;
        if asking != *node {
            let asked = format!("{NODE_NAME_PREFIX}{asking}");
            return Err(refuse(format!(
                "it names {asked:?} but node {node} must ask for {:?}",
                format!("{NODE_NAME_PREFIX}{node}")
            )));
        }
        check_key(&info.subject_pki)?;
        // Verifies the signature.
        let params = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der));
        let params = params.map_err(|error| match error {
            rcgen::Error::InvalidCertificationRequestSignature => wrong_signature(),
            other => refuse(other.to_string()),
        })?;
        Ok(Self {
            node: asking,
            fingerprint: fingerprint(&info.subject_pki),
            public_key: params.public_key,
        })
    }

    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// Hex of the SHA-256 of the public key with its algorithm: tells two keys apart.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

pub(crate) fn refuse(why: impl Into<String>) -> Error {
    Error::Request(why.into())
}

pub(crate) fn wrong_signature() -> Error {
    refuse("its signature is wrong: the asking side does not own the key")
}

pub(crate) fn parse(der: &[u8]) -> Result<X509CertificationRequest<'_>, Error> {
    if der.len() > REQUEST_BYTES_MAX {
        return Err(refuse(format!("it is larger than {REQUEST_BYTES_MAX} bytes")));
    }
    let (rest, request) =
        X509CertificationRequest::from_der(der).map_err(|_| refuse("it is not PKCS#10 DER"))?;
    if !rest.is_empty() {
        return Err(refuse("bytes follow it"));
    }
    Ok(request)
}

/// The node that a subject names: one common name, one organization, nothing that could be read otherwise.
pub(crate) fn node_of_subject(subject: &X509Name<'_>) -> Result<NodeName, Error> {
    let names = common_names(subject);
    let organizations = organizations(subject);
    let node = match names.as_slice() {
        [name] => name.strip_prefix(NODE_NAME_PREFIX).map(NodeName::new),
        _none_or_several => None,
    };
    let Some(Ok(node)) = node else {
        let named: String = names.join(", ").chars().take(QUOTE_CHARS_MAX).collect();
        return Err(refuse(format!("it names {named:?}, which is not one node")));
    };
    if organizations != [NODES_ORGANIZATION] {
        let named: String = organizations.join(", ").chars().take(QUOTE_CHARS_MAX).collect();
        return Err(refuse(format!(
            "its organization is {named:?} but must be {NODES_ORGANIZATION:?}"
        )));
    }
    Ok(node)
}

/// How much of a wrong name is quoted; a node's name has at most 253 characters.
const QUOTE_CHARS_MAX: usize = 300;

/// P-256, P-384, Ed25519, or RSA of a size that is safe and not absurd.
pub(crate) fn check_key(key: &SubjectPublicKeyInfo<'_>) -> Result<(), Error> {
    let weak = |what: String| {
        refuse(format!(
            "its key is {what}; use P-256, P-384, Ed25519 or RSA from 2048 bits"
        ))
    };
    let algorithm = &key.algorithm.algorithm;
    if *algorithm == OID_SIG_ED25519 {
        return Ok(());
    }
    if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = key.algorithm.parameters.as_ref();
        let curve = curve.and_then(|parameters| parameters.as_oid().ok());
        return match curve {
            Some(curve) if curve == OID_EC_P256 || curve == OID_NIST_EC_P384 => Ok(()),
            Some(_) | None => Err(weak("of another curve".into())),
        };
    }
    if *algorithm != OID_PKCS1_RSAENCRYPTION {
        return Err(weak(format!("of the unknown kind {algorithm}")));
    }
    match key.parsed() {
        Ok(ParsedKey::RSA(rsa)) if RSA_BITS.contains(&rsa.key_size()) => Ok(()),
        Ok(ParsedKey::RSA(rsa)) => Err(weak(format!("RSA of {} bits", rsa.key_size()))),
        Ok(_) | Err(_) => Err(weak("not readable".into())),
    }
}

pub(crate) fn fingerprint(key: &SubjectPublicKeyInfo<'_>) -> String {
    hex(digest::digest(&digest::SHA256, key.raw).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use proptest::prelude::*;
    use rcgen::{KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SanType};

    fn node(name: &str) -> NodeName {
        NodeName::new(name).unwrap()
    }

    /// A request with these common names and organizations, made with `key`.
    fn request(names: &[&str], organization: &str, key: &KeyPair, sans: Vec<SanType>) -> Vec<u8> {
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        for common_name in names {
            name.push(DnType::CommonName, *common_name);
        }
        name.push(DnType::OrganizationName, organization);
        params.distinguished_name = name;
        params.subject_alt_names = sans;
        params.serialize_request(key).unwrap().der().to_vec()
    }

    fn check(der: &[u8]) -> String {
        match CheckedRequest::read(der, &node("edge-1")) {
            Ok(request) => format!("taken: {}", request.node()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_request_is_taken_for_its_node_and_a_strong_key_only() {
        let p256 = KeyPair::generate().unwrap();
        let of = |name: &str, organization: &str| check(&request(&[name], organization, &p256, Vec::new()));
        let more = SanType::DnsName("kubernetes.default".try_into().unwrap());
        let shown = [
            of("system:node:edge-1", "system:nodes"),
            check(&request(
                &["system:node:edge-1"],
                "system:nodes",
                &p256,
                vec![more],
            )),
            of("system:node:edge-2", "system:nodes"),
            of("system:node:edge-1", "system:masters"),
            of("kubernetes-admin", "system:nodes"),
            of("system:node:Edge 1", "system:nodes"),
            check(&request(
                &["system:node:edge-1"],
                "system:nodes",
                &KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(),
                vec![],
            )),
            check(&request(
                &["system:node:edge-1"],
                "system:nodes",
                &KeyPair::generate_for(&PKCS_ED25519).unwrap(),
                vec![],
            )),
            check(include_bytes!("../tests/data/rsa-1024.csr")),
            check(include_bytes!("../tests/data/rsa-2048.csr")),
            check(include_bytes!("../tests/data/p521.csr")),
            check(include_bytes!("../tests/data/two-names.csr")),
            check(&[0x30; REQUEST_BYTES_MAX + 1]),
        ];
        expect![[r#"
            taken: edge-1
            taken: edge-1
            the certificate request is refused: it names "system:node:edge-2" but node edge-1 must ask for "system:node:edge-1"
            the certificate request is refused: its organization is "system:masters" but must be "system:nodes"
            the certificate request is refused: it names "kubernetes-admin", which is not one node
            the certificate request is refused: it names "system:node:Edge 1", which is not one node
            taken: edge-1
            taken: edge-1
            the certificate request is refused: its key is RSA of 1024 bits; use P-256, P-384, Ed25519 or RSA from 2048 bits
            taken: edge-1
            the certificate request is refused: its key is of another curve; use P-256, P-384, Ed25519 or RSA from 2048 bits
            the certificate request is refused: it names "system:node:edge-1, system:node:edge-2", which is not one node
            the certificate request is refused: it is larger than 65536 bytes"#]].assert_eq(&shown.join("\n"));
    }

    #[test]
    fn one_key_has_one_fingerprint() {
        let key = Key::generate().unwrap();
        let fingerprint = |key: &Key| {
            let request = NodeRequest::of(&node("edge-1"), key.clone()).unwrap();
            let checked = CheckedRequest::read(request.der(), &node("edge-1")).unwrap();
            checked.fingerprint().to_owned()
        };
        assert_eq!(fingerprint(&key), fingerprint(&key));
        assert_ne!(fingerprint(&key), fingerprint(&Key::generate().unwrap()));
        assert_eq!(fingerprint(&key).len(), 64);
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(CheckedRequest::read(&bytes, &node("edge-1")).is_err());
        }

        /// A few bytes around the signature are not signed and mean nothing; everything else is.
        #[test]
        fn damage_changes_nothing_or_is_refused(spot in 0usize..400, change in 1u8..=255, cut in 0usize..3) {
            let request = NodeRequest::create(&node("edge-1")).unwrap();
            let mut der = request.der().to_vec();
            let whole = CheckedRequest::read(&der, &node("edge-1")).unwrap();
            let spot = spot % der.len();
            der[spot] ^= change;
            der.truncate(der.len() - cut);
            if let Ok(damaged) = CheckedRequest::read(&der, &node("edge-1")) {
                prop_assert_eq!(damaged.fingerprint(), whole.fingerprint());
            }
        }
    }
}
