//! Archives, good and bad. Needs root, because layers belong to many users.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod node;

use kedge_containers::SandboxConfig;
use kedge_runtime::embedded::{Config, Images, RootfsChoice};
use kedge_runtime::image::{Blueprint, build_archive};
use kedge_runtime::{Embedded, Error, Runtime};
use node::{IMAGE, Node, busybox, container, outcome};
use std::io::Write;

/// One member of a layer.
enum Member<'a> {
    File(&'a str, &'a [u8]),
    Directory(&'a str),
    Symlink(&'a str, &'a str),
    Link(&'a str, &'a str),
    Device(&'a str),
}

/// A layer made by hand, so that it can be as bad as a stranger's.
fn layer(members: &[Member<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for member in members {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        let (path, kind, target, bytes): (&str, _, _, &[u8]) = match member {
            Member::File(path, bytes) => (path, tar::EntryType::Regular, None, bytes),
            Member::Directory(path) => (path, tar::EntryType::Directory, None, b""),
            Member::Symlink(path, target) => (path, tar::EntryType::Symlink, Some(*target), b""),
            Member::Link(path, target) => (path, tar::EntryType::Link, Some(*target), b""),
            Member::Device(path) => (path, tar::EntryType::Char, None, b""),
        };
        header.set_entry_type(kind);
        header.set_size(bytes.len() as u64);
        // The tar crate refuses `..`, which is what has to be written here.
        let name = &mut header.as_gnu_mut().unwrap().name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        if let Some(target) = target {
            let link = &mut header.as_gnu_mut().unwrap().linkname;
            link[..target.len()].copy_from_slice(target.as_bytes());
        }
        header.set_cksum();
        builder.append(&header, bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

fn digest(bytes: &[u8]) -> String {
    use sha2::Digest;
    let hash = sha2::Sha256::digest(bytes);
    format!(
        "sha256:{}",
        hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    )
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// What `docker save` writes.
fn docker_archive(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    packed_archive(name, layers, <[u8]>::to_vec)
}

/// The same with layers that are compressed one by one.
fn packed_archive(name: &str, layers: &[Vec<u8>], pack: fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let packed: Vec<Vec<u8>> = layers.iter().map(|layer| pack(layer)).collect();
    let names: Vec<String> = (0..layers.len())
        .map(|number| format!("{number}/layer.tar"))
        .collect();
    let config = serde_json::json!({
        "architecture": kedge_host::architecture(),
        "os": "linux",
        "config": { "Cmd": ["/bin/busybox", "sh", "-c", "true"] },
        "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|layer| digest(layer)).collect::<Vec<_>>() },
    });
    let manifest = serde_json::json!([{ "Config": "c.json", "RepoTags": [name], "Layers": names }]);
    let (config, manifest) = (config.to_string(), manifest.to_string());
    let mut members: Vec<(&str, &[u8])> = vec![
        ("manifest.json", manifest.as_bytes()),
        ("c.json", config.as_bytes()),
    ];
    members.extend(
        names
            .iter()
            .zip(&packed)
            .map(|(name, layer)| (name.as_str(), layer.as_slice())),
    );
    archive(&members)
}

async fn with_runtime(story: impl AsyncFnOnce(&Node, &Embedded)) {
    tell(Node::new(), story).await;
}

async fn with_roots(rootfs: RootfsChoice, story: impl AsyncFnOnce(&Node, &Embedded)) {
    let mut node = Node::new();
    node.rootfs = rootfs;
    tell(node, story).await;
}

async fn tell(node: Node, story: impl AsyncFnOnce(&Node, &Embedded)) {
    if !Node::can_run_containers() {
        return;
    }
    let runtime = node.runtime().await;
    story(&node, &runtime).await;
    node.end(runtime).await;
}

async fn refusal(node: &Node, runtime: &Embedded, bytes: &[u8]) -> String {
    let path = node.write("bad.tar", bytes);
    let error = runtime.import_image(path.clone()).await.unwrap_err();
    assert!(matches!(error, Error::BadImage { .. }), "{error:?}");
    assert_eq!(runtime.images().await.unwrap(), [], "nothing of it is visible");
    let layers = std::fs::read_dir(node.directory.join("runtime/images/layers"))
        .unwrap()
        .count();
    assert_eq!(layers, 0, "nothing of it is left");
    error.to_string().replace(&path.display().to_string(), "bad.tar")
}

#[tokio::test]
async fn bad_archives_are_refused_with_one_sentence() {
    with_runtime(async |node, runtime| {
        let good = build_archive(&busybox()).unwrap();
        let sentences = [
            ("empty", vec![]),
            ("text", b"this is no archive, but it is longer than one block of one would be. ".repeat(20)),
            ("truncated", good[..good.len() / 2].to_vec()),
            ("no index", archive(&[("oci-layout", b"{}")])),
            ("index that is no JSON", archive(&[("index.json", b"{")])),
            ("zstd", vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0]),
            ("broken gzip", gzip(&good)[..1000].to_vec()),
        ];
        let mut said = String::new();
        for (name, bytes) in sentences {
            said += &format!("{name}: {}\n", refusal(node, runtime, &bytes).await);
        }
        expect_test::expect![[r#"
            empty: image bad.tar cannot be used: it is no image archive: it has neither index.json nor manifest.json
            text: image bad.tar cannot be used: it is no tar archive, or a broken one
            truncated: image bad.tar cannot be used: it is truncated
            no index: image bad.tar cannot be used: it is no image archive: it has neither index.json nor manifest.json
            index that is no JSON: image bad.tar cannot be used: index.json is not understood: EOF while parsing an object at line 1 column 1
            zstd: image bad.tar cannot be used: its compression is broken: Failed to parse/decode block body: Error while reading the block header
            broken gzip: image bad.tar cannot be used: its compression is broken: incomplete deflate stream
        "#]]
        .assert_eq(&said);
    })
    .await;
}

#[tokio::test]
async fn a_changed_byte_is_noticed_wherever_it_is() {
    with_runtime(async |node, runtime| {
        let good = build_archive(&busybox()).unwrap();
        let layer_start = good.len() / 2;
        let mut changed = good.clone();
        changed[layer_start] ^= 1;
        let said = refusal(node, runtime, &changed).await;
        assert!(
            said.ends_with("does not have the digest it is filed under"),
            "{said}"
        );
        let config = good
            .windows(12)
            .position(|window| window == b"\"FROM_IMAGE=")
            .unwrap();
        let mut changed = good.clone();
        changed[config + 1] = b'X';
        let said = refusal(node, runtime, &changed).await;
        assert!(
            said.ends_with("does not have the digest it is filed under"),
            "{said}"
        );
    })
    .await;
}

#[tokio::test]
async fn an_image_for_another_processor_is_refused() {
    with_runtime(async |node, runtime| {
        let foreign = Blueprint {
            architecture: "s390x".into(),
            ..busybox()
        };
        let said = refusal(node, runtime, &build_archive(&foreign).unwrap()).await;
        let here = kedge_host::architecture();
        assert_eq!(
            said,
            format!("image bad.tar cannot be used: it is for linux/s390x, and this node is linux/{here}")
        );
    })
    .await;
}

#[tokio::test]
async fn layers_cannot_reach_outside() {
    with_runtime(async |node, runtime| {
        let outside = node.directory.join("outside");
        let target = node.directory.to_string_lossy().into_owned();
        let attacks: [&[Member<'_>]; 5] = [
            &[Member::File("../../../outside", b"x")],
            &[Member::Symlink("way", &target), Member::File("way/outside", b"x")],
            &[Member::Link("passwd", "/etc/passwd")],
            &[Member::Link("up", "../../index.json")],
            &[Member::Symlink("dir", "/tmp"), Member::Directory("dir/sub")],
        ];
        for attack in attacks {
            let said = refusal(node, runtime, &docker_archive("bad:1", &[layer(attack)])).await;
            assert!(said.contains("cannot be used: layer sha256:"), "{said}");
            assert!(!outside.exists());
        }
        // Symbolic links may point anywhere: the container resolves them within itself. Devices are left out.
        let harmless = layer(&[
            Member::Symlink("etc", "/nowhere"),
            Member::Device("dev-sda"),
            Member::File("/abs", b"x"),
        ]);
        let path = node.write("harmless.tar", &docker_archive("harmless:1", &[harmless]));
        let [image] = &runtime.import_image(path).await.unwrap()[..] else {
            panic!("one image")
        };
        assert_eq!(image.tags, ["docker.io/library/harmless:1"]);
        assert_eq!(image.size_bytes, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_stack_and_deletions_hide() {
    if !Node::can_run_containers() {
        return;
    }
    for rootfs in [RootfsChoice::Automatic, RootfsChoice::Fuse, RootfsChoice::Copy] {
        let node = Node::new();
        let config = Config {
            rootfs,
            ..node.config()
        };
        let runtime = Embedded::open(config).await.unwrap();
        let busybox = std::fs::read("/usr/bin/busybox").unwrap();
        let lower = layer(&[
            Member::Directory("bin"),
            Member::File("bin/busybox", &busybox),
            Member::Link("bin/sh", "bin/busybox"),
            Member::Directory("kept"),
            Member::File("kept/old", b"old"),
            Member::File("kept/gone", b"gone"),
            Member::Directory("emptied"),
            Member::File("emptied/old", b"old"),
        ]);
        let upper = layer(&[
            Member::File("kept/.wh.gone", b""),
            Member::File("kept/new", b"new"),
            Member::Directory("emptied"),
            Member::File("emptied/.wh..wh..opq", b""),
            Member::File("emptied/new", b"new"),
        ]);
        let gzipped = gzip(&packed_archive("stack:1", &[lower, upper], zstd));
        let path = node.write("stack.tar.gz", &gzipped);
        runtime.import_image(path).await.unwrap();
        let pod = node.sandbox("pod");
        let sandbox = runtime.run_sandbox(&pod).await.unwrap();
        let config = kedge_containers::ContainerConfig {
            image: "stack:1".into(),
            command: vec!["/bin/sh".into(), "-c".into(), "ls kept emptied".into()],
            ..container("main", "")
        };
        let config = kedge_containers::ContainerConfig {
            args: vec![],
            ..config
        };
        let (code, lines) = outcome(&runtime, &sandbox, &config).await;
        assert_eq!(
            (code, lines.join(" ").as_str()),
            (0, "emptied: new  kept: new old")
        );
        node.end(runtime).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_layers_as_docker_makes() {
    for rootfs in [RootfsChoice::Automatic, RootfsChoice::Fuse] {
        with_roots(rootfs, many_layers).await;
    }
}

async fn many_layers(node: &Node, runtime: &Embedded) {
    let busybox = std::fs::read("/usr/bin/busybox").unwrap();
    let mut layers = vec![layer(&[
        Member::Directory("bin"),
        Member::File("bin/busybox", &busybox),
        Member::Link("bin/sh", "bin/busybox"),
        Member::Directory("all"),
    ])];
    layers.extend((1..127).map(|number| {
        let name = format!("all/{number}");
        layer(&[Member::Directory("all"), Member::File(&name, b"")])
    }));
    // A name for a file of the lowest.
    layers[126] = layer(&[Member::Directory("all"), Member::Link("all/126", "bin/busybox")]);
    let path = node.write("many.tar", &docker_archive("many:1", &layers));
    runtime.import_image(path).await.unwrap();
    let sandbox = runtime.run_sandbox(&node.sandbox("pod")).await.unwrap();
    let config = kedge_containers::ContainerConfig {
        image: "many:1".into(),
        command: vec!["/bin/sh".into(), "-c".into()],
        args: vec![
            "ls /all | wc -l; echo x > /all/1 && cat /all/1; cmp /all/126 /bin/busybox && echo linked".into(),
        ],
        ..container("main", "")
    };
    let (code, lines) = outcome(runtime, &sandbox, &config).await;
    assert_eq!((code, lines.join(" ").as_str()), (0, "126 x linked"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_are_shared_with_another_process() {
    with_runtime(async |node, runtime| {
        let images = Images::open(&node.config().root).unwrap();
        assert_eq!(runtime.image(IMAGE).await.unwrap(), None);
        let imported = images.import(node.archive()).await.unwrap();
        assert_eq!(runtime.images().await.unwrap(), imported);
        assert_eq!(runtime.image(IMAGE).await.unwrap().as_ref(), imported.first());

        let sandbox = runtime.run_sandbox(&node.sandbox("pod")).await.unwrap();
        let (code, lines) = outcome(runtime, &sandbox, &container("first", "echo made of it")).await;
        assert_eq!((code, lines.join("\n").as_str()), (0, "made of it"));
        let user = runtime
            .create_container(&sandbox, &SandboxConfig::default(), &container("user", "true"))
            .await
            .unwrap();
        let refused = images.remove(IMAGE).await.unwrap_err();
        assert!(
            matches!(&refused, Error::ImageInUse { image, container } if image == IMAGE && *container == user.0),
            "{refused:?}"
        );
        runtime.remove_container(&user).await.unwrap();
        images.remove(IMAGE).await.unwrap();
        assert_eq!(runtime.images().await.unwrap(), []);
        let error = runtime
            .create_container(&sandbox, &SandboxConfig::default(), &container("late", "true"))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::ImageNotFound { .. }), "{error:?}");

        runtime.import_image(node.archive()).await.unwrap();
        assert_eq!(images.list().await.unwrap(), imported);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_import_of_many_at_once_is_lost() {
    with_runtime(async |node, runtime| {
        const IMPORTERS: usize = 8;
        let imports = (0..IMPORTERS).map(|number| {
            // They share a layer.
            let blueprint = Blueprint {
                reference: format!("kedge.test/one-of-many:{number}"),
                env: vec![("NUMBER".into(), number.to_string())],
                ..busybox()
            };
            let path = node.write(&format!("{number}.tar"), &build_archive(&blueprint).unwrap());
            let images = Images::open(&node.config().root).unwrap();
            async move { images.import(path).await.unwrap() }
        });
        futures_util::future::join_all(imports).await;
        assert_eq!(runtime.images().await.unwrap().len(), IMPORTERS);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opening_the_images_touches_no_container_and_no_running_import() {
    with_runtime(async |node, _| {
        let root = node.config().root;
        let being_made = [root.join("containers/unmade"), root.join("images/layers/.unmade")];
        being_made
            .iter()
            .for_each(|path| std::fs::create_dir(path).unwrap());
        let changing = std::fs::File::create(root.join("images/images.lock")).unwrap();
        changing.lock().unwrap();
        Images::open(&root).unwrap();
        assert!(being_made.iter().all(|path| path.exists()));
        changing.unlock().unwrap();
        Images::open(&root).unwrap();
        let [container, layer] = being_made;
        assert!(
            container.exists() && !layer.exists(),
            "a leftover goes when nobody imports"
        );
        std::fs::remove_dir(container).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_moved_shared_and_protected() {
    with_runtime(async |node, runtime| {
        let [first] = &runtime.import_image(node.archive()).await.unwrap()[..] else {
            panic!("one image")
        };
        assert_eq!(
            runtime.import_image(node.archive()).await.unwrap(),
            std::slice::from_ref(first),
            "importing again changes nothing"
        );
        for name in [IMAGE, first.id.as_str(), first.digests[0].as_str()] {
            assert_eq!(runtime.image(name).await.unwrap().as_ref(), Some(first), "{name}");
        }
        let second_name = Blueprint {
            reference: "kedge.test/alias:2".into(),
            ..busybox()
        };
        let path = node.write("alias.tar", &build_archive(&second_name).unwrap());
        let [both] = &runtime.import_image(path).await.unwrap()[..] else {
            panic!("one image")
        };
        assert_eq!(both.tags, ["kedge.test/alias:2", IMAGE]);

        let sandbox = runtime.run_sandbox(&node.sandbox("pod")).await.unwrap();
        let user = runtime
            .create_container(&sandbox, &SandboxConfig::default(), &container("user", "true"))
            .await
            .unwrap();
        runtime.remove_image("kedge.test/alias:2").await.unwrap();
        let error = runtime.remove_image(IMAGE).await.unwrap_err().to_string();
        assert_eq!(error, format!("image {IMAGE} is used by container {}", user.0));
        runtime.remove_sandbox(&sandbox).await.unwrap();
        runtime.remove_image(IMAGE).await.unwrap();
        assert_eq!(
            std::fs::read_dir(node.directory.join("runtime/images/layers"))
                .unwrap()
                .count(),
            0
        );
        // Nobody listens there.
        let error = runtime.pull_image("127.0.0.1:1/x", &[]).await.unwrap_err();
        assert!(matches!(error, Error::Pull { .. }), "{error}");

        let other = Blueprint {
            env: vec![("A".into(), "b".into())],
            ..busybox()
        };
        runtime.import_image(node.archive()).await.unwrap();
        let path = node.write("other.tar", &build_archive(&other).unwrap());
        let [moved] = &runtime.import_image(path).await.unwrap()[..] else {
            panic!("one image")
        };
        assert_ne!(moved.id, first.id);
        assert_eq!(
            runtime.image(IMAGE).await.unwrap().unwrap().id,
            moved.id,
            "a name means the last import"
        );
        assert_eq!(
            runtime.image(&first.id).await.unwrap().unwrap().tags,
            Vec::<String>::new()
        );
    })
    .await;
}

#[test]
fn the_same_blueprint_gives_the_same_bytes() {
    assert_eq!(
        build_archive(&busybox()).unwrap(),
        build_archive(&busybox()).unwrap()
    );
}

#[test]
fn names_can_be_read_without_importing() {
    let node = Node::new();
    assert_eq!(
        kedge_runtime::image::references_in(&node.archive()).unwrap(),
        [IMAGE]
    );
}
