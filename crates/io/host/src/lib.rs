//! kedge-host
