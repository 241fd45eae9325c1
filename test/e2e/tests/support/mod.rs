//! What the story of the official traffic is told with.

pub(crate) mod cloud;
pub(crate) mod official_cloud;
pub(crate) mod official_edge;
pub(crate) mod play;
pub(crate) mod recording;
pub(crate) mod shape;
pub(crate) mod world;
