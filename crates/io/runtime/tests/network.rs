//! The pods' network as packets see it: sockets are opened where a pod, the node or the outside world would open them.
//! Needs root; each story has a machine of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod node;

use kedge_containers::{PortMapping, Protocol, SandboxConfig, SandboxId};
use kedge_runtime::embedded::{CniDirectories, Config, Embedded};
use kedge_runtime::{Error, Runtime};
use nix::sched::{CloneFlags, setns};
use node::{Node, island, pretend_reboot, sentence};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, netlink, recv, send, socket};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// All of a story; a machine of a CI is slow.
const STORY_MAX: Duration = Duration::from_secs(120);
/// Packets on one machine need no time; only what is lost takes this long.
const PACKET_MAX: Duration = Duration::from_secs(10);
/// How long is waited for what must not come.
const SILENCE: Duration = Duration::from_millis(700);

const NODE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const WORLD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const EVERYWHERE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;
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

    fn listen(&self, address: Ipv4Addr, port: u16) -> TcpListener {
        self.within(|| TcpListener::bind((address, port)).unwrap())
    }

    fn datagrams(&self, address: Ipv4Addr, port: u16) -> UdpSocket {
        let socket = self.within(|| UdpSocket::bind((address, port)).unwrap());
        socket.set_read_timeout(Some(PACKET_MAX)).unwrap();
        socket
    }

    /// Connects, speaks both ways, and gives back as whom the listener saw it.
    fn calls(&self, listener: &TcpListener, at: Ipv4Addr, port: u16) -> IpAddr {
        let mut call = self.within(|| TcpStream::connect_timeout(&(at, port).into(), PACKET_MAX).unwrap());
        let (mut answer, peer) = listener.accept().unwrap();
        for stream in [&call, &answer] {
            stream.set_read_timeout(Some(PACKET_MAX)).unwrap();
        }
        let mut heard = [0; 4];
        call.write_all(b"ping").unwrap();
        answer.read_exact(&mut heard).unwrap();
        answer.write_all(b"pong").unwrap();
        call.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"pong");
        peer.ip()
    }

    fn is_refused(&self, at: Ipv4Addr, port: u16) -> bool {
        self.within(|| TcpStream::connect_timeout(&(at, port).into(), SILENCE).is_err())
    }
}

/// Sends a datagram and its answer back; gives back as whom the pod saw the sender.
fn ask(client: &UdpSocket, server: &UdpSocket, at: Ipv4Addr, port: u16) -> IpAddr {
    let mut heard = [0; 16];
    client.send_to(b"ping", (at, port)).unwrap();
    let (_, peer) = server.recv_from(&mut heard).unwrap();
    server.send_to(b"pong", peer).unwrap();
    let (read, from) = client.recv_from(&mut heard).unwrap();
    assert_eq!(
        (&heard[..read], from),
        (&b"pong"[..], SocketAddr::from((at, port)))
    );
    peer.ip()
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
    let routes = lines("-4 route show table all");
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
    let gateway = node.config().network.unwrap().pod_cidr.0.octets();
    let gateway = Ipv4Addr::new(gateway[0], gateway[1], gateway[2], 1);

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
