//! EdgeCore: its wiring as a library, so that `kedge` and tests start the same process parts that ship.

pub mod runtime;
pub mod wiring;
