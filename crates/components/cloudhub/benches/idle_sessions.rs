//! What a connected edge that does nothing costs the hub: anonymous memory of the hub's process, per session, over real
//! mutual TLS and WebSocket.
//!
//! ```text
//! cargo bench -p kedge-cloudhub --bench idle_sessions -- [sessions] [own|official|quic|transport]
//! ```
//!
//! `transport` measures the same connections without a hub: what TLS and framing cost by themselves.
//!
//! The figure holds TLS, the session, its channels and a minimal task that stands for the controllers' worker. Every edge
//! has sent a heartbeat and had a lease answered before it is counted, so what the first messages allocate is in it.
#![allow(clippy::unwrap_used)] // A benchmark that cannot go on stops.

mod stage;

use futures_util::StreamExt;
use stage::{Edge, HUB, Hub, Kind, TRANSPORT, be_the_hub, be_the_transport, node_name};
use std::time::{Duration, Instant};

/// Handshakes at one time.
const AT_ONCE: usize = 64;
const SETTLE: Duration = Duration::from_secs(2);

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|text| text != "--bench")
        .collect();
    if arguments.first().is_some_and(|first| first == HUB) {
        return be_the_hub().await;
    }
    if arguments.first().is_some_and(|first| first == TRANSPORT) {
        return be_the_transport().await;
    }
    let sessions: usize = arguments.first().map_or(2000, |text| text.parse().unwrap());
    let kind = arguments.get(1).map_or("own", String::as_str);
    let (carrier, bare) = match kind {
        "own" => (Kind::Own, false),
        "official" => (Kind::Official, false),
        "quic" => (Kind::Quic, false),
        "transport" => (Kind::Own, true),
        other => panic!("{other:?} is none of own, official, quic, transport"),
    };
    let hub = Hub::start(if bare { TRANSPORT } else { HUB });

    // Whatever the first connections make the process allocate once is not a matter of their number.
    let warm = connect(&hub, 0..AT_ONCE, carrier).await;
    let before = hub.status_kb("RssAnon");
    let began = Instant::now();
    let mut edges = connect(&hub, AT_ONCE..AT_ONCE + sessions, carrier).await;
    let joined = began.elapsed();
    if !bare {
        for edge in &mut edges {
            edge.renew_lease().await;
        }
        for edge in &mut edges {
            edge.beat().await;
        }
    }
    // What a handshake leaves behind is freed by other threads.
    tokio::time::sleep(SETTLE).await;
    let after = hub.status_kb("RssAnon");
    let per_session = (after - before) as f64 / sessions as f64;
    println!(
        "{sessions} idle connections ({kind}): {per_session:.1} KiB each ({before} -> {after} KiB), joined in {joined:.1?}"
    );
    drop((warm, edges));
}

async fn connect(hub: &Hub, numbers: std::ops::Range<usize>, kind: Kind) -> Vec<Edge> {
    futures_util::stream::iter(numbers)
        .map(|number| async move {
            let node = node_name(number);
            let identity = hub.identity(&node);
            let mut edge = hub.connect(&node, &identity, kind).await.unwrap();
            edge.greet().await;
            edge
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await
}
