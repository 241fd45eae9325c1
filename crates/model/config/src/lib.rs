//! kedge-config
