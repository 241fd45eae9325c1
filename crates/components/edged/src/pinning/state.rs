//! The file by which a restarted agent knows which container has which CPUs; see [`crate::checkpoint`].

use super::{Assigned, CpuSet, Cpus};
use crate::checkpoint;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A kubelet's name for it.
pub(super) const FILE: &str = "cpu_manager_state";
pub(super) const STATIC: &str = "static";
const NONE: &str = "none";

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Content {
    pub(super) policy: String,
    pub(super) shared: CpuSet,
    pub(super) assigned: Assigned,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    policy_name: String,
    default_cpu_set: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    entries: BTreeMap<String, BTreeMap<String, String>>,
    /// A kubelet takes 0 from whoever cannot compute it.
    checksum: u64,
}

impl Content {
    pub(super) fn of(cpus: &Cpus) -> Self {
        Self {
            policy: STATIC.to_owned(),
            shared: cpus.shared().clone(),
            assigned: cpus.assigned().clone(),
        }
    }

    /// Nobody has CPUs alone.
    pub(super) fn none() -> Self {
        Self {
            policy: NONE.to_owned(),
            ..Self::default()
        }
    }
}

pub(super) fn parse(text: &str) -> Result<Content, String> {
    let file: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if file.checksum != 0 {
        checkpoint::verify(file.checksum, &printed(&file))?;
    }
    let set = |text: &str| text.parse::<CpuSet>().map_err(|error| error.to_string());
    let mut assigned = Assigned::new();
    for (uid, containers) in &file.entries {
        let of_pod: Result<BTreeMap<String, CpuSet>, String> = containers
            .iter()
            .map(|(name, cpus)| Ok((name.clone(), set(cpus)?)))
            .collect();
        assigned.insert(uid.clone(), of_pod?);
    }
    Ok(Content {
        shared: set(&file.default_cpu_set)?,
        policy: file.policy_name,
        assigned,
    })
}

pub(super) fn print(content: &Content) -> String {
    let texts = |of_pod: &BTreeMap<String, CpuSet>| {
        let each = of_pod.iter().map(|(name, cpus)| (name.clone(), cpus.to_string()));
        each.collect()
    };
    let assigned = content.assigned.iter();
    let mut file = File {
        policy_name: content.policy.clone(),
        default_cpu_set: content.shared.to_string(),
        entries: assigned
            .map(|(uid, of_pod)| (uid.clone(), texts(of_pod)))
            .collect(),
        checksum: 0,
    };
    file.checksum = checkpoint::checksum(&printed(&file)).into();
    serde_json::to_string(&file).expect("maps with plain keys can be printed")
}

/// As a Go program prints it for people, with the checksum not yet known.
fn printed(file: &File) -> String {
    let map = |rows: Vec<String>| format!("map[{}]", rows.join(" "));
    let of_pod = |(uid, containers): (&String, &BTreeMap<String, String>)| {
        let rows = containers.iter().map(|(name, cpus)| format!("{name}:{cpus}"));
        format!("{uid}:{}", map(rows.collect()))
    };
    format!(
        "(*state.CPUManagerCheckpoint){{PolicyName:(string){} DefaultCPUSet:(string){} Entries:(map[string]map[string]string){} Checksum:(checksum.Checksum)0}}",
        file.policy_name,
        file.default_cpu_set,
        map(file.entries.iter().map(of_pod).collect()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Written by kubelets.
    const OFFICIAL: [&str; 5] = [
        r#"{"policyName":"none","defaultCpuSet":"","checksum":1353318690}"#,
        r#"{"policyName":"static","defaultCpuSet":"0-1","checksum":1636926438}"#,
        r#"{"policyName":"static","defaultCpuSet":"0,2-95,97-191","entries":{"823ca0b5-ed9e-421a-bfca-76fa078f3195":{"ubuntu-netutils":"96"},"b8292fdc-57b1-4bc4-937b-34cd3dd1bcb8":{"ubuntu-netutils":"1"}},"checksum":4076905443}"#,
        r#"{"policyName":"static","defaultCpuSet":"0,10-15,25-31","entries":{"777870b5-c64f-42f5-9296-688b9dc212ba":{"container-1":"16-24"},"fb15e10a-b6a5-4aaa-8fcd-76c1aa64e6fd":{"container-1":"1-9"}},"checksum":318470969}"#,
        r#"{"policyName":"static","defaultCpuSet":"0-1,6-13,18-23","entries":{"28c11c89-3493-4972-bb67-7090b9d75e0d":{"mytestclient":"2-3,14-15","mytestclient2":"4-5,16-17"}},"checksum":1684933537}"#,
    ];

    #[test]
    fn what_a_kubelet_wrote_is_read_and_written_back() {
        for text in OFFICIAL {
            assert_eq!(print(&parse(text).unwrap()), text);
        }
        assert_eq!(print(&Content::none()), OFFICIAL[0]);
    }

    #[test]
    fn a_file_that_was_changed_or_is_older_is_refused() {
        let changed = OFFICIAL[2].replace("\"96\"", "\"95\"");
        assert!(parse(&changed).unwrap_err().contains("4076905443"));
        let unsaid = changed.replace("4076905443", "0");
        assert!(parse(&unsaid).is_ok(), "as a kubelet takes it");
        for text in [
            "{",
            "[]",
            r#"{"policyName":"static","defaultCpuSet":"0-x","checksum":0}"#,
            r#"{"policyName":"static","defaultCpuSet":"0","entries":{"container-id":"1"},"checksum":0}"#,
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            shared in proptest::collection::btree_set(0..64_u32, 0..8),
            entries in proptest::collection::btree_map("[a-z0-9-]{1,8}", proptest::collection::btree_map("[a-z0-9-]{1,8}", proptest::collection::btree_set(0..64_u32, 1..8), 1..3), 0..4),
            text in ".*",
        ) {
            let set = |cpus: std::collections::BTreeSet<u32>| cpus.into_iter().collect::<CpuSet>();
            let of_pod = |of_pod: BTreeMap<String, std::collections::BTreeSet<u32>>| of_pod.into_iter().map(|(name, cpus)| (name, set(cpus))).collect();
            let content = Content {
                policy: STATIC.to_owned(),
                shared: set(shared),
                assigned: entries.into_iter().map(|(uid, containers)| (uid, of_pod(containers))).collect(),
            };
            prop_assert_eq!(parse(&print(&content)), Ok(content));
            drop(parse(&text));
        }
    }
}
