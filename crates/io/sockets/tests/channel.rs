//! A peer that is away, comes, goes, and comes back; and one that never answers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use kedge_grpc::health::health_check_response::ServingStatus;
use kedge_grpc::health::health_client::HealthClient;
use kedge_grpc::health::health_server::{Health, HealthServer};
use kedge_grpc::health::{HealthCheckRequest, HealthCheckResponse};
use kedge_grpc::tonic::{Code, Request, Response, Status, async_trait};
use kedge_sockets::{Address, Channel, Routes, bind, origin, serve};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

/// Says `SERVING` to the service it is named after.
#[derive(Clone)]
struct Known(&'static str);

#[async_trait]
impl Health for Known {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if request.into_inner().service != self.0 {
            return Err(Status::not_found("unknown service"));
        }
        let status = ServingStatus::Serving as i32;
        Ok(Response::new(HealthCheckResponse { status }))
    }
}

struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("kedge-sockets-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("x.sock")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn start(socket: &Path) -> JoinHandle<()> {
    let listener = bind(socket).unwrap();
    let routes = Routes::new().add(HealthServer::new(Known("a")));
    tokio::spawn(serve(listener, routes, std::future::pending()))
}

fn client(channel: &Channel) -> HealthClient<Channel> {
    HealthClient::with_origin(channel.clone(), origin())
}

async fn check(channel: &Channel, service: &str) -> Result<i32, Status> {
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let answer = client(channel).check(request).await?;
    Ok(answer.into_inner().status)
}

/// Asks until the answer is as wanted; the test's own limit ends a wait that has no end.
async fn until(channel: &Channel, wanted: impl Fn(&Result<i32, Status>) -> bool) -> Result<i32, Status> {
    tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            let answer = check(channel, "a").await;
            if wanted(&answer) {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the peer is as wanted within 10 s")
}

#[tokio::test]
async fn a_peer_may_come_late_and_come_back() {
    let folder = Folder::new();
    let channel = Channel::new(Address::Unix(folder.socket()));
    let away = check(&channel, "a").await.unwrap_err();
    assert_eq!(away.code(), Code::Unavailable);
    assert!(away.message().contains("x.sock: No such file"), "{away}");
    // Within the pause nothing is dialled, and the reason is still told.
    let away = check(&channel, "a").await.unwrap_err();
    assert!(away.message().contains("No such file"), "{away}");

    let first = start(&folder.socket());
    assert_eq!(
        until(&channel, Result::is_ok).await.unwrap(),
        ServingStatus::Serving as i32
    );
    assert_eq!(check(&channel, "b").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(channel.connections(), 1, "one connection carries every call");

    first.abort();
    let gone = until(&channel, Result::is_err).await.unwrap_err();
    assert_eq!(gone.code(), Code::Unavailable, "{gone}");

    let second = start(&folder.socket());
    until(&channel, Result::is_ok).await.unwrap();
    assert_eq!(channel.connections(), 2);
    second.abort();
}

#[tokio::test]
async fn a_service_that_is_not_there_is_said_so() {
    let folder = Folder::new();
    let listener = bind(&folder.socket()).unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(serve(listener, Routes::new(), async {
        drop(stopped.await);
    }));
    let channel = Channel::new(Address::Unix(folder.socket()));
    let refused = check(&channel, "a").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    drop(stop);
    server.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_never_answers_is_left_to_the_callers_limit() {
    let folder = Folder::new();
    // Accepted by the kernel, read by nobody: a runtime that hangs.
    let _listener = bind(&folder.socket()).unwrap();
    let channel = Channel::new(Address::Unix(folder.socket()));
    let limited = tokio::time::timeout(Duration::from_secs(120), check(&channel, "a"));
    assert!(limited.await.is_err());
}

#[tokio::test]
async fn only_a_stale_socket_is_replaced() {
    let folder = Folder::new();
    drop(bind(&folder.socket()).unwrap());
    assert!(folder.socket().exists(), "a dropped listener leaves its socket");
    drop(bind(&folder.socket()).unwrap());
    let file = folder.0.join("file");
    std::fs::write(&file, "precious").unwrap();
    let refused = bind(&file).unwrap_err().to_string();
    assert!(refused.contains("no socket"), "{refused}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}
