//! Namespaces: the four that always exist, and the emptying of those that go.

use super::{Pass, Write};
use crate::meta;
use crate::strategy::DeleteOptions;
use serde_json::json;

const ALWAYS: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

pub(super) fn run(pass: &mut Pass<'_>) {
    for name in ALWAYS {
        if pass.world.get("namespaces", "", name).is_none() {
            pass.create(
                "namespaces",
                json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name}}),
            );
        }
    }
    let world = pass.world;
    for namespace in world.list("namespaces").filter(|n| meta::is_terminating(n)) {
        let contents: Vec<_> = world
            .iter()
            .filter(|(_, o)| meta::namespace(o) == meta::name(namespace))
            .collect();
        for (resource, object) in contents.iter().filter(|(_, o)| !meta::is_terminating(o)) {
            pass.delete(resource, object, DeleteOptions::default());
        }
        let finalizes = !meta::items(namespace, &["spec", "finalizers"]).is_empty();
        if contents.is_empty() && finalizes {
            let mut object = (**namespace).clone();
            meta::set(&mut object, &["spec", "finalizers"], json!([]));
            pass.write(Write::FinalizeNamespace { object });
        }
    }
}
