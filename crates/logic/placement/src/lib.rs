//! Which node must hold which object at which version.
//!
//! **Duty.** An index over pods, config maps, secrets and nodes (fed by watches) that answers: what must node N hold,
//! and what changed for whom ([`index::Placement`]). What an edge's request means to the Kubernetes API, and whether this
//! node may make it ([`report::judge`], [`certificates`]); when a lease is written ([`leases`]); whether a failed call is
//! made again ([`retries`]); what records of an official cloud say and must say ([`syncs`]).
//!
//! **Inputs.** Objects as a watch saw them; requests with the name of the certificate. **Outputs.** [`index::Change`]s
//! for single nodes, bodies shared between all nodes that take them; a [`report::Verdict`].
//!
//! **Never.** No tokio, no API client, no queue per node. Never trusts a name that a message gives.

pub mod certificates;
mod conditions;
pub mod index;
pub mod leases;
mod object;
mod references;
pub mod report;
pub mod retries;
pub mod syncs;

pub use conditions::Conditions;
pub use object::trimmed;
