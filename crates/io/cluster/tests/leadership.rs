//! Two replicas and one lease.

#![allow(clippy::unwrap_used)]

use kedge_cluster::Leadership;
use kedge_cluster::peer::{Peer, status};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::latest;
use std::time::Duration;

const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/kubeedge/leases/cloudcore";
/// A lease lasts 15 s; a loaded machine may need some more.
const PATIENCE: Duration = Duration::from_secs(60);

struct Replica {
    scope: Scope,
    leads: latest::Receiver<bool>,
}

impl Replica {
    async fn start(peer: &Peer, identity: &str) -> Self {
        let scope = Scope::new();
        let leadership = Leadership {
            namespace: "kubeedge".into(),
            name: "cloudcore".into(),
            identity: identity.into(),
        };
        let leads = leadership.start(peer.cluster().await.unwrap(), &scope);
        Self { scope, leads }
    }

    async fn until(&mut self, leads: bool) {
        tokio::time::timeout(PATIENCE, self.leads.wait_for(|now| *now == leads))
            .await
            .unwrap()
            .unwrap();
    }

    fn leads(&self) -> bool {
        *self.leads.borrow()
    }
}

fn holder(peer: &Peer) -> String {
    let lease = peer.object(PATH).unwrap();
    lease["spec"]["holderIdentity"].as_str().unwrap().to_owned()
}

/// How often somebody has read the lease.
fn looks(peer: &Peer) -> usize {
    let calls = peer.calls();
    calls.iter().filter(|call| call.starts_with("GET")).count()
}

#[tokio::test]
async fn one_leads_and_the_other_follows_when_it_lets_go() {
    let peer = Peer::start().await.unwrap();
    let mut a = Replica::start(&peer, "a").await;
    a.until(true).await;
    let mut b = Replica::start(&peer, "b").await;
    // b has looked at the lease and left it alone.
    while looks(&peer) < 2 {
        tokio::task::yield_now().await;
    }
    assert!(!b.leads());
    assert!(a.scope.drain(PATIENCE).await.left.is_empty());
    assert!(!a.leads());
    assert_eq!(holder(&peer), "");
    b.until(true).await;
    assert_eq!(holder(&peer), "b");
}

#[tokio::test]
async fn a_holder_that_vanished_is_replaced_after_its_lease() {
    let peer = Peer::start().await.unwrap();
    let dead = serde_json::json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "cloudcore", "namespace": "kubeedge"},
        // Its clock was far ahead: only that it does not change counts.
        "spec": {"holderIdentity": "dead", "leaseDurationSeconds": 15, "renewTime": "2999-01-01T00:00:00.000000Z", "leaseTransitions": 4},
    });
    peer.put(PATH, dead);
    let began = tokio::time::Instant::now();
    let mut a = Replica::start(&peer, "a").await;
    a.until(true).await;
    assert!(began.elapsed() >= Duration::from_secs(15));
    assert_eq!(peer.object(PATH).unwrap()["spec"]["leaseTransitions"], 5);
}

#[tokio::test]
async fn a_leader_whose_lease_another_wrote_stops_leading() {
    let peer = Peer::start().await.unwrap();
    let mut a = Replica::start(&peer, "a").await;
    a.until(true).await;
    peer.refuse_once("PUT", PATH, status(409, "Conflict", "another wrote"));
    a.until(false).await;
    // The lease still names it, so it may lead again at once.
    a.until(true).await;
}
