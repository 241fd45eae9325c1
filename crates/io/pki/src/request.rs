//! A node's certificate request, both ends.

use crate::authority::{Error, printable};
use crate::certificate::{common_names, organizations};
use crate::key::Key;
use crate::{NODE_NAME_PREFIX, NODES_ORGANIZATION};
use kedge_wire::NodeName;
use rcgen::{CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, PublicKey};
use rustls_pki_types::CertificateSigningRequestDer;
use x509_parser::prelude::{FromDer, X509CertificationRequest};

/// A request with the key that it speaks for.
#[derive(Debug, Clone)]
pub struct NodeRequest {
    der: Vec<u8>,
    key: Key,
}

impl NodeRequest {
    /// The official request of a node, with a new key.
    pub fn create(node: &NodeName) -> Result<Self, Error> {
        let key = Key::generate()?;
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

    /// The key of the certificate that will come.
    pub fn into_key(self) -> Key {
        self.key
    }
}

/// Checks that the request is signed by its own key and asks for exactly the identity of `node`.
pub(crate) fn read_node_request(
    der: &CertificateSigningRequestDer<'_>,
    node: &NodeName,
) -> Result<PublicKey, Error> {
    let refuse = |why: String| Error::Request(why);
    let (rest, request) =
        X509CertificationRequest::from_der(der).map_err(|_| refuse("it is not PKCS#10 DER".into()))?;
    if !rest.is_empty() {
        return Err(refuse("bytes follow it".into()));
    }
    let subject = &request.certification_request_info.subject;
    let expected = format!("{NODE_NAME_PREFIX}{node}");
    let names = common_names(subject);
    if names != [expected.as_str()] {
        let named = names.join(", ");
        return Err(refuse(format!(
            "it names {named:?} but node {node} must ask for {expected:?}"
        )));
    }
    let organizations = organizations(subject);
    if organizations != [NODES_ORGANIZATION] {
        let named = organizations.join(", ");
        return Err(refuse(format!(
            "its organization is {named:?} but must be {NODES_ORGANIZATION:?}"
        )));
    }
    // Verifies the signature.
    let params = CertificateSigningRequestParams::from_der(der).map_err(|error| match error {
        rcgen::Error::InvalidCertificationRequestSignature => {
            refuse("its signature is wrong: the asking side does not own the key".into())
        }
        other => refuse(other.to_string()),
    })?;
    Ok(params.public_key)
}
