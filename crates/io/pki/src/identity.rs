//! Who a process is on the network: its certificate chain, its key, and the authority it trusts.

use crate::{Certificate, Error, Key, tls};
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::CertificateDer;

/// A certificate with its key and the authority behind it. What needs a certificate takes this type, so that start
/// order is checked by the compiler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    chain: Vec<Certificate>,
    key: Key,
    authority: Certificate,
}

/// What a server wants to know about who dials it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// A valid certificate, or no connection.
    Required,
    /// A valid certificate or none; an invalid one is refused.
    Optional,
}

impl Identity {
    /// Puts the parts together; the first certificate of the chain must belong to the key.
    pub fn new(chain: Vec<Certificate>, key: Key, authority: Certificate) -> Result<Self, Error> {
        let leaf = chain.first().ok_or(Error::Parse {
            what: "certificate chain",
            why: "it is empty".into(),
        })?;
        if leaf.info().public_key != key.public_point() {
            return Err(Error::KeyMismatch {
                certificate: leaf.info().common_name.clone(),
            });
        }
        Ok(Self {
            chain,
            key,
            authority,
        })
    }

    /// The own certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.chain[0]
    }

    pub fn chain(&self) -> &[Certificate] {
        &self.chain
    }

    /// The chain as `CERTIFICATE` blocks, the own certificate first.
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(Certificate::pem).collect()
    }

    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The authority whose certificates are accepted from peers.
    pub fn authority(&self) -> &Certificate {
        &self.authority
    }

    /// TLS for dialling: presents the own certificate, verifies the server's name and chain. The time is at least the
    /// beginning of the own certificate, whatever the clock of the machine says.
    pub fn client_config(&self) -> Result<rustls::ClientConfig, Error> {
        tls::client_builder_by(tls::NotBefore(self.certificate().info().not_before))?
            .with_root_certificates(tls::roots(&self.authority)?)
            .with_client_auth_cert(self.rustls_chain(), self.key.to_rustls())
            .map_err(Error::Tls)
    }

    /// TLS for serving: presents the own certificate, verifies clients against the authority.
    pub fn server_config(&self, clients: ClientAuth) -> Result<rustls::ServerConfig, Error> {
        let roots = tls::roots(&self.authority)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, tls::provider());
        let verifier = match clients {
            ClientAuth::Required => verifier,
            ClientAuth::Optional => verifier.allow_unauthenticated(),
        };
        let verifier = verifier
            .build()
            .map_err(|error| Error::Tls(rustls::Error::General(error.to_string())))?;
        let mut config = tls::server_builder()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.rustls_chain(), self.key.to_rustls())
            .map_err(Error::Tls)?;
        // Every connection proves its identity anew, and ten thousand idle sessions keep no resumption state.
        config.session_storage = std::sync::Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    fn rustls_chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.iter().map(Certificate::to_rustls).collect()
    }
}
