//! Which node must hold which object at which version.
//!
//! **Duty.** An index over pods, config maps, secrets and nodes (fed by watches) that answers: what must node N hold,
//! and what changed for whom ([`index::Placement`]). And what an edge's request means to the Kubernetes API, and
//! whether this node may make it ([`report::judge`]).
//!
//! **Inputs.** Objects as a watch saw them; requests with the name of the certificate. **Outputs.** [`index::Change`]s
//! for single nodes, bodies shared between all nodes that take them; a [`report::Verdict`].
//!
//! **Never.** No tokio, no API client, no queue per node. Never trusts a name that a message gives.

pub mod index;
mod object;
mod references;
pub mod report;
