//! The way to the Kubernetes API that `kubeAPIConfig` describes.

use anyhow::{Context, Result};
use kedge_cluster::{Cluster, Parts};
use kedge_config::cloudcore::KubeApi;
use std::path::Path;

/// Connects. As officially, `master` replaces the address of the kubeconfig, and without both the process must run in a
/// pod with a service account.
pub async fn connect(api: &KubeApi) -> Result<Cluster> {
    match (api.kube_config.as_str(), api.master.as_str()) {
        ("", "") => Cluster::in_cluster().await.context(
            "kubeAPIConfig.kubeConfig and kubeAPIConfig.master are empty, which is right inside a cluster only",
        ),
        ("", master) => {
            let parts = Parts {
                url: master,
                ca_pem: "",
                client_certificate_pem: "",
                client_key_pem: "",
            };
            Cluster::from_parts(parts).await.context(
                "kubeAPIConfig.master alone has no credentials; name a kubeconfig in kubeAPIConfig.kubeConfig too",
            )
        }
        (path, "") => Cluster::from_kubeconfig(Path::new(path))
            .await
            .context("kubeAPIConfig.kubeConfig"),
        (path, master) => Cluster::from_kubeconfig_at(Path::new(path), master)
            .await
            .context("kubeAPIConfig.kubeConfig with kubeAPIConfig.master"),
    }
}
