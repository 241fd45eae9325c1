//! CloudCore: its wiring as a library, so that `kedge` and tests start the same process parts that ship.

pub mod material;
pub mod wiring;
