//! The small embedded Kubernetes API: an HTTPS server, its storage, its scheduler and its controllers in one
//! component.
//!
//! **Duty.** Serve what `kubectl` and client-go need over the kinds of `kedge-apimachinery` (and custom resources),
//! keep every acknowledged write through kill -9, and run the controllers without which objects would just lie there.
//!
//! **Inputs.** A [`Config`] of plain values (certificates as PEM text; who made them is not our concern), requests from
//! clients with certificates, and a port to fetch logs from nodes ([`Ports`]).
//! **Outputs.** A bound address, and answers.
//!
//! **Never.** It makes no keys besides signing service account tokens, opens no connection to anybody, and knows
//! nothing of KubeEdge: CloudCore reaches it like any other Kubernetes API.
//!
//! ```text
//!   client --TLS--> serve --> request --> handlers --write--> storage --> store::revisions (SQLite)
//!                                  \--read/watch--> storage <--commits, in order--/
//!                                                      |
//!                                      hint --> controllers --write--> storage
//! ```
//!
//! The way in for a reader: [`ApiServer::run`], then `handlers::answer`, then `storage`.

mod acts;
mod config;
mod controllers;
mod definition;
mod handlers;
mod identity;
mod protobuf;
mod reply;
mod request;
mod serve;
mod storage;
mod tls;
mod token;

pub use config::{Config, NodeGetAnswer, OpenError, Ports, StorageAt};
pub use serve::ApiServer;
