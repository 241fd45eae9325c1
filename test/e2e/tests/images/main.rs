//! Images from and for others: a real registry with a password, images that umoci and buildah built, archives that
//! containerd and skopeo take. Needs Debian's `docker-registry`, `umoci`, `buildah`, `skopeo` and `containerd`, and fails
//! where one is missing.

// A test fails where it stands.
#![allow(clippy::unwrap_used)]

mod pods;
mod registry;

use kedge_containerd::Containerd;
use kedge_containers::{ContainerConfig, ContainerState, Credentials};
use kedge_e2e::{FACT_DEADLINE, Folder, binary, runtimes, wait_for};
use kedge_registry::Progress;
use kedge_runtime::embedded::{Config, HelperProgram, Images, NetworkConfig, RootfsChoice};
use kedge_runtime::{Embedded, Error, Runtime, helper};
use registry::{Gate, PASSWORD, Registry, USER, buildah_image, run, umoci_image};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const NOISE_BYTES: usize = 4 * 1024 * 1024;
/// Within the noise, and beyond everything that comes before it.
const SHUT_AFTER_BYTES: usize = 3 * 1024 * 1024;

fn user(password: &str) -> Credentials {
    Credentials {
        username: USER.to_owned(),
        password: password.to_owned(),
        ..Credentials::default()
    }
}

fn registries(hosts: &[String]) -> kedge_registry::Config {
    kedge_registry::Config {
        plain_http: hosts.to_vec(),
        retry: Duration::from_millis(20),
        ..kedge_registry::Config::new(kedge_host::architecture())
    }
}

async fn pull(
    images: &Images,
    config: kedge_registry::Config,
    name: &str,
    asker: &[Credentials],
) -> Result<String, Error> {
    let pulled = images.pull(config, name, asker, &Progress::default()).await;
    pulled.map(|image| image.id)
}

/// An error with its causes.
fn words(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[tokio::test]
async fn a_registry_with_a_password() {
    let folder = Folder::new("images-password");
    let registry = Registry::start(&folder.path);
    let layout = umoci_image(&folder.path, 1000);
    registry.push(&format!("oci:{}:1", layout.display()), "team/tool:1");
    let images = Images::open(&folder.path.join("node")).unwrap();
    let name = format!("{}/team/tool:1", registry.host());
    let config = || registries(&[registry.host()]);

    let error = pull(&images, config(), &name, &[]).await.unwrap_err();
    assert!(
        words(&error).contains("wants a name and a password"),
        "{}",
        words(&error)
    );
    let error = pull(&images, config(), &name, &[user("wrong")])
        .await
        .unwrap_err();
    assert!(words(&error).contains("refuses"), "{}", words(&error));
    // Without TLS nothing is asked that nobody named.
    let error = pull(&images, registries(&[]), &name, &[user(PASSWORD)])
        .await
        .unwrap_err();
    assert!(words(&error).contains("cannot be reached"), "{}", words(&error));
    let absent = format!("{}/team/absent:1", registry.host());
    let error = pull(&images, config(), &absent, &[user(PASSWORD)])
        .await
        .unwrap_err();
    assert!(
        words(&error).contains("is not in the registry"),
        "{}",
        words(&error)
    );
    assert_eq!(images.list().await.unwrap(), []);

    // A pull secret may name several; one of them fits.
    let id = pull(&images, config(), &name, &[user("wrong"), user(PASSWORD)])
        .await
        .unwrap();
    let listed = images.list().await.unwrap();
    assert_eq!(
        (&listed[0].id, listed[0].tags.as_slice()),
        (&id, std::slice::from_ref(&name))
    );
    assert_eq!(listed[0].digests.len(), 1);
    // By its digest it is the same.
    let again = pull(&images, config(), &listed[0].digests[0], &[user(PASSWORD)])
        .await
        .unwrap();
    assert_eq!(again, id);
    assert_eq!(
        std::fs::read_dir(folder.path.join("node/pulls")).unwrap().count(),
        0
    );
}

#[tokio::test]
async fn a_registry_that_stalls_in_a_layer() {
    let folder = Folder::new("images-stall");
    let registry = Registry::start(&folder.path);
    let layout = umoci_image(&folder.path, NOISE_BYTES);
    registry.push(&format!("oci:{}:1", layout.display()), "big:1");
    let gate = Gate::before(&registry);
    gate.shut_after(SHUT_AFTER_BYTES);
    let images = Images::open(&folder.path.join("node")).unwrap();
    let name = format!("{}/big:1", gate.host());
    let patient = registries(&[gate.host()]);
    let hasty = kedge_registry::Config {
        // More than checking a password takes on a machine with other things to do.
        stall: Duration::from_secs(3),
        ..patient.clone()
    };
    let began = Instant::now();
    let error = pull(&images, hasty, &name, &[user(PASSWORD)]).await.unwrap_err();
    assert!(words(&error).contains("sent nothing for"), "{}", words(&error));
    assert!(began.elapsed() < FACT_DEADLINE, "{:?}", began.elapsed());
    gate.open();
    pull(&images, patient, &name, &[user(PASSWORD)]).await.unwrap();
    assert!(
        gate.asked().to_lowercase().contains("range: bytes="),
        "it went on where it stopped"
    );
}

/// `kedge image pull` with the password from a file.
fn kedge_pull(folder: &Path, name: &str) -> Command {
    let password = folder.join("password");
    std::fs::write(&password, PASSWORD).unwrap();
    let mut command = Command::new(binary("kedge"));
    command
        .arg("--data-dir")
        .arg(folder.join("data"))
        .args(["image", "pull", "--plain-http"]);
    command
        .args(["--username", USER, "--password-file"])
        .arg(password)
        .arg(name);
    command
}

fn partial(folder: &Path) -> Option<u64> {
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    let sizes = entries.filter_map(|entry| {
        let path = entry.path();
        match path.extension() {
            Some(extension) if extension == "partial" => Some(entry.metadata().ok()?.len()),
            _other => partial(&path),
        }
    });
    sizes.max()
}

#[tokio::test]
async fn a_pull_that_was_killed_goes_on() {
    let folder = Folder::new("images-kill");
    let registry = Registry::start(&folder.path);
    let layout = umoci_image(&folder.path, NOISE_BYTES);
    registry.push(&format!("oci:{}:1", layout.display()), "big:1");
    let gate = Gate::before(&registry);
    gate.shut_after(SHUT_AFTER_BYTES);
    let name = format!("{}/big:1", gate.host());
    let data = folder.path.join("data");
    let mut first = kedge_pull(&folder.path, &name).spawn().unwrap();
    // Layers come side by side and share what passes the gate; the other one, of one megabyte, may end at any moment.
    let much = SHUT_AFTER_BYTES as u64 / 2;
    wait_for("much of a layer", || match partial(&data) {
        Some(bytes) if bytes > much => Ok(()),
        other => Err(format!("{other:?}")),
    });
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(
        partial(&data).is_some_and(|bytes| bytes > much),
        "what came is kept"
    );
    let before = gate.asked().len();
    gate.open();
    let second = kedge_pull(&folder.path, &name).output().unwrap();
    assert!(
        second.status.success(),
        "{}",
        String::from_utf8_lossy(&second.stderr)
    );
    assert!(
        gate.asked()[before..].to_lowercase().contains("range: bytes="),
        "only the rest was fetched"
    );
    let list = Command::new(binary("kedge"))
        .arg("--data-dir")
        .arg(&data)
        .args(["image", "ls"])
        .output();
    assert!(String::from_utf8_lossy(&list.unwrap().stdout).contains(&name));
    assert_eq!(partial(&data), None);
}

#[tokio::test]
async fn an_exported_image_is_the_same_everywhere() {
    let folder = Folder::new("images-export");
    let registry = Registry::start(&folder.path);
    let layout = umoci_image(&folder.path, 100_000);
    registry.push(&format!("oci:{}:1", layout.display()), "tool:1");
    let name = format!("{}/tool:1", registry.host());
    let config = registries(&[registry.host()]);
    let images = Images::open(&folder.path.join("node")).unwrap();
    let id = pull(&images, config.clone(), &name, &[user(PASSWORD)])
        .await
        .unwrap();
    let archive = folder.path.join("tool.tar");
    images.export(&name, archive.clone()).await.unwrap();

    // Skopeo takes it to the registry, and from there it is the same image, in both of its formats.
    for (format, tag) in [("oci-archive", "oci"), ("docker-archive", "docker")] {
        registry.push(&format!("{format}:{}", archive.display()), &format!("tool:{tag}"));
        let other = Images::open(&folder.path.join(tag)).unwrap();
        let back = format!("{}/tool:{tag}", registry.host());
        let back = pull(&other, config.clone(), &back, &[user(PASSWORD)])
            .await
            .unwrap();
        // A Docker archive has a configuration of its own kind.
        assert!(format == "docker-archive" || back == id, "{back} is not {id}");
    }
    // Containerd takes and unpacks it, which verifies every layer.
    let containerd = Containerd::start(&folder.path).await.unwrap();
    containerd.import(&archive).unwrap();
    assert!(containerd.ctr(&["images", "ls"]).unwrap().contains(&name));
    let exported = folder.path.join("from-containerd.tar");
    containerd
        .ctr(&["images", "export", &exported.display().to_string(), &name])
        .unwrap();
    containerd.end().await;
    let other = Images::open(&folder.path.join("again")).unwrap();
    assert_eq!(other.import(exported).await.unwrap()[0].id, id);
}

fn node(directory: &Path) -> Config {
    let own = std::process::id();
    Config {
        root: directory.join("node"),
        helper: HelperProgram {
            executable: Some(binary("edgecore")),
            word: helper::WORD.to_owned(),
        },
        cgroup_root: format!("/kedge-images-{own}"),
        network: Some(NetworkConfig {
            bridge: format!("ki{}", own % 1_000_000),
            pod_cidrs: vec![(Ipv4Addr::new(10, 215, 215, 0).into(), 24)],
            cni: None,
        }),
        rootfs: RootfsChoice::Automatic,
        device_directories: Vec::new(),
        log_bytes_max: kedge_runtime::embedded::LOG_BYTES_MAX_DEFAULT,
        registries: registries(&[]),
    }
}

/// What a container of an image says when it runs a script.
async fn said(runtime: &Embedded, folder: &Path, pod: &str, image: &str, script: &str) -> Vec<String> {
    let (pod, main) = runtimes::pod(folder, pod, image, &[]);
    let main = ContainerConfig {
        args: ["sh", "-c", script].map(str::to_owned).to_vec(),
        ..main
    };
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let id = runtimes::start_container(runtime, &sandbox, &pod, &main).await;
    let began = Instant::now();
    loop {
        let all = runtime.list().await.unwrap();
        let found = all
            .iter()
            .flat_map(|sandbox| &sandbox.containers)
            .find(|container| container.id == id);
        if found.is_some_and(|container| matches!(container.state, ContainerState::Exited { .. })) {
            break;
        }
        assert!(began.elapsed() < FACT_DEADLINE, "{found:?}");
        runtime.changed().await;
    }
    let log = std::fs::read_to_string(pod.log_dir.join(&main.log_path)).unwrap();
    let words = log.lines().filter_map(|line| line.splitn(4, ' ').nth(3));
    words.map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_built_runs_unchanged() {
    let folder = Folder::new("images-built");
    let layout = umoci_image(&folder.path, 1000).display().to_string();
    let archive = folder.path.join("umoci.tar");
    run(
        "tar",
        &["-C", &layout, "-cf", &archive.display().to_string(), "."],
    );
    let runtime = Embedded::open(node(&folder.path)).await.unwrap();
    let imported = runtime.import_image(archive).await.unwrap();
    let script = "echo $WHO; cat text; pwd; ls /opt";
    let lines = said(&runtime, &folder.path, "umoci", &imported[0].id, script).await;
    assert_eq!(lines, ["umoci", "from umoci", "/opt/sub", "sub"]);

    let archive = buildah_image(&folder.path);
    let imported = runtime.import_image(archive).await.unwrap();
    assert_eq!(imported[0].tags, ["kedge.test/built:2"]);
    let script = "echo $WHO; cat /opt/text; ls /opt; cmp /usr/bin/again /bin/busybox && echo linked; stat -c %a /shared";
    let lines = said(&runtime, &folder.path, "buildah", &imported[0].id, script).await;
    assert_eq!(lines, ["buildah", "second", "text", "linked", "1777"]);
    runtime.purge().await.unwrap();
}
