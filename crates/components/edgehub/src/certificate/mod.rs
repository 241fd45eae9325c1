//! How a node comes to its certificate, and to the next one.
//!
//! ```text
//!   files load, CN and time fit ------------------------------------------> Identity
//!   else token --GET /ca.crt--> authority (pinned by the token's hash) --GET /edge.crt + CSR--> save --> Identity
//!   70..90 % of its life --GET /edge.crt + CSR with the current certificate--> save --> Identity
//! ```

mod error;
mod https;
#[cfg(test)]
mod tests;

pub use error::Error;

use https::{Answer, Endpoint};
use kedge_pki::{
    Bootstrap, Certificate, Identity, IdentityFiles, JoinToken, NODE_NAME_PREFIX, NodeRequest, UnixTime,
    anonymous_client_config,
};
use kedge_wire::NodeName;

/// What getting a certificate needs.
#[derive(Debug, Clone)]
pub struct CertificateConfig {
    pub node: NodeName,
    /// `edgeHub.httpServer`, for example `https://10.0.0.1:10002`.
    pub http_server: String,
    /// `edgeHub.token`; needed only while there is no usable certificate.
    pub token: Option<String>,
    pub files: IdentityFiles,
}

impl CertificateConfig {
    fn common_name(&self) -> String {
        format!("{NODE_NAME_PREFIX}{}", self.node)
    }
}

/// The node's identity: from its files when they are good, else from the cloud by the join token, and then in the
/// files.
pub async fn bootstrap(config: &CertificateConfig, now: UnixTime) -> Result<Identity, Error> {
    let unusable = match config.files.load() {
        Ok(Some(identity)) => match why_unusable(config, &identity, now) {
            None => return Ok(identity),
            Some(why) => Some(why),
        },
        Ok(None) => None,
        Err(error) => Some(Error::Files(error)),
    };
    let Some(token) = config.token.as_deref().filter(|token| !token.trim().is_empty()) else {
        return Err(unusable.unwrap_or(Error::NoToken {
            node: config.node.clone(),
        }));
    };
    if let Some(why) = unusable {
        tracing::warn!(%why, "certificate not usable; asking for a new one with the join token");
    }
    let token = JoinToken::parse(token)?;
    token.check_expiry(now)?;
    let endpoint = Endpoint::parse(&config.http_server)?;
    let authority = fetch_authority(&endpoint, &token, now).await?;
    let tls = anonymous_client_config(&authority)?;
    let identity = request_identity(config, &endpoint, tls, Some(&token), &authority, now).await?;
    config.files.save(&identity)?;
    Ok(identity)
}

/// A new certificate with a new key, asked for with the current certificate, and saved.
pub async fn renew(config: &CertificateConfig, current: &Identity, now: UnixTime) -> Result<Identity, Error> {
    let endpoint = Endpoint::parse(&config.http_server)?;
    let tls = current.client_config()?;
    let identity = request_identity(config, &endpoint, tls, None, current.authority(), now).await?;
    config.files.save(&identity)?;
    Ok(identity)
}

fn why_unusable(config: &CertificateConfig, identity: &Identity, now: UnixTime) -> Option<Error> {
    let info = identity.certificate().info();
    let path = config.files.certificate.clone();
    if info.common_name != config.common_name() {
        let (found, node) = (info.common_name.clone(), config.node.clone());
        return Some(Error::OtherNode { path, found, node });
    }
    if info.not_after.as_secs() <= now.as_secs() {
        return Some(Error::Expired {
            path,
            until: kedge_pki::show_time(info.not_after),
            now: kedge_pki::show_time(now),
        });
    }
    None
}

async fn fetch_authority(
    endpoint: &Endpoint,
    token: &JoinToken,
    now: UnixTime,
) -> Result<Certificate, Error> {
    let (tls, bootstrap) = Bootstrap::begin()?;
    let request = endpoint
        .get("/ca.crt")
        .body(https::empty())
        .map_err(Error::request)?;
    let answer = endpoint.send(tls, request).await?;
    let body = answer.success("read its authority certificate", now)?;
    Ok(bootstrap.accept(&body, token, now)?)
}

async fn request_identity(
    config: &CertificateConfig,
    endpoint: &Endpoint,
    tls: rustls::ClientConfig,
    token: Option<&JoinToken>,
    authority: &Certificate,
    now: UnixTime,
) -> Result<Identity, Error> {
    let csr = match token {
        Some(_) => config.files.first_request(&config.node)?,
        None => NodeRequest::create(&config.node)?,
    };
    let mut request = endpoint.get("/edge.crt").header("NodeName", config.node.as_str());
    if let Some(token) = token {
        request = request.header(http::header::AUTHORIZATION, format!("Bearer {}", token.bearer()));
    }
    let request = request.body(https::full(csr.der())).map_err(Error::request)?;
    let answer: Answer = endpoint.send(tls, request).await?;
    let body = answer.success("get a certificate for this node", now)?;
    let certificate = Certificate::from_der(&body)?;
    check_new(config, &certificate, now)?;
    Ok(Identity::new(
        vec![certificate],
        csr.into_key(),
        authority.clone(),
    )?)
}

/// Refuses a certificate that the node could not use, before it replaces one that works.
fn check_new(config: &CertificateConfig, certificate: &Certificate, now: UnixTime) -> Result<(), Error> {
    let info = certificate.info();
    if info.common_name != config.common_name() {
        let (found, node) = (info.common_name.clone(), config.node.clone());
        return Err(Error::WrongCertificate { found, node });
    }
    if now.as_secs() < info.not_before.as_secs() || info.not_after.as_secs() <= now.as_secs() {
        let (from, until) = (
            kedge_pki::show_time(info.not_before),
            kedge_pki::show_time(info.not_after),
        );
        return Err(Error::Clock {
            here: kedge_pki::show_time(now),
            there: format!("{from} to {until}"),
        });
    }
    Ok(())
}
