//! Bootstrap and renewal against a tiny cloud on loopback.

use super::{Enrolment, bootstrap, enrol};
use crate::tests::cloud::{Cloud, Directory, Mood};
use kedge_pki::{JoinToken, UnixTime};
use kedge_wire::NodeName;
use std::time::Duration;

fn later(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs() + seconds))
}

#[tokio::test]
async fn a_token_becomes_an_identity_that_is_kept_and_renewed() {
    let (cloud, directory) = (Cloud::start(Mood::Good).await, Directory::new());
    let config = directory.config(&cloud, Some(&cloud.token(600)));
    let first = bootstrap(&config, UnixTime::now()).await.unwrap();
    assert_eq!(first.certificate().info().common_name, "system:node:edge-1");
    assert_eq!(first.authority(), cloud.authority.certificate());

    // The second start needs neither token nor cloud.
    let mut offline = directory.config(&cloud, None);
    offline.http_server = "https://127.0.0.1:1".to_owned();
    assert_eq!(bootstrap(&offline, UnixTime::now()).await.unwrap(), first);

    let renewal = Enrolment::Renew(Box::new(first.clone()));
    let second = enrol(&config, &renewal, UnixTime::now()).await.unwrap();
    assert_ne!(second.key(), first.key());
    assert_eq!(bootstrap(&offline, UnixTime::now()).await.unwrap(), second);
}

async fn complaint(cloud: &Cloud, token: Option<&str>, now: UnixTime) -> String {
    let directory = Directory::new();
    bootstrap(&directory.config(cloud, token), now)
        .await
        .unwrap_err()
        .to_string()
}

fn assert_says(complaint: &str, parts: &[&str]) {
    for part in parts {
        assert!(complaint.contains(part), "{part:?} is not in: {complaint}");
    }
    assert!(!complaint.contains('\n'));
}

#[tokio::test]
async fn trouble_with_the_token_is_one_sentence_with_the_way_out() {
    let cloud = Cloud::start(Mood::Good).await;
    let now = UnixTime::now();
    assert_says(
        &complaint(&cloud, None, now).await,
        &["edge-1 has no certificate yet", "keadm gettoken"],
    );
    assert_says(
        &complaint(&cloud, Some("abc"), now).await,
        &["malformed", "four parts"],
    );
    let expired = cloud.token(-60);
    assert_says(
        &complaint(&cloud, Some(&expired), now).await,
        &["expired at", "this machine says", "keadm gettoken"],
    );
    let elsewhere = Cloud::start(Mood::Good).await.token(600);
    assert_says(
        &complaint(&cloud, Some(&elsewhere), now).await,
        &["for another cloud"],
    );
    let refusing = Cloud::start(Mood::Refuses).await;
    let refused = complaint(&refusing, Some(&refusing.token(600)), now).await;
    assert_says(
        &refused,
        &["refused", "401", "the token is not valid", "keadm gettoken"],
    );
}

#[tokio::test]
async fn a_cloud_that_is_not_what_it_should_be_is_refused() {
    let now = UnixTime::now();
    let cloud = Cloud::start(Mood::FalseAuthority).await;
    assert_says(
        &complaint(&cloud, Some(&cloud.token(600)), now).await,
        &["for another cloud"],
    );
    let cloud = Cloud::start(Mood::OtherNode).await;
    let other = complaint(&cloud, Some(&cloud.token(600)), now).await;
    assert_says(&other, &["certificate of system:node:edge-9 to node edge-1"]);
    let cloud = Cloud::start(Mood::TooLong).await;
    assert_says(
        &complaint(&cloud, Some(&cloud.token(600)), now).await,
        &["longer than 1048576 bytes"],
    );
    let cloud = Cloud::start_as("192.0.2.7", Mood::Good).await;
    let name = complaint(&cloud, Some(&cloud.token(600)), now).await;
    assert_says(
        &name,
        &[
            "does not carry the address",
            "192.0.2.7",
            "cloudHub.advertiseAddress",
        ],
    );
}

#[tokio::test]
async fn a_wrong_clock_is_named_with_both_times() {
    let cloud = Cloud::start(Mood::LivesInThePast).await;
    let skewed = complaint(&cloud, Some(&cloud.token(600)), UnixTime::now()).await;
    assert_says(
        &skewed,
        &[
            "the clock of this machine says",
            "the cloud's time is 1994-11-06T08:49:37Z",
            "set the clock",
        ],
    );

    let past = UnixTime::since_unix_epoch(Duration::from_secs(1_000_000_000));
    let cloud = Cloud::start(Mood::Good).await;
    let skewed = complaint(&cloud, Some(&cloud.token(600)), past).await;
    assert_says(&skewed, &["2001-09-09T01:46:40Z", "set the clock"]);
}

#[tokio::test]
async fn an_unreachable_cloud_is_named_with_its_address() {
    let cloud = Cloud::start(Mood::Good).await;
    let directory = Directory::new();
    let mut config = directory.config(&cloud, Some(&cloud.token(600)));
    config.http_server = "https://127.0.0.1:1".to_owned();
    let complaint = bootstrap(&config, UnixTime::now()).await.unwrap_err().to_string();
    assert_says(
        &complaint,
        &["cannot be reached at https://127.0.0.1:1", "cloudcore runs"],
    );
    config.http_server = "127.0.0.1".to_owned();
    let complaint = bootstrap(&config, UnixTime::now()).await.unwrap_err().to_string();
    assert_says(
        &complaint,
        &["`edgeHub.httpServer` is \"127.0.0.1\"", "https://<host>:10002"],
    );
}

#[tokio::test]
async fn a_certificate_of_another_node_or_time_is_not_used() {
    let (cloud, directory) = (Cloud::start(Mood::Good).await, Directory::new());
    let mut config = directory.config(&cloud, Some(&cloud.token(600)));
    bootstrap(&config, UnixTime::now()).await.unwrap();
    config.token = None;

    let ended = bootstrap(&config, later(400 * 24 * 3600))
        .await
        .unwrap_err()
        .to_string();
    assert_says(
        &ended,
        &[
            "server.crt ended at",
            "this machine says",
            "keadm gettoken",
            "bootstrap-edgecore.conf",
        ],
    );

    config.node = NodeName::new("edge-2").unwrap();
    let other = bootstrap(&config, UnixTime::now()).await.unwrap_err().to_string();
    assert_says(
        &other,
        &[
            "server.crt is of system:node:edge-1",
            "node edge-2",
            "hostnameOverride",
        ],
    );

    // With a token the node helps itself.
    config.token = Some(cloud.token(600));
    let identity = bootstrap(&config, UnixTime::now()).await.unwrap();
    assert_eq!(identity.certificate().info().common_name, "system:node:edge-2");
    assert!(JoinToken::parse(config.token.as_deref().unwrap()).is_ok());
}
