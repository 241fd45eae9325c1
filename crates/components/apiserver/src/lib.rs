//! kedge-apiserver
