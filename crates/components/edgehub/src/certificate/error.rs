//! Why a node has no certificate, each in one sentence with the way out.

use kedge_pki::{BootstrapError, FileError, TokenError};
use kedge_transport::{DialError, TlsTrouble};
use kedge_wire::NodeName;
use std::path::PathBuf;
use std::time::Duration;

/// A failed bootstrap or renewal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`edgeHub.httpServer` is {text:?}: write it as https://<host>:10002")]
    Address { text: String },
    #[error(
        "node {node} has no certificate yet and no join token: get a token with `keadm gettoken` on the cloud and put it \
         into /etc/kubeedge/bootstrap-edgecore.conf or into `edgeHub.token`"
    )]
    NoToken { node: NodeName },
    #[error("read the join token in {path}: {source}", path = path.display())]
    TokenFile { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(
        "the cloud cannot be reached at {url} ({source}): check the address, the network and that cloudcore runs"
    )]
    Unreachable { url: String, source: DialError },
    #[error(
        "the cloud at {url} does not answer within {after:?}: check the network and that cloudcore runs; a firewall \
         may drop the packets"
    )]
    Silent { url: String, after: Duration },
    #[error(
        "the cloud's certificate does not carry the address {url} (it carries {carried}): use one of those addresses, or \
         add this one to `cloudHub.advertiseAddress` or `cloudHub.dnsNames`"
    )]
    ServerName { url: String, carried: String },
    /// The trouble says what to do.
    #[error("the cloud at {url}: {trouble}")]
    Tls { url: String, trouble: TlsTrouble },
    #[error("the answer of the cloud at {url} broke off: {why}")]
    Broken { url: String, why: String },
    #[error(
        "the cloud at {url} does not speak HTTPS as expected ({source}): is this the port of `cloudHub.https`?"
    )]
    Protocol { url: String, source: hyper::Error },
    #[error("the answer of the cloud at {url} is longer than {max} bytes: is this cloudcore?")]
    TooLong { url: String, max: usize },
    #[error(
        "the clock of this machine says {here} but the cloud's time is {there}: set the clock of this machine"
    )]
    Clock { here: String, there: String },
    /// Detail comes from the cloud: it knows why.
    #[error("the cloud refused to let this node {act} ({status}: {reason}){way_out}")]
    Refused {
        act: &'static str,
        status: u16,
        reason: String,
        way_out: &'static str,
    },
    #[error(transparent)]
    Untrusted(#[from] BootstrapError),
    #[error(
        "the certificate {path} is of {found}, but this is node {node}: set `edged.hostnameOverride` to the name in the \
         certificate, or give a join token in `edgeHub.token` to get a certificate for {node}",
        path = path.display()
    )]
    OtherNode {
        path: PathBuf,
        found: String,
        node: NodeName,
    },
    #[error(
        "the certificate {path} ended at {until} and the clock of this machine says {now}: get a token with `keadm \
         gettoken` on the cloud and write it to /etc/kubeedge/bootstrap-edgecore.conf, the node then joins again by \
         itself; or set the clock",
        path = path.display()
    )]
    Expired {
        path: PathBuf,
        until: String,
        now: String,
    },
    #[error(
        "the certificate {path} and the cloud do not know each other, as after a new installation of the cloud: get a \
         token with `keadm gettoken` on the cloud and write it to /etc/kubeedge/bootstrap-edgecore.conf, the node then \
         joins again by itself",
        path = path.display()
    )]
    Unknown { path: PathBuf },
    #[error("the cloud gave a certificate of {found} to node {node}: another node may be using this address")]
    WrongCertificate { found: String, node: NodeName },
    #[error("certificate files: {}", chain(.0))]
    Files(#[from] FileError),
    #[error("certificates: {}", chain(.0))]
    Pki(#[from] kedge_pki::Error),
}

impl Error {
    pub(crate) fn dial(url: String, error: DialError) -> Self {
        match error {
            DialError::Tls {
                trouble: TlsTrouble::WrongName { carried },
                ..
            } => Self::ServerName { url, carried },
            DialError::Tls { trouble, .. } => Self::Tls { url, trouble },
            source @ (DialError::Unplugged { .. }
            | DialError::Address { .. }
            | DialError::Refused { .. }
            | DialError::Timeout { .. }
            | DialError::Network { .. }
            | DialError::Rejected { .. }
            | DialError::Handshake { .. }) => Self::Unreachable { url, source },
        }
    }

    /// Whether waiting alone does not help.
    pub(crate) fn needs_a_person(&self) -> bool {
        match self {
            Self::Address { .. }
            | Self::NoToken { .. }
            | Self::TokenFile { .. }
            | Self::Token(_)
            | Self::ServerName { .. }
            | Self::Refused { .. }
            | Self::Untrusted(_)
            | Self::OtherNode { .. }
            | Self::Expired { .. }
            | Self::Unknown { .. }
            | Self::WrongCertificate { .. }
            | Self::Files(_)
            | Self::Pki(_) => true,
            Self::Unreachable { .. }
            | Self::Silent { .. }
            | Self::Tls { .. }
            | Self::Broken { .. }
            | Self::Protocol { .. }
            | Self::TooLong { .. }
            | Self::Clock { .. } => false,
        }
    }

    /// Whether another address of the cloud may do better.
    pub(crate) fn is_of_this_address(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Silent { .. }
                | Self::Tls { .. }
                | Self::ServerName { .. }
                | Self::Broken { .. }
                | Self::Protocol { .. }
        )
    }

    /// Whether another token may do better.
    pub(crate) fn is_of_this_token(&self) -> bool {
        matches!(self, Self::Token(_) | Self::Untrusted(_) | Self::Refused { .. })
    }

    /// Whether the token was made by another cloud than the one that answers.
    pub(crate) fn names_another_cloud(&self) -> bool {
        matches!(
            self,
            Self::Token(TokenError::OtherAuthority { .. })
                | Self::Untrusted(BootstrapError::Token(TokenError::OtherAuthority { .. }))
        )
    }

    /// A request line or header that cannot be built.
    pub(crate) fn request(error: http::Error) -> Self {
        Self::Address {
            text: error.to_string(),
        }
    }
}

/// An error with its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
