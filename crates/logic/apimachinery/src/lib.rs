//! kedge-apimachinery
