//! kedge-store
