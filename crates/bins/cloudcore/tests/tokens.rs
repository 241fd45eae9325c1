//! Tokens for one node, against the embedded Kubernetes API.
#![allow(clippy::unwrap_used)] // a test fails by panicking

mod support;

use kedge_cloudcore::tokens::{self, one_time};
use kedge_cloudhub::{Redeem, Redeemed};
use kedge_cluster::peer::{self, Peer};
use kedge_pki::{Authority, JoinClaims, JoinToken, TokenId, UnixTime};
use kedge_telemetry::channel::ask;
use kedge_wire::NodeName;
use serde_json::Value;
use std::time::Duration;
use support::World;

const HOUR: Duration = Duration::from_secs(3600);
/// Generous: a fact that does not come within it will not come.
const SOON: Duration = Duration::from_secs(20);

fn node(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

fn ago(time: Duration) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs()) - time)
}

fn id(token: &JoinToken, authority: &Authority) -> TokenId {
    match JoinToken::verify_bearer(token.bearer(), authority, ago(3 * HOUR)).unwrap() {
        JoinClaims::OneTime { id, .. } => id,
        JoinClaims::Shared => panic!("not a token of one node"),
    }
}

/// A replica that answers a hub.
fn replica(world: &World) -> ask::Sender<Redeem, Redeemed> {
    let (redeem, asked) = ask::channel("redeem", 64);
    tokio::spawn(one_time::answer(world.cluster.clone(), asked));
    redeem
}

async fn redeem(replica: &ask::Sender<Redeem, Redeemed>, token: &TokenId, name: &str, key: &str) -> Redeemed {
    let asked = Redeem {
        token: token.clone(),
        node: node(name),
        key: key.to_owned(),
    };
    replica.ask(asked, SOON).await.unwrap()
}

#[tokio::test]
async fn the_first_key_wins_whichever_replica_it_asks() {
    let world = World::start().await;
    let authority = world.authority().await;
    let token = one_time::issue(&world.cluster, &authority, &node("gate-7"), HOUR, UnixTime::now())
        .await
        .unwrap();
    let token = id(&token, &authority);
    let replicas = [replica(&world), replica(&world), replica(&world)];
    let mut asked = Vec::new();
    for number in 0..12 {
        let (replica, token) = (replicas[number % 3].clone(), token.clone());
        asked.push(tokio::spawn(async move {
            let key = format!("key-{number}");
            (redeem(&replica, &token, "gate-7", &key).await, key)
        }));
    }
    let mut granted = Vec::new();
    for asked in asked {
        let (redeemed, key) = asked.await.unwrap();
        match redeemed {
            Redeemed::Granted => granted.push(key),
            other => assert_eq!(other, Redeemed::Spent),
        }
    }
    assert_eq!(granted.len(), 1);
    // A lost answer is given again, by any replica.
    for replica in &replicas {
        assert_eq!(
            redeem(replica, &token, "gate-7", &granted[0]).await,
            Redeemed::Granted
        );
        assert_eq!(
            redeem(replica, &token, "gate-8", &granted[0]).await,
            Redeemed::Unknown
        );
    }
}

#[tokio::test]
async fn a_withdrawn_token_is_unknown() {
    let world = World::start().await;
    let authority = world.authority().await;
    let token = one_time::issue(&world.cluster, &authority, &node("gate-7"), HOUR, UnixTime::now())
        .await
        .unwrap();
    let token = id(&token, &authority);
    let path = format!("/api/v1/namespaces/kubeedge/secrets/join-token-{token}");
    let options = kedge_wire::Body::from_json("{}".into()).unwrap();
    world.cluster.delete(&path, &options).await.unwrap();
    assert_eq!(
        redeem(&replica(&world), &token, "gate-7", "key").await,
        Redeemed::Unknown
    );
}

#[tokio::test]
async fn expired_tokens_are_removed_used_or_not_and_the_shared_one_is_kept() {
    let world = World::start().await;
    let authority = world.authority().await;
    let issue = async |name: &str, since: Duration| {
        let token = one_time::issue(&world.cluster, &authority, &node(name), HOUR, ago(since))
            .await
            .unwrap();
        id(&token, &authority)
    };
    let (used, unused, fresh) = (
        issue("used", 2 * HOUR).await,
        issue("unused", 2 * HOUR).await,
        issue("fresh", Duration::ZERO).await,
    );
    assert_eq!(
        redeem(&replica(&world), &used, "used", "key").await,
        Redeemed::Granted
    );
    let keeper = tokio::spawn(tokens::keep(world.cluster.clone(), authority.clone(), 12 * HOUR));
    let there = async |token: &TokenId| world.secret(&format!("join-token-{token}")).await.is_some();
    let swept = async {
        while there(&used).await || there(&unused).await || world.secret("tokensecret").await.is_none() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, swept)
        .await
        .expect("the keeper sweeps when it starts");
    assert!(there(&fresh).await);
    keeper.abort();
    // No token is in its secret: who reads secrets cannot join with it.
    let secret: Value = world.secret(&format!("join-token-{fresh}")).await.unwrap();
    let keys: Vec<&String> = secret["data"].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["node", "expires"]);
}

#[tokio::test]
async fn a_token_that_could_not_be_written_is_tried_again() {
    let peer = Peer::start().await.unwrap();
    let path = "/api/v1/namespaces/kubeedge/secrets/tokensecret";
    for _ in 0..2 {
        peer.refuse_once(
            "GET",
            path,
            peer::status(503, "ServiceUnavailable", "etcd has no leader"),
        );
    }
    let authority = Authority::create(UnixTime::now()).unwrap();
    let keeper = tokio::spawn(tokens::keep(peer.cluster().await.unwrap(), authority, 12 * HOUR));
    // It looks for expired tokens after each try.
    let written = peer.until_calls(|calls| {
        let made = calls
            .iter()
            .position(|call| call == "POST /api/v1/namespaces/kubeedge/secrets");
        made.is_some_and(|made| calls[made..].iter().any(|call| call.contains("labelSelector")))
    });
    tokio::time::timeout(SOON, written)
        .await
        .expect("the keeper does not give up");
    assert!(peer.object(path).is_some());
    keeper.abort();
}
