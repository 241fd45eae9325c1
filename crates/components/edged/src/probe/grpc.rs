//! The health service of gRPC.

use kedge_grpc::health::HealthCheckRequest;
use kedge_grpc::health::health_check_response::ServingStatus;
use kedge_grpc::health::health_client::HealthClient;
use kedge_grpc::tonic::{Code, Status};
use kedge_pods::ProbeResult;
use kedge_sockets::{Address, Channel, origin};
use std::time::Duration;

/// Asks a server, or one service of it, over a connection of its own.
pub(super) async fn check(host: &str, port: u16, service: &str, timeout: Duration) -> ProbeResult {
    let at = super::http::authority(host, port);
    match tokio::time::timeout(timeout, check_now(host, port, service)).await {
        Ok(Ok(ServingStatus::Serving)) => ProbeResult::Success,
        Ok(Ok(status)) => ProbeResult::Failure(format!(
            "service unhealthy (responded with {:?})",
            status.as_str_name()
        )),
        Ok(Err(status)) => ProbeResult::Failure(words(&at, &status)),
        Err(_) => ProbeResult::Failure(format!(
            "timeout: failed to connect service {at:?} within {}s: context deadline exceeded",
            timeout.as_secs()
        )),
    }
}

async fn check_now(host: &str, port: u16, service: &str) -> Result<ServingStatus, Status> {
    let found = tokio::net::lookup_host((host, port)).await;
    let address = found
        .map_err(|error| Status::unavailable(error.to_string()))?
        .next()
        .ok_or_else(|| Status::unavailable("the name has no address"))?;
    ask(Channel::new(Address::Tcp(address)), service).await
}

async fn ask(channel: Channel, service: &str) -> Result<ServingStatus, Status> {
    let mut client = HealthClient::with_origin(channel, origin());
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let answer = client.check(request).await?;
    Ok(ServingStatus::try_from(answer.into_inner().status).unwrap_or(ServingStatus::Unknown))
}

fn words(at: &str, status: &Status) -> String {
    match status.code() {
        Code::Unimplemented => format!(
            "this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
            status.message()
        ),
        Code::Unavailable => format!("failed to connect service {at:?}: {}", status.message()),
        code => format!("health rpc probe failed: {code:?}: {}", status.message()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kedge_grpc::health::HealthCheckResponse;
    use kedge_grpc::health::health_server::{Health, HealthServer};
    use kedge_grpc::tonic::{self, Request, Response};
    use kedge_sockets::{bind, serve};

    struct Server;

    #[tonic::async_trait]
    impl Health for Server {
        async fn check(
            &self,
            request: Request<HealthCheckRequest>,
        ) -> Result<Response<HealthCheckResponse>, Status> {
            let status = match request.into_inner().service.as_str() {
                "" => ServingStatus::Serving,
                "sick" => ServingStatus::NotServing,
                _other => return Err(Status::not_found("unknown service")),
            };
            Ok(Response::new(HealthCheckResponse {
                status: status.into(),
            }))
        }
    }

    #[tokio::test]
    async fn services() {
        let path = std::env::temp_dir().join(format!("kedge-health-{}.sock", std::process::id()));
        let listener = bind(&path).unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = tokio::spawn(serve(listener, HealthServer::new(Server), async {
            let _ = stopped.await;
        }));
        let status = async |service: &str| {
            let answer = ask(Channel::new(Address::Unix(path.clone())), service).await;
            answer.map_err(|status| words("10.0.0.1:9", &status))
        };
        assert_eq!(status("").await, Ok(ServingStatus::Serving));
        assert_eq!(status("sick").await, Ok(ServingStatus::NotServing));
        let unknown = "health rpc probe failed: NotFound: unknown service";
        assert_eq!(status("x").await, Err(unknown.to_owned()));
        drop(stop);
        server.await.unwrap();
        let _ = std::fs::remove_file(&path);
    }

    #[tokio::test]
    async fn a_server_that_hangs_ends_by_the_timeout() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let short = Duration::from_millis(50);
        let hangs = check("127.0.0.1", port, "", short).await;
        assert!(matches!(hangs, ProbeResult::Failure(why) if why.starts_with("timeout: failed to connect")));
        drop(listener);
        let refused = check("127.0.0.1", port, "", Duration::from_secs(5)).await;
        assert!(matches!(refused, ProbeResult::Failure(why) if why.contains("failed to connect service")));
    }
}
