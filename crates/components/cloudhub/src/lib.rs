//! kedge-cloudhub
