//! What a node asks of the cluster's signer `kubernetes.io/kubelet-serving`.

use crate::authority::Error;
use crate::certificate::{ip, pem_sections};
use crate::key::element;
use crate::request::{check_key, fingerprint, node_of_subject, parse, refuse, wrong_signature};
use kedge_wire::NodeName;
use std::net::IpAddr;
use x509_parser::certification_request::X509CertificationRequestInfo;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension, X509Extension};

/// A node has a few names and addresses.
const NAMES_MAX: usize = 64;
/// `spec.usages` of a certificate request for a kubelet's server, in the words of the Kubernetes API.
const USAGES_NEEDED: [&str; 2] = ["digital signature", "server auth"];
const USAGE_ALLOWED: &str = "key encipherment";

/// A well-formed request for a kubelet's serving certificate. Whether the names and addresses are the node's is for
/// the caller to judge: it knows who asked and what the Node object says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServingRequest {
    /// From the subject `system:node:<node>` of `system:nodes`.
    pub node: NodeName,
    pub dns_names: Vec<String>,
    pub ips: Vec<IpAddr>,
    /// Hex of the SHA-256 of the public key.
    pub fingerprint: String,
}

impl ServingRequest {
    /// Reads `spec.request` (PEM) of a CertificateSigningRequest: one block, signed by its own strong key, the subject
    /// of a node, at least one DNS name or IP address and no other kind of name, no extension that could give more.
    pub fn from_pem(pem: &[u8]) -> Result<Self, Error> {
        let blocks = pem_sections(pem, "certificate request")?;
        let [(label, der)] = blocks.as_slice() else {
            return Err(refuse(format!(
                "it has {} PEM blocks where one is expected",
                blocks.len()
            )));
        };
        if label != "CERTIFICATE REQUEST" {
            return Err(refuse(format!(
                "its PEM block is {label:?}, not CERTIFICATE REQUEST"
            )));
        }
        let request = parse(der)?;
        let info = &request.certification_request_info;
        let node = node_of_subject(&info.subject)?;
        check_key(&info.subject_pki)?;
        request.verify_signature().map_err(|_| wrong_signature())?;
        let (mut dns_names, mut ips) = (Vec::new(), Vec::new());
        for extension in extensions(info)? {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    for name in &names.general_names {
                        read_name(name, &mut dns_names, &mut ips)?;
                    }
                }
                ParsedExtension::KeyUsage(_) | ParsedExtension::ExtendedKeyUsage(_) => {}
                // A foreign enum: whatever else there is, a kubelet does not ask for it.
                _ => return Err(refuse("it asks for an extension that no kubelet needs")),
            }
        }
        if dns_names.is_empty() && ips.is_empty() {
            return Err(refuse("it has neither a DNS name nor an IP address"));
        }
        if dns_names.len() + ips.len() > NAMES_MAX {
            return Err(refuse(format!("it has more than {NAMES_MAX} names")));
        }
        Ok(Self {
            node,
            dns_names,
            ips,
            fingerprint: fingerprint(&info.subject_pki),
        })
    }
}

/// The extensions that are asked for. The signer is another program: what it might find there and we did not read is
/// refused.
fn extensions<'a>(info: &'a X509CertificationRequestInfo<'_>) -> Result<&'a [X509Extension<'a>], Error> {
    let mut attributes = info.iter_attributes();
    let (first, second) = (attributes.next(), attributes.next());
    let Some(attribute) = first else {
        return Ok(&[]);
    };
    let whole = element(attribute.value).is_some_and(|(_, _, rest)| rest.is_empty())
        && info.raw.ends_with(attribute.value)
        && second.is_none();
    match attribute.parsed_attribute() {
        ParsedCriAttribute::ExtensionRequest(asked) if whole => Ok(&asked.extensions),
        ParsedCriAttribute::ExtensionRequest(_)
        | ParsedCriAttribute::ChallengePassword(_)
        | ParsedCriAttribute::UnsupportedAttribute => Err(refuse("it has attributes that no kubelet sends")),
    }
}

fn read_name(
    name: &GeneralName<'_>,
    dns_names: &mut Vec<String>,
    ips: &mut Vec<IpAddr>,
) -> Result<(), Error> {
    match name {
        GeneralName::DNSName(name) => dns_names.push((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            ips.push(ip(bytes).ok_or_else(|| refuse("one of its IP addresses is malformed"))?);
        }
        // A foreign enum: mail addresses, URIs and the like.
        _ => return Err(refuse("it has names that are neither DNS names nor IP addresses")),
    }
    Ok(())
}

/// Checks `spec.usages`: exactly what serving needs, with or without key encipherment.
pub fn check_serving_usages<'a>(usages: impl IntoIterator<Item = &'a str>) -> Result<(), Error> {
    let usages: Vec<&str> = usages.into_iter().collect();
    for needed in USAGES_NEEDED {
        if !usages.contains(&needed) {
            return Err(refuse(format!("it does not ask for the usage {needed:?}")));
        }
    }
    let more = usages
        .iter()
        .find(|usage| !USAGES_NEEDED.contains(usage) && **usage != USAGE_ALLOWED);
    match more {
        Some(usage) => {
            let usage: String = usage.chars().take(80).collect();
            Err(refuse(format!(
                "it asks for the usage {usage:?}, which serving does not need"
            )))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::pem_block;
    use expect_test::expect;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, SanType};

    fn params(sans: Vec<SanType>) -> CertificateParams {
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, "system:nodes");
        name.push(DnType::CommonName, "system:node:edge-1");
        params.distinguished_name = name;
        params.subject_alt_names = sans;
        params
    }

    fn dns() -> SanType {
        SanType::DnsName("edge-1".try_into().unwrap())
    }

    fn der(params: &CertificateParams) -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        params.serialize_request(&key).unwrap().der().to_vec()
    }

    fn check(pem: &str) -> String {
        match ServingRequest::from_pem(pem.as_bytes()) {
            Ok(request) => format!("{} {:?} {:?}", request.node, request.dns_names, request.ips),
            Err(error) => error.to_string(),
        }
    }

    fn block(der: &[u8]) -> String {
        pem_block("CERTIFICATE REQUEST", der)
    }

    #[test]
    fn only_what_a_kubelet_needs_is_taken() {
        let fine = block(&der(&params(vec![
            dns(),
            SanType::IpAddress([10, 0, 0, 7].into()),
        ])));
        let mut forged = der(&params(vec![dns()]));
        *forged.last_mut().unwrap() ^= 1;
        let mut usages = params(vec![dns()]);
        usages.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let mut admin = params(vec![dns()]);
        admin
            .distinguished_name
            .push(DnType::OrganizationName, "system:masters");
        let shown = [
            check(&fine),
            check(&block(&der(&usages))),
            check(&block(&der(&params(Vec::new())))),
            check(&block(&der(&params(vec![
                dns(),
                SanType::URI("spiffe://x".try_into().unwrap()),
            ])))),
            check(&block(&der(&admin))),
            check(&block(&forged)),
            check(&format!("{fine}{fine}")),
            check(&pem_block("CERTIFICATE", &der(&params(vec![dns()])))),
            check("nothing"),
            check(&block(&der(&params(vec![dns(); NAMES_MAX + 1])))),
            check(&block(include_bytes!("../tests/data/authority.csr"))),
            check(&block(include_bytes!("../tests/data/password.csr"))),
        ];
        expect![[r#"
            edge-1 ["edge-1"] [10.0.0.7]
            edge-1 ["edge-1"] []
            the certificate request is refused: it has neither a DNS name nor an IP address
            the certificate request is refused: it has names that are neither DNS names nor IP addresses
            the certificate request is refused: its organization is "system:masters" but must be "system:nodes"
            the certificate request is refused: its signature is wrong: the asking side does not own the key
            the certificate request is refused: it has 2 PEM blocks where one is expected
            the certificate request is refused: its PEM block is "CERTIFICATE", not CERTIFICATE REQUEST
            the certificate request is refused: it has 0 PEM blocks where one is expected
            the certificate request is refused: it has more than 64 names
            the certificate request is refused: it asks for an extension that no kubelet needs
            the certificate request is refused: it has attributes that no kubelet sends"#]].assert_eq(&shown.join("\n"));
    }

    #[test]
    fn usages() {
        let shown: Vec<String> = [
            vec!["digital signature", "key encipherment", "server auth"],
            vec!["server auth", "digital signature"],
            vec!["digital signature", "client auth", "server auth"],
            vec!["server auth"],
            vec![],
        ]
        .into_iter()
        .map(|usages| match check_serving_usages(usages) {
            Ok(()) => "fine".to_owned(),
            Err(error) => error.to_string(),
        })
        .collect();
        expect![[r#"
            fine
            fine
            the certificate request is refused: it asks for the usage "client auth", which serving does not need
            the certificate request is refused: it does not ask for the usage "digital signature"
            the certificate request is refused: it does not ask for the usage "digital signature""#]].assert_eq(&shown.join("\n"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(ServingRequest::from_pem(&bytes).is_err());
            prop_assert!(ServingRequest::from_pem(block(&bytes).as_bytes()).is_err());
        }

        /// A few bytes around the signature are not signed and mean nothing; everything else is.
        #[test]
        fn damage_changes_nothing_or_is_refused(spot in 0usize..400, change in 1u8..=255) {
            let mut der = der(&params(vec![dns()]));
            let whole = ServingRequest::from_pem(block(&der).as_bytes()).unwrap();
            let spot = spot % der.len();
            der[spot] ^= change;
            if let Ok(damaged) = ServingRequest::from_pem(block(&der).as_bytes()) {
                prop_assert_eq!(damaged, whole);
            }
        }
    }
}
