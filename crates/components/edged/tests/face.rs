//! The local port and the tunnel of a node with the hollow runtime: what scrapers and operators read.

#![allow(clippy::unwrap_used)] // a test that cannot go on shall stop

mod site;

use kedge_runtime::hollow::ContainerUsage;
use kedge_wire::tunnel::NodeGet;
use serde_json::Value;
use site::{Node, Start, plain, pod, wait};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// An address of loopback that is this test's alone: another process has other addresses, another test another port, and
/// the system gives none of these ports away.
fn own_address() -> SocketAddr {
    static PORT: AtomicU16 = AtomicU16::new(20350);
    let [_, a, b, c] = std::process::id().to_be_bytes();
    let port = PORT.fetch_add(1, Ordering::Relaxed);
    (Ipv4Addr::new(127, a | 64, b, c), port).into()
}

/// Settings are made by a function without surroundings, so the port comes by the thread.
async fn node_on(address: SocketAddr) -> Node {
    thread_local!(static ADDRESS: std::cell::Cell<Option<SocketAddr>> = const { std::cell::Cell::new(None) });
    ADDRESS.set(Some(address));
    let node = Start {
        configure: |config| {
            config.face.listen = ADDRESS.get();
            config.face.configz = r#"{"maxPods":110}"#.to_owned();
        },
        ..Start::with(&[pod("u1", plain())])
    }
    .node();
    let container = node.wait_running("c").await;
    let usage = ContainerUsage {
        cpu_ns: 2_500_000_000,
        memory_bytes: 40_000,
        layer_bytes: 300,
    };
    node.runtime.hollow.use_resources(&container.id, usage);
    node
}

/// A reading is kept for a while, and that of the start may be older than the container, or than its use.
async fn wait_use(address: SocketAddr) {
    wait("two readings in a row know the use", async || {
        let (_, body) = get(address, "/stats/summary").await;
        let summary: Value = serde_json::from_str(&body).ok()?;
        let cpu = &summary["pods"][0]["containers"][0]["cpu"];
        let is_known = cpu["usageNanoCores"] == 0 && cpu["usageCoreNanoSeconds"] == 2_500_000_000_u64;
        is_known.then_some(())
    })
    .await;
}

async fn say(address: SocketAddr, request: &[u8]) -> Option<String> {
    let mut tcp = TcpStream::connect(address).await.ok()?;
    // A server that has heard enough closes while it is still being told more.
    let _ = tcp.write_all(request).await;
    let mut answer = Vec::new();
    let _ = tcp.read_to_end(&mut answer).await;
    Some(String::from_utf8_lossy(&answer).into_owned())
}

/// Status and body of a GET; a port that does not listen yet is waited for.
async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    let answer = wait("the port answers", async || {
        say(address, request.as_bytes()).await
    })
    .await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

async fn by_tunnel(node: &Node, path: &str, query: &str) -> Result<String, String> {
    let get = NodeGet {
        path: path.to_owned(),
        query: query.to_owned(),
    };
    let mut pieces = node.logs.ask(get, Duration::from_secs(60)).await.unwrap()?;
    let mut all = Vec::new();
    while let Some(piece) = pieces.recv().await {
        all.extend_from_slice(&piece);
    }
    Ok(String::from_utf8(all).unwrap())
}

#[tokio::test]
async fn a_scrape_works_here_and_through_the_tunnel() {
    let address = own_address();
    let node = node_on(address).await;
    wait_use(address).await;
    let container = r#"{container="c",namespace="default",pod="web"}"#;
    for text in [
        get(address, "/metrics/resource").await.1,
        by_tunnel(&node, "/metrics/resource", "").await.unwrap(),
    ] {
        for line in [
            format!("container_cpu_usage_seconds_total{container} 2.5 "),
            format!("container_memory_working_set_bytes{container} 40000 "),
            format!("container_start_time_seconds{container} "),
            "node_memory_working_set_bytes ".to_owned(),
            "resource_scrape_error 0".to_owned(),
        ] {
            assert!(text.contains(&line), "{line}\n{text}");
        }
    }
    let text = get(address, "/metrics/cadvisor").await.1;
    assert!(
        text.contains(r#"container_fs_usage_bytes{container="c",device="#),
        "{text}"
    );
    let text = get(address, "/metrics").await.1;
    assert!(text.contains("kubelet_running_pods 1\n"), "{text}");
    assert!(text.contains("process_resident_memory_bytes "), "{text}");
    assert!(!text.contains("# EOF"), "{text}");
    let text = get(address, "/metrics/slis").await.1;
    assert!(
        text.contains(r#"kubernetes_healthcheck{name="syncloop",type="healthz"} 1"#),
        "{text}"
    );
    assert_eq!(get(address, "/metrics/probes").await, (200, String::new()));
    node.stop().await;
}

#[tokio::test]
async fn the_summary_and_the_lists_have_the_shapes_of_a_kubelet() {
    let address = own_address();
    let node = node_on(address).await;
    wait_use(address).await;
    let json = async |path: &str| -> Value {
        let (status, body) = get(address, path).await;
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    };
    let summary = json("/stats/summary").await;
    assert_eq!(summary["node"]["nodeName"], "edge-1");
    let pod = &summary["pods"][0];
    assert_eq!(pod["podRef"]["name"], "web");
    assert_eq!(
        pod["containers"][0]["cpu"]["usageCoreNanoSeconds"],
        2_500_000_000_u64
    );
    assert_eq!(pod["containers"][0]["cpu"]["usageNanoCores"], 0);
    assert_eq!(pod["containers"][0]["rootfs"]["usedBytes"], 300);
    assert!(
        summary["node"]["fs"]["capacityBytes"].as_u64() > Some(0),
        "{summary}"
    );
    let only = "only_cpu_and_memory=true";
    let short = json(&format!("/stats/summary?{only}")).await;
    assert!(short["node"]["fs"].is_null() && short["pods"][0]["containers"][0]["rootfs"].is_null());
    // A reading may grow old between two questions, but not between any two.
    wait("the tunnel tells the same", async || {
        let here = json(&format!("/stats/summary?{only}")).await;
        let through = by_tunnel(&node, "/stats/summary", only).await.unwrap();
        let through: Value = serde_json::from_str(&through).unwrap();
        (through["pods"] == here["pods"]).then_some(())
    })
    .await;

    let pods = json("/pods").await;
    assert_eq!(
        (&pods["kind"], &pods["apiVersion"]),
        (&"PodList".into(), &"v1".into())
    );
    assert_eq!(pods["items"][0]["metadata"]["uid"], "u1");
    assert_eq!(pods["items"][0]["status"]["phase"], "Running");
    let running = json("/runningpods/").await;
    assert_eq!(running["items"][0]["spec"]["containers"][0]["name"], "c");
    assert_eq!(json("/configz").await["kubeletconfig"]["maxPods"], 110);
    node.stop().await;
}

#[tokio::test]
async fn what_is_refused_is_refused_with_a_sentence() {
    let address = own_address();
    let node = node_on(address).await;
    for path in ["/healthz", "/healthz/ping", "/healthz/log", "/healthz/syncloop"] {
        assert_eq!(get(address, path).await, (200, "ok".to_owned()), "{path}");
    }
    for path in [
        "/exec/default/web/c?command=id",
        "/run/default/web/c?cmd=id",
        "/attach/default/web/c",
        "/portForward/default/web",
        "/checkpoint/default/web/c",
        "/debug/pprof/heap",
        "/logs/",
    ] {
        let (status, body) = get(address, path).await;
        assert_eq!(status, 403, "{path}");
        assert!(body.contains("tunnel"), "{path}: {body}");
        let path = path.split('?').next().unwrap();
        assert!(
            by_tunnel(&node, path, "").await.unwrap_err().contains("tunnel"),
            "{path}"
        );
    }
    assert_eq!(
        get(address, "/nothing").await,
        (404, "there is no /nothing here\n".into())
    );
    assert_eq!(get(address, "/containerLogs/default/other/c").await.0, 404);
    assert_eq!(
        get(address, "/containerLogs/default/web/c?tailLines=x").await.0,
        400
    );
    let posted = b"POST /run/default/web/c HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 2\r\n\r\nid";
    assert!(say(address, posted).await.unwrap().starts_with("HTTP/1.1 405"));
    for hostile in [
        &b"GET /pods HTTP/9.9\r\n\r\n"[..],
        b"\x00\x01\x02\x03\r\n\r\n",
        b"GET /pods\x00 HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
    ] {
        let answer = say(address, hostile).await.unwrap();
        let accepted = answer.starts_with("HTTP/1.1 2");
        assert!(!accepted, "{:?}: {answer}", String::from_utf8_lossy(hostile));
    }
    let rebound = b"GET /pods HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n";
    assert!(say(address, rebound).await.unwrap().starts_with("HTTP/1.1 403"));
    let traversal = get(address, "/containerLogs/../../etc/passwd").await;
    assert_eq!(traversal.0, 404, "{traversal:?}");
    node.stop().await;
}

#[tokio::test]
async fn a_taken_port_does_not_keep_pods_from_running() {
    let taken = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let node = node_on(taken.local_addr().unwrap()).await;
    let text = by_tunnel(&node, "/metrics/resource", "").await.unwrap();
    assert!(text.contains("resource_scrape_error 0"), "{text}");
    node.stop().await;
}
