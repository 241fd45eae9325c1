//! kedge-edgehub
