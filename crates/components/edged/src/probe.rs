//! Asking containers for their health, and calling their hooks.
//!
//! Each question is a task of its own that ends by its timeout, so one that hangs holds up nothing but itself.

mod grpc;
mod http;
mod tls;

use kedge_api::HttpHeader;
use kedge_pods::{ProbeResult, ProbeTarget};
use kedge_runtime::{Error, Runtime};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// Questions that are asked at one time: each pod of a full node may have two that hang. Who comes later waits for a
/// place, and its timeout begins when it has one.
const IN_FLIGHT_MAX: usize = 256;
/// How long after its own timeout a command in a container is given up: the runtime may need a moment to end it.
const EXEC_SLACK: Duration = Duration::from_secs(2);
/// As much of a command's output as the message of a probe holds.
const OUTPUT_BYTES_MAX: usize = 10 * 1024;

/// Asks in every way there is.
#[derive(Clone)]
pub(crate) struct Prober {
    runtime: Arc<dyn Runtime>,
    places: Arc<Semaphore>,
    tls: tls::Connector,
}

/// A request by HTTP.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HttpGet<'a> {
    pub(crate) tls: bool,
    pub(crate) host: &'a str,
    pub(crate) port: u16,
    pub(crate) path: &'a str,
    pub(crate) headers: &'a [HttpHeader],
}

impl Prober {
    pub(crate) fn new(runtime: Arc<dyn Runtime>) -> Self {
        Self {
            runtime,
            places: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
            tls: tls::Connector::default(),
        }
    }

    /// Asks, at most `timeout`.
    pub(crate) async fn ask(&self, target: &ProbeTarget, timeout: Duration) -> ProbeResult {
        let _place = self.places.acquire().await;
        match target {
            ProbeTarget::Exec { container, command } => self.exec(container, command, timeout).await,
            ProbeTarget::Http {
                host,
                port,
                path,
                tls,
                headers,
            } => {
                let get = HttpGet {
                    tls: *tls,
                    host,
                    port: *port,
                    path,
                    headers,
                };
                self.http(get, timeout).await
            }
            ProbeTarget::Tcp { host, port } => tcp(host, *port, timeout).await,
            ProbeTarget::Grpc { host, port, service } => grpc::check(host, *port, service, timeout).await,
        }
    }

    async fn exec(
        &self,
        container: &kedge_containers::ContainerId,
        command: &[String],
        timeout: Duration,
    ) -> ProbeResult {
        let timed_out = || ProbeResult::Failure(format!("command {:?} timed out", command.join(" ")));
        let exec = self.runtime.exec_sync(container, command, timeout);
        // The runtime ends the command itself; a runtime that hangs is not the container's fault.
        match tokio::time::timeout(timeout + EXEC_SLACK, exec).await {
            Ok(Ok(output)) if output.exit_code == 0 => ProbeResult::Success,
            Ok(Ok(output)) => {
                let mut text = output.stdout;
                text.extend_from_slice(&output.stderr);
                text.truncate(OUTPUT_BYTES_MAX);
                ProbeResult::Failure(String::from_utf8_lossy(&text).into_owned())
            }
            Ok(Err(Error::TimedOut { .. })) => timed_out(),
            Ok(Err(error)) => ProbeResult::Error(crate::hands::chain(&error)),
            Err(_) => ProbeResult::Error(format!(
                "the runtime did not answer within {}s",
                (timeout + EXEC_SLACK).as_secs()
            )),
        }
    }

    async fn http(&self, get: HttpGet<'_>, timeout: Duration) -> ProbeResult {
        let url = http::url(&get);
        match tokio::time::timeout(timeout, http::get(&self.tls, &get)).await {
            Ok(Ok(answer)) => match answer.status {
                200..=299 => ProbeResult::Success,
                // Whoever answers there, this server is well enough to say so.
                300..=399 => ProbeResult::Warning(format!(
                    "Probe terminated redirects, Response body: {}",
                    answer.body
                )),
                status => ProbeResult::Failure(format!("HTTP probe failed with statuscode: {status}")),
            },
            Ok(Err(why)) => ProbeResult::Failure(format!("Get \"{url}\": {why}")),
            Err(_) => ProbeResult::Failure(format!(
                "Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
            )),
        }
    }

    /// Calls a hook; any answer will do.
    pub(crate) async fn call(&self, get: HttpGet<'_>) -> Result<(), String> {
        let url = http::url(&get);
        let plain = HttpGet { tls: false, ..get };
        let mut answer = http::get(&self.tls, &get).await;
        // A server without TLS under an HTTPS hook: a kubelet calls it as it can be called.
        if get.tls && answer.is_err() {
            answer = http::get(&self.tls, &plain).await;
        }
        answer.map(drop).map_err(|why| format!("Get \"{url}\": {why}"))
    }
}

/// Opens a connection and closes it.
async fn tcp(host: &str, port: u16, timeout: Duration) -> ProbeResult {
    let at = http::authority(host, port);
    match tokio::time::timeout(timeout, TcpStream::connect((host, port))).await {
        Ok(Ok(_)) => ProbeResult::Success,
        Ok(Err(error)) => ProbeResult::Failure(format!("dial tcp {at}: {}", http::connect_words(&error))),
        Err(_) => ProbeResult::Failure(format!("dial tcp {at}: i/o timeout")),
    }
}

/// Opens a connection, for a hook.
pub(crate) async fn connect(host: &str, port: u16) -> Result<(), String> {
    let at = http::authority(host, port);
    let connected = TcpStream::connect((host, port)).await;
    connected
        .map(drop)
        .map_err(|error| format!("dial tcp {at}: {}", http::connect_words(&error)))
}
