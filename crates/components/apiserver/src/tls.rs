//! TLS: our certificate, whose clients we verify, and who a verified client is.

use crate::config::{Config, OpenError};
use kedge_apimachinery::rbac::User;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The TLS side of the listener. A client certificate is optional here, because health is readable by everybody, but
/// one that is shown must be valid.
pub(crate) fn server_config(config: &Config) -> Result<Arc<ServerConfig>, OpenError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in certificates("client CA", &config.client_ca_pem)? {
        roots
            .add(certificate)
            .map_err(|error| credentials("client CA", error))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(|error| credentials("client CA", error))?;
    let chain = certificates("server certificate", &config.server_certificate_pem)?;
    let key = PrivateKeyDer::from_pem_slice(config.server_key_pem.as_bytes())
        .map_err(|error| credentials("server key", error))?;
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| credentials("TLS versions", error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| credentials("server certificate", error))?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(tls))
}

fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, OpenError> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| credentials(what, error))?;
    if all.is_empty() {
        return Err(credentials(what, "there is no certificate in the PEM text"));
    }
    Ok(all)
}

pub(crate) fn credentials(what: &'static str, detail: impl ToString) -> OpenError {
    OpenError::Credentials {
        what,
        detail: detail.to_string(),
    }
}

/// Who a verified certificate says that its holder is: the common name is the user, organizations are groups.
pub(crate) fn identity(certificate: &CertificateDer<'_>) -> Option<User> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let subject = certificate.subject();
    let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject
        .iter_organization()
        .filter_map(|o| o.as_str().ok())
        .map(str::to_owned)
        .collect();
    Some(User::authenticated(user, groups))
}
