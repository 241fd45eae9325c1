//! kedge-edgestream
