//! exec, attach and port-forward: a client that upgrades, and a node in the hands of the test.

use crate::client::{Client, PATIENCE, Pki, Running};
use crate::rights::bind;
use kedge_apiserver::{NodeConnectAnswer, Ports, StorageAt};
use kedge_telemetry::channel::ask::{self, Question};
use kedge_wire::NodeName;
use kedge_wire::tunnel::NodeConnect;
use serde_json::json;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

type Asked = ask::Receiver<(NodeName, NodeConnect), NodeConnectAnswer>;

const PODS: &str = "/api/v1/namespaces/default/pods";

async fn start() -> (Running, Asked) {
    let (port, asked) = ask::channel("node connect", 4);
    let ports = Ports {
        node_connect: Some(port),
        ..Ports::default()
    };
    let running = Running::with(Arc::new(Pki::new()), StorageAt::Memory, ports).await;
    let container = |name: &str| json!({"name": name, "image": "busybox"});
    for (name, node, containers) in [
        ("web", "edge-1", vec![container("main"), container("side")]),
        ("lone", "edge-1", vec![container("main")]),
        ("waiting", "", vec![container("main")]),
    ] {
        let mut pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name},
            "spec": {"containers": containers}});
        if !node.is_empty() {
            pod["spec"]["nodeName"] = json!(node);
        }
        running.admin().post(PODS, &pod).await.ok();
    }
    (running, asked)
}

/// Asks for an upgrade; gives the head of the answer and the stream after it.
async fn upgrade(
    client: &Client,
    method: &str,
    path: &str,
) -> (String, impl AsyncRead + AsyncWrite + Unpin + use<>) {
    let mut stream = client.connect_for_http1().await;
    let head = format!(
        "{method} {PODS}/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         X-Stream-Protocol-Version: v4.channel.k8s.io\r\nContent-Length: 0\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let reading = async {
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.unwrap());
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.unwrap();
    (String::from_utf8(answer).unwrap().to_ascii_lowercase(), stream)
}

async fn rest(mut stream: impl AsyncRead + Unpin) -> String {
    let mut rest = String::new();
    // A server that closes TLS without a word has still said everything.
    let reading = stream.read_to_string(&mut rest);
    let _ = tokio::time::timeout(PATIENCE, reading).await.unwrap();
    rest
}

#[tokio::test]
async fn bytes_pass_both_ways_after_the_nodes_agreement() {
    let (running, mut asked) = start().await;
    let node = tokio::spawn(async move {
        let Question { question, reply } = asked.recv().await.unwrap();
        let (near, mut far) = tokio::io::duplex(64);
        reply.send(Ok(near));
        let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
                    X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\nfirst";
        far.write_all(head.as_bytes()).await.unwrap();
        let mut heard = [0; 5];
        far.read_exact(&mut heard).await.unwrap();
        far.write_all(&heard.to_ascii_uppercase()).await.unwrap();
        question
    });
    let path = "lone/exec?command=sh&command=-c&command=a%20%26b&stdin=true&stdout=true&stderr=false&tty=1";
    let (head, mut stream) = upgrade(&running.admin(), "POST", path).await;
    assert!(head.starts_with("http/1.1 101 switching protocols\r\n"), "{head}");
    for header in [
        "upgrade: spdy/3.1",
        "connection: upgrade",
        "x-stream-protocol-version: v4.channel.k8s.io",
    ] {
        assert!(head.contains(header), "{head}");
    }
    stream.write_all(b"hello").await.unwrap();
    assert_eq!(rest(stream).await, "firstHELLO");
    let (name, connect) = node.await.unwrap();
    assert_eq!((name.as_str(), connect.method.as_str()), ("edge-1", "POST"));
    assert_eq!(connect.path, "/exec/default/lone/main");
    assert_eq!(
        connect.query,
        "command=sh&command=-c&command=a%20%26b&input=1&output=1&tty=1"
    );
    let headers: Vec<&str> = connect.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(headers, ["Connection", "Upgrade", "X-Stream-Protocol-Version"]);
    running.stop().await;
}

#[tokio::test]
async fn what_the_node_refuses_is_told_in_its_words() {
    let (running, mut asked) = start().await;
    let node = tokio::spawn(async move {
        let mut paths = Vec::new();
        while let Some(Question { question, reply }) = asked.recv().await {
            paths.push(question.1.path);
            match paths.len() {
                1 => {
                    let (near, mut far) = tokio::io::duplex(1024);
                    reply.send(Ok(near));
                    let head = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 28\r\n\r\n\
                                container not found (\"main\")";
                    far.write_all(head.as_bytes()).await.unwrap();
                }
                2 => reply.send(Err("node edge-1 has no tunnel to the cloud".to_owned())),
                _ => drop(reply),
            }
        }
        paths
    });
    let admin = running.admin();
    let (head, stream) = upgrade(&admin, "GET", "lone/attach?stdout=1").await;
    assert!(head.starts_with("http/1.1 500 "), "{head}");
    drop(stream);
    let (head, _) = upgrade(&admin, "POST", "web/portforward").await;
    assert!(
        head.starts_with("http/1.1 500 ") && head.contains("application/json"),
        "{head}"
    );
    let (head, _) = upgrade(&admin, "POST", "web/exec?container=side&command=ls&stdout=1").await;
    assert!(head.starts_with("http/1.1 503 "), "{head}");
    running.stop().await;
    let wanted = [
        "/attach/default/lone/main",
        "/portForward/default/web",
        "/exec/default/web/side",
    ];
    assert_eq!(node.await.unwrap(), wanted);
}

#[tokio::test]
async fn what_cannot_be_connected_to_is_a_status_before_the_node_is_asked() {
    let (running, mut asked) = start().await;
    let admin = running.admin();
    let nobody = running.client(Some(("jane", "people")));
    for (client, method, path, status) in [
        (&nobody, "POST", "lone/exec?command=ls&stdout=1", "403"),
        (&admin, "POST", "gone/exec?command=ls&stdout=1", "404"),
        (&admin, "POST", "web/exec?command=ls&stdout=1", "400"),
        (&admin, "POST", "web/exec?container=x&command=ls&stdout=1", "400"),
        (&admin, "POST", "waiting/exec?command=ls&stdout=1", "400"),
        (&admin, "PUT", "lone/exec?command=ls&stdout=1", "405"),
    ] {
        let (head, _) = upgrade(client, method, path).await;
        assert!(
            head.starts_with(&format!("http/1.1 {status} ")),
            "{method} {path}: {head}"
        );
        assert!(head.contains("content-type: application/json"), "{head}");
    }
    // HTTP/2 knows no upgrade.
    let refused = admin
        .post(&format!("{PODS}/lone/exec?command=ls&stdout=1"), &json!({}))
        .await;
    assert_eq!(refused.code, 400);
    assert_eq!(
        refused.json()["message"],
        "Upgrade request required, over HTTP/1.1"
    );
    running.stop().await;
    assert!(asked.recv().await.is_none(), "a node was asked");
}

/// WebSocket begins with GET, and yet a command is more than a look.
#[tokio::test]
async fn who_may_only_look_does_not_connect() {
    let (running, _asked) = start().await;
    let admin = running.admin();
    for (name, verb) in [("looks", "get"), ("acts", "create")] {
        let rules = json!([{"apiGroups": [""], "resources": ["pods/exec", "pods/attach", "pods/portforward"], "verbs": [verb]}]);
        bind(&admin, name, json!({"kind": "User", "name": name}), rules).await;
    }
    let (looks, acts) = (
        running.client(Some(("looks", "people"))),
        running.client(Some(("acts", "people"))),
    );
    for method in ["GET", "POST"] {
        for path in [
            "gone/exec?command=ls&stdout=1",
            "gone/attach?stdout=1",
            "gone/portforward",
        ] {
            for (client, status) in [(&looks, "403"), (&acts, "404")] {
                let (head, _) = upgrade(client, method, path).await;
                assert!(
                    head.starts_with(&format!("http/1.1 {status} ")),
                    "{method} {path}: {head}"
                );
            }
        }
    }
    running.stop().await;
}

#[tokio::test]
async fn the_end_of_the_server_ends_conversations() {
    let (running, mut asked) = start().await;
    let node = tokio::spawn(async move {
        let Question { reply, .. } = asked.recv().await.unwrap();
        let (near, mut far) = tokio::io::duplex(1024);
        reply.send(Ok(near));
        far.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: SPDY/3.1\r\nConnection: Upgrade\r\n\r\n",
        )
        .await
        .unwrap();
        far.read(&mut [0]).await.unwrap()
    });
    let (_, stream) = upgrade(&running.admin(), "POST", "lone/attach?stdin=1").await;
    running.stop().await;
    let ended = tokio::time::timeout(PATIENCE, node).await.unwrap().unwrap();
    assert_eq!(ended, 0);
    assert_eq!(rest(stream).await, "");
}
