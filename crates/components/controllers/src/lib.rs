//! kedge-controllers
