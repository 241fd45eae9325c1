//! The pods' network as packets see it: sockets are opened where a pod, the node or the outside world would open them.
//! Needs root; each story has a machine of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod node;

use kedge_containers::{PortMapping, Protocol, SandboxConfig, SandboxId};
use kedge_runtime::embedded::{CniDirectories, Config, Embedded};
use kedge_runtime::{Error, Runtime};
use nix::sched::{CloneFlags, setns};
use node::{Node, island, pretend_reboot, sentence};
use rustix::net::{
    AddressFamily, RawProtocol, RecvFlags, SendFlags, SocketType, ipproto, netlink, recv, send, sendto,
    socket, sockopt,
};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// All of a story; a machine of a CI is slow.
const STORY_MAX: Duration = Duration::from_secs(120);
/// Packets on one machine need no time; only what is lost takes this long.
const PACKET_MAX: Duration = Duration::from_secs(10);
/// How long is waited for what must not come.
const SILENCE: Duration = Duration::from_millis(700);

const NODE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const WORLD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const NODE_OF_IPV6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const WORLD_OF_IPV6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
const EVERYWHERE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;
const BOTH_EVERYWHERE: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
const PLUGINS: &str = "/usr/lib/cni";

#[test]
fn the_bridge_carries_what_pods_say() {
    island::run("the_bridge", STORY_MAX);
}

#[test]
fn ports_of_the_node_lead_to_pods() {
    island::run("ports", STORY_MAX);
}

#[test]
fn pods_have_addresses_of_both_kinds() {
    island::run("both_kinds", STORY_MAX);
}

#[test]
fn pods_have_addresses_of_ipv6_alone() {
    island::run("ipv6_alone", STORY_MAX);
}

#[test]
fn a_pod_is_nobodys_router() {
    island::run("false_router", STORY_MAX);
}

#[test]
fn what_is_remembered_of_a_port_ends_with_its_pod() {
    island::run("successors", STORY_MAX);
}

#[test]
fn plugins_connect_pods() {
    island::run("plugins", STORY_MAX);
}

#[test]
fn trouble_with_plugins_is_told() {
    island::run("plugins_in_trouble", STORY_MAX);
}

/// A namespace.
#[derive(Debug, Clone)]
struct Place(PathBuf);

impl Place {
    fn node() -> Self {
        Self("/proc/self/ns/net".into())
    }

    fn world() -> Self {
        Self("/run/netns/world".into())
    }

    fn pod(node: &Node, id: &SandboxId) -> Self {
        Self(node.directory.join("runtime/sandboxes").join(&id.0).join("net"))
    }

    /// Does something in it, on a thread that ends there.
    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(&self.0).unwrap();
        std::thread::scope(|scope| {
            let done = scope.spawn(|| {
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            done.join().unwrap()
        })
    }

    fn listen(&self, address: impl Into<IpAddr>, port: u16) -> TcpListener {
        let address = address.into();
        self.within(|| TcpListener::bind((address, port)).unwrap())
    }

    fn datagrams(&self, address: impl Into<IpAddr>, port: u16) -> UdpSocket {
        let address = address.into();
        let socket = self.within(|| UdpSocket::bind((address, port)).unwrap());
        socket.set_read_timeout(Some(PACKET_MAX)).unwrap();
        socket
    }

    /// Connects, speaks both ways, and gives back as whom the listener saw it.
    fn calls(&self, listener: &TcpListener, at: impl Into<IpAddr>, port: u16) -> IpAddr {
        let (mut call, mut answer) = self.connects(listener, at, port);
        let peer = answer.peer_addr().unwrap();
        let mut heard = [0; 4];
        call.write_all(b"ping").unwrap();
        answer.read_exact(&mut heard).unwrap();
        answer.write_all(b"pong").unwrap();
        call.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"pong");
        peer.ip().to_canonical()
    }

    /// Both ends of a connection.
    fn connects(&self, listener: &TcpListener, at: impl Into<IpAddr>, port: u16) -> (TcpStream, TcpStream) {
        let at = SocketAddr::new(at.into(), port);
        let call = self.within(|| TcpStream::connect_timeout(&at, PACKET_MAX).unwrap());
        let (answer, _) = listener.accept().unwrap();
        for stream in [&call, &answer] {
            stream.set_read_timeout(Some(PACKET_MAX)).unwrap();
        }
        (call, answer)
    }

    fn is_refused(&self, at: impl Into<IpAddr>, port: u16) -> bool {
        let at = at.into();
        self.within(|| TcpStream::connect_timeout(&(at, port).into(), SILENCE).is_err())
    }
}

/// Sends a datagram and its answer back; gives back as whom the pod saw the sender.
fn ask(client: &UdpSocket, server: &UdpSocket, at: impl Into<IpAddr>, port: u16) -> IpAddr {
    let at = at.into();
    let mut heard = [0; 16];
    client.send_to(b"ping", (at, port)).unwrap();
    let (_, peer) = server.recv_from(&mut heard).unwrap();
    server.send_to(b"pong", peer).unwrap();
    let (read, from) = client.recv_from(&mut heard).unwrap();
    assert_eq!(
        (&heard[..read], from),
        (&b"pong"[..], SocketAddr::from((at, port)))
    );
    peer.ip().to_canonical()
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A second namespace that is the world beyond the node. It knows no way to the pods.
fn make_world(node: &Node) {
    island::settle(node);
    for order in [
        "link set lo up",
        "netns add world",
        "link add up0 type veth peer name eth0 netns world",
        "address add 198.51.100.1/24 dev up0",
        "link set up0 up",
        "-n world address add 198.51.100.2/24 dev eth0",
        "-n world link set lo up",
        "-n world link set eth0 up",
        "address add 2001:db8::1/64 dev up0 nodad",
        "-n world address add 2001:db8::2/64 dev eth0 nodad",
    ] {
        ip(order);
    }
}

/// Interfaces, addresses, routes and tables of rules on the node. Whether a line is up changes by itself.
fn census() -> Vec<String> {
    let lines = |list: &str| ip(list).lines().map(str::to_owned).collect::<Vec<_>>();
    let mut found: Vec<String> = lines("-o link")
        .iter()
        .map(|line| line.split(": ").take(2).collect::<Vec<_>>().join(" "))
        .collect();
    found.extend(lines("-o -4 address"));
    found.extend(lines("-o -6 address show scope global"));
    let routes = [
        lines("-4 route show table all"),
        lines("-6 route show table main"),
    ]
    .concat();
    found.extend(routes.iter().map(|route| route.replace(" linkdown", "")));
    found.extend(tables());
    found
}

/// The names of the kernel's tables of rules: a listing over netlink, because a bare machine has no program for it.
fn tables() -> Vec<String> {
    let socket = socket(AddressFamily::NETLINK, SocketType::RAW, Some(netlink::NETFILTER)).unwrap();
    // Length, kind (nf_tables: get table), flags (request, listing), sequence, port; then the family: any.
    let mut question = 20_u32.to_ne_bytes().to_vec();
    question.extend(0x0a01_u16.to_ne_bytes());
    question.extend(0x0301_u16.to_ne_bytes());
    question.extend([0; 12]);
    send(&socket, &question, SendFlags::empty()).unwrap();
    let mut answer = vec![0; 64 * 1024];
    let (read, _) = recv(&socket, &mut answer, RecvFlags::empty()).unwrap();
    let text = String::from_utf8_lossy(&answer[..read]).into_owned();
    let words = text.split(|c: char| !c.is_ascii_graphic());
    words
        .filter(|word| word.len() > 2)
        .map(|word| format!("table {word}"))
        .collect()
}

fn with_ports(config: SandboxConfig, ports: &[(Protocol, u16, Option<Ipv4Addr>)]) -> SandboxConfig {
    let mapping = |(protocol, host_port, address): &(Protocol, u16, Option<Ipv4Addr>)| PortMapping {
        protocol: *protocol,
        container_port: 80,
        host_port: *host_port,
        host_ip: address.map(IpAddr::from),
    };
    SandboxConfig {
        ports: ports.iter().map(mapping).collect(),
        ..config
    }
}

async fn pod(node: &Node, runtime: &Embedded, config: &SandboxConfig) -> (SandboxId, Place, Ipv4Addr) {
    let id = runtime.run_sandbox(config).await.unwrap();
    let listed = runtime.list().await.unwrap();
    let sandbox = listed.iter().find(|sandbox| sandbox.id == id).unwrap();
    assert!(sandbox.ready, "{sandbox:?}");
    let address = sandbox.ips[0].parse().unwrap();
    let place = Place::pod(node, &id);
    (id, place, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a story on an island"]
async fn the_bridge() {
    let Some(node) = island::node() else { return };
    make_world(&node);
    let before = census();
    let runtime = node.runtime().await;
    assert_eq!(runtime.status().await.unwrap().network_trouble, None);
    let (first, a, a_address) = pod(&node, &runtime, &node.sandbox("a")).await;
    let (_, b, b_address) = pod(&node, &runtime, &node.sandbox("b")).await;
    let gateway = gateway_of(&node);

    // Pods and the node reach each other under their own addresses.
    let in_a = a.listen(EVERYWHERE, 80);
    assert_eq!(b.calls(&in_a, a_address, 80), b_address);
    assert_eq!(a.calls(&in_a, LOOPBACK, 80), LOOPBACK);
    assert_eq!(Place::node().calls(&in_a, a_address, 80), gateway);
    let on_node = Place::node().listen(EVERYWHERE, 7000);
    assert_eq!(b.calls(&on_node, gateway, 7000), b_address);
    assert_eq!(b.calls(&on_node, NODE, 7000), b_address);

    // The world sees the node.
    let in_world = Place::world().listen(WORLD, 7001);
    assert_eq!(b.calls(&in_world, WORLD, 7001), NODE);
    let datagrams = Place::world().datagrams(WORLD, 7002);
    assert_eq!(ask(&b.datagrams(EVERYWHERE, 0), &datagrams, WORLD, 7002), NODE);

    // A pod that took its own loopback away does not reach the node's.
    let private = Place::node().listen(LOOPBACK, 7003);
    b.within(|| {
        ip("address del 127.0.0.1/8 dev lo");
        std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").unwrap();
        ip(&format!("route add 127.0.0.1/32 via {gateway} dev eth0"));
    });
    let open = with_ports(node.sandbox("c"), &[(Protocol::Tcp, 7004, None)]);
    pod(&node, &runtime, &open).await;
    assert!(b.is_refused(LOOPBACK, 7003));
    drop(private);

    // A runtime that is started again gives nobody an address that is taken.
    drop(runtime);
    let runtime = node.runtime().await;
    let (_, d, d_address) = pod(&node, &runtime, &node.sandbox("d")).await;
    assert!(![a_address, b_address].contains(&d_address));
    assert_eq!(d.calls(&in_a, a_address, 80), d_address);
    runtime.remove_sandbox(&first).await.unwrap();
    assert!(d.is_refused(a_address, 80));
    runtime.purge().await.unwrap();
    assert_eq!(census(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a story on an island"]
async fn ports() {
    let Some(node) = island::node() else { return };
    make_world(&node);
    let before = census();
    let runtime = node.runtime().await;
    // Somebody asks for datagrams before anybody answers.
    let asker = Place::world().datagrams(WORLD, 5000);
    asker.send_to(b"early", (NODE, 5353)).unwrap();

    let wanted = [
        (Protocol::Tcp, 8080, None),
        (Protocol::Udp, 5353, None),
        (Protocol::Tcp, 8081, Some(LOOPBACK)),
        (Protocol::Sctp, 9899, None),
    ];
    let config = with_ports(node.sandbox("web"), &wanted);
    let (web, place, _) = pod(&node, &runtime, &config).await;
    let (_, other, other_address) = pod(&node, &runtime, &node.sandbox("other")).await;
    let listener = place.listen(EVERYWHERE, 80);
    // Who calls from outside is seen as who he is; for all others the node stands in.
    assert_eq!(Place::world().calls(&listener, NODE, 8080), WORLD);
    let node_place = Place::node();
    for (from, at, port) in [
        (&node_place, LOOPBACK, 8080),
        (&node_place, NODE, 8080),
        (&node_place, LOOPBACK, 8081),
        (&other, NODE, 8080),
        (&place, NODE, 8080),
    ] {
        let seen = from.calls(&listener, at, port);
        assert!(
            seen != IpAddr::from(other_address) && !seen.is_loopback(),
            "{from:?} {at}:{port} as {seen}"
        );
    }
    assert!(
        Place::world().is_refused(NODE, 8081),
        "it is open on the loopback only"
    );
    let datagrams = place.datagrams(EVERYWHERE, 80);
    assert_eq!(ask(&asker, &datagrams, NODE, 5353), WORLD);
    ask(&node_place.datagrams(EVERYWHERE, 0), &datagrams, LOOPBACK, 5353);
    ask(&other.datagrams(EVERYWHERE, 0), &datagrams, NODE, 5353);

    let busy = node_place.listen(EVERYWHERE, 7000);
    for (port, why) in [
        (8080, "pod default/web has it"),
        (7000, "a program of the node listens on it"),
    ] {
        let config = with_ports(node.sandbox("late"), &[(Protocol::Tcp, port, None)]);
        let error = runtime.run_sandbox(&config).await.unwrap_err();
        assert_eq!(error.to_string(), format!("open host port {port}/TCP: {why}"));
    }
    drop(busy);

    // Ports outlive the runtime, and a pod that has gone: its successor gets what is sent to the port from then on.
    drop(runtime);
    let runtime = node.runtime().await;
    assert_eq!(Place::world().calls(&listener, NODE, 8080), WORLD);
    runtime.stop_sandbox(&web).await.unwrap();
    assert!(Place::world().is_refused(NODE, 8080) && node_place.is_refused(LOOPBACK, 8080));
    let (_, place, _) = pod(&node, &runtime, &config).await;
    let datagrams = place.datagrams(EVERYWHERE, 80);
    assert_eq!(ask(&asker, &datagrams, NODE, 5353), WORLD);
    runtime.purge().await.unwrap();
    assert_eq!(census(), before);
}

/// The bridge's own address.
fn gateway_of(node: &Node) -> Ipv4Addr {
    match node.config().network.unwrap().pod_cidrs[0].0 {
        IpAddr::V4(network) => Ipv4Addr::from(u32::from(network) + 1),
        IpAddr::V6(network) => panic!("{network}"),
    }
}

const IPV6_OF_PODS: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfd00, 0x213, 9, 0, 0, 0, 0, 0), 64);

/// A node whose pods have an IPv6 network too, or no other.
fn with_ipv6(node: &Node, alone: bool) -> Config {
    let mut config = node.config();
    let cidrs = &mut config.network.as_mut().unwrap().pod_cidrs;
    if alone {
        cidrs.clear();
    }
    cidrs.push((IPV6_OF_PODS.0.into(), IPV6_OF_PODS.1));
    config
}

/// The addresses of a pod, as they are reported.
async fn addresses(runtime: &Embedded, id: &SandboxId) -> Vec<IpAddr> {
    let listed = runtime.list().await.unwrap();
    let sandbox = listed.iter().find(|sandbox| sandbox.id == *id).unwrap();
    sandbox
        .ips
        .iter()
        .map(|address| address.parse().unwrap())
        .collect()
}

/// A setting of IPv6 in a namespace.
fn setting(place: &Place, interface: &str, name: &str) -> String {
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/{name}");
    place.within(|| std::fs::read_to_string(path).unwrap().trim().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a story on an island"]
async fn both_kinds() {
    let Some(node) = island::node() else { return };
    make_world(&node);
    let before = census();
    let runtime = Embedded::open(with_ipv6(&node, false)).await.unwrap();
    assert_eq!(runtime.status().await.unwrap().network_trouble, None);
    let ports = [
        (Protocol::Tcp, 8080, None),
        (Protocol::Udp, 5353, None),
        (Protocol::Tcp, 8081, Some(NODE)),
    ];
    let config = with_ports(node.sandbox("web"), &ports);
    let (web, a, _) = pod(&node, &runtime, &config).await;
    let (other, b, _) = pod(&node, &runtime, &node.sandbox("other")).await;
    let (a_addresses, b_addresses) = (addresses(&runtime, &web).await, addresses(&runtime, &other).await);
    let numbered = |number: u16| {
        let v4 = u32::from(gateway_of(&node)) - 1 + u32::from(number);
        let v6 = u128::from(IPV6_OF_PODS.0) + u128::from(number);
        [IpAddr::from(Ipv4Addr::from(v4)), IpAddr::from(Ipv6Addr::from(v6))]
    };
    assert_eq!(
        (&a_addresses[..], &b_addresses[..]),
        (&numbered(2)[..], &numbered(3)[..])
    );
    let hosts = std::fs::read_to_string(a.0.with_file_name("hosts")).unwrap();
    let lines = a_addresses.iter().map(|address| format!("{address}\tweb\n"));
    assert!(hosts.contains(&lines.collect::<String>()), "{hosts}");

    // Each address is there at once, and whoever is called sees the one of its kind.
    let listener = a.listen(BOTH_EVERYWHERE, 80);
    let in_world = Place::world().listen(BOTH_EVERYWHERE, 7001);
    let gateways = numbered(1);
    for (index, (nodes, worlds)) in [
        (IpAddr::from(NODE), IpAddr::from(WORLD)),
        (NODE_OF_IPV6.into(), WORLD_OF_IPV6.into()),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(b.calls(&listener, a_addresses[index], 80), b_addresses[index]);
        assert_eq!(
            Place::node().calls(&listener, a_addresses[index], 80),
            gateways[index]
        );
        assert_eq!(b.calls(&in_world, worlds, 7001), nodes);
        assert_eq!(Place::world().calls(&listener, nodes, 8080), worlds);
        assert_eq!(b.calls(&listener, nodes, 8080), gateways[index]);
        assert_eq!(
            a.calls(&listener, nodes, 8080),
            gateways[index],
            "a pod meets itself"
        );
        Place::node().calls(&listener, nodes, 8080);
        let datagrams = a.datagrams(a_addresses[index], 80);
        assert_eq!(
            ask(&Place::world().datagrams(worlds, 0), &datagrams, nodes, 5353),
            worlds
        );
    }
    Place::node().calls(&listener, LOOPBACK, 8080);
    assert_eq!(Place::world().calls(&listener, NODE, 8081), IpAddr::from(WORLD));
    assert!(
        Place::world().is_refused(NODE_OF_IPV6, 8081),
        "it is open on an address of the other kind"
    );

    // A runtime that is started again, for IPv4 alone, leaves what is there, and gives what is free.
    drop(runtime);
    let runtime = node.runtime().await;
    assert_eq!(addresses(&runtime, &web).await, a_addresses);
    let (late, ..) = pod(&node, &runtime, &node.sandbox("late")).await;
    assert_eq!(addresses(&runtime, &late).await, numbered(4)[..1]);
    drop(runtime);
    let runtime = Embedded::open(with_ipv6(&node, false)).await.unwrap();
    assert_eq!(
        Place::world().calls(&listener, NODE_OF_IPV6, 8080),
        IpAddr::from(WORLD_OF_IPV6)
    );
    runtime.stop_sandbox(&web).await.unwrap();
    assert!(Place::world().is_refused(NODE_OF_IPV6, 8080));
    runtime.purge().await.unwrap();
    assert_eq!(census(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a story on an island"]
async fn ipv6_alone() {
    let Some(node) = island::node() else { return };
    make_world(&node);
    let before = census();
    let runtime = Embedded::open(with_ipv6(&node, true)).await.unwrap();
    let config = with_ports(node.sandbox("web"), &[(Protocol::Tcp, 8080, None)]);
    let id = runtime.run_sandbox(&config).await.unwrap();
    let place = Place::pod(&node, &id);
    let address = Ipv6Addr::from(u128::from(IPV6_OF_PODS.0) + 2);
    assert_eq!(addresses(&runtime, &id).await, [IpAddr::from(address)]);
    assert_eq!(place.within(|| ip("-4 address show eth0")), "");
    let listener = place.listen(BOTH_EVERYWHERE, 80);
    assert_eq!(
        Place::world().calls(&listener, NODE_OF_IPV6, 8080),
        IpAddr::from(WORLD_OF_IPV6)
    );
    let in_world = Place::world().listen(WORLD_OF_IPV6, 7001);
    assert_eq!(
        place.calls(&in_world, WORLD_OF_IPV6, 7001),
        IpAddr::from(NODE_OF_IPV6)
    );
    assert!(Place::world().is_refused(NODE, 8080));
    for (host, why) in [
        (
            IpAddr::from(NODE),
            "198.51.100.1:8088/TCP: the built-in network speaks IPv6 only; give podCIDR a network of the other kind, or use a CNI plug-in",
        ),
        (
            Ipv6Addr::LOCALHOST.into(),
            "[::1]:8088/TCP: the kernel lets nothing from ::1 leave the node; use 127.0.0.1",
        ),
    ] {
        let mut config = with_ports(node.sandbox("late"), &[(Protocol::Tcp, 8088, None)]);
        config.ports[0].host_ip = Some(host);
        let error = runtime.run_sandbox(&config).await.unwrap_err();
        assert_eq!(error.to_string(), format!("open host port {why}"));
    }
    runtime.purge().await.unwrap();
    assert_eq!(census(), before);
}

/// Advertises itself as the router of everybody on the line.
fn advertise(from: &Place) {
    let line = from.within(|| {
        let links = ip("-o link show eth0");
        links.split(':').next().unwrap().parse().unwrap()
    });
    // Kind, code, room for the checksum, hops, flags, 1800 seconds of lifetime, two times that are left open.
    let mut message = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    // A network that everybody on the line gets an address in: its length, on-link and for addresses, two lifetimes.
    message.extend([3, 4, 64, 0xc0, 0, 0, 14, 16, 0, 0, 14, 16, 0, 0, 0, 0]);
    message.extend(Ipv6Addr::new(0x2001, 0xdb8, 0xbad, 0, 0, 0, 0, 0).octets());
    from.within(|| {
        let socket = socket(AddressFamily::INET6, SocketType::RAW, Some(ipproto::ICMPV6)).unwrap();
        sockopt::set_ipv6_multicast_hops(&socket, 255).unwrap();
        let everybody = SocketAddrV6::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), 0, 0, line);
        // Its address of the line is its own a second after the line is up; until then it is mute.
        let _ = sendto(&socket, &message, SendFlags::empty(), &everybody);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a story on an island"]
async fn false_router() {
    let Some(node) = island::node() else { return };
    make_world(&node);
    for alone in [None, Some(true)] {
        let config = alone.map_or_else(|| node.config(), |alone| with_ipv6(&node, alone));
        let runtime = Embedded::open(config).await.unwrap();
        let mut places = Vec::new();
        for name in ["liar", "credulous", "careful"] {
            let id = runtime.run_sandbox(&node.sandbox(name)).await.unwrap();
            places.push(Place::pod(&node, &id));
        }
        let [liar, credulous, careful] = &places[..] else {
            panic!()
        };
        assert_eq!(setting(&Place::node(), &node.bridge(), "accept_ra"), "0");
        assert_eq!(setting(careful, "eth0", "accept_ra"), "0");
        credulous.within(|| {
            std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_ra", "1").unwrap();
        });
        // Who believes it has a way out by the liar: so the others had the chance.
        let ways = |place: &Place| place.within(|| ip("-6 route show default proto ra"));
        let began = Instant::now();
        while ways(credulous).is_empty() {
            assert!(began.elapsed() < PACKET_MAX, "nobody hears the liar");
            advertise(liar);
            std::thread::park_timeout(Duration::from_millis(20));
        }
        assert_eq!(
            (ways(careful), ways(&Place::node())),
            (String::new(), String::new())
        );
        assert!(!ip("-6 address").contains("2001:db8:bad:"));
        assert!(!careful.within(|| ip("-6 address")).contains("2001:db8:bad:"));
        runtime.purge().await.unwrap();
    }
    // The node forwards now, and goes on listening to the routers of its own lines.
    assert_eq!(setting(&Place::node(), "all", "forwarding"), "1");
    assert_eq!(setting(&Place::node(), "up0", "accept_ra"), "2");
}

/// The checksum of SCTP: CRC-32C, the bits the other way round.
fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32| {
        if crc & 1 == 1 {
            crc >> 1 ^ 0x82f6_3b78
        } else {
            crc >> 1
        }
    };
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| bit(crc))
    })
}

/// The first packet of an association.
fn initiation(from: u16, to: u16) -> Vec<u8> {
    let mut packet = [from.to_be_bytes(), to.to_be_bytes()].concat();
    // A tag and a checksum of nothing; then kind, flags and length of the chunk.
    packet.extend([0; 8]);
    packet.extend([1, 0, 0, 20]);
    // The own tag, how much may be sent, two numbers of streams, the first number.
    packet.extend([0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let checksum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&checksum);
    packet
}

/// The kernel need not speak SCTP for that.
fn raw_sctp(place: &Place) -> OwnedFd {
    let protocol = RawProtocol::new(132).unwrap();
    let socket = place.within(|| {
        socket(
            AddressFamily::INET,
            SocketType::RAW,
            Some(rustix::net::Protocol::from_raw(protocol)),
        )
        .unwrap()
    });
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PACKET_MAX)).unwrap();
    socket
}

/// Sends the first packet of an association, and gives back its ports as they are where it arrives.
fn initiate(from: &OwnedFd, at: Ipv4Addr, port: u16, arrives: &OwnedFd) -> (u16, u16) {
    sendto(
        from,
        &initiation(6000, port),
        SendFlags::empty(),
        &SocketAddr::from((at, 0)),
    )
    .unwrap();
    let mut packet = [0; 256];
    let (read, _) = recv(arrives, &mut packet[..], RecvFlags::empty()).unwrap();
    let header = usize::from(packet[0] & 0xf) * 4;
    let mut sctp = packet[header..read].to_vec();
    let checksum = u32::from_le_bytes(sctp[8..12].try_into().unwrap());
    sctp[8..12].fill(0);
    assert_eq!(checksum, crc32c(&sctp), "the checksum fits the changed port");
    let port = |at: usize| u16::from_be_bytes([sctp[at], sctp[at + 1]]);
    (port(0), port(2))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a story on an island"]
async fn successors() {
    let Some(node) = island::node() else { return };
    make_world(&node);
    let runtime = node.runtime().await;
    let wanted = [(Protocol::Tcp, 8080, None), (Protocol::Sctp, 9899, None)];
    let config = with_ports(node.sandbox("web"), &wanted);
    let (first, place, _) = pod(&node, &runtime, &config).await;
    let listener = place.listen(EVERYWHERE, 80);
    let (mut call, answer) = Place::world().connects(&listener, NODE, 8080);
    let caller = raw_sctp(&Place::world());
    assert_eq!(initiate(&caller, NODE, 9899, &raw_sctp(&place)), (6000, 80));

    // The pod vanishes with everything that could say that it is over.
    runtime.stop_sandbox(&first).await.unwrap();
    call.write_all(b"still there?").unwrap();
    let over = call.read(&mut [0; 4]).unwrap_err();
    assert_eq!(over.kind(), ErrorKind::ConnectionReset, "the node says it");
    drop((answer, listener));
    let (_, place, _) = pod(&node, &runtime, &config).await;
    assert_eq!(
        initiate(&caller, NODE, 9899, &raw_sctp(&place)),
        (6000, 80),
        "from the same port"
    );
    runtime.purge().await.unwrap();
}

/// A configuration directory with the chain that most nodes have, and nothing of it outside the node's directory.
fn configure(node: &Node, chain: &str) -> Config {
    let directory = node.directory.join("cni");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("10-test.conflist"), chain).unwrap();
    let mut config = node.config();
    if let Some(network) = &mut config.network {
        network.cni = Some(CniDirectories {
            configurations: directory,
            programs: vec!["/no/such/directory".into(), PLUGINS.into()],
        });
    }
    config
}

fn chain(node: &Node, subnet: &str) -> String {
    let versions = r#""cniVersion": "0.4.0", "cniVersions": ["0.4.0", "1.0.0", "1.1.0"]"#;
    format!(
        r#"{{{versions}, "name": "test", "plugins": [
            {{"type": "bridge", "bridge": "cni-test", "isGateway": true, "ipMasq": true, "hairpinMode": true,
              "ipam": {{"type": "host-local", "dataDir": "{}", "ranges": [[{{"subnet": "{subnet}"}}]],
                        "routes": [{{"dst": "0.0.0.0/0"}}]}}}},
            {{"type": "portmap", "capabilities": {{"portMappings": true}}}}]}}"#,
        node.directory.join("given").display(),
    )
}

/// The addresses that the plug-in of addresses has given out.
fn given(node: &Node) -> Vec<String> {
    let names = std::fs::read_dir(node.directory.join("given/test"))
        .into_iter()
        .flatten()
        .flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.parse::<Ipv4Addr>().is_ok()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a story on an island"]
async fn plugins() {
    let Some(node) = island::node() else { return };
    make_world(&node);
    let has_ports = Path::new("/usr/sbin/iptables").exists();
    let setup = configure(&node, &chain(&node, "10.98.0.0/24"));
    let runtime = Embedded::open(setup.clone()).await.unwrap();
    assert_eq!(runtime.status().await.unwrap().network_trouble, None);
    let ports = [(Protocol::Tcp, 8080, None)];
    let config = with_ports(node.sandbox("web"), if has_ports { &ports } else { &[] });
    let (web, place, address) = pod(&node, &runtime, &config).await;
    assert_eq!(given(&node), [address.to_string()]);
    let directory = node.directory.join("runtime/sandboxes").join(&web.0);
    let hosts = std::fs::read_to_string(directory.join("hosts")).unwrap();
    assert!(hosts.contains(&format!("{address}\tweb")), "{hosts}");
    // The newest version that the configuration and the plug-ins have in common.
    let kept = std::fs::read_to_string(directory.join("cni.json")).unwrap();
    assert!(
        kept.contains(r#""version":"1.0.0""#) && kept.contains("K8S_POD_NAME=web"),
        "{kept}"
    );

    let listener = place.listen(EVERYWHERE, 80);
    assert_eq!(place.calls(&listener, LOOPBACK, 80), LOOPBACK);
    Place::node().calls(&listener, address, 80);
    if has_ports {
        let in_world = Place::world().listen(WORLD, 7001);
        assert_eq!(place.calls(&in_world, WORLD, 7001), NODE);
        assert_eq!(Place::world().calls(&listener, NODE, 8080), WORLD);
    }
    // The configuration goes; what it made is still taken down, by a runtime that was started again. Pods that come
    // then are on the bridge.
    drop(runtime);
    std::fs::remove_file(node.directory.join("cni/10-test.conflist")).unwrap();
    let runtime = Embedded::open(setup.clone()).await.unwrap();
    let (_, _, own) = pod(&node, &runtime, &node.sandbox("own")).await;
    assert_eq!(own.octets()[..2], [10, 213]);
    runtime.remove_sandbox(&web).await.unwrap();
    assert_eq!(given(&node), Vec::<String>::new());
    assert!(!ip("-o link").contains("master cni-test"));
    runtime.remove_sandbox(&web).await.unwrap();

    // A file that a power cut has torn does not keep an address.
    configure(&node, &chain(&node, "10.98.0.0/24"));
    let (torn, ..) = pod(&node, &runtime, &node.sandbox("torn")).await;
    let directory = node.directory.join("runtime/sandboxes").join(&torn.0);
    std::fs::write(directory.join("cni.json"), "{").unwrap();
    runtime.remove_sandbox(&torn).await.unwrap();
    assert_eq!(given(&node), Vec::<String>::new());

    // After a restart of the node there is no namespace any more, but the address is still taken.
    let (again, place, _) = pod(&node, &runtime, &node.sandbox("again")).await;
    drop(runtime);
    rustix::mount::unmount(&place.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    pretend_reboot(&node);
    let runtime = Embedded::open(setup).await.unwrap();
    assert_eq!(given(&node).len(), 1);
    runtime.remove_sandbox(&again).await.unwrap();
    assert_eq!(given(&node), Vec::<String>::new());
    runtime.purge().await.unwrap();
    assert_eq!(runtime.list().await.unwrap(), []);
}

async fn trouble_of(node: &Node, chain: &str) -> (Option<String>, Error) {
    let runtime = Embedded::open(configure(node, chain)).await.unwrap();
    let told = runtime.status().await.unwrap().network_trouble;
    let error = runtime.run_sandbox(&node.sandbox("pod")).await.unwrap_err();
    assert_eq!(runtime.list().await.unwrap(), []);
    assert_eq!(given(node), Vec::<String>::new());
    runtime.purge().await.unwrap();
    (told, error)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a story on an island"]
async fn plugins_in_trouble() {
    let Some(node) = island::node() else { return };
    make_world(&node);
    let before = census();
    let (told, error) = trouble_of(&node, "{").await;
    let told = told.unwrap();
    assert!(
        told.starts_with("NetworkReady=false reason:NetworkPluginNotReady message:"),
        "{told}"
    );
    assert!(
        told.contains("10-test.conflist") && sentence(&error).contains("10-test.conflist"),
        "{told} {error}"
    );

    let unknown = r#"{"cniVersion": "1.0.0", "name": "test", "plugins": [{"type": "no-such-plugin"}]}"#;
    let (told, error) = trouble_of(&node, unknown).await;
    let wanted = "find the plug-in no-such-plugin: it is not in /no/such/directory or /usr/lib/cni";
    assert!(told.unwrap().ends_with(wanted));
    assert_eq!(error.to_string(), wanted);

    // The chain fails at its end: what its beginning made is taken away.
    let too_narrow =
        chain(&node, "10.98.0.0/24").replace("\"portmap\"", "\"tuning\", \"sysctl\": {\"no.such\": \"1\"}");
    let (told, error) = trouble_of(&node, &too_narrow).await;
    assert_eq!(told, None, "only a pod can show it");
    assert!(
        error.to_string().starts_with("connect by the plug-in tuning: "),
        "{error}"
    );

    let (_, error) = trouble_of(&node, &chain(&node, "no network")).await;
    assert!(
        error.to_string().starts_with("connect by the plug-in bridge: "),
        "{error}"
    );
    // The plug-ins keep their bridge, and the program of rules its empty tables.
    ip("link delete cni-test");
    let after: Vec<_> = census()
        .into_iter()
        .filter(|line| !line.starts_with("table "))
        .collect();
    assert_eq!(after, before);
}
