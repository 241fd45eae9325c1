use super::*;
use expect_test::{Expect, expect};
use proptest::prelude::*;
use serde_json::{Value, json};

const MI: u64 = 1024 * 1024;
const GI: u64 = 1024 * MI;

fn pod(name: &str, more: Value) -> Pod {
    let mut pod = json!({
        "metadata": { "name": name, "namespace": "default", "uid": name },
        "spec": { "containers": [{ "name": "c", "image": "i" }] },
    });
    merge(&mut pod, more);
    serde_json::from_value(pod).unwrap()
}

fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (name, value) in more {
                merge(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more,
    }
}

fn requests(name: &str, amount: &str) -> Value {
    json!({ "spec": { "containers": [{ "name": "c", "image": "i", "resources": { "requests": { name: amount } } }] } })
}

fn uses(uid: &str, memory: u64) -> PodUsage {
    PodUsage {
        uid: uid.to_owned(),
        memory_working_set: memory,
        pids: memory / MI,
        containers: vec![ContainerUsage {
            name: "c".to_owned(),
            memory_working_set: memory,
            root: DiskUse {
                bytes: memory,
                inodes: 1,
            },
            logs: DiskUse { bytes: MI, inodes: 2 },
        }],
        volumes: vec![VolumeUsage {
            name: "scratch".to_owned(),
            disk: DiskUse {
                bytes: 3 * MI,
                inodes: 4,
            },
        }],
    }
}

/// Plays observations and writes down what they mean.
struct Story {
    evictor: Evictor,
    text: String,
}

impl Story {
    fn new(rules: Rules) -> Self {
        Self {
            evictor: Evictor::new(rules),
            text: String::new(),
        }
    }

    fn memory(&mut self, at: u64, available_mi: u64) -> &mut Self {
        let observed = Observation {
            available: available_mi * MI,
            capacity: 8 * GI,
        };
        let all = Observations::from([(Signal::MemoryAvailable, observed)]);
        self.observe(at, all, &format!("{available_mi} Mi"))
    }

    fn observe(&mut self, at: u64, all: Observations, what: &str) -> &mut Self {
        self.evictor.handle_observed(all, Time::from_ms(at * 1000));
        let starved = self
            .evictor
            .starved()
            .map_or("nothing", |s| s.threshold.signal.as_str());
        let pressures = self.evictor.pressures();
        let shown = [
            (pressures.memory, Pressure::Memory),
            (pressures.disk, Pressure::Disk),
            (pressures.pid, Pressure::Pid),
        ];
        let shown = shown.iter().filter(|(is, _)| *is);
        let shown: Vec<&str> = shown.map(|(_, pressure)| pressure.as_str()).collect();
        let line = format!("{at} s, {what}: [{}] starved of {starved}\n", shown.join(" "));
        self.text.push_str(&line);
        self
    }

    fn check(&self, want: Expect) {
        want.assert_eq(&self.text);
    }
}

fn rules(thresholds: Vec<Threshold>) -> Rules {
    Rules {
        thresholds,
        ..Rules::default()
    }
}

fn hard_memory() -> Threshold {
    Threshold::hard(Signal::MemoryAvailable, Amount::Absolute(100 * MI))
}

#[test]
fn a_hard_threshold_acts_at_once_and_its_pressure_lasts() {
    Story::new(rules(vec![hard_memory()]))
        .memory(0, 100)
        .memory(10, 99)
        .memory(20, 100)
        .memory(300, 200)
        .memory(319, 200)
        .memory(320, 200)
        .check(expect![[r#"
            0 s, 100 Mi: [] starved of nothing
            10 s, 99 Mi: [MemoryPressure] starved of memory.available
            20 s, 100 Mi: [MemoryPressure] starved of nothing
            300 s, 200 Mi: [MemoryPressure] starved of nothing
            319 s, 200 Mi: [MemoryPressure] starved of nothing
            320 s, 200 Mi: [MemoryPressure] starved of nothing
        "#]]);
}

#[test]
fn a_pressure_ends_when_no_need_was_seen_for_the_transition_period() {
    let mut story = Story::new(rules(vec![hard_memory()]));
    story.memory(0, 50);
    for at in (10..=300).step_by(10) {
        story.evictor.handle_observed(
            Observations::from([(
                Signal::MemoryAvailable,
                Observation {
                    available: GI,
                    capacity: 8 * GI,
                },
            )]),
            Time::from_ms(at * 1000 - 1000),
        );
    }
    story.memory(299, 1024).memory(300, 1024).check(expect![[r#"
        0 s, 50 Mi: [MemoryPressure] starved of memory.available
        299 s, 1024 Mi: [MemoryPressure] starved of nothing
        300 s, 1024 Mi: [] starved of nothing
    "#]]);
}

#[test]
fn a_soft_threshold_waits_for_its_grace_and_flapping_starts_it_anew() {
    let soft = Threshold {
        grace: Duration::from_secs(30),
        ..Threshold::hard(Signal::MemoryAvailable, Amount::Absolute(500 * MI))
    };
    Story::new(rules(vec![hard_memory(), soft]))
        .memory(0, 400)
        .memory(20, 400)
        .memory(25, 600)
        .memory(30, 400)
        .memory(59, 400)
        .memory(60, 400)
        .memory(61, 90)
        .check(expect![[r#"
            0 s, 400 Mi: [MemoryPressure] starved of nothing
            20 s, 400 Mi: [MemoryPressure] starved of nothing
            25 s, 600 Mi: [MemoryPressure] starved of nothing
            30 s, 400 Mi: [MemoryPressure] starved of nothing
            59 s, 400 Mi: [MemoryPressure] starved of nothing
            60 s, 400 Mi: [MemoryPressure] starved of memory.available
            61 s, 90 Mi: [MemoryPressure] starved of memory.available
        "#]]);
}

#[test]
fn what_must_be_reclaimed_at_least_is() {
    let threshold = Threshold {
        reclaim_min: Some(Amount::Absolute(50 * MI)),
        ..hard_memory()
    };
    Story::new(rules(vec![threshold]))
        .memory(0, 120)
        .memory(10, 90)
        .memory(20, 149)
        .memory(30, 150)
        .memory(40, 120)
        .check(expect![[r#"
            0 s, 120 Mi: [] starved of nothing
            10 s, 90 Mi: [MemoryPressure] starved of memory.available
            20 s, 149 Mi: [MemoryPressure] starved of memory.available
            30 s, 150 Mi: [MemoryPressure] starved of nothing
            40 s, 120 Mi: [MemoryPressure] starved of nothing
        "#]]);
}

#[test]
fn a_clock_that_jumps_neither_evicts_early_nor_forgets_late() {
    let soft = Threshold {
        grace: Duration::from_secs(90),
        ..hard_memory()
    };
    Story::new(rules(vec![soft]))
        .memory(1000, 90)
        // A year ahead counts for one minute.
        .memory(31_000_000, 90)
        // Back again: nothing passed.
        .memory(1010, 90)
        .memory(1039, 90)
        .memory(1040, 90)
        .check(expect![[r#"
            1000 s, 90 Mi: [MemoryPressure] starved of nothing
            31000000 s, 90 Mi: [MemoryPressure] starved of nothing
            1010 s, 90 Mi: [MemoryPressure] starved of nothing
            1039 s, 90 Mi: [MemoryPressure] starved of nothing
            1040 s, 90 Mi: [MemoryPressure] starved of memory.available
        "#]]);
}

#[test]
fn memory_comes_first_and_what_cannot_be_measured_is_not_judged() {
    let low = Observation {
        available: 1,
        capacity: GI,
    };
    let all = [
        Signal::ImagefsAvailable,
        Signal::NodefsInodesFree,
        Signal::MemoryAvailable,
    ];
    let observed = Observations::from(all.map(|signal| (signal, low)));
    Story::new(Rules::default())
        .observe(0, observed.clone(), "all low")
        .observe(
            1,
            observed
                .into_iter()
                .filter(|(signal, _)| *signal != Signal::MemoryAvailable)
                .collect(),
            "memory unknown",
        )
        .observe(2, Observations::new(), "nothing known")
        .check(expect![[r#"
            0 s, all low: [MemoryPressure DiskPressure] starved of memory.available
            1 s, memory unknown: [MemoryPressure DiskPressure] starved of nodefs.inodesFree
            2 s, nothing known: [MemoryPressure DiskPressure] starved of nothing
        "#]]);
}

fn starve(signal: Signal, own_imagefs: bool) -> Evictor {
    let mut evictor = Evictor::new(rules(vec![Threshold::hard(signal, Amount::Absolute(100 * MI))]));
    evictor.handle_layout(own_imagefs);
    let low = Observation {
        available: 50 * MI,
        capacity: 8 * GI,
    };
    evictor.handle_observed(Observations::from([(signal, low)]), Time::from_ms(0));
    evictor
}

/// Evicts one after the other and writes down the order.
fn order(evictor: &Evictor, mut pods: Vec<Pod>, usage: &[PodUsage]) -> String {
    let mut names = Vec::new();
    loop {
        let left: Vec<&Pod> = pods.iter().collect();
        let Some(victim) = evictor.choose(&left, usage) else {
            return names.join(" ");
        };
        pods.retain(|pod| pod.uid() != victim.uid);
        names.push(victim.uid);
    }
}

#[test]
fn who_exceeds_its_request_goes_before_who_has_a_lower_priority() {
    let pods = vec![
        pod("modest", requests("memory", "1Gi")),
        pod("greedy", requests("memory", "100Mi")),
        pod("important", json!({ "spec": { "priority": 1000 } })),
        pod("free", json!({})),
        pod("unmeasured", json!({ "spec": { "priority": 5000 } })),
        pod("system", json!({ "spec": { "priority": 2_000_000_000 } })),
        pod(
            "static",
            json!({ "metadata": { "annotations": { "kubernetes.io/config.source": "file" } } }),
        ),
        pod(
            "mirror",
            json!({ "metadata": { "annotations": { "kubernetes.io/config.mirror": "x" } } }),
        ),
    ];
    let usage = [
        uses("modest", 900 * MI),
        uses("greedy", 200 * MI),
        uses("important", 900 * MI),
        uses("free", 150 * MI),
        uses("system", GI),
        uses("static", GI),
        uses("mirror", GI),
    ];
    let evictor = starve(Signal::MemoryAvailable, false);
    assert_eq!(
        order(&evictor, pods.clone(), &usage),
        "unmeasured free greedy important modest"
    );
    let evictor = starve(Signal::PidAvailable, false);
    assert_eq!(
        order(&evictor, pods, &usage),
        "unmeasured modest greedy free important"
    );
}

#[test]
fn disk_of_its_own_for_images_counts_apart() {
    let pods = || vec![pod("layer", json!({})), pod("volume", json!({}))];
    let mut layer = uses("layer", 100 * MI);
    layer.volumes.clear();
    let mut volume = uses("volume", 50 * MI);
    volume.volumes[0].disk.bytes = 20 * MI;
    let usage = [layer, volume];
    let first = |signal, own| order(&starve(signal, own), pods(), &usage);
    assert_eq!(first(Signal::NodefsAvailable, false), "layer volume");
    assert_eq!(first(Signal::NodefsAvailable, true), "volume layer");
    assert_eq!(first(Signal::ImagefsAvailable, true), "layer volume");
    let helps = |signal, own| starve(signal, own).starved().unwrap().garbage_helps;
    assert!(helps(Signal::NodefsAvailable, false) && helps(Signal::ImagefsInodesFree, true));
    assert!(!helps(Signal::NodefsInodesFree, true) && !helps(Signal::MemoryAvailable, false));
}

#[test]
fn messages_are_those_of_a_kubelet() {
    let tell = |signal, pod: &Pod| {
        let victim = starve(signal, false)
            .choose(&[pod], &[uses("web", 300 * MI)])
            .unwrap();
        victim.message
    };
    let check = |signal, pod: &Pod, want: Expect| want.assert_eq(&tell(signal, pod));
    check(
        Signal::MemoryAvailable,
        &pod("web", requests("memory", "0.25Gi")),
        expect![
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container c was using 300Mi, request is 0.25Gi, has larger consumption of memory. "
        ],
    );
    check(
        Signal::MemoryAvailable,
        &pod("web", requests("memory", "1Gi")),
        expect!["The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. "],
    );
    check(
        Signal::NodefsAvailable,
        &pod("web", json!({})),
        expect![
            "The node was low on resource: ephemeral-storage. Threshold quantity: 100Mi, available: 50Mi. Container c was using 301Mi, request is 0, has larger consumption of ephemeral-storage. "
        ],
    );
    check(
        Signal::ImagefsInodesFree,
        &pod("web", json!({})),
        expect!["The node was low on resource: inodes. Threshold quantity: 100Mi, available: 52428800. "],
    );
    check(
        Signal::PidAvailable,
        &pod("web", json!({})),
        expect!["The node was low on resource: pids. Threshold quantity: 100Mi, available: 52428800. "],
    );
}

#[test]
fn grace_is_short_for_hard_and_bounded_for_soft_thresholds() {
    let grace = |threshold_grace, grace_max, own: Option<i64>| {
        let mut evictor = Evictor::new(Rules {
            thresholds: vec![Threshold {
                grace: Duration::from_secs(threshold_grace),
                ..hard_memory()
            }],
            grace_max: Duration::from_secs(grace_max),
            ..Rules::default()
        });
        let low = Observation {
            available: 0,
            capacity: GI,
        };
        for at in [0, 30_000] {
            evictor.handle_observed(
                Observations::from([(Signal::MemoryAvailable, low)]),
                Time::from_ms(at),
            );
        }
        let pod = pod("p", json!({ "spec": { "terminationGracePeriodSeconds": own } }));
        evictor.choose(&[&pod], &[]).unwrap().grace.as_secs()
    };
    assert_eq!(grace(0, 60, Some(30)), 1);
    assert_eq!(grace(10, 60, Some(30)), 30);
    assert_eq!(grace(10, 20, Some(30)), 20);
    assert_eq!(grace(10, 20, None), 20);
    assert_eq!(grace(10, 0, Some(30)), 1);
    assert_eq!(grace(10, 20, Some(-1)), 20);
}

#[test]
fn limits_of_local_disk_are_kept() {
    let volume = |limit: &str, medium: &str| json!({ "spec": { "volumes": [{ "name": "scratch", "emptyDir": { "sizeLimit": limit, "medium": medium } }] } });
    let limit = |amount: &str| json!({ "spec": { "containers": [{ "name": "c", "resources": { "limits": { "ephemeral-storage": amount } } }] } });
    let evictor = Evictor::new(Rules::default());
    let tell = |pod: &Pod| {
        let watched = evictor.has_storage_limit(pod);
        let victims = evictor.over_their_limits(&[pod], &[uses("web", 10 * MI)]);
        let message = victims.first().map_or("stays", |victim| victim.message.as_str());
        format!("{watched}: {message}")
    };
    let check = |more: Value, want: Expect| want.assert_eq(&tell(&pod("web", more)));
    check(json!({}), expect!["false: stays"]);
    check(volume("3Mi", ""), expect!["true: stays"]);
    check(
        volume("2Mi", ""),
        expect![[r#"true: Usage of EmptyDir volume "scratch" exceeds the limit "2Mi". "#]],
    );
    check(volume("2Mi", "Memory"), expect!["false: stays"]);
    check(volume("0", ""), expect!["false: stays"]);
    check(limit("14Mi"), expect!["true: stays"]);
    check(
        limit("13Mi"),
        expect!["true: Pod ephemeral local storage usage exceeds the total limit of containers 13Mi. "],
    );
    let two = json!({ "spec": { "containers": [
        { "name": "c", "resources": { "limits": { "ephemeral-storage": "10Mi" } } },
        { "name": "d", "resources": { "limits": { "ephemeral-storage": "1Gi" } } },
    ] } });
    check(
        two,
        expect![[r#"true: Container c exceeded its local ephemeral storage limit "10Mi". "#]],
    );
    let mut system = volume("1Mi", "");
    merge(&mut system, json!({ "spec": { "priority": 2_000_001_000 } }));
    check(system, expect!["false: stays"]);
}

#[test]
fn memory_of_pods_together_is_guarded_as_that_of_the_node() {
    let soft = Threshold {
        grace: Duration::from_secs(1),
        ..hard_memory()
    };
    let mut thresholds = vec![soft];
    enforce_allocatable(&mut thresholds);
    assert_eq!(thresholds, [soft]);
    thresholds.push(hard_memory());
    enforce_allocatable(&mut thresholds);
    assert_eq!(
        thresholds[2],
        Threshold::hard(Signal::AllocatableMemoryAvailable, Amount::Absolute(100 * MI))
    );
    for signal in Signal::ALL {
        assert_eq!(Signal::parse(signal.as_str()), Some(signal));
    }
    assert_eq!(Signal::parse("containerfs.available"), None);
}

proptest! {
    /// Whatever is seen at whatever moment: what is starved is a pressure, a pressure was needed, and what is left of a
    /// pressure without need ends.
    #[test]
    fn pressures_follow_the_need(looks in prop::collection::vec((0..4_u64, 0..400_u64, 0..40_000_000_u64), 1..60)) {
        let soft = Threshold { grace: Duration::from_secs(30), ..Threshold::hard(Signal::MemoryAvailable, Amount::Absolute(300 * MI)) };
        let mut evictor = Evictor::new(rules(vec![hard_memory(), soft]));
        let mut at = 0_u64;
        let mut was_needed = false;
        for (kind, available_mi, jump) in looks {
            at = match kind {
                // A clock that was set, forwards or backwards.
                0 => jump,
                _ordinary => at + 10,
            };
            let low = Observation { available: available_mi * MI, capacity: GI };
            evictor.handle_observed(Observations::from([(Signal::MemoryAvailable, low)]), Time::from_ms(at * 1000));
            let needed = available_mi < 300;
            was_needed |= needed;
            let pressures = evictor.pressures();
            prop_assert!(!needed || pressures.memory);
            prop_assert!(!pressures.memory || was_needed);
            prop_assert_eq!((pressures.disk, pressures.pid), (false, false));
            if let Some(starved) = evictor.starved() {
                prop_assert!(needed && (available_mi < 100 || !starved.threshold.is_hard()));
            } else {
                prop_assert!(available_mi >= 100);
            }
        }
        // Six minutes without need, in steps that count.
        for _ in 0..36 {
            at += 10;
            let enough = Observation { available: GI, capacity: GI };
            evictor.handle_observed(Observations::from([(Signal::MemoryAvailable, enough)]), Time::from_ms(at * 1000));
        }
        prop_assert_eq!(evictor.pressures(), Pressures::default());
    }
}
