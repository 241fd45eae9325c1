//! What the story of the official traffic is told with.

pub mod official_cloud;
pub mod official_edge;
pub mod recording;
pub mod shape;
pub mod world;
