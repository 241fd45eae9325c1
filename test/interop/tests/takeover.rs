//! An operator stops the official CloudCore, starts ours on the same file, and goes back. No edge joins again, no pod
//! is touched, and what was changed while nobody was there arrives.

// A test fails where it stands.
#![allow(clippy::unwrap_used)]

mod support;

use kedge_interop::{Maker, Need, Official};
use support::World;

#[test]
fn our_cloud_takes_over_from_the_official_one_and_gives_back() {
    let Some(official) = Official::find(&[Need::CloudCore, Need::EdgeCore]) else {
        return;
    };
    let mut world = World::embedded("takeover", &official);
    world.cloud.start(Maker::Official);
    println!(
        "RSS of the official CloudCore without nodes: {} KiB",
        world.cloud.process().rss_kib()
    );
    world.join_official_edge(&official);
    let certificate = world.edge().certificate();
    world.deploy();
    let quiet = world.web_pod();
    world.run_loner("from-official");
    println!(
        "RSS with one node: official CloudCore {} KiB, official EdgeCore {} KiB",
        world.cloud.process().rss_kib(),
        world.edge().process().rss_kib()
    );

    world.cloud.stop();
    world.change_page("taken-over");
    world.delete_by_force("from-official");
    world.cloud.start(Maker::Ours);
    println!(
        "RSS of our CloudCore at its start: {} KiB",
        world.cloud.process().rss_kib()
    );
    world.wait_page(&quiet, "taken-over");
    world.wait_loner_gone("from-official");
    world.run_loner("from-ours");
    world.is_untouched(&quiet);
    println!(
        "RSS of our CloudCore with one node: {} KiB",
        world.cloud.process().rss_kib()
    );

    world.cloud.stop();
    world.change_page("given-back");
    world.delete_by_force("from-ours");
    world.cloud.start(Maker::Official);
    world.wait_page(&quiet, "given-back");
    world.wait_loner_gone("from-ours");
    world.run_loner("from-official-again");
    world.is_untouched(&quiet);
    assert_eq!(
        world.edge().certificate(),
        certificate,
        "the edge has never joined again"
    );
}
