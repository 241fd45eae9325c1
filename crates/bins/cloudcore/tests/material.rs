//! Who the cloud is, against the embedded Kubernetes API.
#![allow(clippy::unwrap_used)] // a test fails by panicking

mod support;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kedge_cloudcore::material::{self, Material};
use kedge_cloudcore::tokens::shared;
use kedge_pki::{Authority, IdentityFiles, JoinToken, ServerNames, UnixTime};
use serde_json::{Value, json};
use std::time::Duration;
use support::{Directory, World, hub};

const HOUR: Duration = Duration::from_secs(3600);

async fn load(world: &World, hub: &kedge_config::CloudHub) -> Material {
    material::load_or_create(&world.cluster, hub).await.unwrap()
}

#[tokio::test]
async fn replicas_that_start_at_once_have_one_authority() {
    let world = World::start().await;
    let hub = hub("");
    let loads = (0..8).map(|_| {
        let (cluster, hub) = (world.cluster.clone(), hub.clone());
        tokio::spawn(async move {
            let material = material::load_or_create(&cluster, &hub).await.unwrap();
            let token = shared::current(&cluster, &material.authority, HOUR)
                .await
                .unwrap();
            (
                material.authority.certificate().hash(),
                material.server.certificate().hash(),
                token.text().to_owned(),
            )
        })
    });
    let mut seen = Vec::new();
    for load in loads.collect::<Vec<_>>() {
        seen.push(load.await.unwrap());
    }
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
    let again = load(&world, &hub).await;
    assert_eq!(again.authority.certificate().hash(), seen[0].0);
    assert_eq!(again.server.certificate().hash(), seen[0].1);
}

/// The secrets as an official CloudCore leaves them: DER, SEC1, the empty DNS name, the token as text.
#[tokio::test]
async fn the_secrets_of_an_official_cloudcore_are_taken_over_as_they_are() {
    let world = World::start().await;
    let now = UnixTime::now();
    let authority = Authority::create(now).unwrap();
    let names = ServerNames {
        ips: vec!["192.0.2.1".parse().unwrap()],
        dns: vec![],
    };
    let server = authority.issue_server(&names, now).unwrap();
    let expires = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) + 20 * HOUR);
    let token = JoinToken::issue(&authority, expires).unwrap();
    world.namespace().await;
    let secrets = [
        (
            "casecret",
            json!({"cadata": BASE64.encode(authority.certificate().der()),
            "cakeydata": BASE64.encode(authority.key().sec1_der())}),
        ),
        (
            "cloudcoresecret",
            json!({"cloudcoredata": BASE64.encode(server.certificate().der()),
            "cloudcorekeydata": BASE64.encode(server.key().sec1_der())}),
        ),
        ("tokensecret", json!({"tokendata": BASE64.encode(token.text())})),
    ];
    let mut before = Vec::new();
    for (name, data) in secrets {
        before.push(world.make_secret(name, data).await);
    }
    let hub = hub("dnsNames: ['']");
    let material = load(&world, &hub).await;
    assert_eq!(material.authority.certificate(), authority.certificate());
    assert_eq!(material.server, server);
    let current = shared::current(&world.cluster, &authority, 12 * HOUR)
        .await
        .unwrap();
    assert_eq!(current, token);
    for secret in before {
        // Not a byte was written.
        let name = secret["metadata"]["name"].as_str().unwrap();
        assert_eq!(world.secret(name).await, Some(secret.clone()));
    }
}

#[tokio::test]
async fn a_key_in_pkcs8_is_read_too() {
    let world = World::start().await;
    world.namespace().await;
    let authority = Authority::create(UnixTime::now()).unwrap();
    let data = json!({"cadata": BASE64.encode(authority.certificate().der()),
        "cakeydata": BASE64.encode(authority.key().pkcs8_der())});
    world.make_secret("casecret", data).await;
    let material = load(&world, &hub("")).await;
    assert_eq!(material.authority.key(), authority.key());
}

#[tokio::test]
async fn the_server_certificate_follows_its_names() {
    let world = World::start().await;
    let first = load(&world, &hub("")).await;
    let hash = |material: &Material| material.server.certificate().hash();
    assert_eq!(hash(&load(&world, &hub("")).await), hash(&first));
    let moved = hub("advertiseAddress: [192.0.2.1, 192.0.2.2]\ndnsNames: [hub.example.org]");
    let second = load(&world, &moved).await;
    let info = second.server.certificate().info();
    assert_ne!(hash(&second), hash(&first));
    assert_eq!(
        (info.ips.len(), info.dns_names.as_slice()),
        (2, ["hub.example.org".to_owned()].as_slice())
    );
    assert_eq!(second.authority.certificate(), first.authority.certificate());
    assert_eq!(hash(&load(&world, &moved).await), hash(&second));

    // A name that nobody wants any more is gone too.
    let third = load(&world, &hub("")).await;
    assert_eq!(third.server.certificate().info().ips.len(), 1);

    // What cannot be read is replaced: edges do not know the server's certificate, only who signed it.
    let mut secret = world.secret("cloudcoresecret").await.unwrap();
    secret["data"]["cloudcoredata"] = BASE64.encode("broken").into();
    world.put_secret(&secret).await;
    assert_ne!(hash(&load(&world, &hub("")).await), hash(&third));
}

#[tokio::test]
async fn a_broken_authority_is_never_replaced_silently() {
    let world = World::start().await;
    world.namespace().await;
    world
        .make_secret("casecret", json!({"cadata": BASE64.encode("broken")}))
        .await;
    let error = material::load_or_create(&world.cluster, &hub(""))
        .await
        .unwrap_err();
    expect_test::expect!["use secret kubeedge/casecret; restore it from a backup, or delete it to begin with a new authority that every edge must join anew: secret kubeedge/casecret has no cakeydata"].assert_eq(&format!("{error:#}"));
}

#[tokio::test]
async fn files_of_the_operator_count_and_are_written_to_the_secrets() {
    let world = World::start().await;
    let directory = Directory::new("own-files");
    let now = UnixTime::now();
    let authority = Authority::create_named("example.org", now).unwrap();
    let names = ServerNames {
        ips: vec![],
        dns: vec!["hub.example.org".into()],
    };
    let server = authority.issue_server(&names, now).unwrap();
    let at = |name: &str| directory.0.join(name);
    kedge_pki::write_private(&at("ca.crt"), authority.certificate().pem().as_bytes()).unwrap();
    kedge_pki::write_private(&at("ca.key"), authority.key().pkcs8_pem().as_bytes()).unwrap();
    kedge_pki::write_private(&at("server.crt"), server.certificate().pem().as_bytes()).unwrap();
    kedge_pki::write_private(&at("server.key"), server.key().pem().as_bytes()).unwrap();
    let dir = directory.0.display();
    let own = hub(&format!(
        "tlsCAFile: {dir}/ca.crt\ntlsCAKeyFile: {dir}/ca.key\ntlsCertFile: {dir}/server.crt\ntlsPrivateKeyFile: {dir}/server.key"
    ));
    // Something else was there before.
    let before = load(&world, &hub("")).await;
    let material = load(&world, &own).await;
    assert_ne!(before.authority.certificate(), authority.certificate());
    assert_eq!(material.authority.certificate(), authority.certificate());
    assert_eq!(material.server, server);
    let secret = world.secret("casecret").await.unwrap();
    let stored = |key: &str| BASE64.decode(secret["data"][key].as_str().unwrap()).unwrap();
    assert_eq!(stored("cadata"), authority.certificate().der());
    assert_eq!(stored("cakeydata"), authority.key().sec1_der());
    // Another replica without the files takes the same authority.
    assert_eq!(
        load(&world, &hub("")).await.authority.certificate(),
        authority.certificate()
    );

    let mut told = Vec::new();
    let mut fails = async |own: &kedge_config::CloudHub| {
        let error = material::load_or_create(&world.cluster, own).await.unwrap_err();
        told.push(format!("{error:#}").replace(&dir.to_string(), "DIR"));
    };
    kedge_pki::write_private(
        &at("ca.key"),
        b"-----BEGIN RSA PRIVATE KEY-----\n-----END RSA PRIVATE KEY-----\n",
    )
    .unwrap();
    fails(&own).await;
    std::fs::remove_file(at("ca.key")).unwrap();
    fails(&own).await;
    kedge_pki::write_private(&at("ca.key"), authority.key().pem().as_bytes()).unwrap();
    kedge_pki::write_private(&at("server.key"), authority.key().pem().as_bytes()).unwrap();
    fails(&own).await;
    // The certificate of an edge on the same machine lies at the same official place.
    let node = authority
        .issue_client("system:node:edge-1", &["system:nodes"], HOUR, now)
        .unwrap();
    let files = IdentityFiles {
        authority: at("rootCA.crt"),
        certificate: at("server.crt"),
        key: at("server.key"),
    };
    files.save(&node).unwrap();
    fails(&own).await;
    let early = authority
        .issue_server(
            &names,
            UnixTime::since_unix_epoch(Duration::from_secs(u64::from(u32::MAX))),
        )
        .unwrap();
    files.save(&early).unwrap();
    fails(&own).await;
    let told = told
        .join("\n")
        .replace(&kedge_pki::show_time(UnixTime::now())[..16], "NOW");
    let told: Vec<&str> = told
        .lines()
        .map(|line| line.split(" says NOW").next().unwrap())
        .collect();
    expect_test::expect![[r#"
        use modules.cloudHub.tlsCAFile DIR/ca.crt and modules.cloudHub.tlsCAKeyFile DIR/ca.key: read private key: it is an RSA key; only keys of the curve P-256 are taken
        modules.cloudHub.tlsCAFile DIR/ca.crt exists but modules.cloudHub.tlsCAKeyFile DIR/ca.key does not; put both there, or name "" for both to use the secret
        use modules.cloudHub.tlsCertFile DIR/server.crt and modules.cloudHub.tlsPrivateKeyFile DIR/server.key: the certificate KubeEdge does not belong to the private key beside it
        modules.cloudHub.tlsCertFile DIR/server.crt is the certificate of node edge-1, not of a server; name another file, or "" for none
        modules.cloudHub.tlsCertFile DIR/server.crt is valid from 2106-02-07T06:23:15Z to 2205-10-06T06:28:15Z and the clock of this machine"#]].assert_eq(&told.join("\n"));
}

#[tokio::test]
async fn the_shared_token_is_renewed_in_its_second_half_by_one_replica() {
    let world = World::start().await;
    let material = load(&world, &hub("")).await;
    let version = async || {
        world
            .secret("tokensecret")
            .await
            .map(|secret: Value| secret["metadata"]["resourceVersion"].clone())
    };
    let current = async |interval| {
        shared::current(&world.cluster, &material.authority, interval)
            .await
            .unwrap()
    };
    let first = current(HOUR).await;
    let written = version().await;
    assert_eq!(current(HOUR).await, first);
    assert_eq!(version().await, written);
    // Less than this interval is left: as if half of its life were over.
    let second = current(3 * HOUR).await;
    assert_ne!(second, first);
    let tokens = tokio::join!(current(7 * HOUR), current(7 * HOUR), current(7 * HOUR));
    assert_ne!(tokens.0, second);
    assert!(tokens.0 == tokens.1 && tokens.1 == tokens.2);
    // The former ones stay valid until they expire.
    let now = UnixTime::now();
    assert!(JoinToken::verify_bearer(first.bearer(), &material.authority, now).is_ok());

    // A token of another authority, or none at all, is replaced.
    for data in [json!({"tokendata": BASE64.encode("nonsense")}), json!({})] {
        let mut secret = world.secret("tokensecret").await.unwrap();
        secret["data"] = data;
        world.put_secret(&secret).await;
        let token = current(HOUR).await;
        assert!(JoinToken::verify_bearer(token.bearer(), &material.authority, now).is_ok());
    }
}
