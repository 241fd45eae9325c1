//! The limits of a container, in the words of the OCI runtime configuration.

use super::capabilities::is_held;
use crate::Error;
use crate::cgroup;
use kedge_containers::Resources;
use kedge_host::cgroups::Layout as Cgroups;
use serde_json::{Map, Value, json};

const OOM_SCORE_MIN: i32 = -1000;
const OOM_SCORE_MAX: i32 = 1000;
const CPU_PERIOD_US_DEFAULT: u64 = 100_000;

/// Without the right to lower scores a container gets the lowest one that needs none.
pub(super) fn oom_score(resources: &Resources, held: u64) -> i32 {
    let lowest = lowest_oom_score(held, kedge_host::users::in_namespace());
    let wanted = resources.oom_score_adj.unwrap_or(0);
    let score = wanted.clamp(lowest, OOM_SCORE_MAX);
    if score != wanted {
        tracing::info!(
            wanted,
            score,
            "this process may not lower OOM scores (CAP_SYS_RESOURCE)"
        );
    }
    score
}

/// In a user namespace the right counts for nothing, and the node's own score may have been raised.
fn lowest_oom_score(held: u64, in_namespace: bool) -> i32 {
    if !in_namespace {
        return if is_held("CAP_SYS_RESOURCE", held) {
            OOM_SCORE_MIN
        } else {
            0
        };
    }
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    own.trim().parse().map_or(0, |own: i32| own.max(0))
}

/// `group` is the container's, from the root of the trees.
pub(super) fn resources(
    limits: &Resources,
    devices: Vec<Value>,
    cgroups: &Cgroups,
    group: &str,
) -> Result<Value, Error> {
    let mut resources = json!({ "devices": devices });
    let cpu = cpu(limits);
    if !cpu.is_empty() {
        resources["cpu"] = Value::Object(cpu);
    }
    if let Some(bytes) = limits.memory_bytes_max {
        resources["memory"] = json!({ "limit": bytes });
        // Containers do not swap: what may be used of memory and swap together is what may be used of memory. Version 2
        // counts swap by itself, see below.
        if cgroup::v1_counts_swap(cgroups) {
            resources["memory"]["swap"] = json!(bytes);
        }
    }
    if let Some(pids) = limits.pids_max {
        resources["pids"] = json!({ "limit": pids });
    }
    // Each container is kept from huge pages that it did not ask for, where the machine can do that.
    let counted = cgroups.has("hugetlb");
    let asked: Vec<_> = limits
        .hugepages
        .iter()
        .filter(|(_, bytes)| counted || **bytes > 0)
        .collect();
    if !asked.is_empty() {
        let limit = |(size, bytes): (&String, &u64)| json!({ "pageSize": size, "limit": bytes });
        resources["hugepageLimits"] = asked.into_iter().map(limit).collect();
    }
    match cgroups {
        Cgroups::V2 { .. } => {
            let mut unified = limits.unified.clone();
            if cgroup::v2_counts_swap(cgroups, group) {
                unified
                    .entry(cgroup::V2_SWAP_MAX.to_owned())
                    .or_insert_with(|| "0".to_owned());
            }
            if !unified.is_empty() {
                resources["unified"] = json!(unified);
            }
        }
        Cgroups::V1 { .. } | Cgroups::Hybrid { .. } => {
            if let Some(weight) = cgroup::v1_block_weight(cgroups, limits)? {
                resources["blockIO"] = json!({ "weight": weight });
            }
        }
    }
    Ok(resources)
}

fn cpu(limits: &Resources) -> Map<String, Value> {
    let mut cpu = Map::new();
    if let Some(shares) = limits.cpu_shares {
        cpu.insert("shares".to_owned(), json!(shares));
    }
    if let Some(quota) = limits.cpu_quota_us {
        cpu.insert("quota".to_owned(), json!(quota));
        let period = limits.cpu_period_us.unwrap_or(CPU_PERIOD_US_DEFAULT);
        cpu.insert("period".to_owned(), json!(period));
    }
    for (key, value) in [("cpus", &limits.cpuset_cpus), ("mems", &limits.cpuset_mems)] {
        if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
            cpu.insert(key.to_owned(), json!(value));
        }
    }
    cpu
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_lowered_only_with_the_right_to() {
        const NOTHING: u64 = 0;
        const EVERYTHING: u64 = u64::MAX;
        let with = |score, held| {
            let resources = Resources {
                oom_score_adj: Some(score),
                ..Resources::default()
            };
            oom_score(&resources, held)
        };
        assert_eq!((with(999, NOTHING), with(-997, NOTHING)), (999, 0));
        assert_eq!((with(999, EVERYTHING), with(-997, EVERYTHING)), (999, -997));
    }

    /// A tree of control groups that goes away with it.
    struct Tree(std::path::PathBuf);

    impl Tree {
        fn new(name: &str, files: &[&str]) -> Self {
            let top = std::env::temp_dir().join(format!("kedge-resources-{}-{name}", std::process::id()));
            for file in files {
                let file = top.join(file);
                std::fs::create_dir_all(file.parent().unwrap()).unwrap();
                std::fs::write(file, "").unwrap();
            }
            Self(top)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            drop(std::fs::remove_dir_all(&self.0));
        }
    }

    fn everything() -> Resources {
        Resources {
            cpu_shares: Some(512),
            cpu_quota_us: Some(50_000),
            memory_bytes_max: Some(1 << 20),
            pids_max: Some(9),
            cpuset_cpus: Some("0-1".to_owned()),
            cpuset_mems: Some(String::new()),
            hugepages: [("2MB".to_owned(), 0), ("1GB".to_owned(), 1 << 30)].into(),
            ..Resources::default()
        }
    }

    #[test]
    fn version_one_has_its_own_words() {
        let tree = Tree::new(
            "v1",
            &["memory/memory.memsw.limit_in_bytes", "blkio/blkio.bfq.weight"],
        );
        let cgroups = Cgroups::V1 {
            mounts: [
                ("memory".to_owned(), tree.0.join("memory")),
                ("blkio".to_owned(), tree.0.join("blkio")),
            ]
            .into(),
        };
        let limits = Resources {
            unified: [("io.weight".to_owned(), "default 100".to_owned())].into(),
            ..everything()
        };
        let cpu = json!({ "cpus": "0-1", "period": 100_000, "quota": 50_000, "shares": 512 });
        assert_eq!(
            resources(&limits, vec![], &cgroups, "/pod/c").unwrap(),
            json!({
                "devices": [], "cpu": cpu, "pids": { "limit": 9 }, "blockIO": { "weight": 19 },
                "memory": { "limit": 1 << 20, "swap": 1 << 20 },
                "hugepageLimits": [{ "limit": 1 << 30, "pageSize": "1GB" }],
            })
        );
        let foreign = Resources {
            unified: [("memory.high".to_owned(), "1".to_owned())].into(),
            ..Resources::default()
        };
        assert_eq!(
            resources(&foreign, vec![], &cgroups, "/pod/c")
                .unwrap_err()
                .to_string(),
            "set limit memory.high: it is a file of version 2 control groups, which this node does not have"
        );
    }

    #[test]
    fn version_two_takes_files_by_name() {
        let tree = Tree::new("v2", &["pod/memory.swap.max"]);
        let cgroups = Cgroups::V2 {
            mount: tree.0.clone(),
            controllers: ["hugetlb".to_owned()].into(),
        };
        let limits = Resources {
            unified: [("memory.oom.group".to_owned(), "1".to_owned())].into(),
            ..everything()
        };
        let cpu = json!({ "cpus": "0-1", "period": 100_000, "quota": 50_000, "shares": 512 });
        assert_eq!(
            resources(&limits, vec![], &cgroups, "/pod/c").unwrap(),
            json!({
                "devices": [], "cpu": cpu, "pids": { "limit": 9 }, "memory": { "limit": 1 << 20 },
                "hugepageLimits": [{ "limit": 1 << 30, "pageSize": "1GB" }, { "limit": 0, "pageSize": "2MB" }],
                "unified": { "memory.oom.group": "1", "memory.swap.max": "0" },
            })
        );
        let without = resources(&Resources::default(), vec![], &cgroups, "/other/c").unwrap();
        assert_eq!(without, json!({ "devices": [] }), "a kernel that does not swap");
    }
}
