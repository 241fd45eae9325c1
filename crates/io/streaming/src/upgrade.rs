//! What a request asks to be upgraded to.

use crate::answer::{self, Refusal};
use kedge_wire::tunnel::NodeConnect;
use std::io;
use tokio::io::AsyncWrite;

pub(crate) const SPDY: &str = "SPDY/3.1";
pub(crate) const STREAM_PROTOCOL: &str = "X-Stream-Protocol-Version";
const WEB_SOCKET_PROTOCOL: &str = "Sec-WebSocket-Protocol";

/// The carrier that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Carrier {
    Spdy,
    /// With the key that proves that both ends mean WebSocket.
    WebSocket {
        key: String,
    },
}

impl Carrier {
    pub(crate) fn of(request: &NodeConnect) -> Result<Self, Refusal> {
        let lists =
            |name: &str, word: &str| request.values(name).any(|value| value.eq_ignore_ascii_case(word));
        if !lists("Connection", "Upgrade") {
            return Err(Refusal::new(
                400,
                "this path is for connections that are upgraded",
            ));
        }
        if lists("Upgrade", "websocket") {
            if !lists("Sec-WebSocket-Version", "13") {
                return Err(Refusal::new(400, "only version 13 of WebSocket is served"));
            }
            let mut keys = request.values("Sec-WebSocket-Key").filter(|key| key.len() == 24);
            let key = keys.next();
            let key = key.ok_or_else(|| Refusal::new(400, "header Sec-WebSocket-Key is missing"))?;
            return Ok(Self::WebSocket { key: key.to_owned() });
        }
        match lists("Upgrade", SPDY) {
            true => Ok(Self::Spdy),
            false => Err(Refusal::new(
                400,
                "only upgrades to SPDY/3.1 and websocket are served",
            )),
        }
    }

    /// The protocols within the carrier, as the client prefers them.
    fn offered<'a>(&self, request: &'a NodeConnect) -> Vec<&'a str> {
        let all = request.values(self.protocol_header());
        all.filter(|value| !value.is_empty()).collect()
    }

    /// Where both sides name protocols.
    fn protocol_header(&self) -> &'static str {
        match self {
            Self::Spdy => STREAM_PROTOCOL,
            Self::WebSocket { .. } => WEB_SOCKET_PROTOCOL,
        }
    }

    /// The first offered protocol that is among the served ones. A client that offers none means `otherwise`.
    pub(crate) fn agree<T: Copy>(
        &self,
        request: &NodeConnect,
        served: &[(&'static str, T)],
        otherwise: Option<T>,
    ) -> Result<(Option<&'static str>, T), Refusal> {
        let offered = self.offered(request);
        if let (true, Some(otherwise)) = (offered.is_empty(), otherwise) {
            return Ok((None, otherwise));
        }
        let found = offered
            .iter()
            .find_map(|offer| served.iter().find(|(name, _)| name == offer));
        if let Some((name, protocol)) = found {
            return Ok((Some(name), *protocol));
        }
        let names: Vec<&str> = served.iter().map(|(name, _)| *name).collect();
        // The status and the beginning are a kubelet's; kubectl takes it as a reason to try its other carrier.
        let text = format!(
            "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {names:?}"
        );
        Err(Refusal::new(403, text))
    }

    /// Says yes, with what both sides have agreed on.
    pub(crate) async fn welcome(
        &self,
        io: &mut (impl AsyncWrite + Unpin),
        protocol: Option<&'static str>,
    ) -> io::Result<()> {
        let accept;
        let mut headers = match self {
            Self::Spdy => vec![("Upgrade", SPDY)],
            Self::WebSocket { key } => {
                accept = kedge_transport::websocket_accept(key);
                vec![
                    ("Upgrade", "websocket"),
                    ("Sec-WebSocket-Accept", accept.as_str()),
                ]
            }
        };
        headers.extend(protocol.map(|protocol| (self.protocol_header(), protocol)));
        answer::agree(io, &headers).await
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A request as a client makes it.
    pub(crate) fn request(headers: &[(&str, &str)]) -> NodeConnect {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        NodeConnect {
            method: "POST".to_owned(),
            path: "/exec/default/web/main".to_owned(),
            query: "command=ls".to_owned(),
            headers: headers.iter().map(owned).collect(),
        }
    }

    const SERVED: &[(&str, u8)] = &[("v4.channel.k8s.io", 4), ("channel.k8s.io", 1)];

    fn check(headers: &[(&str, &str)], expected: Result<(bool, u8), (u16, &str)>) {
        let request = request(headers);
        let agreed = Carrier::of(&request).and_then(|carrier| {
            let (_, protocol) = carrier.agree(&request, SERVED, Some(0))?;
            Ok((carrier == Carrier::Spdy, protocol))
        });
        match (agreed, expected) {
            (Ok(agreed), Ok(expected)) => assert_eq!(agreed, expected, "{headers:?}"),
            (Err(refusal), Err((status, why))) => {
                assert_eq!(refusal.status, status, "{headers:?}");
                assert!(refusal.text.contains(why), "{}", refusal.text);
            }
            (agreed, expected) => panic!("{headers:?}: {agreed:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn what_is_asked_for() {
        let spdy = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")];
        let with = |more: &[(&'static str, &'static str)]| [&spdy[..], more].concat();
        check(&spdy, Ok((true, 0)));
        check(
            &with(&[
                (STREAM_PROTOCOL, "v5.channel.k8s.io"),
                (STREAM_PROTOCOL, "v4.channel.k8s.io"),
            ]),
            Ok((true, 4)),
        );
        check(
            &with(&[(STREAM_PROTOCOL, "channel.k8s.io, v4.channel.k8s.io")]),
            Ok((true, 1)),
        );
        check(
            &with(&[(STREAM_PROTOCOL, "v9")]),
            Err((403, "unable to negotiate protocol")),
        );
        let web_socket = [
            ("connection", "keep-alive, upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        check(&web_socket, Ok((false, 0)));
        check(&web_socket[..3], Err((400, "Sec-WebSocket-Key")));
        check(&web_socket[..2], Err((400, "version 13")));
        check(&[("Upgrade", "SPDY/3.1")], Err((400, "upgraded")));
        check(
            &[("Connection", "Upgrade"), ("Upgrade", "h2c")],
            Err((400, "SPDY/3.1")),
        );
    }
}
