//! kedge-cloudstream
