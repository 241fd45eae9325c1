//! How a node comes to its certificate, and to the next one.
//!
//! ```text
//!   files load, CN and time fit ------------------------------------------> Identity
//!   else token --GET /ca.crt--> authority (pinned by the token's hash) --GET /edge.crt + CSR--> save --> Identity
//!   a third of its life left --GET /edge.crt + CSR with the current certificate--> save --> Identity
//! ```
//!
//! When what is done is the affair of [`keeper`]; how is here.

mod error;
mod https;
mod keeper;
#[cfg(test)]
mod tests;

pub use error::Error;
pub(crate) use keeper::Keeper;

use https::{Answer, Endpoint};
use kedge_pki::{
    Bootstrap, Certificate, Identity, IdentityFiles, JoinToken, NODE_NAME_PREFIX, NodeRequest, UnixTime,
    anonymous_client_config,
};
use kedge_wire::NodeName;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// What getting a certificate needs.
#[derive(Clone)]
pub struct CertificateConfig {
    pub node: NodeName,
    /// `edgeHub.httpServer`, for example `https://10.0.0.1:10002`; several are separated by commas and tried in turn.
    pub http_server: String,
    /// `edgeHub.token`; needed only while there is no usable certificate.
    pub token: Option<String>,
    /// A file with a token that goes before `token`, officially `/etc/kubeedge/bootstrap-edgecore.conf`. It is looked at
    /// each time a token is needed, so it may come later.
    pub token_file: Option<PathBuf>,
    pub files: IdentityFiles,
}

/// A token never prints itself.
impl std::fmt::Debug for CertificateConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateConfig")
            .field("node", &self.node)
            .field("http_server", &self.http_server)
            .field("token_file", &self.token_file)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

/// By what right a certificate is asked for.
#[derive(Debug, Clone)]
pub enum Enrolment {
    /// The token, also for the authority.
    Join(JoinToken),
    /// The certificate in use, for the next one with a new key.
    Renew(Box<Identity>),
}

/// A token has about 300 bytes.
const TOKEN_BYTES_MAX: u64 = 64 * 1024;

impl CertificateConfig {
    fn common_name(&self) -> String {
        format!("{NODE_NAME_PREFIX}{}", self.node)
    }

    /// The tokens there are now, the file's first: it is the newer one.
    fn tokens(&self) -> Result<Vec<JoinToken>, Error> {
        let laid_down = match &self.token_file {
            Some(path) => read_token(path)?,
            None => None,
        };
        let given = self.token.as_deref().map(str::trim).map(str::to_owned);
        let tokens = laid_down.into_iter().chain(given);
        let tokens = tokens.filter(|token| !token.is_empty());
        Ok(tokens
            .map(|token| JoinToken::parse(&token))
            .collect::<Result<_, _>>()?)
    }

    fn endpoints(&self) -> Result<Vec<Endpoint>, Error> {
        self.http_server.split(',').map(Endpoint::parse).collect()
    }
}

fn read_token(path: &Path) -> Result<Option<String>, Error> {
    let failed = |source: io::Error| Error::TokenFile {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = String::new();
    file.take(TOKEN_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(failed)?;
    let token = text.trim();
    Ok(Some(token.to_owned()))
}

/// The node's identity: from its files when they are good, else from the cloud by the join token, and then in the
/// files. One attempt, for who decides on the next one; the hub does all of this by itself.
pub async fn bootstrap(config: &CertificateConfig, now: UnixTime) -> Result<Identity, Error> {
    let unusable = match config.files.load() {
        Ok(Some(identity)) => match usable(config, &identity, now) {
            Ok(()) => return Ok(identity),
            Err(why) => Some(why),
        },
        Ok(None) => None,
        Err(error) => Some(Error::Files(error)),
    };
    let tokens = config.tokens()?;
    let Some(token) = tokens.into_iter().next() else {
        return Err(unusable.unwrap_or(Error::NoToken {
            node: config.node.clone(),
        }));
    };
    if let Some(why) = unusable {
        tracing::warn!(%why, "certificate not usable; asking for a new one with the join token");
    }
    enrol(config, &Enrolment::Join(token), now).await
}

/// Asks the cloud for a certificate and saves it.
pub async fn enrol(config: &CertificateConfig, how: &Enrolment, now: UnixTime) -> Result<Identity, Error> {
    let mut outcome = Err(Error::Address {
        text: config.http_server.clone(),
    });
    for endpoint in config.endpoints()? {
        outcome = match how {
            Enrolment::Join(token) => join(config, &endpoint, token, now).await,
            Enrolment::Renew(current) => renew(config, &endpoint, current, now).await,
        };
        match &outcome {
            Err(error) if error.is_of_this_address() => tracing::debug!(%error, "trying the next address"),
            Ok(_) | Err(_) => break,
        }
    }
    let identity = outcome?;
    config.files.save(&identity)?;
    Ok(identity)
}

async fn join(
    config: &CertificateConfig,
    endpoint: &Endpoint,
    token: &JoinToken,
    now: UnixTime,
) -> Result<Identity, Error> {
    token.check_expiry(now)?;
    let authority = fetch_authority(endpoint, token, now).await?;
    let tls = anonymous_client_config(&authority)?;
    request_identity(config, endpoint, tls, Some(token), &authority, now).await
}

async fn renew(
    config: &CertificateConfig,
    endpoint: &Endpoint,
    current: &Identity,
    now: UnixTime,
) -> Result<Identity, Error> {
    let tls = current.client_config()?;
    request_identity(config, endpoint, tls, None, current.authority(), now).await
}

/// Whether the node can show this certificate.
fn usable(config: &CertificateConfig, identity: &Identity, now: UnixTime) -> Result<(), Error> {
    let info = identity.certificate().info();
    let path = config.files.certificate.clone();
    if info.common_name != config.common_name() {
        let (found, node) = (info.common_name.clone(), config.node.clone());
        return Err(Error::OtherNode { path, found, node });
    }
    if info.not_after.as_secs() <= now.as_secs() {
        return Err(Error::Expired {
            path,
            until: kedge_pki::show_time(info.not_after),
            now: kedge_pki::show_time(now),
        });
    }
    Ok(())
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
