//! What edges that join all at once do to those that are connected: the time until a lease is answered, at rest and while
//! a storm of connections comes in.
//!
//! ```text
//! cargo bench -p kedge-cloudhub --bench join_storm -- [joining] [connected]
//! ```
//!
//! The connected edges live in a thread of their own, so that the storm's own cost in this process does not count as
//! theirs more than the machine makes it. Each asks for its lease ten times a second.
#![allow(clippy::unwrap_used)] // A benchmark that cannot go on stops.

mod stage;

use futures_util::StreamExt;
use stage::{Edge, HUB, Hub, Kind, be_the_hub, node_name};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Handshakes that the storm begins at one time.
const AT_ONCE: usize = 1000;
const LEASE_INTERVAL: Duration = Duration::from_millis(100);
const REST: Duration = Duration::from_secs(3);

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|text| text != "--bench")
        .collect();
    if arguments.first().is_some_and(|first| first == HUB) {
        return be_the_hub().await;
    }
    let number =
        |index: usize, default: usize| arguments.get(index).map_or(default, |text| text.parse().unwrap());
    let (joining, connected) = (number(0, 3000), number(1, 200));
    let hub = Arc::new(Hub::start(HUB));
    let identities: Vec<_> = (0..joining + connected)
        .map(|number| hub.identity(&node_name(number)))
        .collect();
    let identities = Arc::new(identities);

    let (storm, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let lives = std::thread::spawn({
        let (hub, identities) = (Arc::clone(&hub), Arc::clone(&identities));
        let (storm, over) = (Arc::clone(&storm), Arc::clone(&over));
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(live(&hub, &identities[..connected], &storm, &over))
        }
    });
    tokio::time::sleep(REST).await;
    storm.store(true, Ordering::Relaxed);
    let began = Instant::now();
    let newcomers = join(&hub, &identities, connected..connected + joining).await;
    let took = began.elapsed();
    over.store(true, Ordering::Relaxed);
    let (resting, storming) = tokio::task::spawn_blocking(|| lives.join().unwrap())
        .await
        .unwrap();
    println!("{connected} connected edges at rest:  {}", describe(resting));
    println!("{joining} edges join in {took:.1?}: {}", describe(storming));
    drop(newcomers);
}

async fn join(hub: &Hub, identities: &[kedge_pki::Identity], numbers: std::ops::Range<usize>) -> Vec<Edge> {
    futures_util::stream::iter(numbers)
        .map(|number| async move {
            loop {
                // One that is turned away comes again.
                if let Ok(mut edge) = hub
                    .connect(&node_name(number), &identities[number], Kind::Own)
                    .await
                {
                    edge.greet().await;
                    return edge;
                }
                tokio::time::sleep(LEASE_INTERVAL).await;
            }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await
}

/// The waits for lease answers before the storm, and while it lasts.
async fn live(
    hub: &Hub,
    identities: &[kedge_pki::Identity],
    storm: &AtomicBool,
    over: &AtomicBool,
) -> (Vec<Duration>, Vec<Duration>) {
    let edges = join(hub, identities, 0..identities.len()).await;
    let waits = edges.into_iter().map(|mut edge| async move {
        let (mut resting, mut storming) = (Vec::new(), Vec::new());
        while !over.load(Ordering::Relaxed) {
            let asked = Instant::now();
            let in_storm = storm.load(Ordering::Relaxed);
            edge.renew_lease().await;
            if in_storm { &mut storming } else { &mut resting }.push(asked.elapsed());
            tokio::time::sleep(LEASE_INTERVAL).await;
        }
        (resting, storming)
    });
    let waits = futures_util::future::join_all(waits).await;
    let (resting, storming): (Vec<_>, Vec<_>) = waits.into_iter().unzip();
    (resting.concat(), storming.concat())
}

fn describe(mut waits: Vec<Duration>) -> String {
    waits.sort_unstable();
    let at = |part: f64| waits[((waits.len() - 1) as f64 * part) as usize];
    format!(
        "lease answered in {:.1?} (median), {:.1?} (99 %), {:.1?} (longest of {})",
        at(0.5),
        at(0.99),
        at(1.0),
        waits.len()
    )
}
