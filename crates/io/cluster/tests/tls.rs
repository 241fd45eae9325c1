//! TLS with client certificates, in a process that installed no crypto provider.

#![allow(clippy::unwrap_used)]

use kedge_cluster::{ApiError, Cluster, Parts};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn issue(authority: &Authority) -> (rcgen::Certificate, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    (params.signed_by(&key, authority).unwrap(), key)
}

/// Answers one request per connection with a small object, to clients of `authority` only.
async fn serve(authority: &Authority) -> String {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .unwrap();
    let (certificate, key) = issue(authority);
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            if let Ok(mut socket) = acceptor.accept(socket).await {
                let mut request = [0; 4096];
                let _ = socket.read(&mut request).await;
                let answer =
                    "HTTP/1.1 200 OK\r\ncontent-length: 12\r\nconnection: close\r\n\r\n{\"kind\":\"X\"}";
                let _ = socket.write_all(answer.as_bytes()).await;
                let _ = socket.shutdown().await;
            }
        }
    });
    url
}

async fn get(url: &str, trusted: &Authority, client: &Authority) -> Result<String, ApiError> {
    let (certificate, key) = issue(client);
    let parts = Parts {
        url,
        ca_pem: &trusted.pem(),
        client_certificate_pem: &certificate.pem(),
        client_key_pem: &key.serialize_pem(),
    };
    let cluster = Cluster::from_parts(parts).await.unwrap();
    cluster.get("/version").await.map(|body| body.json().to_owned())
}

#[tokio::test]
async fn both_ends_must_come_from_the_given_authority() {
    let (ours, other) = (authority(), authority());
    let url = serve(&ours).await;
    assert_eq!(get(&url, &ours, &ours).await.unwrap(), r#"{"kind":"X"}"#);
    assert!(matches!(
        get(&url, &other, &ours).await,
        Err(ApiError::Unreachable { .. })
    ));
    assert!(get(&url, &ours, &other).await.is_err());
}

#[tokio::test]
async fn the_authority_of_the_api_can_be_handed_on() {
    let authority = authority();
    let given = authority.pem().replace("\r\n", "\n");
    let parts = Parts {
        url: "https://127.0.0.1:1",
        ca_pem: &given,
        client_certificate_pem: "",
        client_key_pem: "",
    };
    let cluster = Cluster::from_parts(parts).await.unwrap();
    assert_eq!(cluster.authority_pem(), Some(given.as_str()));
}
