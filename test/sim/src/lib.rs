//! kedge-sim
