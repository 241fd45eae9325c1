//! What a container wants to happen after its start and before its end.

use super::{Hands, chain};
use crate::probe::{self, HttpGet};
use kedge_api::{Container, Handler, Pod};
use kedge_containers::ContainerId;
use std::time::Duration;

/// A hook without a limit of its own ends with this at the latest: longer than any sensible one, and not for ever.
const HOOK_MAX: Duration = Duration::from_secs(60 * 60);

/// Which container, for a hook.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) pod: &'a Pod,
    pub(super) spec: &'a Container,
    pub(super) id: &'a ContainerId,
    /// The first of the pod's own addresses, or of the node's.
    pub(super) ip: Option<&'a str>,
}

impl Hands {
    /// Runs a hook to its end. Why it failed is for the pod's status.
    pub(super) async fn hook(
        &self,
        subject: Subject<'_>,
        handler: &Handler,
        limit: Duration,
    ) -> Result<(), String> {
        let limit = limit.min(HOOK_MAX);
        let run = self.run_hook(subject, handler, limit);
        match tokio::time::timeout(limit, run).await {
            Ok(result) => result,
            Err(_) => Err(format!("the hook took longer than {}s", limit.as_secs())),
        }
    }

    async fn run_hook(&self, subject: Subject<'_>, handler: &Handler, limit: Duration) -> Result<(), String> {
        if let Some(exec) = &handler.exec {
            return self.exec_hook(subject, &exec.command, limit).await;
        }
        if let Some(http) = &handler.http_get {
            let host = host(subject, http.host.as_deref())?;
            let port = subject.spec.port(&http.port);
            let path = http.path.as_deref().unwrap_or("/");
            let path = if path.starts_with('/') {
                path.to_owned()
            } else {
                format!("/{path}")
            };
            let get = HttpGet {
                tls: http
                    .scheme
                    .as_deref()
                    .is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")),
                host,
                port: port.ok_or("the port of the hook is not a port of the container")?,
                path: &path,
                headers: &http.http_headers,
            };
            let called = self.prober.call(get).await;
            return called.map_err(|why| failed("HTTP lifecycle hook", subject, &format!("error: {why}")));
        }
        if let Some(tcp) = &handler.tcp_socket {
            let host = host(subject, tcp.host.as_deref())?;
            let port = subject.spec.port(&tcp.port);
            let port = port.ok_or("the port of the hook is not a port of the container")?;
            let connected = probe::connect(host, port).await;
            return connected.map_err(|why| failed("TCP lifecycle hook", subject, &format!("error: {why}")));
        }
        if let Some(sleep) = &handler.sleep {
            let seconds = u64::try_from(sleep.seconds).unwrap_or(0);
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            return Ok(());
        }
        Err("the hook names nothing to do".to_owned())
    }

    async fn exec_hook(
        &self,
        subject: Subject<'_>,
        command: &[String],
        limit: Duration,
    ) -> Result<(), String> {
        let why = match self.runtime.exec_sync(subject.id, command, limit).await {
            Ok(output) if output.exit_code == 0 => return Ok(()),
            Ok(output) => {
                let mut words = output.stdout;
                words.extend_from_slice(&output.stderr);
                format!(
                    "error: command '{}' exited with {}: , message: {:?}",
                    command.join(" "),
                    output.exit_code,
                    String::from_utf8_lossy(&words)
                )
            }
            Err(error) => format!("error: {}, message: \"\"", chain(&error)),
        };
        let what = format!("Exec lifecycle hook ([{}])", command.join(" "));
        Err(failed(&what, subject, &why))
    }
}

/// A kubelet's sentence.
fn failed(what: &str, subject: Subject<'_>, why: &str) -> String {
    let pod = subject.pod;
    format!(
        "{what} for Container \"{}\" in Pod \"{}_{}({})\" failed - {why}",
        subject.spec.name,
        pod.metadata.name,
        pod.namespace(),
        pod.uid()
    )
}

fn host<'a>(subject: Subject<'a>, given: Option<&'a str>) -> Result<&'a str, String> {
    let given = given.filter(|host| !host.is_empty());
    given
        .or(subject.ip)
        .ok_or_else(|| "failed to find networking container: the pod has no address".to_owned())
}
