//! Our CloudCore on a real Kubernetes API with RBAC, under the rights of its own manifest and no others.

// A test fails where it stands.
#![allow(clippy::unwrap_used)]

mod support;

use kedge_interop::{Maker, Need, Official};
use support::World;

#[test]
fn our_cloud_carries_an_official_edge_on_a_real_kubernetes() {
    let Some(official) = Official::find(&[Need::Kubernetes, Need::EdgeCore]) else {
        return;
    };
    let mut world = World::kubernetes("real", &official);
    world.cloud.start(Maker::Ours);
    world.join_official_edge(&official);
    world.a_working_day();

    let quiet = world.web_pod();
    world.run_loner("force-deleted");
    world.cloud.kill();
    world.change_page("while-cut");
    world.delete_by_force("force-deleted");
    world.cloud.start(Maker::Ours);
    world.wait_page(&quiet, "while-cut");
    world.wait_loner_gone("force-deleted");
    world.is_untouched(&quiet);
}
