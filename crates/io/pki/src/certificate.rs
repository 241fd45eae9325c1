//! A certificate: its bytes, and what is written in it.

use crate::{Error, moment};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest;
use rustls_pki_types::{CertificateDer, UnixTime};
use std::net::IpAddr;
use std::time::Duration;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

/// Larger than any certificate kedge meets; a certificate of ours has about 500 bytes.
const CERTIFICATE_BYTES_MAX: usize = 64 * 1024;
/// A PEM file: a chain of a few certificates.
const PEM_BYTES_MAX: usize = 1024 * 1024;

/// A certificate that could be read.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    der: Vec<u8>,
    info: CertificateInfo,
}

/// What is written in a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Empty when there is none. Several, which no certificate of ours has, stand in one text that names nobody.
    pub common_name: String,
    pub organizations: Vec<String>,
    pub not_before: UnixTime,
    pub not_after: UnixTime,
    pub dns_names: Vec<String>,
    pub ips: Vec<IpAddr>,
    pub is_authority: bool,
    /// Whether a server may show it.
    pub serves: bool,
    /// The subject's public key, without its algorithm.
    pub public_key: Vec<u8>,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Certificate({}, until {})",
            self.info.common_name,
            moment::show(self.info.not_after)
        )
    }
}

impl Certificate {
    /// Reads DER.
    pub fn from_der(der: &[u8]) -> Result<Self, Error> {
        let bad = |why: String| Error::Parse {
            what: "certificate",
            why,
        };
        if der.len() > CERTIFICATE_BYTES_MAX {
            return Err(bad(format!(
                "{} bytes are more than the limit of {CERTIFICATE_BYTES_MAX}",
                der.len()
            )));
        }
        let (rest, parsed) = X509Certificate::from_der(der).map_err(|error| bad(error.to_string()))?;
        if !rest.is_empty() {
            return Err(bad(format!("{} bytes follow it", rest.len())));
        }
        Ok(Self {
            der: der.to_vec(),
            info: CertificateInfo::read(&parsed),
        })
    }

    /// Reads every `CERTIFICATE` block; at least one is needed.
    pub fn chain_from_pem(pem: &[u8]) -> Result<Vec<Self>, Error> {
        let blocks = pem_sections(pem, "certificate")?;
        let chain = blocks.into_iter().filter(|(label, _)| label == "CERTIFICATE");
        let chain = chain
            .map(|(_, der)| Self::from_der(&der))
            .collect::<Result<Vec<_>, _>>()?;
        if chain.is_empty() {
            return Err(Error::Parse {
                what: "certificate",
                why: "the file has no block CERTIFICATE".into(),
            });
        }
        Ok(chain)
    }

    /// Reads the first `CERTIFICATE` block.
    pub fn from_pem(pem: &[u8]) -> Result<Self, Error> {
        Ok(Self::chain_from_pem(pem)?.remove(0))
    }

    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// A `CERTIFICATE` block.
    pub fn pem(&self) -> String {
        certificate_pem(&self.der)
    }

    pub fn info(&self) -> &CertificateInfo {
        &self.info
    }

    /// Whether `authority` has signed this certificate. Says nothing of time or purpose.
    pub fn is_signed_by(&self, authority: &Certificate) -> bool {
        let parsed = (
            X509Certificate::from_der(&self.der),
            X509Certificate::from_der(&authority.der),
        );
        let (Ok((_, own)), Ok((_, other))) = parsed else {
            return false;
        };
        own.issuer().as_raw() == other.subject().as_raw()
            && own.verify_signature(Some(other.public_key())).is_ok()
    }

    /// Lower-case hex of the SHA-256 of the DER, as a join token begins.
    pub fn hash(&self) -> String {
        hex(digest::digest(&digest::SHA256, &self.der).as_ref())
    }

    /// For rustls.
    pub fn to_rustls(&self) -> CertificateDer<'static> {
        CertificateDer::from(self.der.clone())
    }
}

/// Who dials, as every server of nodes decides it: the certificate of the TLS session says the name, and what a header
/// claims must agree. The error is a sentence for the one who dials.
pub fn node_of_peer(
    certificate: Option<&CertificateDer<'_>>,
    header: &'static str,
    claimed: Option<&str>,
) -> Result<kedge_wire::NodeName, String> {
    let certificate = certificate.ok_or("a node certificate is needed")?;
    let certificate = Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    let info = certificate.info();
    let node = info
        .node()
        .ok_or_else(|| format!("the certificate of {:?} is not a node's", info.common_name))?;
    let claimed = claimed.unwrap_or_default();
    if claimed != node.as_str() {
        let claimed: String = claimed.chars().take(CLAIM_CHARS_MAX).collect();
        return Err(format!(
            "header {header} says {claimed:?} but the certificate is of node {node}"
        ));
    }
    Ok(node)
}

/// How much of a wrong claim is quoted.
const CLAIM_CHARS_MAX: usize = 80;

impl CertificateInfo {
    fn read(parsed: &X509Certificate<'_>) -> Self {
        let (mut dns_names, mut ips) = (Vec::new(), Vec::new());
        let names = parsed.subject_alternative_name().ok().flatten();
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::DNSName(name) => dns_names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => ips.extend(ip(bytes)),
                // A foreign enum: other kinds of name mean nothing here.
                _ => {}
            }
        }
        Self {
            common_name: common_names(parsed.subject()).join(", "),
            organizations: organizations(parsed.subject()),
            not_before: moment::from_seconds(parsed.validity().not_before.timestamp()),
            not_after: moment::from_seconds(parsed.validity().not_after.timestamp()),
            dns_names,
            ips,
            is_authority: parsed.is_ca(),
            serves: match parsed.extended_key_usage() {
                Ok(Some(usages)) => usages.value.server_auth || usages.value.any,
                Ok(None) => true,
                Err(_) => false,
            },
            public_key: parsed.public_key().subject_public_key.data.to_vec(),
        }
    }

    /// How long it is still valid; zero when it is not any more.
    pub fn time_left(&self, now: UnixTime) -> Duration {
        Duration::from_secs(self.not_after.as_secs().saturating_sub(now.as_secs()))
    }

    /// From the first moment to the last.
    pub fn lifetime(&self) -> Duration {
        Duration::from_secs(self.not_after.as_secs().saturating_sub(self.not_before.as_secs()))
    }

    /// Whether it can be used at this moment.
    pub fn is_valid_at(&self, now: UnixTime) -> bool {
        (self.not_before.as_secs()..self.not_after.as_secs()).contains(&now.as_secs())
    }

    /// The node that this certificate names; `None` when it is not a node's.
    pub fn node(&self) -> Option<kedge_wire::NodeName> {
        let name = self.common_name.strip_prefix(crate::NODE_NAME_PREFIX)?;
        let member = self.organizations.iter().any(|o| o == crate::NODES_ORGANIZATION);
        if member {
            kedge_wire::NodeName::new(name).ok()
        } else {
            None
        }
    }
}

pub(crate) fn common_names(name: &X509Name<'_>) -> Vec<String> {
    name.iter_common_name().map(text).collect()
}

pub(crate) fn organizations(name: &X509Name<'_>) -> Vec<String> {
    name.iter_organization().map(text).collect()
}

/// An attribute that is not text becomes one that equals no name.
fn text(attribute: &x509_parser::x509::AttributeTypeAndValue<'_>) -> String {
    attribute.as_str().unwrap_or("\u{fffd}").to_owned()
}

pub(crate) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(v4));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A `CERTIFICATE` block around bytes that nobody has looked into.
pub fn certificate_pem(der: &[u8]) -> String {
    pem_block("CERTIFICATE", der)
}

/// One PEM block with lines of 64 characters.
pub(crate) fn pem_block(label: &str, der: &[u8]) -> String {
    let encoded = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for start in (0..encoded.len()).step_by(64) {
        pem.push_str(&encoded[start..encoded.len().min(start + 64)]);
        pem.push('\n');
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

/// Every block of a PEM text: label and content.
pub(crate) fn pem_sections(pem: &[u8], what: &'static str) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let bad = |why: &str| Error::Parse {
        what,
        why: why.into(),
    };
    if pem.len() > PEM_BYTES_MAX {
        return Err(bad("the file is larger than 1 MiB"));
    }
    let text = std::str::from_utf8(pem).map_err(|_| bad("the file is not PEM text"))?;
    let mut sections = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("-----BEGIN ") {
        let (label, after) = after
            .split_once("-----")
            .ok_or_else(|| bad("a BEGIN line does not end"))?;
        let end = format!("-----END {label}-----");
        let (body, after) = after
            .split_once(&end)
            .ok_or_else(|| bad("a block has no END line"))?;
        let compact: String = body.chars().filter(|c| !c.is_whitespace()).collect();
        let der = STANDARD
            .decode(compact)
            .map_err(|_| bad("a block is not base64"))?;
        sections.push((label.to_owned(), der));
        rest = after;
    }
    Ok(sections)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Authority;
    use proptest::prelude::*;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    #[test]
    fn the_one_who_signed_is_known() {
        let now = at(1_767_225_600);
        let (ours, theirs) = (Authority::create(now).unwrap(), Authority::create(now).unwrap());
        let client = ours
            .issue_client("c", &["o"], Duration::from_secs(600), now)
            .unwrap();
        let client = client.certificate();
        assert!(client.is_signed_by(ours.certificate()));
        assert!(!client.is_signed_by(theirs.certificate()));
        assert!(!client.info().serves);
        assert!(ours.certificate().info().serves);
        assert_eq!(client.info().time_left(now), Duration::from_secs(600));
        assert!(client.info().is_valid_at(now));
        assert!(!client.info().is_valid_at(at(1_767_226_200)));
        assert_eq!(client.info().time_left(at(u64::MAX)), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Certificate::from_der(&bytes);
            let _ = Certificate::chain_from_pem(&bytes);
        }

        #[test]
        fn a_damaged_certificate_never_panics(cut in 0usize..600, spot in 0usize..600, value: u8) {
            let mut der = Authority::create(at(1_767_225_600)).unwrap().certificate().der().to_vec();
            let spot = spot % der.len();
            der[spot] = value;
            der.truncate(der.len() - cut % 3);
            if let Ok(certificate) = Certificate::from_der(&der) {
                let _ = certificate.is_signed_by(&certificate);
                let _ = certificate.info().node();
            }
        }

        #[test]
        fn any_text_of_blocks_never_panics(text in "(-----BEGIN [A-Z ]{0,6}-----|-----END [A-Z ]{0,6}-----|[A-Za-z0-9+/=\n]{0,20}){0,6}") {
            let _ = pem_sections(text.as_bytes(), "text");
        }
    }
}
