//! kedge-metamanager
