//! The parts that every TLS configuration shares.

use crate::{Certificate, Error};
use rustls::client::WantsClientCert;
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, ServerConfig, WantsVerifier};
use std::sync::Arc;

/// The one crypto provider, passed explicitly and never installed for the process.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

pub(crate) fn client_builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, Error> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)
}

pub(crate) fn server_builder() -> Result<ConfigBuilder<ServerConfig, WantsVerifier>, Error> {
    ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)
}

pub(crate) fn roots(authority: &Certificate) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.to_rustls()).map_err(|source| Error::Trust {
        name: authority.info().common_name.clone(),
        source,
    })?;
    Ok(Arc::new(roots))
}

/// TLS for dialling without a certificate of one's own: verifies the server's name and chain. An edge asks for its
/// first certificate with this.
pub fn anonymous_client_config(authority: &Certificate) -> Result<ClientConfig, Error> {
    let builder: ConfigBuilder<ClientConfig, WantsClientCert> =
        client_builder()?.with_root_certificates(roots(authority)?);
    Ok(builder.with_no_client_auth())
}
