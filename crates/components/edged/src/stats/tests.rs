use super::reading::NodeUsage;
use super::summary::{About, Own, Summary};
use super::*;
use expect_test::expect;
use kedge_containers::{
    ContainerId, ContainerState, ContainerStats, CpuStats, ImageUsage, MemoryStats, ObservedContainer,
    PodIdentity, SandboxId,
};
use kedge_host::disks::{FileSystem, TreeUsage};
use kedge_host::groups::{GroupCpu, GroupMemory};
use kedge_host::network::Interface;
use kedge_wire::Time;
use std::collections::BTreeMap;

const AT: Time = Time::from_ms(1_767_225_600_000);

/// A node with one pod, as it was read.
pub(crate) fn usage() -> Usage {
    let cpu = |usage_ns, rate| {
        let total = GroupCpu {
            usage_ns,
            user_ns: usage_ns / 2,
            system_ns: usage_ns / 4,
            ..GroupCpu::default()
        };
        Some(Cpu { total, rate })
    };
    let memory = |usage, limit| {
        Some(GroupMemory {
            usage,
            working_set: usage - 1000,
            rss: 500,
            page_faults: 7,
            major_page_faults: 1,
            limit,
            ..GroupMemory::default()
        })
    };
    let network = vec![Interface {
        name: "eth0".to_owned(),
        received_bytes: 100,
        sent_bytes: 200,
        ..Interface::default()
    }];
    Usage {
        at: AT,
        node: NodeUsage {
            cpu: cpu(9_000_000_000, Some(250_000_000)),
            memory: memory(1_000_000, None),
            network: network.clone(),
            default_interface: Some("eth0".to_owned()),
            pods: Some((cpu(4_000_000_000, None), memory(80_000, None))),
        },
        pods: vec![PodUsage {
            uid: "u1".to_owned(),
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            sandbox: "s1".to_owned(),
            started_ms: AT.as_ms() - 60_000,
            group: Some("/kubepods/podu1".to_owned()),
            cpu: cpu(3_000_000_000, Some(1_000_000)),
            memory: memory(50_000, None),
            processes: Some(3),
            network,
            containers: vec![ContainerUsage {
                id: ContainerId("c1".to_owned()),
                name: "main".to_owned(),
                image: "app:1".to_owned(),
                started_ms: AT.as_ms() - 50_000,
                group: Some("/kubepods/podu1/c1".to_owned()),
                cpu: cpu(2_500_000_000, Some(900_000)),
                memory: memory(40_000, Some(100_000)),
                processes: Some(2),
            }],
        }],
        has_rates: true,
    }
}

/// Its disks.
pub(crate) fn disks() -> Disks {
    let fs = FileSystem {
        capacity_bytes: 1_000_000,
        available_bytes: 600_000,
        used_bytes: 400_000,
        inodes: 1000,
        inodes_free: 900,
        id: 1,
    };
    let tree = |bytes, inodes| TreeUsage {
        bytes,
        inodes,
        complete: true,
    };
    let images = ImageUsage {
        bytes: 70_000,
        inodes: 70,
        ..ImageUsage::default()
    };
    let volume = |name: &str, claim: Option<&str>| VolumeUsage {
        name: name.to_owned(),
        claim: claim.map(str::to_owned),
        file_system: fs,
        used: tree(20, 2),
    };
    let pod = PodDisks {
        layers: BTreeMap::from([(ContainerId("c1".to_owned()), (300, Some(3)))]),
        logs: BTreeMap::from([("main".to_owned(), tree(40, 2))]),
        volumes: vec![volume("cache", None), volume("data", Some("claim"))],
        ephemeral: tree(360, 7),
    };
    Disks {
        at: AT,
        node: Some(fs),
        images: Some((fs, images)),
        pods: BTreeMap::from([("u1".to_owned(), pod)]),
    }
}

fn about() -> About {
    About {
        node_name: "edge-1".to_owned(),
        booted: AT - Duration::from_secs(3600),
        memory_bytes: 2_000_000,
        swap_bytes: 0,
        pids_max: Some(32_768),
        processes: Some(99),
        own: Own {
            started: AT - Duration::from_secs(600),
            cpu_ns: 5,
            resident_bytes: 6,
            page_faults: 7,
            major_page_faults: 8,
        },
    }
}

#[test]
fn the_short_summary_has_processors_and_memory() {
    let summary = Summary::new(&about(), &usage(), None);
    let text = serde_json::to_string_pretty(&summary).unwrap();
    expect![[r#"
        {
          "node": {
            "nodeName": "edge-1",
            "systemContainers": [
              {
                "name": "kubelet",
                "startTime": "2025-12-31T23:50:00Z",
                "cpu": {
                  "time": "2026-01-01T00:00:00Z",
                  "usageCoreNanoSeconds": 5
                },
                "memory": {
                  "time": "2026-01-01T00:00:00Z",
                  "usageBytes": 6,
                  "workingSetBytes": 6,
                  "rssBytes": 6,
                  "pageFaults": 7,
                  "majorPageFaults": 8
                }
              },
              {
                "name": "pods",
                "startTime": "2025-12-31T23:00:00Z",
                "cpu": {
                  "time": "2026-01-01T00:00:00Z",
                  "usageCoreNanoSeconds": 4000000000
                },
                "memory": {
                  "time": "2026-01-01T00:00:00Z",
                  "availableBytes": 1921000,
                  "usageBytes": 80000,
                  "workingSetBytes": 79000,
                  "rssBytes": 500,
                  "pageFaults": 7,
                  "majorPageFaults": 1
                }
              }
            ],
            "startTime": "2025-12-31T23:00:00Z",
            "cpu": {
              "time": "2026-01-01T00:00:00Z",
              "usageNanoCores": 250000000,
              "usageCoreNanoSeconds": 9000000000
            },
            "memory": {
              "time": "2026-01-01T00:00:00Z",
              "availableBytes": 1001000,
              "usageBytes": 1000000,
              "workingSetBytes": 999000,
              "rssBytes": 500,
              "pageFaults": 7,
              "majorPageFaults": 1
            }
          },
          "pods": [
            {
              "podRef": {
                "name": "web",
                "namespace": "default",
                "uid": "u1"
              },
              "startTime": "2025-12-31T23:59:00Z",
              "containers": [
                {
                  "name": "main",
                  "startTime": "2025-12-31T23:59:10Z",
                  "cpu": {
                    "time": "2026-01-01T00:00:00Z",
                    "usageNanoCores": 900000,
                    "usageCoreNanoSeconds": 2500000000
                  },
                  "memory": {
                    "time": "2026-01-01T00:00:00Z",
                    "availableBytes": 61000,
                    "usageBytes": 40000,
                    "workingSetBytes": 39000,
                    "rssBytes": 500,
                    "pageFaults": 7,
                    "majorPageFaults": 1
                  }
                }
              ],
              "cpu": {
                "time": "2026-01-01T00:00:00Z",
                "usageNanoCores": 1000000,
                "usageCoreNanoSeconds": 3000000000
              },
              "memory": {
                "time": "2026-01-01T00:00:00Z",
                "usageBytes": 50000,
                "workingSetBytes": 49000,
                "rssBytes": 500,
                "pageFaults": 7,
                "majorPageFaults": 1
              }
            }
          ]
        }"#]]
    .assert_eq(&text);
}

#[test]
fn the_whole_summary_has_networks_and_disks_as_well() {
    let summary = Summary::new(&about(), &usage(), Some(&disks()));
    let whole = serde_json::to_value(&summary).unwrap();
    let pod = serde_json::to_string_pretty(&whole["pods"][0]).unwrap();
    expect![[r#"
        {
          "podRef": {
            "name": "web",
            "namespace": "default",
            "uid": "u1"
          },
          "startTime": "2025-12-31T23:59:00Z",
          "containers": [
            {
              "name": "main",
              "startTime": "2025-12-31T23:59:10Z",
              "cpu": {
                "time": "2026-01-01T00:00:00Z",
                "usageNanoCores": 900000,
                "usageCoreNanoSeconds": 2500000000
              },
              "memory": {
                "time": "2026-01-01T00:00:00Z",
                "availableBytes": 61000,
                "usageBytes": 40000,
                "workingSetBytes": 39000,
                "rssBytes": 500,
                "pageFaults": 7,
                "majorPageFaults": 1
              },
              "rootfs": {
                "time": "2026-01-01T00:00:00Z",
                "availableBytes": 600000,
                "capacityBytes": 1000000,
                "usedBytes": 300,
                "inodesFree": 900,
                "inodes": 1000,
                "inodesUsed": 3
              },
              "logs": {
                "time": "2026-01-01T00:00:00Z",
                "availableBytes": 600000,
                "capacityBytes": 1000000,
                "usedBytes": 40,
                "inodesFree": 900,
                "inodes": 1000,
                "inodesUsed": 2
              }
            }
          ],
          "cpu": {
            "time": "2026-01-01T00:00:00Z",
            "usageNanoCores": 1000000,
            "usageCoreNanoSeconds": 3000000000
          },
          "memory": {
            "time": "2026-01-01T00:00:00Z",
            "usageBytes": 50000,
            "workingSetBytes": 49000,
            "rssBytes": 500,
            "pageFaults": 7,
            "majorPageFaults": 1
          },
          "network": {
            "time": "2026-01-01T00:00:00Z",
            "name": "eth0",
            "rxBytes": 100,
            "rxErrors": 0,
            "txBytes": 200,
            "txErrors": 0,
            "interfaces": [
              {
                "name": "eth0",
                "rxBytes": 100,
                "rxErrors": 0,
                "txBytes": 200,
                "txErrors": 0
              }
            ]
          },
          "volume": [
            {
              "time": "2026-01-01T00:00:00Z",
              "availableBytes": 600000,
              "capacityBytes": 1000000,
              "usedBytes": 20,
              "inodesFree": 900,
              "inodes": 1000,
              "inodesUsed": 2,
              "name": "cache"
            },
            {
              "time": "2026-01-01T00:00:00Z",
              "availableBytes": 600000,
              "capacityBytes": 1000000,
              "usedBytes": 20,
              "inodesFree": 900,
              "inodes": 1000,
              "inodesUsed": 2,
              "name": "data",
              "pvcRef": {
                "name": "claim",
                "namespace": "default"
              }
            }
          ],
          "ephemeral-storage": {
            "time": "2026-01-01T00:00:00Z",
            "availableBytes": 600000,
            "capacityBytes": 1000000,
            "usedBytes": 360,
            "inodesFree": 900,
            "inodes": 1000,
            "inodesUsed": 7
          },
          "process_stats": {
            "process_count": 3
          }
        }"#]]
    .assert_eq(&pod);
    let node = ["network", "fs", "runtime", "rlimit"].map(|key| whole["node"][key].to_string());
    expect![[r#"
        {"time":"2026-01-01T00:00:00Z","name":"eth0","rxBytes":100,"rxErrors":0,"txBytes":200,"txErrors":0,"interfaces":[{"name":"eth0","rxBytes":100,"rxErrors":0,"txBytes":200,"txErrors":0}]}
        {"time":"2026-01-01T00:00:00Z","availableBytes":600000,"capacityBytes":1000000,"usedBytes":400000,"inodesFree":900,"inodes":1000,"inodesUsed":100}
        {"imageFs":{"time":"2026-01-01T00:00:00Z","availableBytes":600000,"capacityBytes":1000000,"usedBytes":70000,"inodesFree":900,"inodes":1000,"inodesUsed":70},"containerFs":{"time":"2026-01-01T00:00:00Z","availableBytes":600000,"capacityBytes":1000000,"usedBytes":400000,"inodesFree":900,"inodes":1000,"inodesUsed":100}}
        {"time":"2026-01-01T00:00:00Z","maxpid":32768,"curproc":99}"#]].assert_eq(&node.join("\n"));
}

#[test]
fn what_control_groups_do_not_tell_the_runtime_does() {
    let observed = ObservedSandbox {
        id: SandboxId("s1".to_owned()),
        pod: PodIdentity::default(),
        attempt: 0,
        ready: true,
        created_ms: 1,
        ips: Vec::new(),
        containers: vec![ObservedContainer {
            id: ContainerId("c1".to_owned()),
            name: "main".to_owned(),
            attempt: 0,
            image: "app".to_owned(),
            image_ref: String::new(),
            spec_hash: String::new(),
            created_ms: 1,
            state: ContainerState::Running { started_ms: 2 },
            log_path: "/none".into(),
        }],
    };
    let told = |usage_ns| {
        vec![kedge_containers::SandboxStats {
            id: SandboxId("s1".to_owned()),
            pod: PodIdentity::default(),
            taken_ms: 3,
            cpu: None,
            memory: None,
            processes: None,
            network: Vec::new(),
            containers: vec![ContainerStats {
                id: ContainerId("c1".to_owned()),
                name: "main".to_owned(),
                taken_ms: 3,
                cpu: Some(CpuStats { usage_ns }),
                memory: Some(MemoryStats {
                    working_set_bytes: 30,
                    ..MemoryStats::default()
                }),
                layer_bytes: None,
                layer_inodes: None,
            }],
        }]
    };
    let read = |at, usage_ns| {
        let mut usage = Usage::read(at, None, &[], std::slice::from_ref(&observed));
        assert!(usage.lacks_groups());
        usage.complete_with(&told(usage_ns));
        assert!(!usage.lacks_groups());
        usage
    };
    let earlier = read(AT, 1_000_000_000);
    let mut now = read(AT + Duration::from_secs(2), 1_500_000_000);
    now.compare_with(&earlier);
    let (pod, container) = (&now.pods[0], &now.pods[0].containers[0]);
    assert_eq!(container.cpu.unwrap().rate, Some(250_000_000));
    assert_eq!(pod.cpu.unwrap().rate, Some(250_000_000));
    assert_eq!(pod.memory.unwrap().working_set, 30);
    assert!(
        now.node.cpu.is_some_and(|cpu| cpu.rate.is_some()),
        "the machine is always known"
    );
}
