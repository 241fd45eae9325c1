//! kedge-transport
