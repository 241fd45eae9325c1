//! kedge-pki
