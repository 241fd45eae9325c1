//! A real Kubernetes API as hands.
//!
//! **Duty.** Calls on objects as their original JSON text ([`Cluster`]), and watches that never end ([`Watch`]):
//! list in pages, follow, resume, list again when the server forgot, and tell what vanished in between. How many calls a
//! process makes and who comes first ([`Budget`]); who of several replicas leads ([`Leadership`]).
//!
//! **Inputs.** A kubeconfig, the pod's own service account, or explicit parts. **Outputs.** [`kedge_wire::Body`]s;
//! an [`ApiError`] that keeps the API's `Status` apart from a broken connection.
//!
//! **Never.** It decides nothing, keeps no object (a watch remembers name and UID only), trusts no certificate
//! authority but the one it was given, and offers no way to skip verification. Rustls takes the ring provider because
//! it is the only one compiled in; nothing is installed by hand.
//!
//! ```text
//!            +---------- 410 Gone ----------+
//!            v                              |
//!   List page by page --> Synced --> Follow from version --+
//!     ^   |                             ^                  |
//!     +---+ backoff                     +-- stream ended --+
//! ```

mod backoff;
mod budget;
mod call;
mod connect;
mod leadership;
#[cfg(feature = "peer")]
pub mod peer;
mod watch;

pub use backoff::Backoff;
pub use budget::{Budget, BudgetConfig, Class, Permit};
pub use call::{ApiError, Patch};
pub use connect::{Cluster, ConnectError, Parts};
pub use leadership::{LEASE_DURATION, Leadership, RENEW_DEADLINE};
pub use watch::{Watch, WatchItem, Watched};
