//! What every cluster has from its first moment.

use super::Server;
use crate::acts::Options;
use crate::config::OpenError;
use kedge_apimachinery::status::Reason;
use serde_json::json;

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Creates the namespaces that are missing.
pub(crate) async fn bootstrap(server: &Server) -> Result<(), OpenError> {
    let failed = |name: &str, detail: String| OpenError::Bootstrap {
        what: format!("namespace {name}"),
        detail,
    };
    let registry = server.registry();
    for name in NAMESPACES {
        let kind = registry.by_group_resource("namespaces");
        let kind = kind.ok_or_else(|| failed(name, "namespaces are not served".to_owned()))?;
        let body = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name}});
        match server.create(&kind, "", body, Options::default()).await {
            Ok(_) => {}
            Err(status) if status.reason == Reason::AlreadyExists => {}
            Err(status) => return Err(failed(name, status.to_string())),
        }
    }
    Ok(())
}
