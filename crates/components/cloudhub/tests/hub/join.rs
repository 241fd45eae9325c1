use crate::world::{SOON, World, name};
use bytes::Bytes;
use expect_test::expect;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use kedge_pki::{
    Authority, Bootstrap, Certificate, JoinToken, NodeRequest, UnixTime, anonymous_client_config,
};
use kedge_transport::dial_tls;
use rustls::ClientConfig;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpSocket;

impl World {
    async fn get(
        &self,
        tls: ClientConfig,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> (u16, Bytes) {
        let reply = self.send(Method::GET, tls, path, headers, body).await;
        (reply.status().as_u16(), reply.into_body())
    }

    async fn send(
        &self,
        method: Method,
        tls: ClientConfig,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response<Bytes> {
        let address = self.https_address.to_string();
        let stream = dial_tls(&address, Arc::new(tls)).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        let connection = tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("Host", &address);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::<Bytes>::from(body.to_vec())).unwrap();
        let reply = tokio::time::timeout(SOON, sender.send_request(request))
            .await
            .unwrap()
            .unwrap();
        let (head, body) = reply.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        drop(sender);
        let _ = connection.await;
        Response::from_parts(head, body)
    }

    fn anonymous(&self) -> ClientConfig {
        anonymous_client_config(self.authority.certificate()).unwrap()
    }

    /// Asks for a certificate without showing one.
    async fn join(&self, node: &str, bearer: &str, request: &[u8]) -> (u16, Bytes) {
        let bearer = format!("Bearer {bearer}");
        self.get(
            self.anonymous(),
            "/edge.crt",
            &[("NodeName", node), ("Authorization", &bearer)],
            request,
        )
        .await
    }
}

fn text(body: &Bytes) -> String {
    String::from_utf8_lossy(body).into_owned()
}

fn in_seconds(seconds: i64) -> UnixTime {
    let now = UnixTime::now().as_secs();
    UnixTime::since_unix_epoch(Duration::from_secs(now.saturating_add_signed(seconds)))
}

#[tokio::test]
async fn a_node_joins_with_a_token_connects_and_renews() {
    let mut world = World::start().await;
    let token = JoinToken::issue(&world.authority, in_seconds(60)).unwrap();

    let (tls, bootstrap) = Bootstrap::begin().unwrap();
    let (status, ca) = world.get(tls, "/ca.crt", &[], &[]).await;
    assert_eq!(status, 200);
    let authority = bootstrap.accept(&ca, &token, UnixTime::now()).unwrap();
    assert_eq!(&authority, world.authority.certificate());

    let request = NodeRequest::create(&name("edge-1")).unwrap();
    let (status, certificate) = world.join("edge-1", token.bearer(), request.der()).await;
    assert_eq!(status, 200, "{}", text(&certificate));
    let first = world.identity_of(Certificate::from_der(&certificate).unwrap(), request);
    assert_eq!(first.certificate().info().node(), Some(name("edge-1")));

    // Renewal: a new key, the old certificate as the proof, no token.
    let request = NodeRequest::create(&name("edge-1")).unwrap();
    let tls = first.client_config().unwrap();
    let (status, certificate) = world
        .get(tls, "/edge.crt", &[("NodeName", "edge-1")], request.der())
        .await;
    assert_eq!(status, 200, "{}", text(&certificate));
    let second = world.identity_of(Certificate::from_der(&certificate).unwrap(), request);
    assert_ne!(first, second);
    assert_eq!(world.metrics.snapshot().certificates, 2);

    // A node cannot renew another one, whatever token it also shows.
    let request = NodeRequest::create(&name("edge-2")).unwrap();
    let bearer = format!("Bearer {}", token.bearer());
    let headers = [("NodeName", "edge-2"), ("Authorization", bearer.as_str())];
    let (status, why) = world
        .get(
            second.client_config().unwrap(),
            "/edge.crt",
            &headers,
            request.der(),
        )
        .await;
    assert_eq!(
        (status, text(&why).as_str()),
        (
            401,
            "the certificate of \"system:node:edge-1\" cannot renew node edge-2"
        )
    );

    let (_edge, _controllers) = world.node("edge-1").await;
}

#[tokio::test]
async fn wrong_and_expired_tokens_are_told_apart() {
    let world = World::start().await;
    let request = NodeRequest::create(&name("edge-1")).unwrap();
    let other = JoinToken::issue(&Authority::create(UnixTime::now()).unwrap(), in_seconds(60)).unwrap();
    let expired = JoinToken::issue(&world.authority, in_seconds(-60)).unwrap();
    for (bearer, starts) in [
        (other.bearer(), "the join token was not made by this cloud"),
        (expired.bearer(), "the join token expired at "),
        ("nonsense", "the join token is malformed"),
    ] {
        let (status, why) = world.join("edge-1", bearer, request.der()).await;
        assert_eq!(status, 401);
        assert!(text(&why).starts_with(starts), "{}", text(&why));
    }
    let tls = anonymous_client_config(world.authority.certificate()).unwrap();
    let (status, why) = world
        .get(tls, "/edge.crt", &[("NodeName", "edge-1")], request.der())
        .await;
    assert_eq!(
        (status, text(&why).as_str()),
        (401, "neither a join token nor a node certificate was shown")
    );
    assert_eq!(world.metrics.snapshot().certificates, 0);
}

#[tokio::test]
async fn a_token_gives_no_other_identity_than_the_one_asked_for() {
    let world = World::start().await;
    let token = JoinToken::issue(&world.authority, in_seconds(60)).unwrap();
    let request = NodeRequest::create(&name("edge-2")).unwrap();
    let (status, why) = world.join("edge-1", token.bearer(), request.der()).await;
    assert_eq!(status, 400);
    assert_eq!(
        text(&why),
        "the certificate request is refused: it names \"system:node:edge-2\" but node edge-1 must ask for \
         \"system:node:edge-1\""
    );

    let (status, why) = world
        .join("edge-1", token.bearer(), &vec![0; 64 * 1024 + 1])
        .await;
    assert_eq!(
        (status, text(&why).as_str()),
        (413, "the certificate request is larger than 65536 bytes")
    );

    let (status, _) = world.join("Edge_1", token.bearer(), request.der()).await;
    assert_eq!(status, 400);

    let tls = anonymous_client_config(world.authority.certificate()).unwrap();
    let bearer = format!("Bearer {}", token.bearer());
    let headers = [
        ("NodeName", "edge-2"),
        ("Authorization", bearer.as_str()),
        ("ExtKeyUsages", "[1, 2]"),
    ];
    let (status, why) = world.get(tls, "/edge.crt", &headers, request.der()).await;
    assert_eq!(
        (status, text(&why).as_str()),
        (400, "header ExtKeyUsages is [1,2] but only [2] (client) is given")
    );
}

#[tokio::test]
async fn keadm_may_ask_whether_a_node_exists() {
    let world = World::start().await;
    for (path, status, answer) in [
        ("/node/known", 200, "Node founded"),
        ("/node/edge-9", 404, "Node not found"),
        ("/healthz", 404, "there is no GET /healthz here"),
    ] {
        let tls = anonymous_client_config(world.authority.certificate()).unwrap();
        let (got, body) = world.get(tls, path, &[], &[]).await;
        assert_eq!((got, text(&body).as_str()), (status, answer));
    }
}

#[tokio::test]
async fn a_one_time_token_joins_one_node_with_one_key() {
    let world = World::start().await;
    let token = |node: &str| {
        let (token, _) = JoinToken::issue_one_time(&world.authority, &name(node), in_seconds(60)).unwrap();
        token.bearer().to_owned()
    };
    let ask = async |node: &str, bearer: &str, request: &NodeRequest| {
        let (status, body) = world.join(node, bearer, request.der()).await;
        let said = match status {
            200 => format!("{:?}", Certificate::from_der(&body).unwrap().info().node()),
            _ => text(&body),
        };
        format!("{status} {said}")
    };
    let (first, second) = (
        NodeRequest::create(&name("gate-7")).unwrap(),
        NodeRequest::create(&name("gate-7")).unwrap(),
    );
    let gate = token("gate-7");
    let withdrawn = NodeRequest::create(&name("withdrawn")).unwrap();
    let silent = NodeRequest::create(&name("silent")).unwrap();
    let told = [
        // A request that is refused does not use the token up.
        world.join("gate-7", &gate, b"no request").await.0.to_string(),
        ask("gate-7", &gate, &first).await,
        ask("gate-7", &gate, &first).await,
        ask("gate-7", &gate, &second).await,
        ask("gate-7", &token("gate-7"), &second).await,
        ask("gate-8", &gate, &NodeRequest::create(&name("gate-8")).unwrap()).await,
        ask("withdrawn", &token("withdrawn"), &withdrawn).await,
        ask("silent", &token("silent"), &silent).await,
    ];
    expect![[r#"
        400
        200 Some(NodeName("gate-7"))
        200 Some(NodeName("gate-7"))
        401 the join token of node gate-7 was used before, with another key; make a new one with `cloudcore token --node gate-7`
        200 Some(NodeName("gate-7"))
        401 the join token is for node gate-7, not for node gate-8
        401 the join token of node withdrawn is not valid any more; make a new one with `cloudcore token --node withdrawn`
        503 whether the join token was used cannot be told now: channel redeem is closed"#]].assert_eq(&told.join("\n"));
}

#[tokio::test]
async fn every_route_says_what_it_takes_and_from_whom() {
    let world = World::start().await;
    let node = || world.identity("edge-1").client_config().unwrap();
    let mut told = Vec::new();
    for (method, path, tls) in [
        (Method::POST, "/ca.crt", world.anonymous()),
        (Method::HEAD, "/edge.crt", world.anonymous()),
        (Method::DELETE, "/node/known", node()),
        (Method::GET, "/task/upgrade/name/a/node/b/status", node()),
        (
            Method::POST,
            "/task/upgrade/name/a/node/b/status",
            world.anonymous(),
        ),
        (Method::POST, "/task/upgrade/name/a/node/b/status", node()),
        (Method::POST, "/nodeupgrade", world.anonymous()),
        (Method::GET, "/", node()),
        (Method::GET, "/node/", world.anonymous()),
        (Method::GET, "/node/..%2Fx", world.anonymous()),
        (Method::GET, "/edge.crt", world.anonymous()),
    ] {
        let reply = world.send(method.clone(), tls, path, &[], b"{}").await;
        let allow = reply
            .headers()
            .get("allow")
            .map_or("", |value| value.to_str().unwrap());
        told.push(format!(
            "{method} {path}: {} [{allow}] {}",
            reply.status().as_u16(),
            text(reply.body())
        ));
    }
    expect![[r#"
        POST /ca.crt: 405 [GET] /ca.crt takes GET only, not POST
        HEAD /edge.crt: 405 [GET] 
        DELETE /node/known: 405 [GET] /node/known takes GET only, not DELETE
        GET /task/upgrade/name/a/node/b/status: 405 [POST] /task/upgrade/name/a/node/b/status takes POST only, not GET
        POST /task/upgrade/name/a/node/b/status: 401 [] a report of a node job needs the certificate of the node
        POST /task/upgrade/name/a/node/b/status: 404 [] node jobs are not part of this version; their reports are not taken
        POST /nodeupgrade: 401 [] a report of a node job needs the certificate of the node
        GET /: 404 [] there is no GET / here
        GET /node/: 400 [] node name "" is not valid: a node name has 1 to 253 of a-z, 0-9, '-' and '.', and begins and ends with a letter or digit
        GET /node/..%2Fx: 400 [] node name "..%2Fx" is not valid: a node name has 1 to 253 of a-z, 0-9, '-' and '.', and begins and ends with a letter or digit
        GET /edge.crt: 400 [] header NodeName must be there once"#]].assert_eq(&told.join("\n"));
}

#[tokio::test]
async fn names_of_nodes_cannot_be_tried_out_quickly() {
    let world = World::start().await;
    let mut refused = None;
    for _ in 0..200 {
        let reply = world
            .send(Method::GET, world.anonymous(), "/node/edge-9", &[], &[])
            .await;
        if reply.status() != 404 {
            refused = Some(reply);
            break;
        }
    }
    let refused = refused.expect("two hundred questions within a moment are too many");
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["retry-after"]),
        (429, &"1".parse().unwrap())
    );
    // Who joins is not held up by that.
    assert_eq!(world.get(world.anonymous(), "/ca.crt", &[], &[]).await.0, 200);
}

#[tokio::test]
async fn heads_and_names_that_are_too_much_are_refused() {
    let world = World::start().await;
    let long = "a".repeat(20 * 1024);
    let (status, _) = world
        .get(world.anonymous(), "/ca.crt", &[("X-Long", &long)], &[])
        .await;
    assert_eq!(status, 431);
    let many: Vec<(String, &str)> = (0..40).map(|number| (format!("X-{number}"), "x")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let (status, _) = world.get(world.anonymous(), "/ca.crt", &many, &[]).await;
    assert_eq!(status, 431);

    let token = JoinToken::issue(&world.authority, in_seconds(60)).unwrap();
    let bearer = format!("Bearer {}", token.bearer());
    let twice = [
        ("NodeName", "edge-1"),
        ("NodeName", "edge-2"),
        ("Authorization", &bearer),
    ];
    let request = NodeRequest::create(&name("edge-1")).unwrap();
    let (status, why) = world
        .get(world.anonymous(), "/edge.crt", &twice, request.der())
        .await;
    assert_eq!(
        (status, text(&why).as_str()),
        (400, "header NodeName must be there once")
    );
}

#[tokio::test]
async fn the_authority_and_other_servers_cannot_renew_nodes() {
    let world = World::start().await;
    let lifetime = Duration::from_secs(60);
    let request = NodeRequest::create(&name("edge-1")).unwrap();
    // The official old certificate, which stood for every node.
    let old = world
        .authority
        .issue_client("kubeedge.io", &["KubeEdge"], lifetime, UnixTime::now());
    let headers = [("NodeName", "edge-1")];
    let (status, why) = world
        .get(
            old.unwrap().client_config().unwrap(),
            "/edge.crt",
            &headers,
            request.der(),
        )
        .await;
    assert_eq!(
        (status, text(&why).as_str()),
        (401, "the certificate of \"kubeedge.io\" cannot renew node edge-1")
    );
}

#[tokio::test]
async fn whoever_blocks_the_door_of_one_address_does_not_block_others() {
    let world = World::start().await;
    let mut idle = Vec::new();
    for _ in 0..600 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        idle.push(socket.connect(world.https_address).await.unwrap());
    }
    let (status, _) = tokio::time::timeout(SOON, world.get(world.anonymous(), "/ca.crt", &[], &[]))
        .await
        .expect("half of the places are for others");
    assert_eq!(status, 200);
    // The others wait, and none of them was turned away.
    let told = "kedge_cloudhub_turned_away{door=\"https\"} 0\n";
    assert!(world.numbers.text().contains(told), "{}", world.numbers.text());
}
