//! Keys, certificates, join tokens and the TLS configurations made of them.
//!
//! **Duty.** Be the certificate authority of KubeEdge in its official profile ([`Authority`]); make and check join
//! tokens, shared and for one node ([`JoinToken`]), and service account tokens ([`TokenSigner`]); check what others ask
//! to be signed ([`CheckedRequest`], [`ServingRequest`]); keep a certificate and its key in files
//! ([`IdentityFiles`]); say when a certificate must be renewed ([`renewal_time`]); build every TLS configuration
//! that kedge uses, so that verification is decided in one place ([`Identity`], [`Bootstrap`]).
//!
//! **Inputs.** DER and PEM bytes, names, lifetimes, and the time. **Outputs.** The same, signed; or an error that
//! says what was being done, to what, and why it failed.
//!
//! **Never.** No network. No process-wide crypto provider. No configuration that accepts a peer whose certificate
//! nobody checks: even the very first contact of an edge is tied to the join token.
//!
//! ```text
//!   JoinToken ── hash of ──> CA certificate <── fetched over TLS whose certificate must be signed by it (Bootstrap)
//!       │ bearer                    │
//!       v                           v
//!   Authority::sign_node_request ── certificate ──> Identity ──> client / server TLS configuration
//! ```

mod authority;
mod bootstrap;
mod certificate;
mod files;
mod identity;
mod jwt;
mod key;
mod moment;
mod request;
mod rotation;
mod serving;
mod tls;
mod token;

pub use authority::{Authority, Error, ServerNames};
pub use bootstrap::{Bootstrap, BootstrapError};
pub use certificate::{Certificate, CertificateInfo, certificate_pem, node_of_peer};
pub use files::{FileError, IdentityFiles, write_private};
pub use identity::{ClientAuth, Identity};
pub use jwt::{JwtError, TokenSigner};
pub use key::Key;
pub use moment::show as show_time;
pub use request::{CheckedRequest, NodeRequest};
pub use rotation::renewal_time;
pub use rustls_pki_types::UnixTime;
pub use serving::{ServingRequest, check_serving_usages};
pub use tls::anonymous_client_config;
pub use token::{JoinClaims, JoinToken, TokenError, TokenId};

/// Organization of every node certificate.
pub const NODES_ORGANIZATION: &str = "system:nodes";
/// What precedes the node's name in the common name of its certificate.
pub const NODE_NAME_PREFIX: &str = "system:node:";
/// Organization whose members may do everything in the Kubernetes API.
pub const ADMINS_ORGANIZATION: &str = "system:masters";
