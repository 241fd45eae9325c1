use crate::world::{SOON, World, name};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::rt::TokioIo;
use kedge_pki::{
    Authority, Bootstrap, Certificate, JoinToken, NodeRequest, UnixTime, anonymous_client_config,
};
use kedge_transport::dial_tls;
use rustls::ClientConfig;
use std::sync::Arc;
use std::time::Duration;

impl World {
    async fn get(
        &self,
        tls: ClientConfig,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> (u16, Bytes) {
        let address = self.https_address.to_string();
        let stream = dial_tls(&address, Arc::new(tls)).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        let connection = tokio::spawn(connection);
        let mut request = Request::get(path).header("Host", &address);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::<Bytes>::from(body.to_vec())).unwrap();
        let reply = tokio::time::timeout(SOON, sender.send_request(request))
            .await
            .unwrap()
            .unwrap();
        let status = reply.status().as_u16();
        let body = reply.into_body().collect().await.unwrap().to_bytes();
        drop(sender);
        let _ = connection.await;
        (status, body)
    }

    /// Asks for a certificate without showing one.
    async fn join(&self, node: &str, bearer: &str, request: &[u8]) -> (u16, Bytes) {
        let tls = anonymous_client_config(self.authority.certificate()).unwrap();
        let bearer = format!("Bearer {bearer}");
        self.get(
            tls,
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
        .join("edge-1", token.bearer(), &vec![0; 1024 * 1024 + 1])
        .await;
    assert_eq!(
        (status, text(&why).as_str()),
        (413, "the certificate request is larger than 1048576 bytes")
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
