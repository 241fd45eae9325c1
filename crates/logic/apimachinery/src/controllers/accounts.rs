//! What every namespace has: the default service account and the cluster's CA.

use super::{Pass, Settings};
use crate::meta::{self, at};
use serde_json::json;

pub(super) const CA_NAME: &str = "kube-root-ca.crt";
const CA_KEY: &str = "ca.crt";

pub(super) fn run(pass: &mut Pass<'_>, settings: &Settings) {
    let world = pass.world;
    for namespace in world.list("namespaces").filter(|n| !meta::is_terminating(n)) {
        let namespace = meta::name(namespace);
        if world.get("serviceaccounts", namespace, "default").is_none() {
            let metadata = json!({"name": "default", "namespace": namespace});
            pass.create(
                "serviceaccounts",
                json!({"kind": "ServiceAccount", "apiVersion": "v1", "metadata": metadata}),
            );
        }
        let Some(ca) = &settings.root_ca else { continue };
        match world.get("configmaps", namespace, CA_NAME) {
            None => {
                let metadata = json!({"name": CA_NAME, "namespace": namespace});
                let data = json!({CA_KEY: ca});
                pass.create(
                    "configmaps",
                    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata, "data": data}),
                );
            }
            Some(map) if at(map, &["data", CA_KEY]) != ca.as_str() && !meta::is_terminating(map) => {
                let mut map = (**map).clone();
                meta::set(&mut map, &["data"], json!({CA_KEY: ca}));
                pass.update("configmaps", map);
            }
            Some(_) => {}
        }
    }
}
