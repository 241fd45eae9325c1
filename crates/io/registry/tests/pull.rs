//! Pulls from a registry of this test, which answers byte by byte what the story wants.

// A test fails where it stands.
#![allow(clippy::unwrap_used)]

mod registry;

use kedge_containers::{Credentials, Reference};
use kedge_registry::{Client, Config, Error, Into, Progress, Pulled};
use registry::{Answer, Image, Server};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("kedge-registry-{}-{number}", std::process::id()));
        Self(path)
    }

    fn blob(&self, digest: &str) -> PathBuf {
        self.0
            .join("blobs/sha256")
            .join(digest.trim_start_matches("sha256:"))
    }

    fn has(&self, digest: &str) -> bool {
        self.blob(digest).exists()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What hangs is given up late: only the story of a server that hangs shall see it, not one on a busy machine.
fn config(server: &Server) -> Config {
    Config {
        plain_http: vec![server.host()],
        retry: Duration::from_millis(1),
        ..Config::new("amd64")
    }
}

async fn pull(config: Config, name: &str, asker: &[Credentials], folder: &Folder) -> Result<Pulled, Error> {
    let reference: Reference = name.parse().unwrap();
    let into = Into {
        folder: &folder.0,
        has_layer: &|_| false,
        progress: &Progress::default(),
    };
    Client::new(config).unwrap().pull(&reference, asker, into).await
}

fn user() -> Credentials {
    Credentials {
        username: "gate".into(),
        password: "sesame".into(),
        ..Credentials::default()
    }
}

/// `gate:sesame`.
const BASIC: &str = "Basic Z2F0ZTpzZXNhbWU=";

#[tokio::test]
async fn an_image_for_many_processors_behind_a_token() {
    let image = Image::new(&[b"first layer", b"second layer"]);
    let server = Server::start(move |server, request| {
        if request.path.starts_with("/token?") {
            let asked_well = request.path.contains("scope=repository%3Aapp%2Fgate%3Apull")
                && request.path.contains("service=here")
                && request.header("authorization") == BASIC;
            return if asked_well {
                Answer::json(r#"{"token": "t0k3n"}"#)
            } else {
                Answer::status(403)
            };
        }
        if request.header("authorization") != "Bearer t0k3n" {
            let challenge = format!("Bearer realm=\"http://{}/token\",service=\"here\"", server.host());
            return Answer::status(401).with("www-authenticate", &challenge);
        }
        image.answer("app/gate", &request)
    })
    .await;
    let folder = Folder::new();
    let name = format!("{}/app/gate:1", server.host());
    let pulled = pull(config(&server), &name, &[user()], &folder).await.unwrap();
    let image = Image::new(&[b"first layer", b"second layer"]);
    assert_eq!(pulled.digest, image.index_digest);
    assert!(image.layers.iter().all(|layer| folder.has(&layer.digest)) && folder.has(&image.manifest_digest));
    let index = std::fs::read_to_string(folder.0.join("index.json")).unwrap();
    assert!(index.contains(&image.manifest_digest) && index.contains(&name));

    // Another user gets the service's refusal, and nobody's token.
    let other = Credentials {
        username: "else".into(),
        ..user()
    };
    let error = pull(config(&server), &name, &[other], &Folder::new())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error}");
    // The right one of several is found.
    let both = [
        Credentials {
            username: "else".into(),
            ..user()
        },
        user(),
    ];
    pull(config(&server), &name, &both, &Folder::new()).await.unwrap();
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_stopped() {
    let image = Arc::new(Image::new(&[&[7; 100_000]]));
    let (tries, known) = (Arc::new(AtomicU32::new(0)), Arc::clone(&image));
    let counted = Arc::clone(&tries);
    let server = Server::start(move |_, request| {
        let answer = known.answer("app", &request);
        if !request.path.contains(&known.layers[0].digest) {
            return answer;
        }
        match counted.fetch_add(1, Ordering::Relaxed) {
            0 => answer.cut_after(30_000),
            1 => answer.hang_after(20_000),
            2 => Answer::status(503),
            _ => answer,
        }
    })
    .await;
    let folder = Folder::new();
    let name = format!("{}/app", server.host());
    let config = Config {
        stall: Duration::from_secs(1),
        ..config(&server)
    };
    pull(config, &name, &[], &folder).await.unwrap();
    assert_eq!(
        std::fs::read(folder.blob(&image.layers[0].digest)).unwrap(),
        [7; 100_000]
    );
    assert_eq!(tries.load(Ordering::Relaxed), 4);
    let ranges = server.asked("range");
    assert_eq!(ranges, ["bytes=30000-", "bytes=50000-", "bytes=50000-"]);
}

#[tokio::test]
async fn the_next_pull_goes_on_too_and_a_server_without_ranges_begins_again() {
    let image = Arc::new(Image::new(&[&[9; 50_000]]));
    let known = Arc::clone(&image);
    let server = Server::start(move |_, mut request| {
        request.forget("range");
        known.answer("app", &request)
    })
    .await;
    let folder = Folder::new();
    let partial = folder.blob(&image.layers[0].digest).with_extension("partial");
    std::fs::create_dir_all(partial.parent().unwrap()).unwrap();
    std::fs::write(&partial, [9; 20_000]).unwrap();
    pull(config(&server), &format!("{}/app", server.host()), &[], &folder)
        .await
        .unwrap();
    assert_eq!(server.asked("range"), ["bytes=20000-"]);
    assert_eq!(
        std::fs::read(folder.blob(&image.layers[0].digest)).unwrap(),
        [9; 50_000]
    );
}

#[tokio::test]
async fn what_has_another_digest_is_refused() {
    let image = Arc::new(Image::new(&[b"good"]));
    let known = Arc::clone(&image);
    let server = Server::start(move |_, request| {
        if request.path.contains(&known.layers[0].digest) {
            return Answer::bytes(b"evil");
        }
        known.answer("app", &request)
    })
    .await;
    let folder = Folder::new();
    let name = format!("{}/app", server.host());
    let error = pull(config(&server), &name, &[], &folder).await.unwrap_err();
    assert!(error.to_string().contains("has the digest"), "{error}");
    assert!(!folder.has(&image.layers[0].digest) && !folder.0.join("index.json").exists());
    assert!(
        !folder
            .blob(&image.layers[0].digest)
            .with_extension("partial")
            .exists()
    );

    // A manifest asked for by digest has to have it.
    let error = pull(
        config(&server),
        &format!("{name}@sha256:{}", "ab".repeat(32)),
        &[],
        &folder,
    )
    .await;
    assert!(matches!(error, Err(Error::NotFound { .. })), "{error:?}");
}

#[tokio::test]
async fn layers_that_are_here_are_left_out() {
    let image = Arc::new(Image::new(&[b"here", b"not here"]));
    let known = Arc::clone(&image);
    let server = Server::start(move |_, request| known.answer("app", &request)).await;
    let folder = Folder::new();
    let here = image.layers[0].diff_id.clone();
    let progress = Progress::default();
    let into = Into {
        folder: &folder.0,
        has_layer: &|chain| chain == std::slice::from_ref(&here),
        progress: &progress,
    };
    let reference: Reference = format!("{}/app", server.host()).parse().unwrap();
    let client = Client::new(config(&server)).unwrap();
    client.pull(&reference, &[], into).await.unwrap();
    assert!(!folder.has(&image.layers[0].digest) && folder.has(&image.layers[1].digest));
    assert_eq!(progress.done_bytes(), progress.total_bytes());
}

#[tokio::test]
async fn mirrors_come_first_and_may_fail() {
    let image = Arc::new(Image::new(&[b"layer"]));
    let known = Arc::clone(&image);
    let mirror = Server::start(move |_, request| known.answer("library/app", &request)).await;
    let broken = Server::start(|_, _| Answer::status(500)).await;
    let config = Config {
        plain_http: vec![mirror.host(), broken.host()],
        mirrors: [("docker.io".to_owned(), vec![broken.host(), mirror.host()])].into(),
        retry: Duration::from_millis(1),
        ..Config::new("amd64")
    };
    let folder = Folder::new();
    pull(config, "app", &[user()], &folder).await.unwrap();
    assert!(folder.has(&image.layers[0].digest));
    let told = mirror.asked("authorization");
    assert!(told.is_empty(), "the registry's credentials are not the mirror's");
}

#[tokio::test]
async fn credentials_stay_with_their_host() {
    let image = Arc::new(Image::new(&[b"layer"]));
    let known = Arc::clone(&image);
    let store = Server::start(move |_, request| known.answer("app", &request)).await;
    let (known, elsewhere) = (Arc::clone(&image), store.host());
    let server = Server::start(move |_, request| {
        if request.header("authorization") != BASIC {
            return Answer::status(401).with("www-authenticate", "Basic realm=\"x\"");
        }
        if request.path.contains("/blobs/") {
            let place = format!("http://{elsewhere}{}?signed=yes", request.path);
            return Answer::status(307).with("location", &place);
        }
        known.answer("app", &request)
    })
    .await;
    let config = Config {
        plain_http: vec![server.host(), store.host()],
        ..config(&server)
    };
    let folder = Folder::new();
    let name = format!("{}/app", server.host());
    pull(config, &name, &[user()], &folder).await.unwrap();
    assert!(folder.has(&image.layers[0].digest));
    assert_eq!(store.asked("authorization"), Vec::<String>::new());
}

#[tokio::test]
async fn whom_a_registry_redirects_to_learns_nothing() {
    // It asks for a name itself, and would like to be told by way of a token service of its own.
    let elsewhere = Server::start(|server, request| {
        if request.path.starts_with("/token") {
            return Answer::json(r#"{"token": "t0k3n"}"#);
        }
        let challenge = format!("Bearer realm=\"http://{}/token\"", server.host());
        Answer::status(401).with("www-authenticate", &challenge)
    })
    .await;
    let image = Arc::new(Image::new(&[b"layer"]));
    let place = elsewhere.host();
    let server = Server::start(move |server, request| {
        if request.path.starts_with("/token") {
            return Answer::status(307).with("location", &format!("http://{place}/token"));
        }
        if request.path.contains("/blobs/") {
            return Answer::status(307).with("location", &format!("http://{place}{}", request.path));
        }
        if request.header("authorization").is_empty() && request.path.contains("/locked/") {
            let challenge = format!("Bearer realm=\"http://{}/token\"", server.host());
            return Answer::status(401).with("www-authenticate", &challenge);
        }
        image.answer("app", &request)
    })
    .await;
    let config = || Config {
        plain_http: vec![server.host(), elsewhere.host()],
        ..config(&server)
    };
    let name = format!("{}/app", server.host());
    let error = pull(config(), &name, &[user()], &Folder::new())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::Denied { host, .. } if *host == elsewhere.host()),
        "{error}"
    );
    // What stands in a body is no less a secret.
    let asker = Credentials {
        identity_token: "sesame".into(),
        ..Credentials::default()
    };
    let name = format!("{}/locked/app", server.host());
    let error = pull(config(), &name, &[asker], &Folder::new()).await.unwrap_err();
    assert!(error.to_string().contains("redirects a secret"), "{error}");
    assert_eq!(elsewhere.asked("authorization"), Vec::<String>::new());
    assert_eq!(elsewhere.bodies(), Vec::<String>::new());
}

#[tokio::test]
async fn what_a_power_cut_tore_is_fetched_again() {
    let image = Arc::new(Image::new(&[&[9; 50_000]]));
    let known = Arc::clone(&image);
    let server = Server::start(move |_, request| known.answer("app", &request)).await;
    let folder = Folder::new();
    let partial = folder.blob(&image.layers[0].digest).with_extension("partial");
    std::fs::create_dir_all(partial.parent().unwrap()).unwrap();
    std::fs::write(&partial, [0; 20_000]).unwrap();
    pull(config(&server), &format!("{}/app", server.host()), &[], &folder)
        .await
        .unwrap();
    assert_eq!(
        std::fs::read(folder.blob(&image.layers[0].digest)).unwrap(),
        [9; 50_000]
    );
}

#[tokio::test]
async fn a_digest_has_one_size() {
    let image = Arc::new(Image::new(&[&[9; 50_000]]));
    let layer = image.layers[0].digest.clone();
    let (known, digest) = (Arc::clone(&image), layer.clone());
    let server = Server::start(move |_, request| {
        if request.path.contains("/manifests/") {
            // A layer of gigabytes that an earlier pull left must not be read as a configuration.
            let lie = format!(r#"{{"digest": "{digest}", "size": 12}}"#);
            let manifest = format!(r#"{{"schemaVersion": 2, "config": {lie}, "layers": []}}"#);
            let kind = "application/vnd.oci.image.manifest.v1+json";
            return Answer::bytes(manifest.as_bytes()).with("content-type", kind);
        }
        known.answer("app", &request)
    })
    .await;
    let folder = Folder::new();
    std::fs::create_dir_all(folder.blob(&layer).parent().unwrap()).unwrap();
    std::fs::write(folder.blob(&layer), [9; 50_000]).unwrap();
    let name = format!("{}/app", server.host());
    let error = pull(config(&server), &name, &[], &folder).await.unwrap_err();
    assert!(error.to_string().contains("has 50000 bytes, not 12"), "{error}");
}

#[tokio::test]
async fn a_registry_may_offer_several_ways_to_say_who_asks() {
    let image = Arc::new(Image::new(&[b"layer"]));
    let known = Arc::clone(&image);
    let server = Server::start(move |_, request| {
        if request.header("authorization") == BASIC {
            return known.answer("app", &request);
        }
        let refused = Answer::status(401).with("www-authenticate", "Negotiate");
        refused.with("www-authenticate", "Basic realm=\"x\"")
    })
    .await;
    let name = format!("{}/app", server.host());
    pull(config(&server), &name, &[user()], &Folder::new())
        .await
        .unwrap();
}

#[tokio::test]
async fn registries_that_hang_and_that_drip() {
    for (said, answer) in [
        ("sent nothing for", Answer::bytes(b"{}").hang_after(1)),
        ("for a document", Answer::bytes(&[b' '; 5000]).drip()),
    ] {
        let server = Server::start(move |_, _| answer.clone()).await;
        let config = Config {
            stall: Duration::from_millis(500),
            ..config(&server)
        };
        let name = format!("{}/app", server.host());
        let error = pull(config, &name, &[], &Folder::new()).await.unwrap_err();
        assert!(error.to_string().contains(said), "{said}: {error}");
    }
}

#[tokio::test]
async fn hostile_and_broken_registries() {
    type Story = fn(&Server, &registry::Request) -> Answer;
    let stories: [(&str, Story); 5] = [
        ("more than 5 times", |server, _| {
            Answer::status(302).with("location", &format!("http://{}/again", server.host()))
        }),
        ("without TLS", |_, _| {
            Answer::status(302).with("location", "http://evil.example/x")
        }),
        ("without TLS, which is not asked", |_, _| {
            Answer::status(401).with("www-authenticate", "Bearer realm=\"http://evil.example/token\"")
        }),
        ("longer than", |_, _| Answer::bytes(&vec![b' '; 5 * 1024 * 1024])),
        ("MANIFEST_INVALID: no such thing", |_, _| {
            let mut answer =
                Answer::json(r#"{"errors": [{"code": "MANIFEST_INVALID", "message": "no such thing"}]}"#);
            answer.status = 400;
            answer
        }),
    ];
    for (said, story) in stories {
        let server = Server::start(move |server, request| story(server, &request)).await;
        let name = format!("{}/app", server.host());
        let error = pull(config(&server), &name, &[], &Folder::new())
            .await
            .unwrap_err();
        assert!(error.to_string().contains(said), "{said}: {error}");
    }
    let nobody = Config {
        plain_http: vec!["127.0.0.1:1".into()],
        ..Config::new("amd64")
    };
    let error = pull(nobody, "127.0.0.1:1/app", &[], &Folder::new())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
}

#[tokio::test]
async fn a_registry_that_asks_to_come_back() {
    let image = Arc::new(Image::new(&[b"layer"]));
    let (known, asked) = (Arc::clone(&image), Arc::new(AtomicU32::new(0)));
    let counted = Arc::clone(&asked);
    let server = Server::start(move |_, request| match counted.fetch_add(1, Ordering::Relaxed) {
        // For the manifest, and again for a layer. A date says nothing that a clock of a device could use.
        0 => Answer::status(429).with("retry-after", "0"),
        4 => Answer::status(503).with("retry-after", "Wed, 21 Oct 2037 07:28:00 GMT"),
        _answers => known.answer("app", &request),
    })
    .await;
    let name = format!("{}/app", server.host());
    pull(config(&server), &name, &[], &Folder::new()).await.unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 6);

    // One that is always busy is given up, and nothing of its waiting is longer than what was told.
    let busy = Server::start(|_, _| Answer::status(429).with("retry-after", "1")).await;
    let name = format!("{}/app", busy.host());
    let began = std::time::Instant::now();
    let error = pull(config(&busy), &name, &[], &Folder::new()).await.unwrap_err();
    assert!(
        matches!(error, Error::Busy { after: Some(after), .. } if after.as_secs() == 1),
        "{error}"
    );
    assert!(
        began.elapsed() >= Duration::from_secs(2),
        "two pauses, as it was told"
    );
}

#[tokio::test]
async fn an_image_for_others_is_refused_before_its_layers_are_fetched() {
    let image = Arc::new(Image::new(&[b"layer"]));
    let known = Arc::clone(&image);
    let server = Server::start(move |_, request| {
        // Named by its manifest, which says nothing of processors.
        let by_digest = request.path.replace(
            "/manifests/latest",
            &format!("/manifests/{}", known.manifest_digest),
        );
        known.answer("app", &request.at(&by_digest))
    })
    .await;
    let config = Config {
        architecture: "arm".to_owned(),
        variant: Some("v7".to_owned()),
        ..config(&server)
    };
    let folder = Folder::new();
    let name = format!("{}/app", server.host());
    let error = pull(config, &name, &[], &folder).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{name}:latest is for linux/amd64, and this node is linux/arm/v7")
    );
    assert!(!folder.has(&image.layers[0].digest));
}

#[tokio::test]
async fn what_does_not_fit_is_refused_before_it_fills_the_disk() {
    let huge: u64 = 1 << 60;
    let image = Image::new(&[b"layer"]);
    let config_digest = image.config_digest.clone();
    let server = Server::start(move |_, request| {
        if request.path.contains("/manifests/") {
            let layer = format!(r#"{{"digest": "sha256:{}", "size": {huge}}}"#, "ab".repeat(32));
            let config = format!(
                r#"{{"digest": "{config_digest}", "size": {}}}"#,
                image.config_bytes()
            );
            let manifest = format!(r#"{{"schemaVersion": 2, "config": {config}, "layers": [{layer}]}}"#);
            let kind = "application/vnd.oci.image.manifest.v1+json";
            return Answer::bytes(manifest.as_bytes()).with("content-type", kind);
        }
        image.answer("app", &request)
    })
    .await;
    let name = format!("{}/app", server.host());
    let error = pull(config(&server), &name, &[], &Folder::new())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    let config = Config {
        image_bytes_max: u64::MAX,
        ..config(&server)
    };
    let error = pull(config, &name, &[], &Folder::new()).await.unwrap_err();
    assert!(
        matches!(error, Error::NoRoom { .. }) && error.is_full_disk(),
        "{error}"
    );
}

#[tokio::test]
async fn a_server_that_drips_is_given_up() {
    let image = Arc::new(Image::new(&[&[3; 100_000]]));
    let known = Arc::clone(&image);
    let server = Server::start(move |_, request| {
        let answer = known.answer("app", &request);
        if request.path.contains(&known.layers[0].digest) {
            return answer.cut_after(10);
        }
        answer
    })
    .await;
    let folder = Folder::new();
    let name = format!("{}/app", server.host());
    let error = pull(config(&server), &name, &[], &folder).await.unwrap_err();
    assert!(
        matches!(error, Error::Broken { .. } | Error::Truncated { .. }),
        "{error}"
    );
    let partial = folder.blob(&image.layers[0].digest).with_extension("partial");
    assert!(std::fs::metadata(partial).unwrap().len() < 1000);
}
