//! A node of the official EdgeCore becomes ours, with its pods running, and goes back.

// A test fails where it stands.
#![allow(clippy::unwrap_used)]

mod support;

use kedge_interop::{Maker, Need, Official};
use support::World;

#[test]
fn an_official_node_becomes_ours_and_goes_back() {
    let Some(official) = Official::find(&[Need::CloudCore, Need::EdgeCore]) else {
        return;
    };
    let mut world = World::embedded("convert", &official);
    world.cloud.start(Maker::Ours);
    world.join_official_edge(&official);
    world.deploy();
    let web = world.web_pod();
    world.wait_page(&web, "one");

    // Ours starts alone first: what it knows it has from the official database.
    world.edge_mut().kill();
    world.cloud.kill();
    world.edge_mut().start_made_by(Maker::Ours);
    world.cloud.start(Maker::Ours);
    world.change_page("under-ours");
    world.wait_page(&web, "under-ours");
    world.is_untouched(&web);
    world.run_loner("made-by-ours");

    // And back: the official one goes on with what ours hands it.
    world.edge_mut().kill();
    world.edge().export();
    world.edge_mut().start();
    world.change_page("official-again");
    world.wait_page(&web, "official-again");
    world.is_untouched(&web);
    world.delete_gently("made-by-ours");
    world.wait_loner_gone("made-by-ours");
}
