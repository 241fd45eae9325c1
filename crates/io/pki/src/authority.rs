//! The certificate authority: the official KubeEdge profile.

use crate::certificate::Certificate;
use crate::identity::Identity;
use crate::key::Key;
use crate::request::CheckedRequest;
use crate::{NODE_NAME_PREFIX, NODES_ORGANIZATION};
use kedge_wire::NodeName;
use rcgen::string::{Ia5String, PrintableString};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, SanType, SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls_pki_types::UnixTime;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

/// Life of the authority and of server certificates: the official hundred years of 364 days.
const YEARS_100: Duration = Duration::from_secs(364 * 100 * 24 * 3600);
/// A certificate is valid from a little before now, so that an edge whose clock is slow can use it at once.
const CLOCK_SKEW_ALLOWED: Duration = Duration::from_secs(5 * 60);
/// Serial number of every official authority.
const AUTHORITY_SERIAL: u64 = 1024;
const OFFICIAL_NAME: &str = "KubeEdge";

/// Why a key, a certificate or a request cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read {what}: {why}")]
    Parse { what: &'static str, why: String },
    #[error("the certificate {certificate} does not belong to the private key beside it")]
    KeyMismatch { certificate: String },
    #[error("the certificate {certificate} is not an authority: it cannot sign others")]
    NotAuthority { certificate: String },
    #[error("sign {what}")]
    Sign { what: String, source: rcgen::Error },
    #[error("{name:?} cannot be a name in a certificate")]
    Name { name: String },
    #[error("the system gave no random bytes")]
    Random,
    #[error("the certificate request is refused: {0}")]
    Request(String),
    #[error("build the TLS configuration")]
    Tls(#[source] rustls::Error),
    #[error("trust the authority {name}")]
    Trust { name: String, source: rustls::Error },
}

/// Names under which a server is dialled.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerNames {
    pub ips: Vec<IpAddr>,
    pub dns: Vec<String>,
}

/// A certificate authority with its key.
#[derive(Debug, Clone)]
pub struct Authority {
    certificate: Certificate,
    key: Key,
}

impl Authority {
    /// A new authority with a new key.
    pub fn create(now: UnixTime) -> Result<Self, Error> {
        Self::create_named(OFFICIAL_NAME, now)
    }

    /// A new authority under another name, for example the one of the embedded Kubernetes API.
    pub fn create_named(name: &str, now: UnixTime) -> Result<Self, Error> {
        let key = Key::generate()?;
        let mut params = profile(&subject(name, &[])?, now, YEARS_100);
        params.serial_number = Some(SerialNumber::from(AUTHORITY_SERIAL));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages.push(KeyUsagePurpose::KeyCertSign);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = false;
        let signed = params.self_signed(&key.to_rcgen()?).map_err(signing(name))?;
        Self::from_parts(Certificate::from_der(signed.der())?, key)
    }

    /// An authority from its parts, which must belong together.
    pub fn from_parts(certificate: Certificate, key: Key) -> Result<Self, Error> {
        let name = || certificate.info().common_name.clone();
        if !certificate.info().is_authority {
            return Err(Error::NotAuthority { certificate: name() });
        }
        if certificate.info().public_key != key.public_point() {
            return Err(Error::KeyMismatch { certificate: name() });
        }
        Ok(Self { certificate, key })
    }

    /// `cadata` and `cakeydata` of the secret `kubeedge/casecret`.
    pub fn from_der(certificate: &[u8], key: &[u8]) -> Result<Self, Error> {
        Self::from_parts(Certificate::from_der(certificate)?, Key::from_der(key)?)
    }

    /// `tlsCAFile` and `tlsCAKeyFile`.
    pub fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, Error> {
        Self::from_parts(Certificate::from_pem(certificate)?, Key::from_pem(key)?)
    }

    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    pub fn key(&self) -> &Key {
        &self.key
    }

    /// A server's certificate in the official profile of CloudHub, with a new key.
    pub fn issue_server(&self, names: &ServerNames, now: UnixTime) -> Result<Identity, Error> {
        self.issue_server_as(OFFICIAL_NAME, names, now)
    }

    /// A server's certificate under another common name.
    pub fn issue_server_as(&self, name: &str, names: &ServerNames, now: UnixTime) -> Result<Identity, Error> {
        let mut params = profile(&subject(name, &[OFFICIAL_NAME])?, now, YEARS_100);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = alternative_names(names)?;
        self.issue(params, name)
    }

    /// A client's certificate, for example an administrator's (`kubernetes-admin`, `system:masters`).
    pub fn issue_client(
        &self,
        common_name: &str,
        organizations: &[&str],
        lifetime: Duration,
        now: UnixTime,
    ) -> Result<Identity, Error> {
        let mut params = profile(&subject(common_name, organizations)?, now, lifetime);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params, common_name)
    }

    /// A certificate for its own processes that both serve and dial.
    pub fn issue_peer(
        &self,
        common_name: &str,
        names: &ServerNames,
        now: UnixTime,
    ) -> Result<Identity, Error> {
        let mut params = profile(&subject(common_name, &[OFFICIAL_NAME])?, now, YEARS_100);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.subject_alt_names = alternative_names(names)?;
        self.issue(params, common_name)
    }

    /// Signs the request of `node`: the signature must prove possession of the key, the subject must be exactly
    /// `system:node:<node>` of `system:nodes`. Nothing but the public key is taken over.
    pub fn sign_node_request(
        &self,
        request_der: &[u8],
        node: &NodeName,
        lifetime: Duration,
        now: UnixTime,
    ) -> Result<Certificate, Error> {
        self.sign_checked(CheckedRequest::read(request_der, node)?, lifetime, now)
    }

    /// Signs a request that was checked before.
    pub fn sign_checked(
        &self,
        request: CheckedRequest,
        lifetime: Duration,
        now: UnixTime,
    ) -> Result<Certificate, Error> {
        let name = format!("{NODE_NAME_PREFIX}{}", request.node);
        let mut params = profile(&subject(&name, &[NODES_ORGANIZATION])?, now, lifetime);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(random_serial()?);
        let public_key = request.public_key;
        let request = CertificateSigningRequestParams { params, public_key };
        let signed = request.signed_by(&self.issuer()?).map_err(signing(&name))?;
        Certificate::from_der(signed.der())
    }

    fn issue(&self, mut params: CertificateParams, name: &str) -> Result<Identity, Error> {
        let key = Key::generate()?;
        params.serial_number = Some(random_serial()?);
        let signed = params
            .signed_by(&key.to_rcgen()?, &self.issuer()?)
            .map_err(signing(name))?;
        Identity::new(
            vec![Certificate::from_der(signed.der())?],
            key,
            self.certificate.clone(),
        )
    }

    fn issuer(&self) -> Result<Issuer<'static, rcgen::KeyPair>, Error> {
        let name = &self.certificate.info().common_name;
        Issuer::from_ca_cert_der(&self.certificate.to_rustls(), self.key.to_rcgen()?).map_err(signing(name))
    }
}

fn signing(what: &str) -> impl Fn(rcgen::Error) -> Error + '_ {
    move |source| Error::Sign {
        what: what.to_owned(),
        source,
    }
}

/// What all certificates of the official profile share.
fn profile(subject: &DistinguishedName, now: UnixTime, lifetime: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    let moment = SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs());
    params.not_before = (moment - CLOCK_SKEW_ALLOWED.min(Duration::from_secs(now.as_secs()))).into();
    params.not_after = (moment + lifetime).into();
    params.distinguished_name = subject.clone();
    params.key_usages = vec![
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::DigitalSignature,
    ];
    params.use_authority_key_identifier_extension = true;
    params
}

pub(crate) fn subject(common_name: &str, organizations: &[&str]) -> Result<DistinguishedName, Error> {
    let mut name = DistinguishedName::new();
    // rcgen holds one value a type, which is also all that the official profiles need.
    if let Some(organization) = organizations.first() {
        name.push(DnType::OrganizationName, printable(organization)?);
    }
    name.push(DnType::CommonName, printable(common_name)?);
    Ok(name)
}

/// PrintableString where its alphabet allows, as Go does; else UTF-8.
pub(crate) fn printable(text: &str) -> Result<DnValue, Error> {
    if text.is_empty() {
        return Err(Error::Name {
            name: text.to_owned(),
        });
    }
    Ok(match PrintableString::try_from(text) {
        Ok(printable) => DnValue::PrintableString(printable),
        Err(_) => DnValue::Utf8String(text.to_owned()),
    })
}

fn alternative_names(names: &ServerNames) -> Result<Vec<SanType>, Error> {
    let dns = names.dns.iter().filter(|name| !name.is_empty()).map(|name| {
        Ia5String::try_from(name.as_str())
            .map(SanType::DnsName)
            .map_err(|_| Error::Name { name: name.clone() })
    });
    names
        .ips
        .iter()
        .map(|ip| Ok(SanType::IpAddress(*ip)))
        .chain(dns)
        .collect()
}

/// Positive and below 2^63, as official ones are.
fn random_serial() -> Result<SerialNumber, Error> {
    let mut bytes = [0; 8];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Error::Random)?;
    Ok(SerialNumber::from((u64::from_be_bytes(bytes) >> 1).max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::NodeRequest;
    use expect_test::expect;
    use x509_parser::prelude::{FromDer, X509Certificate};

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn now() -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(1_767_225_600))
    }

    fn node(name: &str) -> NodeName {
        NodeName::new(name).unwrap()
    }

    fn profile_of(certificate: &Certificate) -> String {
        let (_, parsed) = X509Certificate::from_der(certificate.der()).unwrap();
        let usage = parsed.key_usage().unwrap().unwrap().value;
        let extended = parsed.extended_key_usage().unwrap().unwrap().value;
        let info = certificate.info();
        format!(
            "subject {}; issuer {}; usage {usage}; server {} client {}; ca {}; {} to {}; dns {:?} ip {:?}",
            parsed.subject(),
            parsed.issuer(),
            extended.server_auth,
            extended.client_auth,
            info.is_authority,
            crate::show_time(info.not_before),
            crate::show_time(info.not_after),
            info.dns_names,
            info.ips,
        )
    }

    #[test]
    fn certificates_have_the_official_profiles() {
        let authority = Authority::create(now()).unwrap();
        let (_, parsed) = X509Certificate::from_der(authority.certificate().der()).unwrap();
        assert_eq!(parsed.raw_serial(), [4, 0]);
        let names = ServerNames {
            ips: vec![IpAddr::from([127, 0, 0, 1])],
            dns: vec!["cloud".into(), "".into()],
        };
        let server = authority.issue_server(&names, now()).unwrap();
        let admin = authority
            .issue_client("kubernetes-admin", &["system:masters"], DAY, now())
            .unwrap();
        let request = NodeRequest::create(&node("edge-1")).unwrap();
        let edge = authority
            .sign_node_request(request.der(), &node("edge-1"), 365 * DAY, now())
            .unwrap();
        let shown = [
            authority.certificate(),
            server.certificate(),
            admin.certificate(),
            &edge,
        ]
        .map(profile_of);
        expect![[r#"
            subject CN=KubeEdge; issuer CN=KubeEdge; usage Digital Signature, Key Encipherment, Key Cert Sign; server true client true; ca true; 2025-12-31T23:55:00Z to 2125-08-30T00:00:00Z; dns [] ip []
            subject O=KubeEdge, CN=KubeEdge; issuer CN=KubeEdge; usage Digital Signature, Key Encipherment; server true client false; ca false; 2025-12-31T23:55:00Z to 2125-08-30T00:00:00Z; dns ["cloud"] ip [127.0.0.1]
            subject O=system:masters, CN=kubernetes-admin; issuer CN=KubeEdge; usage Digital Signature, Key Encipherment; server false client true; ca false; 2025-12-31T23:55:00Z to 2026-01-02T00:00:00Z; dns [] ip []
            subject O=system:nodes, CN=system:node:edge-1; issuer CN=KubeEdge; usage Digital Signature, Key Encipherment; server false client true; ca false; 2025-12-31T23:55:00Z to 2027-01-01T00:00:00Z; dns [] ip []"#]].assert_eq(&shown.join("\n"));
        assert_eq!(edge.info().node(), Some(node("edge-1")));
        assert_eq!(admin.certificate().info().node(), None);
    }

    #[test]
    fn an_authority_survives_its_official_encodings() {
        let authority = Authority::create(now()).unwrap();
        let (certificate, key) = (authority.certificate(), authority.key());
        let again = Authority::from_der(certificate.der(), key.sec1_der()).unwrap();
        assert_eq!(again.certificate(), certificate);
        Authority::from_pem(certificate.pem().as_bytes(), key.pem().as_bytes()).unwrap();
        let other = Authority::create(now()).unwrap();
        let mixed = Authority::from_parts(certificate.clone(), other.key().clone()).unwrap_err();
        assert_eq!(
            mixed.to_string(),
            "the certificate KubeEdge does not belong to the private key beside it"
        );
    }

    #[test]
    fn only_the_asking_node_is_signed() {
        let authority = Authority::create(now()).unwrap();
        let request = NodeRequest::create(&node("edge-1")).unwrap();
        let error = authority
            .sign_node_request(request.der(), &node("edge-2"), DAY, now())
            .unwrap_err();
        expect![[r#"the certificate request is refused: it names "system:node:edge-1" but node edge-2 must ask for "system:node:edge-2""#]].assert_eq(&error.to_string());

        let mut forged = request.der().to_vec();
        *forged.last_mut().unwrap() ^= 1;
        let error = authority
            .sign_node_request(&forged, &node("edge-1"), DAY, now())
            .unwrap_err();
        expect![
            "the certificate request is refused: its signature is wrong: the asking side does not own the key"
        ]
        .assert_eq(&error.to_string());

        let error = authority
            .sign_node_request(b"no request", &node("edge-1"), DAY, now())
            .unwrap_err();
        expect!["the certificate request is refused: it is not PKCS#10 DER"].assert_eq(&error.to_string());
    }
}
