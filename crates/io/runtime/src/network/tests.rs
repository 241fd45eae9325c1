//! Rules in a kernel: each test in a network namespace of its own, on a thread that ends with it.

use super::filter::Filter;
use super::iptables::Iptables;
use super::netlink::{Message, Peer, Socket, attribute};
use super::nft::Nft;
use super::rules::{Rules, rules};
use super::*;
use kedge_containers::{PodIdentity, PortMapping, Protocol};
use kedge_host::program;
use links::{End, mac_of};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

const BRIDGE: &str = "kt-bridge";
const TABLE: &str = "kedge-kt-bridge";
const PODS: Cidr = (IpAddr::V4(Ipv4Addr::new(10, 213, 7, 0)), 24);
const PODS_OF_IPV6: Cidr = (IpAddr::V6(Ipv6Addr::new(0xfd00, 0x213, 7, 0, 0, 0, 0, 0)), 64);
const BOOT: &str = "this boot";

/// Runs a story where nobody else has rules; elsewhere than as root there are no rules at all.
fn alone(story: impl FnOnce() + Send + 'static) {
    if !kedge_host::is_root() {
        eprintln!("skipped: rules need root");
        return;
    }
    let told = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        story();
    });
    if let Err(failure) = told.join() {
        std::panic::resume_unwind(failure);
    }
}

/// The chains of our table, each with the number of its rules.
fn standing() -> Vec<String> {
    let list = |kind: u16, table: u16, chain: u16| {
        let question = Message::new(10 << 8 | kind, 0, &[0; 4]);
        let mut socket = Socket::open(Peer::Netfilter).unwrap();
        let told = socket.list(&question, |_| true).unwrap();
        let text = |told: &[u8], kind| {
            let bytes = attribute(&told[4..], kind).unwrap_or_default();
            String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
        };
        let ours = told
            .into_iter()
            .filter(|told| text(&told.payload, table) == TABLE);
        ours.map(|told| {
            let family = if told.payload[0] == Family::V6.number() {
                "6 "
            } else {
                ""
            };
            format!("{family}{}", text(&told.payload, chain))
        })
        .collect::<Vec<_>>()
    };
    let rules = list(7, 1, 2);
    let chains = list(4, 1, 3);
    let count = |chain: &String| rules.iter().filter(|of| *of == chain).count();
    chains
        .iter()
        .map(|chain| format!("{chain} {}", count(chain)))
        .collect()
}

fn port(host_port: u16) -> PortMapping {
    PortMapping {
        protocol: Protocol::Tcp,
        container_port: 80,
        host_port,
        host_ip: None,
    }
}

fn record(id: &str, last: u8, ports: Vec<PortMapping>) -> SandboxRecord {
    let assigned = |number| IpAddr::from([10, 213, 7, number]);
    SandboxRecord {
        id: id.to_owned(),
        config: SandboxConfig {
            pod: PodIdentity {
                namespace: "default".into(),
                name: id.into(),
                uid: "u".into(),
            },
            ports: ports.clone(),
            ..SandboxConfig::default()
        },
        created_ms: 0,
        network: Some(SandboxNetwork::Bridge(OnBridge {
            bridge: BRIDGE.to_owned(),
            veth: format!("kv{id}"),
            first: Assigned {
                address: assigned(last),
                gateway: assigned(1),
                prefix: 24,
            },
            second: None,
            has_ports: !ports.is_empty(),
        })),
        made: true,
        stopped: false,
        boot_id: BOOT.to_owned(),
    }
}

fn network(records: &[SandboxRecord]) -> Network {
    network_of(BRIDGE, &[PODS], records)
}

fn network_of(bridge: &str, pods: &[Cidr], records: &[SandboxRecord]) -> Network {
    let config = NetworkConfig {
        bridge: bridge.to_owned(),
        pod_cidrs: pods.to_vec(),
        cni: None,
    };
    Network::open(Some(&config), records, BOOT).unwrap()
}

/// Who is who in a story of packets, by one kind of addresses.
#[derive(Debug, Clone, Copy)]
struct Cast {
    pods: Cidr,
    gateway: IpAddr,
    pod: IpAddr,
    node: IpAddr,
    world: IpAddr,
    prefix: u8,
}

impl Cast {
    fn of(family: Family) -> Self {
        let address = |text: &str| text.parse().unwrap();
        match family {
            Family::V4 => Self {
                pods: PODS,
                gateway: address("10.213.7.1"),
                pod: address("10.213.7.2"),
                node: address("198.51.100.1"),
                world: address("198.51.100.2"),
                prefix: 24,
            },
            Family::V6 => Self {
                pods: PODS_OF_IPV6,
                gateway: address("fd00:213:7::1"),
                pod: address("fd00:213:7::2"),
                node: address("2001:db8::1"),
                world: address("2001:db8::2"),
                prefix: 64,
            },
        }
    }
}

/// A namespace whose `eth0` is on a bridge of this one.
fn island(bridge: &str, gateway: IpAddr, address: IpAddr, prefix: u8) -> File {
    let made = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        File::open("/proc/thread-self/ns/net").unwrap()
    });
    let namespace = made.join().unwrap();
    let mut links = Links::open().unwrap();
    links.add_bridge(bridge, mac_of(gateway)).unwrap();
    let index = links.index(bridge).unwrap().unwrap();
    links.set_up(index).unwrap();
    links.add_address(index, gateway, prefix).unwrap();
    let (near, far) = (
        format!("{bridge}-0"),
        End {
            name: "eth0",
            mac: mac_of(address),
        },
    );
    links
        .add_pair(&near, index, far, namespace.as_fd(), Some(1400))
        .unwrap();
    let near = links.index(&near).unwrap().unwrap();
    links.set_hairpin(near).unwrap();
    links.set_up(near).unwrap();
    within(&namespace, || {
        let mut links = Links::open().unwrap();
        let index = links.index("eth0").unwrap().unwrap();
        links.set_up(index).unwrap();
        links.add_address(index, address, prefix).unwrap();
        let again = links.add_address(index, address, prefix);
        assert!(again.is_err_and(|error| error.kind() == std::io::ErrorKind::AlreadyExists));
    });
    namespace
}

fn within<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let done = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        done.join().unwrap()
    })
}

/// Whom the listener sees when somebody connects from a namespace.
fn seen(from: &File, listener: &TcpListener, at: IpAddr, port: u16) -> IpAddr {
    let limit = Duration::from_secs(10);
    let call = within(from, || {
        TcpStream::connect_timeout(&(at, port).into(), limit).unwrap()
    });
    let (_, peer) = listener.accept().unwrap();
    drop(call);
    peer.ip()
}

/// Packets between a pod, the node and a world that knows no way to the pod.
fn packets_pass(family: Family, enforce: impl FnOnce(&Rules)) {
    let cast = Cast::of(family);
    let here = File::open("/proc/thread-self/ns/net").unwrap();
    let mut links = Links::open().unwrap();
    let loopback = links.index("lo").unwrap().unwrap();
    links.set_up(loopback).unwrap();
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
    let pod = island(BRIDGE, cast.gateway, cast.pod, cast.prefix);
    let world = island("kt-world", cast.node, cast.world, cast.prefix);
    within(&pod, || {
        Links::open().unwrap().add_default_route(cast.gateway).unwrap()
    });
    let web = record("web", 2, vec![port(8080)]);
    enforce(&rules(
        BRIDGE,
        cast.pods,
        &forwards("web", &web.config, &[cast.pod]),
    ));
    ports::open_loopback(BRIDGE).unwrap();

    let in_pod = within(&pod, || TcpListener::bind((cast.pod, 80)).unwrap());
    let in_world = within(&world, || TcpListener::bind((cast.world, 7001)).unwrap());
    assert_eq!(seen(&pod, &in_world, cast.world, 7001), cast.node);
    assert_eq!(seen(&world, &in_pod, cast.node, 8080), cast.world);
    assert_eq!(seen(&pod, &in_pod, cast.node, 8080), cast.gateway);
    let by_node = seen(&here, &in_pod, cast.node, 8080);
    assert!(by_node == cast.node || by_node == cast.gateway, "{by_node}");
    if family == Family::V4 {
        assert_eq!(
            seen(&here, &in_pod, Ipv4Addr::LOCALHOST.into(), 8080),
            cast.gateway
        );
    }
    for bridge in [BRIDGE, "kt-world"] {
        links.remove(bridge).unwrap();
        links.remove(bridge).unwrap();
        assert_eq!(links.index(bridge).unwrap(), None);
    }
}

#[test]
fn packets_pass_by_the_kernels_tables() {
    for family in Family::ALL {
        alone(move || {
            packets_pass(family, |rules| {
                Nft::open().unwrap().replace(std::slice::from_ref(rules)).unwrap()
            })
        });
    }
}

#[test]
fn packets_pass_by_the_program() {
    for family in Family::ALL {
        alone(move || match Iptables::find() {
            Some(iptables) => packets_pass(family, |rules| iptables.replace(rules).unwrap()),
            None => eprintln!("skipped: there is no iptables"),
        });
    }
}

fn some_rules() -> Rules {
    let forward = |host_port| Forward {
        sandbox: "a".into(),
        pod: "default/a".into(),
        to: Ipv4Addr::new(10, 213, 7, 2).into(),
        port: PortMapping {
            host_ip: Some(Ipv4Addr::LOCALHOST.into()),
            ..port(host_port)
        },
    };
    rules(BRIDGE, PODS, &(1..=300).map(forward).collect::<Vec<_>>())
}

#[test]
fn a_table_is_replaced_as_a_whole_and_removed() {
    alone(|| {
        let mut nft = Nft::open().unwrap();
        for wanted in [some_rules(), rules(BRIDGE, PODS, &[]), some_rules()] {
            nft.replace(std::slice::from_ref(&wanted)).unwrap();
            let counts: Vec<_> = wanted
                .chains
                .iter()
                .map(|(chain, list)| format!("{} {}", chain.name(), list.len()))
                .collect();
            assert_eq!(standing(), counts);
        }
        let before = nft.generation().unwrap();
        nft.remove(Family::V4, TABLE).unwrap();
        nft.remove(Family::V4, TABLE).unwrap();
        nft.remove(Family::V6, TABLE).unwrap();
        assert_eq!(standing(), Vec::<String>::new());
        assert_ne!(nft.generation().unwrap(), before);
    });
}

#[test]
fn who_drops_what_is_forwarded_is_found() {
    alone(|| {
        if Iptables::find().is_none() {
            eprintln!("skipped: there is no iptables");
            return;
        }
        let policy = |policy| {
            let arguments = ["--policy", "FORWARD", policy];
            let outcome =
                program::run("/usr/sbin/iptables", &arguments, b"", Duration::from_secs(30)).unwrap();
            assert!(outcome.status.success(), "{}", outcome.complaint());
            Nft::open().unwrap().forbids_forwarding().unwrap()
        };
        assert_eq!(policy("DROP"), Some("filter FORWARD".to_owned()));
        assert_eq!(policy("ACCEPT"), None);
    });
}

#[test]
fn rules_follow_the_records() {
    alone(|| {
        let stopped = SandboxRecord {
            stopped: true,
            ..record("stopped", 4, vec![port(3)])
        };
        let before_boot = SandboxRecord {
            boot_id: "the one before".to_owned(),
            ..record("old", 5, vec![port(4)])
        };
        let alive = record("alive", 2, vec![port(1), port(2), port(0)]);
        let records = [alive.clone(), record("plain", 3, vec![]), stopped, before_boot];
        let found = network(&records);
        found.reconcile();
        let as_recorded = ["ports 2", "prerouting 1", "output 1", "postrouting 3", "guard 1"];
        assert_eq!(standing(), as_recorded);
        // Addresses of all that are not removed stay taken.
        let next = found.plan("next", &SandboxConfig::default()).unwrap().unwrap();
        assert_eq!(next.addresses(), [IpAddr::from([10, 213, 7, 6])]);

        // Somebody flushed the tables: the next look puts them back.
        assert_eq!(found.trouble(), None);
        Nft::open().unwrap().remove(Family::V4, TABLE).unwrap();
        assert_eq!(found.trouble(), None);
        assert_eq!(standing(), as_recorded);

        found
            .down(&alive, Path::new("/none"), Path::new("/none"))
            .unwrap();
        found
            .down(&alive, Path::new("/none"), Path::new("/none"))
            .unwrap();
        assert_eq!(standing()[0], "ports 0");
        // Another runtime opens the directory when all sandboxes have vanished.
        network(&[]).reconcile();
        assert_eq!(standing(), Vec::<String>::new());
        found.purge().unwrap();
    });
}

#[test]
fn a_port_is_given_once() {
    alone(|| {
        let network = network(&[record("first", 2, vec![port(8080)])]);
        let wanting = |ports| SandboxConfig {
            ports,
            ..SandboxConfig::default()
        };
        let error = network.plan("second", &wanting(vec![port(8080)])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "open host port 8080/TCP: pod default/first has it"
        );
        network.plan("third", &wanting(vec![port(8081)])).unwrap();
        let error = network.plan("fourth", &wanting(vec![port(8081)])).unwrap_err();
        assert!(error.to_string().ends_with("has it"), "{error}");
        // What was refused took no address.
        let next = network.plan("fifth", &wanting(vec![])).unwrap().unwrap();
        assert_eq!(next.addresses(), [IpAddr::from([10, 213, 7, 4])]);
    });
}

#[test]
fn the_program_makes_the_same_rules() {
    alone(|| {
        let Some(iptables) = Iptables::find() else {
            eprintln!("skipped: there is no iptables");
            return;
        };
        let save = || {
            let outcome = program::run("/usr/sbin/iptables-save", &[], b"", Duration::from_secs(30)).unwrap();
            let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
            text.lines().filter(|line| line.starts_with("-A")).count()
        };
        let few = rules(BRIDGE, PODS, &[]);
        for (wanted, count) in [(some_rules(), 310), (few.clone(), 10), (few, 10)] {
            iptables.replace(&wanted).unwrap();
            assert_eq!(save(), count);
        }
        iptables.remove(Family::V4, TABLE).unwrap();
        iptables.remove(Family::V4, TABLE).unwrap();
        assert_eq!(save(), 0);
    });
}

#[test]
fn where_there_are_no_rules_it_is_said() {
    let mut filter = Filter::without("no way");
    assert_eq!(filter.enforce(&[some_rules()]), Err("no way".to_owned()));
    assert_eq!(filter.remove(Family::V4, TABLE), Ok(()));
    assert!(!filter.is_disturbed(TABLE));
}

/// A pod whose ports could not be opened has to go: its address and its ports would stay taken.
#[test]
fn what_was_never_opened_can_be_closed() {
    let network = network(&[]);
    network.state().filter = Filter::without("no way");
    let mut wanting = record("web", 2, vec![port(8080)]);
    wanting.network = network.plan("web", &wanting.config).unwrap();
    let nowhere = Path::new("/none");
    let error = network.up(&wanting, nowhere, nowhere).unwrap_err();
    assert_eq!(error.to_string(), "open the host ports of 10.213.7.2: no way");
    network.down(&wanting, nowhere, nowhere).unwrap();
    network.free(wanting.network.as_ref());
    network.plan("again", &wanting.config).unwrap();
}

/// Far more rules than a socket has room for by itself.
#[test]
fn a_node_may_have_thousands_of_ports() {
    alone(|| {
        let ports = (1..=5000).map(port).collect();
        let full = record("full", 2, ports);
        network(&[full]).reconcile();
        assert_eq!(standing()[0], "ports 5000");
    });
}

/// Each would see the other's change, put its own rules back, and be seen by the other.
#[test]
fn two_runtimes_on_one_machine_leave_each_other_alone() {
    alone(|| {
        let mut nft = Nft::open().unwrap();
        let one = network(&[record("one", 2, vec![port(1)])]);
        let other = network_of("kt-other", &[PODS_OF_IPV6], &[record("other", 3, vec![])]);
        one.reconcile();
        other.reconcile();
        let settled = nft.generation().unwrap();
        for _ in 0..3 {
            assert_eq!((one.trouble(), other.trouble()), (None, None));
        }
        assert_eq!(nft.generation().unwrap(), settled);
        nft.remove(Family::V6, "kedge-kt-other").unwrap();
        assert_eq!((one.trouble(), other.trouble()), (None, None));
        assert_eq!(nft.generation().unwrap(), settled + 2);
    });
}

#[test]
fn tables_follow_the_kinds_of_addresses() {
    alone(|| {
        let records = [record("old", 2, vec![port(1)])];
        let chains = |family: &str, ports: u32, of_loopback: &[&str]| {
            let leaving = 2 + of_loopback.len();
            let common = [
                format!("{family}ports {ports}"),
                format!("{family}prerouting 1"),
                format!("{family}output 1"),
                format!("{family}postrouting {leaving}"),
            ];
            let guard = of_loopback.iter().map(|name| format!("{family}{name} 1"));
            common.into_iter().chain(guard).collect::<Vec<_>>()
        };
        let (v4, v6) = (chains("", 1, &["guard"]), chains("6 ", 0, &[]));
        let both = [PODS, PODS_OF_IPV6];
        network_of(BRIDGE, &both, &records).reconcile();
        assert_eq!(standing(), [v4.clone(), v6.clone()].concat());
        network_of(BRIDGE, &[PODS], &records).reconcile();
        assert_eq!(standing(), v4);
        // A pod that is older than the change has no address of the other kind.
        let found = network_of(BRIDGE, &[PODS_OF_IPV6], &records);
        found.reconcile();
        assert_eq!(standing(), v6);
        let next = found
            .plan("next", &record("next", 0, vec![port(2)]).config)
            .unwrap();
        assert_eq!(
            next.unwrap().addresses(),
            [IpAddr::from([0xfd00, 0x213, 7, 0, 0, 0, 0, 2])]
        );
        found.purge().unwrap();
        assert_eq!(standing(), Vec::<String>::new());
    });
}

#[test]
fn records_of_before_there_was_ipv6_are_understood() {
    let old = r#"{"bridge":"b","veth":"v","address":"10.213.7.2","gateway":"10.213.7.1","prefix":24,"has_ports":true}"#;
    let read: SandboxNetwork = serde_json::from_str(old).unwrap();
    assert_eq!(read.addresses(), [IpAddr::from([10, 213, 7, 2])]);
    assert_eq!(serde_json::to_string(&read).unwrap(), old);
    let mut place = read.bridge().unwrap().clone();
    place.second = Some(Assigned {
        address: "fd00::2".parse().unwrap(),
        gateway: "fd00::1".parse().unwrap(),
        prefix: 64,
    });
    let both = SandboxNetwork::Bridge(place);
    let text = serde_json::to_string(&both).unwrap();
    assert_eq!(serde_json::from_str::<SandboxNetwork>(&text).unwrap(), both);
}

#[test]
fn a_kernel_without_ipv6_is_told_of() {
    let config = NetworkConfig {
        bridge: BRIDGE.to_owned(),
        pod_cidrs: vec![PODS, PODS_OF_IPV6],
        cni: None,
    };
    let mut network = network_of(BRIDGE, &config.pod_cidrs, &[]);
    network.bridge = Some(Bridge::of(&config, false));
    let why = "pods shall have addresses of fd00:213:7::/64, but IPv6 is off in this kernel; switch it on \
               (ipv6.disable=0 on the kernel's command line) or take the network out of podCIDR";
    let prefix = "NetworkReady=false reason:NetworkPluginNotReady message:";
    assert_eq!(network.trouble(), Some(format!("{prefix}{why}")));
    let error = network.plan("pod", &SandboxConfig::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("connect a pod to bridge {BRIDGE}: {why}")
    );
    let config = NetworkConfig {
        pod_cidrs: vec![PODS],
        ..config
    };
    assert_eq!(Bridge::of(&config, false).trouble, None);
}
