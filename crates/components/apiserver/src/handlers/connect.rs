//! `pods/<name>/exec`, `attach` and `portforward`: connects to the pod's node and passes bytes on, whatever they say.
//!
//! The node speaks with the client in the client's own protocol; this server only agrees, in the node's words.

use super::{Call, log, read};
use crate::reply::{self, Reply};
use crate::request::{Target, percent_encode};
use http::header::{CONNECTION, HeaderName, HeaderValue, UPGRADE};
use http::{HeaderMap, Method, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use kedge_apimachinery::status::{Reason, Status};
use kedge_streaming::Answer;
use kedge_wire::tunnel::NodeConnect;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream};

/// A node that has not agreed by then is taken as unreachable: its runtime is asked, too.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take to hang up after the node has.
const LINGER: Duration = Duration::from_secs(5);
/// What the agreement is about, in both directions. Credentials stay here.
const PASSED_ON: [HeaderName; 7] = [
    CONNECTION,
    UPGRADE,
    HeaderName::from_static("x-stream-protocol-version"),
    http::header::SEC_WEBSOCKET_KEY,
    http::header::SEC_WEBSOCKET_VERSION,
    http::header::SEC_WEBSOCKET_PROTOCOL,
    http::header::SEC_WEBSOCKET_ACCEPT,
];

/// Browsers, which can set no header, name their token as a protocol.
const TOKEN_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// What is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Exec,
    Attach,
    PortForward,
}

impl Kind {
    pub(super) fn of(target: &Target) -> Option<Self> {
        if !target.group.is_empty() || target.plural != "pods" {
            return None;
        }
        match target.subresource.as_str() {
            "exec" => Some(Self::Exec),
            "attach" => Some(Self::Attach),
            "portforward" => Some(Self::PortForward),
            _ => None,
        }
    }
}

pub(super) async fn connect(
    call: &Call,
    kind: Kind,
    method: &Method,
    upgrade: Option<OnUpgrade>,
) -> Result<Reply, Status> {
    if !matches!(*method, Method::GET | Method::POST) {
        return Err(Status::method_not_allowed(&call.kind, method.as_str()));
    }
    let pod = read::find(call)?.value();
    let name = &call.target.name;
    let container = match kind {
        Kind::Exec | Kind::Attach => log::container(&pod, call.query.text("container"), name)?,
        Kind::PortForward => String::new(),
    };
    let node = log::node(&pod, name)?;
    let Some(port) = &call.server.ports.node_connect else {
        return Err(Status::unavailable(
            "connections to pods are not available: this server has no way to its nodes",
        ));
    };
    let asks = call.headers.contains_key(UPGRADE);
    let Some(upgrade) = upgrade.filter(|_| asks) else {
        // HTTP/2 has no upgrades; kubectl speaks HTTP/1.1 here by itself.
        return Err(Status::bad_request("Upgrade request required, over HTTP/1.1"));
    };
    let request = request(call, kind, method, &container);
    let late = |why: String| {
        let why = format!("node {node} did not answer for pod {name}: {why}");
        Status::new(Reason::ServiceUnavailable, why)
    };
    let answer = port.ask((node.clone(), request), ANSWER_TIMEOUT).await;
    let mut stream = match answer {
        Ok(Ok(stream)) => stream,
        Ok(Err(why)) => return Err(Status::new(Reason::InternalError, why)),
        Err(error) => return Err(late(error.to_string())),
    };
    let answer = match tokio::time::timeout(ANSWER_TIMEOUT, Answer::read(&mut stream)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(late(error.to_string())),
        Err(_elapsed) => return Err(late(format!("no answer within {}s", ANSWER_TIMEOUT.as_secs()))),
    };
    if !answer.is_agreed() {
        // A kubelet's refusals reach the client as they are: kubectl reads them so.
        let refusal = answer.refusal(stream).await;
        let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_GATEWAY);
        return Ok(reply::text(status, refusal.text));
    }
    let scope = call.scope.clone();
    call.scope.spawn("apiserver conversation", async move {
        let talk = async {
            match upgrade.await {
                Ok(client) => pass(TokioIo::new(client), stream).await,
                Err(error) => tracing::debug!(%error, "a client left before its conversation began"),
            }
        };
        tokio::select! {
            biased; // A conversation never ends by itself; the server's end does not wait for it.
            () = scope.cancelled() => {}
            () = talk => {}
        }
    });
    Ok(agreement(&answer))
}

/// What the node's kubelet port is asked.
fn request(call: &Call, kind: Kind, method: &Method, container: &str) -> NodeConnect {
    let [namespace, name, container] =
        [&call.target.namespace, &call.target.name, container].map(percent_encode);
    let path = match kind {
        Kind::Exec => format!("/exec/{namespace}/{name}/{container}"),
        Kind::Attach => format!("/attach/{namespace}/{name}/{container}"),
        Kind::PortForward => format!("/portForward/{namespace}/{name}"),
    };
    let all = |from: &'static str, to: &'static str| {
        let values = call.query.all(from);
        values.map(move |value| format!("{to}={}", percent_encode(value)))
    };
    let flag = |from: &'static str, to: &'static str| call.query.flag(from).then(|| format!("{to}=1"));
    let flags = [
        ("stdin", "input"),
        ("stdout", "output"),
        ("stderr", "error"),
        ("tty", "tty"),
    ];
    let query: Vec<String> = match kind {
        Kind::Exec | Kind::Attach => all("command", "command")
            .chain(flags.into_iter().filter_map(|(from, to)| flag(from, to)))
            .collect(),
        Kind::PortForward => all("ports", "port").collect(),
    };
    NodeConnect {
        method: method.as_str().to_owned(),
        path,
        query: query.join("&"),
        headers: passed_on(&call.headers),
    }
}

fn passed_on(headers: &HeaderMap) -> Vec<(String, String)> {
    let mut passed = Vec::new();
    for name in PASSED_ON {
        for value in headers.get_all(&name) {
            let Ok(value) = value.to_str() else { continue };
            let protocols = value.split(',').map(str::trim);
            let is_secret = |protocol: &&str| protocol.starts_with(TOKEN_PROTOCOL);
            let value = match name == http::header::SEC_WEBSOCKET_PROTOCOL {
                true => protocols
                    .filter(|protocol| !is_secret(protocol))
                    .collect::<Vec<_>>()
                    .join(", "),
                false => value.to_owned(),
            };
            passed.push((written(&name), value));
        }
    }
    passed
}

/// With capitals, as official edges expect keys of a map to be written.
fn written(name: &HeaderName) -> String {
    let parts = name.as_str().split('-').map(|part| {
        let (first, rest) = part.split_at(part.len().min(1));
        first.to_ascii_uppercase() + rest
    });
    parts.collect::<Vec<_>>().join("-")
}

/// The node's agreement, as this server says it.
fn agreement(answer: &Answer) -> Reply {
    let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
    let mut reply = Response::new(body);
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for name in PASSED_ON {
        let value = answer.header(name.as_str()).map(HeaderValue::from_str);
        if let Some(Ok(value)) = value {
            reply.headers_mut().insert(name, value);
        }
    }
    reply
}

/// Bytes both ways until either side hangs up.
async fn pass(client: impl AsyncRead + AsyncWrite + Unpin, node: DuplexStream) {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_node, mut to_node) = tokio::io::split(node);
    // Whichever side breaks, the other learns of it by its end.
    tokio::select! {
        _ = tokio::io::copy(&mut from_client, &mut to_node) => return,
        _ = tokio::io::copy(&mut from_node, &mut to_client) => {}
    }
    let _ = to_client.shutdown().await;
    // What the client still says is for nobody, but hanging up on it might cost it the last words.
    let mut nowhere = tokio::io::sink();
    let rest = tokio::io::copy(&mut from_client, &mut nowhere);
    let _ = tokio::time::timeout(LINGER, rest).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_headers_of_the_upgrade_are_passed_on() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer x"),
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v5.channel.k8s.io"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
            ("cookie", "a=b"),
            (
                "sec-websocket-protocol",
                "base64url.bearer.authorization.k8s.io.dG9rZW4, v5.channel.k8s.io",
            ),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let passed = passed_on(&headers);
        let passed: Vec<String> = passed
            .iter()
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        assert_eq!(
            passed,
            [
                "Connection: Upgrade",
                "Upgrade: SPDY/3.1",
                "X-Stream-Protocol-Version: v5.channel.k8s.io",
                "X-Stream-Protocol-Version: v4.channel.k8s.io",
                "Sec-Websocket-Protocol: v5.channel.k8s.io",
            ]
        );
    }
}
