//! kedge-api
