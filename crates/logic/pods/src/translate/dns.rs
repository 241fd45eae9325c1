//! How a pod resolves names.

use crate::Config;
use kedge_api::Pod;
use kedge_containers::DnsConfig;

/// The C library reads no more servers.
const SERVERS_MAX: usize = 3;
/// Kubernetes allows no more search domains,
const SEARCHES_MAX: usize = 32;
/// and no longer line of them.
const SEARCH_CHARS_MAX: usize = 2048;

/// Whether the policy asks for the cluster's resolver, which this node does not know.
pub(crate) fn lacks_cluster_dns(config: &Config, pod: &Pod) -> bool {
    wants_cluster(pod) && config.cluster_dns.is_empty()
}

pub(crate) fn policy(pod: &Pod) -> &str {
    pod.spec.dns_policy.as_deref().unwrap_or("ClusterFirst")
}

fn wants_cluster(pod: &Pod) -> bool {
    let policy = policy(pod);
    policy == "ClusterFirstWithHostNet" || policy == "ClusterFirst" && !pod.spec.host_network
}

pub(super) fn dns(config: &Config, pod: &Pod) -> DnsConfig {
    let mut dns = if policy(pod) == "None" {
        DnsConfig::default()
    } else if wants_cluster(pod) && !config.cluster_dns.is_empty() {
        cluster_dns(config, pod)
    } else if pod.spec.dns_config.is_some() || config.node_dns_given {
        config.node_dns.clone()
    } else {
        return DnsConfig::default();
    };
    if let Some(own) = &pod.spec.dns_config {
        add(&mut dns.servers, own.nameservers.iter().cloned());
        add(&mut dns.searches, own.searches.iter().cloned());
        for option in &own.options {
            let name = &option.name;
            let same = |o: &String| o.split(':').next() == Some(name.as_str());
            dns.options.retain(|o| !same(o));
            dns.options.push(
                option
                    .value
                    .as_ref()
                    .map_or_else(|| name.clone(), |value| format!("{name}:{value}")),
            );
        }
    }
    dns.servers.truncate(SERVERS_MAX);
    dns.searches.truncate(SEARCHES_MAX);
    while dns.searches.iter().map(|domain| domain.len() + 1).sum::<usize>() > SEARCH_CHARS_MAX + 1 {
        dns.searches.pop();
    }
    dns
}

fn cluster_dns(config: &Config, pod: &Pod) -> DnsConfig {
    let domain = &config.cluster_domain;
    let mut searches = Vec::new();
    if !domain.is_empty() {
        searches = vec![
            format!("{}.svc.{domain}", pod.namespace()),
            format!("svc.{domain}"),
            domain.clone(),
        ];
    }
    add(&mut searches, config.node_dns.searches.iter().cloned());
    DnsConfig {
        servers: config.cluster_dns.clone(),
        searches,
        options: vec!["ndots:5".to_owned()],
    }
}

fn add(list: &mut Vec<String>, more: impl Iterator<Item = String>) {
    for item in more {
        if !list.contains(&item) {
            list.push(item);
        }
    }
}
