//! What the owner needs before it starts.

use crate::config::Config;
use crate::node::allocatable;
use kedge_containers::DnsConfig;
use kedge_host::Facts;
use kedge_pods::Capacity;
use kedge_runtime::Runtime;
use kedge_telemetry::Scope;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Turns the runtime's hints into permits: a hint that comes while the owner is busy is not lost.
pub(super) fn start_hints(runtime: Arc<dyn Runtime>, hint: Arc<Notify>, scope: &Scope) {
    scope.spawn_until_cancelled("edged-runtime-hints", async move {
        loop {
            runtime.changed().await;
            hint.notify_one();
            // A runtime whose hint is always ready must not keep a core busy.
            tokio::time::sleep(HINT_INTERVAL_MIN).await;
        }
    });
}

/// Hints closer together than this are one.
const HINT_INTERVAL_MIN: Duration = Duration::from_millis(20);

/// The addresses to report: the one given, else the one that leads outside.
pub(super) fn addresses(config: &Config, facts: &Facts) -> Vec<String> {
    let own = config.node_ip.or_else(|| facts.addresses.first().copied());
    own.map(|ip| ip.to_string()).into_iter().collect()
}

/// What the pod workers need to know.
pub(super) fn pods_config(
    config: &Config,
    facts: &Facts,
    host_ips: Vec<String>,
    prefix: &str,
) -> kedge_pods::Config {
    let amounts = allocatable(config, facts, 0);
    let amount = |name: &str| amounts.get(name);
    kedge_pods::Config {
        node_name: config.node_name.to_string(),
        host_ips,
        cluster_dns: config.cluster_dns.clone(),
        cluster_domain: config.cluster_domain.clone(),
        node_dns: node_dns(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
        pods_dir: config.pods_dir(),
        log_dir: config.log_dir.clone(),
        container_id_prefix: format!("{prefix}://"),
        env: config.env.clone(),
        allocatable: Capacity {
            cpu_milli: amount("cpu").map_or(0, kedge_api::Quantity::milli),
            memory_bytes: amount("memory").map_or(0, kedge_api::Quantity::units),
            pods: i64::from(config.pods_max),
        },
    }
}

/// The node's resolver.
fn node_dns(resolv_conf: &str) -> DnsConfig {
    let mut dns = DnsConfig::default();
    for line in resolv_conf.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.servers.extend(words.next()),
            Some("search") => dns.searches = words.collect(),
            Some("options") => dns.options.extend(words),
            Some(_) | None => {}
        }
    }
    dns
}
