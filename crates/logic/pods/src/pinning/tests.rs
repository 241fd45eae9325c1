//! Who gets which CPUs, told as tables; and what holds for every order of coming and going.

use super::*;
use expect_test::{Expect, expect};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A machine whose second threads are numbered behind all first ones.
fn machine(sockets: u32, banks_per_socket: u32, cores_per_bank: u32, threads: u32) -> Topology {
    let cores = sockets * banks_per_socket * cores_per_bank;
    let cpu = |id: u32| {
        let core = id % cores;
        let bank = core / cores_per_bank;
        Processor {
            id,
            core,
            socket: bank / banks_per_socket,
            bank,
            cache: core / 2 * 2,
        }
    };
    Topology::new((0..cores * threads).map(cpu))
}

fn set(text: &str) -> CpuSet {
    text.parse().unwrap()
}

/// A guaranteed pod; each container with its CPUs, `i:` before an init container, `s:` before a sidecar.
fn pod(uid: &str, containers: &str) -> Pod {
    let (mut init, mut mains) = (Vec::new(), Vec::new());
    for (place, text) in containers.split_whitespace().enumerate() {
        let (kind, cpu) = text.split_once(':').unwrap_or(("", text));
        let mut container = serde_json::json!({ "name": format!("c{place}"), "image": "i",
            "resources": { "limits": { "cpu": cpu, "memory": "64Mi" } } });
        if kind == "s" {
            container["restartPolicy"] = "Always".into();
        }
        if kind.is_empty() { &mut mains } else { &mut init }.push(container);
    }
    let spec = serde_json::json!({ "initContainers": init, "containers": mains });
    crate::tests::pod(uid, uid, spec)
}

/// Gives a pod all its CPUs or none.
fn admit(cpus: &mut Cpus, pod: &Pod) -> Result<(), Shortage> {
    for (container, _) in in_turn(pod) {
        if let Err(shortage) = cpus.take(pod, container, None) {
            in_turn(pod).for_each(|(container, _)| cpus.give_back(pod.uid(), &container.name));
            return Err(shortage);
        }
    }
    Ok(())
}

fn told(cpus: &Cpus) -> String {
    let of_pod = |(uid, of_pod): (&String, &BTreeMap<String, CpuSet>)| {
        let each: Vec<String> = of_pod
            .iter()
            .map(|(name, cpus)| format!("{name}={cpus}"))
            .collect();
        format!("{uid}({})", each.join(" "))
    };
    let pods: Vec<String> = cpus.assigned().iter().map(of_pod).collect();
    format!("shared {} {}", cpus.shared(), pods.join(" "))
        .trim_end()
        .to_owned()
}

/// `a=2 2` is a pod, `-a` its end.
fn check(topology: &Topology, options: CpuOptions, reserve: &CpuReserve, story: &[&str], expect: &Expect) {
    let mut cpus = Cpus::new(topology.clone(), options, reserve).unwrap();
    let mut lines = Vec::new();
    for step in story {
        let result = match step.split_once('=') {
            Some((uid, containers)) => admit(&mut cpus, &pod(uid, containers)),
            None => {
                cpus.keep(|uid| uid != &step[1..]);
                Ok(())
            }
        };
        let line = match result {
            Ok(()) => told(&cpus),
            Err(shortage) => {
                let refusal = shortage.refusal();
                format!("{}: {}", refusal.reason, refusal.message)
            }
        };
        lines.push(format!("{step:8} {line}\n"));
    }
    expect.assert_eq(&lines.concat());
}

#[test]
fn sets_are_read_and_written() {
    for text in ["", "0", "0-1", "0,2-95,97-191", "3,5,7"] {
        assert_eq!(set(text).to_string(), text);
    }
    assert_eq!(set("3,1,2,2").to_string(), "1-3");
    for text in ["a", "3-1", "1-", "-1", "1,,2", "0-8192", "4294967296"] {
        assert!(text.parse::<CpuSet>().is_err(), "{text}");
    }
}

#[test]
fn whole_cpus_of_guaranteed_pods_are_alone() {
    check(
        &machine(1, 1, 4, 2),
        CpuOptions::default(),
        &CpuReserve::Count(1),
        &["a=1500m", "b=2", "c=1", "d=1", "e=4", "-c", "f=3"],
        &expect![[r#"
            a=1500m  shared 0-7
            b=2      shared 0,2-4,6-7 b(c0=1,5)
            c=1      shared 0,2-3,6-7 b(c0=1,5) c(c0=4)
            d=1      shared 0,3,6-7 b(c0=1,5) c(c0=4) d(c0=2)
            e=4      UnexpectedAdmissionError: Allocate failed due to not enough cpus available to satisfy request: requested=4, available=3, which is unexpected
            -c       shared 0,3-4,6-7 b(c0=1,5) d(c0=2)
            f=3      shared 0,6 b(c0=1,5) d(c0=2) f(c0=3-4,7)
        "#]],
    );
}

#[test]
fn sockets_then_cores_then_threads() {
    check(
        &machine(2, 1, 4, 2),
        CpuOptions::default(),
        &CpuReserve::These(set("0")),
        &["a=8", "b=3", "c=2", "-a", "d=10", "e=4"],
        &expect![[r#"
            a=8      shared 0-3,8-11 a(c0=4-7,12-15)
            b=3      shared 0,2-3,10-11 a(c0=4-7,12-15) b(c0=1,8-9)
            c=2      shared 0,3,11 a(c0=4-7,12-15) b(c0=1,8-9) c(c0=2,10)
            -a       shared 0,3-7,11-15 b(c0=1,8-9) c(c0=2,10)
            d=10     shared 0 b(c0=1,8-9) c(c0=2,10) d(c0=3-7,11-15)
            e=4      UnexpectedAdmissionError: Allocate failed due to not enough cpus available to satisfy request: requested=4, available=0, which is unexpected
        "#]],
    );
}

#[test]
fn init_containers_leave_their_cpus_and_sidecars_keep_them() {
    check(
        &machine(1, 1, 8, 1),
        CpuOptions::default(),
        &CpuReserve::Count(1),
        &["a=i:3 s:1 i:2 2 1", "b=2 2", "-a", "b=2 2"],
        &expect![[r#"
            a=i:3 s:1 i:2 2 1 shared 0,5-7 a(c0=1-3 c1=1 c2=2-3 c3=2-3 c4=4)
            b=2 2    UnexpectedAdmissionError: Allocate failed due to not enough cpus available to satisfy request: requested=2, available=1, which is unexpected
            -a       shared 0-7
            b=2 2    shared 0,5-7 b(c0=1-2 c1=3-4)
        "#]],
    );
}

#[test]
fn whole_cores_only() {
    let full_cores = CpuOptions {
        full_cores: true,
        ..CpuOptions::default()
    };
    check(
        &machine(1, 1, 4, 2),
        full_cores,
        &CpuReserve::Count(1),
        &["a=3", "b=2", "c=6", "d=i:4 4"],
        &expect![[r#"
            a=3      SMTAlignmentError: SMT Alignment Error: requested 3 cpus not multiple cpus per core = 2
            b=2      shared 0,2-4,6-7 b(c0=1,5)
            c=6      SMTAlignmentError: SMT Alignment Error: not enough free physical CPUs: available physical CPUs = 4, requested CPUs = 6, CPUs per core = 2
            d=i:4 4  shared 0,4 b(c0=1,5) d(c0=2-3,6-7 c1=2-3,6-7)
        "#]],
    );
}

#[test]
fn options_spread_distribute_align_and_reserve() {
    let default = CpuOptions::default();
    let spread = CpuOptions {
        spread_cores: true,
        ..default
    };
    check(
        &machine(1, 1, 4, 2),
        spread,
        &CpuReserve::Count(1),
        &["a=3", "b=2"],
        &expect![[r#"
            a=3      shared 0,4-7 a(c0=1-3)
            b=2      shared 0,6-7 a(c0=1-3) b(c0=4-5)
        "#]],
    );
    let distribute = CpuOptions {
        distribute_banks: true,
        ..default
    };
    check(
        &machine(2, 1, 8, 1),
        distribute,
        &CpuReserve::These(set("0")),
        &["a=4", "b=8", "c=4"],
        &expect![[r#"
            a=4      shared 0-7,12-15 a(c0=8-11)
            b=8      shared 0,5-7 a(c0=8-11) b(c0=1-4,12-15)
            c=4      UnexpectedAdmissionError: Allocate failed due to not enough cpus available to satisfy request: requested=4, available=3, which is unexpected
        "#]],
    );
    let caches = CpuOptions {
        align_caches: true,
        ..default
    };
    check(
        &machine(1, 1, 8, 1),
        caches,
        &CpuReserve::These(set("0")),
        &["a=1", "b=2", "c=3"],
        &expect![[r#"
            a=1      shared 0,2-7 a(c0=1)
            b=2      shared 0,4-7 a(c0=1) b(c0=2-3)
            c=3      shared 0,7 a(c0=1) b(c0=2-3) c(c0=4-6)
        "#]],
    );
    let strict = CpuOptions {
        strict_reserve: true,
        ..default
    };
    check(
        &machine(1, 1, 4, 1),
        strict,
        &CpuReserve::These(set("0")),
        &["a=2", "b=1"],
        &expect![[r#"
            a=2      shared 3 a(c0=1-2)
            b=1      shared  a(c0=1-2) b(c0=3)
        "#]],
    );
    let mut cpus = Cpus::new(machine(1, 1, 2, 1), strict, &CpuReserve::These(set("0"))).unwrap();
    admit(&mut cpus, &pod("a", "1")).unwrap();
    assert_eq!(cpus.of("b", "c0"), &set("0"), "never on somebody's own");
}

#[test]
fn what_does_not_go_with_the_machine_is_said() {
    let trouble = |topology, options, reserve| match Cpus::new(topology, options, &reserve) {
        Ok(cpus) => told(&cpus),
        Err(trouble) => trouble.to_string(),
    };
    let default = CpuOptions::default();
    let align = CpuOptions {
        align_sockets: true,
        ..default
    };
    let mut one_bank: Vec<Processor> = (0..4)
        .filter_map(|cpu| machine(2, 1, 2, 1).processor(cpu).copied())
        .collect();
    one_bank.iter_mut().for_each(|cpu| cpu.bank = 0);
    let lines = [
        trouble(machine(1, 1, 2, 1), default, CpuReserve::Count(0)),
        trouble(machine(1, 1, 2, 1), default, CpuReserve::Count(3)),
        trouble(machine(1, 1, 2, 1), default, CpuReserve::These(set("1-2"))),
        trouble(Topology::new(one_bank), align, CpuReserve::Count(1)),
        trouble(machine(1, 1, 2, 1), default, CpuReserve::Count(2)),
    ];
    expect![[r#"
        the policy static needs CPUs for the node itself: give reservedSystemCPUs, or cpu in kubeReserved or systemReserved
        3 CPUs are to be reserved, but this machine has 0-1
        CPUs 1-2 are to be reserved, but this machine has 0-1
        align-by-socket does not go with a machine that has more sockets than NUMA nodes
        shared 0-1
    "#]]
    .assert_eq(&(lines.join("\n") + "\n"));
}

#[test]
fn what_is_remembered_and_cannot_be_is_left_out() {
    let mut cpus = Cpus::new(machine(1, 1, 4, 1), CpuOptions::default(), &CpuReserve::Count(1)).unwrap();
    let one = |container: &str, cpus: &str| (container.to_owned(), set(cpus));
    let assigned: Assigned = [
        ("good".to_owned(), [one("c", "1"), one("init", "1")].into()),
        ("gone".to_owned(), [one("c", "2,4")].into()),
        ("kept".to_owned(), [one("c", "0")].into()),
        ("late".to_owned(), [one("c", "1-2")].into()),
    ]
    .into();
    let troubles = cpus.restore(assigned);
    let mut lines: Vec<String> = troubles.iter().map(CpuTrouble::to_string).collect();
    lines.push(told(&cpus));
    expect![[r#"
        container c of pod gone loses CPUs 2,4: some of them are not there any more
        container c of pod kept loses CPUs 0: some of them are reserved now
        container c of pod late loses CPUs 1-2: another pod has some of them
        shared 0,2-3 good(c=1 init=1)"#]]
    .assert_eq(&lines.join("\n"));
}

fn align(policy: Policy) -> Alignment {
    Alignment {
        policy,
        ..Alignment::default()
    }
}

fn chosen(alignment: Alignment, topology: &Topology, hints: &[Hints]) -> String {
    match alignment.choose(topology, hints) {
        Ok(None) => "anywhere".to_owned(),
        Ok(Some(banks)) => banks.to_string(),
        Err(shortage) => shortage.refusal().reason,
    }
}

#[test]
fn cpus_and_devices_lie_together_as_the_policy_says() {
    let topology = machine(2, 1, 4, 1);
    let mut cpus = Cpus::new(topology.clone(), CpuOptions::default(), &CpuReserve::Count(1)).unwrap();
    admit(&mut cpus, &pod("before", "2")).unwrap();
    let banks = |list: &[u32]| -> Banks { list.iter().copied().collect() };
    let near = [banks(&[0]), banks(&[1]), banks(&[1])];
    let mut lines = Vec::new();
    for (what, count, devices, free) in [
        ("2 CPUs", "2", 0, &near[..]),
        ("2 CPUs, 1 device", "2", 1, &near[..]),
        ("2 CPUs, a device of the other bank", "2", 1, &near[..1]),
        ("5 CPUs", "5", 0, &near[..]),
        ("2 CPUs, 3 devices", "2", 3, &near[..]),
        ("2 CPUs, no device left", "2", 1, &near[..0]),
        ("half a CPU", "500m", 0, &near[..]),
    ] {
        let pod = pod("new", count);
        let container = &pod.spec.containers[0];
        let mut hints = vec![Hints::new(), Hints::new()];
        if devices > 0 {
            let list = device_hints(&topology, devices, &near, free, &[]);
            hints[0].insert("example.org/card".to_owned(), list);
        }
        if let Some(list) = cpus.hints(&pod, container) {
            hints[1].insert("cpu".to_owned(), list);
        }
        let policies = [
            Policy::None,
            Policy::BestEffort,
            Policy::Restricted,
            Policy::SingleNumaNode,
        ];
        let chosen = policies.map(|policy| chosen(align(policy), &topology, &hints));
        lines.push(format!("{what}: {}\n", chosen.join(", ")));
    }
    expect![[r#"
        2 CPUs: anywhere, 1, 1, 1
        2 CPUs, 1 device: anywhere, 1, 1, 1
        2 CPUs, a device of the other bank: anywhere, 0, TopologyAffinityError, TopologyAffinityError
        5 CPUs: anywhere, 0,1, 0,1, TopologyAffinityError
        2 CPUs, 3 devices: anywhere, 1, 1, TopologyAffinityError
        2 CPUs, no device left: anywhere, 1, TopologyAffinityError, TopologyAffinityError
        half a CPU: anywhere, 0,1, 0,1, anywhere
    "#]]
    .assert_eq(&lines.concat());
}

#[test]
fn cpus_are_taken_from_the_chosen_banks() {
    let mut cpus = Cpus::new(machine(2, 1, 4, 1), CpuOptions::default(), &CpuReserve::Count(1)).unwrap();
    let pod = pod("a", "2");
    let container = &pod.spec.containers[0];
    cpus.take(&pod, container, Some([1].into_iter().collect()))
        .unwrap();
    assert_eq!(told(&cpus), "shared 0-3,6-7 a(c0=4-5)");
    // What it has says where it is.
    let hints = cpus.hints(&pod, container).unwrap();
    let preferred: Vec<String> = hints
        .iter()
        .filter(|hint| hint.preferred)
        .map(|hint| hint.banks.unwrap().to_string())
        .collect();
    assert_eq!(preferred, ["1"]);
}

#[test]
fn of_as_many_banks_the_closer_ones() {
    let far = [
        [10, 30, 20, 20],
        [30, 10, 20, 12],
        [20, 20, 10, 30],
        [20, 12, 30, 10],
    ];
    let mut topology = machine(4, 1, 2, 1);
    for (bank, row) in far.iter().enumerate() {
        let row: Vec<(u32, u32)> = (0..).zip(row.iter().copied()).collect();
        topology = topology.with_bank(u32::try_from(bank).unwrap(), &row);
    }
    let cpus = Cpus::new(
        topology.clone(),
        CpuOptions::default(),
        &CpuReserve::These(set("0")),
    )
    .unwrap();
    let pod = pod("a", "3");
    let hints = [Hints::from([("cpu".to_owned(), cpus.pod_hints(&pod).unwrap())])];
    let closest = Alignment {
        prefer_closest: true,
        ..align(Policy::BestEffort)
    };
    assert_eq!(chosen(align(Policy::BestEffort), &topology, &hints), "0,1");
    assert_eq!(chosen(closest, &topology, &hints), "1,3");
}

/// A pod with containers of so many CPUs, or the end of a pod.
#[derive(Debug, Clone)]
enum Step {
    Come(u8, String),
    Go(u8),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let containers =
        proptest::collection::vec((prop_oneof![Just(""), Just("i:"), Just("s:")], 1..5_u8), 1..4);
    let containers = containers.prop_map(|list| {
        let list: Vec<String> = list
            .iter()
            .map(|(kind, count)| format!("{kind}{count}"))
            .collect();
        list.join(" ") + " 1"
    });
    let step = prop_oneof![
        4 => (0..6_u8, containers).prop_map(|(uid, containers)| Step::Come(uid, containers)),
        2 => (0..6_u8).prop_map(Step::Go),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..30)
}

fn options() -> impl Strategy<Value = CpuOptions> {
    any::<[bool; 6]>().prop_map(|[full, distribute, align, spread, strict, caches]| CpuOptions {
        full_cores: full,
        distribute_banks: distribute,
        align_sockets: align,
        spread_cores: spread,
        strict_reserve: strict,
        align_caches: caches,
    })
}

/// No CPU is two pods' own, none is lost, the reserved ones stay, and containers that run together share nothing.
fn assert_sound(cpus: &Cpus, pods: &BTreeMap<String, Pod>, strict: bool, reserved: &CpuSet) {
    let mut seen = cpus.shared().clone();
    for (uid, of_pod) in cpus.assigned() {
        let all = of_pod
            .values()
            .fold(CpuSet::default(), |all, cpus| all.with(cpus));
        assert!(all.common(&seen).is_empty(), "{}", told(cpus));
        assert!(all.common(reserved).is_empty(), "{}", told(cpus));
        seen = seen.with(&all);
        let mut running = CpuSet::default();
        for (container, ends) in in_turn(&pods[uid]) {
            let own = &of_pod[&container.name];
            assert_eq!(own.len(), Cpus::wanted(&pods[uid], container));
            assert!(
                own.common(&running).is_empty(),
                "{} in {}",
                container.name,
                told(cpus)
            );
            if !ends {
                running = running.with(own);
            }
        }
    }
    let expected = if strict {
        cpus.topology().all().without(reserved)
    } else {
        cpus.topology().all()
    };
    assert_eq!(seen, expected, "nothing is lost: {}", told(cpus));
    assert!(strict || reserved.is_subset(cpus.shared()));
    assert!(!cpus.of("nobody", "c").is_empty());
}

proptest! {
    #[test]
    fn nothing_is_given_twice_or_lost(
        steps in steps(), options in options(), shape in (1..3_u32, 1..3_u32, 1..4_u32, 1..3_u32),
    ) {
        let topology = machine(shape.0, shape.1, shape.2, shape.3);
        let Ok(mut cpus) = Cpus::new(topology.clone(), options, &CpuReserve::Count(1)) else { return Ok(()) };
        let reserved = cpus.reserved().clone();
        let fresh = cpus.clone();
        let mut pods: BTreeMap<String, Pod> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Come(uid, containers) => {
                    let uid = uid.to_string();
                    let before = cpus.clone();
                    let new = pod(&uid, &containers);
                    if pods.contains_key(&uid) {
                        continue;
                    }
                    match admit(&mut cpus, &new) {
                        Ok(()) => drop(pods.insert(uid, new)),
                        Err(_) => prop_assert_eq!(&cpus, &before, "who is refused leaves nothing"),
                    }
                }
                Step::Go(uid) => {
                    pods.remove(&uid.to_string());
                    cpus.keep(|known| known != uid.to_string());
                }
                Step::Restart => {
                    let mut again = fresh.clone();
                    prop_assert_eq!(again.restore(cpus.assigned().clone()), []);
                    prop_assert_eq!(&again, &cpus);
                }
            }
            assert_sound(&cpus, &pods, options.strict_reserve, &reserved);
        }
        cpus.keep(|_| false);
        prop_assert_eq!(cpus, fresh);
    }

    #[test]
    fn a_set_is_read_as_it_is_written(cpus in proptest::collection::btree_set(0..200_u32, 0..60), text in ".*") {
        let cpus: CpuSet = cpus.into_iter().collect();
        prop_assert_eq!(cpus.to_string().parse::<CpuSet>(), Ok(cpus));
        drop(text.parse::<CpuSet>());
    }
}
