//! What every cluster has from its first moment.

use super::Server;
use crate::acts::Options;
use crate::config::OpenError;
use crate::storage::{Collection, Place};
use futures_util::future::try_join_all;
use kedge_apimachinery::schema::FieldValidation;
use kedge_apimachinery::status::{Reason, Status};
use kedge_apimachinery::strategy;
use kedge_apimachinery::{kubeedge, meta, rbac};
use serde_json::{Value, json};

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Creates what is missing: namespaces, default roles, the definitions of KubeEdge's kinds. All at once, so that one
/// flush of the disk serves them all.
pub(crate) async fn bootstrap(server: &Server) -> Result<(), OpenError> {
    let namespace =
        |name: &&str| json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name}});
    let mut wanted: Vec<Value> = NAMESPACES.iter().map(namespace).collect();
    wanted.extend(rbac::defaults());
    wanted.extend(kubeedge::definitions());
    try_join_all(wanted.into_iter().map(|object| ensure(server, object))).await?;
    Ok(())
}

async fn ensure(server: &Server, object: Value) -> Result<(), OpenError> {
    let what = || format!("{} {}", meta::text(&object, &["kind"]), meta::name(&object));
    let failed = |status: Status| OpenError::Bootstrap {
        what: what(),
        detail: status.to_string(),
    };
    let done = match ensured(server, &object).await {
        Err(status) if status.reason == Reason::AlreadyExists => Ok(()),
        done => done,
    };
    done.map_err(failed)
}

async fn ensured(server: &Server, object: &Value) -> Result<(), Status> {
    let kind = server
        .registry()
        .lookup_kind(meta::text(object, &["apiVersion"]), meta::text(object, &["kind"]))
        .ok_or_else(Status::no_such_resource)?;
    let place = Place::new("", meta::name(object));
    if server.storage.get(&Collection::of(&kind), &place).is_none() {
        server
            .create(&kind, "", object.clone(), Options::default())
            .await?;
        return Ok(());
    }
    if !kind.is("clusterroles.rbac.authorization.k8s.io") {
        return Ok(());
    }
    let complete = |stored: &Value| {
        let completed = rbac::with_default_rules(stored, object).unwrap_or_else(|| stored.clone());
        strategy::update(&kind, completed, stored, FieldValidation::Ignore)
    };
    server.change(&kind, &place, Options::default(), complete).await?;
    Ok(())
}
