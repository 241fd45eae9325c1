//! What the node has, and what of it pods may use.

use crate::config::Amounts;
use crate::eviction::{Amount, Signal, Threshold};
use kedge_api::Quantity;
use std::collections::BTreeMap;

/// What was measured on the machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Machine {
    pub cpus: u32,
    pub memory_bytes: u64,
    /// The size of the file system that holds the pods' directories; `None` where it cannot be measured.
    pub nodefs_bytes: Option<u64>,
    /// Bytes reserved by the kernel for huge pages, by page size in bytes; a size without pages counts too.
    pub hugepages: BTreeMap<u64, u64>,
    /// What device plug-ins offer, by resource.
    pub devices: BTreeMap<String, DeviceCount>,
}

/// Devices of one resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceCount {
    pub all: u64,
    pub healthy: u64,
}

/// What the operator decided about it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rules {
    pub pods_max: u32,
    /// Zero is no limit.
    pub pods_per_core: u32,
    pub system_reserved: Amounts,
    pub kube_reserved: Amounts,
    /// Of these the hard ones are kept from pods.
    pub thresholds: Vec<Threshold>,
    /// The thresholds are not kept from pods.
    pub ignore_thresholds: bool,
    /// Local disk is a resource of the node.
    pub local_storage: bool,
}

const HUGEPAGES: &str = "hugepages-";

/// Everything that the node has.
pub fn capacity(machine: &Machine, rules: &Rules) -> Amounts {
    let mut amounts = host_capacity(machine, rules);
    for (name, count) in &machine.devices {
        amounts.insert(name.clone(), decimal(count.all));
    }
    amounts
}

/// What pods may use together.
pub fn allocatable(machine: &Machine, rules: &Rules) -> Amounts {
    let has = host_capacity(machine, rules);
    let mut amounts: Amounts = has
        .iter()
        .map(|(name, whole)| (name.clone(), left(name, whole, rules)))
        .collect();
    // Pages that are huge are no memory for anybody else.
    let huge: i64 = has
        .iter()
        .filter(|(name, _)| name.starts_with(HUGEPAGES))
        .map(|(_, amount)| amount.units())
        .sum();
    if huge > 0
        && let Some(memory) = amounts.get_mut("memory")
    {
        *memory = binary(not_negative(memory.units().saturating_sub(huge)));
    }
    for (name, count) in &machine.devices {
        amounts.insert(name.clone(), decimal(count.healthy));
    }
    amounts
}

fn host_capacity(machine: &Machine, rules: &Rules) -> Amounts {
    let mut amounts = Amounts::from([
        ("cpu".to_owned(), decimal(u64::from(machine.cpus))),
        ("memory".to_owned(), binary(machine.memory_bytes)),
        ("pods".to_owned(), decimal(pods_max(machine.cpus, rules))),
    ]);
    if rules.local_storage
        && let Some(bytes) = machine.nodefs_bytes
    {
        amounts.insert("ephemeral-storage".to_owned(), binary(bytes));
    }
    for (size, bytes) in &machine.hugepages {
        amounts.insert(format!("{HUGEPAGES}{}", binary(*size)), binary(*bytes));
    }
    amounts
}

fn pods_max(cpus: u32, rules: &Rules) -> u64 {
    let most = u64::from(rules.pods_max);
    match rules.pods_per_core {
        0 => most,
        per_core => most.min(u64::from(per_core) * u64::from(cpus)),
    }
}

/// The capacity without what is reserved and what an eviction threshold keeps.
fn left(name: &str, whole: &Quantity, rules: &Rules) -> Quantity {
    let reserved = [&rules.system_reserved, &rules.kube_reserved];
    let reserved = reserved.iter().filter_map(|reserved| reserved.get(name));
    if name == "cpu" {
        let kept: i64 = reserved.map(Quantity::milli).sum();
        return Quantity::from_milli(not_negative(whole.milli().saturating_sub(kept)));
    }
    let reserved: i64 = reserved.map(Quantity::units).sum();
    let kept = reserved.saturating_add(kept_for_eviction(name, whole, rules));
    let left = not_negative(whole.units().saturating_sub(kept));
    match name {
        "pods" => decimal(left),
        _bytes => binary(left),
    }
}

fn kept_for_eviction(name: &str, whole: &Quantity, rules: &Rules) -> i64 {
    let signal = match name {
        "memory" => Signal::MemoryAvailable,
        "ephemeral-storage" => Signal::NodefsAvailable,
        _not_guarded => return 0,
    };
    if rules.ignore_thresholds {
        return 0;
    }
    let hard = rules
        .thresholds
        .iter()
        .find(|threshold| threshold.signal == signal && threshold.is_hard());
    let kept = hard.map_or(0, |threshold| threshold.amount.of(not_negative(whole.units())));
    i64::try_from(kept).unwrap_or(i64::MAX)
}

/// What all pods together may use before the node's own programs suffer: the capacity without the reservations.
pub fn memory_for_pods(machine: &Machine, rules: &Rules) -> u64 {
    let reserved: i64 = [&rules.system_reserved, &rules.kube_reserved]
        .iter()
        .filter_map(|reserved| reserved.get("memory"))
        .map(Quantity::units)
        .sum();
    machine.memory_bytes.saturating_sub(not_negative(reserved))
}

fn not_negative(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// Bytes as Kubernetes writes them: the largest binary suffix that leaves a whole number.
pub fn binary(bytes: u64) -> Quantity {
    const SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    quantity(bytes, 1024, &SUFFIXES)
}

/// A number as Kubernetes writes it: the largest decimal suffix that leaves a whole number.
pub fn decimal(number: u64) -> Quantity {
    const SUFFIXES: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];
    quantity(number, 1000, &SUFFIXES)
}

fn quantity(number: u64, step: u64, suffixes: &[&str]) -> Quantity {
    let mut rest = number;
    let mut power = 0;
    while rest != 0 && rest.is_multiple_of(step) && power + 1 < suffixes.len() {
        rest /= step;
        power += 1;
    }
    Quantity::parse(&format!("{rest}{}", suffixes[power]))
        .expect("at most twenty digits and a suffix of the grammar are a quantity")
}

/// What the thresholds of a kubelet are where the operator says nothing.
pub fn default_thresholds() -> Vec<Threshold> {
    const MEMORY_AVAILABLE: u64 = 100 * 1024 * 1024;
    let hard = |signal, amount| Threshold::hard(signal, amount);
    vec![
        hard(Signal::MemoryAvailable, Amount::Absolute(MEMORY_AVAILABLE)),
        hard(Signal::NodefsAvailable, Amount::Share(0.10)),
        hard(Signal::NodefsInodesFree, Amount::Share(0.05)),
        hard(Signal::ImagefsAvailable, Amount::Share(0.15)),
        hard(Signal::ImagefsInodesFree, Amount::Share(0.05)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn machine() -> Machine {
        Machine {
            cpus: 4,
            memory_bytes: 16_093_224 * 1024,
            nodefs_bytes: Some(61_255_492 * 1024),
            hugepages: BTreeMap::from([(2 << 20, 0), (1 << 30, 0)]),
            devices: BTreeMap::new(),
        }
    }

    fn rules() -> Rules {
        Rules {
            pods_max: 110,
            thresholds: default_thresholds(),
            local_storage: true,
            ..Rules::default()
        }
    }

    fn amounts(rows: &[(&str, &str)]) -> Amounts {
        rows.iter()
            .map(|(name, text)| ((*name).to_owned(), Quantity::parse(text).unwrap()))
            .collect()
    }

    fn check(machine: &Machine, rules: &Rules, want: Expect) {
        let (has, may) = (capacity(machine, rules), allocatable(machine, rules));
        let rows: Vec<String> = has
            .iter()
            .map(|(name, whole)| format!("{name}: {} of {whole}", may[name]))
            .collect();
        want.assert_eq(&rows.join("\n"));
    }

    #[test]
    fn a_node_without_reservations() {
        check(
            &machine(),
            &rules(),
            expect![[r#"
                cpu: 4 of 4
                ephemeral-storage: 56453061334 of 61255492Ki
                hugepages-1Gi: 0 of 0
                hugepages-2Mi: 0 of 0
                memory: 15990824Ki of 16093224Ki
                pods: 110 of 110"#]],
        );
    }

    #[test]
    fn what_is_reserved_and_what_is_huge_is_kept() {
        let machine = Machine {
            hugepages: BTreeMap::from([(2 << 20, 1 << 30)]),
            devices: BTreeMap::from([(
                "example.com/camera".to_owned(),
                DeviceCount { all: 3, healthy: 2 },
            )]),
            ..machine()
        };
        let rules = Rules {
            pods_per_core: 10,
            system_reserved: amounts(&[("cpu", "100m"), ("memory", "200Mi"), ("ephemeral-storage", "1Gi")]),
            kube_reserved: amounts(&[("cpu", "0.5"), ("memory", "100Mi"), ("hugepages-2Mi", "512Mi")]),
            ..rules()
        };
        check(
            &machine,
            &rules,
            expect![[r#"
                cpu: 3400m of 4
                ephemeral-storage: 55379319510 of 61255492Ki
                example.com/camera: 2 of 3
                hugepages-2Mi: 512Mi of 1Gi
                memory: 14635048Ki of 16093224Ki
                pods: 40 of 40"#]],
        );
        assert_eq!(
            memory_for_pods(&machine, &rules),
            (16_093_224 - 300 * 1024) * 1024
        );
    }

    #[test]
    fn nothing_is_less_than_nothing() {
        let rules = Rules {
            system_reserved: amounts(&[("cpu", "9"), ("memory", "64Gi"), ("ephemeral-storage", "1Ti")]),
            ..rules()
        };
        let machine = Machine {
            hugepages: BTreeMap::from([(1 << 30, 4 << 30)]),
            ..machine()
        };
        check(
            &machine,
            &rules,
            expect![[r#"
                cpu: 0 of 4
                ephemeral-storage: 0 of 61255492Ki
                hugepages-1Gi: 4Gi of 4Gi
                memory: 0 of 16093224Ki
                pods: 110 of 110"#]],
        );
    }

    #[test]
    fn thresholds_and_local_storage_can_be_left_out() {
        let rules = Rules {
            ignore_thresholds: true,
            local_storage: false,
            ..rules()
        };
        let machine = Machine {
            hugepages: BTreeMap::new(),
            ..machine()
        };
        check(
            &machine,
            &rules,
            expect![[r#"
                cpu: 4 of 4
                memory: 16093224Ki of 16093224Ki
                pods: 110 of 110"#]],
        );
    }

    #[test]
    fn numbers_are_written_as_kubernetes_does() {
        let rows = [
            0,
            1,
            1000,
            1024,
            1536,
            1 << 20,
            3 << 30,
            655_360,
            1_000_000,
            u64::MAX,
        ];
        let text: Vec<String> = rows
            .iter()
            .map(|number| format!("{} {}", binary(*number), decimal(*number)))
            .collect();
        expect![[r#"
            0 0
            1 1
            1000 1k
            1Ki 1024
            1536 1536
            1Mi 1048576
            3Gi 3221225472
            640Ki 655360
            1000000 1M
            18446744073709551615 18446744073709551615"#]]
        .assert_eq(&text.join("\n"));
    }
}
