//! A client of image registries, as the OCI distribution specification describes them (Docker's v2 interface).
//!
//! **Duty.** [`Client::pull`] fetches one image for one processor into a folder in the OCI image layout. Every byte is
//! verified against the digest that names it before the folder counts as complete.
//!
//! **Inputs.** A reference, credentials in turn, a folder that may hold what an earlier pull left, which layers are here
//! already. **Outputs.** The folder; [`Progress`] while it fills.
//!
//! **Never.** It unpacks nothing, keeps no secret on disk, never follows an answer to plain HTTP, and never takes an
//! unverified certificate: a registry without TLS is named in [`Config::plain_http`].
//!
//! ```text
//!   reference -> mirrors, then the registry itself -> token -> manifest (by tag or digest)
//!     -> manifest for this processor -> configuration, layers (a few at one time)
//!     -> blobs/sha256/<hex>.partial -> verified -> blobs/sha256/<hex> -> index.json, last
//! ```
//!
//! A download that breaks goes on where it stopped, also in the next pull and after the death of the process.

mod auth;
mod blob;
mod documents;
mod http;
mod pull;

pub use pull::Into;

use kedge_containers::Credentials;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A pause is doubled no more often than this.
const DOUBLINGS_MAX: u32 = 5;
/// A registry that wants to be left alone for longer is asked again by whoever wanted the image.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// How registries are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Hosts, with their port if they have one, that are spoken to without TLS.
    pub plain_http: Vec<String>,
    /// Hosts that are asked before a registry, by the registry's own name, in their order.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Files with authorities in PEM, besides those of the system.
    pub authorities: Vec<PathBuf>,
    /// As images name it: `amd64`, `arm64`, `arm` ...
    pub architecture: String,
    /// For `arm`: `v6`, `v7` ...; images for older ones are taken where this one is not offered.
    pub variant: Option<String>,
    /// Bytes of all layers of one image together.
    pub image_bytes_max: u64,
    /// A server that sends nothing for so long has stalled.
    pub stall: Duration,
    /// The wait before a broken download goes on; doubled each time.
    pub retry: Duration,
}

impl Config {
    /// An edge has no larger image.
    pub const IMAGE_BYTES_MAX: u64 = 32 * 1024 * 1024 * 1024;
    /// Longer than any pause of a server that is merely slow.
    pub const STALL: Duration = Duration::from_secs(60);
    pub const RETRY: Duration = Duration::from_secs(1);

    /// TLS only, no mirrors, the system's authorities.
    pub fn new(architecture: &str) -> Self {
        Self {
            plain_http: Vec::new(),
            mirrors: BTreeMap::new(),
            authorities: Vec::new(),
            architecture: architecture.to_owned(),
            variant: None,
            image_bytes_max: Self::IMAGE_BYTES_MAX,
            stall: Self::STALL,
            retry: Self::RETRY,
        }
    }
}

/// Why an image could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the registry {host} cannot be reached")]
    Connect {
        host: String,
        #[source]
        source: kedge_transport::DialError,
    },
    #[error("the connection to the registry {host} broke")]
    Broken {
        host: String,
        #[source]
        source: hyper::Error,
    },
    #[error("the registry {host} sent nothing for {}s", .limit.as_secs())]
    Stalled { host: String, limit: Duration },
    #[error("the registry {host} takes more than {}s for a document", .limit.as_secs())]
    Slow { host: String, limit: Duration },
    /// Neither the name nor the digest is there, or it is there for others only: registries do not tell which.
    #[error("{image} is not in the registry {host}, or its credentials do not reach it")]
    NotFound { image: String, host: String },
    #[error("the registry {host} refuses {image}: {reason}")]
    Denied {
        image: String,
        host: String,
        reason: String,
    },
    #[error("the registry {host} asks to come back later")]
    Busy {
        host: String,
        /// When, if it says so.
        after: Option<Duration>,
    },
    #[error("the registry {host} ended in the middle of a layer")]
    Truncated { host: String },
    #[error("{image} needs {bytes} bytes more, and the disk of {folder} has {free}")]
    NoRoom {
        image: String,
        bytes: u64,
        folder: PathBuf,
        free: u64,
    },
    #[error("the registry {host} answered {status}: {reason}")]
    Status {
        host: String,
        status: u16,
        reason: String,
    },
    #[error("the registry {host} sent something that cannot be used: {reason}")]
    BadAnswer { host: String, reason: String },
    #[error("{image} is for {offered}, and this node is linux/{wanted}")]
    WrongPlatform {
        image: String,
        offered: String,
        wanted: String,
    },
    #[error("{image} has {bytes} bytes, more than the {max} that are allowed")]
    TooLarge { image: String, bytes: u64, max: u64 },
    #[error("{act} {path}")]
    File {
        act: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the authorities in {path} cannot be used")]
    Authorities {
        path: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// The same request may succeed in a moment.
    fn is_passing(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::Broken { .. }
            | Self::Stalled { .. }
            | Self::Busy { .. }
            | Self::Truncated { .. } => true,
            Self::Status { status, .. } => *status >= 500,
            Self::Slow { .. }
            | Self::NotFound { .. }
            | Self::Denied { .. }
            | Self::BadAnswer { .. }
            | Self::WrongPlatform { .. }
            | Self::TooLarge { .. }
            | Self::NoRoom { .. }
            | Self::File { .. }
            | Self::Authorities { .. } => false,
        }
    }
}

impl Error {
    /// The disk is full: what is here of the image does not help any more.
    pub fn is_full_disk(&self) -> bool {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        match self {
            Self::NoRoom { .. } => true,
            Self::File { source, .. } => matches!(source.kind(), StorageFull | QuotaExceeded),
            Self::Connect { .. }
            | Self::Broken { .. }
            | Self::Stalled { .. }
            | Self::Slow { .. }
            | Self::NotFound { .. }
            | Self::Denied { .. }
            | Self::Busy { .. }
            | Self::Truncated { .. }
            | Self::Status { .. }
            | Self::BadAnswer { .. }
            | Self::WrongPlatform { .. }
            | Self::TooLarge { .. }
            | Self::Authorities { .. } => false,
        }
    }
}

/// How far a pull is, for whoever shows it. Both are 0 until the manifest is known.
#[derive(Debug, Default)]
pub struct Progress {
    total: AtomicU64,
    done: AtomicU64,
}

impl Progress {
    /// Bytes of the image as it is sent.
    pub fn total_bytes(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Bytes that are here, also from earlier pulls.
    pub fn done_bytes(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    fn set_total(&self, bytes: u64) {
        self.total.store(bytes, Ordering::Relaxed);
    }

    fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A download began again from nothing.
    fn take_back(&self, bytes: u64) {
        self.done.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A client. Connections are made for each request and kept for none: an edge pulls seldom.
#[derive(Debug, Clone)]
pub struct Client {
    config: Arc<Config>,
    tls: Arc<rustls::ClientConfig>,
}

impl Client {
    /// The pause before a request is repeated.
    fn pause(&self, error: &Error, tries: u32) -> Duration {
        let own = self.config.retry * 2_u32.pow(tries.min(DOUBLINGS_MAX));
        match error {
            Error::Busy {
                after: Some(after), ..
            } => (*after).clamp(own, RETRY_AFTER_MAX.max(own)),
            _other => own,
        }
    }
}

/// An image that is whole in its folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// `sha256:…` of what the reference named, which may be an index for many processors.
    pub digest: String,
}

/// Whom a request is made for.
type Asker = Option<Credentials>;
