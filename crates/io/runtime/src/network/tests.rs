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
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

const BRIDGE: &str = "kt-bridge";
const TABLE: &str = "kedge-kt-bridge";
const PODS: Cidr = (Ipv4Addr::new(10, 213, 7, 0), 24);
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
        let question = Message::new(10 << 8 | kind, 0, &[2, 0, 0, 0]);
        let told = Socket::open(Peer::Netfilter).unwrap().list(question).unwrap();
        let text = |told: &[u8], kind| {
            let bytes = attribute(&told[4..], kind).unwrap_or_default();
            String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
        };
        let ours = told
            .into_iter()
            .filter(|told| text(&told.payload, table) == TABLE);
        ours.map(|told| text(&told.payload, chain)).collect::<Vec<_>>()
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
    let address = Ipv4Addr::new(10, 213, 7, last);
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
            address,
            gateway: Ipv4Addr::new(10, 213, 7, 1),
            prefix: 24,
            has_ports: !ports.is_empty(),
        })),
        made: true,
        stopped: false,
        boot_id: BOOT.to_owned(),
    }
}

fn network(records: &[SandboxRecord]) -> Network {
    let config = NetworkConfig {
        bridge: BRIDGE.to_owned(),
        pod_cidr: PODS,
        cni: None,
    };
    Network::open(Some(&config), records, BOOT).unwrap()
}

const NODE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const WORLD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

/// A namespace whose `eth0` is on a bridge of this one.
fn island(bridge: &str, gateway: Ipv4Addr, address: Ipv4Addr) -> File {
    let made = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        File::open("/proc/thread-self/ns/net").unwrap()
    });
    let namespace = made.join().unwrap();
    let mut links = Links::open().unwrap();
    links.add_bridge(bridge, mac_of(gateway)).unwrap();
    let index = links.index(bridge).unwrap().unwrap();
    links.add_address(index, gateway, 24).unwrap();
    links.set_up(index).unwrap();
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
        links.add_address(index, address, 24).unwrap();
        links.set_up(index).unwrap();
        assert!(
            links
                .add_address(index, address, 24)
                .is_err_and(|error| error.kind() == std::io::ErrorKind::AlreadyExists)
        );
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
fn seen(from: &File, listener: &TcpListener, at: Ipv4Addr, port: u16) -> IpAddr {
    let limit = Duration::from_secs(10);
    let call = within(from, || {
        TcpStream::connect_timeout(&(at, port).into(), limit).unwrap()
    });
    let (_, peer) = listener.accept().unwrap();
    drop(call);
    peer.ip()
}

/// Packets between a pod, the node and a world that knows no way to the pod.
fn packets_pass(enforce: impl FnOnce(&Rules)) {
    let node = File::open("/proc/thread-self/ns/net").unwrap();
    let mut links = Links::open().unwrap();
    let loopback = links.index("lo").unwrap().unwrap();
    links.set_up(loopback).unwrap();
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    let (gateway, address) = (Ipv4Addr::new(10, 213, 7, 1), Ipv4Addr::new(10, 213, 7, 2));
    let pod = island(BRIDGE, gateway, address);
    let world = island("kt-world", NODE, WORLD);
    within(&pod, || {
        Links::open().unwrap().add_default_route(gateway).unwrap()
    });
    let web = record("web", 2, vec![port(8080)]);
    enforce(&rules(BRIDGE, PODS, &forwards("web", &web.config, address)));
    ports::open_loopback(BRIDGE).unwrap();

    let in_pod = within(&pod, || TcpListener::bind((address, 80)).unwrap());
    let in_world = within(&world, || TcpListener::bind((WORLD, 7001)).unwrap());
    assert_eq!(seen(&pod, &in_world, WORLD, 7001), NODE);
    assert_eq!(seen(&world, &in_pod, NODE, 8080), WORLD);
    assert_eq!(seen(&node, &in_pod, Ipv4Addr::LOCALHOST, 8080), gateway);
    assert_eq!(seen(&pod, &in_pod, NODE, 8080), gateway);
    for bridge in [BRIDGE, "kt-world"] {
        links.remove(bridge).unwrap();
        links.remove(bridge).unwrap();
        assert_eq!(links.index(bridge).unwrap(), None);
    }
}

#[test]
fn packets_pass_by_the_kernels_tables() {
    alone(|| packets_pass(|rules| Nft::open().unwrap().replace(rules).unwrap()));
}

#[test]
fn packets_pass_by_the_program() {
    alone(|| match Iptables::find() {
        Some(iptables) => packets_pass(|rules| iptables.replace(rules).unwrap()),
        None => eprintln!("skipped: there is no iptables"),
    });
}

fn some_rules() -> Rules {
    let forward = |host_port| Forward {
        sandbox: "a".into(),
        pod: "default/a".into(),
        to: Ipv4Addr::new(10, 213, 7, 2),
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
            nft.replace(&wanted).unwrap();
            let counts: Vec<_> = wanted
                .chains
                .iter()
                .map(|(chain, list)| format!("{} {}", chain.name(), list.len()))
                .collect();
            assert_eq!(standing(), counts);
        }
        let before = nft.generation().unwrap();
        nft.remove(TABLE).unwrap();
        nft.remove(TABLE).unwrap();
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
        let as_recorded = ["ports 2", "guard 1", "prerouting 1", "output 1", "postrouting 3"];
        assert_eq!(standing(), as_recorded);
        // Addresses of all that are not removed stay taken.
        let next = found.plan("next", &SandboxConfig::default()).unwrap().unwrap();
        assert_eq!(next.addresses(), [IpAddr::from([10, 213, 7, 6])]);

        // Somebody flushed the tables: the next look puts them back.
        assert_eq!(found.trouble(), None);
        Nft::open().unwrap().remove(TABLE).unwrap();
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
        iptables.remove(&some_rules()).unwrap();
        iptables.remove(&some_rules()).unwrap();
        assert_eq!(save(), 0);
    });
}

#[test]
fn where_there_are_no_rules_it_is_said() {
    let mut filter = Filter::without("no way");
    assert_eq!(filter.enforce(&some_rules()), Err("no way".to_owned()));
    assert_eq!(filter.remove(&some_rules()), Ok(()));
    assert!(!filter.is_disturbed());
}
