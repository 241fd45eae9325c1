//! Our EdgeCore under the official CloudCore.

// A test fails where it stands.
#![allow(clippy::unwrap_used)]

mod support;

use kedge_interop::{Maker, Need, Official, OwnEdge};
use support::World;

/// Name of our node.
const NODE: &str = "own-1";

#[test]
fn our_edge_works_under_the_official_cloud() {
    let Some(official) = Official::find(&[Need::CloudCore]) else {
        return;
    };
    let mut world = World::embedded("own", &official);
    world.cloud.start(Maker::Official);
    let token = world.api.join_token();
    let edge = OwnEdge::join(&world.lab, NODE, world.cloud.ports(), &token);
    world.api.wait_ready(NODE);
    world.run_pod_on("sensor", NODE);
    let sync = world.sync_of("sensor", NODE);

    world.cloud.kill();
    world.delete_by_force("sensor");
    world.cloud.start(Maker::Official);
    world.run_pod_on("second", NODE);
    // The official CloudCore forgets what a node holds when the node has acknowledged the delete.
    world.api.wait_gone("objectsync", &sync);

    world.delete_gently("second");
    world.api.wait_gone("pod", "second");
    println!("RSS of our EdgeCore (hollow): {} KiB", edge.process().rss_kib());
}
