//! The parts that every TLS configuration shares.

use crate::{Certificate, Error};
use rustls::client::WantsClientCert;
use rustls::crypto::CryptoProvider;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, ServerConfig, WantsVerifier};
use rustls_pki_types::UnixTime;
use std::sync::Arc;

/// The one crypto provider, passed explicitly and never installed for the process.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The clock of the machine, but never before a moment that has certainly passed. A node without a battery starts in
/// 1970, and would take every certificate for one of the future until somebody tells it the time, who may be behind the
/// connection that it cannot make.
#[derive(Debug)]
pub(crate) struct NotBefore(pub(crate) UnixTime);

impl TimeProvider for NotBefore {
    fn current_time(&self) -> Option<UnixTime> {
        let now = DefaultTimeProvider.current_time();
        Some(now.map_or(self.0, |now| now.max(self.0)))
    }
}

/// Judges peers by `clock`.
pub(crate) fn client_builder_by(
    clock: NotBefore,
) -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, Error> {
    ClientConfig::builder_with_details(provider(), Arc::new(clock))
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_clock_that_lost_its_time_is_not_believed() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let future = UnixTime::now().as_secs() + 1000;
        assert_eq!(NotBefore(at(future)).current_time(), Some(at(future)));
        assert!(NotBefore(at(5)).current_time() >= Some(at(1_700_000_000)));
    }
}
