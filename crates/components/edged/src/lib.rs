//! kedge-edged
