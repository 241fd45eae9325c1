//! The official EdgeCore on our CloudCore: it joins, runs what a cluster runs, follows changes, and outlives cuts of
//! the link.

// A test fails where it stands.
#![allow(clippy::unwrap_used)]

mod support;

use kedge_interop::{Maker, Need, Official};
use support::World;

#[test]
fn an_official_edge_works_under_our_cloud() {
    let Some(official) = Official::find(&[Need::CloudCore, Need::EdgeCore]) else {
        return;
    };
    let mut world = World::embedded("joins", &official);
    world.cloud.start(Maker::Ours);
    world.join_official_edge(&official);
    world.a_working_day();
}

#[test]
fn an_official_edge_converges_after_the_link_was_cut() {
    let Some(official) = Official::find(&[Need::CloudCore, Need::EdgeCore]) else {
        return;
    };
    let mut world = World::embedded("cut", &official);
    world.cloud.start(Maker::Ours);
    world.join_official_edge(&official);
    world.deploy();
    let quiet = world.web_pod();
    world.run_loner("force-deleted");
    world.run_loner("gently-deleted");

    world.cloud.kill();
    world.change_page("while-cut");
    world.delete_by_force("force-deleted");
    world.delete_gently("gently-deleted");
    world.scale(2);
    world.cloud.start(Maker::Ours);

    world.wait_page(&quiet, "while-cut");
    world.wait_ready_pods(2);
    world.wait_loner_gone("force-deleted");
    world.wait_loner_gone("gently-deleted");
    world.is_untouched(&quiet);

    world.edge_mut().kill();
    world.change_page("edge-was-dead");
    world.edge_mut().start();
    world.wait_page(&quiet, "edge-was-dead");
    world.is_untouched(&quiet);
}
