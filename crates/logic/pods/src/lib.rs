//! kedge-pods
