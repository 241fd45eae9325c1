//! The first contact of an edge: trust comes from the join token alone.
//!
//! The edge knows no authority yet, so the server's certificate cannot be judged while TLS is set up. The verifier
//! here lets the handshake finish (the server still proves that it owns the key of its certificate), remembers the
//! chain, and [`Bootstrap::accept`] judges it afterwards: the authority that was fetched must hash to the value in
//! the token **and** must have signed the certificate of the very connection it came over.

use crate::{Certificate, JoinToken, TokenError, show_time, tls};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::{Arc, Mutex, PoisonError};

/// Certificates of a chain that are kept; an official server sends one.
const CHAIN_MAX: usize = 8;

/// Why the first contact cannot be trusted.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error("the cloud's authority certificate cannot be read")]
    Authority(#[source] crate::Error),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("no TLS connection was made before the authority was to be judged")]
    NoConnection,
    #[error(
        "the server's certificate is not signed by the authority of the token: somebody may stand between this \
         node and the cloud"
    )]
    Intercepted(#[source] rustls::Error),
    #[error(
        "the server's certificate is valid from {from} to {until} but the clock of this machine says {now}: set the \
         clock"
    )]
    Clock {
        from: String,
        until: String,
        now: String,
    },
}

/// A client configuration for one connection, with the means to judge the peer afterwards.
#[derive(Debug)]
pub struct Bootstrap {
    seen: Arc<Witness>,
}

impl Bootstrap {
    /// The configuration to dial with. Use it for one connection, for `GET /ca.crt` only; send nothing secret.
    pub fn begin() -> Result<(rustls::ClientConfig, Self), crate::Error> {
        let algorithms = tls::provider().signature_verification_algorithms;
        let seen = Arc::new(Witness {
            algorithms,
            chain: Mutex::default(),
        });
        let mut config = tls::client_builder()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&seen) as Arc<dyn ServerCertVerifier>)
            .with_no_client_auth();
        config.resumption = rustls::client::Resumption::disabled();
        Ok((config, Self { seen }))
    }

    /// Judges the connection: `fetched` must be the token's authority and must have signed the server's
    /// certificate. Only then may it be trusted and stored.
    pub fn accept(
        self,
        fetched: &[u8],
        token: &JoinToken,
        now: UnixTime,
    ) -> Result<Certificate, BootstrapError> {
        let authority = Certificate::from_der(fetched).map_err(BootstrapError::Authority)?;
        token.check_authority(&authority)?;
        let chain = std::mem::take(&mut *self.seen.chain.lock().unwrap_or_else(PoisonError::into_inner));
        let (leaf, intermediates) = chain.split_first().ok_or(BootstrapError::NoConnection)?;
        let roots = tls::roots(&authority).map_err(BootstrapError::Authority)?;
        let parsed = ParsedCertificate::try_from(leaf).map_err(BootstrapError::Intercepted)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &roots,
            intermediates,
            now,
            self.seen.algorithms.all,
        )
        .map_err(|error| judge(error, leaf, now))?;
        Ok(authority)
    }
}

/// Tells a wrong clock from a wrong server.
fn judge(error: rustls::Error, leaf: &CertificateDer<'_>, now: UnixTime) -> BootstrapError {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    let about_time = matches!(
        &error,
        rustls::Error::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }
        )
    );
    match Certificate::from_der(leaf) {
        Ok(leaf) if about_time => BootstrapError::Clock {
            from: show_time(leaf.info().not_before),
            until: show_time(leaf.info().not_after),
            now: show_time(now),
        },
        _ => BootstrapError::Intercepted(error),
    }
}

/// Remembers the chain of the first handshake; another chain on a later handshake is refused.
#[derive(Debug)]
struct Witness {
    algorithms: WebPkiSupportedAlgorithms,
    chain: Mutex<Vec<CertificateDer<'static>>>,
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let presented = std::iter::once(end_entity).chain(intermediates).take(CHAIN_MAX);
        let presented: Vec<_> = presented
            .map(|certificate| certificate.clone().into_owned())
            .collect();
        let mut chain = self.chain.lock().unwrap_or_else(PoisonError::into_inner);
        if !chain.is_empty() && *chain != presented {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        *chain = presented;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, ClientAuth, Identity, ServerNames};
    use std::time::Duration;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    fn server(authority: &Authority) -> Identity {
        let names = ServerNames {
            ips: Vec::new(),
            dns: vec!["cloud".into()],
        };
        authority.issue_server(&names, UnixTime::now()).unwrap()
    }

    /// A handshake in memory; fails only if TLS itself fails.
    fn handshake(config: rustls::ClientConfig, server: &Identity) {
        let name = ServerName::try_from("cloud").unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let config = server.server_config(ClientAuth::Optional).unwrap();
        let mut server = rustls::ServerConnection::new(Arc::new(config)).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).unwrap();
            server.read_tls(&mut bytes.as_slice()).unwrap();
            server.process_new_packets().unwrap();
            let mut bytes = Vec::new();
            server.write_tls(&mut bytes).unwrap();
            client.read_tls(&mut bytes.as_slice()).unwrap();
            client.process_new_packets().unwrap();
        }
    }

    fn check(token_of: &Authority, served_by: &Authority, fetched: &Authority, now: UnixTime) -> String {
        let (config, bootstrap) = Bootstrap::begin().unwrap();
        handshake(config, &server(served_by));
        let token = JoinToken::issue(token_of, at(now.as_secs() + 60)).unwrap();
        match bootstrap.accept(fetched.certificate().der(), &token, now) {
            Ok(_) => "trusted".into(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn only_the_authority_of_the_token_that_signed_the_connection_is_trusted() {
        let now = UnixTime::now();
        let (real, false_one) = (Authority::create(now).unwrap(), Authority::create(now).unwrap());
        assert_eq!(check(&real, &real, &real, now), "trusted");
        let stolen = check(&real, &false_one, &real, now);
        assert!(stolen.starts_with("the server's certificate is not signed by the authority of the token"));
        let other = check(&real, &false_one, &false_one, now);
        assert!(other.starts_with("the join token is for another cloud"));
        let early = check(&real, &real, &real, at(1_000_000_000));
        assert!(
            early.contains("but the clock of this machine says 2001-09-09T01"),
            "{early}"
        );
    }

    #[test]
    fn without_a_connection_nothing_is_trusted() {
        let now = UnixTime::now();
        let authority = Authority::create(now).unwrap();
        let token = JoinToken::issue(&authority, at(now.as_secs() + 60)).unwrap();
        let (_, bootstrap) = Bootstrap::begin().unwrap();
        let error = bootstrap
            .accept(authority.certificate().der(), &token, now)
            .unwrap_err();
        assert!(matches!(error, BootstrapError::NoConnection));
    }
}
