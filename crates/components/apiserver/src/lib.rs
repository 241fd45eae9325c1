//! The small embedded Kubernetes API: an HTTPS server, its storage, its scheduler and its controllers in one
//! component.
//!
//! **Duty.** Serve what `kubectl` and client-go need over the kinds of `kedge-apimachinery` (and custom resources),
//! keep every acknowledged write through kill -9, and run the controllers without which objects would just lie there.
//!
//! **Inputs.** A [`Config`] of plain values (certificates as PEM text; who made them is not our concern), requests from
//! clients with certificates, and ports to fetch logs from nodes and to connect to them ([`Ports`]).
//! **Outputs.** A bound address, and answers.
//!
//! **Never.** It makes no keys (it signs service account tokens, and serving certificates that somebody approved),
//! opens no connection to anybody, and knows nothing of KubeEdge but the definitions of its kinds: CloudCore reaches it
//! like any other Kubernetes API, and may do what roles let it do.
//!
//! ```text
//!   client --TLS--> serve --> authentication --> rbac --> handlers --write--> storage --> store::revisions (SQLite)
//!                                  \--read/watch--> storage <--commits, in order--/
//!                                                      |
//!                                      hint --> controllers --write--> storage
//! ```
//!
//! The way in for a reader: [`ApiServer::run`], then `handlers::answer`, then `storage`.

mod acts;
mod authentication;
mod config;
mod controllers;
mod definition;
mod handlers;
mod protobuf;
mod reply;
mod request;
mod serve;
mod signing;
mod storage;
mod tls;
mod token;

pub use config::{Config, Limits, NodeConnectAnswer, NodeGetAnswer, OpenError, Ports, StorageAt};
pub use serve::ApiServer;
