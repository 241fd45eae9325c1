//! Which node must hold which object at which version.
//!
//! **Duty.** An index over pods, config maps, secrets and nodes (fed by watches) that answers: what must node N hold,
//! and what changed for whom. And what API writes an edge's request means.
//!
//! **Never.** No tokio, no API client, no queue per node.

pub mod index;
pub mod report;
